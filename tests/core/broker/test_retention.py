"""Retention: what goes and why, what readers are told, and what is remembered all the same."""

from __future__ import annotations

from typing import Any

import pytest

from oncemq import protocol
from oncemq.errors import CorruptLog
from oncemq.limits import LIMITS, RETENTION_EVERY_MS, TRIMS_WITHOUT_ROOM_MAX
from oncemq.protocol import Failure, Fetch, Fetched, Leave, Rewind
from oncemq.storage import layout
from tests.core.broker.help import OTHER, batch_of, refuse, runs
from tests.core.broker.keeping import Keeping, stored_from


def test_messages_go_when_they_are_too_old():
    """Age counts from the broker's time of a message; newer ones stay."""
    world = Keeping("1m")
    world.fill(5)
    world.later(50_000)
    world.fill(3, first=5)
    assert world.start_of() == 0
    world.later(15_000)
    assert world.start_of() == 4, "by whole entries: of the last old one nothing is known"
    world.later(60_000)
    assert world.start_of() == 8, "the last one, too, is too old"
    assert [e["reason"] for e in world.events.named("topic.trimmed")] == ["age", "age"]


def test_the_oldest_messages_go_when_there_are_too_many_bytes():
    """What is left is below the bound, and is the newest of all partitions."""
    world = Keeping("1500B", partitions=2)
    for number in range(6):
        world.send(number, "x" * 200, partition=0)
        world.send(number, "x" * 200, partition=1)
    world.later()
    topic = world.core.state.topics.get("t")
    held = sum(one.bytes_stored - one.bytes_trimmed for one in topic.by_number.values())
    assert 700 < held <= 1500
    assert world.start_of(0) - world.start_of(1) in {0, 1}


def test_messages_go_when_every_group_has_committed_them():
    """A group counts with what it reported as durable, for each partition by itself."""
    world = Keeping("processed", partitions=2)
    world.fill(4)
    world.fill(4, partition=1)
    world.later()
    assert world.start_of() == 0, "without a group nothing was processed"
    world.join("g")
    world.join("h", incarnation=b"j" * 16)
    world.report(3)
    world.later()
    assert world.start_of() == 0, "the other group has committed nothing"
    world.report(2, group="h")
    world.later()
    assert (world.start_of(0), world.start_of(1)) == (2, 0)
    world.ask(Leave(world.n, "g", "t", 0, 1, 4))
    world.report(4, group="h")
    world.later()
    assert (world.start_of(0), world.start_of(1)) == (4, 0), "no group has come for partition 1"
    assert {e["reason"] for e in world.events.named("topic.trimmed")} == {"processed"}


def test_what_a_joiner_saw_in_its_ledger_does_not_count_as_processed():
    """A killed process may have written it and not synced it: a power cut takes it back."""
    world = Keeping("processed")
    world.fill(4)
    world.join(next_offset=3)
    world.later()
    assert world.start_of() == 0
    world.report(2)
    world.later()
    assert world.start_of() == 2
    granted = world.join(next_offset=4, incarnation=b"2" * 16, lock_held=True, highest_generation=1)
    assert granted.epoch == 2
    world.later()
    assert world.start_of() == 2


def test_after_a_restart_a_group_must_report_again():
    """Reports are lost with the process, and the offset of a grant is what a joiner saw."""
    world = Keeping("processed")
    world.fill(4)
    world.join(next_offset=3)
    world.crash()
    world.later()
    assert world.start_of() == 0
    world.report(3)
    world.later()
    assert world.start_of() == 3


def test_a_reader_below_the_start_is_told_what_it_lost():
    """It gets OffsetTrimmed with the range, the reason, the time and the way on; it is not moved."""
    world = Keeping("1m")
    world.fill(5)
    world.later(70_000)
    refused = world.fetch(2).message
    assert isinstance(refused, Failure)
    assert refused.code == "offset_trimmed"
    for part in ("messages 2 to 4", "offset 5", "age", "UTC"):
        assert part in refused.reason
    assert world.fetch(5).message.next_offset == 5


