"""Sends the rows of a file, each exactly once, over any number of runs and crashes.

With sequence ids a row's number is the count of earlier rows of its partition, so the file itself
remembers what was sent: a new run reads it from the start and passes over the rows that the broker
has. The run checks that it is the same file: a running digest over the rows of each partition goes
with every batch, and the broker keeps it. A run that gets another digest at the broker's next number
stops before it has sent anything. Explicit ids (`id_fields`) need no memory: the run sends all rows,
and the broker answers known ones as duplicates.

One loop in one thread: read rows, make batches, turn the engine. Reading stops while the engine has
no room, so memory does not grow with the file.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from ...batch import Batch
from ...core.client.producer import Submit
from ...core.client.send_window import Settled
from ...errors import BadInput, InputChanged, OnceMQError, Unacknowledged
from ...ids import untagged_id
from ...protocol import DUPLICATE, STORED
from ...shells.producer import ProducerShell
from ..producing.acks import refusal_of
from ..producing.parcel import Cut, Parcel, build_batch, cut
from .rows import FileJob, parcel_of
from .sources import STDIN, ByteSource, Rows, RowSource

IDLE_MS = 100  # how often an idle run looks at a followed file and at the stop flag
TOGETHER_MS = 10  # how long a turn waits for answers while standard input may bring rows
STOP_MS = 4_000  # how long a stopped run waits for messages in flight
_body_digest = xxhash.xxh3_64_intdigest


@dataclass(slots=True)
class Progress:
    """Counters of a run; at the end they are the summary."""

    sent: int = 0  # rows acknowledged, those of earlier runs included
    appended: int = 0  # of them: stored by this run
    duplicates: int = 0  # of them: sent by this run and known already
    position: int = 0  # bytes of the file read so far
    total: int | None = None  # bytes of the file
    waiting_for: str = ""  # why there is no answer for so long, as a sentence


class _Token(NamedTuple):
    """The rows of a batch, to name one that is refused."""

    numbers: Sequence[int]  # line numbers
    ids: list[bytes] | None


@dataclass(slots=True)
class _Partition:
    """One partition in sequence mode: what the broker has, and what this run has read."""

    next_number: int  # the broker's: rows below it are stored
    digest: bytes  # the broker's, over the rows below next_number
    rows: int = 0  # rows of this partition read so far
    running: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def add(self, bodies: Sequence[bytes]) -> bytes:
        """Add rows to the digest; return the digest after them.

        Eight bytes (the body's hash) stand for each row, whatever batches the rows come in.
        """
        self.running.update(array("Q", map(_body_digest, bodies)).tobytes())
        self.rows += len(bodies)
        return self.running.digest()


class FileProducer:
    """Sends one file. Call `run`; `stop` from a signal handler ends it early."""

    def __init__(
        self,
        job: FileJob,
        engine: ProducerShell,
        open_source: Callable[[], RowSource],
        *,
        report: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        """`engine` is of a named producer, unless the job has id fields.

        `open_source` opens the file, once more for a check of several partitions. `report` gets
        the progress now and then.
        """
        self.job = job
        self.progress = Progress()
        self._engine = engine
        self._open_source = open_source
        self._report = report
        self.stopped = False
        self._stop_by_ms: int | None = None
        self._partitions: dict[int, _Partition] = {}
        self._keyless = 0
        # The first refusal: reading stops, and the run ends with it when nothing is in flight.
        self._failure: OnceMQError | None = None

    def stop(self) -> None:
        """Read no more; `run` returns when messages in flight are acknowledged."""
        self.stopped = True

    def run(self) -> Progress:
        """Send the file to its end (followed files have none) and return the summary.

        Raises InputChanged, BadInput (all earlier rows are acknowledged), IdConflict, or what
        ended the producer, such as Fenced. If `stopped`, the end may not have been reached.
        """
        if not self._connect():
            return self.progress
        self._reset()
        if self._must_check_first():
            self._pass_over(send=False)
            self._reset()
        self._pass_over(send=True)
        self._drain()
        if self._failure is not None:
            raise self._failure
        return self.progress

    # --- the broker ------------------------------------------------------------------------------

    def _connect(self) -> bool:
        """False if stopped meanwhile."""
        engine = self._engine
        engine.ask(self.job.topic)
        while engine.opened is None or self.job.topic not in engine.topics:
            if self.stopped:
                return False
            self._turn(IDLE_MS)
            refused = engine.refused.get(self.job.topic)
            if refused is not None:
                raise refused
        return True

    def _turn(self, timeout_ms: int) -> None:
        engine = self._engine
        engine.turn(timeout_ms)
        for settled in engine.take_settled():
            self._count(settled)
        self.progress.waiting_for = engine.waits_for
        self._report(self.progress)
        if engine.error is not None:
            raise engine.error
        if self.stopped:
            self._check_patience()

    def _check_patience(self) -> None:
        """Raise Unacknowledged if a stopped run has waited STOP_MS for messages in flight."""
        now_ms = self._engine.now_ms()
        if self._stop_by_ms is None:
            self._stop_by_ms = now_ms + STOP_MS
        if now_ms >= self._stop_by_ms and self._engine.in_flight:
            raise Unacknowledged(self._engine.core.send_window.messages)

    def _count(self, settled: Settled) -> None:
        token: _Token = settled.token
        if settled.error is not None:
            self._failure = self._failure or settled.error
            return
        progress = self.progress
        at = 0
        for count, verdict, _ in settled.runs:
            if verdict not in {STORED, DUPLICATE}:
                self._failure = self._failure or _refusal(verdict, token, at, self.job.topic)
            else:
                progress.sent += count
                progress.appended += count if verdict == STORED else 0
                progress.duplicates += count if verdict == DUPLICATE else 0
            at += count

    def _drain(self) -> None:
        while self._engine.in_flight:
            self._turn(IDLE_MS)

    # --- the file --------------------------------------------------------------------------------

    def _reset(self) -> None:
        opened = self._engine.opened
        assert opened is not None
        self._keyless = 0
        count = self._engine.topics[self.job.topic].partitions
        self._partitions = {number: _Partition(0, b"") for number in range(count)}
        if not self.job.id_fields:
            for topic, number, next_number, digest in opened.partitions:
                if topic == self.job.topic:
                    self._partitions[number] = _Partition(next_number, digest)

    def _must_check_first(self) -> bool:
        """Whether a row could be sent before all partitions are known to hold this file."""
        resumed = any(partition.next_number for partition in self._partitions.values())
        if not resumed or len(self._partitions) == 1:
            return False
        if self.job.path == STDIN:
            raise BadInput(
                "standard input cannot be resumed over several partitions",
                hint="send a file, or give each run its own --name",
            )
        return True

    def _pass_over(self, *, send: bool) -> None:
        """Read the file from its start, to its end; or just far enough to check it."""
        source = self._open_source()
        try:
            while not self.stopped and self._failure is None:
                if not source.source.ready(0):
                    self._wait_for_input(source.source)
                    continue
                rows = source.next_rows()
                self._take(rows, send=send)
                if not send and not self._unchecked():
                    return
                if rows.ended or rows.waiting:
                    self._check_end(rows)
                if rows.ended:
                    return
                if send:
                    self.progress.position = source.source.position
                    self.progress.total = source.source.total
                    self._turn(IDLE_MS if rows.waiting else 0)
        finally:
            source.source.close()

    def _wait_for_input(self, source: ByteSource) -> None:
        """Wait for standard input and for answers in turn: neither can be waited for with both."""
        if self._engine.in_flight:
            self._turn(TOGETHER_MS)
        else:
            source.ready(IDLE_MS / 1000)
            self._turn(0)

    def _unchecked(self) -> bool:
        return any(
            partition.rows < partition.next_number for partition in self._partitions.values()
        )

    def _check_end(self, rows: Rows) -> None:
        """At the end, for now or for good: all that was sent before must have been there."""
        if rows.error is not None:
            self._failure = self._failure or rows.error
        elif self._unchecked():
            raise self._changed("it is shorter than the file sent before")

    def _take(self, rows: Rows, *, send: bool) -> None:
        if not rows.values:
            return
        parcel = parcel_of(self.job, rows)
        if not rows.values:
            return
        for piece in cut(parcel, len(self._partitions), self._next_keyless):
            self._take_batch(parcel, piece, rows.numbers, send=send)

    def _next_keyless(self, count: int) -> int:
        first = self._keyless
        self._keyless += count
        return first

    def _take_batch(self, parcel: Parcel, piece: Cut, numbers: list[int], *, send: bool) -> None:
        """Send a batch, except what the broker has by number: that is compared."""
        members = piece.members
        if self.job.id_fields:
            self._submit(parcel, piece.partition, members, piece.batch, numbers, b"")
            return
        partition = self._partitions[piece.partition]
        bodies = [piece.batch.body(index) for index in range(piece.batch.count)]
        below = min(len(bodies), max(0, partition.next_number - partition.rows))
        if below:
            digest = partition.add(bodies[:below])
            if partition.rows == partition.next_number and digest != partition.digest:
                raise self._changed(
                    f"its first rows up to line {numbers[members[below - 1]]} differ"
                )
            self.progress.sent += below if send else 0
        if below == len(bodies) or not send:
            return
        batch = piece.batch if not below else build_batch(parcel, members[below:])
        digest = partition.add(bodies[below:])
        self._submit(parcel, piece.partition, members[below:], batch, numbers, digest)

    def _submit(
        self,
        parcel: Parcel,
        partition: int,
        members: Sequence[int],
        batch: Batch,
        numbers: list[int],
        digest: bytes,
    ) -> None:
        while not self._engine.room:
            self._turn(IDLE_MS)
        token = _Token([numbers[index] for index in members], batch.ids)
        self._engine.submit(Submit(parcel.topic, partition, batch, token, digest))

    def _changed(self, how: str) -> InputChanged:
        self.progress.sent = 0  # what was passed over was another file's
        return InputChanged(
            f"{self.job.path} is not the file sent before as producer "
            f"{self._engine.core.name!r} to {self.job.topic!r}: {how}; nothing was sent"
        )


def _refusal(verdict: int, token: _Token, index: int, topic: str) -> OnceMQError:
    assert token.ids is not None, "only explicit ids conflict or are too old"
    name = untagged_id(token.ids[index])
    return refusal_of(verdict, f"line {token.numbers[index]}: id {name!r}", topic)
