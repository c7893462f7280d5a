"""Hostile and broken input: the broker stays up, serves others, and its memory stays bounded."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import msgpack
import pytest
import zmq

from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.limits import FRAME_BYTES_MAX
from oncemq.protocol import Failure, Hello, Ping, Pong, Produce
from tests.process.house import START_S, House
from tests.process.talker import Talker

pytestmark = pytest.mark.process

SERVED_S = 60.0  # generous: the machine may be busy


class Besieged:
    """A broker under attack and an honest client beside the attacker."""

    def __init__(self, house: House, honest: Talker) -> None:
        self.house = house
        self.broker = house.broker()
        self.honest = honest
        self.sent: list[str] = []
        honest.become()
        self.check_serves()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.house.endpoint.removeprefix("tcp://").rpartition(":")
        return host, int(port)

    def check_serves(self) -> None:
        """The honest client is served in time, by the same process."""
        started = time.monotonic()
        value = f"m{len(self.sent)}"
        assert self.honest.store(value) == len(self.sent)
        self.sent.append(value)
        assert time.monotonic() - started < SERVED_S
        assert self.broker.exit_code is None, self.broker.told()

    def memory(self) -> int:
        """Anonymous memory of the broker in bytes."""
        with open(f"/proc/{self.broker.pid}/status") as status:
            for line in status:
                if line.startswith("RssAnon"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def events(self, name: str) -> int:
        self.house.refresh()
        return self.house.history.of(self.broker.pid)[name]


@pytest.fixture
def besieged(house) -> Iterator[Besieged]:
    """A running broker; afterwards it still serves and holds exactly what was acknowledged."""
    with Talker(house.endpoint) as honest:
        besieged = Besieged(house, honest)
        yield besieged
        besieged.check_serves()
        assert honest.stored() == besieged.sent
        assert "Traceback" not in besieged.broker.stderr()


@pytest.fixture
def attacker(besieged) -> Iterator[zmq.Socket]:
    """A DEALER socket with a routing id of the right length."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.ROUTING_ID, b"\x02" * 16)
    dealer.connect(besieged.house.endpoint)
    yield dealer
    dealer.close(linger=0)
    context.term()


def answer(dealer: zmq.Socket, timeout_ms: int = 60_000):
    assert dealer.poll(timeout_ms), "no answer"
    return wire.decode(b"", dealer.recv_multipart()).message


def test_raw_bytes_on_the_port(besieged):
    """Random bytes, HTTP, half a handshake, silence: closed or ignored, others are served."""
    source = random.Random(1)
    sockets = []
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        source.randbytes(4096),
        b"\x01\x00" + source.randbytes(64),
        greeting[:20],
        greeting,
        b"\xff" + struct.pack(">Q", 2**62) + b"\x7f",
        b"",
    ):
        peer = socket.create_connection(besieged.address, timeout=START_S)
        sockets.append(peer)
        peer.sendall(data)
    besieged.check_serves()
    for peer in sockets:
        peer.close()


def test_a_flood_of_connections(besieged):
    """Hundreds of connections that say nothing take nobody's turn."""
    sockets = [socket.create_connection(besieged.address, timeout=START_S) for _ in range(400)]
    besieged.check_serves()
    for peer in sockets:
        peer.close()
    besieged.check_serves()


def test_a_frame_above_its_limit_closes_the_connection(besieged, attacker):
    """Nothing of a frame above the limit is kept."""
    before = besieged.memory()
    for _ in range(4):
        attacker.send(bytes(FRAME_BYTES_MAX + 1))
    besieged.check_serves()
    assert not attacker.poll(200)
    assert besieged.memory() - before < 64 * 1024 * 1024


def test_too_many_frames_are_dropped_and_counted(besieged, attacker):
    """A message of many frames is never decoded, however small each one is."""
    attacker.send_multipart([b"x"] * 20_000)
    attacker.send_multipart([bytes(1024 * 1024)] * 20)
    attacker.send_multipart([b"a", b"b", b"c"])
    besieged.check_serves()
    assert not attacker.poll(200)
    assert besieged.events("wire.malformed") >= 1


