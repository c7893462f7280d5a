"""How the broker fares as it remembers more and more ids: speed, memory, longest turn.

The broker runs inside this process on a real disk, so that its memory is this process's and no
network stands before it. Each turn takes one batch of new random ids and ends with an fsync.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.workload import BATCH, id_maker, values
from oncemq import protocol as say
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec
from oncemq.ids import tagged_id
from oncemq.library.embedded.broker import InlineBroker
from oncemq.runtime.clock import SystemClock
from oncemq.runtime.events import NullEvents
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.process import draw, owner_facts

TOPIC = "bench"
_SIZE = 16


def open_broker(directory: str) -> InlineBroker:
    """Return a broker inside this process whose topic exists."""
    broker = InlineBroker(
        OsDisk(),
        directory,
        owner=owner_facts(),
        clock=SystemClock(),
        events=NullEvents(),
        entropy=draw,
    )
    broker.ask_one(say.CreateTopic(broker.number(), TOPIC, 1))
    return broker


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process in bytes; 0 where /proc is missing."""
    gc.collect()
    try:
        text = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return 0
    return int(text.partition("RssAnon:")[2].split()[0]) * 1024


def measure(directory: Path, ids: int) -> dict[str, Any]:
    """Store `ids` messages with random ids, then check that a sample of them is known."""
    make = id_maker("uuid")
    payload = values(_SIZE)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        broker = open_broker(f"{place}/broker")
        session, turns = draw(), []
        before = anonymous_bytes()
        sample: list[str] = []
        for counter in range(-(-ids // BATCH)):
            names = make(min(BATCH, ids - counter * BATCH))
            sample = sample or names
            start = time.perf_counter()
            verdict = _store(broker, session, counter, names, payload)
            turns.append((len(names), time.perf_counter() - start))
            assert verdict == say.STORED
        grown = anonymous_bytes() - before
        known = _store(broker, draw(), 0, sample, payload)
        assert known == say.DUPLICATE
        broker.close()
    part = max(1, len(turns) // 10)
    return {
        "ids": ids,
        "ids_per_s_start": _rate(turns[:part]),
        "ids_per_s_end": _rate(turns[-part:]),
        "anon_bytes_per_id": round(grown / ids, 1),
        "longest_turn_ms": round(max(seconds for _, seconds in turns) * 1e3, 2),
    }


def _store(
    broker: InlineBroker, session: bytes, counter: int, names: list[str], payload: list[bytes]
) -> int:
    """Send one batch; return the verdict, which is the same for all of it."""
    batch = batch_codec.build(
        payload[: len(names)],
        encodings=value_codec.BYTES,
        ids=[tagged_id(name) for name in names],
    )
    request = say.Produce(broker.number(), TOPIC, 0, "", 0, -1, session, counter, b"", batch.crc)
    produced = broker.ask_one(request, batch.raw).message
    assert isinstance(produced, say.Produced)
    ((count, verdict, _),) = produced.runs
    assert count == len(names)
    return verdict


def _rate(turns: list[tuple[int, float]]) -> int:
    return round(sum(count for count, _ in turns) / sum(seconds for _, seconds in turns))
