"""Processes that die and machines that lose power, in the middle of whatever they do."""

from __future__ import annotations

from ..disk.cuts import (
    CutPolicy,
    KeepEverything,
    LoseEverything,
    OnlyData,
    OnlyNames,
    Prefix,
    Seeded,
)
from ..disk.disk import SimulatedCrash, TornWrite
from ..processes.role import SimRole
from .base import Fault

CALLS_MAX = 60


class _Crash(Fault):
    """Arranges that a process dies inside one of its next calls to the disk, or right now."""

    def strike(self) -> bool:
        role = self._choose()
        if role is None:
            return False
        if self.rng.random() < 0.25:
            return self._now(role)
        role.interrupt(
            1 + int(self.rng.random() ** 2 * CALLS_MAX), lambda kind, _: self._inside(role, kind)
        )
        return False

    def _choose(self) -> SimRole | None:
        living = [role for role in self.people.roles if role.alive]
        weights = [4 if role.name.startswith("broker") else 1 for role in living]
        return self.rng.choices(living, weights)[0] if living else None

    def _now(self, role: SimRole) -> bool:
        raise AssertionError(f"{self.name}: {role.name}")

    def _inside(self, role: SimRole, kind: str) -> None:
        """The process has reached the call: it does nothing after it."""
        assert role.process is not None
        role.process.dead = True
        self.fired()
        self._prepare(role)
        if kind == "write" and self.rng.random() < 0.5:
            self.world.trace.add(role.name, "torn write")
            raise TornWrite(self.rng.random())
        raise SimulatedCrash(f"{self.name} in {kind}")

    def _prepare(self, role: SimRole) -> None:
        """Say what the end of the process will mean."""


class Kill(_Crash):
    """kill -9: locks are free, the page cache stays."""

    name = "kill"

    def _now(self, role: SimRole) -> bool:
        self.world.kill(role)
        return True


class PowerCut(_Crash):
    """The whole machine stops; any part of what was not synced is on its disk."""

    name = "power cut"

    def _now(self, role: SimRole) -> bool:
        self.world.power_cut(role.host, self.policy(role))
        return True

    def _prepare(self, role: SimRole) -> None:
        self.world.cut_power_at_crash(role, lambda: self.policy(role))

    def policy(self, role: SimRole) -> CutPolicy:
        rng = self.rng
        pending = len(role.host.disk.pending())
        kind = rng.randrange(8)
        simple: tuple[CutPolicy, ...] = (
            LoseEverything(),
            KeepEverything(),
            OnlyNames(),
            OnlyData(),
        )
        if kind < len(simple):
            return simple[kind]
        if kind == len(simple):
            return Prefix(rng.randint(0, pending))
        return Seeded(rng.getrandbits(32))
