"""The ledger of a consumer with a SQL sink, before and at its opening: the door of LedgerFiles.

What a join reports is one row. The first act of an owner is to put its epoch into that row, which
fences every older owner: its commits ask for the epoch they were granted.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.work import LedgerPeeked
from ...errors import CorruptLog, Fenced, SinkLocked, UnsupportedFormat
from ...history import NO_PLACE, Place
from ...ids import IN_DATABASE
from . import statements
from .log import At, SqlLog, nowhere
from .orders import orders_of
from .records import Row
from .session import Session

OfLedger = tuple[str, str, int]  # group, topic, partition
Changes = list[tuple[str, tuple[Any, ...]]]  # statements, each with its values


NO_MARKS: Mapping[str, str] = MappingProxyType({})


class OwnerProof(Protocol):
    """What a kind of database can prove of owners."""

    def facts(self) -> dict[str, Any]:
        """Return what the row of an owner says of this process."""

    def prove_dead(self, ledger_id: bytes, epoch: int, owner: Mapping[str, Any]) -> bool:
        """Whether the owner is proved dead; its lock is held from here on."""

    def let_go(self) -> None:
        """Let the lock of the dead owner go."""

    def hold(self, ledger_id: bytes, epoch: int) -> dict[str, Any]:
        """Take the lock of the owner to be; return what its row says of it."""

    def make_way(self, owner: Mapping[str, Any], error: SinkLocked) -> None:
        """Somebody's lock is in the way: end the replaced owner if that is it and frozen."""

    def superseded(self, owner: Mapping[str, Any]) -> None:
        """The owner is replaced."""

    def close(self) -> None:
        """Let all locks go."""


