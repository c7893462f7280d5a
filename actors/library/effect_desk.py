"""Between the thread of handlers and the thread of sockets and ledgers: questions about effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from queue import Empty

from ..core.effect_work import NOTED, STALE, EffectAnswer, EffectHeld, EffectTold, EffectWanted
from ..core.open_effects import RUNNING
from ..errors import OnceMQError
from .consumer_actor import ConsumerActor
from .effect_calls import EffectDesk, command_about
from .sinks.session import Session

_LOOK_S = 0.2  # how often one who waits looks whether its consumer has ended

Said = EffectWanted | EffectTold
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
        self._post(self._actor, wanted)
        return self._answer_to(wanted)

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`; the event loop runs on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.want, wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended."""
        self._post(self._actor, told)
        if told.waits:
            self._answer_to(told)

    async def tell_awaited(self, told: EffectTold) -> None:
        """As `tell`; the event loop runs on meanwhile."""
        import asyncio

        if told.waits:
            await asyncio.to_thread(self.tell, told)
        else:
            self.tell(told)

    def _answer_to(self, said: Said) -> EffectAnswer:
        answers = self._actor.effect_answers
        while True:
            try:
                answer = answers.get(timeout=_LOOK_S)
            except Empty:
                if self._actor.ended:
                    raise _lost(said) from None
                continue
            if answers_to(said, answer):
                return answer


class TurningDesk:
    """Turns the actor itself: for a world in one thread."""

    def __init__(self, actor: ConsumerActor, wait: Wait) -> None:
        """`wait` turns everybody until something is true."""
        self._actor = actor
        self._wait = wait

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
        actor.post(said)
        self._wait(lambda: actor.ended or not answers.empty())
        if answers.empty():
            raise _lost(said)
        if actor.sink is not None:  # others may wait for the file that we have just let go
            turns = iter((False, True))
            self._wait(lambda: next(turns))
        return answers.get()


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


def answers_to(said: Said, answer: EffectAnswer) -> bool:
    """Tell whether `answer` is the answer to what a handler has said."""
    if (answer.offset, answer.name) != (said.offset, said.name):
        return False
    return answer.verdict == STALE or (answer.verdict == NOTED) == isinstance(said, EffectTold)


def _lost(said: Said) -> OnceMQError:
    if isinstance(said, EffectTold):
        return OnceMQError(
            f"effect {said.name!r} was called, and the consumer ended before its record",
            hint="see: oncemq effects list",
        )
    return OnceMQError(
        f"effect {said.name!r} was not called: the consumer has ended",
        hint="the message is handled again by whoever has its partition now",
    )


def told_of(actor: ConsumerActor, held: EffectHeld) -> str:
    """Return what a user is told of a message that waits for an operator's word."""
    group, topic, partition = actor.place
    return (
        f"{topic}/{partition} of group {group} is held: nobody knows whether an effect of message "
        f"{held.message_key} happened ({held.why}); look, then run: "
        f"{command_about(held.effect_id, actor.sink)}"
    )
