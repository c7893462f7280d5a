"""Between the thread of handlers and the thread of sockets and ledgers: questions about effects."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty

from ..core.effect_work import EffectAnswer, EffectHeld, EffectTold, EffectWanted
from ..core.open_effects import RUNNING
from ..errors import OnceMQError
from .consumer_actor import ConsumerActor

_LOOK_S = 0.2  # how often one who waits looks whether its consumer has ended

Post = Callable[[ConsumerActor, EffectWanted | EffectTold], None]
Wait = Callable[[Callable[[], bool]], None]


class WaitingDesk:
    """Waits while another thread turns the actor."""

    def __init__(self, actor: ConsumerActor, post: Post) -> None:
        """`post` queues something for the actor; any thread may call it."""
        self._actor = actor
        self._post = post

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask and wait. Raises OnceMQError if the consumer ends meanwhile."""
        answers = self._actor.effect_answers
        self._post(self._actor, wanted)
        while True:
            try:
                answer = answers.get(timeout=_LOOK_S)
            except Empty:
                if self._actor.ended:
                    raise _lost(wanted) from None
                continue
            if (answer.offset, answer.name) == (wanted.offset, wanted.name):
                return answer

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`; the event loop runs on meanwhile."""
        import asyncio

        return await asyncio.to_thread(self.want, wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended."""
        self._post(self._actor, told)


class TurningDesk:
    """Turns the actor itself: for a world in one thread."""

    def __init__(self, actor: ConsumerActor, wait: Wait) -> None:
        """`wait` turns everybody until something is true."""
        self._actor = actor
        self._wait = wait

    def want(self, wanted: EffectWanted) -> EffectAnswer:
        """Ask and turn until there is an answer. Raises OnceMQError if the consumer ends."""
        actor = self._actor
        actor.post(wanted)
        self._wait(lambda: actor.ended or not actor.effect_answers.empty())
        if actor.effect_answers.empty():
            raise _lost(wanted)
        return actor.effect_answers.get()

    async def want_awaited(self, wanted: EffectWanted) -> EffectAnswer:
        """As `want`: time stands still while a handler runs."""
        return self.want(wanted)

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended, and turn until that is on disk."""
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


def _lost(wanted: EffectWanted) -> OnceMQError:
    return OnceMQError(
        f"effect {wanted.name!r} was not called: the consumer has ended",
        hint="the message is handled again by whoever has its partition now",
    )


def told_of(place: tuple[str, str, int], held: EffectHeld) -> str:
    """Return what a user is told of a message that waits for an operator's word."""
    group, topic, partition = place
    return (
        f"{topic}/{partition} of group {group} is held: nobody knows whether an effect of message "
        f"{held.message_key} happened ({held.why}); look, then run: oncemq effects resolve "
        f"'{held.effect_id}' --done VALUE, or --retry"
    )
