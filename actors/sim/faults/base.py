"""What a fault is, and the table of all of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ...limits import Limits

if TYPE_CHECKING:
    from ..world import World

FAULTS: dict[str, type[Fault]] = {}


class Fault:
    """One kind of fault in one world."""

    #: What it is called in plans, reports and traces.
    name: ClassVar[str] = ""
    #: Odds that a seed has it at all, and the bounds of its mean time between strikes.
    odds: ClassVar[float] = 0.5
    mean_ms: ClassVar[tuple[int, int]] = (1_000, 10_000)
    #: Whether it happens to databases, or to who uses one: a plan without any does not have it.
    of_tables: ClassVar[bool] = False
    #: The same of an outbox and its relays.
    of_outbox: ClassVar[bool] = False

    def __init__(self, world: World, mean_ms: float) -> None:
        """Strike about every `mean_ms` milliseconds."""
        self.world = world
        self.rng = random.Random(f"{world.plan.seed} fault {self.name}")
        self._mean_ms = mean_ms

    def tightened(self, limits: Limits) -> Limits:
        """Return what the processes get instead of `limits`."""
        return limits

    def arm(self) -> None:
        """Begin: the safety phase starts."""
        self.world.after(int(self.rng.expovariate(1 / self._mean_ms)), self._strike)

    def _strike(self) -> None:
        if self.world.healing:
            return
        if self.strike():
            self.fired()
        self.arm()

    def strike(self) -> bool:
        """Let it happen once; return whether it has happened now.

        What is only prepared here (a crash inside some later call) calls `fired` when it comes.
        """
        raise AssertionError(f"{self.name} does not strike")

    def fired(self) -> None:
        """Count it."""
        self.world.trace.add("world", f"fault.{self.name}")

    def heal(self) -> None:
        """The safety phase is over: mend what would last."""


Kind = TypeVar("Kind", bound=type[Fault])


def fault(kind: Kind) -> Kind:
    """Put a kind of fault into the table."""
    assert kind.name not in FAULTS, f"two faults are called {kind.name}"
    FAULTS[kind.name] = kind
    return kind
