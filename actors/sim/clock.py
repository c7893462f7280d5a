"""Time that moves only when it is told to."""

from __future__ import annotations

START_WALL_MS = 1_700_000_000_000


class SimClock:
    """A clock for one simulated world.

    `now_ms` never decreases and no jump moves it, like the clock of the runtime; `wall_ms` is what
    the machine believes the date to be and may jump in either direction.
    """

    def __init__(self, start_ms: int = START_WALL_MS) -> None:
        self._now_ms = start_ms
        self._skew_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def wall_ms(self) -> int:
        return self._now_ms + self._skew_ms

    def advance(self, milliseconds: int) -> None:
        """Let time pass. Time does not go backwards: see `jump`."""
        if milliseconds < 0:
            raise ValueError(f"time cannot pass by {milliseconds} ms")
        self._now_ms += milliseconds

    def advance_to(self, now_ms: int) -> None:
        self._now_ms = max(self._now_ms, now_ms)

    def jump(self, milliseconds: int) -> None:
        """Set the wall clock forward or (negative) back; steady time goes on as it was."""
        self._skew_ms += milliseconds
