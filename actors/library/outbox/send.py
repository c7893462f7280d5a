"""The outbox: a message is sent if, and only if, the user's own transaction commits.

`send` writes one row beside the user's rows, over the user's connection; `oncemq relay` sends
committed rows and removes them when the broker has them. docs/OUTBOX.md has the promises.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...errors import Busy, IdConflict, IdRequired
from ...ids import check_name
from ..messages.payloads import Serializer
from ..producing.parcel import checked_message
from .connections import Rows, check_transaction, door_of
from .table import CREATE, FIND_BODY, INSERT

__all__ = ["create", "send"]

_ATTEMPTS = 20  # a relay would have to remove the row each time between two statements


def create(connection: Any) -> None:
    """Make the table `oncemq_outbox` unless it is there; commit afterwards, as with any DDL.

    `connection` is of sqlite3, psycopg 3, SQLAlchemy (also a Session) or Django, to SQLite 3.35
    or PostgreSQL. In Django, call it from a migration. Raises NotSupported for another.
    """
    door = door_of(connection)
    for statement in CREATE[door.dialect]:
        door.run(statement, ())


def send(
    connection: Any,
    topic: str,
    value: Any,
    *,
    id: str | bytes,  # noqa: A002 - the name that users know
    key: str | bytes | None = None,
    headers: Mapping[str, bytes] | None = None,
    serializer: Serializer | None = None,
    created_at: datetime | int | None = None,
) -> bool:
    """Put a message into the outbox, inside the transaction that `connection` is in.

    Commit it together with your own rows: then the message is sent exactly once. Roll back, and
    it never was. Return True if it is new, False if the same message is in the outbox already.

    `created_at` is when the message came into being, by default now. Give it where the topic has a dedup
    horizon and your program may put the same message there again (docs/IDS.md).

    Raises IdConflict if the outbox holds the id with another key or value, TransactionRequired if
    the connection commits every statement by itself, and whatever a producer's `send` refuses:
    IdRequired, InvalidName, TooLarge, ValueNotEncodable. Nothing is written then, and the
    transaction can go on. Errors of the database are those of its driver.
    """
    if id is None:
        raise IdRequired(
            "a message in the outbox needs an id, because the relay resends it after a crash"
        )
    topic = check_name(topic, "topic")
    message = checked_message(
        value, id=id, key=key, headers=headers, serializer=serializer, created_at=created_at
    )
    created_ms = message.created_at_ms
    door = door_of(connection)
    check_transaction(door)
    row = (
        topic,
        message.id,
        message.key,
        message.encoding,
        message.value,
        message.headers,
        time.time_ns() // 1_000_000 if created_ms is None else created_ms,
    )
    for _ in range(_ATTEMPTS):
        if door.run(INSERT, row):
            return True
        found = door.run(FIND_BODY, row[:2])
        if found:
            if _bodies(found) != [(message.key, message.encoding, message.value)]:
                raise IdConflict(f"id {id!r} is in the outbox for {topic!r} with another body")
            return False
        # A relay has just sent and removed that row. The broker knows the id from now on and will
        # compare the bodies, so this message becomes a row of its own.
    raise Busy(
        f"id {id!r} for {topic!r} is inserted and deleted again and again by other sessions",
        hint="try again",
    )


def _bodies(found: Rows) -> list[tuple[bytes | None, int, bytes]]:
    """As plain bytes, which compare: some drivers give a memoryview."""
    return [
        (None if key is None else bytes(key), encoding, bytes(value))
        for key, encoding, value in found
    ]