def test_a_group_is_told_the_command_that_lets_it_go_on():
    """The hint names the group and the topic."""
    world = Keeping("1m")
    world.fill(2)
    world.join()
    world.later(70_000)
    refused = world.fetch(0, group="g", epoch=1).message
    assert "oncemq groups seek g t --to earliest" in refused.hint


def test_a_new_group_begins_at_the_start():
    """Its grant names the first message that is there; a client of an earlier version learns 0."""
    world = Keeping("1m")
    world.fill(5)
    world.later(70_000)
    assert world.join().start_offset == 5
    world.hello(version_max=3)
    assert world.join("old").start_offset == 0


def test_a_fetch_that_waited_while_its_messages_went_is_told():
    """A postponed fetch does not go on behind the gap."""
    world = Keeping("1m", turn_bytes_max=300)
    world.fill(5)
    world.clock.ms += 70_000
    for peer in (b"", OTHER):
        fetch = Fetch(world.n, "", "t", 0, 0, 0, 1 << 20, 500)
        world.put(fetch, peer=peer or b"peer-aaaaaaaaaaa")
    world.settle()
    world.clock.ms += 1
    world.settle()
    answers = [message for _, received in world.wire.sent for message in [received.message]]
    kinds = {type(answer) for answer in answers}
    assert kinds <= {Fetched, Failure}
    for answer in answers:
        assert isinstance(answer, Failure) or answer.next_offset >= 1
    assert any(isinstance(answer, Failure) for answer in answers)


def test_ids_of_deleted_messages_are_known_with_their_offsets():
    """A duplicate of a message that is gone gets the original's offset; another body a conflict."""
    world = Keeping("1m")
    world.send_ids(0, {f"id-{number}": "v" for number in range(4)})
    world.later(70_000)
    assert world.start_of() == 4
    for _ in range(2):
        assert runs(world.send_ids(0, {"id-2": "v"}, session=b"Z" * 16)) == [(1, "duplicate", 2)]
        assert runs(world.send_ids(0, {"id-1": "w"}, session=b"Y" * 16)) == [(1, "conflict", 1)]
        world.crash(clean=True)


def test_numbers_of_deleted_messages_are_known_with_their_offsets():
    """A resend of a deleted batch is a duplicate; where offsets follow from numbers they are told."""
    world = Keeping("1m")
    world.fill(6)
    world.later(70_000)
    world.send(6, "there")
    for _ in range(2):
        assert runs(world.send(2, "a", "b")) == [(2, "duplicate", 2)]
        assert runs(world.send(5, "gone", "there")) == [(2, "duplicate", 5)]
        assert runs(world.send(5, "gone", "other")) == [(1, "duplicate", 5), (1, "conflict", 6)]
        world.crash(clean=True)
        world.producer()


def test_numbers_of_deleted_messages_among_others_have_the_offsets_of_their_runs():
    """Where producers take turns each turn is a run; what fell out of the list is unknown."""
    world = Keeping("1m", producer_index_entries_max=4)
    world.producer("q", nonce=b"q" * 16)
    for number in range(6):
        world.send(number, "p")
        world.send(number, "q", producer="q")
    world.later(70_000)
    assert runs(world.send(0, *"pppppp")) == [
        (2, "duplicate", -1),
        *[(1, "duplicate", 2 * number) for number in range(2, 6)],
    ]


def test_segments_go_as_soon_as_no_partition_needs_them():
    """The log starts above 0 then, and a restart needs nothing below."""
    world = Keeping("4KB")
    world.churn()
    assert world.log.start > 0
    assert len(world.segments()) <= 4, "4 KB of messages and two snapshots, 4 KB apart"
    start, first = world.log.start, world.start_of()
    world.crash()
    assert world.log.start >= start
    assert world.start_of() == first
    assert stored_from(world, first) == [f"{number:04}" for number in range(first, 120)]
    assert runs(world.send(3, "x")) == [(1, "duplicate", 3)]


