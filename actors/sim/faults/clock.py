"""Clocks that are set forward or back."""

from __future__ import annotations

from .base import Fault

DAY_MS = 86_400_000


class ClockJump(Fault):
    """The date of all machines jumps: processes that start from now on believe it."""

    name = "clock jump"

    def strike(self) -> bool:
        reach = self.rng.choice((3_000, 60_000, 2 * DAY_MS))
        self.world.clock.jump(self.rng.randint(-reach, reach))
        return True
