"""The naive prototype: what one would write in an afternoon, made as fast as it honestly goes.

Three processes over ZeroMQ: a producer sends batches of 1,000 values packed with msgpack, a broker
appends them to one file, a consumer calls a Python function for every message. The broker
acknowledges after an fsync, the consumer commits its place by an fsync; one fsync serves all that
waited. Sequence ids are a next-number check; explicit ids are a dict at the broker and a set at
the consumer, and the ids are written beside the values.

It has none of what makes the real thing safe: no fencing, no checksums, no recovery, no conflict
check, no state or outputs in the commit, no bound on its tables. It is the yardstick for what those
promises cost: `python -m bench pipeline` runs both in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgpack
import zmq

from bench.workload import BATCH, id_maker, values

WINDOW = 64  # batches that a producer may have in flight
CREDIT = 32  # batches that a consumer may hold
TURN = 64  # batches that one turn takes


def _append(descriptor: int, parts: list[bytes]) -> None:
    data = memoryview(b"".join(parts))
    while data:
        data = data[os.write(descriptor, data) :]


def _waiting(socket: zmq.Socket[bytes], limit: int = TURN) -> list[list[bytes]]:
    """Wait for one message, then take all that waits."""
    found = [socket.recv_multipart()]
    while len(found) < limit:
        try:
            found.append(socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
    return found


def _report(**fields: Any) -> None:
    times = os.times()
    print(json.dumps({**fields, "cpu_s": times.user + times.system}), flush=True)


def run_broker(directory: str, messages: int, kind: str) -> None:
    """Store batches, acknowledge after the fsync, hand them on as the consumer has room."""
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.set_hwm(0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    print(port, flush=True)
    file = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    next_number = 0
    offset_of: dict[str, int] = {}
    ready: deque[bytes] = deque()
    credit = committed = 0
    consumer = b""
    while committed < messages:
        parts: list[bytes] = []
        acks: list[tuple[bytes, bytes]] = []
        for peer, role, body in _waiting(socket):
            if role == b"c":
                consumer = peer
                more, committed = msgpack.unpackb(body)
                credit += more
                continue
            parts.append(len(body).to_bytes(4, "little") + body)
            if kind == "sequence":
                first, batch = msgpack.unpackb(body)
                if first == next_number:
                    next_number += len(batch)
                    ready.append(body)
            else:
                ids, batch = msgpack.unpackb(body)
                fresh = [one for one in ids if one not in offset_of]
                if len(fresh) == len(ids):
                    ready.append(body)
                else:
                    kept = set(fresh)
                    pairs = [(i, v) for i, v in zip(ids, batch, strict=True) if i in kept]
                    ready.append(msgpack.packb(tuple(zip(*pairs, strict=True))))
                for one in fresh:
                    offset_of[one] = next_number
                    next_number += 1
            acks.append((peer, len(batch).to_bytes(4, "little")))
        if parts:
            _append(file, parts)
            os.fdatasync(file)
        for peer, ack in acks:
            socket.send_multipart((peer, ack))
        while credit and ready:
            socket.send_multipart((consumer, ready.popleft()))
            credit -= 1
    _report()


def run_producer(port: str, messages: int, size: int, kind: str) -> None:
    """Send all messages, a window of batches ahead of the acknowledgements."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    batch = values(size)
    make = None if kind == "sequence" else id_maker(kind)
    input()  # the starting gun
    started = time.monotonic()
    sent = acknowledged = 0
    while acknowledged < messages:
        while sent < messages and sent - acknowledged < WINDOW * BATCH:
            part = batch[: messages - sent]
            mark = sent if make is None else make(len(part))
            socket.send_multipart((b"p", msgpack.packb((mark, part))))
            sent += len(part)
        for (ack,) in _waiting(socket):
            acknowledged += int.from_bytes(ack, "little")
    _report(started=started)


class _Handler:
    """What a user's function does at the least: look at the message."""

    def __init__(self) -> None:
        self.seen = 0
        self.bytes = 0

    def __call__(self, value: bytes) -> None:
        self.seen += 1
        self.bytes += len(value)


def run_consumer(port: str, directory: str, messages: int, kind: str) -> None:
    """Call the handler for every message, commit the place reached, ask for more."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    file = os.open(f"{directory}/committed", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    socket.send_multipart((b"c", msgpack.packb((CREDIT, 0))))
    print("ready", flush=True)
    handler = _Handler()
    processed: set[str] = set()
    next_number = 0
    while handler.seen < messages:
        received = _waiting(socket)
        parts: list[bytes] = []
        for (body,) in received:
            mark, batch = msgpack.unpackb(body)
            if kind == "sequence":
                if mark != next_number:
                    continue
                for value in batch:
                    handler(value)
                next_number += len(batch)
            else:
                for one, value in zip(mark, batch, strict=True):
                    if one not in processed:
                        handler(value)
                        processed.add(one)
                parts.append(msgpack.packb(mark))
        parts.append(handler.seen.to_bytes(8, "little"))
        _append(file, parts)
        os.fdatasync(file)
        finished = time.monotonic()
        socket.send_multipart((b"c", msgpack.packb((len(received), handler.seen))))
    assert handler.bytes
    _report(finished=finished, handled=handler.seen)


def _start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.naive", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )


def run(directory: Path, messages: int, size: int, kind: str) -> dict[str, Any]:
    """Run the three processes once; return msgs_per_s and the CPU seconds of each."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        started.append(_start(*arguments))
        return started[-1]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        text = process.stdout.readline()
        if not text:
            raise RuntimeError("a process of the naive pipeline ended early")
        return text.strip()

    try:
        broker = start("broker", directory, messages, kind)
        port = line(broker)
        consumer = start("consumer", port, directory, messages, kind)
        assert line(consumer) == "ready"
        producer = start("producer", port, messages, size, kind)
        assert producer.stdin is not None
        producer.stdin.write("go\n")
        producer.stdin.flush()
        sent, done, stored = (json.loads(line(one)) for one in (producer, consumer, broker))
    finally:
        for one in started:
            one.kill()
            one.communicate()
    assert done["handled"] == messages
    seconds = done["finished"] - sent["started"]
    return {
        "msgs_per_s": messages / seconds,
        "cpu_s": {
            "producer": sent["cpu_s"],
            "broker": stored["cpu_s"],
            "consumer": done["cpu_s"],
        },
    }


def main(arguments: list[str]) -> None:
    """Be one of the three processes."""
    role, *rest = arguments
    if role == "broker":
        run_broker(rest[0], int(rest[1]), rest[2])
    elif role == "producer":
        run_producer(rest[0], int(rest[1]), int(rest[2]), rest[3])
    else:
        run_consumer(rest[0], rest[1], int(rest[2]), rest[3])


if __name__ == "__main__":
    main(sys.argv[1:])
