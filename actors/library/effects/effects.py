"""`tx.effect`: a call of the outside world with a durable intent before it and its result after it.

The handler's thread asks for each effect and waits until the intent is on disk, or is told that the
effect has a result already, or that nobody knows what became of an earlier call. It then calls the
function itself and says how that ended.

With a SQL sink no transaction is open across a call. A handler that comes to an effect while its
message has one is *left*: HandlerLeft goes up through it, what the message did is taken back, the
effect is made, and the handler begins anew; there it finds the outcome, whatever that was. Is the
message not the first of its call, the call ends before it, so that the others are committed; it is
the first of the next call then. docs/adr/0006-no-transaction-across-a-call.md
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from ...core.consumer.effect_work import EffectAnswer, EffectTold
from ...core.consumer.open_effects import POLICIES, OpenEffect
from ...core.consumer.work import RunHandler
from ...errors import (
    EffectMisused,
    EffectsNotSupported,
    Fenced,
    HandlerLeft,
    OnceMQError,
    SinkUnavailable,
    TooLarge,
)
from ...ids import check_name
from ...limits import EFFECT_RESULT_BYTES_MAX, EFFECT_RESULTS_BYTES_MAX, EFFECTS_MAX
from ...shells.tables.session import Session
from ..coroutines import run_without_loop, to_the_end
from ..messages.message import Message, Recorded, brought_by
from ..raised import is_cancellation, raised_by_code
from .calls import EffectCall, Wish
from .desk import EffectDesk, Said


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
        sink: Session | None = None,
    ) -> None:
        """`why_not` tells why handlers of this kind have none; "": they have."""
        self._run = run
        self._desk = desk
        self._why_not = why_not
        self._sink = sink
        self._thread = threading.get_ident()
        # Results by (offset, name): those of the ledger when the call began, and of the call.
        self._results = {
            (one.offset, one.name): Recorded(one.encoding, one.value)
            for one in known
            if one.recorded
        }
        # What else became of effects of the call: the error that the handler gets, and, if it
        # stands in the way of the commit, what kind of failure that is.
        self._failed: dict[tuple[int, str], tuple[BaseException, str]] = {}
        # The message at hand, the names that its handler has used, and the error that stands in the
        # way of its commit, whatever the handler makes of it.
        self._message: Message | None = None
        self._names: set[str] = set()
        self._stuck: BaseException | None = None
        self._stuck_kind = ""
        # Whether the function of an effect runs right now.
        self.inside = False
        # Whether effects are awaited, and the one that is under way; "": none.
        self._awaited = awaited
        self._pending = ""
        # The effect for which the handler was left.
        self._left: Wish | None = None

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
        self._check(message, name, policy, function)
        offset = self._offset_of(message)
        one = EffectCall(self._run, message, offset, name, policy, self._sink)
        work = self._call(message, Wish(one, function, args, kwargs))
        if self._awaited:
            self._pending = name
            return work
        return run_without_loop(work)

    async def _call(self, message: Message, wish: Wish) -> Any:
        """Suspends only in async handlers."""
        try:
            one = wish.effect
            if one.of not in self._failed and one.of[1] not in self.of_message(message):
                self._leave_for(wish)
                await self._make(wish)
            return self._outcome(message, one)
        finally:
            self._pending = ""

    def check_writing(self, what: str) -> None:
        if self._left is not None:
            raise HandlerLeft(f"{what} was called after the handler stopped at an effect")
        if self.inside and not self._awaited:
            raise EffectMisused(
                f"{what} is used inside an effect",
                hint="a retry does not call the function again: use its return value instead",
            )

    def check_connection(self, what: str) -> None:
        """As `check_writing`, for what needs the connection of the sink."""
        self.check_writing(what)
        if self._pending:
            raise EffectMisused(
                f"{what} is used while effect {self._pending!r} runs",
                hint="await the calls one after the other",
            )

    def accept(self) -> None:
        """The handler has returned. Raises EffectUnknown if the message cannot be committed."""
        if self._left is not None:
            (_, name), self._left = self._left.effect.of, None
            raise EffectMisused(
                f"the handler continued after it stopped at effect {name!r}, which was not called",
                hint="in the handler catch Exception, never BaseException",
            )
        if self._pending:
            raise EffectMisused(
                f"effect {self._pending!r} was not awaited", hint="write: await tx.effect(...)"
            )
        if self._stuck is not None:
            raise self._stuck

    # --- what the runner of handlers asks --------------------------------------------------------

    def verdict(self, message: Message) -> tuple[str, BaseException | None]:
        """Return why a message cannot be handled: a kind of failure, and what to tell of it."""
        if self._message is message and self._stuck is not None:
            return self._stuck_kind, self._stuck
        return "", None

    def of_message(self, message: Message) -> dict[str, Recorded]:
        offset = self._offset_of(message)
        mine = {name: one for (at, name), one in self._results.items() if at == offset}
        return {**brought_by(message), **mine}

    def left_by(self, error: BaseException) -> Exception | None:
        """Return with what the handler was left for an effect; None: it was not.

        Whatever it made of HandlerLeft on its way out is no failure: it begins anew.
        """
        if self._left is None or not isinstance(
            error, HandlerLeft | Exception | BaseExceptionGroup
        ):
            return None
        return error if isinstance(error, Exception) else OnceMQError("left for an effect")

    def come_later(self) -> None:
        """The effect for which the handler was left is made in the next call."""
        self._left = None

    async def make(self) -> None:
        """Make the effect for which the handler was left. Raises what ends the call.

        Suspends only for async handlers.
        """
        wish, self._left = self._left, None
        assert wish is not None, "the handler was left"
        await self._make(wish)
        self._stuck = self._message = None

    # --- inside ----------------------------------------------------------------------------------

    def _outcome(self, message: Message, one: EffectCall) -> Any:
        """Return the recorded result, or raise what came instead of one."""
        if one.of in self._failed:
            error, kind = self._failed[one.of]
            if kind:
                self._stuck, self._stuck_kind = error, kind
            raise error
        found = self.of_message(message)[one.of[1]]
        self._results[one.of] = found
        return found.decoded()

    def _leave_for(self, wish: Wish) -> None:
        """Raises HandlerLeft if the call of a function would have a transaction open across it."""
        if self._sink is not None and self._sink.open:
            self._left = wish
            raise HandlerLeft(f"the handler starts again after effect {wish.effect.of[1]!r}")

    async def _make(self, wish: Wish) -> None:
        """Make the effect and keep the outcome. Raises SinkUnavailable, Fenced."""
        one = wish.effect
        try:
            try:
                found = await self._found(wish)
            finally:
                if one.stuck is not None:
                    self._stuck, self._stuck_kind = one.stuck, one.stuck_kind
                if one.ended is not None:
                    await self._tell(one.ended)
            self._results[one.of] = found
        except Exception as error:  # noqa: BLE001 - the handler gets it
            self._fail(one, error)
        except BaseException as error:
            if not raised_by_code(error):
                raise
            if not is_cancellation(error):
                self._fail(one, error)
                return
            cause = self._stuck or OnceMQError("the function was cancelled from within", hint="")
            cause.__cause__ = error
            self._fail(one, cause)

    async def _found(self, wish: Wish) -> Recorded:
        """Ask whether to call the function; return the result, recorded before or new."""
        one = wish.effect
        answer, cancelled = await self._to_the_end(self._answer(one.wanted))
        found = one.answered(answer)
        if cancelled is not None:
            if found is None:
                one.not_called()
            raise cancelled
        if found is not None:
            return found
        self.inside = True
        try:
            with one.under_way():
                result = wish.call()
                if self._awaited and inspect.isawaitable(result):
                    result = await result
        except BaseException as error:
            if is_cancellation(error):
                one.cancelled()
            raise
        finally:
            self.inside = False
        return one.returned(result)

    async def _tell(self, ended: EffectTold) -> None:
        """Say how a call ended. With a sink wait for the record: the call cannot be asked again."""
        assert self._desk is not None, "there was a call"
        if self._sink is None:
            self._desk.tell(ended)
            return
        _, cancelled = await self._to_the_end(self._answer(replace(ended, waits=True)))
        if cancelled is not None:
            raise cancelled

    async def _answer(self, said: Said) -> EffectAnswer:
        """Say something to the core and wait for its answer. Raises OnceMQError if none will come.

        With a sink each record of an effect is a transaction of its own. It is opened here, where a
        lock may be waited for, and handed in; the connection comes back with the answer. So nothing
        is open while the function runs. Raises SinkUnavailable, SinkLocked, Fenced then.
        """
        sink, desk = self._sink, self._desk
        assert desk is not None, "checked before"
        patient = isinstance(said, EffectTold)
        if not self._awaited:
            if sink is not None:
                sink.hand_in(patient=patient)
            return desk.ask(said).result()
        import asyncio  # which plain handlers never load

        if sink is not None:
            await asyncio.to_thread(sink.hand_in, patient=patient)
        return await asyncio.wrap_future(desk.ask(said))

    async def _to_the_end(
        self, work: Coroutine[Any, Any, EffectAnswer]
    ) -> tuple[EffectAnswer, BaseException | None]:
        """Await an answer even if the handler is cancelled meanwhile; return that, too."""
        if self._awaited:
            return await to_the_end(work)
        return await work, None

    def _fail(self, one: EffectCall, error: BaseException) -> None:
        if isinstance(error, SinkUnavailable | Fenced):
            raise error
        self._failed[one.of] = error, self._stuck_kind if self._stuck is error else ""

    def _offset_of(self, message: Message) -> int:
        """Return where the run has the message: a replay stands for one that lies elsewhere."""
        return self._run.window.offset_of(0) if self._run.private else message.offset

    def _check(
        self, message: Message, name: str, policy: str, function: Callable[..., Any]
    ) -> None:
        """Raises before anything is called or recorded."""
        if self._left is not None:
            raise HandlerLeft(f"effect {name!r} was used after the handler stopped at another one")
        if self._why_not or self._desk is None:
            raise EffectsNotSupported(
                self._why_not or "tx.effect needs a ledger, and this handler runs without one"
            )
        if threading.get_ident() != self._thread:
            raise EffectMisused(
                "tx.effect was called in another thread than the handler's",
                hint="call it in the handler itself; the next message waits for it anyway",
            )
        check_name(name, "the name of an effect")
        if policy not in POLICIES:
            raise EffectMisused(f"policy is one of {', '.join(POLICIES)}, not {policy!r}")
        if inspect.iscoroutinefunction(function) and not self._awaited:
            raise EffectsNotSupported(
                f"effect {name!r}: a plain handler cannot await a coroutine function"
            )
        if self.inside:
            raise EffectMisused(f"effect {name!r} is called inside another effect")
        if self._message is not message:
            self._message, self._names, self._stuck = message, set(), None
            self._pending = ""
        if self._stuck is not None:
            raise self._stuck
        if self._pending:
            raise EffectMisused(
                f"effect {self._pending!r} still runs", hint="await the calls one after the other"
            )
        if name in self._names:
            raise EffectMisused(
                f"this message already has an effect {name!r}",
                hint="give each call its own name, for example with the number of the item",
            )
        known = self.of_message(message)
        room = EFFECT_RESULTS_BYTES_MAX - sum(len(one.value) for one in known.values())
        if name not in known and (
            len({*known, *self._names}) >= EFFECTS_MAX or room < EFFECT_RESULT_BYTES_MAX
        ):
            raise TooLarge(
                f"a message has at most {EFFECTS_MAX} effects, and {EFFECT_RESULTS_BYTES_MAX} bytes "
                f"of results; effect {name!r} exceeds that",
                hint="send one message for each call, and make the call in the handler of that message",
            )
        self._names.add(name)