def test_foreign_routing_ids_are_dropped(besieged):
    """Who does not choose a routing id as our clients do is not heard."""
    context = zmq.Context()
    for identity in (None, b"x", b"y" * 255):
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        if identity:
            dealer.setsockopt(zmq.ROUTING_ID, identity)
        dealer.connect(besieged.house.endpoint)
        dealer.send_multipart(wire.encode(Ping(1), None))
        assert not dealer.poll(300)
        dealer.close(linger=0)
    context.term()


def bombs() -> list[bytes]:
    """Headers that break parsers: deep, vast, cut, doubled, of wrong types."""
    nested = b"\x91" * 60_000 + b"\xc0"
    return [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        nested,
        b"\xdc\xff\xff" + b"\x80" * 65_000,
        msgpack.packb([99, 1]),
        msgpack.packb([2]),
        msgpack.packb([2, 1, 1]),
        msgpack.packb([2, True]),
        msgpack.packb([2, -1]),
        msgpack.packb([2, 2**64 - 1]),
        msgpack.packb([2, 1.0]),
        msgpack.packb([2, "1"]),
        msgpack.packb([34, 1, 1]),
        msgpack.packb([3, 1, "t", 1]),
        msgpack.packb([3, 1, "\x00../../etc", True]),
        msgpack.packb({"kind": 2}),
        msgpack.packb([2, 1]) + b"\x00",
        os.urandom(500),
    ]


def test_headers_that_break_parsers(besieged, attacker):
    """Each is refused with a typed error or dropped; the connection goes on."""
    before = besieged.memory()
    for bomb in bombs() * 5:
        attacker.send(bomb)
    hello = Hello(7777, 1, 1, "attacker", b"i" * 16, b"", 0)
    attacker.send_multipart(wire.encode(hello, None))
    while True:
        told = answer(attacker)
        if told.request == 7777:
            break
        assert isinstance(told, Failure)
    besieged.check_serves()
    assert besieged.memory() - before < 64 * 1024 * 1024


def test_batches_that_lie(besieged, attacker):
    """Wrong CRC, cut columns, impossible counts: refused, nothing stored, the peer goes on."""
    attacker.send_multipart(wire.encode(Hello(1, 1, 1, "x", b"i" * 16, b"", 0), None))
    answer(attacker)
    good = batch_codec.build([b"a", b"b"], encodings=0, ids=[b"sx", b"sy"])
    source = random.Random(2)
    for number in range(300):
        raw = bytearray(good.raw)
        for _ in range(source.randint(1, 3)):
            raw[source.randrange(len(raw))] = source.randrange(256)
        if number % 3 == 0:
            del raw[source.randrange(len(raw)) :]
        # Half of them with a right CRC: only the content lies then.
        crc = zlib.crc32(raw) if number % 2 else good.crc
        topic = "nowhere" if number % 5 else "t/../../x"
        produce = Produce(number + 2, topic, 0, "", 0, -1, b"S" * 16, 0, b"", crc)
        attacker.send_multipart(wire.encode(produce, bytes(raw)))
    for _ in range(300):
        assert isinstance(answer(attacker), Failure)
    attacker.send_multipart(wire.encode(Ping(9999), None))
    assert isinstance(answer(attacker), Pong)


def test_a_peer_that_never_reads(besieged, attacker):
    """Answers for a peer that does not read are dropped at a bound; the broker does not wait."""
    before = besieged.memory()
    attacker.setsockopt(zmq.RCVHWM, 1)
    attacker.send_multipart(wire.encode(Hello(1, 1, 1, "x", b"i" * 16, b"", 0), None))
    for number in range(20_000):
        attacker.send_multipart(wire.encode(Ping(number + 2), None))
    besieged.check_serves()
    assert besieged.memory() - before < 64 * 1024 * 1024


def test_claims_of_a_successor_do_not_end_the_broker(besieged, attacker):
    """A hello with a vast epoch makes the broker look at its own files and serve on."""
    log_id = besieged.honest.hello().message.log_id
    for number in range(20):
        hello = Hello(number + 1, 1, 1, "x", b"i" * 16, log_id, 2**60)
        attacker.send_multipart(wire.encode(hello, None))
        assert answer(attacker).code == "log_regressed"
    besieged.check_serves()
