"""One call: a consumer's handler is given a window of messages, and answers what it did.

A call is composed of a runner, one for each way of calling (make_call.py chooses): messages in order
with one unit of work (in_order.py), or by key with a unit of work for each message (by_key.py). What
may be a handler is decided in shapes.py, what becomes of a message that failed in failures.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.consumer.work import FailedMessage, HandlerDone, RunHandler
from ...limits import CRASH_RETRIES_DEFAULT, PARK_LIMIT_DEFAULT, RETRIES_DEFAULT
from ...records import Output
from ...topic_settings import TopicWish
from ..coroutines import run_without_loop
from .incoming import Place, place_of
from .shapes import PLAIN, Shape
from .unit_of_work import UnitOfWork

# (message, tx) or (messages, tx), plain or async: shapes.py tells which.
Handler = Callable[[Any, Any], object]

# The unit of work of the handlers that run in this context: where log lines find the message.
current: ContextVar[UnitOfWork | None] = ContextVar("oncemq_current", default=None)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A handler and what it consumes."""

    topic: str
    group: str
    handler: Handler
    retries: int = RETRIES_DEFAULT
    crash_retries: int = CRASH_RETRIES_DEFAULT
    no_retry: tuple[type[Exception], ...] = ()  # parked at the first attempt, as by Reject
    park: bool = True  # False: the consumer stops where it would park
    shape: Shape = PLAIN
    sink: str | None = None  # address of the database that keeps the ledger and what tx.sql writes
    park_limit: int | None = PARK_LIMIT_DEFAULT  # parked in a row with one type of error; None: any
    topics: Mapping[str, TopicWish] = field(default_factory=dict)  # that the App has declared


@dataclass(slots=True)
class Handled:
    """What a runner did: the first `count` messages of the window, and the one behind them failed."""

    count: int = 0
    state: dict[str, bytes | None] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    size: int = 0  # bytes of both, about
    failure: FailedMessage | None = None


class Runner(Protocol):
    """How the messages of one window reach a handler."""

    def cut(self) -> None:
        """Begin no further message. Any thread may call it."""

    async def work_through(self, place: Place) -> Handled:
        """Handle messages until the window ends, a bound is met, or one fails.

        Suspends only for async handlers. A handler's error comes back as a failure; SinkUnavailable,
        Fenced and TransactionControl go through, and nothing of the call may be committed then.
        """


class Call:
    """One RunHandler being carried out."""

    def __init__(self, run: RunHandler, runner: Runner, *, is_async: bool) -> None:
        self.run = run
        # Whether the call is to be awaited: by `carry_out_async`, in an event loop.
        self.is_async = is_async
        self._runner = runner

    def cut(self) -> None:
        """Make the call end after the message it is at. Any thread may call it."""
        self._runner.cut()

    def carry_out(self, place: Place) -> HandlerDone:
        """Handle messages of (group, topic, partition) in this thread; return what was done.

        Errors of the handler come back in the answer, SystemExit among them; a Ctrl-C of the user
        goes through. With a sink its transaction is left open for the commit, and
        SinkUnavailable, Fenced and TransactionControl go through: nothing of the call may be
        committed then.
        """
        return run_without_loop(self.carry_out_async(place))

    async def carry_out_async(self, place: Place) -> HandlerDone:
        started_ns = time.perf_counter_ns()
        run = self.run
        handled = await self._runner.work_through(place_of(run, place))
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        size, failure = handled.size + 32 * handled.count, handled.failure
        if failure is not None and failure.letter is not None:
            size += len(failure.letter.raw)
        return HandlerDone(
            run.epoch,
            run.first_offset,
            handled.count,
            handled.state,
            handled.outputs,
            failure,
            took_us,
            size,
            run.private,
        )


class MessageContext(logging.Filter):
    """Adds topic, partition, offset, id and attempt to a log record made inside a handler.

    Put it on a handler of yours: `logging.Handler.addFilter(MessageContext())`; then formats may
    use `%(oncemq)s`, which is empty outside of handlers, and the fields of the same names.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        unit = current.get()
        message = unit.message if unit is not None else None
        record.oncemq = ""
        if message is not None:
            fields = {
                "topic": message.topic,
                "partition": message.partition,
                "offset": message.offset,
                "id": message.id,
                "attempt": message.attempt,
            }
            record.oncemq = " ".join(f"{name}={value}" for name, value in fields.items())
            record.oncemq_fields = fields
        return True
