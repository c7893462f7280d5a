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
