"""Messages that are lost, doubled, overtaken or late; partitions; connections to where nobody is."""

from __future__ import annotations

from typing import ClassVar

from .base import Fault


class _Odds(Fault):
    """A property of the network for stretches of time; what it did is counted by the network."""

    worst: ClassVar[float] = 0.3

    def strike(self) -> bool:
        value = 0.0 if self.rng.random() < 0.3 else self.worst * self.rng.random() ** 2
        setattr(self.world.network.faults, self.name, value)
        return value > 0

    def heal(self) -> None:
        setattr(self.world.network.faults, self.name, 0.0)


class Drop(_Odds):
    """Messages vanish."""

    name = "drop"


class Duplicate(_Odds):
    """Messages come twice."""

    name = "duplicate"
    worst = 0.5


class Reorder(_Odds):
    """Messages overtake others."""

    name = "reorder"
    worst = 0.5


class Delay(Fault):
    """Messages take long."""

    name = "delay"

    def strike(self) -> bool:
        faults = self.world.network.faults
        faults.delay_max_ms = self.rng.choice((5, 50, 500, 4_000))
        faults.delay_min_ms = self.rng.choice((0, 0, faults.delay_max_ms // 2))
        return faults.delay_max_ms > 5

    def heal(self) -> None:
        self.world.network.faults.delay_min_ms = 0
        self.world.network.faults.delay_max_ms = 5


class Partition(Fault):
    """Two endpoints do not hear each other, or one does not hear the other."""

    name = "partition"

    def strike(self) -> bool:
        world = self.world
        clients = self.people.clients()
        if not clients or not world.addresses:
            return False
        client = self.rng.choice(clients)
        ends = [client.endpoint_name(), world.addresses[-1]]
        self.rng.shuffle(ends)
        world.network.partition(*ends, one_way=self.rng.random() < 0.4)
        world.trace.add("world", "partition", {"client": client.name})
        world.after(self.rng.choice((300, 2_000, 15_000)), world.network.heal)
        return True

    def heal(self) -> None:
        self.world.network.heal()


class StaleConnection(Fault):
    """A client that connects anew reaches an address where a broker was before."""

    name = "stale connection"

    def strike(self) -> bool:
        """Let a client's socket be at an old address, or gone without a word."""
        clients = self.people.clients()
        if not clients:
            return False
        client = self.rng.choice(clients)
        addresses = [*self.world.addresses[-3:], b"nobody"]
        assert client.transport is not None, "a client has a socket"
        client.transport.reopen(self.rng.choice(addresses))
        return True
