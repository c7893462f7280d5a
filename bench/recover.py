"""How long a broker takes from its start to its first answer when it was killed with a full log."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.dedup import TOPIC, names, open_broker
from bench.processes import Cast
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


def measure(directory: Path, messages: int, kind: str) -> dict[str, Any]:
    """Fill a log, start a broker on it, tell how long it took to be ready."""
    with tempfile.TemporaryDirectory(dir=directory) as text, Cast() as cast:
        place = Path(text)
        arguments = [str(place / "broker"), str(messages), kind]
        filler = cast.start("filler", ["-m", "bench.recover", *arguments])
        assert filler.line() == "full"
        filler.process.wait()
        size = sum(path.stat().st_size for path in (place / "broker").rglob("*.log"))
        broker = cast.start(
            "broker",
            ["broker.py", f"--data={place / 'broker'}", "--bind=tcp://127.0.0.1:0"],
            place / "logs",
        )
        ready = broker.wait_event("broker.ready")
        seconds = (ready["mono_ns"] - broker.started_ns) / 1e9
        started = time.perf_counter()
        broker.stop()
        stopped = time.perf_counter() - started
    return {
        "ready_s": round(seconds, 3),
        "stopped_s": round(stopped, 3),
        "log_bytes": size,
        "messages": messages,
        "ids": kind,
    }


if __name__ == "__main__":
    fill(sys.argv[1], int(sys.argv[2]), sys.argv[3])
