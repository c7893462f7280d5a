"""`await tx.sql(...)`: statements of async handlers run in a thread, the event loop goes on.

Theory of operation. Connection, savepoints, checks and commit are those of plain handlers. Each
piece of work - a statement, a fetch - runs in a thread of the loop's executor. Pieces follow each
other in the order of their awaits, because they share one connection: each is a task that holds
the turn until its thread is done, also when its handler has stopped waiting for it.

Only the handler at hand, and tasks that it has begun, may use the connection: a context variable,
which tasks inherit, names the message. A task that an earlier handler left running would find the
savepoint of another message, or a commit under way in the I/O thread; it is refused.

Before anything else touches the connection - the end of the message, a rollback, the next message -
`rest` lets in nothing new and waits until no thread is at work. A statement that was never awaited,
whose wait was cancelled, or that still ran when its handler returned fails the message: what the
handler believes of it would not be what the commit holds.

PostgreSQL is asked to end a statement that no handler waits for, and asked again until the
statement is over: a request that arrives before the statement begins has no effect. The turn ends
after the last request has returned, so that no request hits the next statement. SQLite runs a
statement to its end: sqlite3_interrupt would roll back the whole transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextvars import ContextVar
from typing import Any

from ...errors import EffectMisused, NotAHandler, OnceMQError, TransactionControl
from ...shells.tables.session import Session
from ..coroutines import to_the_end

FETCH_ROWS = 256  # of an `async for`, at a time
INTERRUPT_AGAIN_S = 0.25

# The message that the running code belongs to, as its `Statements` mark it.
_message_at_hand: ContextVar[object | None] = ContextVar("oncemq_message_of_sql", default=None)


class Statement:
    """A statement to be awaited, once. Gives an AsyncCursor; raises what `Tx.sql` raises."""

    def __init__(self, statements: Statements, query: Any, parameters: Sequence[Any]) -> None:
        self._statements = statements
        self.query, self.parameters = query, parameters

    def __await__(self) -> Generator[Any, None, AsyncCursor]:
        return self._statements.execute(self).__await__()


class Statements:
    """The statements of the messages of one call. Belongs to the loop's thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # Mark of the message at hand in the context of its handler; None: no handler runs.
        self._message: object | None = None
        # What statements and cursors must carry to be used. A new one after each effect, since the
        # transaction that they belong to is gone then.
        self._era: object | None = None
        self._waiting: list[Statement] = []  # made, and not awaited yet
        self._given_up = False  # the wait for a statement was cancelled
        self._left_running = False  # a statement was at work when the handler had returned
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()  # those that hold the turn or wait for it
        self._holder: asyncio.Task[Any] | None = None  # whose thread is at work ...
        self._work: asyncio.Future[Any] | None = None  # ... the end of that thread's work ...
        self._interrupter: asyncio.Task[None] | None = None  # ... and who asks the server to end it

    # --- what handlers do ------------------------------------------------------------------------

    def statement(self, query: Any, parameters: Sequence[Any]) -> Statement:
        """Raises TransactionControl."""
        self._check(self._era)
        made = Statement(self, query, parameters)
        self._waiting.append(made)
        return made

    async def execute(self, statement: Statement) -> AsyncCursor:
        """Called the first time that the statement is awaited."""
        if statement not in self._waiting:
            raise TransactionControl("await a statement of tx.sql once, inside its handler")
        self._waiting.remove(statement)
        era, session = self._era, self._session
        cursor = await self.work(lambda: session.sql(statement.query, statement.parameters), era)
        return AsyncCursor(self, cursor, era)

    async def work(self, do: Callable[[], Any], era: object | None) -> Any:
        """Call `do` in a thread, after all work that was begun before. Raises what it raises."""
        self._check(era)
        task = asyncio.ensure_future(self._in_turn(do, era))
        self._tasks.add(task)
        task.add_done_callback(self._is_over)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._given_up = self._given_up or era is self._era
            self._stop(task)
            raise

    def _is_over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved here too: a handler that gave up does not look at it

    def _check(self, era: object | None) -> None:
        """Raise TransactionControl unless the code that runs may use the connection."""
        mine = self._message is not None and _message_at_hand.get() is self._message
        if not mine or era is not self._era:
            raise TransactionControl(
                "tx.sql and its cursors are for the handler at hand, and for tasks that this"
                " handler has begun, until it returns",
                hint="await each task, or use asyncio.TaskGroup",
            )

    async def _in_turn(self, do: Callable[[], Any], era: object | None) -> Any:
        async with self._turn:
            self._check(era)  # the wait for the turn may have outlasted the handler
            self._holder = asyncio.current_task()
            self._work = asyncio.get_running_loop().run_in_executor(None, do)
            try:
                return await self._work
            finally:
                self._holder = self._work = None
                interrupter, self._interrupter = self._interrupter, None
                if interrupter is not None:
                    await interrupter

    def _stop(self, task: asyncio.Task[Any]) -> None:
        """The result of a task is not wanted any more: it never begins, or ends early if it can."""
        if task is not self._holder:
            task.cancel()
        elif self._session.interrupts and self._interrupter is None and self._work is not None:
            self._interrupter = asyncio.ensure_future(self._interrupt(self._work))

    async def _interrupt(self, work: asyncio.Future[Any]) -> None:
        while not work.done():
            await asyncio.to_thread(self._session.interrupt)
            await asyncio.wait({work}, timeout=INTERRUPT_AGAIN_S)

    # --- what the runner of handlers does --------------------------------------------------------

    def begin_message(self) -> None:
        """The next handler is called in this context."""
        self._message, self._era = object(), object()
        _message_at_hand.set(self._message)

    def check_rest(self, what: str) -> None:
        """`what` takes the transaction away. Raises EffectMisused if a statement is under way."""
        if self._waiting or self._tasks:
            raise EffectMisused(
                f"{what} is called while a statement of tx.sql runs",
                hint="await the calls one after the other",
            )
        self._era = object()

    async def rest(self) -> None:
        """The handler is over: wait until no thread is at work, also if that wait is cancelled."""
        self._message = self._era = None
        self._left_running = bool(self._tasks)
        if self._tasks:
            _, cancelled = await to_the_end(self._ended())
            if cancelled is not None:
                raise cancelled

    async def _ended(self) -> None:
        for task in set(self._tasks):
            self._stop(task)
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def end_message(self) -> OnceMQError | None:
        """Return what is wrong with the statements of the message at hand, and forget them."""
        wrong: OnceMQError | None = None
        if self._waiting:
            wrong = NotAHandler(
                "tx.sql was not awaited; in an async handler write: await tx.sql(...)"
            )
        elif self._given_up:
            wrong = TransactionControl(
                "the handler cancelled a statement that the database may have executed"
            )
        elif self._left_running:
            wrong = TransactionControl(
                "the handler returned while one of its tasks used the sink's connection",
                hint="await each task, or use asyncio.TaskGroup",
            )
        self._waiting.clear()
        self._given_up = self._left_running = False
        return wrong


class AsyncCursor:
    """The driver's cursor for async handlers: what may wait is awaited."""

    def __init__(self, statements: Statements, cursor: Any, era: object | None) -> None:
        self._statements = statements
        self._cursor = cursor
        self._era = era

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed, as the driver says."""
        return int(self._cursor.rowcount)

    @property
    def description(self) -> Any:
        """The columns, as the driver says."""
        return self._cursor.description

    async def fetchone(self) -> Any:
        """Return the next row, or None."""
        return await self._statements.work(self._cursor.fetchone, self._era)

    async def fetchmany(self, size: int) -> list[Any]:
        """Return at most `size` rows."""
        found: list[Any] = await self._statements.work(
            lambda: self._cursor.fetchmany(size), self._era
        )
        return found

    async def fetchall(self) -> list[Any]:
        """Return all rows that are left."""
        found: list[Any] = await self._statements.work(self._cursor.fetchall, self._era)
        return found

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Yield the rows that are left."""
        while rows := await self.fetchmany(FETCH_ROWS):
            for row in rows:
                yield row
