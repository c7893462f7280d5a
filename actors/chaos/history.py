"""What the processes say they did: their event files, read while they grow.

Each process writes one JSON object a line to `role-pid.jsonl` with a counter without holes. A
process that is killed may leave half a line at the end: that line is passed over and counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

Line = dict[str, Any]


@dataclass(slots=True)
class _File:
    """How far one file was read."""

    read_bytes: int = 0
    rest: bytes = b""  # a line that was not whole yet
    next_n: dict[str, int] = field(default_factory=dict)  # incarnation -> the next counter


class History:
    """All events below a log directory so far. Call `refresh()`, then look.

    It keeps counts only; who needs the lines takes what `refresh()` returns.
    """

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        # How often each event was seen. Invariant: the sum of `by_process` over all pids.
        self.events: Counter[str] = Counter()
        # The same for each pid. A pid may be used again: who counts takes a copy at its start.
        self.by_process: dict[int, Counter[str]] = {}
        # Lines that a kill cut in two, and numbers that are missing between two whole lines.
        self.torn = 0
        self.holes = 0
        self._files: dict[str, _File] = {}
        self._followers: list[Callable[[Line], None]] = []

    def follow(self, take: Callable[[Line], None]) -> None:
        """Have `take` called with every line from now on, also of a `refresh` elsewhere."""
        self._followers.append(take)

    def refresh(self) -> list[Line]:
        """Read what is new and return it: in order within a process, processes by file name."""
        found: list[Line] = []
        with os.scandir(self.log_dir) as entries:
            grown = [
                (entry.path, file)
                for entry in entries
                if entry.name.endswith(".jsonl")
                and entry.stat().st_size
                > (file := self._files.setdefault(entry.path, _File())).read_bytes
            ]
        for path, file in sorted(grown, key=itemgetter(0)):
            found += self._read(path, file)
        return found

    def of(self, pid: int) -> Counter[str]:
        """Return the events of the process `pid` so far; a copy."""
        return Counter(self.by_process.get(pid, ()))

    def _read(self, path: str, file: _File) -> list[Line]:
        with open(path, "rb") as stream:
            stream.seek(file.read_bytes)
            data = stream.read()
        file.read_bytes += len(data)
        *whole, file.rest = (file.rest + data).split(b"\n")
        found = []
        for text in whole:
            if not text:
                continue
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                self.torn += 1
                continue
            self._count(line, file)
            found.append(line)
        return found

    def _count(self, line: Line, file: _File) -> None:
        incarnation, n = line["incarnation"], line["n"]
        self.holes += n - file.next_n.get(incarnation, n)
        file.next_n[incarnation] = n + 1
        self.events[line["event"]] += 1
        counts = self.by_process.setdefault(line["pid"], Counter())
        counts[line["event"]] += 1
        for take in self._followers:
            take(line)
