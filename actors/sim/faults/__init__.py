"""Faults of a simulated world. A new fault is a new file, imported here.

Each kind is a `Fault` in `FAULTS`; a plan switches it on or off and says how often it strikes. The
world counts how often each one struck: a run that injected nothing proves nothing.
"""

from __future__ import annotations

from . import (
    bounds,
    clock,
    crash,
    database,
    disk,
    effects,
    freeze,
    letters,
    network,
    operators,
    relay,
)
from .base import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "bounds",
    "clock",
    "crash",
    "database",
    "disk",
    "effects",
    "freeze",
    "letters",
    "network",
    "operators",
    "relay",
]
