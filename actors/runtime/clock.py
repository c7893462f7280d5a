"""The clock of a process: wall time at the start, monotonic time from there on.

Leases, retries and time stamps must not jump when the machine's clock is set, so it is read once.
The clocks of two processes may differ: no decision about messages compares times of two machines.
"""

from __future__ import annotations

import time


class SystemClock:
    """Milliseconds since 1970 as this process knows them."""

    def __init__(self) -> None:
        """Read the wall clock, for the first and last time."""
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self._latest_ms = 0

    def now_ms(self) -> int:
        """Return milliseconds since 1970: never decreasing, unmoved by jumps of the system clock."""
        now = (time.monotonic_ns() + self._offset_ns) // 1_000_000
        self._latest_ms = max(self._latest_ms, now)
        return self._latest_ms
