"""The turn: the one loop body that runs every actor, in production, simulation and in-process.

    events that wait -> core.step -> appends -> core.apply -> ... -> one sync -> promises leave

Theory of operation. One turn takes every event that waits, so one fsync serves all that came in
while the last one ran (group commit). What a peer may rely on is held back until that fsync has
returned and the fence has been looked at; the Synced event opens the next turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .codec import records as record_codec
from .codec import wire
from .errors import CorruptLog, DiskFull, OnceMQError, UnsupportedFormat
from .limits import ATTEST_IDLE_MS, DECODED_BYTES_MAX, FENCE_CHECK_IDLE_MS, LIMITS
from .outcome import (
    Core,
    DiskSpace,
    Event,
    Files,
    Keep,
    NewFile,
    Outcome,
    Read,
    ReadDone,
    Recovered,
    Send,
    Snapshot,
    SnapshotWritten,
    Synced,
    Tick,
)
from .ports import (
    Background,
    Clock,
    Events,
    Frames,
    Job,
    Log,
    PartMaking,
    SnapshotMaking,
    Transport,
)
from .protocol import Failure
from .records import BatchStored
from .storage.log import Discard, FencedLog, Mapped, StoredRecord

IDLE_MS = 1_000  # an idle actor still looks at its fence once a second
DISK_FULL_RETRY_MS = 500
# Until the next turn writes more of a file in a database. A call may hold that back for long.
UNFINISHED_MS = 20
WRITER_RETRY_MS = 50  # while another log of this thread writes to the same database
_FILES_EVERY = 64  # records of a replay after which files that are due are made
_EVENT_BYTES = 1024  # what a record adds to the bytes of the request that caused it


def _is_reported(count: int) -> bool:
    """Return whether occurrence `count` gets an event: the first, and powers of two.

    A flood of bad frames must not become a flood of events.
    """
    return count & (count - 1) == 0


class Silence:
    """A transport without messages, for an actor without peers."""

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        del timeout_ms
        return []

    def send(self, peer: bytes, frames: Frames) -> bool:
        del peer, frames
        return False


def unpacked(parts: Mapping[str, bytes | Mapped]) -> dict[str, Any]:
    """Return the parts of a snapshot as `Core.restore` takes them. Raises CorruptLog."""
    return {
        name: wire.unpack_plain(part) if isinstance(part, bytes) else part
        for name, part in parts.items()
    }


class InTheTurn:
    """Does work beside the turn in the turn: for actors whose files are small, and for tests."""

    def __init__(self) -> None:
        self._done: list[Callable[[], None]] = []

    def start(self, job: Job) -> None:
        self._done.append(job(lambda: False))

    def finished(self) -> list[Callable[[], None]]:
        done, self._done = self._done, []
        return done

    def settle(self, *, stop: bool = True) -> list[Callable[[], None]]:
        del stop
        return self.finished()


def _telling(send: Send, end: int) -> Send:
    """Return the send with the log's durable end in its message, if it is to tell that."""
    if not send.tells_end:
        return send
    message: Any = send.message
    return replace(send, message=replace(message, durable=end))


