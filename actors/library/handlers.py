"""Handlers: what may be one, and calling it for a batch.

A handler is a plain function of (message, tx). What looks like one but would lose messages - a
generator, a coroutine, a function of a list - is refused where it is written, not when the first
message arrives.
"""

from __future__ import annotations

import collections.abc
import inspect
import logging
import random
import time
import traceback
import typing
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from ..core.consumer_work import (
    CRASHED,
    RAISED,
    REJECTED,
    FailedMessage,
    HandlerDone,
    RunHandler,
)
from ..errors import HandlerFailed, NotSupported, Reject
from ..ids import private_topic
from ..limits import COMMIT_MESSAGES_MAX, CRASH_RETRIES_DEFAULT, RETRIES_DEFAULT
from ..records import Output
from .letters import Replayed, dead_letter
from .message import Lot, Message
from .state_view import StateView
from .tx import FindTopic, Tx

Handler = Callable[[Message, Tx], object]

_LOGGER = logging.getLogger("oncemq")

ERROR_CHARS_MAX = 1000  # of an error's text in events and messages; the traceback is whole

_LISTS = (list, tuple, collections.abc.Iterable, collections.abc.Sequence)

# The Tx of the batch whose handlers run in this context: where log lines find the message.
current: ContextVar[Tx | None] = ContextVar("oncemq_current", default=None)


class NotAHandler(NotSupported, TypeError):
    """The function cannot be a handler. The reason says why and what to write instead."""

    code = "not_a_handler"


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


def check_handler(function: Any, options: dict[str, Any]) -> None:
    """Raise NotAHandler unless `function` can be a handler of this version."""
    for option in options:
        raise NotAHandler(f"this version has no {option}= for consumers")
    name = getattr(function, "__qualname__", repr(function))
    if isinstance(function, type) or not callable(function):
        raise NotAHandler(f"{name} is not a function", hint="decorate: def handler(message, tx)")
    for call in (function, function.__call__):
        if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
            raise NotAHandler(
                f"{name} is async; handlers are plain functions",
                hint="write def instead of async def; handlers run beside the I/O thread anyway",
            )
        if inspect.isgeneratorfunction(call):
            raise NotAHandler(f"{name} is a generator", hint="use tx.send(...) instead of yield")
    _check_signature(function, name)


def _check_signature(function: Callable[..., Any], name: str) -> None:
    wanted = "write: def handler(message: Message, tx: Tx) -> None"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # made in C: the first call will tell
    try:
        signature.bind(None, None)
    except TypeError:
        raise NotAHandler(f"{name}{signature} does not take (message, tx)", hint=wanted) from None
    first = next(iter(signature.parameters.values()))
    if first.kind is inspect.Parameter.VAR_POSITIONAL:
        return
    annotation: Any = first.annotation
    if isinstance(annotation, str):
        batch = annotation.partition("[")[0].rpartition(".")[2].lower() in {
            "list",
            "tuple",
            "iterable",
            "sequence",
        }
    else:
        batch = (typing.get_origin(annotation) or annotation) in _LISTS
    if batch:
        raise NotAHandler(
            f"{name} takes a list of messages; this version calls handlers message by message",
            hint=wanted + "; commits are made for whole batches all the same",
        )


def check_result(result: object) -> None:
    """Refuse what would never be run: the coroutine or generator of a disguised handler."""
    if inspect.iscoroutine(result):
        result.close()
    if inspect.isawaitable(result) or inspect.isgenerator(result):
        raise NotAHandler(f"the handler returned a {type(result).__name__} that nobody runs")


