"""What a check may find, and where findings are gathered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FINDINGS_KEPT_MAX = 1000  # of each check; the rest is only counted
IDS_SHOWN_MAX = 10  # in one violation


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was not kept."""

    check: str  # name in the table of checks
    where: str  # topic/partition, group, file or process
    ids: tuple[str, ...]  # the messages it is about, as far as they are known
    explanation: str  # one sentence for a person

    def as_dict(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "where": self.where,
            "ids": list(self.ids),
            "explanation": self.explanation,
        }

    def __str__(self) -> str:
        ids = f" [{', '.join(self.ids)}]" if self.ids else ""
        return f"{self.check}: {self.where}: {self.explanation}{ids}"


@dataclass(slots=True)
class Findings:
    """Violations, counted without bound and kept up to one."""

    # Violations by check. Invariant: `kept` holds at most FINDINGS_KEPT_MAX of each.
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[Violation] = field(default_factory=list)
    # What a reader should know and is no violation.
    notes: list[str] = field(default_factory=list)

    def add(self, check: str, where: str, explanation: str, ids: Sequence[str] = ()) -> None:
        self.counts[check] += 1
        if self.counts[check] <= FINDINGS_KEPT_MAX:
            shown = tuple(ids[:IDS_SHOWN_MAX])
            self.kept.append(Violation(check, where, shown, explanation))

    def merge(self, other: Findings) -> None:
        self.counts += other.counts
        self.kept += other.kept
        self.notes += other.notes

    @property
    def total(self) -> int:
        return self.counts.total()


def shown_id(tagged: bytes) -> str:
    """Return an explicit id as people see it; bytes that are no text in hexadecimal."""
    if tagged[:1] == b"s":
        return tagged[1:].decode("utf-8", "replace")
    try:
        return tagged[1:].decode()
    except UnicodeDecodeError:
        return "0x" + tagged[1:].hex()
