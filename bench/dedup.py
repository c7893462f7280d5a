"""How the broker fares as it remembers more and more ids: speed, memory, longest turn.

The broker runs inside this process on a real disk, so that its memory is this process's and no
network stands before it. Each turn takes some batches of new random ids, as a broker at full speed
does while the fsync of the turn before runs, and ends with an fsync.
"""

from __future__ import annotations

import gc
import importlib
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.disk_floor import Floor
from bench.workload import BATCH, values
from oncemq import protocol as say
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
_FLOOR_EVERY = 10  # turns for each write of the floor
_MODULUS = 2**128 - 159  # a prime: different numbers give different ids
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835


def inline_broker(directory: str, background: BackgroundThreads) -> InlineBroker:
    """Return a broker inside this process. Numpy is loaded first, as a broker process does."""
    importlib.import_module("oncemq.core.broker.id_index")
    return InlineBroker(
        OsDisk(),
        directory,
        owner=owner_facts(),
        clock=SystemClock(),
        events=NullEvents(),
        entropy=draw,
        background=background,
    )


def open_broker(directory: str, background: BackgroundThreads) -> InlineBroker:
    """Return such a broker whose topic exists."""
    broker = inline_broker(directory, background)
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


def measure(directory: Path, ids: int, batches: int) -> dict[str, Any]:
    """Store `ids` messages with random ids, of which one in twenty is sent again later.

    A resend is any message that came before, all over the history. Each answer is compared with the
    offset that the message got: none may be wrong.
    """
    with tempfile.TemporaryDirectory(dir=directory) as place:
        background = BackgroundThreads()
        broker = open_broker(f"{place}/broker", background)
        floor = Floor(Path(place) / "floor")
        sender = _Sender(broker)
        turns: list[tuple[int, float]] = []
        before = anonymous_bytes()
        while sender.stored < ids:
            turns.append(sender.turn(batches))
            if len(turns) % _FLOOR_EVERY == 0:
                floor.write(sender.turn_bytes)
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
        "ids": sender.stored,
        "resent": sender.resent,
        "batches_per_turn": batches,
        **rates(turns),
        **floor.figures(),
        "anon_bytes_per_id": round(grown / sender.stored, 1),
        "close_s": round(closing, 2),
        "open_s": round(opening, 2),
    }


class _Sender:
    """Sends batches and checks every answer."""

    def __init__(self, broker: InlineBroker) -> None:
        self.stored = self.resent = self.turn_bytes = 0
        self._broker = broker
        self._session = draw()
        self._counter = 0
        self._chance = random.Random(1)
        self._payload = values(_SIZE)

    def turn(self, batches: int) -> tuple[int, float]:
        """Send so many batches in one turn; return the ids in it and its seconds."""
        requests: list[tuple[say.Produce, bytes | memoryview]] = []
        expected: list[tuple[list[int], range]] = []
        for _ in range(batches):
            again = self._chance.choices(range(self.stored), k=BATCH // 20) if self.stored else []
            fresh = range(self.stored, self.stored + BATCH - len(again))
            requests.append(self._request([*again, *fresh]))
            expected.append((again, fresh))
            self.stored += len(fresh)
            self.resent += len(again)
        self.turn_bytes = sum(len(body) for _, body in requests)
        start = time.perf_counter()
        answers = self._broker.ask(requests)
        seconds = time.perf_counter() - start
        for (request, _), (again, fresh) in zip(requests, expected, strict=True):
            produced = answers[request.request].message
            assert isinstance(produced, say.Produced), produced
            _check(produced, again, fresh)
        return batches * BATCH, seconds

    def _request(self, numbers: list[int]) -> tuple[say.Produce, bytes | memoryview]:
        bodies = [self._payload[number % BATCH] for number in numbers]
        batch = batch_codec.build(bodies, encodings=value_codec.BYTES, ids=names(numbers))
        source = ("", 0, -1, self._session, self._counter)
        self._counter += 1
        return say.Produce(self._broker.number(), TOPIC, 0, *source, b"", batch.crc), batch.raw


def names(numbers: Iterable[int]) -> list[bytes]:
    """Return 32-character ids that look random and can be made again."""
    return [b"s%032x" % (number * _SPREAD % _MODULUS) for number in numbers]


def _check(produced: say.Produced, again: list[int], fresh: range) -> None:
    """Raise AssertionError if a resend was stored or got another offset than the first time."""
    offsets: list[int] = []
    for count, verdict, offset in produced.runs:
        assert verdict == (say.DUPLICATE if len(offsets) < len(again) else say.STORED)
        offsets += range(offset, offset + count)
    assert offsets == [*again, *fresh], "a resend got a wrong offset"


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
