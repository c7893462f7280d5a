"""`tx.connection` of async handlers on SQLite: aiosqlite's connection over the consumer's own.

aiosqlite hands each call to a thread of its own by one method, `_execute`. Here that method does
what `await tx.sql` does; so there is one way to the connection, one order, and one place that knows
whether something is at work. aiosqlite's thread is never started, and so never has to be ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import aiosqlite

from .awaited import refuse
from .awaited_sqlite import FETCH_ROWS

if TYPE_CHECKING:
    import sqlite3

    from .awaited_sqlite import SqliteStatements


class AsyncSinkConnection(aiosqlite.Connection):
    """What async handlers get: all of aiosqlite's connection but the end of the transaction."""

    def __init__(self, plain: sqlite3.Connection) -> None:
        """Made once for each connection of a consumer, and lent to call after call."""
        super().__init__(lambda: plain, FETCH_ROWS)
        self._connection = plain
        self._tx: Any = _NoQueue()

    def lend(self, statements: SqliteStatements) -> None:
        """From here on it does what handlers of this call want."""
        self._statements = statements

    @property
    def _conn(self) -> sqlite3.Connection:
        self._statements.check()
        return super()._conn

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        session = self._statements.session
        return await self._statements.work(lambda: session.told(lambda: fn(*args, **kwargs)))

    def __await__(self) -> Generator[Any, None, AsyncSinkConnection]:
        """Return it: it is connected."""
        yield from ()
        return self

    def __del__(self) -> None:
        """Nothing is to be ended: the connection belongs to the consumer."""

    def stop(self) -> None:
        """Nothing: there is no thread."""

    async def commit(self) -> None:
        """Refuse: the commit comes when the handler has returned."""
        refuse("commit()")

    async def rollback(self) -> None:
        """Refuse: a handler that raises has done nothing."""
        refuse("rollback()")

    async def close(self) -> None:
        """Refuse: the connection belongs to the consumer."""
        refuse("close()")

    async def set_authorizer(self, authorizer_callback: Any) -> None:
        """Refuse: ours keeps the transaction."""
        del authorizer_callback
        refuse("set_authorizer()")

    @property
    def isolation_level(self) -> str | None:
        """None: nothing is begun or ended by the driver."""
        return self._conn.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        """Refuse: the transaction belongs to the commit."""
        del value
        refuse("isolation_level")


class _NoQueue:
    """aiosqlite's queue of its thread; SQLAlchemy changes the isolation level through it."""

    def put_nowait(self, item: Any) -> None:
        """Refuse: nobody would ever take it out."""
        del item
        refuse("a change of settings")
