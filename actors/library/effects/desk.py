"""Between a handler that is at an effect and the thread that owns the ledger: questions, answers.

The handler's thread asks through an `EffectDesk` and waits for a future. The thread of the ledger
gives the answer of the core to `EffectAnswers`, which completes that future.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Protocol

from ...core.consumer.effect_work import NOTED, STALE, EffectAnswer, EffectTold, EffectWanted
from ...errors import OnceMQError

Said = EffectWanted | EffectTold
_Key = tuple[int, str]  # offset and name of the effect


class EffectDesk(Protocol):
    """How a handler speaks with the core of its consumer. Any thread may call it."""

    def ask(self, said: Said) -> Future[EffectAnswer]:
        """The future gets the answer, or OnceMQError if the consumer ends before."""

    def tell(self, told: EffectTold) -> None:
        """Report how a call ended; there is no answer."""


class EffectAnswers:
    """The open questions of one consumer. Any thread may call it; no effect is asked for twice."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._asked: dict[_Key, tuple[Said, Future[EffectAnswer]]] = {}
        self._ended = False

    def ask(self, said: Said) -> Future[EffectAnswer]:
        """Call it before the core hears of the question."""
        future: Future[EffectAnswer] = Future()
        future.set_running_or_notify_cancel()  # it is waited for to the end: nobody cancels it
        with self._mutex:
            if not self._ended:
                self._asked[said.offset, said.name] = said, future
                return future
        future.set_exception(_lost(said))
        return future

    def put(self, answer: EffectAnswer) -> None:
        """An answer that no handler waits for is dropped."""
        with self._mutex:
            said, future = self._asked.get((answer.offset, answer.name), (None, None))
            if said is None or future is None or not _answers(said, answer):
                return
            del self._asked[answer.offset, answer.name]
        future.set_result(answer)

    def end(self) -> None:
        """The consumer has ended: no answer will come."""
        with self._mutex:
            self._ended = True
            asked, self._asked = list(self._asked.values()), {}
        for said, future in asked:
            future.set_exception(_lost(said))


def _answers(said: Said, answer: EffectAnswer) -> bool:
    """Whether it is not that of an older question about the same effect."""
    return answer.verdict == STALE or (answer.verdict == NOTED) == isinstance(said, EffectTold)


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
