"""What a fault is: something that strikes a simulated world now and then."""

from __future__ import annotations

import random
from typing import ClassVar

from ...limits import Limits
from ..processes.population import Population


class Fault:
    """One kind of fault in one world."""

    #: That of its kind (kinds.py).
    name: ClassVar[str] = ""

    def __init__(self, people: Population, mean_ms: float) -> None:
        """`mean_ms`: about how often the fault strikes."""
        self.people = people
        self.world = people.world
        self.rng = random.Random(f"{self.world.plan.seed} fault {self.name}")
        self._mean_ms = mean_ms

    def tightened(self, limits: Limits) -> Limits:
        return limits

    def arm(self) -> None:
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
        self.world.trace.add("world", f"fault.{self.name}")

    def heal(self) -> None:
        """The safety phase is over: mend what would last."""
