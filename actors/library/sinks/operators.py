"""The ledgers of a database, for an operator's command beside the consumers that own them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.ledger import Ledger
from ...errors import BadSink
from ...ids import IN_DATABASE
from ...shells.tables import statements
from ...shells.tables.ledger import OfLedger, OwnerProof, look
from ...shells.tables.orders import give_order, orders_of
from ...shells.tables.records import Row
from ...shells.tables.session import Session
from ...shells.tables.statements import ALL_PLACES, FORGET_LEDGER
from .address import SQLITE
from .opening import connection_to
from .reading import address_of, ledgers_in, looking


class SinkOffice:
    """Reads ledgers and leaves orders in one database. Not thread-safe."""

    def __init__(self, sink: str, session: Session, proof: OwnerProof) -> None:
        """Use `open_office`: the session is connected."""
        self._sink = sink
        self._session = session
        self._proof = proof
        #: How the broker is told of ledgers that are here.
        self.path = session.shown + IN_DATABASE

    def ledgers(self, group: str | None = None) -> Iterator[tuple[OfLedger, Ledger]]:
        """Of all groups or of one. Raises CorruptLog, SinkUnavailable."""
        address = address_of(self._sink)
        with looking(address) as rows:
            for (name,) in rows(statements.GROUPS, ()):
                if group in {None, name}:
                    for place, ledger in ledgers_in(rows, address.shown, name).items():
                        yield (name, *place), ledger

    def owner_is_dead(self, place: OfLedger) -> bool:
        row = self._row(place)
        dead = self._proof.prove_dead(row.ledger_id, row.epoch, row.owner)
        self._proof.let_go()
        return dead

    def orders(self, place: OfLedger) -> list[EffectOrder]:
        """Those that the owner has not taken."""
        if not self._session.has_table(statements.ORDERS_TABLE):
            return []
        return orders_of(self._session, self._row(place).ledger_id)

    def give(self, place: OfLedger, order: EffectOrder) -> EffectOrder:
        """Leave an order durably; return the one that stands. Raises SinkLocked."""
        return give_order(self._session, self._row(place).ledger_id, order)

    def rows(self) -> dict[OfLedger, Row]:
        """Return the rows of all ledgers, begun or not."""
        if not self._session.has_table("oncemq_ledger"):
            return {}
        places = [(group, topic, int(n)) for group, topic, n in self._session.rows(ALL_PLACES)]
        return {place: self._row(place) for place in places}

    def forget(self, ledgers: Iterable[Row]) -> None:
        """Delete ledgers with all that they hold. Raises SinkLocked, SinkUnavailable."""
        session = self._session
        try:
            session.join(None)
            for row in ledgers:
                for statement in FORGET_LEDGER:
                    session.change(statement, (row.ledger_id,))
            session.commit()
        except BaseException:
            session.give_up()
            raise

    def _row(self, place: OfLedger) -> Row:
        row = look(self._session, place)
        assert row is not None, "a ledger that was read stays"
        return row


@contextlib.contextmanager
def open_office(sink: str) -> Iterator[SinkOffice]:
    """Raises BadSink, SinkUnavailable."""
    address = address_of(sink)
    if address.kind == SQLITE and not os.path.exists(address.target):
        raise BadSink(f"there is no file {address.target}", hint="")
    session, proof = connection_to(address, "oncemq operator")
    session.connect()
    try:
        yield SinkOffice(sink, session, proof)
    finally:
        session.close()
