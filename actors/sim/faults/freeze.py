"""Processes that stand still, long enough to be replaced, and go on as if nothing had been."""

from __future__ import annotations

from ..environment import Role
from .base import Fault

CALLS_MAX = 40


class Freeze(Fault):
    """A process stops inside a call to the disk, or between turns, and goes on later."""

    name = "freeze"

    def strike(self) -> bool:
        """Pauses are often longer than a lease."""
        living = [role for role in self.people.roles if role.alive]
        if not living:
            return False
        weights = [4 if role.name.startswith("broker") else 1 for role in living]
        role = self.rng.choices(living, weights)[0]
        pause_ms = self.rng.choice((200, 3_000, 12_000, 20_000))
        if self.rng.random() < 0.3:
            role.frozen_until_ms = self.world.clock.now_ms() + pause_ms
            self.world.trace.add(role.name, "frozen", {"ms": pause_ms})
            return True
        calls = 1 + int(self.rng.random() * CALLS_MAX)
        role.interrupt(calls, lambda kind, _: self._inside(role, kind, pause_ms))
        return False

    def _inside(self, role: Role, kind: str, pause_ms: int) -> None:
        if self.world.may_nest():
            self.fired()
            self.world.freeze_inside(role, kind, pause_ms)


class SlowOpening(Fault):
    """A process that opens a log stands still on the way, while the last owner goes on writing."""

    name = "slow opening"

    def strike(self) -> bool:
        self.world.next_opening = self._slow
        return False

    def _slow(self, role: Role) -> None:
        pause_ms = self.rng.choice((100, 1_500, 6_000))
        calls = 1 + int(self.rng.random() * CALLS_MAX)
        role.interrupt(calls, lambda kind, _: self._inside(role, kind, pause_ms))

    def _inside(self, role: Role, kind: str, pause_ms: int) -> None:
        if self.world.may_nest():
            self.fired()
            self.world.freeze_inside(role, kind, pause_ms)

    def heal(self) -> None:
        self.world.next_opening = None
