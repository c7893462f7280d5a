"""What a run did: a hash of all of it, the last lines in full, and how often each thing happened."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from typing import Any

from .clock import START_WALL_MS, SimClock

LINES_KEPT = 400

Line = tuple[int, str, str, dict[str, Any]]


class Violation(Exception):
    """A promise was broken. `rule` names it in one or two words; the text says what was found."""

    def __init__(self, rule: str, text: str) -> None:
        """Both are printed; two failures with one rule count as the same when a run is shrunk."""
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Trace:
    """Everything that happened in one world, in order."""

    def __init__(self, clock: SimClock, *, keep_all: bool = False) -> None:
        self._clock = clock
        self._digest = hashlib.blake2b(digest_size=8)
        self._lines: deque[Line] = deque(maxlen=None if keep_all else LINES_KEPT)
        self.counts: Counter[str] = Counter()

    def add(self, who: str, what: str, fields: dict[str, Any] | None = None) -> None:
        self.counts[what] += 1
        now = self._clock.now_ms()
        self._digest.update(b"%d %s %s\n" % (now, who.encode(), what.encode()))
        self._lines.append((now, who, what, fields or {}))

    def sent(self, data: bytes) -> None:
        self._digest.update(data)

    def hash(self) -> str:
        """Return the same text for two runs only if they did the same."""
        return self._digest.hexdigest()

    def lines(self) -> list[str]:
        """Return what is kept, readable, oldest first."""
        return [_line(*line) for line in self._lines]


def _line(now: int, who: str, what: str, fields: dict[str, Any]) -> str:
    values = " ".join(f"{name}={_text(value)}" for name, value in fields.items())
    return f"{(now - START_WALL_MS) / 1000:9.3f}  {who:<24} {what:<22} {values}".rstrip()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()[:16]
    return str(value)[:200]
