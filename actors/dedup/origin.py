"""From where the entries of a table or run come: it says when none of them lives any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Origin(NamedTuple):
    """Bounds of what is there: nothing is newer, and nothing comes from another topic."""

    newest_ms: int | None  # None: unknown
    topics: frozenset[int]

    def with_(self, other: Origin) -> Origin:
        if self.newest_ms is None or other.newest_ms is None:
            return UNKNOWN
        if other.newest_ms <= self.newest_ms and other.topics <= self.topics:
            return self
        return Origin(max(self.newest_ms, other.newest_ms), self.topics | other.topics)

    def gone(self, forgotten_ms: Mapping[int, int]) -> bool:
        """Return whether every topic has forgotten what it stored so early; one that is not named is gone."""
        newest_ms = self.newest_ms
        return newest_ms is not None and all(
            newest_ms <= forgotten_ms.get(topic, newest_ms) for topic in self.topics
        )

    def freeze(self) -> list[Any]:
        return [self.newest_ms, sorted(self.topics)]

    @classmethod
    def restored(cls, newest_ms: int | None, topics: Iterable[int]) -> Origin:
        return cls(newest_ms, frozenset(topics))


NOWHERE = Origin(0, frozenset())
UNKNOWN = Origin(None, frozenset())
