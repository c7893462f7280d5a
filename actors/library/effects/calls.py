"""One effect that a handler is at: the question, the call, and what is told of how it ended."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...codec.values import encode_value
from ...core.consumer.effect_work import (
    CALL,
    RECORDED,
    STALE,
    EffectAnswer,
    EffectTold,
    EffectWanted,
)
from ...core.consumer.open_effects import ASK, NOT_DONE, RETRY, RETURNED, UNKNOWN
from ...core.consumer.work import HELD_EFFECT, UNKNOWN_EFFECT, RunHandler
from ...errors import (
    EffectNotDone,
    EffectNotRecorded,
    EffectUnknown,
    OnceMQError,
    TooLarge,
    ValueNotEncodable,
)
from ...limits import EFFECT_RESULT_BYTES_MAX
from ...shells.tables.session import Session
from ..messages.message import Message, Recorded, idempotency_key
from ..raised import is_cancellation, raised_by_code

ERROR_BYTES_MAX = 1000  # of what is recorded of an error


class EffectCall:
    """One effect of one message. Belongs to the thread of its handler."""

    def __init__(
        self,
        run: RunHandler,
        message: Message,
        offset: int,
        name: str,
        policy: str,
        sink: Session | None,
    ) -> None:
        """`offset` is where the run has the message."""
        self._sink = sink
        self._message = message
        self._name = name
        self._policy = policy
        self._place = (run.epoch, run.first_offset, run.private, offset)
        self._number = 0
        # The offset and the name: what is known of it is kept by that.
        self.of = (offset, name)
        # How its call ended, which is to be told; None: there was no call.
        self.ended: EffectTold | None = None
        # The error that stands in the way of the commit, whatever the handler makes of it.
        self.stuck: EffectUnknown | None = None

    @property
    def wanted(self) -> EffectWanted:
        message = self._message
        key = idempotency_key(message)
        return EffectWanted(*self._place, key, self._name, self._policy)

    def answered(self, answer: EffectAnswer) -> Recorded | None:
        """Return the result that is recorded; None: the function is to be called.

        Raises EffectUnknown, and OnceMQError if the consumer has lost the message.
        """
        self._number = answer.number
        if answer.verdict == CALL:
            return None
        if answer.verdict == RECORDED:
            return Recorded(answer.encoding, answer.value)
        if answer.verdict == STALE:
            text = f"effect {self._name!r} was not called: this consumer lost the partition"
            raise OnceMQError(text)
        hint = command_about(answer.effect_id, self._sink)
        raise self._unknown(answer.value, hint if self._policy == ASK else "")

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """The function is called inside. Notes errors; raises what the handler gets of them."""
        try:
            yield
        except EffectNotDone:
            self._end(NOT_DONE)
            raise
        except BaseException as error:
            if is_cancellation(error) or not raised_by_code(error):
                raise
            why = text_of(error)
            self._end(UNKNOWN, value=why)
            if self._policy == RETRY:
                raise
            raise self._unknown(why) from error

    def not_called(self) -> None:
        """The handler was cancelled before it called the function."""
        self._end(NOT_DONE)

    def cancelled(self) -> None:
        """The handler was cancelled in the call."""
        why = b"the call was cancelled"
        self._end(UNKNOWN, value=why)
        if self._policy != RETRY:
            self._unknown(why)

    def returned(self, result: Any) -> Recorded:
        """The function has returned. Raises EffectNotRecorded."""
        try:
            encoding, data = encode_value(result)
            if len(data) > EFFECT_RESULT_BYTES_MAX:
                raise TooLarge(f"{len(data)} bytes, the limit is {EFFECT_RESULT_BYTES_MAX}")
        except (ValueNotEncodable, TooLarge) as error:
            if inspect.iscoroutine(result):
                result.close()
            lost = EffectNotRecorded(
                f"effect {self._name!r} of message {self._message.id!s} was called, but its result "
                f"cannot be recorded: {error.reason}"
            )
            self._end(UNKNOWN, value=text_of(lost))
            raise (lost if self._policy == RETRY else self._stuck(lost)) from error
        self._end(RETURNED, encoding, data)
        return Recorded(encoding, data)

    def _end(self, how: str, encoding: int = 0, value: bytes = b"") -> None:
        self.ended = EffectTold(*self._place, self._name, self._number, how, encoding, value)

    def _unknown(self, why: bytes, hint: str | None = None) -> EffectUnknown:
        text = why.decode(errors="replace")
        message = f"effect {self._name!r} of message {self._message.id!s}"
        return self._stuck(EffectUnknown(f"unknown whether {message} happened: {text}", hint=hint))

    def _stuck(self, error: EffectUnknown) -> EffectUnknown:
        self.stuck = error
        return error

    @property
    def stuck_kind(self) -> str:
        return HELD_EFFECT if self._policy == ASK else UNKNOWN_EFFECT


@dataclass(frozen=True, slots=True)
class Wish:
    """An effect that a handler has come to, and what is to be called for it."""

    effect: EffectCall
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def call(self) -> Any:
        return self.function(*self.args, **self.kwargs)


def command_about(effect_id: str, sink: Session | None) -> str:
    where = "" if sink is None else f"--sink '{sink.shown}' "
    return f"oncemq effects resolve '{effect_id}' {where}--done VALUE, or --retry"


def text_of(error: BaseException) -> bytes:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = type(error).__name__
    return text.encode(errors="replace")[:ERROR_BYTES_MAX].decode(errors="ignore").encode()
