"""The story of one message, from files and from events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from oncemq.cli.explain import explain as explain_command
from oncemq.cli.verify import verify as verify_command
from oncemq.errors import StorageError, UnknownTopic
from oncemq.proof.checks.evidence import History
from oncemq.proof.story.explain import explain
from oncemq.proof.story.story import Story
from oncemq.records import Committed
from oncemq.runtime.os_disk import OsDisk
from oncemq.storage.memory import MemoryDisk
from tests.proof.checks.test_checks import an_event, commit_event
from tests.proof.golden import (
    DATA,
    STATE,
    Broker,
    Consumer,
    compacted,
    explicit,
    numbered,
    put,
    shop,
    topic_id,
)


def story_of(disk: Any, message_id: str, **more: Any) -> Story:
    return explain(disk, message_id, topic="orders", data=DATA, state=STATE, **more)


def test_an_explicit_id_is_found_with_its_commit_and_outputs() -> None:
    """Where it was accepted, who processed it in which commit, and what that sent where."""
    disk = MemoryDisk()
    shop(disk)
    story = story_of(disk, "o-2")
    assert story.accepted is not None
    assert (story.accepted["offset"], story.accepted["kind"]) == (1, "explicit")
    (group,) = story.groups
    assert (group["group"], group["status"], group["commit_no"]) == ("billing", "processed", 1)
    (output,) = group["outputs"]
    assert (output["topic"], output["count"], output["offset"]) == ("invoices", 2, 0)
    assert output["ids"][0] == "invoices/@billing/orders/0:0:0"


def test_bytes_of_two_fingerprints_are_not_a_third_one() -> None:
    """Fingerprints count at whole places only."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.store("orders", explicit("a"))
    consumer = Consumer(disk, "g", "orders")
    consumer.start()
    (told,) = consumer.fingerprints(["a"])
    across = b"x" * 8 + told + b"x" * 8
    inputs = [(topic_id("orders"), 1)]
    put(consumer.log, Committed(2, 1, inputs, [], across, {}))
    (group,) = story_of(disk, "a").groups
    assert group["status"] == "passed over"
    put(consumer.log, Committed(2, 2, inputs, [], across + told, {}))
    (group,) = story_of(disk, "a").groups
    assert group["commit_no"] == 2


def test_a_sequence_id_is_found_by_its_number() -> None:
    """The number tells the place in the batch; its producer and owner are named."""
    disk = MemoryDisk()
    shop(disk)
    story = story_of(disk, "orders/importer:0:3")
    assert story.accepted is not None
    assert (story.accepted["offset"], story.accepted["producer"]) == (6, "importer")
    assert story.accepted["owner"] == "me"
    assert story.groups[0]["commit_no"] == 2


def test_a_message_that_waits_is_pending() -> None:
    """What lies at or above the committed offset was not processed yet."""
    disk = MemoryDisk()
    shop(disk)
    assert [group["status"] for group in story_of(disk, "o-4").groups] == ["pending"]


def test_a_message_below_the_start_of_a_group_is_called_so() -> None:
    """A group that started later does not owe it."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    broker.grant("late", "orders", 0, 2, next_offset=3)
    Consumer(disk, "late", "orders").start(3)
    assert {group["group"]: group["status"] for group in story_of(disk, "o-1").groups} == {
        "billing": "processed",
        "late": "before the start of the group",
    }


def test_an_output_is_a_message_like_others() -> None:
    """Its id leads from the commit that made it to its place in the log."""
    disk = MemoryDisk()
    shop(disk)
    story = explain(disk, "invoices/@billing/orders/0:0:1", topic="invoices", data=DATA)
    assert story.accepted is not None
    assert story.accepted["offset"] == 1


def test_a_compacted_ledger_still_knows_what_it_processed() -> None:
    """Ids that only a snapshot holds are processed, by a commit that is not there any more."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    compacted(broker)
    (group,) = story_of(disk, "b3").groups
    assert (group["status"], group["commit_no"]) == ("processed", None)
    (group,) = story_of(disk, "b59").groups
    assert group["commit_no"] == 60


