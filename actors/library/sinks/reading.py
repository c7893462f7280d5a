"""Looking into a sink beside its consumers: read-only, one moment at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from urllib.parse import quote

from ...codec import records as record_codec
from ...core.consumer.ledger import Ledger
from ...driver import unpacked
from ...errors import BadSink, SinkUnavailable
from ...shells.tables import statements
from ...shells.tables.ledger import row_of
from ...shells.tables.records import RecordTables, Rows
from ...shells.tables.sql_text import first_line
from ..ledgers.reader import NoLedger
from .address import SQLITE, SinkAddress, resolve_sink
from .sqlite import sync_file


def address_of(sink: str) -> SinkAddress:
    """Raises BadSink."""
    return resolve_sink(sink, host=socket.gethostname())


def look_into(sink: str) -> tuple[str, Callable[[], AbstractContextManager[Rows]]]:
    """How the database is called, and what opens a look into it. Raises BadSink."""
    address = address_of(sink)
    return address.shown, partial(looking, address)


@contextlib.contextmanager
def looking(address: SinkAddress) -> Iterator[Rows]:
    """Give a function that reads; all that it reads is of one moment, and durable at the end.

    Raises BadSink (there is no such file, or no ledger in it), SinkUnavailable.
    """
    connection, errors, mark = _connected(address)
    try:

        def rows(statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
            found = connection.execute(statement.replace("?", mark), tuple(values))
            return [tuple(row) for row in found]

        yield rows
        if address.kind == SQLITE:
            sync_file(address.target, address.shown)
    except errors as error:
        text = first_line(error)
        if "oncemq_ledger" in text:  # the table, which neither driver names by a class of its own
            raise BadSink(f"there is no ledger in {address.shown}", hint="") from error
        raise SinkUnavailable(f"{address.shown}: {text}", hint="") from error
    finally:
        connection.close()


def _connected(address: SinkAddress) -> tuple[Any, type[Exception], str]:
    if address.kind == SQLITE:
        if not os.path.exists(address.target):
            raise BadSink(f"there is no file {address.target}", hint="")
        path = f"file:{quote(address.target)}?mode=ro"
        file = sqlite3.connect(path, uri=True, isolation_level=None)
        file.execute("BEGIN")
        return file, sqlite3.Error, "?"
    try:
        import psycopg
    except ImportError as error:
        raise BadSink("PostgreSQL needs psycopg 3", hint="pip install 'oncemq[postgres]'") from (
            error
        )
    try:
        server = psycopg.connect(address.target, autocommit=True, connect_timeout=5)
        server.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    except psycopg.ProgrammingError:  # its text may quote the password
        raise BadSink("the PostgreSQL address cannot be parsed") from None
    except psycopg.OperationalError as error:
        from .postgres import check_refused

        check_refused(address.shown, error)
        raise SinkUnavailable(f"{address.shown}: {first_line(error)}", hint="") from None
    return server, psycopg.Error, "%s"


def read_sink_group(sink: str, group: str) -> dict[tuple[str, int], Ledger]:
    """Return the ledgers of a group in a database by (topic, partition), in that order.

    Raises NoLedger, CorruptLog, and what `looking` raises.
    """
    address = address_of(sink)
    with looking(address) as rows:
        found = ledgers_in(rows, address.shown, group)
    if not found:
        raise NoLedger(
            f"there is no ledger of group {group!r} in {address.shown}",
            hint="check --sink and --group",
        )
    return found


def ledgers_in(rows: Rows, shown: str, group: str) -> dict[tuple[str, int], Ledger]:
    """Those that have begun, by (topic, partition). Raises CorruptLog."""
    found: dict[tuple[str, int], Ledger] = {}
    for topic, partition in rows(statements.PLACES, (group,)):
        row = row_of(rows(statements.LOOK, (group, topic, partition))[0], shown)
        tables = RecordTables(rows, row.ledger_id, f"{shown} group {group} {topic}/{partition}")
        ledger = Ledger()
        if row.snapshot_position:
            ledger.restore(unpacked(tables.parts_by_name()))
        for stored in tables.replay(row.snapshot_position, row.position):
            record = record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)
            ledger.apply(record, stored.position)
        if ledger.started is not None:
            found[topic, partition] = ledger
    return found
