"""The broker as a whole: hello, topics, a full disk, failures of the log, snapshots."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oncemq.core.broker.core import CheckFence, Superseded
from oncemq.core.broker.lineage import lineage_proof
from oncemq.errors import DiskFull
from oncemq.limits import LIMITS, Limits
from oncemq.outcome import Outcome, Received, Recovered
from oncemq.protocol import (
    CreateTopic,
    DescribeTopic,
    Hello,
    InitProducer,
    Join,
    ListTopics,
    Ping,
    Pong,
    TopicDescribed,
)
from oncemq.storage import snapshots
from tests.core.broker.help import World, batch_of, refuse, runs


def opened(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello()
    return world


@pytest.fixture
def world() -> World:
    return opened()


# --- hello ---------------------------------------------------------------------------------------


def test_the_welcome_names_log_and_epoch(world):
    """A client learns which log it speaks to and how new the broker is."""
    welcome = world.hello()
    assert (welcome.version, welcome.log_id, welcome.epoch) == (1, world.core.log_id, 2)


@pytest.mark.parametrize(("low", "high", "who"), [(5, 9, "broker"), (0, 0, "client")])
def test_no_common_version_says_which_side_to_upgrade(world, low, high, who):
    """VersionMismatch is final and helpful."""
    refused = world.hello(version_min=low, version_max=high)
    assert (refused.code, refused.hint) == ("version_mismatch", f"upgrade the {who}")


def test_another_log_is_refused(world):
    """A client that worked with another log must not go on with this one."""
    assert world.hello(log_id_seen=b"other").code == "store_mismatch"


def test_a_higher_epoch_makes_the_broker_look_at_its_fence(world):
    """A claim alone does not end a broker: it looks, and serves on if there is no successor."""
    refused = world.hello(b"hostile-peer-16b", log_id_seen=world.core.log_id, epoch_seen=99)
    assert refused.code == "log_regressed"
    assert world.work == [CheckFence()]
    assert isinstance(world.ask(Ping(world.n)), Pong)
    assert world.hello(log_id_seen=b"", epoch_seen=99).epoch == 2


def restored_welcome(world: World, epoch: int = 99) -> dict[str, object]:
    """What a client of a restored copy of the world's log says in its hello."""
    lineage = b"another lineage."
    proof = lineage_proof(b"S" * 32, lineage, epoch)
    seen = {"log_id_seen": world.core.log_id, "epoch_seen": epoch}
    return {**seen, "lineage": lineage, "proof": proof, "version_max": 4}


def test_a_proved_restore_ends_the_original(world):
    """The copy is the successor: the original answers nothing else and ends."""
    refused = world.hello(**restored_welcome(world))
    assert refused.code == "fenced"
    [work] = world.work
    assert isinstance(work, Superseded)
    assert b"another lineage.".hex() in work.reason


@pytest.mark.parametrize(
    "change",
    [
        {"proof": b"x" * 16},
        {"proof": b""},
        {"epoch_seen": 98},
        {"lineage": b"a third lineage."},
    ],
)
def test_a_lineage_without_a_true_proof_ends_nobody(world, change):
    """A client may lie: each part of the claim is covered by the proof."""
    refused = world.hello(**{**restored_welcome(world), **change})
    assert refused.code == "log_regressed"
    assert world.work == [CheckFence()]


def test_a_lower_epoch_of_another_lineage_ends_nobody(world):
    """The successor meets clients of the original, or of a copy that was restored before."""
    assert world.hello(**restored_welcome(world, epoch=1)).epoch == 2
    assert world.work == []


def test_only_a_restored_log_gives_a_proof(world):
    """Clients of all other logs have nothing to say, and those of earlier versions no field."""
    assert world.hello(version_max=4).proof == b""
    world.core.lineage = b"another lineage."
    world.core._recovered(Recovered(2, 0), Outcome())
    proof = lineage_proof(b"S" * 32, b"another lineage.", 2)
    assert world.hello(version_max=4).proof == proof
    assert world.hello(version_max=3).proof == b""


def test_a_restarted_broker_knows_nobody(world):
    """Everything but a hello is refused until the hello."""
    world.crash()
    assert world.ask(Ping(world.n)).code == "hello_required"
    world.hello()
    assert world.ask(Ping(world.n)).epoch == 3


