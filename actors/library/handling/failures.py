"""What becomes of a message that failed: it is tried again, parked, or stops its consumer.

The core counts attempts; here stands what it needs for that: the kind of the failure, the error as
text, and the dead letter, which is part of the same commit if the message is parked.
"""

from __future__ import annotations

import logging
import os
import random
import traceback

from ...core.consumer.work import (
    AGAIN,
    CRASHED,
    HELD_EFFECT,
    RAISED,
    REJECTED,
    UNKNOWN_EFFECT,
    FailedMessage,
    RunHandler,
)
from ...errors import (
    EffectsNotSupported,
    HandlerFailed,
    NotAHandler,
    PayloadInvalid,
    Reject,
    SinkConflict,
)
from ...records import Output
from ...runtime.diagnostics import log, text_of
from ..effects.effects import Effects
from ..messages.message import Message
from .call import Consumer
from .letters import dead_letter

ERROR_CHARS_MAX = 1000  # of an error's text in events and messages; the traceback is whole

_OURS = os.path.dirname(__file__)


class Failures:
    """How messages of one run of one consumer fail."""

    def __init__(self, consumer: Consumer, run: RunHandler, effects: Effects) -> None:
        """`effects` are those of the whole run."""
        self._consumer = consumer
        self._run = run
        self._effects = effects

    def failed(
        self, message: Message, error: BaseException, effects: Effects | None = None
    ) -> FailedMessage:
        """`effects` are those of the message alone, if it has begun some apart."""
        consumer, effects = self._consumer, effects or self._effects
        final = isinstance(error, (Reject, PayloadInvalid, *consumer.no_retry))
        held, why = effects.verdict(message)
        kind = held or (REJECTED if final else RAISED)
        text, lines = _as_text(why or error)
        # What is no handler at all, or of the wrong shape, fails for every message: it stops.
        bug = isinstance(error, NotAHandler | EffectsNotSupported)
        letter = None if bug else self._letter(message, kind, message.attempt, text, effects)
        last = final or message.attempt > consumer.retries
        if letter is not None and kind != HELD_EFFECT and (last or kind == UNKNOWN_EFFECT):
            # The letter has the error's text only; the traceback is logged here, once.
            log(logging.ERROR, "%s is parked after attempt %d\n%s", message, message.attempt, lines)
        name = str(message.id)
        return FailedMessage(
            name, text, error, lines, random.random(), kind, letter, type(error).__name__[:128]
        )

    @staticmethod
    def again(conflict: SinkConflict) -> FailedMessage:
        """The call did nothing: its database wants it run again."""
        return FailedMessage("", conflict.reason, conflict, "", random.random(), AGAIN)

    def crashed(self, message: Message) -> FailedMessage:
        """The message has killed too many processes."""
        deaths = self._run.deaths
        text = f"{deaths} processes died while handling this message alone"
        letter = self._letter(message, CRASHED, deaths, text, self._effects)
        name, error = str(message.id), HandlerFailed(text)
        return FailedMessage(name, text, error, "", 0.0, CRASHED, letter, CRASHED)

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
            at_ms=self._run.at_ms,
            effects=effects.of_message(message),
        )


def _as_text(error: BaseException) -> tuple[str, str]:
    """One bounded text, and the traceback without frames of ours."""
    trace = error.__traceback__
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == _OURS:
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace)).rstrip()
    text = f"{type(error).__name__}: {text_of(error)}"
    return text if len(text) <= ERROR_CHARS_MAX else f"{text[:ERROR_CHARS_MAX]}...", lines
