"""The tests' own way into a database, beside the one under test."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import psycopg


@contextlib.contextmanager
def outside(sink: str) -> Iterator[Any]:
    """A connection of somebody else, in autocommit mode."""
    if sink.startswith("sqlite:///"):
        connection: Any = sqlite3.connect(sink.removeprefix("sqlite:///"), isolation_level=None)
    else:
        connection = psycopg.connect(sink, autocommit=True)
    try:
        yield connection
    finally:
        connection.close()


def run(sink: str, *texts: str) -> None:
    with outside(sink) as connection:
        for text in texts:
            connection.execute(text)


def rows(sink: str, query: str) -> list[tuple[Any, ...]]:
    with outside(sink) as connection:
        return [tuple(row) for row in connection.execute(query)]


def mark(sink: str) -> str:
    return "?" if sink.startswith("sqlite") else "%s"
