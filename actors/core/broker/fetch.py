"""Fetches: readers see durable messages only, in order; a fetch at the end waits.

Theory of operation. A fetch names an offset. The answer starts with the stored batch that contains
the offset and holds whole batches up to the wanted bytes, at least one. It shows only what lay below
the durable end when the turn began. A fetch at the end waits until a sync covers something new, or
until its time is over: then the answer is empty (the long poll of Kafka). The fetch is the credit:
the broker never sends a message that was not asked for.

The server reads the log from the nearest known position on: a cursor where the last fetch of this
offset stopped, or an entry of the offset index. It passes over batches of other partitions, and the
index jumps ahead where no batch of this partition can lie. One turn serves at most `turn_bytes_max`
and reads at most `turn_read_bytes_max` (the driver stops there); further fetches wait for the next turn, in order. This bounds
the memory and the time, and it keeps readers of many partitions together: a region of the log is
read for the first of them, and the others find it in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from ...errors import Busy, LogRegressed, NotGranted, ProtocolError
from ...ids import INTERNAL_MARK
from ...limits import (
    FETCH_BYTES_MAX,
    FETCH_WAIT_MS_MAX,
    Limits,
)
from ...outcome import Outcome, Read, Send
from ...protocol import Fetch, Fetched
from ...records import BatchStored
from .groups import Key
from .refusal import failure
from .state import BrokerState, checked_place
from .topics import Partition, Topic, deleted, trimmed

WaitKey = tuple[bytes, str, int, int]  # peer, group, topic number, partition


@dataclass(slots=True, eq=False)
class FetchJob:
    """One fetch that waits or is being served."""

    peer: bytes
    request: Fetch
    topic: Topic
    partition: Partition
    deadline_ms: int
    max_bytes: int
    # The next offset to be found. Invariant: the end of `found`, or the requested offset.
    wanted: int
    reads_left: int  # bounds the reads of one fetch in a log that other partitions fill
    found: list[BatchStored] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # of `found`, in the log
    # Bytes of `found` on the wire. Invariant: <= max_bytes unless one batch alone is larger.
    found_bytes: int = 0
    position: int = 0  # start of the last read

    @property
    def key(self) -> WaitKey:
        """Key of a waiting fetch: a newer fetch with the same key replaces it."""
        return (self.peer, self.request.group, self.topic.number, self.partition.number)

    def take(self, record: BatchStored, position: int) -> bool:
        """Add a stored batch if it is wanted; return False if the answer has no room for it."""
        if record.topic_number != self.topic.number or record.partition != self.partition.number:
            return True
        end = record.first_offset + record.kept
        if end <= self.wanted:
            return True
        if end > self.partition.durable_end_offset:
            return False
        size = record.size
        if self.found and self.found_bytes + size > self.max_bytes:
            return False
        self.found.append(record)
        self.positions.append(position)
        self.found_bytes += size
        self.wanted = end
        return True


@dataclass(slots=True)
class FetchServer:
    """Serves fetches. All of it is volatile."""

    state: BrokerState
    log_id: bytes
    limits: Limits
    # Fetches at the durable end, and fetches that wait for a turn with room. Invariant: at most
    # limits.waiting_fetches_max; one for each key.
    waiting: dict[WaitKey, FetchJob] = field(default_factory=dict)
    # Waiting fetches at the end of each partition, in the order of their arrival.
    at_end: dict[tuple[int, int], dict[WaitKey, FetchJob]] = field(default_factory=dict)
    # Fetches that could be served but met a full turn, in order.
    postponed: dict[WaitKey, FetchJob] = field(default_factory=dict)
    # Heap of (deadline, count, job). Jobs that no longer wait are skipped. Invariant: at most about
    # twice as many as wait.
    deadlines: list[tuple[int, int, FetchJob]] = field(default_factory=list)
    # Being read in this turn, by token. Invariant: empty between two turns.
    jobs: dict[int, FetchJob] = field(default_factory=dict)
    _count: int = 0  # of jobs and reads: breaks ties in the heap, numbers the reads
    # Bytes served in the turn that began at `_turn_ms`.
    _turn_ms: int = -1
    _turn_bytes: int = 0

    @property
    def wake_at_ms(self) -> int | None:
        if self.postponed:
            return self._turn_ms + 1
        return self.deadlines[0][0] if self.deadlines else None

    def fetch(self, peer: bytes, request: Fetch, now_ms: int, out: Outcome) -> None:
        """Raises OnceMQError."""
        topic = self.state.topics.get(request.topic)
        partition = topic.partition(request.partition)
        if request.group:
            self.state.groups.check(self._grant_key(request), request.epoch)
        place = checked_place(request.mark, request.position)
        who = f"the reader of {request.topic} partition {request.partition}"
        self.state.check_place(place, who, LogRegressed.group_hint)
        if request.offset > partition.end_offset:
            raise LogRegressed(
                f"offset {request.offset} was asked for, "
                f"{request.topic} partition {request.partition} ends at {partition.end_offset}",
                hint=LogRegressed.group_hint,
            )
        if request.offset < partition.log_start_offset:
            raise trimmed(topic, partition, request.offset, request.group)
        wait_ms = min(request.max_wait_ms, FETCH_WAIT_MS_MAX)
        max_bytes = min(request.max_bytes, FETCH_BYTES_MAX)
        if max_bytes == 0:
            raise ProtocolError("a fetch of no bytes")
        deadline_ms, reads = now_ms + wait_ms, self.limits.reads_per_request_max
        job = FetchJob(
            peer, request, topic, partition, deadline_ms, max_bytes, request.offset, reads
        )
        self._replace(job, out)
        if request.offset < partition.durable_end_offset:
            if self.postponed:  # those come first
                self._postpone(job)
            else:
                self._serve(job, now_ms, out)
        elif wait_ms == 0:
            self._answer(job, out)
        else:
            self._wait(job)
            self.at_end.setdefault((topic.number, partition.number), {})[job.key] = job

    def durable(self, partitions: list[tuple[int, int]], now_ms: int, out: Outcome) -> None:
        """Serve the fetches that waited at the end of partitions which have grown."""
        for place in partitions:
            for job in list(self.at_end.get(place, {}).values()):
                if job.wanted < job.partition.durable_end_offset:
                    self._serve(job, now_ms, out)

    def forget_topic(self, topic: Topic, out: Outcome) -> None:
        """Refuse the fetches that wait for a topic which is deleted."""
        for job in [job for job in self.waiting.values() if job.topic is topic]:
            self._forget(job)
            refused = failure(job.request.request, deleted(topic))
            out.sends_after_sync.append(Send(job.peer, refused))

    def tick(self, now_ms: int, out: Outcome) -> None:
        """Serve postponed fetches; answer fetches whose time is over."""
        for job in list(self.postponed.values()):
            self._serve(job, now_ms, out)
        while self.deadlines and self.deadlines[0][0] <= now_ms:
            job = heappop(self.deadlines)[2]
            if self.waiting.get(job.key) is job and job.key not in self.postponed:
                self._answer(job, out)

    def read_done(
        self,
        token: int,
        found: list[tuple[int, BatchStored]],
        next_position: int,
        out: Outcome,
        *,
        stopped: bool,
    ) -> None:
        """`stopped`: this turn may read no more of the log."""
        job = self.jobs.pop(token)
        if self._is_gone(job, out):  # deleted earlier in this turn
            return
        for position, record in found:
            if not job.take(record, position):
                job.partition.remember(job.wanted, position)
                self._answer(job, out)
                return
        on: int | None = next_position if next_position > job.position or stopped else None
        if on is not None and job.wanted < job.partition.durable_end_offset:
            on = job.partition.index.read_on(on)
        if on is None:
            self._answer(job, out)
            return
        job.partition.remember(job.wanted, on)
        more = job.found_bytes < job.max_bytes and job.reads_left > 0
        if not more or job.wanted >= job.partition.durable_end_offset:
            self._answer(job, out)
        elif not stopped:
            self._read(job, on, out)
        elif job.found or len(self.waiting) >= self.limits.waiting_fetches_max:
            self._answer(job, out)
        else:
            self._postpone(job)

    # --- inside ----------------------------------------------------------------------------------

    def _grant_key(self, request: Fetch) -> Key:
        """Return the grant that allows a fetch: for a private topic that of its topic.

        Raises NotGranted for the private topic of another group.
        """
        topic, mark, group = request.topic.partition(INTERNAL_MARK)
        if mark and group != request.group:
            raise NotGranted(f"{request.topic} belongs to group {group}, not to {request.group}")
        return (request.group, topic, request.partition)

    def _is_gone(self, job: FetchJob, out: Outcome) -> bool:
        """End a fetch whose next message is deleted: it must not go on behind the gap."""
        if job.wanted >= job.partition.log_start_offset:
            return False
        if job.found:
            self._answer(job, out)
        else:
            self._forget(job)
            error = trimmed(job.topic, job.partition, job.wanted, job.request.group)
            out.sends_after_sync.append(Send(job.peer, failure(job.request.request, error)))
        return True

    def _serve(self, job: FetchJob, now_ms: int, out: Outcome) -> None:
        """Begin to read, or postpone the job if the turn is full."""
        if now_ms != self._turn_ms:
            self._turn_ms = now_ms
            self._turn_bytes = 0
        if self._turn_bytes >= self.limits.turn_bytes_max:
            self._postpone(job)
            return
        self._forget(job)
        if job.request.group:
            try:  # the grant may have gone to another consumer while the fetch waited
                self.state.groups.check(self._grant_key(job.request), job.request.epoch)
            except NotGranted as error:
                out.sends_after_sync.append(Send(job.peer, failure(job.request.request, error)))
                return
        if self._is_gone(job, out):  # deleted while the fetch waited
            return
        position = job.partition.position_of(job.wanted)
        assert position is not None, "a durable offset has an entry at or before it"
        self._read(job, position, out)

    def _postpone(self, job: FetchJob) -> None:
        """Serve the job in the next turn, behind those that wait for it already. Raises Busy."""
        if job.key not in self.waiting:
            self._wait(job)
        self._leave_end(job)
        self.postponed[job.key] = job

    def _read(self, job: FetchJob, position: int, out: Outcome) -> None:
        self._count += 1
        self.jobs[self._count] = job
        job.position = position
        job.reads_left -= 1
        size = max(job.max_bytes - job.found_bytes, self.limits.offset_index_step_bytes)
        out.reads.append(Read(self._count, position, size))

    def _answer(self, job: FetchJob, out: Outcome) -> None:
        self._forget(job)
        self._turn_bytes += job.found_bytes
        request = job.request
        fetched = Fetched(
            request.request,
            request.epoch,
            self.log_id,
            job.topic.topic_id,
            job.wanted,
            job.partition.durable_end_offset,
            tuple(job.positions),
            self.state.history.covering(job.positions),
        )
        out.sends_after_sync.append(Send(job.peer, fetched, job.found))
        if job.found:
            out.events.append(
                (
                    "fetch.served",
                    {
                        "topic": request.topic,
                        "partition": request.partition,
                        "offset": request.offset,
                        "count": job.wanted - request.offset,
                        "bytes": job.found_bytes,
                        "group": request.group,
                    },
                )
            )

    def _wait(self, job: FetchJob) -> None:
        if len(self.waiting) >= self.limits.waiting_fetches_max:
            raise Busy(
                f"{self.limits.waiting_fetches_max} fetches wait, and the broker keeps no more",
                hint="the consumer asks again; run fewer consumers for this broker",
            )
        self.waiting[job.key] = job
        if len(self.deadlines) > 2 * len(self.waiting) + 64:
            self.deadlines = [
                entry for entry in self.deadlines if self.waiting.get(entry[2].key) is entry[2]
            ]
            heapify(self.deadlines)
        self._count += 1
        heappush(self.deadlines, (job.deadline_ms, self._count, job))

    def _replace(self, job: FetchJob, out: Outcome) -> None:
        """End the waiting fetch that a newer fetch of the same peer and place replaces."""
        earlier = self.waiting.get(job.key)
        if earlier is None:
            return
        if earlier.request.request == job.request.request:  # the same request arrived twice
            self._forget(earlier)
        else:
            self._answer(earlier, out)

    def _forget(self, job: FetchJob) -> None:
        if self.waiting.get(job.key) is not job:
            return
        del self.waiting[job.key]
        self.postponed.pop(job.key, None)
        self._leave_end(job)

    def _leave_end(self, job: FetchJob) -> None:
        place = (job.topic.number, job.partition.number)
        at_end = self.at_end.get(place)
        if at_end is not None:
            at_end.pop(job.key, None)
            if not at_end:
                del self.at_end[place]
