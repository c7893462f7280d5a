"""Messages one after the other, in one unit of work: plain and async handlers, single and in lists.

Each message passes the same protocol. It gets a savepoint of the unit; when its handler returns, what
it did is accepted; when it raises, that is taken back and the call ends with the failure. A handler
that was left for an effect (library/effects) begins anew after it. The call also ends after the
message at hand when it is cut, and where the commit would grow too large.

How a function is called is one of two strategies. OneByOne is the loop of plain handlers, which
costs nanoseconds a message. InLists hands over lists and awaits async handlers.

A list is all or nothing. When its handler raises, nothing of it is kept, and its messages are handed
over in lists of one, so that a bad message does not hold up its neighbours; the rule of retries then
counts for the message that raises again. The error of the list is only logged, since it has no
message to blame.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from ...core.consumer.work import FailedMessage, RunHandler
from ...errors import OnceMQError, PayloadInvalid, SinkConflict
from ...runtime.diagnostics import log
from ...shells.tables.session import Session
from ..effects.effects import Effects
from ..messages.message import Message, as_sent
from ..raised import in_task, is_cancellation, raised_by_code
from .call import Consumer, Handled, current
from .carry import Carry
from .failures import Failures
from .incoming import Place, checked_pieces
from .shapes import check_result
from .tx import Tx
from .unit_of_work import UnitOfWork

if TYPE_CHECKING:
    from ..sinks.awaited import Statements

# Return the partition count of a topic without blocking the loop. Raises as FindTopic does.
AwaitTopic = Callable[[str], Awaitable[int]]


class Strategy(Protocol):
    """How a function is called."""

    handled: int  # messages whose handler returned, and whose work is accepted

    async def work(self, pieces: Iterator[Iterable[Message]]) -> None:
        """Hand messages over until they end or the unit of work is full or cut.

        Raises what a handler raises; the unit is at its message then.
        """


class InOrder:
    """The runner of handlers whose messages share one unit of work."""

    def __init__(
        self,
        consumer: Consumer,
        run: RunHandler,
        unit: UnitOfWork,
        strategy: Strategy,
        *,
        effects: Effects,
        carry: Carry,
        failures: Failures,
        sink: Session | None = None,
    ) -> None:
        self._consumer = consumer
        self._run = run
        self._unit = unit
        self._strategy = strategy
        self._effects = effects
        self._carry = carry
        self._failures = failures
        self._sink = sink

    def cut(self) -> None:
        self._unit.cut = True

    async def work_through(self, place: Place) -> Handled:
        self._effects.here()
        try:
            with self._lent():
                token = current.set(self._unit)
                try:
                    failure = await self._until_failure(place)
                finally:
                    current.reset(token)
                if self._sink is not None:
                    failure = self._settled(self._sink, failure)
                state, outputs, size = self._unit.finish()
                return Handled(self._strategy.handled, state, outputs, size, failure)
        except SinkConflict as conflict:
            return Handled(failure=self._failures.again(conflict))

    async def _until_failure(self, place: Place) -> FailedMessage | None:
        while True:
            try:
                pieces = checked_pieces(self._run, place, self._consumer.shape, self._unit)
                await self._strategy.work(pieces)
            except BaseException as error:  # noqa: BLE001 - whatever a user's handler raises
                failure = self._ended_by(error)
                if failure is not None:
                    return failure
            else:
                return None
            if self._comes_later():
                return None
            await self._effects.make()
            self._unit.reject()  # what the function did to it

    def _ended_by(self, error: BaseException) -> FailedMessage | None:
        """The handler has raised: return how it failed; None: it was left for an effect.

        Raises what is neither.
        """
        left = self._effects.left_by(error)
        if left is not None:
            self._unit.take_back(left)
            return None
        if not raised_by_code(error, awaited=self._consumer.shape.is_async):
            raise error
        message = self._unit.message
        assert message is not None, "a handler raised for a message"
        return self._failures.failed(message, self._unit.take_back(error))

    def _comes_later(self) -> bool:
        """Whether the call ends before the message that was left, since others wait for a commit."""
        if self._strategy.handled:
            self._effects.come_later()
        return self._strategy.handled > 0

    @contextlib.contextmanager
    def _lent(self) -> Iterator[None]:
        sink, run = self._sink, self._run
        if sink is None:
            yield
            return
        sink.start_call((run.epoch, run.private, run.first_offset))
        self._unit.cut = self._unit.cut or sink.solo
        try:
            yield
        except SinkConflict:
            try:
                sink.run_again()
            except BaseException:
                sink.abandon()
                raise
            raise
        except BaseException:
            sink.abandon()
            raise

    def _settled(self, sink: Session, failure: FailedMessage | None) -> FailedMessage | None:
        """Give the connection back; return how the call failed.

        If the database refuses all of it, its messages are handled again one by one, so that it
        shows which one was to blame; the message of a call that had no other is to blame.
        """
        strategy, message = self._strategy, self._unit.message
        try:
            sink.settle(strategy.handled)
        except Exception as error:  # noqa: BLE001 - constraints of the user's tables
            # Raises what is no constraint: an outage, a conflict.
            refusal = self._unit.take_back(error)
            alone = strategy.handled == 1 and failure is None and message is not None
            failure = self._failures.failed(message, refusal) if alone and message else None
            strategy.handled = 0
            self._carry.alone_below = self._run.window.next_offset
        sink.end_call(keep=strategy.handled > 0)
        return failure


class OneByOne:
    """A plain handler, message by message."""

    def __init__(self, consumer: Consumer, unit: UnitOfWork, messages_max: int) -> None:
        self.handled = 0
        self._handler = consumer.handler
        self._unit = unit
        self._messages_max = messages_max

    async def work(self, pieces: Iterator[Iterable[Message]]) -> None:
        """The loop that every message passes: each line of it costs."""
        unit, handler = self._unit, self._handler
        tx, state = Tx(unit), unit.state
        handled = 0
        try:
            for messages in pieces:
                for message in messages:
                    unit.message = message
                    result = handler(message, tx)
                    if result is not None:
                        check_result(result)
                    if state.touched:
                        unit.accept()
                    handled += 1
                    if unit.cut:
                        return
                if handled >= self._messages_max:
                    return
        finally:
            self.handled = handled


class InLists:
    """A handler of lists, or an async handler, whose lists have one message each, or both."""

    def __init__(
        self,
        consumer: Consumer,
        unit: UnitOfWork,
        messages_max: int,
        carry: Carry,
        await_topic: AwaitTopic | None,
        statements: Statements | None,
    ) -> None:
        """`await_topic` looks topics up after the handler: `tx.send` can await nothing, and a lookup
        that blocked would freeze the loop.
        """
        self.handled = 0
        self._handler = consumer.handler
        self._shape = consumer.shape
        self._unit = unit
        self._tx = Tx(unit)
        self._messages_max = messages_max
        self._carry = carry
        self._await_topic = await_topic
        self._statements = statements

    async def work(self, pieces: Iterator[Iterable[Message]]) -> None:
        unit = self._unit
        self.handled = 0
        for messages in self._lists(pieces):
            if len(messages) == 1:
                await self._invoke(messages)
            elif not await self._together(messages):
                for message in messages:
                    await self._invoke([as_sent(message)])
                    if unit.cut:
                        return
            if unit.cut or self.handled >= self._messages_max:
                return

    async def _together(self, messages: list[Message]) -> bool:
        try:
            await self._invoke(messages)
        except BaseException as raised:
            if not raised_by_code(raised, awaited=self._shape.is_async):
                raise
            error = self._unit.take_back(raised)
            self._carry.alone_below = messages[-1].offset + 1
            log(
                logging.WARNING,
                "the handler of lists raised %s for %d messages of %s/%d from offset %d on; nothing "
                "of them was kept, and each is handed over alone",
                type(error).__name__, len(messages), messages[0].topic, messages[0].partition,
                messages[0].offset, exc_info=error,
            )  # fmt: skip
            return False
        return True

    async def _invoke(self, messages: list[Message]) -> None:
        unit, shape = self._unit, self._shape
        unit.message = messages[0]
        if self._statements is not None:
            self._statements.begin_message()
        # The handler's own list: it may sort or empty it.
        result: Any = self._handler(list(messages) if shape.batch_size else messages[0], self._tx)
        if shape.is_async:
            result = await self._returned(result)
        if result is not None:
            check_result(result)
        if unit.state.touched:
            if self._await_topic is not None:
                await place_outputs(unit, self._await_topic)
            unit.accept()
        self.handled += len(messages)

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

    def _lists(self, pieces: Iterator[Iterable[Message]]) -> Iterator[list[Message]]:
        """Yield the messages in lists; those that failed in one come alone."""
        size = self._shape.batch_size or 1
        alone_below = self._carry.alone_below
        found: list[Message] = []
        invalid: PayloadInvalid | None = None
        try:
            for message in chain.from_iterable(pieces):
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
    try:
        return await awaitable
    except GeneratorExit as error:
        if not in_task():
            raise
        raise OnceMQError("the handler raised GeneratorExit", hint="") from error
    except BaseException as error:
        if not is_cancellation(error) or not raised_by_code(error):
            raise
        raise OnceMQError("the handler cancelled its own task", hint="") from error


async def place_outputs(unit: UnitOfWork, await_topic: AwaitTopic) -> None:
    """Choose the partitions of what the handler sent to topics that this process had not met."""
    for topic in unit.unplaced():
        unit.place(topic, await await_topic(topic))
