"""From the address of a sink to the ledger of one consumer in it. Drivers are imported here only."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ...errors import BadSink
from ...shells.tables.ledger import NO_MARKS, OwnerProof, SqlLedger
from ...shells.tables.log import At, nowhere
from ...shells.tables.session import Session
from .address import SQLITE, SinkAddress, resolve_sink


def open_sink(
    sink: str,
    place: tuple[str, str, int],
    *,
    lost: str = "",
    at: At = nowhere,
    marks: Mapping[str, str] = NO_MARKS,
) -> SqlLedger:
    """Return the ledger of (group, topic, partition) in the database `sink`; connect to nothing.

    Raises BadSink.
    """
    address = resolve_sink(sink, host=socket.gethostname())
    session, proof = connection_to(address, "oncemq " + "/".join(map(str, place)))
    return SqlLedger(session, proof, place, host=address.host, lost=lost, at=at, marks=marks)


def connection_to(address: SinkAddress, name: str) -> tuple[Session, OwnerProof]:
    """Return a session that is not connected yet, and what proves owners there."""
    if address.kind == SQLITE:
        from .sqlite import SqliteHost, SqliteSession

        file = SqliteSession(address.target, address.shown)
        return file, SqliteHost(file)
    try:
        from .postgres import PostgresHost, PostgresSession
    except ImportError as error:
        if error.name and not error.name.startswith("psycopg"):
            raise
        raise BadSink(
            "PostgreSQL sinks need psycopg 3", hint="pip install 'oncemq[postgres]'"
        ) from error
    server = PostgresSession(address.target, address.shown, name)
    return server, PostgresHost(server)
