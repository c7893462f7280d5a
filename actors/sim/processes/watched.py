"""A fenced log whose every promise an oracle hears of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ...storage.log import FencedLog, StoredRecord
from ..oracles.log import Raw, RecordOracle


class WatchedLog(FencedLog):
    """Tells the oracle of each record when its sync has returned, or a recovery shows it."""

    oracle: RecordOracle
    _group: list[tuple[int, Raw]]

    def watch(self, oracle: RecordOracle) -> None:
        """Begin; called once right after `open`."""
        self.oracle = oracle
        self._group = []

    def append(
        self,
        type: int,  # noqa: A002 - as in the base class
        meta: bytes,
        body: bytes | memoryview,
        body_crc: int | None = None,
    ) -> int:
        position = super().append(type, meta, body, body_crc)
        self._group.append((position, (type, meta, bytes(body))))
        return position

    def sync(self) -> int:
        """What the sync covers is promised from its return on."""
        end = super().sync()
        for position, raw in self._group:
            self.oracle.durable(position, raw)
        self._group.clear()
        return end

    def read(self, position: int, max_bytes: int, *, end: int | None = None) -> list[StoredRecord]:
        """What is read is what was promised."""
        found = super().read(position, max_bytes, end=end)
        for record in found:
            self.oracle.same(record.position, _raw(record))
        return found

    def replay(self, position: int) -> Iterator[StoredRecord]:
        """A recovery must show all that was promised."""
        found = list(super().replay(position))
        self.oracle.recovered(position, [(record.position, _raw(record)) for record in found])
        return iter(found)


def opener(oracle: Callable[[], RecordOracle], segment_bytes: int) -> Callable[..., FencedLog]:
    """Return what opens a log like `FencedLog.open`, and has what `oracle` returns watch it."""

    def open_log(*arguments: Any, **options: Any) -> FencedLog:
        log = WatchedLog.open(*arguments, segment_bytes=segment_bytes, **options)
        assert isinstance(log, WatchedLog)
        log.watch(oracle())
        return log

    return open_log


def _raw(record: StoredRecord) -> Raw:
    return record.type, bytes(record.meta), bytes(record.body)
