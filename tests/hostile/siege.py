"""An attack on a real broker: mutated traffic, raw ZMTP, stolen identities, floods.

    python -m tests.hostile.siege --cases 100000 --seed 1

While it lasts an honest client stores and reads. The last line of stdout is a JSON object. Fails
(AssertionError) if the broker ends, keeps somebody waiting, holds anything but what was stored
honestly in the honest topic, or has grown by more than a tenth at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from oncemq.codec import wire
from oncemq.protocol import Ping, Pong
from tests.hostile.traffic import Frames, mutated, recorded
from tests.process.house import House
from tests.process.talker import Talker

ENEMIES = 4
HONEST_EPOCH = 7
ROUND = 250  # messages between two looks at the honest client
SERVED_S = 60.0  # generous: the machine may be busy
REOPEN_EVERY = 40  # rounds after which an enemy comes back as somebody else
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
GROWTH = 1.10


@dataclass
class Siege:
    """A broker, an honest client and the enemies around it."""

    house: House
    honest: Talker
    source: random.Random
    context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)
    enemies: list[zmq.Socket[bytes]] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    answers: int = 0
    slowest_s: float = 0.0
    raw: int = 0  # connections with bytes of their own
    thrown_out: int = 0  # of them, how many were closed while they still spoke

    def begin(self) -> None:
        self.broker = self.house.broker("--snapshot-every=1000000000")
        # Whoever names the epoch of today is that producer: names are no secrets, keys are. So the
        # honest epoch is one at which no attack of this sort arrives by chance.
        for _ in range(HONEST_EPOCH):
            self.honest.become()
        assert self.honest.epoch == HONEST_EPOCH
        self.broker_epoch = self.honest.hello().message.epoch
        self.traffic = recorded()
        for _ in range(ENEMIES):
            self.enemies.append(self._enemy())

    def _enemy(self) -> zmq.Socket[bytes]:
        enemy = self.context.socket(zmq.DEALER)
        enemy.setsockopt(zmq.LINGER, 0)
        enemy.setsockopt(zmq.ROUTING_ID, b"\x02" + self.source.randbytes(15))
        enemy.setsockopt(zmq.SNDHWM, 0)
        enemy.connect(self.house.endpoint)
        for frames in (self.traffic[0], self.traffic[5]):
            enemy.send_multipart(frames)
        return enemy

    def attack(self, cases: int) -> int:
        """Send about so many hostile messages; return how many."""
        done = rounds = 0
        while done < cases:
            rounds += 1
            for _ in range(ROUND):
                enemy = self.source.choice(self.enemies)
                enemy.send_multipart(mutated(self.source, self.traffic))
            done += ROUND
            self._read_answers()
            if rounds % 4 == 0:
                self._raw_bytes()
            if rounds % REOPEN_EVERY == 0:
                place = self.source.randrange(ENEMIES)
                self.enemies[place].close(linger=0)
                self.enemies[place] = self._enemy()
            self._served()
        return done

    def _read_answers(self) -> None:
        for enemy in self.enemies:
            while enemy.poll(0):
                answer: Frames = enemy.recv_multipart()
                self.answers += bool(answer)

    def _served(self) -> None:
        """The honest client stores a message and is told so."""
        started = time.monotonic()
        value = f"m{len(self.sent)}"
        assert self.honest.store(value) == len(self.sent)
        self.sent.append(value)
        took = time.monotonic() - started
        self.slowest_s = max(self.slowest_s, took)
        assert took < SERVED_S, f"an honest client waited {took:.1f} s"
        assert self.broker.exit_code is None, self.broker.told()

    def _raw_bytes(self) -> None:
        """Bytes on the port, of somebody who may or may not have read about ZMTP."""
        host, _, port = self.house.endpoint.removeprefix("tcp://").rpartition(":")
        source = self.source
        identity = source.choice((b"x", b"\x02" * 16, b"y" * 255, source.randbytes(16)))
        old = b"\xff" + struct.pack(">Q", len(identity) + 1) + b"\x7f"  # ZMTP 2, then 1
        size = source.choice((3, 2**31, 2**62, 2**64 - 1))
        data = source.choice(
            (
                source.randbytes(source.randrange(1, 3000)),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                GREETING[: source.randrange(65)],
                GREETING + source.randbytes(100),
                GREETING
                + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
                + b"\x01\x03abc",
                GREETING + b"\x06" + struct.pack(">Q", size) + b"\x05READY",
                old + b"\x01\x05" + bytes([0, len(identity)]) + identity + b"\x00\x02\x92\x02",
                bytes([min(len(identity) + 1, 255), 0]) + identity + b"\x03\x00ab",
                b"\xff" + struct.pack(">Q", size) + b"\x7f",
            )
        )
        with socket.create_connection((host, int(port)), timeout=SERVED_S) as peer:
            try:
                peer.sendall(data)
                if source.random() < 0.3:
                    peer.sendall(source.randbytes(5000))
            except OSError:
                self.thrown_out += 1
            self.raw += 1

    def memory(self) -> int:
        """Resident bytes of the broker."""
        with open(f"/proc/{self.broker.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def end(self) -> None:
        for enemy in self.enemies:
            enemy.close(linger=0)
        self.context.term()

    def settle(self) -> None:
        """Wait until the broker has read all that every enemy has sent."""
        last = 2**62 + self.source.randrange(2**60)
        for enemy in self.enemies:
            deadline = time.monotonic() + SERVED_S
            seen = False
            while not seen:
                assert time.monotonic() < deadline, "an enemy's last request is not answered"
                for frames in (self.traffic[0], wire.encode(Ping(last), None)):
                    enemy.send_multipart(frames)
                while not seen and enemy.poll(500):
                    frames = enemy.recv_multipart()
                    self.answers += 1
                    seen = wire.decode(b"", frames).message == Pong(last, self.broker_epoch)

    def counted(self) -> dict[str, int]:
        counts = {"wire.malformed": 0, "wire.dropped": 0}
        for path in self.house.events.glob("broker-*.jsonl"):
            for line in path.read_text("utf-8").splitlines():
                event = json.loads(line)
                if event["event"] in counts:
                    counts[event["event"]] = max(counts[event["event"]], event["count"])
        return counts


def attack(directory: Path, cases: int, seed: int) -> dict[str, Any]:
    """Attack a broker in `directory`; return what was done and seen."""
    house = House(directory)
    started = time.monotonic()
    try:
        with Talker(house.endpoint) as honest:
            siege = Siege(house, honest, random.Random(seed))
            siege.begin()
            try:
                warm = siege.attack(max(cases // 10, 2_000))
                siege.settle()
                before = siege.memory()
                done = warm + siege.attack(cases - warm)
                siege.settle()
                after = siege.memory()
                assert honest.stored() == siege.sent, "the honest topic holds something else"
                assert after <= before * GROWTH, f"grown from {before} to {after} bytes"
                counted = siege.counted()
                assert counted["wire.malformed"] > cases // 20
                assert siege.answers > 0
                assert "Traceback" not in siege.broker.stderr(), siege.broker.told()
            finally:
                siege.end()
            siege.broker.stop(20, 0)
    finally:
        house.close()
    return {
        "cases": done, "raw": siege.raw, "thrown_out": siege.thrown_out, "seed": seed, "answers": siege.answers, **counted,
        "honest": len(siege.sent), "slowest_s": round(siege.slowest_s, 2),
        "rss_start_mb": round(before / 1e6, 1), "rss_end_mb": round(after / 1e6, 1),
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncemq-hostile-") as temporary:
        print(json.dumps(attack(Path(temporary), asked.cases, asked.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
