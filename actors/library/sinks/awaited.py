"""`await tx.sql(...)`: statements of async handlers, executed beside their event loop.

Theory of operation. The connection is the same as for plain handlers, and so are savepoint, checks
and commit; the commit belongs to the I/O thread, which has no loop, so a connection that is bound
to one could not be handed over. A statement runs in a thread of the loop's executor while its
handler waits. Statements of one handler follow each other in the order of their awaits, for they
share a connection: each runs in a task of its own, which holds the turn until the thread is done,
also when nobody waits for it any more.

Before anything else touches the connection - the end of the message, a rollback, the next message -
`rest` waits until no thread is at work. A statement that was never awaited, or given up while it
ran, fails the message: what the handler believes of it would not be what the commit holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from typing import Any

from ...errors import OnceMQError, TransactionControl
from ..effect_errors import EffectMisused
from ..shapes import NotAHandler
from .session import Session

FETCH_ROWS = 256  # of an `async for`, at a time


class Statement:
    """A statement that waits to be awaited, once; gives an AsyncCursor."""

    def __init__(self, statements: Statements, query: Any, parameters: Sequence[Any]) -> None:
        self._statements = statements
        self._query, self._parameters = query, parameters

    def __await__(self) -> Generator[Any, None, AsyncCursor]:
        """Execute it. Raises what `Tx.sql` raises."""
        return self._execute().__await__()

    async def _execute(self) -> AsyncCursor:
        statements = self._statements
        statements.awaited(self)
        cursor = await statements.work(
            lambda: statements.session.sql(self._query, self._parameters)
        )
        return AsyncCursor(statements, cursor)


class Statements:
    """What an async handler has asked of the sink's connection. Belongs to the loop's thread."""

    def __init__(self, session: Session) -> None:
        """For the calls of one consumer; one message at a time."""
        self.session = session
        # Of the message at hand: statements that nobody has awaited yet, and work under way.
        self._waiting: list[Statement] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn: asyncio.Lock | None = None
        # Whether somebody stopped waiting for work that went on.
        self._given_up = False

    def statement(self, query: Any, parameters: Sequence[Any]) -> Statement:
        """Return a statement to be awaited."""
        made = Statement(self, query, parameters)
        self._waiting.append(made)
        return made

    def awaited(self, statement: Statement) -> None:
        """Somebody waits for it now. Raises TransactionControl if somebody did before."""
        if statement not in self._waiting:
            raise TransactionControl("a statement of tx.sql is awaited once, inside its handler")
        self._waiting.remove(statement)

    async def work(self, do: Callable[[], Any]) -> Any:
        """Do something with the connection in a thread, after all that was begun before."""
        task = asyncio.ensure_future(self._in_turn(do))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._given_up = True
            raise

    async def _in_turn(self, do: Callable[[], Any]) -> Any:
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            return await asyncio.to_thread(do)

    def check_rest(self, what: str) -> None:
        """Raise EffectMisused if anything is under way beside `what`."""
        if self._waiting or self._tasks:
            raise EffectMisused(
                f"{what} is called while a statement of tx.sql is under way",
                hint="await one after the other",
            )

    async def rest(self) -> None:
        """Wait until no thread uses the connection, also if the waiting is cancelled meanwhile."""
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(set(self._tasks))
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def end_message(self) -> OnceMQError | None:
        """Return what is wrong with the statements of the message at hand, and forget them."""
        wrong: OnceMQError | None = None
        if self._waiting:
            wrong = NotAHandler("tx.sql was not awaited: in an async handler, `await tx.sql(...)`")
        elif self._given_up:
            wrong = TransactionControl(
                "the handler gave up a statement that may have been executed"
            )
        self._waiting.clear()
        self._given_up = False
        return wrong


class AsyncCursor:
    """The driver's cursor for async handlers: what waits is awaited."""

    def __init__(self, statements: Statements, cursor: Any) -> None:
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
