"""Whether a run on a simulated disk was cut short."""

from __future__ import annotations

from collections.abc import Callable

from oncemq.sim.disk.machine import SimulatedCrash


def crashes(run: Callable[[], None]) -> bool:
    """Whether the machine of `run` crashed; else it has run to its end."""
    try:
        run()
    except SimulatedCrash:
        return True
    return False
