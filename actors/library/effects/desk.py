"""Between the thread of handlers and the thread of sockets and ledgers: questions about effects."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from ...core.consumer.effect_work import EffectAnswer, EffectHeld, EffectTold, EffectWanted
from ...core.consumer.open_effects import RUNNING
from ...errors import OnceMQError
from ...shells.effect_answers import Said
from ...shells.tables.session import Session
from ..consuming.actor import ConsumerActor
from .calls import EffectDesk, command_about

_LOOK_S = 0.2  # how often one who waits looks whether its consumer has ended

Post = Callable[[ConsumerActor, Said], None]
Wait = Callable[[Callable[[], bool]], None]


class WaitingDesk:
    """Waits while another thread turns the actor."""

    def __init__(self, actor: ConsumerActor, post: Post) -> None:
        """`post` queues something for the actor; any thread may call it."""
        self._actor = actor
        self._post = post

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask and wait. Raises OnceMQError if the consumer ends meanwhile."""
        return self._answer_to(wanted)

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`; the event loop runs on meanwhile."""
        return await self._answer_awaited(wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended."""
        if told.waits:
            self._answer_to(told)
        else:
            self._post(self._actor, told)

    async def tell_awaited(self, told: EffectTold) -> None:
        """As `tell`; the event loop runs on meanwhile."""
        if told.waits:
            await self._answer_awaited(told)
        else:
            self._post(self._actor, told)

    def _answer_to(self, said: Said) -> EffectAnswer:
        self._post(self._actor, said)
        while (answer := self._actor.effect_answers.wait(said, _LOOK_S)) is None:
            if self._actor.ended:
                raise _lost(said)
        return answer

    async def _answer_awaited(self, said: Said) -> EffectAnswer:
        self._post(self._actor, said)
        answers = self._actor.effect_answers
        while (answer := await answers.wait_awaited(said, _LOOK_S)) is None:
            if self._actor.ended:
                raise _lost(said)
        return answer


class TurningDesk:
    """Turns the actor itself: for a world in one thread, or whose threads turn it by turns."""

    def __init__(self, actor: ConsumerActor, wait: Wait, turning: threading.Lock) -> None:
        """`wait` turns everybody until something is true; whoever does it has `turning`."""
        self._actor = actor
        self._wait = wait
        self._turning = turning

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask and turn until there is an answer. Raises OnceMQError if the consumer ends."""
        return self._answer_to(wanted)

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`: time stands still while a handler runs."""
        return self.want(wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended, and turn until that is on disk."""
        if told.waits:
            self._answer_to(told)
            return
        actor, (offset, name) = self._actor, (told.offset, told.name)
        with self._turning:
            actor.post(told)
            self._wait(
                lambda: (
                    actor.ended
                    or not any(
                        one.how == RUNNING
                        for one in actor.core.ledger.effects
                        if (one.offset, one.name) == (offset, name)
                    )
                )
            )

    async def tell_awaited(self, told: EffectTold) -> None:
        """As `tell`."""
        self.tell(told)

    def _answer_to(self, said: Said) -> EffectAnswer:
        actor, answers = self._actor, self._actor.effect_answers
        with self._turning:
            actor.post(said)
            self._wait(lambda: actor.ended or answers.has(said))
            answer = answers.take(said)
            if answer is None:
                raise _lost(said)
            if actor.sink is not None:  # others may wait for the file that we have just let go
                turns = iter((False, True))
                self._wait(lambda: next(turns))
            return answer


class LendingDesk:
    """For consumers with a SQL sink: each record of an effect is a transaction of its own.

    The handler's thread opens it, where a lock may be waited for, and hands it in; the connection
    comes back with the answer. So nothing is open while the function of the effect runs.
    """

    def __init__(self, desk: EffectDesk, sink: Session) -> None:
        """Speak through `desk`."""
        self._desk = desk
        self._sink = sink

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask and wait. Raises SinkUnavailable, SinkLocked, Fenced too."""
        self._sink.hand_in()
        return self._desk.want(wanted)

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`; the event loop runs on meanwhile."""
        import asyncio

        await asyncio.to_thread(self._sink.hand_in)
        return await self._desk.want_awaited(wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended, and wait until that is recorded: the call cannot be asked again."""
        self._sink.hand_in(patient=True)
        self._desk.tell(replace(told, waits=True))

    async def tell_awaited(self, told: EffectTold) -> None:
        """As `tell`; the event loop runs on meanwhile."""
        import asyncio

        await asyncio.to_thread(self._sink.hand_in, patient=True)
        await self._desk.tell_awaited(replace(told, waits=True))


def _lost(said: Said) -> OnceMQError:
    if isinstance(said, EffectTold):
        return OnceMQError(
            f"effect {said.name!r} was called, but the consumer ended before recording it",
            hint="list unknown effects: oncemq effects list",
        )
    return OnceMQError(
        f"effect {said.name!r} was not called: the consumer ended",
        hint="the new owner of the partition handles the message again",
    )


def told_of(actor: ConsumerActor, held: EffectHeld) -> str:
    """Return what a user is told of a message that waits for an operator's word."""
    group, topic, partition = actor.place
    return (
        f"{topic}/{partition} of group {group} waits: it is unknown whether an effect of message "
        f"{held.message_key} happened ({held.why}); check, then run: "
        f"{command_about(held.effect_id, actor.sink)}"
    )
