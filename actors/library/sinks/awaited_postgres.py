"""Async handlers on PostgreSQL: psycopg's async connection over the libpq connection of the session.

A psycopg connection is a thin object over one of libpq; here are two over the same one, used by
turns. The plain one belongs to the I/O thread and, between two statements of handlers, to the
runner of handlers; this one to async handlers, while the session is lent. What psycopg keeps for
a connection besides libpq's is of no meaning here (autocommit: transactions are ours) or is shared:
the prepared statements, whose names and DEALLOCATE ALL two books would not agree on.

psycopg takes the connection's lock around all that it does. In its place stands our turn: it lets
in who may come, and knows who is in. Savepoints are set and released by the plain connection, in
the loop's thread: one round trip each, which wait for no lock. A statement whose wait is cancelled
is cancelled in the server, and that is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.waiting import wait_async

from .awaited import Statements, brought_to_end, refuse
from .postgres import SinkConnection, check_text
from .sql_text import bound

if TYPE_CHECKING:
    from .postgres import PostgresSession

CANCEL_S = 5.0  # so long the server has to cancel a statement
CANCEL_AGAIN_S = 0.25
REST_S = 12.0  # so long a stream or a COPY that was left has to end: psycopg cancels it, and waits
LOOK_S = 0.1  # psycopg's: a lost socket is noticed in that time


class PostgresStatements(Statements):
    """What async handlers ask of PostgreSQL."""

    def __init__(self, session: PostgresSession) -> None:
        """For one call that `session` is lent to."""
        super().__init__()
        self.session = session
        # The tasks that have the turn, and wait for it.
        self._holder: asyncio.Task[Any] | None = None
        self._queue: list[asyncio.Task[Any]] = []

    def _connection(self) -> AsyncSinkConnection:
        if self.session.beside is None:
            self.session.beside = AsyncSinkConnection(self.session.plain)
        self.session.beside.statements = self
        return self.session.beside

    async def execute(self, query: Any, parameters: Sequence[Any]) -> AsyncSinkCursor:
        """Execute a statement of `tx.sql`."""
        cursor = await self._connection().execute(query, *bound(parameters))
        return cast("AsyncSinkCursor", cursor)

    async def enter(self) -> None:
        """Take the turn; the message has its savepoint then.

        Raises TransactionControl, SinkUnavailable, Fenced.
        """
        self.check()
        task = asyncio.current_task()
        assert task is not None, "a coroutine of psycopg runs in a task"
        self._queue.append(task)
        try:
            await self._turn.acquire()
        except asyncio.CancelledError:
            self.give_up()
            raise
        finally:
            self._queue.remove(task)
        self._holder = task
        try:
            self.check()  # it may have waited for longer than the handler took
            if not self.session.ready:
                self.session.use()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Give the turn to the next one."""
        self._holder = None
        self._turn.release()

    def _others(self, handler: asyncio.Task[Any] | None) -> set[asyncio.Task[Any]]:
        return {task for task in (*self._queue, self._holder) if task not in {None, handler}}

    def _at_work(self, handler: asyncio.Task[Any] | None) -> bool:
        return bool(self._others(handler))

    def _at_rest(self) -> bool:
        if self._turn.locked():
            return False
        self.session.check_rest(over=True)
        return True

    async def _over(self, handler: asyncio.Task[Any] | None) -> None:
        """Cancel what tasks have left running, and wait for streams that the handler has left."""
        for task in self._others(handler):
            task.cancel()
        try:
            async with asyncio.timeout(REST_S):
                await self._turn.acquire()
            self._turn.release()
        except TimeoutError:
            self.session.check_rest(over=False)


class _Turn:
    """Stands in for the lock of a connection."""

    def __init__(self, connection: AsyncSinkConnection) -> None:
        self._connection = connection
        self._entered: PostgresStatements | None = None

    async def __aenter__(self) -> None:
        statements = self._connection.statements
        await statements.enter()
        self._entered = statements

    async def __aexit__(self, *_error: object) -> None:
        assert self._entered is not None, "who leaves has entered"
        self._entered.leave()


class AsyncSinkCursor(psycopg.AsyncCursor[Any]):
    """A cursor of async handlers: it looks at what it sends."""

    @property
    def raw(self) -> AsyncSinkCursor:
        """The driver's cursor: itself."""
        return self

    async def execute(self, query: Any, *arguments: Any, **options: Any) -> AsyncSinkCursor:
        """Execute a statement. Raises TransactionControl."""
        check_text(query, self)
        await super().execute(query, *arguments, **options)
        return self

    async def executemany(self, query: Any, *arguments: Any, **options: Any) -> None:
        """Execute a statement for each set of parameters. Raises TransactionControl."""
        check_text(query, self)
        await super().executemany(query, *arguments, **options)

    def stream(self, query: Any, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """Iterate over rows as they come. Raises TransactionControl."""
        check_text(query, self)
        return super().stream(query, *arguments, **options)

    def copy(self, statement: Any, *arguments: Any, **options: Any) -> Any:
        """Begin a COPY. Raises TransactionControl."""
        check_text(statement, self)
        return super().copy(statement, *arguments, **options)


class AsyncSinkConnection(psycopg.AsyncConnection[Any]):
    """What async handlers get: all of psycopg's connection but the end of the transaction."""

    statements: PostgresStatements  # of the call that it is lent to

    def __init__(self, plain: SinkConnection) -> None:
        """Made once for each connection of a consumer, and lent to call after call."""
        super().__init__(plain.pgconn)
        self._autocommit = True
        self._prepared = plain._prepared  # noqa: SLF001 - one book for one connection
        self.cursor_factory = AsyncSinkCursor
        self.lock: Any = _Turn(self)

    def __del__(self, *_warn: Any) -> None:
        """Nothing is to be ended: the connection belongs to the consumer."""

    async def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for an answer, as psycopg does, which closes the connection in some cancellations.

        Here the statement is brought to its end, whatever that is, also if cancelled once more.
        """
        if not arguments:
            options.setdefault("interval", LOOK_S)
        try:
            return await wait_async(gen, self.pgconn.socket, *arguments, **options)
        except asyncio.CancelledError:
            self.statements.give_up()
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                await brought_to_end(self._cancelled(gen))
            raise

    async def _cancelled(self, gen: Any) -> None:
        """Have the server cancel a statement; if it does not, close the connection."""
        until = time.monotonic() + CANCEL_S
        while time.monotonic() < until:
            with contextlib.suppress(psycopg.Error):  # it may well end by itself
                await self.cancel_safe(timeout=CANCEL_S)
            try:  # again and again: one that comes before the statement begins is passed over
                async with asyncio.timeout(CANCEL_AGAIN_S):
                    await wait_async(gen, self.pgconn.socket, interval=LOOK_S)
            except TimeoutError:
                continue
            except psycopg.Error:  # of the statement: nobody waits for it
                return
            else:
                return
        self.pgconn.finish()

    async def commit(self) -> None:
        """Refuse: the commit comes when the handler has returned."""
        refuse("commit()")

    async def rollback(self) -> None:
        """Refuse: a handler that raises has done nothing."""
        refuse("rollback()")

    def transaction(self, *_arguments: Any, **_options: Any) -> Any:
        """Refuse: a message is one savepoint already."""
        refuse("transaction()")

    async def close(self) -> None:
        """Refuse: the connection belongs to the consumer."""
        refuse("close()")
