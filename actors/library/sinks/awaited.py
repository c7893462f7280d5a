"""Async handlers on the sink's connection: their statements run beside their event loop.

Theory of operation. Connection, savepoints, checks and commit are those of plain handlers, and the
commit belongs to the I/O thread, which has no loop. While the session is lent, an async handler
sees an async driver's connection over the very same one: psycopg's own speaks to the same libpq
connection in the loop (awaited_postgres.py); for SQLite a thread of the loop's executor works while
the handler waits, behind the face of aiosqlite (awaited_sqlite.py, awaited_aiosqlite.py).

Statements follow each other in the order of their awaits, for they share a connection: whoever
wants it takes the turn. Only the handler at hand may, and tasks that it has begun: a context
variable, which tasks inherit, names the message. What an earlier handler has left running is
refused. It would find the savepoint of another message, or a commit under way in the I/O thread.

Before anything else touches the connection - the end of the message, a rollback, the next message -
`rest` lets nobody in any more and waits until nothing is at work. A statement that was never
awaited, was given up while it ran, or still ran when its handler returned fails the message: what
the handler believes of it would not be what the commit holds.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Generator, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from ...errors import EffectMisused, NotAHandler, OnceMQError, TransactionControl

# Which message the code that runs belongs to, in the eyes of its `Statements`.
_of: ContextVar[object | None] = ContextVar("oncemq_message_of_sql", default=None)


class Statement:
    """A statement that waits to be awaited, once; gives a cursor."""

    def __init__(self, statements: Statements, query: Any, parameters: Sequence[Any]) -> None:
        self._statements = statements
        self._query, self._parameters = query, parameters

    def __await__(self) -> Generator[Any, None, Any]:
        """Execute it. Raises what `Tx.sql` raises."""
        self._statements.awaited(self)
        return self._statements.execute(self._query, self._parameters).__await__()


class Statements(ABC):
    """What async handlers ask of the sink's connection during a call. Belongs to the loop's thread."""

    def __init__(self) -> None:
        """For the messages of one call, one after the other."""
        # Of the message at hand: its mark in the context of its handler, whether that has asked
        # for the connection, and statements that nobody has awaited yet.
        self._message: object | None = None
        self._asked = False
        self._waiting: list[Statement] = []
        self._given_up = False  # somebody stopped waiting for a statement
        self._left_running = False  # something was at work when the handler had returned
        self._turn = asyncio.Lock()

    # --- for each driver -------------------------------------------------------------------------

    @abstractmethod
    def _connection(self) -> Any:
        """Return the async driver's connection, bound to this call. Raises NotAHandler."""

    @abstractmethod
    async def execute(self, query: Any, parameters: Sequence[Any]) -> Any:
        """Execute a statement of `tx.sql`; return a cursor."""

    @abstractmethod
    def _at_work(self, handler: asyncio.Task[Any] | None) -> bool:
        """Whether tasks other than the handler's own have begun something that is not over."""

    @abstractmethod
    def _at_rest(self) -> bool:
        """Whether nothing uses the connection. Raises SinkUnavailable, TransactionControl."""

    @abstractmethod
    async def _over(self, handler: asyncio.Task[Any] | None) -> None:
        """Wait until nothing is at work any more. Raises TransactionControl if that never comes."""

    # --- what handlers do ------------------------------------------------------------------------

    def connection(self) -> Any:
        """Return the connection for the message at hand: `tx.connection`. Raises NotAHandler."""
        self._asked = True
        return self._connection()

    def statement(self, query: Any, parameters: Sequence[Any]) -> Statement:
        """Return a statement to be awaited: `tx.sql`. Raises TransactionControl."""
        self._asked = True
        self.check()
        made = Statement(self, query, parameters)
        self._waiting.append(made)
        return made

    def awaited(self, statement: Statement) -> None:
        """Somebody waits for it now. Raises TransactionControl if somebody did before."""
        if statement not in self._waiting:
            raise TransactionControl("await a statement of tx.sql once, inside its handler")
        self._waiting.remove(statement)

    def check(self) -> None:
        """Raise TransactionControl unless the code that runs may use the connection."""
        if self._message is None or _of.get() is not self._message or not self._asked:
            raise TransactionControl(
                "the sink's connection is for the handler that asked tx.connection for it, and for"
                " tasks that this handler has begun, until it returns",
                hint="use tx.connection in each handler anew, and await in it every task that it starts",
            )

    def give_up(self) -> None:
        """A wait for a statement was cancelled: nobody can say what became of it."""
        if self._message is not None:
            self._given_up = True

    # --- what the runner of handlers does --------------------------------------------------------

    def begin_message(self) -> None:
        """The next handler is called in this context."""
        self._message = object()
        self._asked = False
        _of.set(self._message)

    def check_rest(self, what: str) -> None:
        """Let nobody use the connection during `what`. Raises EffectMisused: somebody does."""
        if self._waiting or self._at_work(None):
            raise EffectMisused(
                f"{what} is called while a statement of tx.sql runs",
                hint="await the calls one after the other",
            )
        self._asked = False  # a connection that somebody has kept is refused until asked for again

    async def rest(self) -> None:
        """The handler is over: wait until nothing is at work, also if that wait is cancelled.

        Raises SinkUnavailable, and TransactionControl if it cannot be brought to rest.
        """
        self._message = None
        handler = asyncio.current_task()
        self._left_running = self._at_work(handler)
        if self._at_rest():
            return
        await brought_to_end(self._over(handler))
        assert self._at_rest(), "no task gets the connection any more"

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


async def brought_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` until it is done; a cancellation that comes meanwhile is raised after it."""
    cancelled: asyncio.CancelledError | None = None
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


def refuse(what: str) -> NoReturn:
    """Say that handlers may not do something to the connection."""
    raise TransactionControl(f"{what} of the sink's connection is refused")
