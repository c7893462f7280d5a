"""Seeded bugs and who catches them: `python -m tests.sim.mutants`."""

from tests.sim.mutants import (
    backups,
    broker,
    clients,
    consumer_shell,
    disk,
    effects,
    groups,
    history,
    horizons,
    keyed,
    outbox,
    poison,
    processed,
    shells,
    sinks,
    turn,
)
from tests.sim.mutants.table import MUTANTS, Mutant, applied

__all__ = [
    "MUTANTS",
    "Mutant",
    "applied",
    "backups",
    "broker",
    "clients",
    "consumer_shell",
    "disk",
    "effects",
    "groups",
    "history",
    "horizons",
    "keyed",
    "outbox",
    "poison",
    "processed",
    "shells",
    "sinks",
    "turn",
]