def test_a_partition_that_is_not_trimmed_keeps_what_it_needs():
    """Segments stay that hold a message of another topic."""
    world = Keeping("4KB")
    world.topic("slow")
    world.send(0, "slow", topic="slow")
    world.churn()
    assert len(world.segments()) > 5
    assert world.stored(topic="slow") == ["slow"]


def test_without_a_snapshot_a_log_that_starts_above_0_is_refused():
    """Its state cannot be made anew: an empty one would forget ids."""
    world = Keeping("4KB")
    world.churn()
    path = f"data/{layout.generation_name(world.log.generation)}"
    world.driver.close()
    world.disk.drop_locks()
    for name in world.disk.list(path):
        if name.endswith(".snapshot"):
            world.disk.unlink(f"{path}/{name}")
    with pytest.raises(CorruptLog, match="starts at"):
        world.start()


def test_a_rewind_below_the_start_is_refused():
    """An operator cannot move a group to what is gone."""
    world = Keeping("1m")
    world.fill(5)
    world.join(next_offset=5)
    world.later(70_000)
    world.fill(2, first=5)
    refused = world.ask(Rewind(world.n, "g", "t", 0, 1, 3))
    assert refused.code == "offset_trimmed"


def test_on_a_full_disk_messages_go_on_being_deleted_for_a_while():
    """What deletes may be what makes room; its records fit into the margin, so they are bounded."""
    world = Keeping("1m")
    world.fill(5)
    reserve, world.log.reserve = world.log.reserve, refuse
    batch = batch_of("refused")
    assert world.ask(world.numbered(5, batch), batch.raw).code == "disk_full"
    world.later(70_000)
    assert world.start_of() == 5
    world.core._retention._without_room = 0
    world.log.reserve = reserve
    world.later()
    assert world.core._retention._without_room == TRIMS_WITHOUT_ROOM_MAX


def test_a_sweep_of_many_partitions_takes_several_turns():
    """No turn visits more than its bound, and what is needed is known at the end."""
    world = Keeping("1m", retention_partitions_per_turn=2)
    for name in "abcdef":
        world.topic(name)
        world.send(0, name, topic=name)
    world.clock.ms += RETENTION_EVERY_MS
    world.turn()
    turns = 1
    while world.core._retention._sweep is not None:
        world.clock.ms += 1
        world.turn()
        turns += 1
    assert turns >= 3
    assert LIMITS.retention_partitions_per_turn > 2


def test_replays_of_a_group_are_retained():
    """No report tells how far a group is in its private topic."""
    world = Keeping("1m")
    world.ask(protocol.DescribeTopic(world.n, "t@g", create=True))
    refused = world.ask(protocol.ConfigureTopic(world.n, "t@g", "", "1m"))
    assert refused.code == "invalid_setting"


# --- topics that are deleted ---------------------------------------------------------------------


def deleted(world: Keeping, name: str = "t") -> Any:
    topic_id = world.ask(protocol.DescribeTopic(world.n, name, create=False)).topic_id
    return world.ask(protocol.DeleteTopic(world.n, name, topic_id))


def test_a_deleted_topic_is_gone_with_all_that_was_made_for_it():
    """Its dead letters and private topics name messages that are gone; other topics stay."""
    world = Keeping("forever")
    world.fill(2)
    for name in ("t.dead", "t@g", "tt", "tt.dead"):
        world.ask(protocol.DescribeTopic(world.n, name, create=True))
    assert deleted(world) == protocol.TopicGone(next(world.numbers) - 1, "t")
    for _ in range(2):
        listed = world.ask(protocol.ListTopics(world.n))
        assert [row[0] for row in listed.topics] == ["tt", "tt.dead"]
        assert world.fetch(0).message.code == "unknown_topic"
        world.crash(clean=True)


def test_a_topic_is_deleted_once_and_by_its_id():
    """A resent request is answered as before; a topic of that name that was made since stays."""
    world = Keeping("forever")
    old = world.ask(protocol.DescribeTopic(world.n, "t", create=False)).topic_id
    deleted(world)
    assert isinstance(world.ask(protocol.DeleteTopic(world.n, "t", old)), protocol.TopicGone)
    world.topic()
    assert world.ask(protocol.DeleteTopic(world.n, "t", old)).code == "store_mismatch"
    assert len(world.ask(protocol.ListTopics(world.n)).topics) == 1


