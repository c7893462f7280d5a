"""Hostile traffic against a real broker, and against its turn in this process.

`make hostile` sends 100,000 cases and more; here it is a share with the seed of the run.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncemq.codec import wire
from oncemq.core.broker.core import BrokerCore
from oncemq.driver import Driver
from oncemq.errors import OnceMQError
from oncemq.protocol import CreateTopic, Hello, Ping
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from tests.hostile.siege import attack
from tests.hostile.traffic import Frames, mutated, recorded

OWNER: dict[str, str | int] = {"pid": 7, "host": "here", "boot_id": "b", "start_time": 1}


@pytest.mark.process
def test_a_broker_under_attack_serves_the_honest(tmp_path: Path, seed: int) -> None:
    """Mutated traffic, raw bytes, floods: it stays up, serves, forgets nothing, does not grow."""
    report = attack(tmp_path, 12_000, seed)
    print(f"\nhostile: {report}")
    assert report["cases"] >= 12_000
    assert report["raw"] >= 10


class World:
    """A broker core with its driver on a disk in memory; what it sends is kept."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Frames]] = []
        self.sent: list[tuple[bytes, Frames]] = []
        self.events: list[str] = []
        self.now = 1_000
        log = FencedLog.open(
            MemoryDisk(), "log", generation=None, owner=OWNER, create_log_id=bytes(range(16))
        )
        core = BrokerCore(log.log_id, log.lineage, secret=b"S" * 32, entropy=lambda: b"E" * 16)
        self.log = log
        self.driver = Driver(core, self, self, self, perform=self.work)
        self.driver.open_log(log, "data")
        self.driver.turn(0)

    def poll(self, _timeout_ms: int) -> list[tuple[bytes, Frames]]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def send(self, peer: bytes, frames: object) -> bool:
        self.sent.append((peer, [bytes(frame) for frame in frames]))  # type: ignore[attr-defined]
        return True

    def now_ms(self) -> int:
        self.now += 1
        return self.now

    def emit(self, event: str, **_fields: object) -> None:
        self.events.append(event)

    def work(self, _item: object) -> None:
        self.log.check_fence()


def answered(world: World, number: int) -> bool:
    world.sent.clear()
    world.waiting.append((b"h" * 16, [bytes(f) for f in wire.encode(Ping(number), None)]))
    world.driver.turn(0)
    return any(
        peer == b"h" * 16 and wire.decode(b"", frames).message.request == number
        for peer, frames in world.sent
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32))
def test_no_message_gets_an_exception_out_of_a_turn(number: int) -> None:
    """Whatever comes, a turn ends, the honest are answered, and every answer is well formed."""
    source = random.Random(number)
    world = World()
    for message in (
        Hello(1, 1, 1, "honest", b"h" * 16, b"", 0),
        CreateTopic(2, "enemy-topic", 1),
    ):
        world.waiting.append((b"h" * 16, [bytes(f) for f in wire.encode(message, None)]))
    traffic = recorded()
    enemy = b"\x02" * 16
    world.waiting.append((enemy, traffic[0]))
    for turn in range(12):
        for _ in range(15):
            world.waiting.append((enemy, mutated(source, traffic)))
        world.driver.turn(0)
        for peer, frames in world.sent:
            assert peer in {enemy, b"h" * 16}
            wire.decode(b"", frames)
        assert answered(world, 100 + turn)
    assert "wire.malformed" in world.events
    world.driver.close()


KNOWN = {"message", "malformed", "too_large", "version_mismatch"}


def understood(peer: bytes, frames: Frames) -> str:
    """Return what became of the frames: "message", or the code of the refusal."""
    try:
        wire.decode(peer, frames)
    except OnceMQError as error:
        return error.code
    return "message"


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_frames_are_decoded_or_refused_by_name(frames: Frames) -> None:
    """Bytes of nobody in particular: a message or a typed error, nothing else."""
    for peer in (b"e" * 16, b""):
        assert understood(peer, frames) in KNOWN


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_mutated_traffic_is_decoded_or_refused_by_name(number: int) -> None:
    """Bytes of somebody who knows the protocol: a message or a typed error, nothing else."""
    source = random.Random(number)
    traffic = recorded()
    for _ in range(10):
        frames = mutated(source, traffic)
        for peer in (b"e" * 16, b""):
            assert understood(peer, frames) in KNOWN
