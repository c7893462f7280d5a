"""How long a broker takes from its start to its first answer when it was killed with a full log."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.dedup import TOPIC, names, open_broker
from bench.processes import Cast, Failed
from bench.workload import BATCH, values
from oncemq import protocol as say
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec
from oncemq.runtime.background import BackgroundThreads

_SIZE = 100


def fill(directory: str, messages: int, kind: str) -> None:
    """Write a log of `messages`, then die as kill -9 would have it."""
    broker = open_broker(directory, BackgroundThreads())
    payload = values(_SIZE)
    granted = broker.ask_one(say.InitProducer(broker.number(), "bench", os.urandom(16), "bench"))
    assert isinstance(granted.message, say.ProducerReady)
    explicit, session = kind == "explicit", os.urandom(16)
    for counter, first in enumerate(range(0, messages, BATCH)):
        part = payload[: messages - first]
        ids = names(range(first, first + len(part))) if explicit else None
        batch = batch_codec.build(part, encodings=value_codec.BYTES, ids=ids)
        source = (
            ("", 0, -1, session, counter)
            if explicit
            else ("bench", granted.message.epoch, first, b"", 0)
        )
        broker.ask_one(say.Produce(broker.number(), TOPIC, 0, *source, b"", batch.crc), batch.raw)
    print("full", flush=True)
    os._exit(0)


def measure(directory: Path, messages: int, kind: str, *, damaged: bool) -> dict[str, Any]:
    """Fill a log, start a broker on it, tell how long it took to be ready and to stop.

    `damaged`: then damage the newest snapshot and the largest file of ids, and start once more.
    """
    with tempfile.TemporaryDirectory(dir=directory) as text, Cast() as cast:
        place = Path(text)
        arguments = [str(place / "broker"), str(messages), kind]
        filler = cast.start("filler", ["-m", "bench.recover", *arguments])
        assert filler.line() == "full"
        filler.process.wait()
        size = sum(path.stat().st_size for path in (place / "broker").rglob("*.log"))
        figures = _start_and_stop(cast, place, "")
        if damaged:
            _damage(place / "broker")
            figures.update(_start_and_stop(cast, place, "damaged_"))
    return {**figures, "log_bytes": size, "messages": messages, "ids": kind}


def _start_and_stop(cast: Cast, place: Path, prefix: str) -> dict[str, Any]:
    broker = cast.start(
        "broker",
        ["broker.py", f"--data={place / 'broker'}", "--bind=tcp://127.0.0.1:0"],
        place / f"{prefix}logs",
    )
    passed_over = 0
    deadline = time.monotonic() + 3_600
    while time.monotonic() < deadline:
        for event in broker.new_events():
            passed_over += event["event"] == "snapshot.fallback"
            if event["event"] == "broker.ready":
                seconds = (event["mono_ns"] - broker.started_ns) / 1e9
                started = time.perf_counter()
                broker.stop()
                return {
                    f"{prefix}ready_s": round(seconds, 3),
                    f"{prefix}stopped_s": round(time.perf_counter() - started, 3),
                    f"{prefix}snapshots_passed_over": passed_over,
                }
        if broker.process.poll() is not None:
            break
        time.sleep(0.01)
    raise Failed(f"the broker was not ready, status {broker.process.poll()}")


def _damage(directory: Path) -> None:
    """Flip a byte in the newest snapshot, and one of the filter of the largest run of ids."""
    newest = max(directory.rglob("*.snapshot"), key=lambda path: path.name)
    _flip(newest, newest.stat().st_size // 2)
    runs = sorted(directory.rglob("*.map"), key=lambda path: path.stat().st_size)
    if runs:
        _flip(runs[-1], runs[-1].stat().st_size - 100)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


if __name__ == "__main__":
    fill(sys.argv[1], int(sys.argv[2]), sys.argv[3])
