"""Handler calls and their one commit: what runs, what comes back, what is tried again.

Theory of operation. At most one call is out. Its answer becomes one commit record, unless it does
not match the call (an older grant, a call that was given up): then it is dropped with all that it
holds. The next call is made in the step that commits the last one, so handlers work while the disk
syncs; ids of a commit that is appended but not yet applied are shown to the skip rule by hand.

A message that raises ends the commit before it. It is then tried again alone in front of the rest
of its window, after a pause that doubles from BACKOFF_FIRST_MS to BACKOFF_MAX_MS.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

from ..errors import HandlerFailed
from ..limits import BACKOFF_FIRST_MS, BACKOFF_MAX_MS, COMMIT_EVERY_MS
from ..outcome import Outcome
from ..records import Committed, Output
from .consumer_work import CutHandler, FailedMessage, HandlerDone, Repost, RunHandler
from .ledger import Ledger
from .window import Window, identities, leave_out_known

Acked = list[tuple[str, int, int]]


class Handling:
    """Turns windows into commits under one grant."""

    def __init__(
        self,
        ledger: Ledger,
        place: tuple[str, str, int],
        epoch: int,
        retries: int,
        windows: deque[Window],
    ) -> None:
        """Handle `windows` of `place` (group, topic, partition), which the fetcher fills."""
        self._ledger = ledger
        self._place = place
        self._epoch = epoch
        self._retries = retries
        self._windows = windows
        # The call that is out. Invariant: its window starts at the committed offset.
        self.running: RunHandler | None = None
        # Whether the disk is full, and the answer that waits for room meanwhile.
        # Invariant: an answer is held only while its call counts as running.
        self._disk_full = False
        self._held: HandlerDone | None = None
        # The attempt at the first message of the next window, and not before when.
        self._attempt = 1
        self._not_before_ms = 0
        # When the running call is asked to commit what it has; None: it was asked.
        self._cut_at_ms: int | None = None
        # Messages handled and passed over since the grant.
        self.processed = 0
        self.skipped = 0

    @property
    def idle(self) -> bool:
        """Whether no call is out and nothing waits for one."""
        return self.running is None and not self._windows

    @property
    def wake_at_ms(self) -> int | None:
        """When `advance` has something to do without any event."""
        if self.running is not None:
            return self._cut_at_ms
        return self._not_before_ms if self._windows and not self._disk_full else None

    def disk_space(self, *, full: bool, out: Outcome) -> None:
        """The disk is full, or has room again: then the held answer comes back as it is."""
        self._disk_full = full
        if not full and self._held is not None:
            out.work.append(Repost(self._held))
            self._held = None

    def cut(self, out: Outcome) -> None:
        """Ask the running call to come back with what it has."""
        if self.running is not None and self._cut_at_ms is not None:
            self._cut_at_ms = None
            out.work.append(CutHandler())

    def advance(self, now_ms: int, out: Outcome, acked: Acked) -> None:
        """Call the handler for the next window if none is running and it is time."""
        if self.running is not None:
            if self._cut_at_ms is not None and self._cut_at_ms <= now_ms:
                self.cut(out)
            return
        if not self._windows or self._disk_full or now_ms < self._not_before_ms:
            return
        before = out.appends[-1] if out.appends else None
        assert before is None or isinstance(before, Committed), "only commits go before a call"
        window = leave_out_known(self._windows[0], self._ledger.processed, before)
        left_out = self._windows[0].count - window.count
        if not window.count and before is not None:
            return  # one commit a step: the sync of this one brings the next
        self._windows.popleft()
        if left_out:
            self.skipped += left_out
            out.events.append(
                ("consumer.skipped", self._fields(first_offset=window.first_offset, count=left_out))
            )
        if not window.count:
            self._commit(window, HandlerDone(self._epoch, window.first_offset, 0), acked, out)
            return
        self.running = RunHandler(self._epoch, window, self._attempt, self._ledger)
        self._cut_at_ms = now_ms + COMMIT_EVERY_MS
        out.work.append(self.running)

    def done(
        self, answer: HandlerDone, now_ms: int, out: Outcome, acked: Acked
    ) -> HandlerFailed | None:
        """Take the answer of a call; return the error that ends the consumer, if it does."""
        run = self.running
        if run is None or (answer.epoch, answer.first_offset) != (run.epoch, run.first_offset):
            return None
        if self._disk_full:
            self._held = answer
            return None
        self.running = None
        handled, rest = run.window.split(answer.handled)
        attempt = self._attempt
        if answer.handled:
            attempt = self._attempt = 1
            self.processed += answer.handled
            fields = self._fields(
                epoch=self._epoch,
                count=answer.handled,
                first_offset=handled.first_offset,
                next_offset=handled.next_offset,
                took_us=answer.took_us,
            )
            out.events.append(("consumer.handled", fields))
            self._commit(handled, answer, acked, out)
        if rest.count:
            self._windows.appendleft(rest)
        if answer.failure is None:
            return None
        return self._failed(answer.failure, rest, attempt, now_ms, out)

    def _failed(
        self, failure: FailedMessage, rest: Window, attempt: int, now_ms: int, out: Outcome
    ) -> HandlerFailed | None:
        group, topic, partition = self._place
        offset = rest.offset_of(0)
        error = failure.text
        where = self._fields(offset=offset, id=failure.message_id)
        out.events.append(("handler.raised", {**where, "attempt": attempt, "error": error}))
        if attempt > self._retries:
            out.events.append(("handler.failed", {**where, "attempts": attempt, "error": error}))
            failed = HandlerFailed(
                f"group {group}: the handler raised {error} for message {failure.message_id} of "
                f"{topic}/{partition} at offset {offset}, attempt {attempt}"
            )
            failed.add_note(failure.traceback)  # the user's own; a command prints it
            failed.__cause__ = failure.error
            return failed
        pause = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(attempt - 1, 16))
        delay = int(pause * (0.5 + failure.jitter / 2))
        self._attempt = attempt + 1
        self._not_before_ms = now_ms + delay
        out.events.append(("handler.retry", {**where, "attempt": attempt + 1, "delay_ms": delay}))
        return None

    def _commit(self, window: Window, answer: HandlerDone, acked: Acked, out: Outcome) -> None:
        ledger = self._ledger
        assert ledger.started is not None, "a commit follows the first record"
        assert window.first_offset == ledger.next_offset, "commits follow each other"
        ranges, fingerprints = identities(window)
        outputs = self._numbered(answer.outputs)
        record = Committed(
            self._epoch,
            ledger.commit_no + 1,
            [(ledger.started.topic_id, window.next_offset)],
            ranges,
            b"".join(fingerprints),
            answer.state,
            outputs,
            list(acked),
            fingerprints,
        )
        acked.clear()
        out.appends.append(record)
        fields = self._fields(
            epoch=self._epoch,
            first_offset=window.first_offset,
            next_offset=window.next_offset,
            count=answer.handled,
            outputs=sum(output.count for output in outputs),
            commit_no=record.commit_no,
        )
        out.events.append(("commit.synced", fields))

    def _numbered(self, outputs: list[Output]) -> list[Output]:
        """Give outputs their numbers: contiguous for each target, in the order sent."""
        following = dict(self._ledger.next_sequence)
        numbered = []
        for output in outputs:
            target = (output.topic, output.partition)
            first = following.get(target, 0)
            following[target] = first + output.count
            numbered.append(replace(output, first_sequence=first))
        return numbered

    def _fields(self, **more: Any) -> dict[str, Any]:
        group, topic, partition = self._place
        return {"group": group, "topic": topic, "partition": partition, **more}
