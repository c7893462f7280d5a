"""Answers of the core for handlers that wait in `tx.effect`; several may wait at the same time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from ..core.consumer.effect_work import NOTED, STALE, EffectAnswer, EffectTold, EffectWanted

Said = EffectWanted | EffectTold
_Key = tuple[int, str]  # offset and name of the effect


class EffectAnswers:
    """Any thread may call it. Nobody waits twice for one effect."""

    def __init__(self) -> None:
        """Nothing is answered."""
        self._mutex = threading.Lock()
        self._there: dict[_Key, EffectAnswer] = {}
        self._bells: dict[_Key, Callable[[], object]] = {}  # of those who wait

    def put(self, answer: EffectAnswer) -> None:
        """Wake who waits for it."""
        key = answer.offset, answer.name
        with self._mutex:
            self._there[key] = answer
            bell = self._bells.get(key)
        if bell is not None:
            bell()

    def has(self, said: Said) -> bool:
        """Whether there is an answer to what a handler has said."""
        with self._mutex:
            answer = self._there.get((said.offset, said.name))
        return answer is not None and _answers(said, answer)

    def take(self, said: Said) -> EffectAnswer | None:
        """Return the answer and forget it; None: there is none."""
        if not self.has(said):
            return None
        with self._mutex:
            return self._there.pop((said.offset, said.name))

    def wait(self, said: Said, timeout_s: float) -> EffectAnswer | None:
        """As `take`, and wait for so long."""
        event = threading.Event()
        with self._ringing(said, event.set):
            if not self.has(said):
                event.wait(timeout_s)
            return self.take(said)

    async def wait_awaited(self, said: Said, timeout_s: float) -> EffectAnswer | None:
        """As `wait`, in an event loop."""
        import asyncio

        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def ring() -> None:
            with contextlib.suppress(RuntimeError):  # closed this very moment
                loop.call_soon_threadsafe(event.set)

        with self._ringing(said, ring):
            if not self.has(said):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(event.wait(), timeout_s)
            return self.take(said)

    @contextlib.contextmanager
    def _ringing(self, said: Said, ring: Callable[[], object]) -> Iterator[None]:
        key = said.offset, said.name
        with self._mutex:
            self._bells[key] = ring
        try:
            yield
        finally:
            with self._mutex:
                self._bells.pop(key, None)


def _answers(said: Said, answer: EffectAnswer) -> bool:
    """Tell whether it is not that of an older question about the same effect."""
    return answer.verdict == STALE or (answer.verdict == NOTED) == isinstance(said, EffectTold)
