"""Mutants of the turn: what leaves when, and what is looked at before."""

from __future__ import annotations

import errno
from typing import Any

from oncemq.core.broker import produce
from oncemq.core.broker.lookup import Lookup
from oncemq.core.broker.membership import Membership
from oncemq.core.client import send_window
from oncemq.driver import Driver
from oncemq.errors import Fenced
from oncemq.protocol import DUPLICATE
from oncemq.storage import log as log_module
from oncemq.storage.writing import SegmentWriter
from tests.sim.mutants.table import mutant, nothing


def _now(select: Any) -> Any:
    """Make a function of (..., out) send what it decides at once where `select` says so."""

    def change(original: Any) -> Any:
        def broken(self: Any, *arguments: Any, **options: Any) -> Any:
            out = next(a for a in arguments if hasattr(a, "sends_after_sync"))
            before = len(out.sends_after_sync)
            result = original(self, *arguments, **options)
            hurried = [s for s in out.sends_after_sync[before:] if select(s.message)]
            out.sends_after_sync[before:] = [
                s for s in out.sends_after_sync[before:] if not select(s.message)
            ]
            out.sends += hurried
            return result

        return broken

    return change


def _duplicates(message: Any) -> bool:
    runs = getattr(message, "runs", ())
    return any(verdict == DUPLICATE for _, verdict, _ in runs)


def _all_at_once(original: Any) -> Any:
    def broken(self: Any, event: Any, now: int) -> None:
        original(self, event, now)
        for send in self._held.sends_after_sync:
            self._send(send)
        self._held.sends_after_sync.clear()

    return broken


mutant(
    "promises before the sync",
    "what a peer relies on leaves after the fsync",
    (Driver, "_step", _all_at_once),
)
mutant(
    "duplicate acked before its original is synced",
    "an answer that reads state waits for the sync",
    (produce.Judge, "_judge_explicit", _now(_duplicates)),
    (Lookup, "answer", _now(_duplicates)),
)
mutant(
    "grant before its record is synced",
    "a grant is durable before the taker opens the ledger",
    (Membership, "_granted", _now(lambda _message: True)),
)
mutant(
    "output sent before commit",
    "outputs leave after the commit's fsync",
    (send_window.SendWindow, "_send", _now(lambda _message: True)),
)
mutant(
    "no look at the fence",
    "a writer looks for a higher generation after every sync",
    (log_module.FencedLog, "check_fence", nothing),
)


def _no_look_after_sync(original: Any) -> Any:
    def broken(self: Any) -> int:
        try:
            return int(original(self))
        except Fenced:
            self._failure = None
            return int(self._view.end)

    return broken


mutant(
    "fenced sync still answers",
    "a fenced writer acts on nothing",
    (log_module.FencedLog, "sync", _no_look_after_sync),
)


def _retry(original: Any) -> Any:
    def broken(self: Any) -> None:
        sync = self._file.sync

        class Stubborn:
            def __getattr__(_, name: str) -> Any:  # noqa: N805
                return getattr(self_file, name)

            def sync(_) -> None:  # noqa: N805
                try:
                    sync()
                except OSError:
                    sync()

        self_file, self._file = self._file, Stubborn()
        try:
            original(self)
        finally:
            self._file = self_file

    return broken


mutant("fsync retried", "an fsync that failed is final", (SegmentWriter, "commit", _retry))


def _carry_on_when_full(original: Any) -> Any:
    def broken(self: Any) -> int:
        try:
            return int(original(self))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._failure = None
            self._writer.end = self._writer._written_end = self._view.end
            self._writer._chain = self._view.chain
            return int(self._view.end)

    return broken


mutant(
    "disk full undone after apply",
    "a full disk is decided before anything is judged",
    (log_module.FencedLog, "reserve", nothing),
    (log_module.FencedLog, "sync", _carry_on_when_full),
)


def _early_snapshot(original: Any) -> Any:
    def broken(self: Any, record: Any) -> None:
        original(self, record)
        if self._snapshot_every is None or self._log.durable_end == 0:
            return
        if self._log.end - self._snapshot_at >= self._snapshot_every:
            from oncemq.codec import wire

            snapshot = self.core.snapshot()
            parts = {name: wire.pack_plain(part) for name, part in snapshot.whole().items()}
            self._snapshot_at = self._log.durable_end
            writer = self._log.snapshot_writer(self._snapshot_at, snapshot.keep)
            writer.write(parts)
            writer.finish()

    return broken


mutant(
    "snapshot ahead of the log",
    "a snapshot holds what lies below its position and nothing else",
    (Driver, "_append", _early_snapshot),
)


def _never_rests(_original: Any) -> Any:
    def broken(self: Any, log: Any, now: int) -> None:
        if log.attested < log.durable_end:
            log.attest()

    return broken


mutant(
    "a reader's turn never looks at the fence",
    "a writer looks at the fence once a second, also when it only serves reads",
    (Driver, "_rest", _never_rests),
    faults=("takeover", "freeze"),
)
