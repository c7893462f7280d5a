"""What a user may set for a topic, and the texts in which users write and read it.

    dedup    forever | DURATION                          how long ids are remembered
    retain   forever | DURATION, SIZE and `processed`, joined by commas    how long messages are kept

A duration is a whole number with ms, s, m, h, d or w behind it (`7d`), a size one with B, KB, MB, GB, TB
or KiB, MiB, GiB, TiB (`1GB`). The wire carries these texts, records and snapshots the numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .errors import InvalidSetting

FOREVER = "forever"
PROCESSED = "processed"

# From the largest unit to the smallest, of which every number is a multiple.
_MS_IN = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_BYTES_IN = {
    "TiB": 1 << 40, "TB": 10**12, "GiB": 1 << 30, "GB": 10**9,
    "MiB": 1 << 20, "MB": 10**6, "KiB": 1 << 10, "KB": 10**3, "B": 1,
}  # fmt: skip
_MS_MAX = 36_500 * _MS_IN["d"]
_BYTES_MAX = 1 << 60
_QUANTITY = re.compile(r"([0-9]{1,19})([A-Za-z]+)")
_HINT = "a duration is like 12h or 7d (ms, s, m, h, d, w), a size like 500MB or 1GiB"


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """None: without a bound."""

    dedup_ms: int | None = None  # an id may be forgotten when its message is older
    retain_ms: int | None = None
    retain_bytes: int | None = None
    retain_processed: bool = False  # messages may go once every group has processed them

    @property
    def dedup(self) -> str:
        return FOREVER if self.dedup_ms is None else duration_text(self.dedup_ms)

    @property
    def retain(self) -> str:
        parts = []
        if self.retain_ms is not None:
            parts.append(duration_text(self.retain_ms))
        if self.retain_bytes is not None:
            parts.append(_text(self.retain_bytes, _BYTES_IN))
        if self.retain_processed:
            parts.append(PROCESSED)
        return ",".join(parts) or FOREVER

    def changed(self, dedup: str = "", retain: str = "") -> TopicSettings:
        """Return them with what the texts say; "" leaves a setting as it is. Raises InvalidSetting."""
        changed = self
        if dedup:
            changed = replace(changed, dedup_ms=_parse_dedup(dedup))
        if retain:
            changed = replace(_parse_retain(retain), dedup_ms=changed.dedup_ms)
        return changed


DEFAULTS = TopicSettings()


@dataclass(frozen=True, slots=True)
class TopicWish:
    """What a program wants a topic to be: so it is made; None and "" say nothing.

    A topic that exists stays as it is, and the difference is reported.
    """

    partitions: int | None = None
    dedup: str = ""
    retain: str = ""

    def __str__(self) -> str:
        count = "" if self.partitions is None else f"{self.partitions} partition(s)"
        parts = (
            count,
            self.dedup and f"dedup {self.dedup}",
            self.retain and f"retain {self.retain}",
        )
        return ", ".join(part for part in parts if part)

    def fits(self, partitions: int, dedup: str, retain: str) -> bool:
        """Return whether a topic with these is as wanted. Raises InvalidSetting."""
        there = DEFAULTS.changed(dedup, retain)
        same = there.changed(self.dedup, self.retain) == there
        return same and self.partitions in {None, partitions}


def parse_duration(text: str) -> int:
    """Return milliseconds. Raises InvalidSetting."""
    found = _quantity(text, _MS_IN)
    if found is None or not 0 < found <= _MS_MAX:
        raise InvalidSetting(f"{text!r} is no duration from 1ms to 36500d", hint=_HINT)
    return found


def duration_text(ms: int) -> str:
    return _text(ms, _MS_IN)


def _parse_dedup(text: str) -> int | None:
    return None if text == FOREVER else parse_duration(text)


def _parse_retain(text: str) -> TopicSettings:
    """Return settings of which only those of retention count."""
    if text == FOREVER:
        return DEFAULTS
    given: dict[str, int | bool] = {}
    for part in text.split(","):
        name, value = _parse_retain_part(part.strip())
        if name in given:
            raise InvalidSetting(f"{text!r} bounds the same thing twice", hint=_HINT)
        given[name] = value
    return TopicSettings(**given)  # type: ignore[arg-type]


def _parse_retain_part(part: str) -> tuple[str, int | bool]:
    if part == PROCESSED:
        return "retain_processed", True
    size = _quantity(part, _BYTES_IN)
    if size is not None and 0 < size <= _BYTES_MAX:
        return "retain_bytes", size
    if _quantity(part, _MS_IN) is not None:
        return "retain_ms", parse_duration(part)
    raise InvalidSetting(
        f"{part!r} is no age, no size and not {PROCESSED!r}",
        hint=f"{_HINT}; {FOREVER!r} stands alone",
    )


def _quantity(text: str, units: dict[str, int]) -> int | None:
    """Return the number of smallest units; None if `text` is not of that kind."""
    found = _QUANTITY.fullmatch(text)
    if found is None or found[2] not in units:
        return None
    return int(found[1]) * units[found[2]]


def _text(number: int, units: dict[str, int]) -> str:
    """Return the text with the largest unit that fits without a rest."""
    unit = next(name for name, size in units.items() if number % size == 0)
    return f"{number // units[unit]}{unit}"
