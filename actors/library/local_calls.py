"""Calls of handlers in the thread of a test: the event loop and the threads that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.consumer_work import HandlerDone
from .handler_threads import HandlerThreads
from .handlers import Call

if TYPE_CHECKING:
    import asyncio


class LocalCalls:
    """Carries calls out one by one; what async handlers leave in the loop lives on in between."""

    def __init__(self) -> None:
        """Start nothing."""
        self.threads = HandlerThreads()
        self._runner: asyncio.Runner | None = None

    def carry_out(self, call: Call, place: tuple[str, str, int]) -> HandlerDone:
        """Carry out a call of (group, topic, partition)."""
        if not call.is_async:
            return call.carry_out(place)
        import asyncio

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(call.carry_out_async(place))

    def close(self) -> None:
        """End loop and threads; tasks that are left in the loop are cancelled. Usable again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()
        self.threads.close()
