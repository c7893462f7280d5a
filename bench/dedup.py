"""How the broker fares as it remembers more and more ids: speed, memory, longest turn.

The broker runs inside this process on a real disk, so that its memory is this process's and no
network stands before it. Each turn takes one batch of new random ids and ends with an fsync.
"""

from __future__ import annotations

import gc
import itertools
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.workload import BATCH, values
from oncemq import protocol as say
from oncemq.batch import Batch
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec
from oncemq.library.embedded.broker import InlineBroker
from oncemq.runtime.background import BackgroundThreads
from oncemq.runtime.clock import SystemClock
from oncemq.runtime.events import NullEvents
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.process import draw, owner_facts

TOPIC = "bench"
_SIZE = 16
_MODULUS = 2**128 - 159  # a prime: different numbers give different ids
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835


def open_broker(directory: str, background: BackgroundThreads) -> InlineBroker:
    """Return a broker inside this process whose topic exists."""
    broker = InlineBroker(
        OsDisk(),
        directory,
        owner=owner_facts(),
        clock=SystemClock(),
        events=NullEvents(),
        entropy=draw,
        background=background,
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
    """Store `ids` messages with random ids, of which one in twenty is sent again later.

    A resend is any message that came before, all over the history. Each answer is compared with the
    offset that the message got: none may be wrong.
    """
    chance = random.Random(1)
    payload = values(_SIZE)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        background = BackgroundThreads()
        broker = open_broker(f"{place}/broker", background)
        session = draw()
        turns: list[tuple[int, float]] = []
        before = anonymous_bytes()
        stored = resent = 0
        for counter in itertools.count():
            if stored >= ids:
                break
            again = chance.choices(range(stored), k=BATCH // 20) if counter else []
            fresh = range(stored, stored + BATCH - len(again))
            numbers = [*again, *fresh]
            bodies = [payload[number % BATCH] for number in numbers]
            ids_sent = names(numbers)
            batch = batch_codec.build(bodies, encodings=value_codec.BYTES, ids=ids_sent)
            start = time.perf_counter()
            produced = _ask(broker, session, counter, batch)
            turns.append((len(numbers), time.perf_counter() - start))
            _check(produced, again, stored, len(fresh))
            stored += len(fresh)
            resent += len(again)
        grown = anonymous_bytes() - before
        started = time.perf_counter()
        broker.close()
        background.close()
        closing = time.perf_counter() - started
        started = time.perf_counter()
        broker = open_broker(f"{place}/broker", background=BackgroundThreads())
        opening = time.perf_counter() - started
        broker.close()
    return {
        "ids": stored,
        "resent": resent,
        **rates(turns),
        "anon_bytes_per_id": round(grown / stored, 1),
        "close_s": round(closing, 2),
        "open_s": round(opening, 2),
    }


def names(numbers: Iterable[int]) -> list[bytes]:
    """Return 32-character ids that look random and can be made again."""
    return [b"s%032x" % (number * _SPREAD % _MODULUS) for number in numbers]


def _ask(broker: InlineBroker, session: bytes, counter: int, batch: Batch) -> say.Produced:
    request = say.Produce(broker.number(), TOPIC, 0, "", 0, -1, session, counter, b"", batch.crc)
    produced = broker.ask_one(request, batch.raw).message
    assert isinstance(produced, say.Produced)
    return produced


def _check(produced: say.Produced, again: list[int], stored: int, fresh: int) -> None:
    """Raise AssertionError if a resend was stored or got another offset than the first time."""
    offsets: list[int] = []
    for count, verdict, offset in produced.runs:
        assert verdict == (say.DUPLICATE if len(offsets) < len(again) else say.STORED)
        offsets += range(offset, offset + count)
    assert offsets == [*again, *range(stored, stored + fresh)], "a resend got a wrong offset"


def rates(turns: list[tuple[int, float]]) -> dict[str, float]:
    """Return speed and times of turns, each with its ids and seconds."""
    part = max(1, len(turns) // 10)
    ordered = sorted(seconds for _, seconds in turns)
    return {
        "ids_per_s": _rate(turns),
        "ids_per_s_start": _rate(turns[:part]),
        "ids_per_s_end": _rate(turns[-part:]),
        "turn_p50_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
        "turn_p99_9_ms": round(ordered[len(ordered) * 999 // 1000] * 1e3, 2),
        "longest_turn_ms": round(ordered[-1] * 1e3, 2),
    }


def _rate(turns: list[tuple[int, float]]) -> int:
    return round(sum(count for count, _ in turns) / sum(seconds for _, seconds in turns))
