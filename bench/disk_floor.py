"""What the disk alone can do: the floor that no durable queue on this machine gets under."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path


def write_mb_per_s(directory: Path, megabytes: int = 64, chunk: int = 1 << 20) -> float:
    """Return how fast bytes become durable: appended in 1 MiB chunks, fdatasync after each."""
    data = os.urandom(chunk)
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        start = time.perf_counter()
        for _ in range(max(1, megabytes * 1_000_000 // chunk)):
            os.write(descriptor, data)
            os.fdatasync(descriptor)
        seconds = time.perf_counter() - start
        return os.fstat(descriptor).st_size / 1e6 / seconds


def fdatasync_p50_ms(directory: Path, times: int = 50, size: int = 4096) -> float:
    """Return the median of one small append made durable."""
    data = os.urandom(size)
    taken = []
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        for _ in range(times):
            start = time.perf_counter()
            os.write(descriptor, data)
            os.fdatasync(descriptor)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e3


class Floor:
    """What a turn that only wrote its bytes and made them durable would take, meanwhile."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
        self._seconds: list[float] = []

    def write(self, size: int) -> None:
        """Append so many bytes, and sync."""
        data = os.urandom(size)
        start = time.perf_counter()
        os.write(self._descriptor, data)
        os.fdatasync(self._descriptor)
        self._seconds.append(time.perf_counter() - start)

    def figures(self) -> dict[str, float]:
        """Close it; return the median and the longest of its writes."""
        os.close(self._descriptor)
        taken = sorted(self._seconds) or [0.0]
        return {
            "floor_p50_ms": round(statistics.median(taken) * 1e3, 2),
            "floor_longest_ms": round(taken[-1] * 1e3, 2),
        }
