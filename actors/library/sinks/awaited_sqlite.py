"""Statements of async handlers on SQLite: a thread of the loop's executor works, the loop goes on.

Each piece of work runs in a task of its own, which holds the turn until the thread is done, also
when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import NotAHandler
from .awaited import Statements

if TYPE_CHECKING:
    from .sqlite import SqliteSession

FETCH_ROWS = 256  # of an `async for`, at a time


class SqliteStatements(Statements):
    """What async handlers ask of a SQLite file."""

    def __init__(self, session: SqliteSession) -> None:
        """For one call that `session` is lent to."""
        super().__init__()
        self.session = session
        self._tasks: set[asyncio.Task[Any]] = set()

    def _connection(self) -> Any:
        try:
            from .awaited_aiosqlite import AsyncSinkConnection
        except ImportError as error:
            if error.name != "aiosqlite":
                raise
            raise NotAHandler(
                "tx.connection of an async handler is a connection of aiosqlite, which is not"
                " installed",
                hint="pip install 'oncemq[async]', or use `await tx.sql(...)`, which needs none",
            ) from error
        if self.session.beside is None:
            self.session.beside = AsyncSinkConnection(self.session.plain)
        self.session.beside.lend(self)
        return self.session.beside

    async def execute(self, query: Any, parameters: Sequence[Any]) -> AsyncCursor:
        """Execute a statement of `tx.sql`."""
        cursor = await self.work(lambda: self.session.sql(query, parameters))
        return AsyncCursor(self, cursor)

    async def work(self, do: Callable[[], Any]) -> Any:
        """Do something with the connection in a thread, after all that was begun before."""
        self.check()
        task = asyncio.ensure_future(self._in_turn(do))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.give_up()
            raise

    async def _in_turn(self, do: Callable[[], Any]) -> Any:
        async with self._turn:
            self.check()  # it may have waited for longer than the handler took
            return await asyncio.to_thread(do)

    def _at_work(self, handler: asyncio.Task[Any] | None) -> bool:
        del handler  # who awaits his own work has not returned
        return bool(self._tasks)

    def _at_rest(self) -> bool:
        return not self._tasks

    async def _over(self, handler: asyncio.Task[Any] | None) -> None:
        del handler
        while self._tasks:
            await asyncio.wait(set(self._tasks))


class AsyncCursor:
    """The driver's cursor for async handlers: what waits is awaited."""

    def __init__(self, statements: SqliteStatements, cursor: Any) -> None:
        """`raw` is the driver's cursor itself."""
        self._statements = statements
        self.raw = cursor

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed, as the driver says."""
        return int(self.raw.rowcount)

    @property
    def description(self) -> Any:
        """The columns, as the driver says."""
        return self.raw.description

    async def fetchone(self) -> Any:
        """Return the next row, or None."""
        return await self._statements.work(self.raw.fetchone)

    async def fetchmany(self, size: int) -> list[Any]:
        """Return at most `size` rows."""
        found: list[Any] = await self._statements.work(lambda: self.raw.fetchmany(size))
        return found

    async def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        found: list[Any] = await self._statements.work(self.raw.fetchall)
        return found

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the rows that are left."""
        while rows := await self.fetchmany(FETCH_ROWS):
            for row in rows:
                yield row
