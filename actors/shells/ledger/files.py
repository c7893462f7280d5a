"""Ledgers as directories, and the facts of a ledger that a consumer reports before it may write.

A ledger is a fenced log in STATE/<group>/<topic>/<partition>. Names become file names by an
encoding that never maps two names to one, also on file systems that ignore case; the ledger's
first record holds the names as they are.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterable
from typing import Any

from ...codec import records as record_codec
from ...codec import wire
from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.work import LedgerPeeked
from ...errors import CorruptLog
from ...history import NO_PLACE, Place
from ...records import (
    AttemptMarked,
    Committed,
    EffectEnded,
    EffectIntended,
    LedgerEnded,
    LedgerStarted,
)
from ...storage import snapshots
from ...storage.by_position import RecordReader
from ...storage.creation import create, hold_lock, sync_end
from ...storage.disk import Disk, Lock
from ...storage.document import Manifest, Owner
from ...storage.layout import LOCK, generation_name, generations
from ...storage.log import FencedLog
from ...storage.recovery import maker_is_gone, maker_of
from ...storage.view import LOOKS_MAX, View, known_chain, read_latest
from . import orders as effect_orders
from .file_names import file_name

OpenLog = Callable[..., FencedLog]

_OF_AN_OWNER = (Committed, AttemptMarked, EffectIntended, EffectEnded, LedgerEnded)
_SAME_MACHINE = ("host", "boot_id")
IMPORTED = "imported"  # key in the owner of an imported generation, which no process has opened


def ledger_directory(state: str, group: str, topic: str, partition: int) -> str:
    return posixpath.join(state, file_name(group), file_name(topic), str(partition))


def proves_owner_dead(
    disk: Disk, directory: str, lock: Lock, last: Manifest, numbers: list[int], here: Owner
) -> bool:
    """Return whether `lock`, the one of `hold_lock`, proves the owner of the ledger dead.

    `last` is the highest complete generation, `numbers` are all of them, `here` is this process. Proof
    is the lock of the very file that the owner has locked, on this host since its last boot. A copied
    ledger proves nothing, nor one that came with the disk of another machine. After a reboot the
    lease is waited for.
    """
    if IMPORTED in last.owner:
        return False
    path = posixpath.join(directory, generation_name(last.generation), LOCK)
    owner = maker_of(disk, path, lock)
    if owner is None or any(owner.get(key) != here.get(key) for key in _SAME_MACHINE):
        return False
    return all(maker_is_gone(disk, directory, n) for n in numbers if n > last.generation)


class LedgerFiles:
    """The directory of a ledger, before and at its opening. Not thread-safe."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        owner: Owner,
        *,
        draw: Callable[[], bytes],
        open_log: OpenLog = FencedLog.open,
    ) -> None:
        """`draw` gives the 16 random bytes of a new ledger's id; `open_log` is for tests."""
        self._open_log = open_log
        self.session = None  # files have no connection that handlers could write to
        self.directory = directory
        self._disk = disk
        self._owner = owner
        self._draw = draw
        self._lock: Lock | None = None
        # The last look at the ledger. Invariant: facts hold all records below `_read_to` of `_view`.
        self._view: View | None = None
        self._read_to = 0
        self._facts = LedgerFacts()

    def peek(self) -> LedgerPeeked:
        """Return the facts of the ledger; create it if there is none, change nothing else.

        Takes the lock of the last owner if that owner is dead, and holds it until `open` or
        `release`. Raises CorruptLog, LogInUse while another process creates the ledger, OSError.
        """
        if self._view is None:
            create(self._disk, self.directory, log_id=self._draw(), owner=self._owner)
        self.release()
        self._lock = hold_lock(self._disk, self.directory)
        view = self._read()
        numbers = generations(self._disk, self.directory)
        return LedgerPeeked(
            view.manifest.log_id,
            self._facts.topic_id,
            self._facts.log_id,
            self._facts.next_offset,
            max(numbers),
            self._lock is not None
            and proves_owner_dead(
                self._disk, self.directory, self._lock, view.manifest, numbers, self._owner
            ),
            str(self._owner.get("host", "")),
            os.path.abspath(self.directory),
            self._facts.seen,
        )

    def open(self, epoch: int) -> FencedLog:
        """Open generation `epoch` for writing.

        Raises Fenced, CorruptLog, OSError, and DiskFull: then try again later.
        """
        log = self._open_log(self._disk, self.directory, generation=epoch, owner=self._owner)
        self.release()
        return log

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def close(self) -> None:
        """Release the lock. The opened log has its own `close`."""
        self.release()

    def find_orders(self, effect_ids: Iterable[str]) -> list[EffectOrder]:
        return effect_orders.find_orders(self._disk, self.directory, effect_ids)

    def keep_orders(self, effect_ids: Iterable[str]) -> None:
        effect_orders.keep_orders(self._disk, self.directory, effect_ids)

    def _read(self) -> View:
        for _ in range(LOOKS_MAX):
            view = read_latest(self._disk, self.directory, self._view)
            assert view is not None, "a ledger that was made stays"
            sync_end(self._disk, view)
            try:
                self._read_facts(view)
            except FileNotFoundError:
                self._view = None  # the owner or a successor deleted files meanwhile: look again
                continue
            return view
        raise CorruptLog(self.directory, 0, "generations come and go without end")

    def _read_facts(self, view: View) -> None:
        """Read on where the last look ended.

        Reads from the start in another generation, and where the end went back: the owner's sync
        failed and it cut its last group off.
        """
        known = self._view
        same = known is not None and known.path == view.path
        if not same or not view.start <= self._read_to <= view.end:
            self._facts, self._read_to = self._from_snapshot(view)
        with contextlib.closing(
            RecordReader(self._disk, view.path, view.firsts, view.place.seed)
        ) as reader:
            trusted_from = view.firsts[-1] if view.firsts else 0
            chain = known_chain(self._disk, view, self._read_to)
            for stored in reader.replay(self._read_to, view.end, trusted_from, chain):
                record = record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)
                self._facts.take(record)
        self._view, self._read_to = view, view.end

    def _from_snapshot(self, view: View) -> tuple[LedgerFacts, int]:
        for info in snapshots.usable(self._disk, view)[0]:
            for part in info.parts:
                if part.name == "ledger":
                    data = snapshots.read_part(self._disk, view.path, part)
                    return LedgerFacts.of_snapshot(wire.unpack_plain(data)), info.position
        return LedgerFacts(), view.start


class LedgerFacts:
    """What a join reports about the records of a ledger, and a backup looks at."""

    def __init__(self) -> None:
        self.key = ("", "", 0)  # group, topic, partition
        self.topic_id = b""
        self.log_id = b""
        self.next_offset = 0
        self.epoch = 0  # of the last record that has one
        self.seen = NO_PLACE

    @classmethod
    def of_snapshot(cls, part: dict[str, Any]) -> LedgerFacts:
        facts = cls()
        if part["started"] is not None:
            facts.take(LedgerStarted(*part["started"]))
        facts.next_offset = part["next_offset"]
        facts.epoch = part["epoch"]
        facts.seen = Place(*part.get("seen", ()))
        return facts

    def take(self, record: object) -> None:
        if isinstance(record, LedgerStarted):
            self.key = (record.group, record.topic, record.partition)
            self.topic_id, self.log_id = record.topic_id, record.log_id
            self.next_offset = record.start_offset
        elif isinstance(record, _OF_AN_OWNER):
            self.epoch = record.epoch
        if isinstance(record, Committed):
            if record.seen.mark:
                self.seen = record.seen
            for topic_id, next_offset in record.inputs:
                if topic_id == self.topic_id:  # not that of the group's private topic
                    self.next_offset = next_offset
