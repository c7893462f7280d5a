"""Calls of handlers in the thread of a test: the event loop and the threads that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.consumer.work import HandlerDone
from ...errors import NotSupported
from ..handling.call import Call
from ..handling.threads import HandlerThreads

if TYPE_CHECKING:
    import asyncio


class LocalCalls:
    """Carries calls out one by one; what async handlers leave in the loop lives on in between."""

    def __init__(self) -> None:
        self.threads = HandlerThreads()
        self._runner: asyncio.Runner | None = None

    def carry_out(self, call: Call, place: tuple[str, str, int]) -> HandlerDone:
        """`place`: (group, topic, partition). Raises NotSupported inside of a loop."""
        if not call.is_async:
            return call.carry_out(place)
        import asyncio

        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented, for such uses
            raise NotSupported(
                "a Harness runs async handlers in its own event loop, but a loop already runs here",
                hint="use the Harness in a plain test function",
            )
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(call.carry_out_async(place))

    def close(self) -> None:
        """Tasks that are left in the loop are cancelled. Usable again."""
        runner, self._runner = self._runner, None
        if runner is not None:
            import asyncio

            if asyncio._get_running_loop() is None:  # noqa: SLF001 - as above
                runner.close()
            else:  # a finalizer runs anywhere, also inside of a loop: what is left is dropped
                runner.get_loop().close()
        self.threads.close()