def test_the_table_of_peers_is_bounded(world):
    """The least recently heard is forgotten and must say hello again."""
    hello = Hello(1, 1, 1, "test", b"i" * 16, b"", 0)
    for number in range(LIMITS.peers_max):
        world.core.step(Received(number.to_bytes(16, "big"), hello), world.clock.ms)
    assert len(world.core._peers) == LIMITS.peers_max
    assert world.ask(Ping(world.n)).code == "hello_required"


# --- topics --------------------------------------------------------------------------------------


def test_a_topic_is_made_once(world):
    """The same name and count again is no error; another count is refused."""
    made = world.topic(partitions=3)
    assert (made.partitions, made.end_offsets) == (3, (0, 0, 0))
    assert dataclasses.replace(world.topic(partitions=3), request=made.request) == made
    assert world.topic(partitions=4).code == "topic_exists"
    world.crash()
    world.hello()
    assert world.topic(partitions=3).topic_id == made.topic_id


def test_describe_makes_a_topic_only_when_asked_to(world):
    """Looking is not making."""
    assert world.ask(DescribeTopic(world.n, "x", False)).code == "unknown_topic"
    assert world.ask(DescribeTopic(world.n, "x", True)).partitions == 1
    assert isinstance(world.ask(DescribeTopic(world.n, "x", False)), TopicDescribed)


def test_topics_are_made_on_purpose_only_where_the_broker_says_so():
    """A send or a consumer makes none but OnceMQ's own; the refusal names what is spelled alike."""
    world = World(create_topics=False)
    world.hello()
    for name in ("orders", "order", "invoices", "ordrs.dead", "ordrs@g"):
        made = CreateTopic(world.n, name, 1)
        assert isinstance(world.ask(made), TopicDescribed)
    refused = world.ask(DescribeTopic(world.n, "ordrs", create=True))
    assert refused.code == "unknown_topic"
    assert refused.reason == "there is no topic 'ordrs'; did you mean 'orders'?"
    assert refused.hint == "create it with: oncemq topics create ordrs"
    for name in ("orders.dead", "orders@g"):
        assert isinstance(world.ask(DescribeTopic(world.n, name, create=True)), TopicDescribed)
    assert isinstance(world.ask(DescribeTopic(world.n, "orders", create=True)), TopicDescribed)
    distant = world.ask(DescribeTopic(world.n, "a topic for it's own", create=True))
    assert distant.reason.endswith('own"')
    assert "'a topic for it'" in distant.hint
    assert len(world.ask(ListTopics(world.n)).topics) == 7


def test_a_mistyped_topic_is_answered_with_its_like(world):
    """Also where topics are made by sends: of requests that make none."""
    world.topic("orders")
    refused = world.ask(DescribeTopic(world.n, "order", create=False))
    assert "did you mean 'orders'" in refused.reason
    assert "did you mean" not in world.ask(DescribeTopic(world.n, "order@g", create=False)).reason


def test_a_topic_made_twice_in_one_turn_is_one_topic(world):
    """Two clients ask at the same moment: one record, one id."""
    world.take()
    world.put(DescribeTopic(world.n, "x", True))
    world.put(CreateTopic(world.n, "x", 1))
    world.turn()
    first, second = world.take()
    assert first.topic_id == second.topic_id
    assert len(world.core.state.topics) == 1


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("orders", True),
        ("orders.dead", True),
        ("orders@billing", True),
        ("x.dead.dead", False),
        ("@g", False),
        ("a@b@c", False),
        ("a@", False),
        ("a/b", False),
        ("a:b", False),
        ("..", False),
        ("", False),
        ("x" * 129, False),
        ("a\nb", False),
    ],
)
def test_names_of_topics(world, name, good):
    """Names of users, and the two shapes of our own; nothing else becomes a topic."""
    answer = world.ask(DescribeTopic(world.n, name, True))
    assert isinstance(answer, TopicDescribed) == good
    assert good or answer.code == "invalid_name"


def test_topics_are_bounded():
    """One topic too many is refused with Busy."""
    world = opened(topics_max=1)
    world.topic()
    assert world.topic("u").code == "busy"
    assert world.topic("v", partitions=0).code == "protocol"
    assert world.topic("v", partitions=LIMITS.partitions_max + 1).code == "protocol"


def test_the_list_of_topics_counts_durable_messages(world):
    """Every topic with its id, partitions and messages."""
    world.topic(partitions=2)
    world.producer()
    world.send(0, "a", "b")
    world.send(0, "c", partition=1)
    ((name, topic_id, partitions, messages),) = world.ask(ListTopics(world.n)).topics
    assert (name, len(topic_id), partitions, messages) == ("t", 16, 2, 3)


