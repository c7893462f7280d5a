"""The turn: what happens before and after the one sync, in order."""

from __future__ import annotations

import types

import msgpack
import pytest

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.driver import Driver
from oncemq.errors import DiskFull, Fenced
from oncemq.outcome import (
    DiskSpace,
    Outcome,
    Received,
    Recovered,
    Send,
    Snapshot,
    SnapshotWritten,
    Synced,
    Tick,
)
from oncemq.protocol import CreateTopic, Failure, Ping, Pong
from oncemq.records import TopicCreated


class ToyCore:
    """Logs a topic for each CreateTopic; answers it after the sync with how many there are."""

    def __init__(self):
        self.topics: list[str] = []
        self.seen: list[object] = []
        self.wake_at_ms: int | None = None

    def step(self, event, now_ms):
        self.seen.append(event)
        out = Outcome()
        if isinstance(event, Received) and isinstance(event.message, CreateTopic):
            out.appends.append(TopicCreated(event.message.topic, b"i" * 16, 1, now_ms))
            answer = Pong(event.message.request, len(self.topics) + 1)
            out.sends_after_sync.append(Send(event.peer, answer))
            out.work_after_sync.append(("created", event.message.topic))
            out.events.append(("topic.created", {"topic": event.message.topic}))
        elif isinstance(event, Received) and isinstance(event.message, Ping):
            out.sends.append(Send(event.peer, Pong(event.message.request, 0)))
        elif isinstance(event, Tick):
            self.wake_at_ms = None
        return out

    def apply(self, record, position):
        self.topics.append(record.topic)

    def snapshot(self):
        return Snapshot({"topics": self.topics})

    def restore(self, parts):
        self.topics = list(parts["topics"])


class World:
    """Transport, clock, events and log in one, writing down the order of everything."""

    log_id = lineage = b"l" * 16
    generation = 3
    cut_report = None
    snapshot_damage = ()

    def __init__(self):
        self.trace: list[object] = []
        self.inbox: list[tuple[bytes, list[bytes]]] = []
        self.now = 1_000
        self.waits: list[int] = []
        self.end = self.durable_end = self.attested = 0
        self.stored: list[object] = []
        self.pictures: list[tuple[int, dict[str, bytes]]] = []
        self.room = 10**9
        self.fenced = False
        self.other_writes = False

    # transport
    def poll(self, timeout_ms):
        self.waits.append(timeout_ms)
        inbox, self.inbox = self.inbox, []
        return inbox

    def send(self, peer, frames):
        self.trace.append(("send", wire.decode(b"", [bytes(f) for f in frames]).message))
        return True

    # clock and events
    def now_ms(self):
        return self.now

    def emit(self, event, **fields):
        self.trace.append(("event", event))

    # log
    def reserve(self, nbytes):
        if nbytes > self.room:
            raise DiskFull("full")

    def append(self, kind, meta, body, body_crc=None, /):
        position = self.end
        self.end += 10
        stored = types.SimpleNamespace(
            type=kind, meta=meta, body=body, body_crc=0, position=position, end=self.end
        )
        self.stored.append(stored)
        self.trace.append("append")
        return position

    def must_wait(self):
        return self.other_writes

    def sync(self):
        self.trace.append("sync")
        if self.fenced:
            raise Fenced("a higher generation")
        self.durable_end = self.end
        return self.end

    def attest(self):
        self.trace.append("attest")
        self.attested = self.durable_end

    def check_fence(self):
        self.trace.append("fence")

    def replay(self, position):
        return iter([s for s in self.stored if s.position >= position])

    def snapshots(self):
        return [types.SimpleNamespace(position=at, parts=parts) for at, parts in self.pictures]

    def read_snapshot(self, info):
        return info.parts

    def snapshot_writer(self, position, keep):
        def write(parts):
            self.pictures.insert(0, (position, dict(parts)))

        return types.SimpleNamespace(write=write, finish=lambda: None)

    def discard(self, below):
        self.trace.append(("discard", below))
        if self.room == 0:
            raise DiskFull("no room to note the new start")
        return below

    def close(self, *, clean=True):
        self.trace.append(("close", clean))


