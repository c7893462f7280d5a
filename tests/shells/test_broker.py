"""The broker's shell: the order in which it opens, what it reports, how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.errors import CorruptLog, Fenced, LogInUse
from oncemq.protocol import (
    VERSION_MAX,
    VERSION_MIN,
    CreateTopic,
    Failure,
    Hello,
    Message,
    Ping,
    Pong,
    Produce,
    Produced,
)
from oncemq.shells.broker import BrokerShell
from oncemq.storage.log import FencedLog, StoredRecord
from oncemq.storage.memory import MemoryDisk
from tests.core.broker.help import OTHER, PEER, Clock, Events, Wire, entropy

DRAW = entropy()


class House:
    """A disk, and the brokers on it."""

    def __init__(self) -> None:
        self.disk = MemoryDisk()
        self.clock = Clock()
        self.events = Events()
        self.wire = Wire()

    def broker(self, **options: Any) -> BrokerShell:
        self.wire = Wire()
        ports: dict[str, Any] = {"bind": lambda: self.wire, "clock": self.clock}
        ports |= {"owner": {"pid": 1}, "events": self.events, "entropy": lambda: next(DRAW)}
        return BrokerShell(self.disk, "data", **ports | options)

    def tell(self, broker: BrokerShell, *messages: Message, peer: bytes = PEER) -> list[Any]:
        self.wire.sent.clear()
        self.wire.waiting += [(peer, [bytes(f) for f in wire.encode(m, None)]) for m in messages]
        broker.turn(0)
        return [received.message for _, received in self.wire.sent]


@pytest.fixture
def house() -> House:
    return House()


def hello(epoch_seen: int = 0, log_id: bytes = b"") -> Hello:
    return Hello(1, VERSION_MIN, VERSION_MAX, "producer", b"i" * 16, log_id, epoch_seen)


def store(house: House, broker: BrokerShell, count: int = 1) -> None:
    """Store messages of 1,000 bytes, each in a batch of its own."""
    house.tell(broker, hello(), CreateTopic(2, "t", 1))
    for number in range(count):
        batch = batch_codec.build([b"x" * 1_000], encodings=0, ids=[b"s%d" % number])
        produce = Produce(3, "t", 0, "", 0, -1, b"s" * 16, number, b"", batch.crc)
        house.wire.waiting.append((PEER, [bytes(f) for f in wire.encode(produce, batch.raw)]))
        broker.turn(0)
        assert isinstance(house.wire.sent[-1][1].message, Produced)


def take_over(_owner: object) -> None:
    """The owner is said to be ended, and is not: a zombie."""


def test_a_broker_that_cannot_bind_fences_nobody(house: House) -> None:
    """What can fail comes before the next generation: the one before goes on as if nothing were."""
    first = house.broker()
    store(house, first)
    wire_of_first = house.wire

    def taken() -> Wire:
        raise OSError("address in use")

    with pytest.raises(OSError, match="address in use"):
        house.broker(bind=taken, takeover=True, end_owner=take_over)
    house.wire = wire_of_first
    first.log.check_fence()
    assert house.tell(first, Ping(9)) == [Pong(9, first.log.generation)]
    first.close(clean=True)
    house.broker().close(clean=True)  # and nothing is locked


def test_a_live_owner_is_left_alone(house: House) -> None:
    """Without a takeover the second broker is refused before it binds."""
    first = house.broker()
    bound: list[str] = []
    with pytest.raises(LogInUse):
        house.broker(bind=lambda: bound.append("bound"))
    assert bound == []
    first.close(clean=True)


def test_a_broker_that_cannot_recover_lets_go_of_the_log(house: House) -> None:
    """Damage that replay finds ends the opening; another process may open the log."""

    class Damaged(FencedLog):
        def replay(self, position: int) -> Iterator[StoredRecord]:
            raise CorruptLog("data", position, "damage")

    with pytest.raises(CorruptLog):
        house.broker(open_log=Damaged.open)
    house.broker().close(clean=True)


def test_a_claim_of_a_successor_is_looked_into(house: House) -> None:
    """A broker that has a successor answers no claim of it; one that has none refuses the liar."""
    zombie = house.broker()
    log_id = zombie.log.log_id
    [refused] = house.tell(zombie, hello(zombie.log.generation + 1, log_id), peer=OTHER)
    assert isinstance(refused, Failure)
    assert refused.code == "log_regressed"
    wire_of_zombie = house.wire
    successor = house.broker(takeover=True, end_owner=take_over)
    house.wire = wire_of_zombie
    with pytest.raises(Fenced):
        house.tell(zombie, hello(successor.log.generation, log_id), peer=OTHER)
    assert house.wire.sent == []
    zombie.close(clean=False)
    successor.close(clean=True)


@pytest.mark.parametrize(
    ("options", "clean", "snapshots"),
    [
        ({"snapshot_at_close_bytes": 4_000}, True, 1),
        ({"snapshot_at_close_bytes": 4_000}, False, 0),
        ({"snapshot_at_close_bytes": 1_000_000}, True, 0),
        ({"snapshot_at_close_bytes": 0, "snapshot_every_bytes": None}, True, 0),
    ],
)
def test_a_clean_end_spares_a_long_replay(
    house: House, options: dict[str, Any], clean: bool, snapshots: int
) -> None:
    """A snapshot at the end where replay would take long, never after an error or where none is wanted."""
    broker = house.broker(**options)
    store(house, broker, 5)
    broker.close(clean=clean)
    assert len(house.events.named("snapshot.written")) == snapshots
    again = house.broker()
    assert again.core.state.topics.by_name["t"].end_offsets() == (5,)
    replayed = house.events.named("log.opened")[-1]["replayed"]
    assert (replayed == 0) == bool(snapshots)
    again.close(clean=True)


def test_what_recovery_passes_over_is_reported(house: House) -> None:
    """A torn tail and a damaged snapshot are events; neither keeps the broker from serving."""
    broker = house.broker(snapshot_at_close_bytes=0)
    store(house, broker, 2)
    broker.close(clean=True)
    broker = house.broker()
    store(house, broker, 3)  # the broker knows the first two, so it writes one
    directory = f"data/gen-{broker.log.generation:020d}"
    end = broker.log.end
    broker.close(clean=False)
    damage(house, directory, ".snapshot")
    damage(house, directory, ".log")
    house.events.seen.clear()
    again = house.broker()
    [cut] = house.events.named("log.tail_cut")
    assert (cut["directory"], cut["to"] - cut["from_"]) == ("data", cut["bytes"])
    assert cut["from_"] < end
    assert len(house.events.named("snapshot.fallback")) == 1
    assert again.core.state.topics.by_name["t"].end_offsets() == (2,)
    again.close(clean=True)


def damage(house: House, directory: str, kind: str) -> None:
    """Turn the bits of one byte near the end of what is written in the newest file of a kind."""
    newest = max(name for name in house.disk.list(directory) if name.endswith(kind))
    file = house.disk.open(f"{directory}/{newest}", write=True)
    content = file.read(0, file.length()).rstrip(b"\0")
    file.write(bytes([content[-8] ^ 0xFF]), len(content) - 8)
    file.close()
