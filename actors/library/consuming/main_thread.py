"""The main thread of a consumer process: it carries out one call after the other.

Where some handler is async, the thread runs an event loop for as long as the process runs: what
handlers leave there - connection pools, background tasks - lives on between calls. Plain handlers
of the same process then run in that loop too and hold it up, as any plain function does.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from ...core.consumer.effect_work import EffectAnswer, EffectTold
from ...core.consumer.work import HandlerDone
from ...errors import OnceMQError
from ...runtime.diagnostics import log
from ..effects.desk import Said
from ..handling.call import Call
from ..raised import raised_by_code, task_is_ours
from .actor import ConsumerActor

if TYPE_CHECKING:
    import asyncio


# Take the answer of a call; None: it was not carried out.
# An error: it could not be, because the consumer's sink is lost to it.
Answer = HandlerDone | OnceMQError | None
Deliver = Callable[[ConsumerActor, Answer], None]


class CallThread(Protocol):
    """What both kinds can do."""

    def put(self, actor: ConsumerActor, call: Call) -> None:
        """Any thread may call it."""

    def end(self) -> None:
        """Let `run` return after the calls that wait. Any thread may call it."""

    def run(self) -> None:
        """Carry calls out until the end."""


class PlainThread:
    """Carries out calls of plain handlers."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._calls: SimpleQueue[tuple[ConsumerActor, Call] | None] = SimpleQueue()

    def put(self, actor: ConsumerActor, call: Call) -> None:
        self._calls.put((actor, call))

    def end(self) -> None:
        self._calls.put(None)

    def run(self) -> None:
        while (item := self._calls.get()) is not None:
            actor, call = item
            done: Answer = None
            if not actor.ended:  # one that was fenced meanwhile has nobody who would commit
                try:
                    done = call.carry_out(actor.place)
                except OnceMQError as error:
                    done = error
            self._deliver(actor, done)


class LoopThread:
    """Carries out calls in an event loop."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._calls: deque[tuple[ConsumerActor, Call] | None] = deque()
        # There while `run` runs; who has put something rings.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event | None = None

    def put(self, actor: ConsumerActor, call: Call) -> None:
        self._calls.append((actor, call))
        self._ring()

    def end(self) -> None:
        self._calls.append(None)
        self._ring()

    def _ring(self) -> None:
        loop, bell = self._loop, self._bell
        if loop is not None and bell is not None:
            with contextlib.suppress(RuntimeError):  # closed this very moment
                loop.call_soon_threadsafe(bell.set)

    def run(self) -> None:
        import asyncio

        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            work = loop.create_task(self._carry_out())
            try:
                while not work.done():
                    try:
                        loop.run_until_complete(work)
                    except (SystemExit, KeyboardInterrupt) as error:
                        # Of a task of its own that a handler began. asyncio stops the loop for it;
                        # who awaits that task gets the error too.
                        if work.done() or not raised_by_code(error):
                            raise
                        log(logging.WARNING, "a task of a handler raised %s", type(error).__name__)
            finally:
                self._loop = None

    async def _carry_out(self) -> None:
        import asyncio

        task_is_ours.set(True)
        bell = self._bell = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        while True:
            while not self._calls:
                bell.clear()
                if not self._calls:
                    await bell.wait()
            item = self._calls.popleft()
            if item is None:
                return
            actor, call = item
            done: Answer = None
            if not actor.ended:
                try:
                    if call.is_async:
                        done = await call.carry_out_async(actor.place)
                    else:
                        done = call.carry_out(actor.place)
                except OnceMQError as error:
                    done = error
            self._deliver(actor, done)


class WaitingDesk:
    """How handlers ask about effects while the I/O thread turns their consumer."""

    def __init__(self, actor: ConsumerActor, post: Callable[[ConsumerActor, Said], None]) -> None:
        """`post` queues something for the actor; any thread may call it."""
        self._actor = actor
        self._post = post

    def ask(self, said: Said) -> Future[EffectAnswer]:
        answer = self._actor.effect_answers.ask(said)
        self._post(self._actor, said)
        return answer

    def tell(self, told: EffectTold) -> None:
        self._post(self._actor, told)
