"""Calls of handlers whose state is that of the message's key: several at the same time.

Each message has a Tx of its own. Async handlers are tasks of the event loop, plain ones run in
threads; with concurrency 1 a plain one runs in the thread that carries the call out, as others do.
Which message may start and what may be committed is decided in core/keyed_schedule.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import chain
from queue import SimpleQueue
from typing import Any

from ...codec.entries import change_entry, entry_name
from ...core.consumer.keyed_schedule import Job, Result, Schedule, changes_of
from ...core.consumer.work import FailedMessage, HandlerDone, RunHandler
from ...errors import StateTooLarge
from ...limits import MESSAGE_EFFECTS_BYTES_MAX
from ..effects.calls import EffectDesk
from ..effects.effects import Effects
from ..messages.message import Message, lot_of
from .call import Call, Consumer, check_payload, current
from .call_async import AwaitTopic, returned
from .carry import Carry
from .keyed_state import KeyState
from .shapes import check_result
from .state import StateView
from .threads import HandlerThreads
from .tx import Tx
from .unit_of_work import FindTopic, UnitOfWork, build_outputs


class KeyedCall(Call):
    """A call of a handler with a state for each key."""

    def __init__(
        self,
        consumer: Consumer,
        run: RunHandler,
        find_topic: FindTopic,
        carry: Carry,
        threads: HandlerThreads,
        await_topic: AwaitTopic | None = None,
        desk: EffectDesk | None = None,
    ) -> None:
        """`await_topic` is as for AwaitedCall."""
        super().__init__(consumer, run, find_topic, desk=desk)
        self._desk = desk
        self._carry = carry
        self._threads = threads
        self._find_topic = find_topic
        self._await_topic = await_topic
        self.is_async = consumer.shape.is_async and not run.deaths
        self._schedule: Schedule[Message] | None = None
        self._cut = False

    def cut(self) -> None:
        """Start no more handlers; those that run are waited for."""
        self._cut = True
        if self._schedule is not None:
            self._schedule.cut = True

    def carry_out(self, place: tuple[str, str, int]) -> HandlerDone:
        """Call the handler for each message, those of one key in order; return what it did."""
        if self.run.deaths:
            return self._crashed(self._place(place))
        started_ns = time.perf_counter_ns()
        schedule = self._begin(place)
        if self._consumer.shape.concurrency == 1:
            while (job := schedule.next()) is not None:
                schedule.finish(job, self._run_job(job))
        else:
            self._run_in_threads(schedule)
        return self._end(schedule, started_ns)

    async def carry_out_async(self, place: tuple[str, str, int]) -> HandlerDone:
        """As `carry_out`, for async handlers."""
        started_ns = time.perf_counter_ns()
        schedule = self._begin(place)
        await self._run_in_tasks(schedule)
        return self._end(schedule, started_ns)

    # --- one after the other, in threads, in tasks -------------------------------------------------

    def _run_in_threads(self, schedule: Schedule[Message]) -> None:
        most = self._consumer.shape.concurrency
        pool = self._threads.pool(most)
        ended: SimpleQueue[Future[tuple[Job[Message], Result]]] = SimpleQueue()
        running = 0
        try:
            while True:
                while running < most and (job := schedule.next()) is not None:
                    pool.submit(self._of_job, job).add_done_callback(ended.put)
                    running += 1
                if not running:
                    return
                future = ended.get()
                running -= 1
                schedule.finish(*future.result())
        finally:
            for _ in range(running):  # after what ends the process; nobody runs on behind its back
                ended.get()

    def _of_job(self, job: Job[Message]) -> tuple[Job[Message], Result]:
        return job, self._run_job(job)

    async def _run_in_tasks(self, schedule: Schedule[Message]) -> None:
        import asyncio

        most = self._consumer.shape.concurrency
        running: dict[asyncio.Task[Result], Job[Message]] = {}
        try:
            while True:
                while len(running) < most and (job := schedule.next()) is not None:
                    running[asyncio.create_task(self._run_job_async(job))] = job
                if not running:
                    return
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    schedule.finish(running.pop(task), task.result())
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # --- one message -------------------------------------------------------------------------------

    def _run_job(self, job: Job[Message]) -> Result:
        unit = self._unit_for(job)
        token = current.set(unit)
        try:
            self._check(job.message)
            result = self._consumer.handler(job.message, Tx(unit))
            if result is not None:
                check_result(result)
            return _effects(job, unit)
        except Exception as error:  # noqa: BLE001 - whatever a user's handler raises
            return self._of_failed(job, error, unit)
        finally:
            unit.message = None
            current.reset(token)

    async def _run_job_async(self, job: Job[Message]) -> Result:
        unit = self._unit_for(job)
        token = current.set(unit)
        try:
            self._check(job.message)
            awaitable: Any = self._consumer.handler(job.message, Tx(unit))
            check_result(await returned(awaitable))
            if self._await_topic is not None:
                for topic in unit.unplaced():
                    unit.place(topic, await self._await_topic(topic))
            return _effects(job, unit)
        except Exception as error:  # noqa: BLE001 - whatever a user's handler raises
            return self._of_failed(job, error, unit)
        finally:
            unit.message = None
            current.reset(token)

    def _of_failed(self, job: Job[Message], error: Exception, unit: UnitOfWork) -> Result:
        failure = self._failed(job.message, error, unit.effects)
        return Result(lot_of(job.message).stored, job.name, job.entry, job.entry, failure=failure)

    def _check(self, message: Message) -> None:
        shape = self._consumer.shape
        if shape.decode is not None:
            check_payload(message, shape.payload)

    def _unit_for(self, job: Job[Message]) -> UnitOfWork:
        state = StateView(KeyState.of(job.entry), self.run.ledger.limits)
        unit = UnitOfWork(state, self._find_topic, begin_effects=self._new_effects)
        unit.message = job.message
        return unit

    def _new_effects(self) -> Effects:
        """Return what one message knows of its effects, in the thread of its handler."""
        awaited = self._consumer.shape.is_async
        return Effects(self.run, self._desk, "", self._known, awaited=awaited)

    # --- the whole ---------------------------------------------------------------------------------

    def _decoded(self, messages: Iterable[Message]) -> Iterator[Message]:
        return iter(messages)  # each is looked at when its turn comes

    def _begin(self, place: tuple[str, str, int]) -> Schedule[Message]:
        messages = chain.from_iterable(self._pieces(self._place(place)))
        named = ((entry_name(message.key), message) for message in messages)
        self._schedule = Schedule(self.run, named, self._carry.results, self._failed)
        self._schedule.cut = self._cut
        return self._schedule

    def _end(self, schedule: Schedule[Message], started_ns: int) -> HandlerDone:
        done, failure = schedule.prefix()
        return self._answer_of(done, failure, started_ns)

    def _answer_of(
        self, done: list[Result], failure: FailedMessage | None, started_ns: int
    ) -> HandlerDone:
        state = changes_of(done, self.run.ledger.state)
        outputs = build_outputs([one for result in done for one in result.outgoing])
        took_us = (time.perf_counter_ns() - started_ns) // 1000
        size = sum(result.size + 32 for result in done)
        return self._done(len(done), state, outputs, failure, took_us, size)


def _effects(job: Job[Message], unit: UnitOfWork) -> Result:
    """Return what a handler that returned has done. Raises what UnitOfWork.accept raises."""
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