class _Decoded:
    """Stored batches that were read lately, by their positions in the log.

    The log holds the batches of all partitions one behind the other. Readers of many partitions
    thus read the same region, each for its own batches; it is read and decoded for the first. What
    lies below the durable end never changes.
    """

    def __init__(self, bytes_max: int = DECODED_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        # Where to read on, and the batch at that position; None: what lies there is no batch.
        # In the order in which they were read. Invariant: at most `bytes_max` bytes of log.
        self._at: dict[int, tuple[int, BatchStored | None]] = {}
        self._bytes = 0

    def walk(self, position: int, max_bytes: int) -> tuple[list[tuple[int, BatchStored]], int]:
        """Return the batches from `position` on that are known, and where the known ends."""
        found: list[tuple[int, BatchStored]] = []
        end = position + max_bytes
        known = self._at.get
        while position < end and (entry := known(position)) is not None:
            following, batch = entry
            if batch is not None:
                found.append((position, batch))
            position = following
        return found, position

    def add(self, position: int, following: int, batch: BatchStored | None) -> None:
        if position in self._at or following <= position:
            return
        self._at[position] = (following, batch)
        self._bytes += following - position
        while self._bytes > self._bytes_max:
            oldest = next(iter(self._at))
            self._bytes -= self._at.pop(oldest)[0] - oldest


class _Freezing:
    """A snapshot on its way from the core to the log."""

    def __init__(self, snapshot: Snapshot, writer: SnapshotMaking, position: int) -> None:
        self.writer = writer
        self.position = position
        self._snapshot = snapshot
        # Packed in the turn, since large values packed in a thread would hold the turn up as long.
        self._rows: dict[str, list[bytes]] = {name: [] for name in snapshot.lists}

    def take(self, most_bytes: int | None) -> bool:
        """Take rows of about `most_bytes`, or all; return whether there are no more."""
        for part, row in self._snapshot.rows:
            packed = wire.pack_plain(row)
            self._rows[part].append(packed)
            if most_bytes is not None:
                most_bytes -= len(packed)
                if most_bytes <= 0:
                    return False
        return True

    def parts(self) -> dict[str, bytes]:
        """Return all parts. Another thread may do it."""
        parts = {name: wire.pack_plain(part) for name, part in self._snapshot.parts.items()}
        parts.update((name, wire.pack_list(rows)) for name, rows in self._rows.items())
        return parts


class Driver:
    """Drives one core. Not thread-safe: one thread calls `turn`."""

    def __init__(
        self,
        core: Core,
        transport: Transport,
        clock: Clock,
        events: Events,
        *,
        perform: Callable[[Any], None],
        snapshot_every_bytes: int | None = None,
        compacts: bool = False,
        files: Files | None = None,
        background: Background | None = None,
        needed_from: Callable[[], int] | None = None,
        look_ahead: Callable[[Sequence[Event]], None] | None = None,
        turn_read_bytes: int = LIMITS.turn_read_bytes_max,
        turn_freeze_bytes: int = LIMITS.turn_freeze_bytes,
    ) -> None:
        """`perform` does the work items of outcomes; `compacts` discards log below snapshots.

        `files` is the part of the core's state that lies in files; those and snapshots are written
        in `background` (None: in the turn). `needed_from` tells below which position the core will
        read nothing of the log any more: that is discarded, beside the turn. `look_ahead` gets all
        events of a turn before the core meets the first: what they have in common may be computed
        for all. One turn reads at most `turn_read_bytes` of the log, besides what is in memory, and
        freezes about `turn_freeze_bytes` of a snapshot's rows.
        """
        self.core = core
        self._transport = transport
        self._clock = clock
        self._events = events
        self._perform = perform
        self._snapshot_every = snapshot_every_bytes
        self._compacts = compacts
        self._files = files
        self._background: Background = background or InTheTurn()
        self._look_ahead = look_ahead
        self._snapshot_in_work = False
        # The snapshot whose rows are being frozen, a few in each turn.
        self._freezing: _Freezing | None = None
        self._needed_from = needed_from
        self._discarded_below = 0  # what was tried last; 0: a new snapshot may allow more
        self._discard_in_work = False
        self._unfinished: set[str] = set()  # files of which the next turn writes more
        self._files_again_ms = 0  # before this time a full disk is not tried again
        self._log: Log | None = None
        self._posted: list[Event] = []  # events of this process for the next turn
        # What the sync of this turn releases. Invariant: empty between turns, unless the log had to
        # wait for another writer; then the group stays open and the next turn goes on with both.
        self._held = Outcome()
        self._snapshot_at = 0  # position of the last snapshot, also of one that met a full disk
        self._synced_at_ms = 0
        self._fence_seen_ms = 0  # when the fence was last looked at
        self._malformed = self._dropped = 0  # messages so far; see `_is_reported`
        self._short_of = 0  # bytes that could not be reserved; 0: the disk is not full
        self._decoded = _Decoded()
        self._turn_read_bytes = turn_read_bytes
        self._turn_freeze_bytes = turn_freeze_bytes
        self._read_left = turn_read_bytes  # of the log in this turn

    @property
    def log(self) -> Log | None:
        return self._log

    @property
    def unsnapshotted_bytes(self) -> int:
        """Bytes of log that a restart would replay."""
        return 0 if self._log is None else self._log.durable_end - self._snapshot_at

    def open_log(self, log: Log, directory: str) -> None:
        """Recover the core from `log` and go on writing to it. Events name its `directory`.

        The core must be fresh. It meets its Recovered event in the next turn. Raises CorruptLog.
        """
        self._log = log
        cut = log.cut_report
        if cut is not None:
            self._events.emit(
                "log.tail_cut",
                directory=directory,
                from_=cut.from_position,
                to=cut.to_position,
                bytes=cut.nbytes,
                reason=cut.reason,
            )
        start = self._restore(log)
        count = 0
        for stored in log.replay(start):
            record = record_codec.decode(
                stored.type, stored.meta, stored.body, stored.body_crc, columns=True
            )
            self.core.apply(record, stored.position)
            count += 1
            if count % _FILES_EVERY == 0:
                self._make_files(self._background)
                for done in self._background.settle(stop=False):
                    done()
        self._snapshot_at = start
        now = self._clock.now_ms()
        self._synced_at_ms = self._fence_seen_ms = now
        self._events.emit("log.opened", generation=log.generation, end=log.end, replayed=count)
        self.post(Recovered(log.generation, log.durable_end))

    def _restore(self, log: Log) -> int:
        """Give the core the newest snapshot that it can use; return its position.

        Raises CorruptLog where none can be used and the log no longer reaches back to 0.
        """
        found = log.snapshots()  # damaged ones are passed over already
        for damage in log.snapshot_damage:
            self._events.emit("snapshot.fallback", reason=str(damage))
        unusable: OnceMQError | None = None
        for info in found:
            try:
                self.core.restore(unpacked(log.read_snapshot(info)))
            except (CorruptLog, UnsupportedFormat) as error:
                self._events.emit("snapshot.fallback", reason=str(error))
                log.pass_over(info)
                unusable = error
            else:
                return info.position
        if unusable is not None and log.start > 0:
            raise unusable
        return 0

    def post(self, event: Event) -> None:
        self._posted.append(event)

    def time_left_ms(self) -> int:
        """Return how long the next poll may wait: the nearest of all deadlines."""
        if self._posted or self._freezing is not None:
            return 0
        now = self._clock.now_ms()
        left = IDLE_MS
        if self.core.wake_at_ms is not None:
            left = min(left, self.core.wake_at_ms - now)
        if self._log is not None and self._log.attested < self._log.durable_end:
            left = min(left, self._synced_at_ms + ATTEST_IDLE_MS - now)
        if self._short_of:
            left = min(left, DISK_FULL_RETRY_MS)
        if self._unfinished:
            left = min(left, UNFINISHED_MS)
        if self._log is not None and self._log.end > self._log.durable_end:
            left = min(left, WRITER_RETRY_MS)
        return max(0, left)

    def turn(self, timeout_ms: int | None = None) -> bool:
        """Run one turn; wait for input at most `timeout_ms`. Returns whether there was an event.

        Raises Fenced, CorruptLog, OSError: the actor must end and never call this again.
        """
        wait = self.time_left_ms()
        envelopes = self._transport.poll(wait if timeout_ms is None else min(wait, timeout_ms))
        now = self._clock.now_ms()
        self._read_left = self._turn_read_bytes
        events, self._posted = self._posted, []
        for peer, frames in envelopes:
            event = self._decode(peer, frames)
            if event is not None:
                events.append(event)
        self._make_room(envelopes, events, now)
        if self.core.wake_at_ms is not None and self.core.wake_at_ms <= now:
            events.append(Tick())
        if self._look_ahead is not None:
            self._look_ahead(events)
        for event in events:
            self._step(event, now)
        self._finish(now)
        return bool(events)

    def _decode(self, peer: bytes, frames: list[bytes]) -> Event | None:
        try:
            return wire.decode(peer, frames)
        except OnceMQError as error:
            self._malformed += 1
            if _is_reported(self._malformed):
                self._events.emit(
                    "wire.malformed",
                    code=error.code,
                    reason=error.reason,
                    count=self._malformed,
                )
            request = wire.request_number(frames)
            # Only a client gets an answer: what a broker sends is an answer itself. The refusal may
            # leave at once, because it follows from the frames alone.
            if request is not None and peer:
                failure = Failure(request, error.code, error.reason, error.hint, -1)
                self._transport.send(peer, wire.encode(failure, None))
            return None

    def _make_room(
        self, envelopes: list[tuple[bytes, list[bytes]]], events: list[Event], now: int
    ) -> None:
        """Reserve room for this turn, before the core judges anything.

        After a refusal every turn asks for the same room again, so the core learns when the writes
        that it refused or held back will fit.
        """
        log = self._log
        if log is None or not (events or self._short_of):
            return
        need = sum(len(f) for _, frames in envelopes for f in frames)
        need += sum(getattr(e, "size", 0) + _EVENT_BYTES for e in events)
        try:
            log.reserve(max(need, self._short_of))
        except DiskFull:
            if not self._short_of:
                self._events.emit("log.disk_full", need=need)
                self._step(DiskSpace(full=True), now)
            self._short_of = max(need, self._short_of)
            return
        if self._short_of:
            self._short_of = 0
            self._events.emit("log.disk_ok")
            self._step(DiskSpace(full=False), now)

    def _step(self, event: Event, now: int) -> None:
        outcome = self.core.step(event, now)
        for record in outcome.appends:
            self._append(record)
        for send in outcome.sends:
            self._send(send)
        for item in outcome.work:
            self._perform(item)
        # Lists grow in place, in the order of the steps: that order is what peers see.
        held = self._held
        held.sends_after_sync += outcome.sends_after_sync
        held.work_after_sync += outcome.work_after_sync
        held.events += outcome.events
        for read in outcome.reads:
            self._step(self._read(read), now)

    def _append(self, record: Any) -> None:
        assert self._log is not None, "a core without a log cannot append"
        type_number, meta, body, crc = record_codec.encode(record)
        position = self._log.append(type_number, meta, body, crc)
        # Before the core's next event, so that its next decision sees the record. Losing the record
        # then is harmless: nothing that follows from it leaves before the sync.
        self.core.apply(record, position)

    def _read(self, read: Read) -> ReadDone:
        assert self._log is not None
        found: list[tuple[int, BatchStored]] = []
        start = at = read.position
        if not read.columns:
            found, at = self._decoded.walk(start, read.max_bytes)
        taken = 0
        want = start + read.max_bytes - at
        stopped = want > self._read_left and not read.columns
        if stopped:
            want = self._read_left
        batch: BatchStored | None = None
        before = at  # where `batch` stands, or the reading began
        more = want > 0 and at < self._log.durable_end
        for stored in self._log.read(at, want) if more else ():
            if not read.columns:
                self._decoded.add(before, stored.position, batch)
            before, at, batch = stored.position, stored.end, None
            taken += stored.end - stored.position  # kept parts leave out what lies between
            if stored.type == record_codec.BATCH_STORED:
                record = record_codec.decode(
                    stored.type, stored.meta, stored.body, stored.body_crc, columns=read.columns
                )
                assert isinstance(record, BatchStored)
                batch = record
                found.append((stored.position, record))
        if not read.columns:
            self._decoded.add(before, at, batch)
            self._read_left = max(0, self._read_left - taken)
        return ReadDone(read.token, found, at, stopped)

    def _finish(self, now: int) -> None:
        log = self._log
        if log is not None and log.end > log.durable_end and log.must_wait():
            return  # the group stays open, and `_held` stays held, until a later turn
        held, self._held = self._held, Outcome()
        if log is not None:
            if log.end > log.durable_end:
                end = log.sync()
                held.sends_after_sync = [_telling(send, end) for send in held.sends_after_sync]
                self._synced_at_ms = self._fence_seen_ms = now
                self._events.emit("log.synced", durable_end=end)
                self.post(Synced(end))
            else:
                self._rest(log, now)
        for send in held.sends_after_sync:
            self._send(send)
        for name, fields in held.events:
            self._events.emit(name, **fields)
        self._snapshot_when_due()  # before the work: a handler call may borrow what the log needs
        if log is not None and now >= self._files_again_ms:
            self._make_files(self._background)
            self._discard_when_due(log)
        for done in self._background.finished():
            done()
        for item in held.work_after_sync:
            self._perform(item)

    def _rest(self, log: Log, now: int) -> None:
        """End a turn that wrote nothing: attest the last group, look at the fence when it is time.

        By the clock, not by idleness: a zombie broker whose clients only read is never idle, and
        would keep those clients for ever.
        """
        if log.attested < log.durable_end and now - self._synced_at_ms >= ATTEST_IDLE_MS:
            log.attest()
            self._fence_seen_ms = now
        elif now - self._fence_seen_ms >= FENCE_CHECK_IDLE_MS:
            log.check_fence()
            self._fence_seen_ms = now

    def _snapshot_when_due(self) -> None:
        if self._freezing is not None:
            self._freeze_on(self._background, self._turn_freeze_bytes)
            return
        if self._log is None or self._snapshot_every is None or self._snapshot_in_work:
            return
        due = self._log.durable_end - self._snapshot_at >= self._snapshot_every
        if due and not self._log.must_wait():
            self._start_snapshot(self._log)
            self._freeze_on(self._background, self._turn_freeze_bytes)

    def write_snapshot(self) -> None:
        """Write a snapshot of the state at the durable end; a full disk only postpones it."""
        assert self._log is not None
        for done in self._background.settle():
            done()
        now = InTheTurn()
        self._start_snapshot(self._log)
        self._freeze_on(now, None)
        for done in now.finished():
            done()

    def _start_snapshot(self, log: Log) -> None:
        assert log.end == log.durable_end
        snapshot = self.core.snapshot()
        position = log.durable_end
        self._freezing = _Freezing(snapshot, log.snapshot_writer(position, snapshot.keep), position)
        self._snapshot_at = position  # before the attempt: a full disk is not tried every turn
        self._snapshot_in_work = True

    def _freeze_on(self, background: Background, most_bytes: int | None) -> None:
        """Freeze so much more of the snapshot (None: all), and let it be written when it is whole."""
        frozen = self._freezing
        assert frozen is not None
        if not frozen.take(most_bytes):
            return
        self._freezing = None
        assert self._log is not None
        log, writer, position = self._log, frozen.writer, frozen.position

        def write(stop: Callable[[], bool]) -> Callable[[], None]:
            del stop  # a snapshot is short, and worth its end
            parts = frozen.parts()
            try:
                writer.write(parts)
            except DiskFull as error:
                return partial(self._snapshot_refused, sum(map(len, parts.values())), error)
            return partial(self._snapshot_written, log, writer, position, len(parts))

        background.start(write)

    def _snapshot_written(
        self, log: Log, writer: SnapshotMaking, position: int, parts: int
    ) -> None:
        self._snapshot_in_work = False
        writer.finish()
        self._events.emit("snapshot.written", position=position, parts=parts)
        self.post(SnapshotWritten(position))
        self._discarded_below = 0
        if self._compacts:
            try:
                log.discard(position)
            except DiskFull as error:
                self._events.emit("log.disk_full", need=0, for_=str(error))

    def _snapshot_refused(self, need: int, error: DiskFull) -> None:
        self._snapshot_in_work = False
        self._events.emit("log.disk_full", need=need, for_=str(error))

    def _discard_when_due(self, log: Log) -> None:
        """All that is applied is durable here, so what is no longer needed never will be."""
        below = 0 if self._needed_from is None else self._needed_from()
        if self._discard_in_work or below in {0, self._discarded_below}:
            return
        self._discarded_below = below
        assert isinstance(log, FencedLog), "only such a log discards beside the turn"
        discard = log.discarding(below)
        if discard is None:
            return
        self._discard_in_work = True

        def write(stop: Callable[[], bool]) -> Callable[[], None]:
            del stop
            try:
                discard.write()
            except DiskFull as error:
                return partial(self._not_discarded, str(error))
            return partial(self._discarded, log, discard)

        self._background.start(write)

    def _discarded(self, log: Log, discard: Discard) -> None:
        self._discard_in_work = False
        discard.finish()
        self._events.emit("log.discarded", start=log.start)

    def _not_discarded(self, reason: str) -> None:
        self._discard_in_work = False
        self._discarded_below = 0
        self._full_again(reason)

    def _full_again(self, reason: str) -> None:
        """Beside the log there was no room: wait before the next try."""
        self._files_again_ms = self._clock.now_ms() + DISK_FULL_RETRY_MS
        self._events.emit("log.disk_full", need=0, for_=reason)

    def _make_files(self, background: Background) -> None:
        """Begin the files that are due."""
        if self._files is None:
            return
        log = self._log
        assert log is not None
        for due in self._files.due():
            new = self._kept_file(log, due) if isinstance(due, Keep) else due
            writer = log.part_writer(new.name)
            background.start(partial(self._make_file, self._files, writer, new))

    @staticmethod
    def _kept_file(log: Log, keep: Keep) -> NewFile:
        assert isinstance(log, FencedLog), "only such a log is kept in parts"

        def wanted(stored: StoredRecord) -> bool:
            of_batch = stored.type == record_codec.BATCH_STORED
            return of_batch and keep.wants(*record_codec.stored_place(stored.meta))

        return NewFile(keep.name, log.kept_pieces(keep.start, keep.log_start, keep.end, wanted))

    def _make_file(
        self, files: Files, writer: PartMaking, new: NewFile, stop: Callable[[], bool]
    ) -> Callable[[], None]:
        try:
            writer.write(new.pieces(), stop)
        except DiskFull as error:
            reason = str(error)
            return lambda: self._no_file(files, new, reason)
        return lambda: self._file_made(files, writer, new)

    def _file_made(self, files: Files, writer: PartMaking, new: NewFile) -> None:
        made = writer.finish()
        self._unfinished.discard(new.name)
        if writer.unfinished:  # in a database: each turn writes some of it
            self._unfinished.add(new.name)
            self._background.start(lambda _: partial(self._file_made, files, writer, new))
        elif made is None:
            files.failed(new.name)
        else:
            files.made(new.name, made.buffer, made.path)
            self._events.emit("file.made", name=new.name, bytes=len(made.buffer))

    def _no_file(self, files: Files, new: NewFile, reason: str) -> None:
        files.failed(new.name)
        self._full_again(reason)

    def _send(self, send: Send) -> None:
        if not self._transport.send(send.peer, wire.encode(send.message, send.body)):
            self._dropped += 1
            if _is_reported(self._dropped):
                kind = type(send.message).__name__
                self._events.emit("wire.dropped", kind=kind, count=self._dropped)

    def close(self, *, clean: bool = True) -> None:
        """Close the log. A clean close attests what was synced."""
        if clean:
            if self._freezing is not None:
                self._freeze_on(self._background, None)
            for done in self._background.settle():
                done()
        if self._log is not None:
            self._log.close(clean=clean)
