"""`tx.effect`: a call of the outside world with a durable intent before it and its result after it.

The handler's thread asks for each effect and waits until the intent is on disk, or is told that the
effect has a result already, or that nobody knows what became of an earlier call. It then calls the
function itself and says how that ended, without waiting: the commit stands behind it in the log.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

from ..core.consumer_work import HELD_EFFECT, UNKNOWN_EFFECT, RunHandler
from ..core.open_effects import ASK, POLICIES, OpenEffect
from ..errors import TooLarge
from ..ids import check_name
from ..limits import EFFECT_RESULT_BYTES_MAX, EFFECT_RESULTS_BYTES_MAX, EFFECTS_MAX
from .effect_calls import EffectCall, EffectDesk
from .effect_errors import EffectMisused, EffectsNotSupported, EffectUnknown
from .message import Message, Recorded


class Effects:
    """The effects of the messages of one call. It belongs to the thread that carries the call out."""

    def __init__(
        self,
        run: RunHandler,
        desk: EffectDesk | None,
        why_not: str,
        known: Iterable[OpenEffect],
        *,
        awaited: bool = False,
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
        # Whether effects are awaited, and the one that is under way; "": none.
        self._awaited = awaited
        self._pending = ""

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
        offset = self._offset_of(message)
        known = self.of_message(message).get(name)
        one = EffectCall(self, desk, self._run, message, offset, name, policy)
        if self._awaited:
            self._pending = name
            return self._call_awaited(desk, one, known, function, args, kwargs)
        found = known or one.answered(desk.want(one.wanted))
        if found is None:
            with one.under_way():
                result = function(*args, **kwargs)
            found = one.returned(result)
        self._results[offset, name] = found
        return found.decoded()

    async def _call_awaited(
        self,
        desk: EffectDesk,
        one: EffectCall,
        known: Recorded | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """As `call`, for async handlers; the function may be a plain one."""
        import asyncio

        wanted = one.wanted
        try:
            found = known
            if found is None:
                asking = asyncio.ensure_future(desk.want_awaited(wanted))
                try:
                    found = one.answered(await asyncio.shield(asking))
                except asyncio.CancelledError:
                    one.answered(await asking)
                    one.not_called()
                    raise
            if found is None:
                try:
                    with one.under_way():
                        result = function(*args, **kwargs)
                        if inspect.isawaitable(result):
                            result = await result
                except asyncio.CancelledError:
                    one.cancelled()
                    raise
                found = one.returned(result)
            self._results[wanted.offset, wanted.name] = found
            return found.decoded()
        finally:
            self._pending = ""

    def stick(self, error: EffectUnknown, policy: str) -> None:
        """The message at hand cannot be committed, whatever its handler makes of `error`."""
        self._stuck = error
        self._stuck_kind = HELD_EFFECT if policy == ASK else UNKNOWN_EFFECT

    def accept(self) -> None:
        """The handler has returned. Raises EffectUnknown if the message cannot be committed."""
        if self._pending:
            raise EffectMisused(
                f"effect {self._pending!r} was not awaited", hint="write: await tx.effect(...)"
            )
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
        if inspect.iscoroutinefunction(function) and not self._awaited:
            raise EffectsNotSupported(f"effect {name!r} is a coroutine function, nobody awaits it")
        if self.inside:
            raise EffectMisused(f"effect {name!r} is called inside of another effect")
        if self._message is not message:
            self._message, self._names, self._stuck = message, set(), None
            self._pending = ""
        if self._stuck is not None:
            raise self._stuck
        if self._pending:
            raise EffectMisused(
                f"effect {self._pending!r} is under way", hint="await one after the other"
            )
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