class SqlLedger:
    """One ledger in a database. Belongs to the I/O thread, but for what its session lends."""

    def __init__(
        self,
        session: Session,
        proof: OwnerProof,
        place: OfLedger,
        *,
        host: str,
        lost: str = "",
        at: At = nowhere,
        draw: Callable[[], bytes] = lambda: secrets.token_bytes(16),
        marks: Mapping[str, str] = NO_MARKS,
        row_bytes: int = statements.ROW_BYTES,
    ) -> None:
        """`lost` is the `name` of the ledger object before this one, whose session failed.

        `marks` stand in the row of this owner. `at` is called between the steps of a commit (crash tests).
        `row_bytes` is the size of a row of a part that is read by rows.
        """
        self.session = session
        self.directory = session.shown + IN_DATABASE
        self.name = secrets.token_hex(8)  # of this owner, in its row
        self._proof = proof
        self._place = place
        self._host = host
        self._lost = lost
        self._at = at
        self._draw = draw
        self._marks = marks
        self._row_bytes = row_bytes
        self._ledger_id = b""  # known once it is open

    def peek(self) -> LedgerPeeked:
        """Return the facts of the ledger; make it where there is none, change nothing else.

        They are durable: what the broker is told of a ledger, that ledger must never lose. Raises
        SinkUnavailable, SinkLocked, BadSink, StorageError, UnsupportedFormat, and Fenced if
        another process replaced this one while it was frozen.
        """
        self.session.connect()
        row = self._look() or self._make()
        self.session.forget_wish()  # if a look was refused before, and another one made the row
        self.session.sync_read()
        self.session.check_in_place()
        if self._lost and row.owner.get("replaced") == self._lost:
            raise Fenced(f"{_told(row.owner)} took over under epoch {row.epoch}")
        dead = self._proof.prove_dead(row.ledger_id, row.epoch, row.owner)
        next_offset = row.inputs.get(row.topic_id.hex(), 0)
        return LedgerPeeked(
            row.ledger_id,
            row.topic_id,
            row.log_id,
            next_offset,
            row.epoch,
            dead,
            self._host,
            self.directory,
            row.seen,
        )

    def open(self, epoch: int) -> SqlLog:
        """Claim the ledger for `epoch` and return it for writing.

        Raises Fenced, SinkUnavailable, SinkLocked (both: try again), CorruptLog.
        """
        session = self.session
        session.connect()
        # Made before there were effects, or marks of histories.
        if not session.has_table(statements.ORDERS_TABLE) or not _marked(session):
            self._make_tables()
        row = self._look()
        assert row is not None, "a ledger that was peeked at stays"
        if row.epoch < epoch:
            self._claim(row, epoch)
        row = self._look()
        assert row is not None, "a ledger that was claimed stays"
        if row.epoch != epoch or row.owner.get("name") != self.name:
            raise Fenced(f"{_told(row.owner)} owns the ledger under epoch {row.epoch}")
        self._ledger_id = row.ledger_id
        return SqlLog(
            session,
            self._place,
            row,
            proof=self._proof,
            at=self._at,
            row_bytes=self._row_bytes,
        )

    def _claim(self, row: Row, epoch: int) -> None:
        """An unknown outcome is seen when the row is read again."""
        dead = self._proof.prove_dead(row.ledger_id, row.epoch, row.owner)
        facts = {**self._proof.facts(), **self._marks, "name": self.name}
        facts.update(self._proof.hold(row.ledger_id, epoch))
        if not dead:  # it may be frozen, and is to know at once when it wakes
            facts["replaced"] = row.owner.get("name", "")
        values = (epoch, json.dumps(facts), *self._place, epoch)
        try:
            self._write([(statements.CLAIM, values)])
        except SinkLocked as error:
            self._proof.make_way(row.owner, error)
            self._write([(statements.CLAIM, values)])
        self._proof.superseded(row.owner)

    def find_orders(self, effect_ids: Iterable[str]) -> list[EffectOrder]:
        """Return what operators have ordered about some calls; none while a call has the connection.

        The log forgets an order with the record that says what it said.
        """
        if not self.session.idle:
            return []
        wanted = set(effect_ids)
        return [one for one in orders_of(self.session, self._ledger_id) if one.effect_id in wanted]

    def keep_orders(self, effect_ids: Iterable[str]) -> None:
        """Does nothing while a call has the connection."""
        if not self.session.idle:
            return
        kept = set(effect_ids)
        gone = [
            (statements.FORGET_ORDER, (self._ledger_id, one.effect_id))
            for one in orders_of(self.session, self._ledger_id)
            if one.effect_id not in kept
        ]
        if gone:
            self._write(gone)

    def release(self) -> None:
        self._proof.let_go()

    def close(self) -> None:
        """A call that runs takes its connection with it."""
        self._proof.close()
        self.session.close()

    def _look(self) -> Row | None:
        try:
            return look(self.session, self._place)
        except NoTables:
            return None

    def _make(self) -> Row:
        self._make_tables()
        self._write(
            [(statements.MAKE_LEDGER, (*self._place, statements.FORMAT, self._draw(), b"", b""))]
        )
        row = self._look()
        assert row is not None, "a ledger that was made stays"
        return row

    def _make_tables(self) -> None:
        session = self.session
        texts = filter(None, (session.before_tables, *statements.TABLES))
        add_seen = statements.ADD_SEEN.format_map(session.types)
        self._write(
            [(text.format_map(session.types), ()) for text in texts],
            lambda: [] if _marked(session) else [(add_seen, ())],
        )

    def _write(self, changes: Changes, then: Callable[[], Changes] = list) -> None:
        """One transaction; `then` is asked in it, for changes that depend on what is there."""
        session = self.session
        try:
            session.join(None)
            for statement, values in changes:
                session.change(statement, values)
            for statement, values in then():
                session.change(statement, values)
            session.commit()
        except BaseException:
            session.give_up()
            raise


class NoTables(Exception):
    """The tables are not there yet."""


def look(session: Session, place: OfLedger) -> Row | None:
    """Return the row of a ledger, None where there is none.

    Raises NoTables, UnsupportedFormat, CorruptLog, SinkUnavailable.
    """
    if not session.has_table("oncemq_ledger"):
        raise NoTables
    query = statements.LOOK_SEEN if _marked(session) else statements.LOOK
    found = session.rows(query, place)
    if not found:
        return None
    return row_of(found[0], session.shown)


def _marked(session: Session) -> bool:
    """Whether the table was made, or changed, by a version whose histories have marks."""
    return session.has_column(*statements.SEEN_COLUMN)


def row_of(fields: tuple[Any, ...], shown: str) -> Row:
    """Raises UnsupportedFormat, CorruptLog."""
    if fields[0] > statements.FORMAT:
        raise UnsupportedFormat(
            f"the ledger in {shown} has format {fields[0]}; this OnceMQ reads {statements.FORMAT}"
        )
    try:
        inputs, owner = json.loads(fields[8]), json.loads(fields[9])
        place = json.loads(fields[10]) if fields[10:] and fields[10] else None
    except ValueError as error:
        raise CorruptLog(shown + IN_DATABASE, 0, f"no JSON: {error}") from None
    blobs = [bytes(fields[index]) for index in (1, 6, 7)]
    seen = Place(bytes.fromhex(place[0]), place[1]) if place else NO_PLACE
    return Row._make([fields[0], blobs[0], *fields[2:6], blobs[1], blobs[2], inputs, owner, seen])


def _told(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
