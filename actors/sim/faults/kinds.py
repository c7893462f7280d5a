"""The kinds of faults: their names, and how often a plan has them. What each does stands beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind of fault, as a plan knows it."""

    name: str  # in plans, reports and traces
    odds: float = 0.5  # that a seed has it at all
    mean_ms: tuple[int, int] = (1_000, 10_000)  # bounds of the mean time between two strikes
    of_tables: bool = False  # happens to databases of ledgers: a plan without any does not have it
    of_outbox: bool = False  # happens to an outbox and its relays: likewise


_KINDS = (
    FaultKind("tight bounds", odds=0.4),
    FaultKind("clock jump", mean_ms=(2_000, 20_000)),
    FaultKind("kill", odds=0.6, mean_ms=(800, 10_000)),
    FaultKind("power cut", odds=0.6, mean_ms=(2_000, 15_000)),
    FaultKind("database stop", mean_ms=(2_000, 15_000), of_tables=True),
    FaultKind("connection lost", mean_ms=(200, 4_000), of_tables=True),
    FaultKind("rival session", mean_ms=(100, 4_000), of_tables=True),
    FaultKind("database full", odds=0.3, mean_ms=(4_000, 20_000), of_tables=True),
    FaultKind("unsynced commit", of_tables=True),
    FaultKind("stuck at work", odds=0.6, mean_ms=(150, 2_500), of_tables=True),
    FaultKind("fsync error", odds=0.35, mean_ms=(3_000, 20_000)),
    FaultKind("call error", odds=0.35, mean_ms=(3_000, 20_000)),
    FaultKind("disk full", odds=0.35, mean_ms=(4_000, 20_000)),
    FaultKind("effect orders", odds=0.4, mean_ms=(500, 8_000)),
    FaultKind("freeze", mean_ms=(1_500, 15_000)),
    FaultKind("slow opening"),
    FaultKind("replays", mean_ms=(500, 5_000)),
    FaultKind("drop", mean_ms=(1_000, 20_000)),
    FaultKind("duplicate", mean_ms=(1_000, 20_000)),
    FaultKind("reorder", mean_ms=(1_000, 20_000)),
    FaultKind("delay"),
    FaultKind("partition", mean_ms=(2_000, 20_000)),
    FaultKind("stale connection", mean_ms=(2_000, 20_000)),
    FaultKind("takeover", mean_ms=(3_000, 20_000)),
    FaultKind("clean stop", mean_ms=(2_000, 20_000)),
    FaultKind("address taken", odds=0.3, mean_ms=(3_000, 20_000)),
    FaultKind("wrong directory", odds=0.3, mean_ms=(4_000, 20_000)),
    FaultKind("copied ledger", odds=0.2, mean_ms=(5_000, 20_000)),
    FaultKind("backup", odds=0.5, mean_ms=(3_000, 15_000)),
    FaultKind("horizons", odds=0.4, mean_ms=(1_500, 8_000)),
    FaultKind("retirement", odds=0.4, mean_ms=(1_000, 10_000)),
    FaultKind("seek", odds=0.4, mean_ms=(2_000, 15_000)),
    FaultKind("outbox away", odds=0.6, mean_ms=(300, 4_000), of_outbox=True),
    FaultKind("relay stuck", odds=0.6, mean_ms=(200, 3_000), of_outbox=True),
)

FAULT_KINDS: dict[str, FaultKind] = {kind.name: kind for kind in _KINDS}
