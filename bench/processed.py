"""How a consumer fares as its ledger remembers more and more explicit ids: speed, memory, turns.

The ledger, in files or in a SQLite database, is inside this process on a real disk. Each turn takes a
fetched batch through the skip rule and commits what is left, with an fsync, as a consumer does; there
is no handler and no network.
"""

from __future__ import annotations

import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.dedup import anonymous_bytes, names, rates
from bench.workload import BATCH
from oncemq.codec import batch as batch_codec
from oncemq.codec import values as value_codec
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.window import cut, identities, leave_out_known, with_fingerprints
from oncemq.driver import Driver, Silence
from oncemq.library.embedded.peerless import PeerlessCore
from oncemq.library.sinks.opening import open_sink
from oncemq.limits import LEDGER_SNAPSHOT_EVERY_BYTES
from oncemq.outcome import Event, Outcome, Recovered, Snapshot
from oncemq.ports import Log
from oncemq.records import BatchStored, Committed, LedgerStarted, Record
from oncemq.runtime.background import BackgroundThreads
from oncemq.runtime.clock import SystemClock
from oncemq.runtime.events import NullEvents
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.process import draw, owner_facts
from oncemq.shells.consumer import fingerprints
from oncemq.storage.log import FencedLog

_PLACE = ("bench", "bench", 0)
_TOPIC_ID = b"t" * 16


class _Core(PeerlessCore):
    """The part of a consumer between a fetched batch and its commit."""

    def __init__(self, ledger_id: bytes) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._fingerprint = partial(fingerprints, ledger_id)
        self.handled: Sequence[int] = ()  # indices of the last batch that were not known

    def _decide(self, event: Event, outcome: Outcome) -> None:
        if isinstance(event, Recovered) and self.ledger.started is None:
            outcome.appends.append(LedgerStarted(*_PLACE, _TOPIC_ID, b"l" * 16, b"l" * 16, 0))
        elif isinstance(event, BatchStored):
            window = cut([event], event.first_offset, event.first_offset + event.kept)
            assert window is not None, "a batch follows the one before"
            window = with_fingerprints(window, self._fingerprint)
            window = leave_out_known(window, self.ledger.processed)
            self.handled = [index for piece in window.pieces for index in piece.indices]
            inputs = [(_TOPIC_ID, window.next_offset)]
            number = self.ledger.commit_no + 1
            outcome.appends.append(Committed(self._epoch, number, inputs, *identities(window), {}))

    def apply(self, record: Record, position: int) -> None:
        self.ledger.apply(record, position)

    def snapshot(self) -> Snapshot:
        return self.ledger.snapshot()

    def restore(self, parts: dict[str, Any]) -> None:
        self.ledger.restore(parts)


class _Consumer:
    """A ledger that is open for writing, and its turn."""

    def __init__(self, place: str, epoch: int, *, sink: bool) -> None:
        self._background = None if sink else BackgroundThreads()
        log: Log
        if sink:
            ledger = open_sink(f"sqlite:///{place}/bench.db", _PLACE, lost="", at=lambda _: None)
            ledger.peek()
            log = ledger.open(epoch)
        else:
            log = FencedLog.open(
                OsDisk(),
                f"{place}/ledger",
                generation=None,
                owner=owner_facts(),
                create_log_id=draw(),
            )
        self.core = _Core(log.log_id)
        self.driver = Driver(
            self.core,
            Silence(),
            SystemClock(),
            NullEvents(),
            perform=print,
            snapshot_every_bytes=LEDGER_SNAPSHOT_EVERY_BYTES,
            compacts=True,
            files=self.core.ledger.processed,
            background=self._background,
        )
        self.driver.open_log(log, place)
        self.driver.turn(0)

    def take(self, batch: BatchStored) -> Sequence[int]:
        """Take a batch in one turn; return which of its messages were not known.

        While too many ids wait for a file, turns are made before, as the consumer does.
        """
        while self.core.ledger.processed.behind:
            self.driver.turn(0)
        self.driver.post(batch)
        self.driver.turn(0)
        return self.core.handled

    def close(self) -> None:
        self.driver.close()
        if self._background is not None:
            self._background.close()


def measure(directory: Path, ids: int, *, sink: bool) -> dict[str, Any]:
    """Process `ids` messages with random ids, of which one in twenty comes again later.

    Such a message is any that came before, all over the history, at a new offset. It must be left out,
    and no other.
    """
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(dir=directory) as place:
        place = str(Path(place).absolute())
        consumer = _Consumer(place, 1, sink=sink)
        turns: list[tuple[int, float]] = []
        before = anonymous_bytes()
        handled = again_count = 0
        for counter in itertools.count():
            if handled >= ids:
                break
            again = chance.choices(range(handled), k=BATCH // 20) if counter else []
            numbers = [*again, *range(handled, handled + BATCH - len(again))]
            batch = _stored(counter * BATCH, names(numbers))
            start = time.perf_counter()
            taken = consumer.take(batch)
            turns.append((len(numbers), time.perf_counter() - start))
            assert list(taken) == list(range(len(again), BATCH)), "wrong messages were left out"
            handled += len(taken)
            again_count += len(again)
        grown = anonymous_bytes() - before
        started = time.perf_counter()
        consumer.close()
        closing = time.perf_counter() - started
        started = time.perf_counter()
        consumer = _Consumer(place, 2, sink=sink)
        opening = time.perf_counter() - started
        assert consumer.core.ledger.processed.explicit_count == handled, "the set came back changed"
        consumer.close()
        held = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    return {
        "ids": handled,
        "known": again_count,
        **rates(turns),
        "anon_bytes_per_id": round(grown / handled, 1),
        "disk_bytes_per_id": round(held / handled, 1),
        "close_s": round(closing, 2),
        "open_s": round(opening, 2),
    }


def _stored(first_offset: int, ids: list[bytes]) -> BatchStored:
    made = batch_codec.build([b"x" * 16] * len(ids), encodings=value_codec.BYTES, ids=ids)
    batch = batch_codec.parse(made.raw, made.crc, check=False)
    return BatchStored(
        0, 0, first_offset, len(ids), 1, "", 0, -1, b"", b"", made.raw, made.crc, len(ids), batch
    )
