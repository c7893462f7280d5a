"""A ledger's records in tables, behind the `Log` door that the driver uses.

A position counts bytes as in a log of files, so that snapshots come as often; positions follow
each other without holes. `append` only collects; `sync` writes the group into the transaction
that the handlers left open, moves the ledger's row on if the epoch is still ours, and commits.
There is no other copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol
from zlib import crc32

from ...codec import records as record_codec
from ...core.consumer.open_effects import AGAIN, ANSWERED
from ...errors import CorruptLog, Fenced, OnceMQError, SinkUnavailable, StorageError
from ...ids import effect_id, private_topic
from ...records import Committed, EffectEnded, EffectIntended, LedgerStarted
from ...storage.document import Part, SnapshotInfo
from ...storage.log import Mapped, StoredRecord, TailCut
from . import statements
from .parts import Changes, PagedPartWriter
from .records import RecordTables, Row, crc_of, length_of
from .session import CallId, Session

At = Callable[[str], None]

_ORDERED = frozenset({ANSWERED, AGAIN})  # how operators, and no call, end an effect


def nowhere(_step: str) -> None:
    """Nothing happens between the steps of a commit."""


class _Closes(Protocol):
    def close(self) -> None: ...


class _SnapshotWriter:
    """A snapshot that was begun."""

    def __init__(self, log: SqlLog, position: int, keep: Collection[str]) -> None:
        self._log = log
        self._position = position
        self._keep = keep
        self._info: SnapshotInfo | None = None

    def write(self, parts: Mapping[str, bytes]) -> None:
        self._info = self._log.write_snapshot(self._position, parts, self._keep)

    def finish(self) -> SnapshotInfo | None:
        return self._info


class SqlLog:
    """A ledger open for writing under one epoch. Belongs to the I/O thread.

    Invariant: what lies below `durable_end` is committed; there is one group above it at most.
    """

    def __init__(
        self,
        session: Session,
        place: tuple[str, str, int],
        row: Row,
        *,
        proof: _Closes,
        at: At = nowhere,
        row_bytes: int = statements.ROW_BYTES,
    ) -> None:
        """For SqlLedger.open, which has just claimed `row`."""
        self.log_id = self.lineage = row.ledger_id
        self.generation = row.epoch
        self.cut_report: TailCut | None = None
        self.snapshot_damage: list[CorruptLog] = []
        self._session = session
        self._place = place
        self._proof = proof
        self._at = at
        self._end = self._durable = row.position
        self._commit_no = row.commit_no
        self._snapshot_position = row.snapshot_position
        self._topic_id, self._seen_log_id = row.topic_id, row.log_id
        self._inputs = dict(row.inputs)
        self._seen = row.seen
        where = f"{session.shown} group {place[0]} {place[1]}/{place[2]}"
        self._tables = RecordTables(session.rows, row.ledger_id, where)
        self._row_bytes = row_bytes
        # Parts that are read by rows: those in the making, and those that no snapshot needs.
        self._unfinished: set[str] = set()
        self.spent_parts: set[str] = set()
        self._pending: list[tuple[int, int, bytes, bytes]] = []
        self._facts = _Facts(self)  # what the pending records change
        self._failure: OnceMQError | None = None

    # --- where things stand ----------------------------------------------------------------------

    @property
    def end(self) -> int:
        return self._end

    @property
    def durable_end(self) -> int:
        return self._durable

    @property
    def attested(self) -> int:
        """All that is committed: the database vouches for it."""
        return self._durable

    # --- one turn --------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> None:
        """Nothing: a full disk of the database is met while writing, and rolls back."""
        del nbytes
        self._check_usable()

    def append(
        self, kind: int, meta: bytes, body: bytes | memoryview, body_crc: int | None = None, /
    ) -> int:
        """Return the record's position; the record is durable with the group of this turn."""
        del body_crc
        self._check_usable()
        position = self._end
        self._pending.append((position, kind, bytes(meta), bytes(body)))
        self._facts.take(record_codec.decode(kind, meta, body, crc32(body)))
        self._end += length_of(meta, body)
        return position

    def must_wait(self) -> bool:
        """Whether a handler, of this or another partition, has the connection or the file."""
        return self._session.must_wait(self._facts.call)

    def sync(self) -> int:
        """Commit the group together with what its handlers wrote; return the durable end.

        Raises Fenced, SinkUnavailable: both end this log, and the next owner reads what became of
        the transaction.
        """
        self._check_usable()
        if not self._pending:
            return self._durable
        try:
            self._commit()
        except OnceMQError as error:
            self._failure = error
            raise
        return self._durable

    def _commit(self) -> None:
        session, facts = self._session, self._facts
        at = self._at if facts.commits else nowhere
        try:
            session.join(facts.call)
            at("begun")
            values = (
                facts.commit_no,
                self._end,
                facts.topic_id,
                facts.log_id,
                json.dumps(facts.inputs),
                json.dumps([facts.seen.mark.hex(), facts.seen.position]) if facts.seen.mark else "",
                *self._place,
                self.generation,
                self._commit_no,
                self._durable,
            )
            if session.change(statements.ADVANCE, values) != 1:
                raise self._superseded()
            at("advanced")
            for position, kind, meta, body in self._pending:
                crc = crc_of(kind, meta, body)
                row = (self.log_id, position, self.generation, kind, meta, body, crc)
                session.change(statements.ADD_RECORD, row)
            for order in facts.orders:
                session.change(statements.FORGET_ORDER, (self.log_id, order))
            at("recorded")
        except BaseException:
            session.give_up()
            raise
        session.commit()
        at("committed")
        self._pending.clear()
        self._durable = self._end
        self._commit_no = facts.commit_no
        self._topic_id, self._seen_log_id = facts.topic_id, facts.log_id
        self._inputs = facts.inputs
        self._seen = facts.seen
        self._facts = _Facts(self)

    def attest(self) -> None:
        """Nothing: a COMMIT that returned is vouched for by the database."""

    def check_fence(self) -> None:
        """Raise Fenced if the row has a higher epoch, StorageError if the database is not in place.

        Nothing is asked while a handler has the connection: its commit will ask.
        """
        self._check_usable()
        if not self._session.idle:
            return
        try:
            self._session.check_in_place()
            found = self._session.rows(statements.LOOK, self._place)
        except (SinkUnavailable, StorageError) as error:
            self._failure = error
            raise
        if not found or found[0][2] != self.generation:
            self._failure = self._superseded(found)
            raise self._failure

    def _superseded(self, found: list[tuple[Any, ...]] | None = None) -> Fenced:
        rows = self._session.rows(statements.LOOK, self._place) if found is None else found
        if not rows:
            return Fenced(f"{self._session.shown} no longer holds the ledger")
        return Fenced(
            f"the ledger in {self._session.shown} is at epoch {rows[0][2]}, commit {rows[0][3]}; "
            f"this consumer has epoch {self.generation} and made commit {self._commit_no}"
        )

    # --- reading ---------------------------------------------------------------------------------

    def read(self, position: int, max_bytes: int) -> list[StoredRecord]:
        """Return records from a boundary on, at least one if there is one."""
        found: list[StoredRecord] = []
        for record in self.replay(position):
            if found and record.end - position > max_bytes:
                break
            found.append(record)
        return found

    def replay(self, position: int) -> Iterator[StoredRecord]:
        """Raises CorruptLog."""
        self._check_usable()
        return self._tables.replay(position, self._durable)

    # --- snapshots -------------------------------------------------------------------------------

    def snapshots(self) -> list[SnapshotInfo]:
        """Return the snapshot, if one was made: there is never more than one."""
        self._check_usable()
        if not self._snapshot_position:
            return []
        parts = [Part(name, "", 0, 0) for name in self._tables.parts()]
        return [SnapshotInfo(self.log_id, self.generation, self._snapshot_position, 0, parts)]

    def pass_over(self, info: SnapshotInfo) -> None:
        """There is no older one, and the records below it are gone: the opening fails."""

    def read_snapshot(self, info: SnapshotInfo) -> dict[str, bytes | Mapped]:
        """Raises CorruptLog."""
        del info  # there is one
        return self._tables.parts_by_name()

    @property
    def start(self) -> int:
        """Records below a snapshot are deleted with it."""
        return self._snapshot_position

    def snapshot_writer(self, position: int, keep: Collection[str] = ()) -> _SnapshotWriter:
        """The session belongs to one thread, so both steps are done in the turn."""
        return _SnapshotWriter(self, position, keep)

    def write_snapshot(
        self, position: int, parts: Mapping[str, bytes], keep: Collection[str] = ()
    ) -> SnapshotInfo:
        """Put a snapshot in the place of the last one, and delete the records below it.

        One transaction: there is the old snapshot with all its records, or the new one. Raises
        what `sync` raises.
        """
        self._check_usable()
        assert position == self._durable == self._end, "a snapshot is made between two groups"
        session = self._session
        known = set(self._tables.parts())
        paged = {name for name in known if name.endswith(statements.PAGED)}
        kept = {name + statements.PAGED for name in keep}
        if not kept <= paged:
            raise ValueError(f"the snapshot has no part named {sorted(kept - paged)}")
        try:
            session.join(None)
            values = (position, *self._place, self.generation, position)
            if session.change(statements.PLACE_SNAPSHOT, values) != 1:
                raise self._superseded()
            for name in sorted(known - paged):
                session.change(statements.FORGET_PART, (self.log_id, name))
            for name, data in parts.items():
                self._add_part(name, data)
            session.change(statements.FORGET_RECORDS, (self.log_id, position))
            self._at("snapshot")
            session.commit()
        except OnceMQError as error:
            session.give_up()
            self._failure = error
            raise
        self._snapshot_position = position
        self.spent_parts = paged - kept - self._unfinished
        names = [Part(name, "", 0, 0) for name in sorted({*parts, *keep})]
        return SnapshotInfo(self.log_id, self.generation, position, 0, names)

    def part_writer(self, name: str) -> PagedPartWriter:
        """Begin a part that is read by rows, and is written ahead of its snapshot."""
        self._check_usable()
        part = name + statements.PAGED
        self._unfinished.add(part)
        self.spent_parts.discard(part)
        return PagedPartWriter(self, part, self._row_bytes)

    def take_part(self, part: str) -> Mapped:
        """For a PagedPartWriter."""
        self._session.forget_wish()  # to write once more: others of the process may go on
        self._unfinished.discard(part)
        return self._tables.mapped(part)

    def rows_of_part(self, part: str) -> int:
        """For a PagedPartWriter."""
        last = self._session.rows(statements.ROW_COUNT, (self.log_id, part))[0][1]
        return 0 if last is None else int(last) + 1

    def change_beside(self, changes: Changes) -> None:
        """For a PagedPartWriter. Raises what `sync` raises."""
        self._check_usable()
        session = self._session
        try:
            session.join(None)
            if session.change(statements.STILL_OWNS, (*self._place, self.generation)) != 1:
                raise self._superseded()
            for statement, values in changes:
                session.change(statement, values)
            self._at("part")
            session.commit()
        except OnceMQError as error:
            session.give_up()
            self._failure = error
            raise

    def _add_part(self, name: str, data: bytes) -> None:
        for number, start in enumerate(range(0, max(len(data), 1), statements.CHUNK_BYTES)):
            piece = data[start : start + statements.CHUNK_BYTES]
            row = (self.log_id, name, number, crc32(piece), piece)
            self._session.change(statements.ADD_CHUNK, row)

    def discard(self, below: int) -> int:
        """Nothing is left to delete: a snapshot takes the records below it away."""
        del below
        return self._snapshot_position

    # --- the end ---------------------------------------------------------------------------------

    def close(self, *, clean: bool = True) -> None:
        """What is open is rolled back."""
        del clean
        self._failure = self._failure or StorageError("the log is closed")
        self._session.close(self._failure if isinstance(self._failure, Fenced) else None)
        self._proof.close()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise self._failure


