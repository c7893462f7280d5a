"""The committed offsets of a node: a small actor with a fenced log of its own.

Theory of operation. A record holds what changed. The offset of a key never moves backwards, so a
commit that arrives late or twice changes nothing. `committed` is the sum of all applied records; an
answer may rest on it only after the sync at the end of the turn, so OffsetsKept is work after the
sync.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..library.embedded.peerless import PeerlessCore
from ..outcome import Event, Outcome, Snapshot
from ..records import Committed, Record

_PART = "offsets"


@dataclass(frozen=True, slots=True)
class KeepOffsets:
    """Event: store these offsets (of the last processed message, not the next one)."""

    number: int
    offsets: dict[str, int]  # by topic name: keys themselves may hold what a log cannot

    @property
    def size(self) -> int:
        """Estimated bytes of the record, for the reserve of the log."""
        return sum(map(len, self.offsets)) + 24 * len(self.offsets)


@dataclass(frozen=True, slots=True)
class OffsetsKept:
    """Work: the offsets are durable."""

    number: int


@dataclass(frozen=True, slots=True)
class OffsetsRefused:
    """Work: none of the offsets was stored, and none will be."""

    number: int
    reason: str


class OffsetsCore(PeerlessCore):
    """The pure actor. It meets KeepOffsets."""

    def __init__(self, keys_max: int) -> None:
        super().__init__()
        self._keys_max = keys_max
        # Offset of each key, processed up to and including.
        # Invariant: never decreases; at most `keys_max` keys.
        self.committed: dict[str, int] = {}
        self._commit_no = 0  # of the last applied record; invariant: rises by one each record

    def _decide(self, event: Event, outcome: Outcome) -> None:
        if not isinstance(event, KeepOffsets):
            return
        if self._full:
            outcome.work.append(OffsetsRefused(event.number, "the disk is full"))
            return
        news = {
            key: offset
            for key, offset in event.offsets.items()
            if offset > self.committed.get(key, -1)
        }
        fresh = sum(key not in self.committed for key in news)
        if len(self.committed) + fresh > self._keys_max:
            reason = f"more than {self._keys_max} keys with a committed offset"
            outcome.work.append(OffsetsRefused(event.number, reason))
            return
        if news:
            state: dict[str, bytes | None] = {key: b"%d" % news[key] for key in news}
            record = Committed(self._epoch, self._commit_no + 1, [], [], b"", state)
            outcome.appends.append(record)
        outcome.work_after_sync.append(OffsetsKept(event.number))

    def apply(self, record: Record, position: int) -> None:
        del position
        assert isinstance(record, Committed), f"{type(record).__name__} in a log of offsets"
        self._commit_no = record.commit_no
        for key, offset in record.state.items():
            assert offset is not None
            self.committed[key] = max(int(offset), self.committed.get(key, -1))

    def snapshot(self) -> Snapshot:
        return Snapshot({_PART: {"commit_no": self._commit_no, "offsets": self.committed}})

    def restore(self, parts: dict[str, Any]) -> None:
        self._commit_no = parts[_PART]["commit_no"]
        self.committed = dict(parts[_PART]["offsets"])
