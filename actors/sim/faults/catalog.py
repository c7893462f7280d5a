"""What strikes for each kind of fault, by its name."""

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
from .base import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        bounds.TightBounds,
        clock.ClockJump,
        crash.Kill,
        crash.PowerCut,
        database.DatabaseStop,
        database.ConnectionLost,
        database.RivalSession,
        database.DatabaseFull,
        database.UnsyncedCommit,
        database.StuckAtWork,
        disk.SyncError,
        disk.CallError,
        disk.DiskIsFull,
        effects.EffectOrders,
        freeze.Freeze,
        freeze.SlowOpening,
        letters.Replays,
        network.Drop,
        network.Duplicate,
        network.Reorder,
        network.Delay,
        network.Partition,
        network.StaleConnection,
        operators.Takeover,
        operators.Stop,
        operators.AddressTaken,
        operators.WrongDirectory,
        operators.CopiedLedger,
        operators.BackUp,
        operators.Horizons,
        operators.Retirement,
        operators.Seek,
        relay.OutboxAway,
        relay.RelayStuck,
    )
}
