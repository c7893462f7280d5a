"""Disks that fail or are full."""

from __future__ import annotations

import errno
from typing import ClassVar

from ..disk.machine import Fault as Planned
from ..environment import Host
from ..processes.population import Population
from .base import Fault


class _Error(Fault):
    """A call fails once with an input/output error."""

    kinds: ClassVar[tuple[str, ...]] = ()
    calls_max: ClassVar[int] = 12

    def __init__(self, people: Population, mean_ms: float) -> None:
        super().__init__(people, mean_ms)
        self._planned: list[Planned] = []

    def strike(self) -> bool:
        """The fault counts once a call has failed."""
        host = self.rng.choice(self.world.hosts)
        kind = self.rng.choice(self.kinds)
        nth = self.rng.randint(1, self.calls_max)
        self._planned.append(host.disk.inject(kind, errno.EIO, nth=nth))
        self.world.io_faults += 1
        return False

    def heal(self) -> None:
        for planned in self._planned:
            if planned.met >= planned.nth:
                self.fired()


class SyncError(_Error):
    """An fsync fails once: what it covered is in the page cache and never on the disk."""

    name = "fsync error"
    kinds = ("sync", "sync", "sync_directory")


class CallError(_Error):
    """Some other call fails."""

    name = "call error"
    kinds = ("create", "rename", "link", "unlink", "write", "open", "reserve", "read", "list")
    calls_max = 20


class DiskIsFull(Fault):
    """A machine's disk has next to no room for a while."""

    name = "disk full"

    def strike(self) -> bool:
        host = self.rng.choice(self.world.hosts)
        host.disk.capacity = host.disk.used() + self.rng.choice((0, 1_000, 70_000, 200_000))
        self.world.disks_full += 1
        self.world.after(self.rng.choice((500, 3_000, 15_000)), lambda: self._free(host))
        return True

    def heal(self) -> None:
        for host in self.world.hosts:
            self._free(host)

    def _free(self, host: Host) -> None:
        host.disk.capacity = None
