"""One handler run of a consumer whose ledger is a table: its steps take time, one after the other.

Between two steps the rest of the process has its turns, the process may freeze or die, and the
database may go away: in production that is the thread of handlers beside the I/O thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from sqlite3 import Error
from typing import Any, Protocol, TypeVar
from zlib import crc32

from ...core.consumer.work import AGAIN, CRASHED, RAISED, FailedMessage, HandlerDone, RunHandler
from ...errors import SinkConflict, SinkLocked
from ...shells.tables.session import Session
from ..database.database import Conflict, Database, Full, Lost, Waits
from ..oracles.log import Place
from ..oracles.table import account_of
from ..plan import FILE, SERVER
from ..trace import Violation
from .handler import ADD_UP, PAY, amount_of, failures_of, fate_of
from .handler_run import Blocked, Caller, Doing, HandlerRun

WAIT_MS = 20  # until a handler that waits for a lock tries again
BUSY_MS = 5_000  # for how long it waits for another process that writes to a file
DROPPED_ANSWERS = 0.04  # odds that a run is begun anew although it was over
STEP_ODDS = 0.3  # that a fault which waits for the run strikes at a step
HASTE = 0.6  # odds that no time passes between two steps

_T = TypeVar("_T")
Steps = Generator[int, None, _T]  # yields for how many milliseconds nothing happens


class TableCaller(Caller, Protocol):
    """The process of a run, as the run sees it (consumer_table.py)."""

    database: Database
    cut_asked: bool
    # What happens at a step of the next run, which may be the last one.
    interlude: Callable[[], None] | None

    @property
    def place(self) -> Place:
        """(group, topic, partition)."""


class TableRun(HandlerRun):
    """Carries out one run step by step."""

    def __init__(
        self, shell: TableCaller, session: Session, run: RunHandler, takes_ms: int
    ) -> None:
        """`takes_ms` is rough."""
        super().__init__(shell, run, cut=shell.cut_asked)
        self._shell: TableCaller = shell
        self._session = session
        self._database = shell.database
        self._takes_ms = takes_ms
        self._steps = self._all_steps()
        self._last = (b"", b"", 0)  # identity, body and attempt of the message at hand

    def answer(self) -> HandlerDone | None:
        """Do the next step; return what handlers did. Raises Blocked before the last one.

        Raises what ends the consumer, too: SinkUnavailable, Fenced.
        """
        if self._run.deaths:
            return self._crashed()
        try:
            while True:
                pause_ms = next(self._steps) or self._interlude_ms()
                if pause_ms:
                    self._shell.go_on_in(pause_ms)
                    raise Blocked
        except StopIteration as done:
            answer: HandlerDone | None = done.value
            return answer

    def _interlude_ms(self) -> int:
        """A fault planned for this run may strike here."""
        shell, interlude = self._shell, self._shell.interlude
        if interlude is None or shell.rng.random() > STEP_ODDS:
            return 0
        shell.interlude = None
        interlude()
        return 1

    def _pause_ms(self) -> int:
        rng = self._shell.rng
        return 0 if rng.random() < HASTE else rng.choice((1, 5, 1 + self._takes_ms // 4))

    def _all_steps(self) -> Steps[HandlerDone | None]:
        while True:
            done = yield from self._call()
            dropped = self._shell.rng.random() < DROPPED_ANSWERS and not self._world.healing
            if not dropped or done is None:
                return done
            # As if the answer had got lost: the session is to take back what it left open.
            self._world.trace.add(self._shell.name, "answer dropped")

    def _call(self) -> Steps[HandlerDone | None]:
        """Step by step what a call of library/handling does."""
        run, session = self._run, self._session
        session.start_call((run.epoch, run.private, run.first_offset))
        try:
            doing = Doing(self._shell, run)
            yield 1
            failure, died = yield from self._messages_one_by_one(doing)
            if died:
                return None
            failure, doing = self._settled(doing, failure)
            yield self._pause_ms()
            yield from self._patiently(lambda: session.end_call(keep=doing.handled > 0))
        except SinkConflict as conflict:
            session.run_again()
            self._world.trace.add(self._shell.name, "sql.conflict in a call")
            jitter = self._shell.rng.random()
            again = FailedMessage("", conflict.reason, conflict, "", jitter, AGAIN)
            return Doing(self._shell, run).done(again)
        except Exception:
            session.abandon()
            raise
        yield self._pause_ms()  # the answer is on its way to the I/O thread
        return doing.done(failure)

    def _messages_one_by_one(self, doing: Doing) -> Steps[tuple[FailedMessage | None, bool]]:
        """Return the failure that ends the run, and whether the process died instead."""
        stop_after = 1 if self._session.solo else self._stop_after
        for identity, body, _ in self._messages():
            self._last = (identity, body, doing.attempt)
            yield self._pause_ms()
            try:
                yield from self._pay(identity, doing.attempt)
                if fate_of(identity, replayed=self._run.private) == CRASHED:
                    return None, True
                doing.handle(identity, body)
                self._session.accept()
            except (ValueError, Error, Conflict, Lost, Full, SinkLocked) as error:
                self._session.reject(error)
                kind = fate_of(identity, replayed=self._run.private) or RAISED
                return self._failure(identity, body, kind, doing.attempt), False
            if doing.handled >= stop_after or self._shell.cut_asked:
                break
        return None, False

    def _pay(self, identity: bytes, attempt: int) -> Steps[None]:
        """What a handler writes. Raises ValueError if the message cannot be handled."""
        shell, amount = self._shell, amount_of(identity)
        account = account_of(shell.place)
        fate = fate_of(identity, replayed=self._run.private)
        wrong = fate != CRASHED and (fate != "" or attempt <= failures_of(identity))
        late = wrong and self._found_late(identity)
        statements: list[tuple[str, tuple[Any, ...]]] = [
            (PAY, (account, identity, -1 if late else amount)),
            (ADD_UP, (amount, account)),
        ]
        if crc32(identity) % 2:
            statements.reverse()
        for text, values in statements:
            yield from self._patiently(partial(self._session.sql, text, values))
            yield self._pause_ms()
        if wrong and not late:
            raise ValueError(f"{identity!r} cannot be handled")

    def _found_late(self, identity: bytes) -> bool:
        """Whether only a constraint that is checked at the end refuses the handler's rows."""
        fate = fate_of(identity, replayed=self._run.private)
        server = self._database.kind == SERVER
        return server and fate in {"", RAISED} and crc32(b"late" + identity) % 2 == 0

    def _settled(
        self, doing: Doing, failure: FailedMessage | None
    ) -> tuple[FailedMessage | None, Doing]:
        """If the database refuses all of it, nothing has happened, and messages come alone."""
        try:
            self._session.settle(doing.handled)
        except (Error, Lost) as error:
            self._session.reject(error)
            alone = doing.handled == 1 and failure is None
            identity, body, attempt = self._last
            told = self._failure(identity, body, RAISED, attempt) if alone else None
            return told, Doing(self._shell, self._run)
        return failure, doing

    def _patiently(self, work: Callable[[], Any]) -> Steps[None]:
        clock, bounded = self._world.clock, self._database.kind == FILE
        until_ms = clock.now_ms() + BUSY_MS
        while True:
            try:
                work()
            except Waits as waits:
                if bounded and clock.now_ms() >= until_ms:
                    if self._world.at_rest:
                        raise Violation("starved", f"{self._shell.name}: {waits}") from None
                    raise SinkLocked(str(waits)) from None
                yield WAIT_MS
            else:
                return
