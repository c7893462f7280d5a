"""Handler calls and their one commit: which window runs, which answer counts, what is retried.

Theory of operation. At most one call is out. Its answer becomes one commit record, unless it does
not match the call (an older grant, a call that was given up): then it is dropped with all that it
holds. The next call leaves in the step that commits the last one, so handlers work while the disk
syncs. The ids of a commit that is appended but not yet applied are passed to the skip rule by hand.
A call moves one input (inputs.py); the inputs take turns. With a SQL sink a call uses the
transaction of its commit, so it leaves after the sync of the commit before it.

A message that raises ends the commit before it. It is then retried alone in front of the rest of its
window, after a pause that doubles from BACKOFF_FIRST_MS to BACKOFF_MAX_MS. After its last attempt it
is parked: offset, id and dead letter are one commit, made once the topic of dead letters is known to
exist, so that a committed output can always go out.

A call whose database wants it run again (SinkConflict) did nothing and counts as none: the same
messages are handed over again after a short pause, at the same attempt.

If `park_limit` messages in a row were parked with one type of error, the next one stops the consumer
instead: not the messages are bad then, but the handler. The ledger keeps the count.

After an unclean end messages run alone, each behind a mark that is synced first. A message in which
more than `crash_retries` processes died is parked without another call.

A message with an effect of unknown outcome (effects.py) runs alone too. If the policy is to ask, no
commit passes it before an operator's order. The handler is called once in each generation, because
its code or policy may have changed, and then its input is held.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...backoff import backoff_ms
from ...errors import HandlerFailed, ParkLimitReached
from ...history import highest
from ...limits import CONFLICT_FIRST_MS
from ...outcome import Outcome
from ...records import AttemptMarked, Committed, EffectIntended, Parked, Skipped
from .commits import Acked, committed
from .effect_work import EffectOrder, EffectTold, EffectWanted, belongs
from .effects import Effects
from .grant import Member
from .inputs import Input, Parking, is_dropped
from .ledger import Ledger
from .window import Window, leave_out_known
from .work import (
    AGAIN,
    HELD_EFFECT,
    RAISED,
    AnswerDropped,
    CutHandler,
    FailedMessage,
    HandlerDone,
    Repost,
    RunHandler,
)

DROPPED = "dropped"  # the reason of a skipped message whose dead letter an operator dropped


class Handling:
    """Turns windows into commits under one grant."""

    def __init__(self, ledger: Ledger, member: Member, epoch: int, main: Input) -> None:
        """Handle `main` for `member`; more inputs may join `inputs` later."""
        self._ledger = ledger
        self._member = member
        self._epoch = epoch
        # Invariant: the first input is the partition itself.
        self.inputs = [main]
        self._turn = 0  # index of the input that is served next
        # The call that is out, the input it moves, and the mark it runs behind, if any.
        # Invariant: its window starts at the committed offset of the input.
        self.running: RunHandler | None = None
        self._moved = main
        self._mark: AttemptMarked | None = None
        # Whether the disk is full, and the answer that waits for room meanwhile.
        # Invariant: an answer is held only while its call counts as running.
        self._disk_full = False
        self._held: HandlerDone | None = None
        self.effects = Effects(ledger, member, epoch)
        # When the running call is asked to commit what it has; None: it was asked already.
        self._cut_at_ms: int | None = None
        # (topic, partition) of dead letters; None: not known to exist yet.
        self.dead: tuple[str, int] | None = None
        # Messages handled, passed over and parked since the grant.
        self.processed = 0
        self.skipped = 0
        self.parked = 0

    @property
    def idle(self) -> bool:
        """Whether no call is out and no message waits for one."""
        return self.running is None and all(source.idle for source in self.inputs)

    @property
    def held_effects(self) -> list[str]:
        return self.effects.holding(self.inputs)

    @property
    def wants_dead(self) -> bool:
        """Whether a dead letter waits until its topic exists."""
        return self.dead is None and any(source.parking is not None for source in self.inputs)

    @property
    def wake_at_ms(self) -> int | None:
        if self.running is not None:
            return self._cut_at_ms
        if self._disk_full:
            return None
        times = [
            self.effects.look_at_ms if source.held else source.not_before_ms
            for source in self.inputs
            if source.held or (source.windows and source.parking is None)
        ]
        return min(times, default=None)

    def disk_space(self, now_ms: int, out: Outcome, *, full: bool) -> None:
        """Record that the disk is full; with room again, take up events and answers that waited."""
        self._disk_full = full
        for event in self.effects.take_waiting():
            self.effect(event, now_ms, out)
        if not full and self._held is not None:
            out.work.append(Repost(self._held))
            self._held = None

    def effect(self, event: EffectWanted | EffectTold, now_ms: int, out: Outcome) -> None:
        run, topic_id = self.running, self._moved.topic_id
        before = len(out.appends)
        self.effects.reported(event, run, topic_id, now_ms, out, full=self._disk_full)
        if any(isinstance(record, EffectIntended) for record in out.appends[before:]):
            self._rely_on(event.offset, before, out)

    def ordered(self, order: EffectOrder, now_ms: int, out: Outcome) -> None:
        if self._disk_full:
            return  # the order stays where it lies, and the next look finds it again
        settled = self.effects.ordered(order, now_ms, out)
        for source in self.inputs:
            if settled is not None and source.topic_id == settled.topic_id and source.held:
                source.held = False
                source.not_before_ms = 0

    def cut_call(self, out: Outcome) -> None:
        if self.running is not None and self._cut_at_ms is not None:
            self._cut_at_ms = None
            self._calls(out).append(CutHandler())

    def _calls(self, out: Outcome) -> list[Any]:
        """Return the list for calls, and for work that must follow them in order."""
        return out.work_after_sync if self._member.commit_first else out.work

    def advance(self, now_ms: int, out: Outcome, acked: Acked) -> None:
        """Park a message that failed, or call the handler for the next window, if it is time."""
        if self.running is not None:
            if self._cut_at_ms is not None and self._cut_at_ms <= now_ms:
                self.cut_call(out)
            return
        if self._disk_full:
            return
        if any(source.held for source in self.inputs):
            self.effects.look(now_ms, out)
        before = next((r for r in reversed(out.appends) if isinstance(r, Committed)), None)
        for step in range(len(self.inputs)):
            turn = (self._turn + step) % len(self.inputs)
            source = self.inputs[turn]
            if source.parking is not None:
                # One commit in each step: the sync of this one brings the next step.
                served = self.dead is not None and before is None
                if served:
                    self._park(source, source.parking, out, acked)
            else:
                due = bool(source.windows) and not source.held and source.not_before_ms <= now_ms
                served = due and self._start(source, before, now_ms, out, acked)
            if served:
                self._turn = (turn + 1) % len(self.inputs)
                return

    def _start(
        self, source: Input, before: Committed | None, now_ms: int, out: Outcome, acked: Acked
    ) -> bool:
        """Call the handler for the new messages of the next window; commit a window without any."""
        alone = source.alone()
        if alone or source.private:
            source.split_first()
        source.isolate(self._ledger.effects.first_unresolved(source.topic_id))
        window = leave_out_known(source.windows[0], self._ledger.processed, before)
        left_out = source.windows[0].count - window.count
        dropped = source.private and window.count > 0 and is_dropped(window)
        if before is not None and (dropped or not window.count):
            return False  # one commit in each step, as above
        source.windows.popleft()
        if left_out:
            self.skipped += left_out
            fields = self._fields(source, first_offset=window.first_offset, count=left_out)
            out.events.append(("consumer.skipped", fields))
        if dropped or not window.count:
            skipped = []
            if dropped:
                self.skipped += 1
                first, following = window.offset_of(0), window.next_offset
                skipped = [Skipped(source.topic_id, first, following, DROPPED)]
            nothing = HandlerDone(self._epoch, window.first_offset, 0)
            self._commit(source, window, nothing, acked, out, skipped=skipped)
            return True
        self._call(source, window, now_ms, out, alone=alone)
        return True

    def _call(
        self, source: Input, window: Window, now_ms: int, out: Outcome, *, alone: bool
    ) -> None:
        offset = window.offset_of(0)
        deaths = self._ledger.deaths_in(source.topic_id, offset)
        fatal = deaths if deaths > self._member.crash_retries else 0
        if self._ledger.effects.barrier(source.topic_id) == offset:
            fatal = 0  # it may not be parked, and the held effect stops its handler in time
        run = RunHandler(
            self._epoch, window, source.attempt, self._ledger, now_ms, source.private, fatal
        )
        self.running, self._moved, self._mark = run, source, None
        self._cut_at_ms = now_ms + self._ledger.limits.commit_every_ms
        if fatal or not alone:
            self._calls(out).append(run)
            return
        self._mark = AttemptMarked(self._epoch, source.topic_id, offset, deaths, returned=False)
        self._rely_on(offset, len(out.appends), out)
        out.appends.append(self._mark)
        out.work_after_sync.append(run)
        fields = self._fields(source, epoch=self._epoch, offset=offset, deaths=deaths)
        out.events.append(("attempt.marked", fields))

    def _rely_on(self, offset: int, at: int, out: Outcome) -> None:
        """Let the ledger rely on a message of which a record speaks by its offset before a commit.

        Else its deaths and the results of its effects would count for the message that another
        log has at this offset. The place goes into the commit of this step, or into one of its own
        in front of the record `at`.
        """
        place = self._moved.place_of(offset + 1)
        commit = next((r for r in reversed(out.appends) if isinstance(r, Committed)), None)
        seen = self._ledger.seen if commit is None else highest(commit.seen, self._ledger.seen)
        if place.position <= seen.position:
            return
        if commit is not None:
            commit.seen = place
            return
        number = self._ledger.commit_no + 1
        out.appends.insert(at, Committed(self._epoch, number, [], [], b"", {}, seen=place))

    def done(
        self, answer: HandlerDone, now_ms: int, out: Outcome, acked: Acked
    ) -> HandlerFailed | None:
        """Take the answer of a call; return the error that ends the consumer, if there is one."""
        run, source = self.running, self._moved
        if run is None or not belongs(answer, run):
            return None
        if self._disk_full:
            self._held = answer
            return None
        self.running = None
        barrier = self._ledger.effects.barrier(source.topic_id)
        if (
            answer.handled
            and barrier is not None
            and barrier < run.window.offset_of(answer.handled)
        ):
            source.windows.appendleft(run.window)
            self._came_back(out)
            if self._member.commit_first:
                out.work.append(AnswerDropped())
            self._hold(source, barrier, out)
            return None
        handled, rest = run.window.split(answer.handled)
        attempt = run.deaths or source.attempt
        if answer.handled:
            attempt = 1
            source.passed()
            self.processed += answer.handled
            fields = self._fields(
                source,
                epoch=self._epoch,
                count=answer.handled,
                first_offset=handled.first_offset,
                next_offset=handled.next_offset,
                took_us=answer.took_us,
            )
            out.events.append(("consumer.handled", fields))
            self._commit(source, handled, answer, acked, out)
        if rest.count:
            source.windows.appendleft(rest)
        if answer.failure is None:
            return None
        self._came_back(out)
        return self._failed(source, answer, attempt, now_ms, out)

    def _came_back(self, out: Outcome) -> None:
        """Record that the attempt of a message that is not passed was no death."""
        if self._mark is not None:
            out.appends.append(replace(self._mark, returned=True))

    def _hold(self, source: Input, offset: int, out: Outcome) -> None:
        """Hold the input once the message at `offset`, which needs an order, is its first."""
        source.held = source.windows[0].offset_of(0) == offset
        if source.held:
            self.effects.report_held(source.topic_id, offset, out)

    def _failed(
        self, source: Input, answer: HandlerDone, attempt: int, now_ms: int, out: Outcome
    ) -> HandlerFailed | None:
        failure = answer.failure
        assert failure is not None, "a message has failed"
        offset = source.windows[0].offset_of(0)
        error = failure.text
        where = self._fields(source, offset=offset, id=failure.message_id)
        if failure.kind == AGAIN:
            delay = backoff_ms(source.conflicts, jitter=failure.jitter, first_ms=CONFLICT_FIRST_MS)
            source.conflicts += 1
            source.not_before_ms = now_ms + delay
            fields = self._fields(source, offset=offset, delay_ms=delay, reason=error)
            out.events.append(("handler.again", fields))
            return None
        barrier = self._ledger.effects.barrier(source.topic_id)
        if failure.kind == HELD_EFFECT and barrier is not None:
            self._hold(source, barrier, out)
            return None
        out.events.append(("handler.raised", {**where, "attempt": attempt, "error": error}))
        if failure.kind == RAISED and attempt <= self._member.retries:
            delay = backoff_ms(attempt - 1, jitter=failure.jitter)
            source.attempt = attempt + 1
            source.not_before_ms = now_ms + delay
            again = {**where, "attempt": attempt + 1, "delay_ms": delay}
            out.events.append(("handler.retry", again))
            return None
        if barrier == offset:
            self._hold(source, offset, out)
            return None
        out.events.append(("handler.failed", {**where, "attempts": attempt, "error": error}))
        at_limit = not answer.handled and self._ends_row(failure)
        if failure.letter is not None and not at_limit:
            source.split_first()
            source.parking = Parking(source.windows.popleft(), failure, attempt)
            return None
        return self._stopped(failure, offset, attempt, row=at_limit)

    def _ends_row(self, failure: FailedMessage) -> bool:
        """Return whether as many messages as may be were parked with this type of error in a row."""
        limit, ledger = self._member.park_limit, self._ledger
        same = ledger.row_error == failure.error_type
        return limit is not None and same and ledger.parked_row >= limit

    def _stopped(
        self, failure: FailedMessage, offset: int, attempt: int, *, row: bool
    ) -> HandlerFailed:
        group, topic, partition = self._member.place
        where = f"message {failure.message_id} of {topic}/{partition} at offset {offset}"
        if row:
            failed: HandlerFailed = ParkLimitReached(
                f"group {group}: {self._ledger.parked_row} messages in a row were parked with"
                f" {failure.error_type}, so {where} is not parked: {failure.text}"
            )
        else:
            failed = HandlerFailed(
                f"group {group}: the handler raised {failure.text} for {where}, attempt {attempt}"
            )
        failed.add_note(failure.traceback)  # the user's own; a command prints it
        failed.__cause__ = failure.error
        return failed

    def _park(self, source: Input, parking: Parking, out: Outcome, acked: Acked) -> None:
        """Commit that a message is a dead letter."""
        failure, offset = parking.failure, parking.window.offset_of(0)
        letter = failure.letter
        assert self.dead is not None and letter is not None  # noqa: PT018
        topic, partition = self.dead
        letter = replace(letter, topic=topic, partition=partition)
        answer = HandlerDone(self._epoch, parking.window.first_offset, 0, outputs=[letter])
        kind, attempts = failure.kind, parking.attempts
        parked = [Parked(source.topic_id, offset, kind, attempts, failure.error_type)]
        self._commit(source, parking.window, answer, acked, out, parked=parked)
        source.parking = None
        source.passed()
        self.parked += 1
        fields = self._fields(
            source,
            epoch=self._epoch,
            offset=offset,
            id=failure.message_id,
            kind=failure.kind,
            attempts=parking.attempts,
            error=failure.text,
        )
        out.events.append(("message.parked", fields))

    def _commit(
        self,
        source: Input,
        window: Window,
        answer: HandlerDone,
        acked: Acked,
        out: Outcome,
        *,
        parked: list[Parked] | None = None,
        skipped: list[Skipped] | None = None,
    ) -> None:
        record = committed(
            self._ledger,
            self._epoch,
            source.topic_id,
            window,
            answer,
            acked,
            source.place_of(window.next_offset),
            parked,
            skipped,
        )
        source.forget(window.next_offset)
        out.appends.append(record)
        fields = self._fields(
            source,
            epoch=self._epoch,
            first_offset=window.first_offset,
            next_offset=window.next_offset,
            count=answer.handled,
            outputs=sum(output.count for output in record.outputs),
            commit_no=record.commit_no,
        )
        out.events.append(("commit.synced", fields))

    def _fields(self, source: Input, **more: Any) -> dict[str, Any]:
        fields = self._member.fields(**more)
        if source.private:
            fields["topic"] = self._member.private_topic
        return fields
