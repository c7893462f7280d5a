"""Handlers whose state is that of the message's key: several messages at the same time.

Each message has a unit of work of its own. Async handlers are tasks of the event loop, plain ones
run in threads; with concurrency 1 a plain one runs in the thread that carries the call out. Which
message may start and what may be committed is decided in core/consumer/keyed_schedule.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from typing import Any

from ...codec.entries import change_entry, entry_name, unpack_entry
from ...core.consumer.keyed_schedule import Job, Result, Schedule, changes_of
from ...core.consumer.work import RunHandler
from ...errors import StateTooLarge
from ...limits import MESSAGE_EFFECTS_BYTES_MAX
from ..coroutines import run_without_loop
from ..effects.effects import Effects
from ..messages.message import Message, lot_of
from ..raised import raised_by_code, task_is_ours
from .call import Consumer, Handled, current
from .carry import Carry
from .failures import Failures
from .in_order import AwaitTopic, place_outputs, returned
from .incoming import Place, check_payload, pieces_of
from .shapes import check_result
from .state import StateView
from .threads import HandlerThreads
from .tx import Tx
from .unit_of_work import FindTopic, UnitOfWork, build_outputs


class ByKey:
    """The runner of handlers with a state for each key."""

    def __init__(
        self,
        consumer: Consumer,
        run: RunHandler,
        *,
        find_topic: FindTopic,
        await_topic: AwaitTopic | None,
        begin_effects: Callable[[], Effects],
        carry: Carry,
        failures: Failures,
        threads: HandlerThreads,
    ) -> None:
        """`begin_effects` makes the effects of one message, at its first and in its thread."""
        self._consumer = consumer
        self._run = run
        self._find_topic = find_topic
        self._await_topic = await_topic
        self._begin_effects = begin_effects
        self._carry = carry
        self._failures = failures
        self._threads = threads
        self._schedule: Schedule[Message] | None = None
        self._cut = False

    def cut(self) -> None:
        """Start no more handlers; the call waits for those that run."""
        self._cut = True
        if self._schedule is not None:
            self._schedule.cut = True

    async def work_through(self, place: Place) -> Handled:
        """Messages of one key follow each other."""
        run, shape = self._run, self._consumer.shape
        messages = chain.from_iterable(pieces_of(run, place, shape))
        named = ((entry_name(message.key), message) for message in messages)
        schedule = Schedule(run, named, self._carry.results, self._failures.failed)
        self._schedule = schedule
        schedule.cut = self._cut
        if shape.is_async:
            await self._in_tasks(schedule)
        elif shape.concurrency == 1:
            while (job := schedule.next()) is not None:
                schedule.finish(job, run_without_loop(self._result_of(job)))
        else:
            self._in_threads(schedule)
        done, failure = schedule.prefix()
        state = changes_of(done, run.ledger.state)
        outputs = build_outputs([sent for result in done for sent in result.outgoing])
        return Handled(len(done), state, outputs, sum(result.size for result in done), failure)

    def _in_threads(self, schedule: Schedule[Message]) -> None:
        most = self._consumer.shape.concurrency
        pool = self._threads.pool(most)
        ended: SimpleQueue[Future[tuple[Job[Message], Result]]] = SimpleQueue()
        running = 0
        try:
            while True:
                while running < most and (job := schedule.next()) is not None:
                    pool.submit(self._in_thread, job).add_done_callback(ended.put)
                    running += 1
                if not running:
                    return
                future = ended.get()
                running -= 1
                schedule.finish(*future.result())
        finally:
            for _ in range(running):  # after what ends the process: no handler runs on behind it
                ended.get()

    def _in_thread(self, job: Job[Message]) -> tuple[Job[Message], Result]:
        return job, run_without_loop(self._result_of(job))

    async def _in_tasks(self, schedule: Schedule[Message]) -> None:
        import asyncio  # which plain handlers never load

        most = self._consumer.shape.concurrency
        running: dict[asyncio.Task[Result], Job[Message]] = {}
        try:
            while True:
                while len(running) < most and (job := schedule.next()) is not None:
                    running[asyncio.create_task(self._result_of(job))] = job
                if not running:
                    return
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    schedule.finish(running.pop(task), task.result())
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _result_of(self, job: Job[Message]) -> Result:
        """Never raises what a handler raises. Suspends only for async handlers."""
        consumer, message = self._consumer, job.message
        state = StateView(KeyState.of(job.entry), self._run.ledger.limits)
        unit = UnitOfWork(
            state,
            self._find_topic,
            begin_effects=self._begin_effects,
            serializer=self._consumer.shape.serializer,
        )
        unit.message = message
        token = current.set(unit)
        if consumer.shape.is_async:  # each message has a task of its own
            task_is_ours.set(True)
        try:
            check_payload(message, consumer.shape)
            result: Any = consumer.handler(message, Tx(unit))
            if consumer.shape.is_async:
                result = await returned(result)
            if result is not None:
                check_result(result)
            if self._await_topic is not None:
                await place_outputs(unit, self._await_topic)
            return _returned_result(job, unit)
        except BaseException as error:
            if not raised_by_code(error, awaited=consumer.shape.is_async):
                raise
            failure = self._failures.failed(message, error, unit.effects)
            return Result(lot_of(message).stored, job.name, job.entry, job.entry, failure=failure)
        finally:
            unit.message = None
            current.reset(token)


@dataclass(slots=True)
class KeyState:
    """The state of one message key, as a StateView reads it."""

    state: dict[str, bytes]
    state_bytes: int

    @classmethod
    def of(cls, entry: bytes | None) -> KeyState:
        state = unpack_entry(entry)
        size = sum(len(key.encode()) + len(value) for key, value in state.items())
        return cls(state, size)


def _returned_result(job: Job[Message], unit: UnitOfWork) -> Result:
    """Raises what UnitOfWork.accept raises."""
    message = job.message
    if not unit.state.touched:
        return Result(lot_of(message).stored, job.name, job.entry, job.entry)
    unit.accept()
    changes, outgoing, size = unit.accepted()
    left = job.entry
    if changes:
        left = change_entry(job.entry, changes)
        if left is not None and len(left) > MESSAGE_EFFECTS_BYTES_MAX:
            raise StateTooLarge(
                f"the state of one key would have {len(left)} bytes, the limit is "
                f"{MESSAGE_EFFECTS_BYTES_MAX}"
            )
        size += len(job.name) + len(left or b"")
    if unit.effects is not None:  # as results wait in memory, so do these in the ledger
        size += sum(len(one.value) + 64 for one in unit.effects.of_message(message).values())
    return Result(lot_of(message).stored, job.name, job.entry, left, tuple(outgoing), size=size)
