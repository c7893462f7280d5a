"""Mutants of the relay: what leaves an outbox, and when."""

from __future__ import annotations

from typing import Any

from oncemq.cli.sim_relay import SimulatedOutbox
from oncemq.library.outbox.relay import Relay
from tests.sim.mutants.table import mutant

TROUBLE = ("outbox away", "relay stuck", "drop")


def _all_acked(original: Any) -> Any:
    def broken(self: Relay, current: Any) -> None:
        original(self, current)
        current.acked = [place for place in current.rows if place not in current.errors]

    return broken


mutant(
    "taken out of the outbox without a verdict",
    "a row leaves once the broker has it",
    (Relay, "_drain", lambda _original: lambda self, current: self._take(current)),
    (Relay, "_send", _all_acked),
    faults=TROUBLE,
)


def _take(current: Any, places: list[int]) -> None:
    current.acked += places


mutant(
    "a conflict counts as acknowledged",
    "what is refused for good is marked",
    (
        Relay,
        "_note",
        lambda _original: lambda _self, current, _settled, places: _take(current, places),
    ),
    faults=TROUBLE,
)


def _only_above_the_last(original: Any) -> Any:
    def broken(self: SimulatedOutbox) -> Any:
        rows = [row for row in original(self) if row.place > getattr(self, "last", 0)]
        self.last = max((row.place for row in rows), default=getattr(self, "last", 0))
        return rows

    return broken


mutant(
    "the relay remembers how far it is",
    "a transaction that began early may commit late",
    (SimulatedOutbox, "read", _only_above_the_last),
    faults=TROUBLE,
)
