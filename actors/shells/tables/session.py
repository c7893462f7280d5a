"""One connection of one consumer, lent to its handlers and taken back for the commit.

Theory of operation. Two threads use the connection, never at the same time:

    handlers' thread                          I/O thread
    ----------------                          ----------
    start_call                      <------   RunHandler, expect_call (nothing is open)
    use, accept, reject ... per message
    hand_in (an empty transaction)   ------>  join, the record of an effect, commit
    call of the effect: nothing open <------  lend_again
    end_call (a transaction is open) ------>  join, execute ..., commit      (SqlLog.sync)

The hand-over is explicit: `_place` says whose turn it is and is changed under a lock; HandlerDone
and RunHandler, which carry the turn, pass queues of their own, so memory is ordered too. That is
why SQLite's check of the thread may be switched off. A call that ends with something to commit
always hands over an open transaction: a lock is waited for in the thread of handlers, where a wait
keeps no lease waiting. The open transaction is known by (epoch, first offset) of its call, and
only the commit that begins there may join it; what belongs to a call that was dropped is rolled
back by whoever comes next. A session that fails is never mended: it is closed, and a new one reads
from the database what became of its last transaction.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from ...errors import (
    Fenced,
    OnceMQError,
    SinkLocked,
    SinkUnavailable,
    StorageError,
    TransactionControl,
)
from .sql_text import bound, first_line

_T = TypeVar("_T")

IDLE = "idle"  # nothing is open; the I/O thread may use it
LENT = "lent"  # to a call in the thread of handlers
RETURNED = "returned"  # the call is over, its transaction open
JOINED = "joined"  # the I/O thread writes into the open transaction
CLOSED = "closed"

SOLO_CALLS = 100  # after the database has refused a whole call
CONFLICT_SOLO_CALLS = 10  # after it wanted one again: a short transaction meets fewer others

CallId = tuple[int, bool, int]  # (epoch, whether of the private topic, first offset)


class Session(ABC):
    """One connection to a database of one kind. The methods of each thread are grouped.

    What each kind of database says for itself, how a session connects, begins, ends and fails, is
    abstract here.
    """

    # What the statements that make tables leave open, and what goes before them.
    types: ClassVar[Mapping[str, str]]
    before_tables: ClassVar[str] = ""
    # Whether `interrupt` can end a statement without ending its transaction.
    interrupts: ClassVar[bool] = False

    def __init__(self, shown: str) -> None:
        """`shown` is the address as people may see it."""
        self.shown = shown
        self._mutex = threading.Lock()
        self._place = CLOSED  # whose turn it is. Invariant: changed under the mutex
        # Whether a call is on its way that will have it. Invariant: as above.
        self._expected = False
        # Whether a transaction is open; of which call.
        self._open = False
        self._call: CallId | None = None
        self._paused: CallId | None = None  # the call that has handed in its transaction last
        self._marked = False  # whether the message at hand has a savepoint
        # Set when the transaction is not ours any more: nothing of the call may be committed.
        self._broken: TransactionControl | None = None
        # What the database has said of itself to the running call, even if the handler took it.
        self._trouble: OnceMQError | None = None
        # So many calls to come have one message each, to show which one the database refuses.
        self._solo_calls = 0
        # Whether all of the running call was taken back.
        self.undone = False
        # Why a call that is still running will never be committed.
        self._doomed: OnceMQError | None = None
        # A handler's statement that was refused, until it was told.
        self._refused: str | None = None
        self._executing = False  # whether a handler's statement runs

    # --- the thread of handlers ------------------------------------------------------------------

    def start_call(self, call: CallId) -> None:
        """Begin to lend the connection to a call. Raises SinkUnavailable, Fenced."""
        with self._mutex:
            if self._place == CLOSED:
                raise self._doomed or SinkUnavailable(f"{self.shown}: the connection is closed")
            assert self._place != JOINED, "a commit is over before the next call"
            stale = self._place == RETURNED
            self._place, self._call = LENT, call
            self._expected = self.undone = False
            self._trouble = None
        if stale:
            self._checked(self._roll_back)
        else:
            self._ended()  # a wish of the I/O thread to write waits for this call now, not it for that

    def use(self) -> Any:
        """Return the connection for the message at hand, inside its savepoint.

        Raises SinkUnavailable, SinkLocked, Fenced.
        """
        if self._doomed is not None:
            raise self._doomed
        assert self._place == LENT, "only a call uses the connection"
        if not self._open:
            self._checked(self._open_for_handlers)
        elif not self._in_transaction():
            raise self._ended_inside()
        if not self._marked:
            self._checked(lambda: self._run("SAVEPOINT oncemq_message"))
            self._marked = True
        return self._handed_out

    def sql(self, query: Any, parameters: Sequence[Any]) -> Any:
        """Return the driver's cursor. Raises TransactionControl."""
        self.use()
        self._executing = True
        try:
            return self._execute(query, parameters)
        finally:
            self._executing = False

    def interrupt(self) -> None:
        """End the handler's statement that another thread executes, if there is one.

        What `use` does before that statement is never hit: it would look like a lost database.
        """
        if self._executing:
            self._interrupt()

    def _open_for_handlers(self) -> None:
        self._begin(waits=True)
        self._open = True

    def _break(self, reason: str) -> TransactionControl:
        self._broken = TransactionControl(reason)
        return self._broken

    def _ended_inside(self) -> OnceMQError:
        if self.broken:
            return SinkUnavailable(f"{self.shown}: the connection broke")
        return self._break("the handler ended the transaction")

    def note(self, error: BaseException) -> None:
        """Remember what an error of the lent connection says about the database.

        No handler can settle that: the call fails with it also if the handler has caught the error.
        """
        self._trouble = self._trouble or self._translated(error)

    def accept(self) -> None:
        """The handler has returned: keep what it did. Raises TransactionControl, SinkUnavailable."""
        if self._trouble is not None:
            raise self._trouble
        if not self._marked:
            return
        self._marked = False
        self._refused = None
        if not self._in_transaction():
            raise self._ended_inside()
        try:
            self._run("RELEASE SAVEPOINT oncemq_message")
        except Exception as error:
            lost = self._translated(error)
            if lost is not None:
                raise lost from error
            raise self._break(
                f"the handler ended the transaction and began another one: {first_line(error)}"
            ) from error

    @property
    def solo(self) -> bool:
        """Whether a call is to end after its first message."""
        return self._solo_calls > 0

    def settle(self, handled: int) -> None:
        """All messages are handled: let the database check what it would check at COMMIT.

        What it raises is an error of the call; `reject` takes all of it back then.
        """
        if self._open and handled:
            self.undone = True
            self._settle()
            self.undone = False
            self._solo_calls = max(0, self._solo_calls - 1)

    def reject(self, error: BaseException) -> BaseException:
        """The handler raised `error`: take back what it did; return what is to be told of it.

        Raises SinkUnavailable if the database is gone, and TransactionControl if the transaction
        is: then nothing of the call may be committed.
        """
        gone = self._trouble or (error if isinstance(error, SinkUnavailable) else None)
        gone = gone or self._left_handler(error)
        if gone is not None or self._doomed is not None or self._broken is not None:
            why = self._doomed or self._broken or gone or error
            raise why from (error.__cause__ if why is error else error)
        if self.undone:
            self._checked(self._roll_back)
            self._solo_calls = SOLO_CALLS
            return error
        refused, self._refused = self._refused, None
        if refused is not None and not isinstance(error, TransactionControl):
            told = TransactionControl(f"{refused} is refused in a handler")
            told.__cause__ = error
            error = told
        if self._marked:
            self._marked = False
            if not self._in_transaction():
                raise self._ended_inside() from error
            self._checked(self._undo_message)
        return error

    def _undo_message(self) -> None:
        self._run("ROLLBACK TO SAVEPOINT oncemq_message")
        self._run("RELEASE SAVEPOINT oncemq_message")

    def end_call(self, *, keep: bool) -> None:
        """Give the connection back: with an open transaction (`keep`), or with nothing open.

        Raises SinkUnavailable, SinkLocked, Fenced; the connection is to be abandoned then.
        """
        if self._doomed is not None:
            raise self._doomed
        if keep:
            if not self._open:
                self._checked(self._open_for_handlers)
            self._checked(self._hand_over)
        elif self._open:
            self._checked(self._roll_back)
        with self._mutex:
            assert self._place == LENT, "only what was lent is given back"
            self._place = RETURNED if keep else IDLE
        if self.doomed:
            self.close()

    def run_again(self) -> None:
        """The database wants the call run again: nothing of it stays, and the connection is given back.

        Raises SinkUnavailable, Fenced; the connection is to be abandoned then.
        """
        self.keep_short()
        self.end_call(keep=False)

    def keep_short(self) -> None:
        """After a conflict the next calls have one message each. Call it while no call runs."""
        self._solo_calls = max(self._solo_calls, CONFLICT_SOLO_CALLS)

    @property
    def open(self) -> bool:
        return self._open

    def hand_in(self, *, patient: bool = False) -> None:
        """The call waits for a record of its own: hand over an empty transaction for it.

        What is open is rolled back. A `patient` one waits for a lock for as long as anybody could
        commit. Raises what `end_call` raises; the connection is the call's again with `lend_again`.
        """
        if self._open:
            self._checked(self._empty)
        self._paused = self._call
        while True:
            try:
                self.end_call(keep=True)
            except SinkLocked:
                if not patient or self.doomed:
                    raise
            else:
                return

    def _empty(self) -> None:
        """Roll back, and let nobody else write before this call has had its record."""
        self._marked = False
        if self._in_transaction():
            self._end("ROLLBACK")
        self._open = False

    def abandon(self) -> None:
        """The call ends without an answer: nothing of it stays."""
        with self._mutex:
            if self._place != LENT:
                return
            self._place = IDLE
        self.close()

    # --- the I/O thread --------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether the I/O thread may use the connection: no call has it or will have it next."""
        with self._mutex:
            return self._place == IDLE and not self._expected

    def expect_call(self) -> None:
        """A call is on its way: until it has answered the connection is its own."""
        with self._mutex:
            self._expected = True

    def answered(self) -> None:
        with self._mutex:
            self._expected = False

    @property
    def connected(self) -> bool:
        return self._place != CLOSED

    def must_wait(self, call: CallId | None) -> bool:
        """Whether the I/O thread cannot write now; `call`: for which call, if for any."""
        with self._mutex:
            if self._place == RETURNED:
                return call is None or call != self._call
            return self._place != IDLE or self._expected or not self._may_begin()

    def forget_wish(self) -> None:
        """Nothing is to be written: a wish of earlier, which kept handlers waiting, is over."""
        if self._place == IDLE:
            self._ended()

    def connect(self) -> None:
        """Raises SinkUnavailable, BadSink."""
        if self._place != CLOSED:
            return
        assert self._doomed is None, "a session that was given up is not used again"
        self._checked(self._connect)
        self._place = IDLE

    def join(self, call: CallId | None) -> None:
        """Take the transaction that this call left open, or begin one (None: of our own).

        Raises SinkUnavailable, SinkLocked, and StorageError if what is open belongs to another
        call: neither may be committed in the place of the other.
        """
        with self._mutex:
            assert self._place in {IDLE, RETURNED}, "a call may still be writing"
            theirs = self._place == RETURNED
            if theirs and self._call != call:
                raise StorageError(f"{self.shown}: the open transaction is of {self._call}")
            self._place = JOINED
        if not theirs:
            try:
                self._checked(self._begin_own)
            except BaseException:
                with self._mutex:
                    self._place = IDLE
                raise

    def _begin_own(self) -> None:
        self._begin(waits=False)
        self._open = True

    def lend_again(self) -> None:
        """The record that the call waits for is made, or none is: the call goes on."""
        self.drop()
        with self._mutex:
            if self._place == IDLE:
                self._place, self._call = LENT, self._paused

    def drop(self) -> None:
        """Roll back what a call has handed over: nothing of it counts."""
        if self._place == RETURNED:
            self.roll_back()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Raises SinkUnavailable, SinkLocked."""
        return self._checked(lambda: [tuple(row) for row in self._run(statement, values)])

    def change(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement of ours; return how many rows changed."""
        return int(self._checked(lambda: self._run(statement, values).rowcount))

    def commit(self) -> None:
        """Make the transaction durable.

        Raises SinkUnavailable: whether it is committed is not known then, and the session is over.
        """
        self._checked(lambda: self._end("COMMIT"))
        self._over()

    def roll_back(self) -> None:
        assert self._place != LENT, "a call may still be writing"
        self._checked(self._roll_back)
        self._over()

    def give_up(self) -> None:
        """Roll back after an error, which is the one to be told: what fails now is over anyway."""
        with contextlib.suppress(SinkUnavailable):
            if self._place in {JOINED, RETURNED}:
                self.roll_back()

    def _over(self) -> None:
        self._open = False
        self._call = None
        with self._mutex:
            self._place = IDLE
        self._ended()

    def close(self, why: OnceMQError | None = None) -> None:
        """What is open is rolled back; a running call closes the connection when it ends."""
        with self._mutex:
            self._doomed = self._doomed or why or Fenced("this consumer has ended")
            if self._place in {LENT, CLOSED}:
                return
            self._place = CLOSED
        self._disconnect()
        self._open = False
        self._ended()

    @property
    def doomed(self) -> bool:
        """Whether nothing more will be committed here."""
        return self._doomed is not None

    # --- both ------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        self._marked = False
        if self._open and self._in_transaction():
            self._end("ROLLBACK")
        self._open = False
        self._ended()

    # --- what each kind of database says for itself ----------------------------------------------

    @abstractmethod
    def _connect(self) -> None:
        """Open the connection and make its settings safe. Raises SinkUnavailable, BadSink."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close the connection."""

    @abstractmethod
    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Execute a statement of ours; return the driver's cursor. Raises its errors."""

    def _execute(self, query: Any, parameters: Sequence[Any]) -> Any:
        """Execute a handler's statement, inside its savepoint."""
        return self._handed_out.execute(query, *bound(parameters))

    def _interrupt(self) -> None:
        """Ask the database to end the statement that runs. Any thread may call it."""

    @abstractmethod
    def _begin(self, *, waits: bool) -> None:
        """Open a transaction that may write; `waits`: in the thread of handlers."""

    @abstractmethod
    def _end(self, verb: str) -> None:
        """COMMIT or ROLLBACK."""

    def _ended(self) -> None:
        """The transaction is over, or the wish to begin one."""

    @abstractmethod
    def _in_transaction(self) -> bool:
        """Whether a transaction is open, as the driver says."""

    def sync_read(self) -> None:
        """Make durable what was read, before the broker is told of it. Raises StorageError."""

    def check_in_place(self) -> None:
        """Raise StorageError if what is committed here would not be found again at its address."""

    def _settle(self) -> None:
        """Check now what the database would check at COMMIT: here a handler can still be told."""

    def _hand_over(self) -> None:
        """The handlers are done with the open transaction; the I/O thread comes next."""

    @abstractmethod
    def _translated(self, error: BaseException) -> OnceMQError | None:
        """Return what an error of this connection says about the database; None: about a statement.

        SinkConflict to run the transaction again, SinkUnavailable for an outage; what no waiting mends
        is BadSink or StorageError.
        """

    def _left_handler(self, error: BaseException) -> OnceMQError | None:
        """As `_translated`, for an error that left a handler: it may be of another connection."""
        return self._translated(error)

    @abstractmethod
    def _is_of_driver(self, error: BaseException) -> bool:
        """Whether the driver raises such errors."""

    @property
    def broken(self) -> bool:
        """Whether the connection is of no use any more, as far as this side knows."""
        return False

    @property
    @abstractmethod
    def _handed_out(self) -> Any:
        """The connection that handlers see."""

    def _may_begin(self) -> bool:
        """Whether the I/O thread would begin a transaction without waiting for this process."""
        return True

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Whether a table is there, in the I/O thread."""

    @abstractmethod
    def has_column(self, table: str, name: str) -> bool:
        """Whether a table has a column, in the I/O thread."""

    def _checked(self, work: Callable[[], _T]) -> _T:
        """Do work of ours; whatever the driver says against it is about the database."""
        try:
            return work()
        except Exception as error:
            lost = self._translated(error)
            if lost is None and self._is_of_driver(error):
                lost = SinkUnavailable(f"{self.shown}: {first_line(error)}")
            if lost is None:
                raise
            if self._place == LENT:  # a handler that catches it does not settle it either
                self._trouble = self._trouble or lost
            raise lost from error