@pytest.mark.parametrize("name", ["@g/t/0", "a/b", "x.dead", "", "@"])
def test_names_of_producers(world, name):
    """A user's producer cannot take the name of a grant's output producer."""
    assert world.producer(name).code in {"invalid_name", "unknown_producer"}
    assert len(world.core.state.producers) == 0


def test_producer_names_are_bounded():
    """One name too many is refused with Busy; known names go on."""
    world = opened(producers_max=1)
    world.producer()
    assert world.producer("q").code == "busy"
    assert world.producer(nonce=b"m" * 16).epoch == 2


# --- the disk ------------------------------------------------------------------------------------


def test_a_full_disk_refuses_writes_and_applies_nothing(world):
    """DiskFull is retriable, reads go on, and work resumes by itself with the same requests."""
    world.topic()
    world.producer()
    world.send(0, "a")
    world.send_ids(0, {"x": "1"})
    before = (world.log.end, world.core.snapshot().whole())
    world.log.reserve = refuse
    assert world.send(1, "b").code == "disk_full"
    assert world.send_ids(1, {"y": "2"}).code == "disk_full"
    assert world.producer("q").code == "disk_full"
    assert world.topic("u").code == "disk_full"
    ask = Join(1, "g", "t", 0, b"A" * 16, b"l", b"", b"", 0, 0, False, "h", "p", "me")
    assert world.ask(ask).code == "disk_full"
    assert world.producer().epoch == 1  # granted before: nothing to write
    assert isinstance(world.topic(), TopicDescribed)
    assert world.stored() == ["a", "1"]
    assert (world.log.end, world.core.snapshot().whole()) == before
    del world.log.reserve
    world.clock.ms += 1000
    world.turn()
    assert runs(world.send(1, "b")) == [(1, "stored", 2)]
    assert runs(world.send_ids(1, {"y": "2"})) == [(1, "stored", 3)]


def test_a_sync_that_fails_after_an_id_was_noted_tells_nobody(world, monkeypatch):
    """No answer leaves, the process ends, and after the restart the resend is new."""
    world.topic()
    world.send_ids(0, {"x": "1"})
    world.take()

    def broken() -> int:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(world.log, "sync", broken)
    batch = batch_of("2", ids=[b"sy"])
    world.put(world.explicit(1, batch), batch.raw)
    with pytest.raises(OSError, match="input/output"):
        world.turn()
    assert len(world.core.state.ids) == 2
    assert world.take() == []
    world.crash()
    world.hello()
    assert runs(world.send_ids(0, {"x": "1", "y": "2"})) == [(1, "duplicate", 0), (1, "stored", 1)]


def test_times_never_go_back(world):
    """Broker time is monotonic in a partition, also over a restart with a clock set back."""
    world.topic()
    world.producer()
    first = world.send(0, "a").at_ms
    world.clock.ms -= 500_000
    second = world.send(1, "b").at_ms
    world.crash()
    world.hello()
    third = world.send(2, "c").at_ms
    world.clock.ms += 10
    fourth = world.send(3, "d").at_ms
    assert first <= second <= third < fourth


# --- snapshots -----------------------------------------------------------------------------------


def fill(world: World, rounds: range) -> None:
    """Write something of every kind."""
    for number in rounds:
        batch = {f"id-{number}-{place}": "x" * 50 for place in range(5)}
        world.send_ids(0, batch, session=b"%016d" % number, partition=number % 2)
        world.send(number, "y" * 100, partition=1)
    world.topic(f"topic-{rounds.stop}")
    world.ask(InitProducer(world.n, f"producer-{rounds.stop}", b"n" * 16, "me"))
    ask = Join(
        world.n, f"group-{rounds.stop}", "t", 0, b"A" * 16, b"l", b"", b"", 0, 0, False, "", "", ""
    )
    world.ask(ask)


def state_of(world: World) -> dict[str, object]:
    """All hard state: every part of a fresh snapshot."""
    state = world.core.state
    frozen, state._frozen = state._frozen, frozenset()
    parts = dict(state.snapshot().whole())
    state._frozen = frozen
    if "ids" in parts:  # the same ids lie in other files after a restart
        trees = state.ids._trees.values()
        pieces = [run.entries(0, run.count) for tree in trees for run in tree.runs.values()]
        rows = np.concatenate([*pieces, *(tree.recent() for tree in trees)], axis=1)
        parts["ids"] = rows[:, np.argsort(rows[0])].tolist()
    return parts