def start(**options):
    """A driver around a toy core, opened and past its Recovered turn."""
    world, core = World(), ToyCore()
    driver = Driver(core, world, world, world, perform=world.trace.append, **options)
    driver.open_log(world, "toy")
    driver.turn()
    world.trace.clear()
    core.seen.clear()
    return world, core, driver


def ask(world, *messages):
    world.inbox += [(b"peer", [bytes(f) for f in wire.encode(m, None)]) for m in messages]


def test_promises_leave_after_the_sync_and_in_order():
    """Answer, event and work that follow from a record wait for the fsync that covers it."""
    world, _, driver = start()
    ask(world, CreateTopic(1, "t", 1))
    driver.turn()

    assert world.trace == [
        "append",
        "sync",
        ("event", "log.synced"),
        ("send", Pong(1, 1)),
        ("event", "topic.created"),
        ("created", "t"),
    ]


def test_one_sync_serves_all_that_waited():
    """Group commit: every request of a turn shares one fsync, and each sees those before it."""
    world, _, driver = start()
    ask(world, *(CreateTopic(n, f"t{n}", 1) for n in range(5)))
    driver.turn()

    assert world.trace.count("sync") == 1
    answers = [item[1] for item in world.trace if isinstance(item, tuple) and item[0] == "send"]
    assert answers == [Pong(n, n + 1) for n in range(5)]


def test_answers_that_read_no_state_do_not_wait():
    """What follows from the request alone goes out at once."""
    world, _, driver = start()
    ask(world, CreateTopic(1, "t", 1), Ping(2))
    driver.turn()

    assert world.trace.index(("send", Pong(2, 0))) < world.trace.index("sync")


def test_synced_opens_the_next_turn():
    """The durable end moves only by an event that the next turn begins with, without waiting."""
    world, core, driver = start()
    ask(world, CreateTopic(1, "t", 1))
    driver.turn()
    ask(world, Ping(2))
    driver.turn()

    assert isinstance(core.seen[1], Synced)
    assert core.seen[1].end == 10
    assert world.waits[-1] == 0


def test_a_fenced_writer_says_nothing():
    """A sync that finds a higher generation lets no promise out."""
    world, _, driver = start()
    world.fenced = True
    ask(world, CreateTopic(1, "t", 1))

    with pytest.raises(Fenced):
        driver.turn()
    assert world.trace == ["append", "sync"]


def test_a_full_disk_is_told_before_anything_is_judged():
    """The core hears of the full disk first, and of room only when what was refused fits."""
    world, core, driver = start()
    world.room = 100
    ask(world, CreateTopic(1, "t", 1))
    driver.turn()
    assert core.seen[0] == DiskSpace(full=True)

    world.room = 500
    driver.turn()
    assert DiskSpace(full=False) not in core.seen

    world.room = 10**9
    driver.turn()
    assert DiskSpace(full=False) in core.seen


def test_malformed_bytes_get_a_typed_answer_and_reach_no_core():
    """A request that cannot be understood is refused under its own number."""
    world, core, driver = start()
    world.inbox = [(b"peer", [msgpack.packb([8, 77, "wrong"])]), (b"peer", [b"\xc1"])]
    driver.turn()

    failures = [item[1] for item in world.trace if isinstance(item, tuple) and item[0] == "send"]
    assert [(f.request, f.code) for f in failures if isinstance(f, Failure)] == [(77, "malformed")]
    assert core.seen == []
    assert world.trace.count(("event", "wire.malformed")) == 2


def test_a_flood_of_malformed_bytes_is_told_in_few_events():
    """A hostile peer cannot fill the disk with events about itself."""
    world, _, driver = start()
    for _ in range(10):
        world.inbox = [(b"peer", [b"\xc1"])] * 100
        driver.turn()
    assert world.trace.count(("event", "wire.malformed")) == 10  # 1, 2, 4 ... 512


