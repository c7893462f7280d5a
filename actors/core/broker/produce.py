"""Arriving batches: may the sender write, what is new, what is stored.

Theory of operation. A batch with sequence ids must come from the live epoch of its producer. Its
first number decides: a batch with the expected number is stored at once; a higher number is a gap
and refused (the batches between were lost on the way); a lower number is a resend and compared with
the original. Kafka's idempotent producer works so, but keeps only the last five batches.

A batch with explicit ids is ordered by its session and judged by the topic's set of ids, message by
message, in columns (id_index.py). A session's counter advances with
every final verdict, also with a refusal that a retry cannot mend, and never with one that it can. A
batch at an earlier counter is judged again but stores nothing new.

Nothing here changes what must survive: the record in the outcome does, when it is applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from ...batch import Batch
from ...errors import (
    BadCreatedAt,
    Busy,
    DiskFull,
    GapError,
    InvalidName,
    NotSupported,
    OnceMQError,
    ProtocolError,
    UnknownSession,
)
from ...ids import DEAD_SUFFIX, INTERNAL_MARK, sequence_id, untagged_id
from ...limits import Limits
from ...outcome import Outcome, Received, Send
from ...protocol import (
    AHEAD,
    CONFLICT,
    DUPLICATE,
    SETTINGS_VERSION,
    STORED,
    TOO_OLD,
    UNKNOWN_OFFSET,
    Produce,
    Produced,
)
from ...records import BatchStored
from .lookup import Lookup, Recent
from .producers import Producer
from .refusal import Refusal, failure
from .sessions import SessionTable
from .state import BrokerState
from .topics import Partition, Topic, deleted
from .verdicts import Runs, kept_of, mask_of

_OWN_TOPIC = "send to a topic of your own: this one is made by OnceMQ"
NO_ROOM = "the broker's disk is full: nothing was stored"


@dataclass(slots=True)
class Arrival:
    """One batch and the place it is for."""

    peer: bytes
    request: Produce
    batch: Batch
    topic: Topic
    partition: Partition
    at_ms: int  # broker time, which never goes back
    version: int  # of the protocol, that the sender speaks


@dataclass(slots=True)
class Judge:
    """Decides about batches."""

    state: BrokerState
    recent: Recent
    limits: Limits
    sessions: SessionTable = field(init=False)
    # Resends that go on with their next read, in this turn or a later one, by token. Reads carry
    # the token negated, to tell them from reads of fetches. Invariant: at most limits.lookups_max.
    lookups: dict[int, Lookup] = field(default_factory=dict)
    # Whether each message gets events of its own.
    verbose: bool = False
    # Whether the log has no room. Volatile; set by DiskSpace.
    disk_full: bool = False
    _next_token: int = 0

    def __post_init__(self) -> None:
        self.sessions = SessionTable(self.limits.sessions_max)

    def look_ahead(self, received: Sequence[Received]) -> None:
        """Look up all explicit ids that the events of this turn bring. Raises CorruptLog."""
        topics = self.state.topics.by_name
        wanted = [
            (event.batch, topic)
            for event in received
            if isinstance(event.message, Produce)
            and event.batch is not None
            and event.batch.has_ids
            and (topic := topics.get(event.message.topic)) is not None
        ]
        if wanted and not self.disk_full and not self.state.ids.behind:
            self.state.ids.look_ahead(wanted)

    def produce(
        self,
        peer: tuple[bytes, int],
        request: Produce,
        batch: Batch,
        broker_ms: int,
        out: Outcome,
    ) -> None:
        """Judge a batch; `peer` is (who, version of the protocol).

        Raises OnceMQError or Refusal: then nothing was decided.
        """
        if self.disk_full:
            raise DiskFull(NO_ROOM)
        explicit = batch.has_ids
        if explicit != (request.first_sequence < 0) or explicit != bool(request.session):
            raise ProtocolError("a batch has either explicit ids and a session, or numbers")
        if not explicit:
            arrival = self._arrival(peer, request, batch, broker_ms)
            self._judge_numbers(arrival, out)
            return
        is_next = self.sessions.check(request.session, request.counter)
        try:
            arrival = self._arrival(peer, request, batch, broker_ms)
            if request.producer:
                self.state.producers.checked(request.producer, request.epoch)
            self._judge_explicit(arrival, out, may_store=is_next)
        except OnceMQError as error:
            if is_next and not error.retriable:
                self.sessions.advance(request.session, request.counter)
            raise
        if is_next:
            self.sessions.advance(request.session, request.counter)
            if request.counter == 0:
                out.events.append(("session.opened", {"session": request.session.hex()}))

    def _arrival(
        self, peer: tuple[bytes, int], request: Produce, batch: Batch, broker_ms: int
    ) -> Arrival:
        topic = self.state.topics.get(request.topic)
        _check_sender(topic.name, request)
        partition = topic.partition(request.partition)
        sender, version = peer
        return Arrival(sender, request, batch, topic, partition, broker_ms, version)

    # --- sequence ids ----------------------------------------------------------------------------

    def _judge_numbers(self, arrival: Arrival, out: Outcome) -> None:
        request, batch = arrival.request, arrival.batch
        producer = self.state.producers.checked(request.producer, request.epoch)
        expected = producer.next_sequence((arrival.topic.number, arrival.partition.number))
        first, count = request.first_sequence, batch.count
        if first > expected:
            raise Refusal(
                GapError(
                    f"number {first} of producer {request.producer} came, {expected} is expected"
                ),
                expected,
            )
        if first == expected:
            offset = arrival.partition.end_offset
            self._store(arrival, b"", count, out, duplicates=0)
            runs = ((count, STORED, offset),)
            produced = Produced(request.request, arrival.at_ms, runs)
            out.sends_after_sync.append(Send(arrival.peer, produced))
            return
        self._look_up(arrival, producer, min(count, expected - first), out)

    def _look_up(self, arrival: Arrival, producer: Producer, known: int, out: Outcome) -> None:
        """Store the new rest of a resend, and look up the originals of its known messages."""
        request, batch = arrival.request, arrival.batch
        if len(self.lookups) >= self.limits.lookups_max:
            raise Busy(
                f"{self.limits.lookups_max} resent batches are compared with what is stored, and "
                "the broker takes no more at once",
                hint="the producer sends again by itself",
            )
        row = producer.rows[arrival.topic.number, arrival.partition.number]
        lookup = Lookup(
            arrival.peer,
            request,
            batch,
            arrival.topic.number,
            arrival.partition,
            row,
            known,
            self.limits,
        )
        if known < batch.count:
            lookup.tail_at_ms = arrival.at_ms
            lookup.tail_offset = arrival.partition.end_offset
            new = range(known, batch.count)
            self._store(arrival, mask_of(new, batch.count), len(new), out, duplicates=known)
        self._next_token += 1
        self.lookups[self._next_token] = lookup
        self.go_on(self._next_token, out)

    def go_on(self, token: int, out: Outcome) -> None:
        """Read on for a lookup, as far as this turn allows."""
        lookup = self.lookups[token]
        if not lookup.may_read():
            self._finish(token, out)
        elif lookup.reads_left > 0:
            out.reads.append(lookup.next_read(-token))

    def read_done(
        self, token: int, found: list[tuple[int, BatchStored]], next_position: int, out: Outcome
    ) -> None:
        lookup = self.lookups[token]
        for _, record in found:
            lookup.meet(record)
        at_end = next_position <= lookup.position
        lookup.position = next_position
        if lookup.done or at_end:
            self._finish(token, out)
        else:
            self.go_on(token, out)

    def _finish(self, token: int, out: Outcome) -> None:
        lookup = self.lookups.pop(token)
        for record in self.recent.all():
            lookup.meet(record)
        lookup.answer(out, lookup.request.topic)
        _count(self.state.topics.by_number[lookup.topic_number], lookup.runs)

    def forget_topic(self, topic: Topic, out: Outcome) -> None:
        """Refuse the resends to a topic that is deleted."""
        for token, lookup in list(self.lookups.items()):
            if lookup.topic_number == topic.number:
                del self.lookups[token]
                refused = failure(lookup.request.request, deleted(topic))
                out.sends_after_sync.append(Send(lookup.peer, refused))

    def tick(self, out: Outcome) -> None:
        for token, lookup in list(self.lookups.items()):
            lookup.allow_reads()
            self.go_on(token, out)

    # --- explicit ids ----------------------------------------------------------------------------

    def _judge_explicit(self, arrival: Arrival, out: Outcome, *, may_store: bool) -> None:
        request, batch = arrival.request, arrival.batch
        ids = self.state.ids
        if ids.behind:
            raise Busy(
                f"{self.limits.id_tables_waiting_max} tables of new ids wait to be written, and the "
                "broker takes no more ids before that",
                hint="the producer sends again by itself; a slow disk of the broker holds it up",
            )
        topic, partition = arrival.topic, arrival.partition
        if topic.dated:
            self._check_times(arrival)
        latest_ms = arrival.at_ms + self.limits.created_ahead_ms_max
        end = partition.end_offset
        runs, mask, kept = ids.judge(batch, topic, partition.number, end, latest_ms)
        if kept and not may_store:
            raise UnknownSession(
                f"batch {request.counter} of a session was answered before and now holds new ids"
            )
        duplicates = runs.count(DUPLICATE)
        if kept < batch.count:
            _count(topic, runs)
        if kept:
            self._store(arrival, mask, kept, out, duplicates=duplicates)
        elif duplicates:
            out.events.append(
                (
                    "batch.duplicate",
                    {
                        **_place(arrival),
                        "count": duplicates,
                        "producer": request.producer,
                        "first_sequence": -1,
                        "first_offset": _first(runs, DUPLICATE),
                    },
                )
            )
        self._report_verdicts(arrival, runs, out)
        self._mark_horizon(arrival, out)
        at_ms = arrival.at_ms if kept else 0
        produced = Produced(request.request, at_ms, tuple(runs.runs))
        out.sends_after_sync.append(Send(arrival.peer, produced))

    def _check_times(self, arrival: Arrival) -> None:
        """Raises BadCreatedAt, NotSupported."""
        topic = arrival.topic.name
        if arrival.version < SETTINGS_VERSION:
            raise NotSupported(f"{topic} has a dedup horizon", hint="upgrade the producer")
        if arrival.batch.created_at_ms is None:
            raise BadCreatedAt(f"{topic} has a dedup horizon, and a message has no created_at")

    def _mark_horizon(self, arrival: Arrival, out: Outcome) -> None:
        """Let the topic forget, behind the batch that was judged by what it knew before."""
        topic = arrival.topic
        length_ms = topic.settings.dedup_ms
        if length_ms is None:
            return
        ahead_ms = self.limits.created_ahead_ms_max
        mark = topic.horizon.due(topic.number, length_ms, ahead_ms, arrival.at_ms)
        if mark is not None:
            out.appends.append(mark)
            if mark.floor_ms > topic.horizon.floor_ms:
                fields = {"floor_ms": mark.floor_ms, "forgotten_ms": mark.forgotten_ms}
                out.events.append(("horizon.moved", {"topic": topic.name, **fields}))

    def _report_verdicts(self, arrival: Arrival, runs: Runs, out: Outcome) -> None:
        number = 0
        for count, verdict, offset in runs.runs:
            if verdict == CONFLICT:
                assert arrival.batch.ids is not None
                tagged = arrival.batch.ids[number]
                fields = {"id": untagged_id(tagged), "offset": offset, "count": count}
                out.events.append(("id.conflict", {**_place(arrival), **fields}))
            elif verdict == TOO_OLD:
                floor_ms = arrival.topic.horizon.floor_ms
                told = {**_place(arrival), "count": count, "floor_ms": floor_ms}
                out.events.append(("messages.too_old", told))
            elif verdict == AHEAD:
                out.events.append(("messages.ahead", {**_place(arrival), "count": count}))
            elif self.verbose and verdict == DUPLICATE:
                _report_messages(
                    "message.duplicate", arrival, range(number, number + count), offset, out
                )
            number += count

    # --- both ------------------------------------------------------------------------------------

    def _store(
        self, arrival: Arrival, mask: bytes, kept: int, out: Outcome, *, duplicates: int
    ) -> None:
        """`mask` marks the kept messages unless all are kept."""
        request, batch = arrival.request, arrival.batch
        record = BatchStored(
            arrival.topic.number,
            arrival.partition.number,
            arrival.partition.end_offset,
            kept,
            arrival.at_ms,
            request.producer,
            request.epoch if request.producer else 0,
            request.first_sequence,
            mask,
            request.digest,
            batch.raw,
            batch.crc,
            batch.count,
            batch,
        )
        out.appends.append(record)
        fields: dict[str, Any] = {
            **_place(arrival),
            "first_offset": record.first_offset,
            "count": kept,
            "duplicates": duplicates,
            "producer": request.producer,
            "epoch": record.epoch,
            "first_sequence": request.first_sequence,
        }
        out.events.append(("batch.appended", fields))
        if self.verbose:
            numbers = list(compress(range(batch.count), kept_of(mask, batch.count)))
            _report_messages("message.appended", arrival, numbers, record.first_offset, out)


def _check_sender(topic: str, request: Produce) -> None:
    """Keep users' messages out of topics of OnceMQ's own. Raises InvalidName.

    Dead letters are outputs of consumers; the ids of a private topic name dead letters.
    """
    output = request.producer.startswith(INTERNAL_MARK)
    if topic.endswith(DEAD_SUFFIX) and not output:
        raise InvalidName(
            f"{topic} accepts only dead letters, which consumers send", hint=_OWN_TOPIC
        )
    if INTERNAL_MARK in topic and (request.producer or not request.session):
        raise InvalidName(
            f"{topic} accepts messages with explicit ids only from operators", hint=_OWN_TOPIC
        )


def _count(topic: Topic, runs: Runs) -> None:
    """Count what a batch brought that was not stored."""
    topic.duplicates += runs.count(DUPLICATE)
    topic.conflicts += runs.count(CONFLICT)
    topic.refused += runs.count(TOO_OLD) + runs.count(AHEAD)


def _first(runs: Runs, verdict: int) -> int:
    return next((offset for _, found, offset in runs.runs if found == verdict), UNKNOWN_OFFSET)


def _place(arrival: Arrival) -> dict[str, Any]:
    return {"topic": arrival.topic.name, "partition": arrival.partition.number}


def _report_messages(
    event: str, arrival: Arrival, numbers: Sequence[int], offset: int, out: Outcome
) -> None:
    request, ids = arrival.request, arrival.batch.ids
    for step, number in enumerate(numbers):
        if ids is not None:
            message_id = untagged_id(ids[number])
        else:
            message_id = sequence_id(
                request.topic, request.producer, request.partition, request.first_sequence + number
            )
        where = offset if offset == UNKNOWN_OFFSET else offset + step
        out.events.append((event, {**_place(arrival), "id": message_id, "offset": where}))
