"""How long a broker takes from its start to its first answer when it was killed with a full log."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.dedup import TOPIC, open_broker
from bench.processes import Cast
from bench.workload import BATCH, values
from oncemq import protocol as say
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec

_SIZE = 100


def fill(directory: str, messages: int) -> None:
    """Write a log of `messages`, then die as kill -9 would have it."""
    broker = open_broker(directory)
    payload = values(_SIZE)
    granted = broker.ask_one(say.InitProducer(broker.number(), "bench", os.urandom(16), "bench"))
    assert isinstance(granted.message, say.ProducerReady)
    for first in range(0, messages, BATCH):
        batch = batch_codec.build(payload[: messages - first], encodings=value_codec.BYTES)
        request = say.Produce(
            broker.number(), TOPIC, 0, "bench", granted.message.epoch, first, b"", 0, b"", batch.crc
        )
        broker.ask_one(request, batch.raw)
    print("full", flush=True)
    os._exit(0)


def measure(directory: Path, messages: int) -> dict[str, Any]:
    """Fill a log, start a broker on it, tell how long it took to be ready."""
    with tempfile.TemporaryDirectory(dir=directory) as text, Cast() as cast:
        place = Path(text)
        filler = cast.start("filler", ["-m", "bench.recover", str(place / "broker"), str(messages)])
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
        broker.stop()
    return {"ready_s": round(seconds, 3), "log_bytes": size, "messages": messages}


if __name__ == "__main__":
    fill(sys.argv[1], int(sys.argv[2]))
