"""`tx.effect`: a call of the outside world with a durable intent before it and its result after it.

The handler's thread asks for each effect and waits until the intent is on disk, or is told that the
effect has a result already, or that nobody knows what became of an earlier call. It then calls the
function itself and says how that ended, without waiting: the commit stands behind it in the log.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ..codec.values import encode_value
from ..core.consumer_work import HELD_EFFECT, UNKNOWN_EFFECT, RunHandler
from ..core.effect_work import CALL, RECORDED, STALE, EffectAnswer, EffectTold, EffectWanted
from ..core.open_effects import ASK, NOT_DONE, POLICIES, RETRY, RETURNED, UNKNOWN, OpenEffect
from ..errors import OnceMQError, TooLarge, ValueNotEncodable
from ..ids import check_name
from ..limits import EFFECT_RESULT_BYTES_MAX, EFFECT_RESULTS_BYTES_MAX, EFFECTS_MAX
from .effect_errors import (
    EffectMisused,
    EffectNotDone,
    EffectNotRecorded,
    EffectsNotSupported,
    EffectUnknown,
)
from .message import Message, Recorded

ERROR_BYTES_MAX = 1000  # of what is recorded of an error


class EffectDesk(Protocol):
    """Where the thread of handlers speaks with the core of its consumer."""

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask for an effect and wait for the answer. Raises OnceMQError if none will come."""

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended; does not wait."""


class Effects:
    """The effects of the messages of one call. It belongs to the thread that carries the call out."""

    def __init__(
        self, run: RunHandler, desk: EffectDesk | None, why_not: str, known: Iterable[OpenEffect]
    ) -> None:
        """`why_not` tells why handlers of this kind have none; "": they have."""
        self._run = run
        self._desk = desk
        self._why_not = why_not
        self._thread = threading.get_ident()
        # Results by (offset, name): those of the ledger when the call began, and of the call.
        self._results = {
            (one.offset, one.name): Recorded(one.encoding, one.value)
            for one in known
            if one.recorded
        }
        # The message at hand, the names that its handler has used, and the error that stands in the
        # way of its commit, whatever the handler makes of it.
        self._message: Message | None = None
        self._names: set[str] = set()
        self._stuck: EffectUnknown | None = None
        self._stuck_kind = ""
        # Whether the function of an effect runs right now.
        self.inside = False

    def here(self) -> None:
        """The call is carried out in this thread."""
        self._thread = threading.get_ident()

    # --- what Tx calls ---------------------------------------------------------------------------

    def call(
        self,
        message: Message,
        name: str,
        policy: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the result of an effect, calling the function if that is to be done now."""
        desk = self._check(message, name, policy, function)
        known = self.of_message(message).get(name)
        if known is not None:
            return known.decoded()
        run, offset = self._run, self._offset_of(message)
        key = message.idempotency_key(message._lot.group)  # noqa: SLF001 - one module, two faces
        answer = desk.want(
            EffectWanted(run.epoch, run.first_offset, run.private, offset, key, name, policy)
        )
        if answer.verdict == RECORDED:
            return self._record(offset, name, answer.encoding, answer.value)
        if answer.verdict == STALE:
            raise OnceMQError(f"effect {name!r} comes too late: the consumer has lost this message")
        if answer.verdict != CALL:
            why = answer.value.decode(errors="replace")
            error = EffectUnknown(
                f"nobody knows whether effect {name!r} of message {message.id!s} happened: {why}",
                hint=f"oncemq effects resolve '{answer.effect_id}' --done VALUE, or --retry"
                if policy == ASK
                else "",
            )
            raise self._stick(error, policy)

        def tell(how: str, encoding: int = 0, value: bytes = b"") -> None:
            where = (run.epoch, run.first_offset, run.private, offset)
            desk.tell(EffectTold(*where, name, answer.number, how, encoding, value))

        result = self._made(message, name, policy, lambda: function(*args, **kwargs), tell)
        return self._record(offset, name, *result)

    def accept(self) -> None:
        """The handler has returned. Raises EffectUnknown if the message cannot be committed."""
        if self._stuck is not None:
            raise self._stuck

    # --- what the runner of handlers asks --------------------------------------------------------

    def verdict(self, message: Message) -> tuple[str, EffectUnknown | None]:
        """Return why a message cannot be handled: a kind of failure, and what to tell of it."""
        if self._message is message and self._stuck is not None:
            return self._stuck_kind, self._stuck
        return "", None

    def of_message(self, message: Message) -> dict[str, Recorded]:
        """Return the recorded results of a message by the names of the effects."""
        offset = self._offset_of(message)
        mine = {name: one for (at, name), one in self._results.items() if at == offset}
        return {**message.brought, **mine}

    # --- inside ----------------------------------------------------------------------------------

    def _offset_of(self, message: Message) -> int:
        """Return where the run has the message: a replay stands for one that lies elsewhere."""
        return self._run.window.offset_of(0) if self._run.private else message.offset

    def _check(
        self, message: Message, name: str, policy: str, function: Callable[..., Any]
    ) -> EffectDesk:
        """Raise what makes the call impossible; nothing was called and nothing is recorded."""
        if self._why_not or self._desk is None:
            raise EffectsNotSupported(self._why_not or "this handler runs without a ledger")
        if threading.get_ident() != self._thread:
            raise EffectMisused(
                "tx.effect was called in another thread than its handler",
                hint="call it in the handler itself: the next message waits for it anyway",
            )
        check_name(name, "the name of an effect")
        if policy not in POLICIES:
            raise EffectMisused(f"policy is one of {', '.join(POLICIES)}, not {policy!r}")
        if inspect.iscoroutinefunction(function):
            raise EffectsNotSupported(f"effect {name!r} is a coroutine function, nobody awaits it")
        if self.inside:
            raise EffectMisused(f"effect {name!r} is called inside of another effect")
        if self._message is not message:
            self._message, self._names, self._stuck = message, set(), None
        if self._stuck is not None:
            raise self._stuck
        if name in self._names:
            raise EffectMisused(
                f"this message has an effect {name!r} already",
                hint="give each call a name of its own, such as one with the number of the item",
            )
        known = self.of_message(message)
        room = EFFECT_RESULTS_BYTES_MAX - sum(len(one.value) for one in known.values())
        if name not in known and (
            len({*known, *self._names}) >= EFFECTS_MAX or room < EFFECT_RESULT_BYTES_MAX
        ):
            raise TooLarge(
                f"a message has at most {EFFECTS_MAX} effects, and {EFFECT_RESULTS_BYTES_MAX} bytes "
                f"of results: effect {name!r} is one too many",
                hint="send a message for each call instead, and let its handler make it",
            )
        self._names.add(name)
        return self._desk

    def _made(
        self,
        message: Message,
        name: str,
        policy: str,
        function: Callable[[], Any],
        tell: Callable[..., None],
    ) -> tuple[int, bytes]:
        """Call the function and tell how that ended; return its result as it is recorded."""
        self.inside = True
        try:
            result = function()
        except EffectNotDone:
            tell(NOT_DONE)
            raise
        except Exception as error:
            why = _text_of(error)
            tell(UNKNOWN, value=why)
            if policy == RETRY:
                raise
            told = EffectUnknown(
                f"nobody knows whether effect {name!r} of message {message.id!s} happened: "
                f"{why.decode(errors='replace')}"
            )
            raise self._stick(told, policy) from error
        finally:
            self.inside = False
        try:
            encoding, data = encode_value(result)
            if len(data) > EFFECT_RESULT_BYTES_MAX:
                raise TooLarge(f"{len(data)} bytes, the limit is {EFFECT_RESULT_BYTES_MAX}")
        except (ValueNotEncodable, TooLarge) as error:
            if inspect.iscoroutine(result):
                result.close()
            lost = EffectNotRecorded(
                f"effect {name!r} of message {message.id!s} was called, and its result cannot be "
                f"recorded: {error.reason}"
            )
            tell(UNKNOWN, value=_text_of(lost))
            raise (lost if policy == RETRY else self._stick(lost, policy)) from error
        tell(RETURNED, encoding, data)
        return encoding, data

    def _record(self, offset: int, name: str, encoding: int, value: bytes) -> Any:
        """Keep a result; return it as every later run of the handler will get it."""
        found = self._results[offset, name] = Recorded(encoding, value)
        return found.decoded()

    def _stick(self, error: EffectUnknown, policy: str) -> EffectUnknown:
        self._stuck = error
        self._stuck_kind = HELD_EFFECT if policy == ASK else UNKNOWN_EFFECT
        return error


def _text_of(error: Exception) -> bytes:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = type(error).__name__
    return text.encode(errors="replace")[:ERROR_BYTES_MAX].decode(errors="ignore").encode()
