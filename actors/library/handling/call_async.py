"""Calls of async handlers and of handlers of lists.

An async handler is awaited in the event loop of the thread that carries calls out. Messages follow
each other as with plain handlers: the next one starts when the last has returned.

A list is all or nothing. When its handler raises, nothing of it is kept, and its messages are
handed over in lists of one, so that a bad one does not hold up its neighbours; the rule of retries
then counts for the one that raises again. What raised for the list is only logged, since it has
no message to blame.

Both come from one body: a plain handler of lists runs it without a loop, because nothing in it
waits then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from ...core.consumer.work import FailedMessage, HandlerDone, RunHandler
from ...errors import OnceMQError, PayloadInvalid
from ...shells.tables.session import Session
from ..effects.calls import EffectDesk
from ..messages.message import Message
from .call import Call, Consumer, current
from .carry import Carry
from .shapes import check_result
from .state import StateView
from .unit_of_work import FindTopic, UnitOfWork

if TYPE_CHECKING:
    from ..sinks.awaited import Statements

_LOGGER = logging.getLogger("oncemq")

# Return the partition count of a topic without blocking the loop. Raises as FindTopic does.
AwaitTopic = Callable[[str], Awaitable[int]]


class AwaitedCall(Call):
    """A call of an async handler, of a handler of lists, or of both."""

    def __init__(
        self,
        consumer: Consumer,
        run: RunHandler,
        find_topic: FindTopic,
        carry: Carry,
        await_topic: AwaitTopic | None = None,
        sink: Session | None = None,
        desk: EffectDesk | None = None,
    ) -> None:
        """With `await_topic` the other one may answer 0: a topic is then looked up after the handler.

        `tx.send` can await nothing, and a lookup that blocked would freeze the loop.
        """
        super().__init__(consumer, run, find_topic, sink, desk)
        self._carry = carry
        self._await_topic = await_topic
        self.is_async = consumer.shape.is_async and not run.deaths

    def _new_unit(self, state: StateView, find_topic: FindTopic) -> UnitOfWork:
        of_lists = self._consumer.shape.batch_size > 0
        unit = UnitOfWork(state, find_topic, self._sink, self._effects, of_lists=of_lists)
        self._statements: Statements | None = None
        if self._sink is not None and self._consumer.shape.is_async:
            from ..sinks.awaited import Statements  # asyncio, which plain handlers never load

            self._statements = Statements(self._sink)
            unit.await_sql(self._statements)
        return unit

    def _come_alone(self) -> None:
        self._carry.alone_below = self.run.window.next_offset

    def _handle(self, place: tuple[str, str, int]) -> None:
        run_without_loop(self._work(place))

    async def carry_out_async(self, place: tuple[str, str, int]) -> HandlerDone:
        """As `carry_out`, for async handlers."""
        place = self._place(place)
        self._effects.here()
        started_ns = time.perf_counter_ns()
        with self._lent():
            token = current.set(self._unit)
            try:
                failure = await self._work_through_async(place)
            finally:
                current.reset(token)
            return self._answer(failure, started_ns)

    async def _work_through_async(self, place: tuple[str, str, int]) -> FailedMessage | None:
        while True:
            try:
                await self._work(place)
            except BaseException as error:  # noqa: BLE001 - whatever a user's handler raises
                failure = self._ended_by(error)
                if failure is not None:
                    return failure
            else:
                return None
            if self._comes_later():
                return None
            await self._effects.make_awaited()
            self._unit.reject()  # what the function did to it

    async def _work(self, place: tuple[str, str, int]) -> None:
        unit = self._unit
        for messages in self._lists(place):
            if len(messages) == 1 or not await self._together(messages):
                for message in messages:
                    await self._invoke([message])
                    if unit.cut:
                        return
            if unit.cut or self._handled >= self._messages_max:
                return

    async def _together(self, messages: list[Message]) -> bool:
        """Hand over a list; return whether its handler returned."""
        try:
            await self._invoke(messages)
        except Exception as raised:
            error = self._unit.take_back(raised)
            self._carry.alone_below = messages[-1].offset + 1
            _LOGGER.warning(
                "the handler of lists raised %s for %d messages of %s/%d from offset %d on; nothing "
                "was kept, and each message is now handled alone",
                type(error).__name__, len(messages), messages[0].topic, messages[0].partition,
                messages[0].offset, exc_info=error,
            )  # fmt: skip
            return False
        return True

    async def _invoke(self, messages: list[Message]) -> None:
        """Call the handler once and keep what it did."""
        unit, shape = self._unit, self._consumer.shape
        unit.message = messages[0]
        if self._statements is not None:
            self._statements.begin_message()
        result: Any = self._consumer.handler(
            messages if shape.batch_size else messages[0], self._tx
        )
        if shape.is_async:
            result = await self._returned(result)
        if result is not None:
            check_result(result)
        if unit.state.touched:
            if self._await_topic is not None:
                for topic in unit.unplaced():
                    unit.place(topic, await self._await_topic(topic))
            unit.accept()
        self._handled += len(messages)

    async def _returned(self, result: Any) -> Any:
        """Await a handler, and after it whatever it has begun on the sink's connection."""
        statements = self._statements
        if statements is None:
            return await returned(result)
        wrong: OnceMQError | None = None
        try:
            result = await returned(result)
        finally:
            await statements.rest()
            wrong = statements.end_message()
        if wrong is not None:
            raise wrong
        return result

    def _lists(self, place: tuple[str, str, int]) -> Iterator[list[Message]]:
        """Yield the messages of the window in lists; those that failed in one come alone."""
        size = self._consumer.shape.batch_size or 1
        alone_below = self._carry.alone_below
        found: list[Message] = []
        invalid: PayloadInvalid | None = None
        try:
            for message in chain.from_iterable(self._pieces(place)):
                found.append(message)
                if len(found) == size or message.offset < alone_below:
                    yield found
                    found = []
        except PayloadInvalid as error:
            invalid = error
        blamed = self._unit.message
        if found:
            yield found
        if invalid is not None:
            self._unit.message = blamed
            raise invalid


async def returned(awaitable: Awaitable[Any]) -> Any:
    """Await an async handler.

    A cancellation that came from inside of it is an error like any other; one of the task that
    awaits it goes through.
    """
    import asyncio

    try:
        return await awaitable
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise OnceMQError("the handler cancelled its own task", hint="") from error


def run_without_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in which nothing waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise AssertionError("a plain handler waits for nothing")