class Call:
    """One RunHandler being carried out. `cut` may be called by another thread."""

    def __init__(self, consumer: Consumer, run: RunHandler, find_topic: FindTopic) -> None:
        self.run = run
        self._consumer = consumer
        self._tx = Tx(StateView(run.ledger), find_topic)
        self._handled = 0

    def cut(self) -> None:
        """Make the call end after the message it is at."""
        self._tx.cut = True

    def carry_out(self, place: tuple[str, str, int]) -> HandlerDone:
        """Call the handler for each message in order; return what it did.

        `place` is (group, topic, partition). Errors of the handler come back in the answer; only
        what ends the process (KeyboardInterrupt, SystemExit) goes through.
        """
        run, tx = self.run, self._tx
        if run.private:
            group, topic, partition = place
            place = (group, private_topic(topic, group), partition)
        if run.deaths:
            return self._crashed(place)
        started_ns = time.perf_counter_ns()
        failure: FailedMessage | None = None
        token = current.set(tx)
        try:
            self._handle(place)
        except Exception as error:  # noqa: BLE001 - whatever a user's handler raises
            assert tx.message is not None, "a handler raised for a message"
            failure = self._failed(tx.message, error)
            tx.reject()
        finally:
            current.reset(token)
        state, outputs, size = tx.finish()
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        size += 32 * self._handled
        return self._done(self._handled, state, outputs, failure, took_us, size)

    def _done(
        self,
        handled: int,
        state: dict[str, bytes | None],
        outputs: list[Output],
        failure: FailedMessage | None,
        took_us: int,
        size: int,
    ) -> HandlerDone:
        run = self.run
        if failure is not None and failure.letter is not None:
            size += len(failure.letter.raw)
        return HandlerDone(
            run.epoch,
            run.first_offset,
            handled,
            state,
            outputs,
            failure,
            took_us,
            size,
            run.private,
        )

    def _crashed(self, place: tuple[str, str, int]) -> HandlerDone:
        """Answer for a message that has killed too many processes, without calling its handler."""
        run = self.run
        piece = run.window.pieces[0]
        lot = Lot(piece, *place, run.attempt)
        message = self._kind(lot, piece.indices[0], piece.offsets[0])
        text = f"{run.deaths} processes died while they handled this message alone"
        letter = self._letter(message, CRASHED, run.deaths, text)
        failure = FailedMessage(
            str(message.id), text, HandlerFailed(text), "", 0.0, CRASHED, letter
        )
        return self._done(0, {}, [], failure, 0, 0)

    @property
    def _kind(self) -> type[Message]:
        return Replayed if self.run.private else Message

    def _failed(self, message: Message, error: Exception) -> FailedMessage:
        final = isinstance(error, (Reject, *self._consumer.no_retry))
        kind = REJECTED if final else RAISED
        text, lines = _told(error)
        # What is no handler at all fails for every message: it stops the consumer.
        bug = isinstance(error, NotAHandler)
        letter = None if bug else self._letter(message, kind, message.attempt, text)
        if letter is not None and (final or message.attempt > self._consumer.retries):
            # The letter has the error's text only: where it was raised is told here, once.
            _LOGGER.error("%s is parked after attempt %d\n%s", message, message.attempt, lines)
        return FailedMessage(str(message.id), text, error, lines, random.random(), kind, letter)

    def _letter(self, message: Message, kind: str, attempts: int, text: str) -> Output | None:
        if not self._consumer.park:
            return None
        return dead_letter(message, kind=kind, attempts=attempts, error=text, at_ms=self.run.at_ms)

    def _handle(self, place: tuple[str, str, int]) -> None:
        """The loop that every message passes: each line of it costs."""
        tx, state, handler = self._tx, self._tx.state, self._consumer.handler
        attempt, kind = self.run.attempt, self._kind
        handled = 0
        try:
            for piece in self.run.window.pieces:
                lot = Lot(piece, *place, attempt)
                for message in map(kind, repeat(lot), piece.indices, piece.offsets):
                    tx.message = message
                    result = handler(message, tx)
                    if result is not None:
                        check_result(result)
                    if state.touched:
                        tx.accept()
                    handled += 1
                    if tx.cut:
                        return
                attempt = 1
                if handled >= COMMIT_MESSAGES_MAX:
                    return
        finally:
            self._handled = handled


def _told(error: Exception) -> tuple[str, str]:
    """Return an error as one bounded text, and its traceback without frames of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = type(error).__name__
    return _bounded(text, ERROR_CHARS_MAX), lines


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


class MessageContext(logging.Filter):
    """Adds topic, partition, offset, id and attempt to a log record made inside a handler.

    Put it on a handler of yours: `logging.Handler.addFilter(MessageContext())`; then formats may
    use `%(oncemq)s`, which is empty outside of handlers, and the fields of the same names.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; never drops a record."""
        tx = current.get()
        message = tx.message if tx is not None else None
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
