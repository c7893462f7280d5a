"""Handlers: what a consumer is, and calling it for a window of messages.

What may be a handler is told in shapes.py. Here is the call that nearly all of them have: a plain
function, message by message. Async handlers and those of lists are called in awaited_calls.py,
those with a state for each key in keyed_calls.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ...codec.values import decode_value
from ...core.consumer.work import (
    CRASHED,
    HELD_EFFECT,
    RAISED,
    REJECTED,
    UNKNOWN_EFFECT,
    FailedMessage,
    HandlerDone,
    RunHandler,
)
from ...errors import EffectsNotSupported, HandlerFailed, NotAHandler, PayloadInvalid, Reject
from ...ids import private_topic
from ...limits import CRASH_RETRIES_DEFAULT, RETRIES_DEFAULT
from ...records import Output
from ...shells.tables.session import Session
from ..effects.calls import EffectDesk
from ..effects.effects import Effects
from ..messages.message import Lot, Message
from ..messages.payloads import Misfit
from .letters import Replayed, dead_letter
from .shapes import PLAIN, Shape, check_result
from .state import StateView
from .tx import Tx
from .unit_of_work import FindTopic, UnitOfWork

# (message, tx) or (messages, tx), plain or async: shapes.py tells which.
Handler = Callable[[Any, Any], object]

_LOGGER = logging.getLogger("oncemq")

IN_LISTS = "a handler of lists cannot use effects: an effect belongs to one message"
ERROR_CHARS_MAX = 1000  # of an error's text in events and messages; the traceback is whole

_OURS = os.path.dirname(__file__)

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


class Call:
    """One RunHandler being carried out. `cut` may be called by another thread."""

    # Whether `carry_out` is to be awaited: it is `carry_out_async` then.
    is_async = False

    def __init__(
        self,
        consumer: Consumer,
        run: RunHandler,
        find_topic: FindTopic,
        sink: Session | None = None,
        desk: EffectDesk | None = None,
    ) -> None:
        """`desk` is where effects are asked for."""
        self.run = run
        self._messages_max = run.ledger.limits.commit_messages_max
        self._consumer = consumer
        self._sink = sink
        self._known = list(run.ledger.effects)  # here and now: the ledger changes during the call
        why_not = IN_LISTS if consumer.shape.batch_size else ""
        awaited = consumer.shape.is_async
        self._effects = Effects(run, desk, why_not, self._known, awaited=awaited, sink=sink)
        self._unit = self._new_unit(StateView(run.ledger, run.ledger.limits), find_topic)
        self._tx = Tx(self._unit)
        self._handled = 0

    def _new_unit(self, state: StateView, find_topic: FindTopic) -> UnitOfWork:
        return UnitOfWork(state, find_topic, self._sink, self._effects)

    def cut(self) -> None:
        """Make the call end after the message it is at."""
        self._unit.cut = True

    def carry_out(self, place: tuple[str, str, int]) -> HandlerDone:
        """Call the handler for each message in order; return what it did.

        `place` is (group, topic, partition). Errors of the handler come back in the answer; only
        what ends the process (KeyboardInterrupt, SystemExit) goes through. With a sink its
        transaction is left open for the commit, and SinkUnavailable, Fenced and TransactionControl
        go through: then nothing of the call may be committed.
        """
        place = self._place(place)
        if self.run.deaths:
            return self._crashed(place)
        self._effects.here()
        started_ns = time.perf_counter_ns()
        with self._lent():
            token = current.set(self._unit)
            try:
                failure = self._work_through(place)
            finally:
                current.reset(token)
            return self._answer(failure, started_ns)

    def _work_through(self, place: tuple[str, str, int]) -> FailedMessage | None:
        """Handle the messages; return what became of the one that failed."""
        while True:
            try:
                self._handle(place)
            except BaseException as error:  # noqa: BLE001 - whatever a user's handler raises
                failure = self._ended_by(error)
                if failure is not None:
                    return failure
            else:
                return None
            if self._comes_later():
                return None
            self._effects.make()
            self._unit.reject()  # what the function did to it

    def _ended_by(self, error: BaseException) -> FailedMessage | None:
        """The handler has raised: return how it failed; None: it was left for an effect.

        What is neither goes through.
        """
        left = self._effects.left_by(error)
        if left is not None:
            self._unit.take_back(left)
            return None
        if not isinstance(error, Exception):
            raise error
        return self._reject(error)

    def _comes_later(self) -> bool:
        """Whether the call ends before the message that was left, since others wait for a commit."""
        if self._handled:
            self._effects.come_later()
        return self._handled > 0

    async def carry_out_async(self, place: tuple[str, str, int]) -> HandlerDone:
        """As `carry_out`, for handlers that are awaited."""
        raise AssertionError(f"the handler of {place} is a plain one")

    def _place(self, place: tuple[str, str, int]) -> tuple[str, str, int]:
        """Return where the messages of the run really lie."""
        group, topic, partition = place
        return (group, private_topic(topic, group), partition) if self.run.private else place

    @contextlib.contextmanager
    def _lent(self) -> Iterator[None]:
        """Have the connection of the sink for the call."""
        sink, run = self._sink, self.run
        if sink is None:
            yield
            return
        sink.start_call((run.epoch, run.private, run.first_offset))
        self._unit.cut = self._unit.cut or sink.solo
        try:
            yield
        except BaseException:
            sink.abandon()
            raise

    def _settled(self, sink: Session, failure: FailedMessage | None) -> FailedMessage | None:
        """Give the connection back; return what is to be told of the call.

        If the database refuses all of it, its messages are handled again one by one, so that it
        shows which one was to blame; the one of a call that had no other is to blame.
        """
        message = self._unit.message
        try:
            sink.settle(self._handled)
        except Exception as error:  # noqa: BLE001 - constraints of the user's tables
            told = self._unit.take_back(error)
            alone = self._handled == 1 and failure is None and message is not None
            failure = self._failed(message, told) if alone and message is not None else None
            self._handled = 0
            self._come_alone()
        sink.end_call(keep=self._handled > 0)
        return failure

    def _come_alone(self) -> None:
        """The messages of the run are to be handed over one by one: `Session.solo` sees to it."""

    def _answer(self, failure: FailedMessage | None, started_ns: int) -> HandlerDone:
        if self._sink is not None:
            failure = self._settled(self._sink, failure)
        state, outputs, size = self._unit.finish()
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
        message = lot.message(piece.indices[0], piece.offsets[0], self._kind)
        text = f"{run.deaths} processes died while handling this message alone"
        letter = self._letter(message, CRASHED, run.deaths, text, self._effects)
        failure = FailedMessage(
            str(message.id), text, HandlerFailed(text), "", 0.0, CRASHED, letter
        )
        return self._done(0, {}, [], failure, 0, 0)

    @property
    def _kind(self) -> type[Message]:
        return Replayed if self.run.private else Message

    def _failed(
        self, message: Message, error: Exception, effects: Effects | None = None
    ) -> FailedMessage:
        """Return how a message failed; `effects` are its own, or else those of the call."""
        effects = effects or self._effects
        final = isinstance(error, (Reject, PayloadInvalid, *self._consumer.no_retry))
        held, why = effects.verdict(message)
        kind = held or (REJECTED if final else RAISED)
        text, lines = _told(why or error)
        # What is no handler at all, or of the wrong shape, fails for every message: it stops.
        bug = isinstance(error, NotAHandler | EffectsNotSupported)
        letter = None if bug else self._letter(message, kind, message.attempt, text, effects)
        last = final or message.attempt > self._consumer.retries
        if letter is not None and kind != HELD_EFFECT and (last or kind == UNKNOWN_EFFECT):
            # The letter has the error's text only: where it was raised is told here, once.
            _LOGGER.error("%s is parked after attempt %d\n%s", message, message.attempt, lines)
        return FailedMessage(str(message.id), text, error, lines, random.random(), kind, letter)

    def _letter(
        self, message: Message, kind: str, attempts: int, text: str, effects: Effects
    ) -> Output | None:
        if not self._consumer.park:
            return None
        return dead_letter(
            message,
            kind=kind,
            attempts=attempts,
            error=text,
            at_ms=self.run.at_ms,
            effects=effects.of_message(message),
        )

    def _handle(self, place: tuple[str, str, int]) -> None:
        """The loop that every message passes: each line of it costs."""
        unit, tx, handler = self._unit, self._tx, self._consumer.handler
        state = unit.state
        handled = 0
        try:
            for messages in self._pieces(place):
                for message in messages:
                    unit.message = message
                    result = handler(message, tx)
                    if result is not None:
                        check_result(result)
                    if state.touched:
                        unit.accept()
                    handled += 1
                    if unit.cut:
                        return
                if handled >= self._messages_max:
                    return
        finally:
            self._handled = handled

    def _pieces(self, place: tuple[str, str, int]) -> Iterator[Iterable[Message]]:
        """Yield the messages of the window, stored batch by stored batch, payloads checked."""
        attempt, kind = self.run.attempt, self._kind
        decode = self._consumer.shape.decode
        for piece in self.run.window.pieces:
            lot = Lot(piece, *place, attempt, decode or decode_value)
            messages = lot.messages(piece, kind)
            yield messages if decode is None else self._decoded(messages)
            attempt = 1

    def _decoded(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Yield messages whose payloads are of the handler's type. Raises PayloadInvalid."""
        for message in messages:
            self._unit.message = message
            check_payload(message, self._consumer.shape.payload)
            yield message

    def _reject(self, error: Exception) -> FailedMessage:
        """The handler raised for the message at hand: forget what it did."""
        message = self._unit.message
        assert message is not None, "a handler raised for a message"
        return self._failed(message, self._unit.take_back(error))


def check_payload(message: Message, wanted: str) -> None:
    """Decode the payload of a message. Raises PayloadInvalid unless it is of the wanted type."""
    try:
        message.value  # noqa: B018 - it is kept
    except Misfit as misfit:
        raise PayloadInvalid(
            f"message {message.id!s} of {message.topic}/{message.partition} at offset "
            f"{message.offset} is no {wanted}: {misfit}",
            path=misfit.path,
        ) from None


def _told(error: Exception) -> tuple[str, str]:
    """Return an error as one bounded text, and its traceback without frames of ours."""
    trace = error.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == _OURS:
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