class Watched(World):
    """A world that keeps the state that a start found, before its generation writes its own mark."""

    found: dict[str, object]

    def turn(self) -> None:
        if not self.core.epoch:
            self.found = state_of(self)
        super().turn()


def test_restart_from_snapshots_equals_live_state():
    """Snapshot and replay lead to the state that was live, whichever parts were kept by name."""
    tight = Limits(id_table_ids=4, offset_part_bytes=3000, offset_index_step_bytes=500)
    world = Watched(snapshot_every=2000, limits=tight)
    world.hello()
    world.topic(partitions=2)
    world.producer()
    for start in range(0, 40, 10):
        fill(world, range(start, start + 10))
        before = state_of(world)
        world.crash()
        assert world.found == before
        assert world.log.snapshots()
        world.hello()
    assert len(world.events.named("snapshot.written")) > 4
    info = world.log.snapshots()[0]
    assert sum(part.name.startswith("run-") for part in info.parts) >= 1
    assert runs(world.send_ids(0, {"id-3-1": "x" * 50}, partition=1)) == [(1, "duplicate", 9)]
    assert runs(world.send(39, "y" * 100, partition=1))[0][1] == "duplicate"


def test_files_of_ids_are_written_once():
    """A snapshot names the files with older ids; it writes only what came since."""
    world = opened(id_table_ids=16)
    world.topic()
    for counter in range(10):
        world.send_ids(counter, {f"{counter}-{place}": "x" for place in range(10)})
    world.settle()
    world.driver.write_snapshot()
    world.settle()
    world.send_ids(10, {"new": "x"})
    snapshot = world.core.snapshot()
    names = {name for name in snapshot.keep if name.startswith("run-")}
    assert names
    _, [[kind, _, runs_named, recent, *_]] = snapshot.parts["ids"]
    assert kind == 0
    assert {name for name, *_ in runs_named} == names
    held = sum(run.count for run in world.core.state.ids._trees[0].runs.values())
    assert held + len(recent) // 32 == 101


def test_tables_grow_with_the_number_of_ids():
    """Among many ids there are fewer runs to ask, and a bounded table."""
    world = opened(id_table_ids=4, id_table_ids_max=50)
    world.topic()
    sizes = []
    for counter in range(100):
        world.send_ids(counter, {f"{counter}-{place}": "x" for place in range(10)})
        world.settle()
        table = world.core.state.ids._trees[0]._table
        sizes.append(table.room + table.count)
    assert (sizes[0], sizes[-1]) == (4, 50)
    assert sizes == sorted(sizes)


def test_a_damaged_run_is_passed_over_with_its_snapshot():
    """The snapshot before it stands, and the next one keeps the runs of that one: no other's."""
    world = opened(id_table_ids=1)
    world.topic()
    runs_of = []
    for counter in range(10):  # the second time eight runs have become one
        world.send_ids(counter, {f"{counter}": "x"})
        world.settle()
        if counter in {6, 9}:
            world.driver.write_snapshot()
            world.settle()
            parts = world.log.snapshots()[0].parts
            runs_of.append({part.file for part in parts if part.name.startswith("run-")})
    (made,) = sorted(runs_of[1] - runs_of[0])[:1]
    assert runs_of[0] - runs_of[1], "the newest snapshot names all runs of the one before it"
    name = world.log._view.path.rsplit("/", 1)[1]
    file = world.disk.open(f"data/{name}/{made}", write=True)
    file.write(b"?", file.length() - 1)
    world.crash()
    assert world.events.named("snapshot.fallback")
    world.hello()
    world.driver.write_snapshot()
    world.settle()
    world.crash()
    world.hello()
    for counter in range(10):
        assert runs(world.send_ids(counter, {f"{counter}": "x"}, session=b"Z" * 16)) == [
            (1, "duplicate", counter)
        ]


def test_parts_of_a_snapshot_that_was_not_written_are_not_kept(world, monkeypatch):
    """A full disk lost the snapshot: the next one holds everything again."""
    world.topic()
    world.send_ids(0, {"x": "1"})

    def full(*_: object) -> None:
        raise DiskFull("no room")

    monkeypatch.setattr(snapshots, "write", full)
    world.driver.write_snapshot()
    monkeypatch.undo()
    world.settle()
    world.driver.write_snapshot()
    world.crash()
    world.hello()
    assert runs(world.send_ids(0, {"x": "1"})) == [(1, "duplicate", 0)]
    _, [tree] = world.core.snapshot().whole()["ids"]
    assert len(tree[3]) == 32  # one entry of four words
