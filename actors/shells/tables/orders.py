"""Orders of operators about effects, for ledgers in a database: rows beside the ledger's own.

The first word about a call stands. Its owner reads it, and deletes it in the transaction that says
the same in a record.
"""

from __future__ import annotations

import time

from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.open_effects import AGAIN, ANSWERED
from ...errors import CorruptLog, SinkLocked
from . import statements
from .session import Session

LOCK_WAIT_S = 10.0  # an operator's command waits so long for a handler that writes
_LOOK_AGAIN_S = 0.02


def orders_of(session: Session, ledger_id: bytes) -> list[EffectOrder]:
    """Only orders that the owner has not taken. Raises CorruptLog."""
    found = []
    for effect_id, how, encoding, value in session.rows(statements.ORDERS, (ledger_id,)):
        if how not in {ANSWERED, AGAIN}:
            where = f"{session.shown} ({statements.ORDERS_TABLE})"
            raise CorruptLog(where, 0, f"an order that makes no sense: {how!r}")
        found.append(EffectOrder(effect_id, how, encoding, bytes(value)))
    return found


def give_order(session: Session, ledger_id: bytes, order: EffectOrder) -> EffectOrder:
    """Leave an order durably for the owner of a ledger; return the one that stands.

    Raises SinkUnavailable, SinkLocked.
    """
    _join(session)
    try:
        row = (ledger_id, order.effect_id, order.how, order.encoding, order.value)
        session.change(statements.GIVE_ORDER, row)
        orders = orders_of(session, ledger_id)
        session.commit()
    except BaseException:
        session.give_up()
        raise
    return next(one for one in orders if one.effect_id == order.effect_id)


def _join(session: Session) -> None:
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            session.join(None)
        except SinkLocked:
            if time.monotonic() >= until:
                raise
            time.sleep(_LOOK_AGAIN_S)
        else:
            return