def test_only_the_kept_message_of_a_masked_batch_is_the_one() -> None:
    """A duplicate in a later batch is not taken for the original."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.store("orders", explicit("a"))
    broker.store("orders", explicit("a", "b"), kept=1, mask=b"\x02")
    for name, offset in (("a", 0), ("b", 1)):
        story = explain(disk, name, topic="orders", data=DATA)
        assert story.accepted is not None
        assert story.accepted["offset"] == offset


def test_bytes_ids_and_unknown_ones() -> None:
    """An id of bytes is asked for in hexadecimal; an unknown id gives a note, no story."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    batch = explicit("x")
    from oncemq.codec import batch as batch_codec

    batch = batch_codec.build([b"v"], encodings=0, ids=[b"b\xff\x00"], keys=[b"k"])
    broker.store("orders", batch)
    story = explain(disk, "0xff00", topic="orders", data=DATA)
    assert story.accepted is not None
    assert story.accepted["key"] == "k"
    story = explain(disk, "0xzz", topic="orders", data=DATA)
    assert story.accepted is None
    assert story.notes
    with pytest.raises(UnknownTopic):
        explain(disk, "x", topic="nothing", data=DATA)
    with pytest.raises(UnknownTopic, match="did you mean 'orders'"):
        explain(disk, "x", topic="order", data=DATA)
    with pytest.raises(StorageError):
        explain(MemoryDisk(), "x", topic="nothing", data=DATA)


def test_events_add_attempts_and_refusals() -> None:
    """What concerns the message is told, what concerns its neighbours is not."""
    disk = MemoryDisk()
    shop(disk)
    place = {"topic": "orders", "partition": 0}
    events = [
        an_event(0, "message.duplicate", id="o-2", offset=1, **place),
        an_event(1, "message.duplicate", id="o-3", offset=2, **place),
        an_event(2, "handler.raised", id="o-2", offset=1, group="billing", error="E", **place),
        commit_event(3, 0, 2, 1),
        commit_event(4, 2, 7, 2),
        an_event(5, "producer.fenced", producer="importer"),
        an_event(6, "log.rolled"),
        an_event(7, "batch.refused", producer="importer", first_sequence=0, count=4, **place),
    ]
    history = History(events)
    names = [event["event"] for event in story_of(disk, "o-2", history=history).events]
    assert names == ["message.duplicate", "handler.raised", "commit.synced"]
    names = [
        event["event"] for event in story_of(disk, "orders/importer:0:1", history=history).events
    ]
    assert names == ["commit.synced", "producer.fenced", "batch.refused"]


# --- the commands --------------------------------------------------------------------------------


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    """A small system on the real disk, as options of the commands."""
    data, state = f"{tmp_path}/data", f"{tmp_path}/state"
    broker = Broker(OsDisk(), data)
    broker.topic("orders")
    broker.producer("importer")
    broker.store("orders", explicit("o-1", "o-2"))
    broker.store("orders", numbered(1), producer="importer")
    broker.grant("billing", "orders", 0, 2)
    consumer = Consumer(OsDisk(), "billing", "orders", state=state)
    consumer.start()
    consumer.commit(2, ["o-1", "o-2"], state={"k": b"v"})
    broker.log.close()
    consumer.log.close()
    return ["--data", data, "--state", state]


def test_explain_prints_the_story(directories: list[str]) -> None:
    """One line a fact, and exit 1 for a message that nobody knows."""
    run = CliRunner().invoke(explain_command, ["o-1", "--topic", "orders", *directories])
    assert run.exit_code == 0, run.output
    assert "accepted at offset 0 of partition 0" in run.output
    assert "group billing: processed by commit 1" in run.output
    run = CliRunner().invoke(explain_command, ["nix", "--topic", "orders", *directories])
    assert run.exit_code == 1


def test_verify_prints_what_became_of_all(directories: list[str]) -> None:
    """A table, or JSON; exit 0 when every promise was kept."""
    run = CliRunner().invoke(verify_command, directories)
    assert run.exit_code == 0, run.output
    assert "orders\t3\tbilling\t2\t1\t0\t0" in run.output
    run = CliRunner().invoke(verify_command, [*directories, "--json"])
    assert '"ok": true' in run.output


def test_verify_fails_when_a_promise_was_broken(directories: list[str]) -> None:
    """Exit 1, and the violation names the message."""
    consumer = Consumer(OsDisk(), "billing", "orders", epoch=3, state=directories[3])
    consumer.number = 1
    consumer.commit(3, ["o-2"])
    consumer.log.close()
    run = CliRunner().invoke(verify_command, directories)
    assert run.exit_code == 1
    assert "VIOLATION" in run.output
    assert "o-2" in run.output


def test_verify_refuses_a_state_directory_that_is_not_there(directories: list[str]) -> None:
    """A mistyped path is wrong usage, not a clean verdict."""
    run = CliRunner().invoke(verify_command, [*directories[:2], "--state", "/nowhere"])
    assert run.exit_code == 2
