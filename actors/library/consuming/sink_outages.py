"""Which consumers of a process lost their database, and when each is to be made anew."""

from __future__ import annotations

import random
from collections.abc import Container
from typing import TYPE_CHECKING

from ...backoff import backoff_ms
from ...errors import SinkConflict
from ...limits import BACKOFF_FIRST_MS, CONFLICT_FIRST_MS

if TYPE_CHECKING:
    from .actor import ConsumerActor

FORGOTTEN_MS = 30_000  # a database that fails after so long is tried again at once
CONFLICT_FORGOTTEN_MS = 500  # commits that succeed between two conflicts take longer


class SinkOutages:
    """Belongs to the I/O thread."""

    def __init__(self) -> None:
        # When each is due.
        self._due: dict[ConsumerActor, int] = {}
        # When each place failed last, and how often in a row.
        self._failures: dict[tuple[str, str, int], tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, actor: object) -> bool:
        return actor in self._due

    def note(self, actor: ConsumerActor, now_ms: int) -> None:
        """`actor` has ended because its database failed."""
        last_ms, count = self._failures.get(actor.place, (0, 0))
        conflict = isinstance(actor.error, SinkConflict)  # met at the COMMIT: no outage
        first_ms = CONFLICT_FIRST_MS if conflict else BACKOFF_FIRST_MS
        forgotten_ms = CONFLICT_FORGOTTEN_MS if conflict else FORGOTTEN_MS
        count = count + 1 if now_ms - last_ms < forgotten_ms else 0
        self._failures[actor.place] = now_ms, count
        self._due[actor] = now_ms + backoff_ms(count, jitter=random.random(), first_ms=first_ms)

    def time_left_ms(self, now_ms: int) -> int:
        """Return how long until the next one is due; ask only if there is one."""
        return max(0, min(self._due.values()) - now_ms)

    def take_due(self, now_ms: int, busy: Container[ConsumerActor]) -> list[ConsumerActor]:
        """Return those whose time has come; of `busy` ones a handler still uses the connection."""
        found = [actor for actor, at in self._due.items() if at <= now_ms and actor not in busy]
        for actor in found:
            del self._due[actor]
        return found

    def take_all(self) -> list[ConsumerActor]:
        found = list(self._due)
        self._due.clear()
        return found
