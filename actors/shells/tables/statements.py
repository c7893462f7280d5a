"""The SQL of a ledger that lives in tables of the user's database.

oncemq_ledger     one row for each (group, topic, partition): who owns it, where it stands
oncemq_record     the ledger's records since its snapshot, by position
oncemq_snapshot   the state at `snapshot_position`, in parts cut into chunks
oncemq_effect_order   what an operator has said about a call, until its owner has taken it

docs/STORAGE.md, "Ledgers in a database", has the columns. Placeholders are written `?`; a driver
with another style replaces them.
"""

from __future__ import annotations

# ruff: noqa: S608 - put together from the texts of this page alone
FORMAT = 2  # 1 had no parts that are read by rows: a reader of 1 would not know their ids
CHUNK_BYTES = 4 * 1024 * 1024  # of a snapshot's part in one row
# Of a part that is read by rows, in one row: 4,096 explicit ids.
ROW_BYTES = 64 * 1024
# The name of such a part ends so.
PAGED = ".map"
RECORD_OVERHEAD = 32  # what a record adds to the position besides its own bytes

TABLES = (
    """CREATE TABLE IF NOT EXISTS oncemq_ledger (
        group_name {text} NOT NULL,
        topic {text} NOT NULL,
        partition_no {int} NOT NULL,
        format {int} NOT NULL,
        ledger_id {bytes} NOT NULL,
        epoch {int} NOT NULL,
        commit_no {int} NOT NULL,
        position {int} NOT NULL,
        snapshot_position {int} NOT NULL,
        topic_id {bytes} NOT NULL,
        log_id {bytes} NOT NULL,
        inputs {text} NOT NULL,
        owner {text} NOT NULL,
        seen {text} NOT NULL DEFAULT '',
        PRIMARY KEY (group_name, topic, partition_no)
    )""",
    """CREATE TABLE IF NOT EXISTS oncemq_record (
        ledger_id {bytes} NOT NULL,
        position {int} NOT NULL,
        epoch {int} NOT NULL,
        kind {int} NOT NULL,
        meta {bytes} NOT NULL,
        body {bytes} NOT NULL,
        crc {int} NOT NULL,
        PRIMARY KEY (ledger_id, position)
    )""",
    """CREATE TABLE IF NOT EXISTS oncemq_snapshot (
        ledger_id {bytes} NOT NULL,
        part {text} NOT NULL,
        chunk {int} NOT NULL,
        crc {int} NOT NULL,
        data {bytes} NOT NULL,
        PRIMARY KEY (ledger_id, part, chunk)
    )""",
    """CREATE TABLE IF NOT EXISTS oncemq_effect_order (
        ledger_id {bytes} NOT NULL,
        effect_id {text} NOT NULL,
        how {text} NOT NULL,
        encoding {int} NOT NULL,
        value {bytes} NOT NULL,
        PRIMARY KEY (ledger_id, effect_id)
    )""",
)
ORDERS_TABLE = "oncemq_effect_order"
SEEN_COLUMN = ("oncemq_ledger", "seen")
# For a table that was made before histories had marks.
ADD_SEEN = "ALTER TABLE oncemq_ledger ADD COLUMN seen {text} NOT NULL DEFAULT ''"

MAKE_LEDGER = (
    "INSERT INTO oncemq_ledger (group_name, topic, partition_no, format, ledger_id, epoch,"
    " commit_no, position, snapshot_position, topic_id, log_id, inputs, owner)"
    " VALUES (?, ?, ?, ?, ?, 0, 0, 0, 0, ?, ?, '{}', '{}')"
    " ON CONFLICT (group_name, topic, partition_no) DO NOTHING"
)
_OF_PLACE = " WHERE group_name = ? AND topic = ? AND partition_no = ?"
LOOK = (
    "SELECT format, ledger_id, epoch, commit_no, position, snapshot_position, topic_id, log_id,"
    " inputs, owner FROM oncemq_ledger" + _OF_PLACE
)
LOOK_SEEN = LOOK.replace(", owner FROM", ", owner, seen FROM")
PLACES = (
    "SELECT topic, partition_no FROM oncemq_ledger WHERE group_name = ?"
    " ORDER BY topic, partition_no"
)
GROUPS = "SELECT DISTINCT group_name FROM oncemq_ledger ORDER BY group_name"
ALL_PLACES = (
    "SELECT group_name, topic, partition_no FROM oncemq_ledger"
    " ORDER BY group_name, topic, partition_no"
)
FORGET_LEDGER = tuple(
    f"DELETE FROM {table} WHERE ledger_id = ?"
    for table in ("oncemq_record", "oncemq_snapshot", "oncemq_effect_order", "oncemq_ledger")
)
# The first act of an owner. No row: a newer owner was here before.
CLAIM = "UPDATE oncemq_ledger SET epoch = ?, owner = ?" + _OF_PLACE + " AND epoch < ?"
# The heart of every commit. No row: a newer owner was here, and nothing of this one counts.
ADVANCE = (
    "UPDATE oncemq_ledger SET commit_no = ?, position = ?, topic_id = ?, log_id = ?, inputs = ?,"
    " seen = ?" + _OF_PLACE + " AND epoch = ? AND commit_no = ? AND position = ?"
)
ADD_RECORD = (
    "INSERT INTO oncemq_record (ledger_id, position, epoch, kind, meta, body, crc)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
RECORDS = (
    "SELECT position, epoch, kind, meta, body, crc FROM oncemq_record"
    " WHERE ledger_id = ? AND position >= ? ORDER BY position LIMIT ?"
)
PLACE_SNAPSHOT = (
    f"UPDATE oncemq_ledger SET snapshot_position = ?, format = {FORMAT}"
    + _OF_PLACE
    + " AND epoch = ? AND position = ?"
)
FORGET_RECORDS = "DELETE FROM oncemq_record WHERE ledger_id = ? AND position < ?"
SNAPSHOT_PARTS = "SELECT DISTINCT part FROM oncemq_snapshot WHERE ledger_id = ? ORDER BY part"
FORGET_PART = "DELETE FROM oncemq_snapshot WHERE ledger_id = ? AND part = ?"
# Of a part that is read by rows.
ROW_COUNT = "SELECT COUNT(*), MAX(chunk) FROM oncemq_snapshot WHERE ledger_id = ? AND part = ?"
PART_ROW = "SELECT crc, data FROM oncemq_snapshot WHERE ledger_id = ? AND part = ? AND chunk = ?"
FORGET_ROWS = "DELETE FROM oncemq_snapshot WHERE ledger_id = ? AND part = ? AND chunk >= ?"
# An owner writes beside its commits. No row: a newer owner was here.
STILL_OWNS = "UPDATE oncemq_ledger SET epoch = epoch" + _OF_PLACE + " AND epoch = ?"
ADD_CHUNK = "INSERT INTO oncemq_snapshot (ledger_id, part, chunk, crc, data) VALUES (?, ?, ?, ?, ?)"
PART = (
    "SELECT chunk, crc, data FROM oncemq_snapshot WHERE ledger_id = ? AND part = ? ORDER BY chunk"
)
# The first word about a call stands.
GIVE_ORDER = (
    "INSERT INTO oncemq_effect_order (ledger_id, effect_id, how, encoding, value)"
    " VALUES (?, ?, ?, ?, ?) ON CONFLICT (ledger_id, effect_id) DO NOTHING"
)
ORDERS = "SELECT effect_id, how, encoding, value FROM oncemq_effect_order WHERE ledger_id = ?"
FORGET_ORDER = "DELETE FROM oncemq_effect_order WHERE ledger_id = ? AND effect_id = ?"
