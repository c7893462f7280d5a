"""How far everything was at each second of a run, as the event files told it.

Progress is taken from offsets and not from counts: a process that is killed may have done more
than it could tell, and the next event of its successor makes up for that.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .history import History, Line

BIN_S = 1.0
BINS_MAX = 86_400  # a day; later events count for the last bin


@dataclass(slots=True)
class Progress:
    """An end that only grows, by the second."""

    end: int = 0
    ends: dict[int, int] = field(default_factory=dict)  # bin -> end at the bin's end, where it grew

    def reach(self, at: int, end: int) -> int:
        """Note that the end was at least `end`; return by how much that is more than known."""
        grown = end - self.end
        if grown <= 0:
            return 0
        self.end = end
        last = max(at, next(reversed(self.ends), at))
        self.ends[last] = end
        return grown

    def series(self, bins: int) -> list[int]:
        made, end = [], 0
        for number in range(bins):
            end = self.ends.get(number, end)
            made.append(end)
        return made


class Watch(History):
    """A history that also keeps who was how far, and what was recognised as there before."""

    def __init__(self, log_dir: Path) -> None:
        super().__init__(log_dir)
        self.began_ns = time.monotonic_ns()
        # (topic, partition) -> end of the log; (group, topic, partition) -> committed offset.
        self.accepted: dict[tuple[str, int], Progress] = defaultdict(Progress)
        self.processed: dict[tuple[str, str, int], Progress] = defaultdict(Progress)
        self.duplicates = 0  # messages that the broker had before
        self.skipped = 0  # messages that a consumer had processed before
        self._recent: Counter[int] = Counter()  # bin -> messages processed, for `best_per_s`
        self.best_per_s = 0.0  # most messages that one group processed within a second

    def count_from(self, began_s: float) -> None:
        self.began_ns = int(began_s * 1e9)

    def refresh(self) -> list[Line]:
        found = super().refresh()
        for line in found:
            self._take(line)
        return found

    def _take(self, line: Line) -> None:
        match line["event"]:
            case "batch.appended":
                self.duplicates += line.get("duplicates", 0)
                key = (line["topic"], line["partition"])
                self.accepted[key].reach(self._bin(line), line["first_offset"] + line["count"])
            case "batch.duplicate":
                self.duplicates += line["count"]
            case "consumer.skipped":
                self.skipped += line["count"]
            case "commit.synced":
                at = self._bin(line)
                place = (line["group"], line["topic"], line["partition"])
                self.processed[place].reach(at, line["next_offset"])
                self._recent[at] += line["count"]
                self.best_per_s = max(self.best_per_s, self._recent[at] / BIN_S)
                for old in [number for number in self._recent if number < at - 10]:
                    del self._recent[old]

    def _bin(self, line: Line) -> int:
        passed = (line["mono_ns"] - self.began_ns) / 1e9
        return min(BINS_MAX, max(0, int(passed / BIN_S)))

    # --- what it comes to ------------------------------------------------------------------------

    def accepted_of(self, topic: str) -> int:
        return sum(its.end for (name, _), its in self.accepted.items() if name == topic)

    def processed_of(self, group: str, topic: str) -> int:
        return sum(
            its.end
            for (who, name, _), its in self.processed.items()
            if (who, name) == (group, topic)
        )

    @property
    def bins(self) -> int:
        ends = [*self.accepted.values(), *self.processed.values()]
        return 1 + max((number for its in ends for number in its.ends), default=0)

    def accepted_series(self, topic: str, bins: int) -> list[int]:
        found = [its.series(bins) for (name, _), its in self.accepted.items() if name == topic]
        return _added(found, bins)

    def processed_series(self, group: str, topic: str, bins: int) -> list[int]:
        found = [
            its.series(bins)
            for (who, name, _), its in self.processed.items()
            if (who, name) == (group, topic)
        ]
        return _added(found, bins)


def _added(series: list[list[int]], bins: int) -> list[int]:
    return [sum(column) for column in zip([0] * bins, *series, strict=True)]
