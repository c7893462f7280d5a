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
from ..processes.shell import Shell
from .base import Fault

CALLS_MAX = 60


class _Crash(Fault):
    """Arranges that a process dies inside one of its next calls to the disk, or right now."""

    def strike(self) -> bool:
        shell = self._choose()
        if shell is None:
            return False
        if self.rng.random() < 0.25:
            return self._now(shell)
        shell.interrupt(
            1 + int(self.rng.random() ** 2 * CALLS_MAX), lambda kind, _: self._inside(shell, kind)
        )
        return False

    def _choose(self) -> Shell | None:
        living = [shell for shell in self.people.shells if shell.alive]
        weights = [4 if shell.name.startswith("broker") else 1 for shell in living]
        return self.rng.choices(living, weights)[0] if living else None

    def _now(self, shell: Shell) -> bool:
        raise AssertionError(f"{self.name}: {shell.name}")

    def _inside(self, shell: Shell, kind: str) -> None:
        """The process has reached the call: it does nothing after it."""
        assert shell.process is not None
        shell.process.dead = True
        self.fired()
        self._prepare(shell)
        if kind == "write" and self.rng.random() < 0.5:
            self.world.trace.add(shell.name, "torn write")
            raise TornWrite(self.rng.random())
        raise SimulatedCrash(f"{self.name} in {kind}")

    def _prepare(self, shell: Shell) -> None:
        """Say what the end of the process will mean."""


class Kill(_Crash):
    """kill -9: locks are free, the page cache stays."""

    name = "kill"

    def _now(self, shell: Shell) -> bool:
        self.world.kill(shell)
        return True


class PowerCut(_Crash):
    """The whole machine stops; any part of what was not synced is on its disk."""

    name = "power cut"

    def _now(self, shell: Shell) -> bool:
        self.world.power_cut(shell.host, self.policy(shell))
        return True

    def _prepare(self, shell: Shell) -> None:
        self.world.cut_power_at_crash(shell, lambda: self.policy(shell))

    def policy(self, shell: Shell) -> CutPolicy:
        rng = self.rng
        pending = len(shell.host.disk.pending())
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
