"""Handler runs of simulated consumers with state by key: several messages at the same time.

The schedule of production (core/consumer/keyed_schedule.py) says what may start and what may be
committed.
In place of event loop and threads there are jobs: each takes a drawn time, they end in a drawn
order and fail as their message says. What the schedule promises while they run is looked at here:
one message of a key at a time, in order, and none twice in one process. Whether a commit is right
is seen by the oracle of the ledger, which knows of no schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from ...codec import batch as batch_codec
from ...codec.entries import change_entry, entry_name, unpack_entry
from ...core.consumer.keyed_schedule import Job, Result, Schedule, changes_of
from ...core.consumer.work import CRASHED, RAISED, FailedMessage, HandlerDone, RunHandler
from ...records import BatchStored
from ..oracles.keyed_model import handle_by_key
from ..trace import Violation
from .handler import build_outputs, failures_of, fate_of
from .handler_run import Blocked, Caller, HandlerRun


@dataclass(frozen=True, slots=True)
class KeyedInput:
    """One message of a run."""

    offset: int
    stored: BatchStored
    identity: bytes
    body: bytes
    attempt: int


@dataclass(slots=True)
class Kept:
    """What a process keeps from one run to the next, and what is known of it."""

    results: dict[int, Result] = field(default_factory=dict)  # the schedule's own
    # By offset: what became of messages in this process and is committed by nobody yet.
    seen: dict[int, Result] = field(default_factory=dict)

    def forget(self, run: RunHandler) -> None:
        """Leave only what is known of messages of this run: others come from the broker again."""
        here = {id(piece.stored) for piece in run.window.pieces}
        self.seen = {
            offset: result
            for offset, result in self.seen.items()
            if offset >= run.first_offset and id(result.stored) in here
        }


class KeyedRun(HandlerRun):
    """Carries out one run. Each answer but the last is Blocked: the run goes on when a job ends."""

    def __init__(self, shell: Caller, run: RunHandler, kept: Kept, *, cut: bool) -> None:
        super().__init__(shell, run, cut=cut)
        # Offsets of the private topic are others: what waits for the main one stays.
        self._kept = Kept() if run.private else kept
        self._kept.forget(run)
        self._schedule = Schedule(run, self._named(), self._kept.results, self._failed)
        self._schedule.cut = cut
        self._running: list[tuple[int, Job[KeyedInput]]] = []  # when it ends, and what
        self._last: dict[str, int] = {}  # by key: the last offset that the schedule has met ...
        self._before: dict[int, int] = {}  # ... and what that was when it met another one
        self._starts = 0

    def cut(self) -> None:
        """Start no more; what runs is waited for."""
        self._schedule.cut = True

    def answer(self) -> HandlerDone | None:
        if self._run.deaths:
            return self._crashed()
        rng, now_ms = self._shell.rng, self._world.clock.now_ms()
        ended = [job for end_ms, job in self._running if end_ms <= now_ms]
        self._running = [one for one in self._running if one[0] > now_ms]
        rng.shuffle(ended)
        for job in ended:
            result = self._result_of(job)
            if result is None:
                return None
            self._schedule.finish(job, result)
            self._kept.seen[job.message.offset] = result
            if rng.random() < 0.5:  # threads come back one by one, tasks together
                self._start_more(now_ms)
        self._start_more(now_ms)
        if self._running:
            self._shell.go_on_in(min(end_ms for end_ms, _ in self._running) - now_ms, work=True)
            raise Blocked
        return self._done()

    # --- jobs ------------------------------------------------------------------------------------

    def _inputs(self) -> Iterator[KeyedInput]:
        attempt = self._run.attempt
        for piece in self._run.window.pieces:
            batch = piece.stored.batch
            assert batch is not None
            for index, offset in zip(piece.indices, piece.offsets, strict=True):
                identity, body = self._identity(piece, index), batch.body(index)
                yield KeyedInput(offset, piece.stored, identity, body, attempt)
                attempt = 1

    def _named(self) -> Iterator[tuple[str, KeyedInput]]:
        for message in self._inputs():
            key = batch_codec.split_body(message.body)[1]
            name = entry_name(None if key is None else key.decode())
            if name in self._last:
                self._before[message.offset] = self._last[name]
            self._last[name] = message.offset
            yield name, message

    def _start_more(self, now_ms: int) -> None:
        while len(self._running) < self._shell.group.concurrency:
            job = self._schedule.next()
            if job is None:
                return
            self._look_at(job)
            self._starts += 1
            if self._starts >= self._stop_after:
                self._schedule.cut = True
            self._running.append((now_ms + self._world.plan.job_ms(self._shell.rng), job))

    def _look_at(self, job: Job[KeyedInput]) -> None:
        """Whether a job may be begun. Raises Violation."""
        offset, who = job.message.offset, f"{self._shell.name}: {job.name}"
        if any(other.name == job.name for _, other in self._running):
            raise Violation("key twice", f"{who} at {offset} beside another one")
        if offset in self._before:
            before = self._kept.seen.get(self._before[offset])
            if before is None or before.failure is not None:
                raise Violation("key order", f"{who} at {offset}, not yet {self._before[offset]}")
        known = self._kept.seen.get(offset)
        again = known is not None and known.failure is not None and job.message.attempt > 1
        if known is not None and known.found == job.entry and not again:
            raise Violation("handled twice", f"{who} at {offset} in one process")

    def _result_of(self, job: Job[KeyedInput]) -> Result | None:
        """None if the job killed the process."""
        shell, run, message = self._shell, self._run, job.message
        fate = fate_of(message.identity, replayed=run.private)
        if fate == CRASHED:
            return None
        if fate or message.attempt <= failures_of(message.identity):
            failure = self._failure(message.identity, message.body, fate or RAISED, message.attempt)
            return Result(message.stored, job.name, job.entry, job.entry, failure=failure)
        effects = handle_by_key(
            shell.group,
            shell.partition,
            message.identity,
            message.body,
            unpack_entry(job.entry),
            self._world.oracle.partitions(),
        )
        left = change_entry(job.entry, effects.state)
        sent = sum(len(value) + 64 for _, _, value in effects.outputs)
        size = sent + len(job.name) + len(left or b"")
        return Result(message.stored, job.name, job.entry, left, tuple(effects.outputs), size=size)

    def _check_prefix(self, done: list[Result]) -> None:
        """What a commit will hold is what the first messages did. Raises Violation."""
        seen, where = self._kept.seen, f"{self._shell.name} at {self._run.first_offset}"
        first = islice(self._inputs(), len(done))
        if [seen.pop(message.offset, None) for message in first] != done:
            raise Violation("hole", f"{where}: {len(done)} of {self._run.window.count}")

    def _failed(self, message: KeyedInput, error: BaseException) -> FailedMessage:
        raise Violation("no room", f"{self._shell.name} at {message.offset}: {error}")

    # --- the whole -------------------------------------------------------------------------------

    def _done(self) -> HandlerDone:
        run = self._run
        done, failure = self._schedule.prefix()
        self._check_prefix(done)
        if self._kept.results:
            fields = {"count": len(self._kept.results)}
            self._world.trace.add(self._shell.name, "keyed.kept", fields)
        outputs = build_outputs([one for result in done for one in result.outgoing])
        size = sum(result.size + 32 for result in done)
        size += 0 if failure is None or failure.letter is None else len(failure.letter.raw)
        changes = changes_of(done, run.ledger.state)
        return HandlerDone(
            run.epoch,
            run.first_offset,
            len(done),
            changes,
            outputs,
            failure,
            0,
            size,
            run.private,
        )