def test_what_goes_with_a_topic_is_not_deleted_alone():
    """Consumers have numbered what they sent there: it would begin again."""
    world = Keeping("forever")
    world.ask(protocol.DescribeTopic(world.n, "t.dead", create=True))
    assert deleted(world, "t.dead").code == "invalid_name"


def test_a_later_topic_of_the_name_is_another_one():
    """Ids and numbers begin anew, and nothing of the first topic is mixed into it."""
    world = Keeping("forever")
    old = world.ask(protocol.DescribeTopic(world.n, "t", create=False)).topic_id
    world.send_ids(0, {"x": "1"})
    world.send(0, "numbered")
    deleted(world)
    assert world.send(1, "on").code == "unknown_topic"
    new = world.topic().topic_id
    assert new != old
    assert world.send(1, "on").code == "gap"
    for number in range(2):
        session = bytes([65 + number]) * 16
        verdict = ("stored", "duplicate")[number]
        assert runs(world.send_ids(0, {"x": "2"}, session=session)) == [(1, verdict, 0)]
        world.crash(clean=True)
        world.producer()
    assert stored_from(world, 0) == ["2"]


def test_groups_of_a_deleted_topic_are_told():
    """Its owners and readers get UnknownTopic, also those that wait; its ledgers StoreMismatch."""
    world = Keeping("forever")
    world.fill(1)
    old = world.join().topic_id
    world.put(Fetch(world.n, "g", "t", 0, 1, 1, 1000, 30_000), peer=OTHER)
    world.settle()
    deleted(world)
    (told,) = world.take(OTHER)
    assert told.code == "unknown_topic"
    assert world.report(1).code == "unknown_topic"
    world.topic()
    assert world.join(topic_id_seen=old, next_offset=1).code == "store_mismatch"
    assert world.join(next_offset=0).epoch == 2, "no epoch is given twice"


def test_outputs_of_a_later_topic_do_not_begin_again_at_number_0():
    """They would be duplicates of those of the first: an operator gives the group a new ledger."""
    world = Keeping("forever")
    world.topic("out")
    world.fill(1)
    world.join()
    name = "@g/t/0"
    world.ask(protocol.InitProducer(world.n, name, b"i" * 16, "me"))
    world.send(0, "output", topic="out", producer=name, epoch=1)
    deleted(world)
    world.topic()
    refused = world.join()
    assert refused.code == "ledger_not_here"
    assert "oncemq groups reset g t --to earliest --new-ledger" in refused.hint
    assert world.join(replaces=True).epoch == 2
    ready = world.ask(protocol.InitProducer(world.n, name, b"i" * 16, "me"))
    assert ready.partitions == (("out", 0, 1, b""),)


def test_a_deleted_topic_frees_its_segments():
    """What it held is not needed any more, as soon as the next sweep is over."""
    world = Keeping("forever")
    world.churn()
    held = len(world.segments())
    deleted(world)
    world.later()
    assert len(world.segments()) < held / 2


def test_a_topic_is_shown_with_what_it_holds():
    """Offsets, bytes and times of its partitions, ids that outlive their messages, groups."""
    world = Keeping("1m", partitions=2)
    world.send_ids(0, {"x": "1", "y": "2"})
    world.later(70_000)
    world.fill(3)
    world.join(next_offset=2)
    world.report(4)
    shown = world.ask(protocol.ShowTopic(world.n, "t"))
    now = world.clock.ms
    (row,) = shown.rows
    assert row[:3] == (0, 2, 5)
    assert 600 < row[3] < 1300
    assert row[4] == row[5] == now
    assert (shown.ids, shown.groups, shown.retain) == (2, (("g", 0, 4, True),), "1m")
    assert world.ask(protocol.ShowTopic(world.n, "nope")).code == "unknown_topic"