class _Facts:
    """What the records of a group change in the ledger's row."""

    def __init__(self, log: SqlLog) -> None:
        self.commit_no = log._commit_no  # noqa: SLF001
        self.topic_id, self.log_id = log._topic_id, log._seen_log_id  # noqa: SLF001
        self.inputs = dict(log._inputs)  # noqa: SLF001
        self.seen = log._seen  # noqa: SLF001
        self._epoch = log.generation
        self._place = log._place  # noqa: SLF001
        self.commits = False  # whether there is a commit among them
        self.orders: list[str] = []  # of operators: the records say what they said
        # The call whose commit this is, or a record of an effect of its: the one that began at the
        # offset where inputs stood.
        self.call: CallId | None = None

    def take(self, record: object) -> None:
        if isinstance(record, LedgerStarted):
            self.topic_id, self.log_id = record.topic_id, record.log_id
            self.inputs[record.topic_id.hex()] = record.start_offset
        elif isinstance(record, Committed):
            if record.inputs:
                self._of_call(record.inputs[0][0])
            self.commits = True
            self.commit_no = record.commit_no
            if record.seen.mark:
                self.seen = record.seen
            for topic_id, next_offset in record.inputs:
                self.inputs[topic_id.hex()] = next_offset
        elif isinstance(record, EffectEnded) and record.how in _ORDERED:
            group, topic, partition = self._place
            where = topic if record.topic_id == self.topic_id else private_topic(topic, group)
            call = (record.offset, record.name, record.number)
            self.orders.append(effect_id(group, where, partition, *call))
        elif isinstance(record, EffectIntended | EffectEnded):
            self._of_call(record.topic_id)

    def _of_call(self, topic_id: bytes) -> None:
        if self.call is None:
            first = self.inputs.get(topic_id.hex(), 0)
            self.call = (self._epoch, topic_id != self.topic_id, first)
