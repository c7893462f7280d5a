"""The table `oncemq_outbox` in a user's database, and its SQL.

Every statement is written once, with `?` for a value, and translated for each driver. A row is a
message that was checked and encoded by its sender, so a relay needs no knowledge of that program.

The state of a row is 'waiting', 'sent' (kept on request, after the broker acknowledged it) or
'failed' (refused for good; `error` says why). The database gives each row a `place`, and no place
twice. Places order the rows of one transaction. Across transactions they say nothing about the order
of commits, so a relay must not remember "the last place seen": only `state` tells what is left to do.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

SQLITE = "sqlite"
POSTGRESQL = "postgresql"

_COLUMNS = """
    topic TEXT NOT NULL,
    message_id {bytes} NOT NULL,
    message_key {bytes},
    encoding INTEGER NOT NULL,
    value {bytes} NOT NULL,
    headers {bytes} NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    error TEXT,
    created_at_ms BIGINT NOT NULL,
    done_at_ms BIGINT,
    UNIQUE (topic, message_id)
"""
_INDEX = (
    "CREATE INDEX {if_absent}oncemq_outbox_waiting ON oncemq_outbox (place) WHERE state = 'waiting'"
)
_CREATE_SQLITE = (
    # Without AUTOINCREMENT SQLite gives the place of a deleted row again, and a relay that is slow
    # to delete would delete another message.
    "CREATE TABLE IF NOT EXISTS oncemq_outbox (place INTEGER PRIMARY KEY AUTOINCREMENT,"
    + _COLUMNS.format(bytes="BLOB")
    + ")",
    _INDEX.format(if_absent="IF NOT EXISTS "),
)
# One statement is one transaction also on a connection that commits each statement by itself. The
# lock is for workers that start together: with IF NOT EXISTS alone both try, and one fails. An
# existing table is left alone, so that a program without the right to create tables may call this.
_CREATE_POSTGRESQL = (
    "DO $$ BEGIN PERFORM pg_advisory_xact_lock({lock}); "
    "IF to_regclass('oncemq_outbox') IS NULL THEN "
    "CREATE TABLE oncemq_outbox (place BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    "{columns}); {index}; END IF; END $$".format(
        lock=zlib.crc32(b"oncemq_outbox"),
        columns=_COLUMNS.format(bytes="BYTEA"),
        index=_INDEX.format(if_absent=""),
    ),
)
CREATE = {SQLITE: _CREATE_SQLITE, POSTGRESQL: _CREATE_POSTGRESQL}

# Returns the row if it is new. It must be the first statement on the table: in SQLite a transaction
# that reads first may fail to write later (SQLITE_BUSY_SNAPSHOT).
INSERT = (
    "INSERT INTO oncemq_outbox (topic, message_id, message_key, encoding, value, headers,"
    " created_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (topic, message_id) DO NOTHING RETURNING place"
)
FIND_BODY = (
    "SELECT message_key, encoding, value FROM oncemq_outbox WHERE topic = ? AND message_id = ?"
)

READ = (
    "SELECT place, topic, message_id, message_key, encoding, value, headers, created_at_ms"
    " FROM oncemq_outbox"
    " WHERE state = 'waiting' ORDER BY place LIMIT ?"
)
# For a driver that fetches a whole result: the server applies the bound on bytes, because it knows
# the lengths of large values without reading them.
READ_SIZED = (
    "SELECT place, topic, message_id, message_key, encoding, value, headers, created_at_ms"
    " FROM oncemq_outbox"
    " JOIN (SELECT place, SUM(octet_length(value)) OVER (ORDER BY place) - octet_length(value)"
    " AS ahead FROM (SELECT place, value FROM oncemq_outbox WHERE state = 'waiting'"
    " ORDER BY place LIMIT ?) AS first_rows) AS sized USING (place)"
    " WHERE ahead < ? ORDER BY place"
)
READ_FAILED = (
    "SELECT place, topic, message_id, error, created_at_ms, done_at_ms FROM oncemq_outbox"
    " WHERE state = 'failed' ORDER BY place"
)
# Place and id name a row: a database restored from a backup gives places again.
REMOVE = "DELETE FROM oncemq_outbox WHERE place = ? AND message_id = ? AND state = 'waiting'"
KEEP = (
    "UPDATE oncemq_outbox SET state = 'sent', done_at_ms = ?"
    " WHERE place = ? AND message_id = ? AND state = 'waiting'"
)
FAIL = (
    "UPDATE oncemq_outbox SET state = 'failed', error = ?, done_at_ms = ?"
    " WHERE place = ? AND message_id = ? AND state = 'waiting'"
)
RETRY = (
    "UPDATE oncemq_outbox SET state = 'waiting', error = NULL, done_at_ms = NULL"
    " WHERE state = 'failed'"
)
# A relay that finds a row locked leaves it to the other relay: one removal is enough, and two relays
# that wait for each other would be a deadlock. A row that both leave is sent and removed later.
REMOVE_MANY = (
    "DELETE FROM oncemq_outbox WHERE place IN (SELECT place FROM oncemq_outbox"
    " WHERE (place, message_id) IN (SELECT * FROM unnest(?::bigint[], ?::bytea[]))"
    " AND state = 'waiting' FOR UPDATE SKIP LOCKED)"
)
KEEP_MANY = (
    "UPDATE oncemq_outbox SET state = 'sent', done_at_ms = ? WHERE place IN (SELECT place FROM"
    " oncemq_outbox WHERE (place, message_id) IN (SELECT * FROM unnest(?::bigint[], ?::bytea[]))"
    " AND state = 'waiting' FOR UPDATE SKIP LOCKED)"
)


class Row(NamedTuple):
    """A message that waits to be sent."""

    place: int  # primary key, given by the database
    topic: str
    message_id: bytes  # tagged
    key: bytes | None
    encoding: int
    value: bytes
    headers: bytes
    created_at_ms: int = 0


class FailedRow(NamedTuple):
    """A message that the broker, or a check before it, refused for good."""

    place: int
    topic: str
    message_id: bytes  # tagged
    error: str
    created_at_ms: int
    done_at_ms: int


def percent(sql: str) -> str:
    """As psycopg and Django want the values of a statement."""
    return sql.replace("?", "%s")


def named(sql: str) -> tuple[str, list[str]]:
    """As SQLAlchemy wants the values of a statement; return their names too."""
    head, *tail = sql.split("?")
    names = [f"v{number}" for number in range(len(tail))]
    return head + "".join(f":{name}{text}" for name, text in zip(names, tail, strict=True)), names
