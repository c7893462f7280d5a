"""A busy topic that is bounded beside a slow one that keeps all: disk, answers, pauses.

The broker runs inside this process on a real disk. Batches of 1 KB messages with random ids go through
the busy topic; now and then one goes to the slow one. One message in twenty is sent again, any of the
whole history, also long after it was deleted. At the end the slow topic is read from its first message on.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.dedup import inline_broker, names
from bench.disk_floor import Floor
from bench.workload import values
from oncemq import protocol as say
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec
from oncemq.library.embedded.broker import InlineBroker
from oncemq.runtime.background import BackgroundThreads
from oncemq.runtime.process import draw
from oncemq.storage.kept import FOOTER_BYTES, MAGIC

BUSY, SLOW = "busy", "slow"
_SIZE = 1000
_BATCH = 500
_LOOK_EVERY = 20  # batches
_FETCH_BYTES = 1 << 20


class Traffic:
    """What is sent to one topic, and where it must be."""

    def __init__(self, broker: InlineBroker, topic: str, first: int) -> None:
        """Numbers of messages begin at `first`, so that two topics share no id."""
        self._broker, self._topic, self._first = broker, topic, first
        self._session, self._counter = draw(), 0
        self._payload = values(_SIZE)
        self.stored = self.wrong = self.resent = 0

    def send(self, fresh: int, again: list[int]) -> float:
        """Send new messages behind resends of old ones; return how long the broker took."""
        numbers = [*again, *range(self.stored, self.stored + fresh)]
        bodies = [self._payload[number % len(self._payload)] for number in numbers]
        ids = names(number + self._first for number in numbers)
        batch = batch_codec.build(bodies, encodings=value_codec.BYTES, ids=ids)
        request = say.Produce(
            self._broker.number(), self._topic, 0, "", 0, -1, self._session, self._counter, b"",
            batch.crc,
        )  # fmt: skip
        started = time.perf_counter()
        produced = self._broker.ask_one(request, batch.raw).message
        took = time.perf_counter() - started
        assert isinstance(produced, say.Produced), produced
        offsets: list[int] = []
        for count, verdict, offset in produced.runs:
            known = verdict == (say.DUPLICATE if len(offsets) < len(again) else say.STORED)
            self.wrong += 0 if known else count
            offsets += range(offset, offset + count)
        self.wrong += sum(one != other for one, other in zip(offsets, numbers, strict=True))
        self._counter += 1
        self.stored += fresh
        self.resent += len(again)
        return took

    def read(self, offset: int) -> int:
        """Return how many messages can be read from `offset` on."""
        first = offset
        while True:
            fetch = say.Fetch(self._broker.number(), "", self._topic, 0, 0, offset, _FETCH_BYTES, 0)
            fetched = self._broker.ask_one(fetch).message
            assert isinstance(fetched, say.Fetched), fetched
            if fetched.next_offset == offset:
                return offset - first
            offset = fetched.next_offset


def measure(directory: Path, gigabytes: float, bound_gb: float, slow_every: int) -> dict[str, Any]:
    """Send so much through a topic with that bound; each `slow_every`th batch adds to the slow one."""
    chance, bound = random.Random(1), round(bound_gb * 1e9)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        background = BackgroundThreads()
        broker = inline_broker(f"{place}/broker", background)
        for topic, retain in ((BUSY, f"{bound}B"), (SLOW, "forever")):
            broker.ask_one(say.CreateTopic(broker.number(), topic, 1, "", retain))
        busy, slow = Traffic(broker, BUSY, 0), Traffic(broker, SLOW, 1 << 40)
        turns: list[float] = []
        floor = Floor(Path(place) / "floor")
        disk = index = 0
        started, number = time.perf_counter(), 0
        while busy.stored * _SIZE < gigabytes * 1e9:
            again = chance.choices(range(busy.stored), k=_BATCH // 20) if busy.stored else []
            turns.append(busy.send(_BATCH - len(again), again))
            if number % slow_every == 0:
                again = chance.choices(range(slow.stored), k=1) if slow.stored else []
                turns.append(slow.send(10, again))
            if number % _LOOK_EVERY == 0:
                log, runs = _used(Path(place))
                floor.write(_BATCH * _SIZE)
                disk, index = max(disk, log - slow.stored * _SIZE), max(index, runs)
            number += 1
        seconds = time.perf_counter() - started
        broker.ask_one(say.ConfigureTopic(broker.number(), BUSY, "", "forever"))
        shown = broker.ask_one(say.ShowTopic(broker.number(), BUSY)).message
        assert isinstance(shown, say.TopicShown)
        start, end = shown.rows[0][1:3]
        lost = slow.stored - slow.read(0) + (end - start) - busy.read(start)
        broker.close()
        background.close()
    ordered = sorted(turns)
    return {
        "sent_bytes": busy.stored * _SIZE,
        "bound_bytes": bound,
        "slow_bytes": slow.stored * _SIZE,
        "disk_max_bytes_without_slow": disk,
        "disk_over_bound": round(disk / bound, 3),
        "index_bytes": index,
        "resent": busy.resent + slow.resent,
        "wrong_answers": busy.wrong + slow.wrong,
        "lost": lost,
        "mb_per_s": round(busy.stored * _SIZE / seconds / 1e6, 1),
        "turn_p50_ms": round(ordered[len(ordered) // 2] * 1e3, 2),
        "turn_p99_9_ms": round(ordered[len(ordered) * 999 // 1000] * 1e3, 2),
        "longest_turn_ms": round(ordered[-1] * 1e3, 2),
        **floor.figures(),
    }


def _used(place: Path) -> tuple[int, int]:
    """Return the bytes on disk of log and kept parts, and of the index of ids."""
    log = index = 0
    for path in place.rglob("gen-*/*"):
        try:
            size = path.stat().st_blocks * 512
            if path.suffix == ".map" and not _is_kept(path):
                index += size
            else:
                log += size
        except FileNotFoundError:  # deleted meanwhile
            continue
    return log, index


def _is_kept(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - FOOTER_BYTES))
        return file.read(len(MAGIC)) == MAGIC