def test_a_client_does_not_answer_malformed_answers():
    """An answer that cannot be understood is dropped: answering it could be taken for a request."""
    world, core, driver = start()
    world.inbox = [(b"", [msgpack.packb([39, 77, "wrong"])])]
    driver.turn()

    assert not any(isinstance(item, tuple) and item[0] == "send" for item in world.trace)
    assert core.seen == []
    assert world.trace.count(("event", "wire.malformed")) == 1


def test_idle_time_attests_the_last_group_and_looks_at_the_fence():
    """After 50 ms a frame vouches for the last group; once a second the fence is looked at."""
    world, _, driver = start()
    ask(world, CreateTopic(1, "t", 1))
    driver.turn()
    driver.turn()
    assert driver.time_left_ms() == 50
    world.now += 50
    driver.turn()
    assert world.trace[-1] == "attest"
    world.now += 999
    driver.turn()
    assert world.trace[-1] == "attest"
    world.now += 1
    driver.turn()
    assert world.trace[-1] == "fence"


def test_reading_turns_look_at_the_fence_too():
    """A writer that is asked all the time and writes nothing still finds out that it is fenced."""
    world, _, driver = start()
    ask(world, CreateTopic(1, "t", 1))
    driver.turn()
    for number in range(4):
        world.now += 400
        ask(world, Ping(2 + number))
        driver.turn(0)
    acts = [act for act in world.trace if act in ("attest", "fence")]
    assert acts == ["attest", "fence"]


def test_ticks_come_when_the_core_asked_for_them():
    """The poll waits no longer than the core's next deadline."""
    world, core, driver = start()
    core.wake_at_ms = world.now + 30
    driver.turn()
    assert world.waits[-1] == 30
    assert core.seen == []
    world.now += 30
    driver.turn()
    assert core.seen == [Tick()]


def test_recovery_gives_the_state_of_the_live_run():
    """Snapshot, then replay of what came after it, is the state that the records made live."""
    world, core, driver = start(snapshot_every_bytes=20, compacts=True)
    for n in range(5):
        ask(world, CreateTopic(n, f"t{n}", 1))
        driver.turn()
    assert [at for at, _ in world.pictures] == [40, 20]
    assert ("discard", 40) in world.trace

    fresh = ToyCore()
    again = Driver(fresh, world, world, world, perform=world.trace.append)
    again.open_log(world, "toy")
    again.turn()

    assert fresh.topics == core.topics == [f"t{n}" for n in range(5)]
    assert fresh.seen == [Recovered(3, 50)]
    assert world.stored[0].type == record_codec.TOPIC_CREATED


def test_a_full_disk_only_postpones_what_compaction_would_free():
    """A snapshot that is durable stays so when the old log cannot be discarded for want of room."""
    world, core, driver = start(snapshot_every_bytes=10, compacts=True)
    ask(world, CreateTopic(1, "t", 1))
    world.reserve = lambda nbytes: None
    world.room = 0
    driver.turn()

    after = world.trace[world.trace.index(("discard", 10)) :]
    assert after[1:] == [("event", "log.disk_full"), ("created", "t")]
    driver.turn()
    assert core.seen[-1] == SnapshotWritten(10)


def test_close_tells_the_log_whether_the_end_is_clean():
    """A clean end attests; a crash of the process does not pretend."""
    world, _, driver = start()
    driver.close(clean=False)

    assert world.trace == [("close", False)]


def test_a_group_waits_for_another_log_and_what_it_holds_back_waits_too():
    """While another log of the thread writes, nothing is synced, sent or performed; then all is."""
    world, _core, driver = start()
    driver.turn()
    del world.trace[:]
    world.other_writes = True
    ask(world, CreateTopic(1, "a", 1))
    driver.turn()
    ask(world, CreateTopic(2, "b", 1))
    driver.turn()
    assert world.trace == ["append", "append"]
    assert 0 < driver.time_left_ms() <= 50
    world.other_writes = False
    driver.turn()
    kinds = [entry if isinstance(entry, str) else entry[0] for entry in world.trace]
    assert kinds.count("sync") == 1
    assert kinds.index("sync") < kinds.index("send")
    assert kinds.count("send") == kinds.count("created") == 2
