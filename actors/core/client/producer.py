"""The producer: gives messages their numbers and sends them until each has a verdict.

Theory of operation. A producer keeps nothing on disk: the broker tells it what it must know after a
restart. A named producer asks for an epoch (InitProducer, under the nonce of this incarnation, so
asking twice gets the same one) and learns the next number of each partition. From there it counts
by itself, one number for each message, in the order of Submit. An anonymous producer has explicit
ids only and needs no epoch. Batches then go through the send window.

Questions (a topic's description, the epoch) are idempotent: the producer asks again, under a new
request number, after every new session of the connection, after RESEND_MS without an answer, and
after a back-off while the disk of the broker is full. Any other refusal is final, also that of a
full table (`is_final`).

Fenced ends the incarnation: the outcome of messages without a verdict is `unknown`, because their
requests may still arrive or have arrived. The shell fails them with the error of Stop and never
sends again. docs/PROTOCOL.md, "Producers".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...backoff import backoff_ms
from ...batch import Batch
from ...errors import OnceMQError, from_code
from ...limits import LIMITS, RESEND_MS, Limits
from ...outcome import Event, Outcome, Received, Send, Snapshot, Stop, Tick
from ...protocol import (
    DUPLICATE,
    Failure,
    InitProducer,
    Message,
    ProducerReady,
    TopicDescribed,
    place_in,
)
from ...records import Plain, Record
from .connection import BROKER, Connection, is_final
from .send_window import EXPLICIT, REFUSALS_TOLD, SendWindow, Settled

# --- events from the shell -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Open the connection. The first event."""


@dataclass(frozen=True, slots=True)
class Describe:
    """Ask for a topic, made with one partition where it does not exist."""

    topic: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Send a batch. The topic is known, a named producer is open, and its limits are checked.

    With `batch.ids` the ids are explicit; without, the messages get the next numbers.
    """

    topic: str
    partition: int
    batch: Batch
    token: Any
    digest: bytes = b""


# --- work for the shell (besides Stop, Reconnect and send_window.Settled) ------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """Batches may be submitted. `partitions`: (topic, partition, next number, digest)."""

    epoch: int
    partitions: tuple[tuple[str, int, int, bytes], ...]


@dataclass(frozen=True, slots=True)
class TopicKnown:
    """The answer to Describe."""

    topic: str
    topic_id: bytes
    partitions: int


@dataclass(frozen=True, slots=True)
class TopicRefused:
    """The broker neither knows the topic nor creates it."""

    topic: str
    error: OnceMQError


@dataclass(slots=True)
class _Question:
    """A question, asked until it is answered. `topic` "" asks for the epoch."""

    topic: str
    request: int = 0  # of the latest attempt; 0: not asked in this session
    due_ms: int = 0  # time of the next attempt
    failures: int = 0  # retriable refusals so far: they stretch the back-off
    refusal: OnceMQError | None = None  # the last of them


class ProducerCore:
    """One incarnation of a producer."""

    def __init__(
        self,
        name: str,
        *,
        incarnation: bytes,
        label: str,
        endpoint: str,
        entropy: Callable[[], bytes],
        limits: Limits = LIMITS,
    ) -> None:
        """`name` "" is anonymous. `incarnation`: 16 random bytes, also the nonce of the name.

        `label` (host, pid) is for people; `entropy` draws 16 random bytes.
        """
        self.name = name
        self._incarnation = incarnation
        self._label = label
        self.connection = Connection("producer", incarnation, endpoint)
        # Bound on batches without a verdict; the owner submits no more.
        self.batches_max = 2 * limits.in_flight_batches_max
        self.send_window = SendWindow(
            self.connection,
            producer=name,
            entropy=entropy,
            batches_max=limits.in_flight_batches_max,
        )
        # Whether an epoch was granted (anonymous: the broker was met).
        self.opened = False
        # Open questions by topic; "" is the question for an epoch. Invariant: one for each topic.
        self._questions: dict[str, _Question] = {}
        # Next number of each partition. Invariant: above every number given by this incarnation
        # and not below the broker's answer to InitProducer.
        self._next: dict[tuple[str, int], int] = {}
        # Session of the connection in which all questions were last asked.
        self._session_seen = 0
        # Whether Stop was given. Invariant: nothing is sent after it.
        self.ended = False

    @property
    def held_by(self) -> OnceMQError | None:
        """What the broker keeps refusing something with; None: nothing waits for that."""
        asked = (q for q in self._questions.values() if q.failures >= REFUSALS_TOLD)
        return self.send_window.held_by or next((q.refusal for q in asked), None)

    @property
    def wake_at_ms(self) -> int | None:
        if self.ended:
            return None
        times = [self.connection.wake_at_ms, self.send_window.wake_at_ms]
        if self.connection.ready:
            times += [question.due_ms for question in self._questions.values()]
        return min((time for time in times if time is not None), default=None)

    def step(self, event: Event, now_ms: int) -> Outcome:
        out = Outcome()
        if self.ended:
            return out
        if isinstance(event, Received):
            self._received(event.message, now_ms, out)
        elif isinstance(event, Submit):
            self._submit(event)
        elif isinstance(event, Describe):
            self._questions.setdefault(event.topic, _Question(event.topic))
        elif isinstance(event, Start):
            if self.name:
                self._questions[""] = _Question("")
            self.connection.start(now_ms, out)
        else:
            assert isinstance(event, Tick), f"a producer does not know {event!r}"
        if self._check_end(out):
            return out
        self._ask(now_ms, out)
        self.send_window.advance(now_ms, out)
        self.connection.tick(now_ms, out, owed=self.send_window.owed or bool(self._questions))
        return out

    def apply(self, record: Record, position: int) -> None:
        raise AssertionError(f"a producer has no log: {record!r} at {position}")

    def snapshot(self) -> Snapshot:
        return Snapshot({})

    def restore(self, parts: dict[str, Plain]) -> None:
        assert not parts, "a producer has no state that survives"

    # --- numbers ---------------------------------------------------------------------------------

    def _submit(self, submit: Submit) -> None:
        assert self.opened, "submit only after Opened"
        batch = submit.batch
        first_sequence = EXPLICIT
        if batch.ids is None:
            place = (submit.topic, submit.partition)
            first_sequence = self._next.get(place, 0)
            self._next[place] = first_sequence + batch.count
        self.send_window.add(
            submit.topic,
            submit.partition,
            first_sequence=first_sequence,
            count=batch.count,
            raw=batch.raw,
            crc=batch.crc,
            digest=submit.digest,
            token=submit.token,
        )

    # --- answers ---------------------------------------------------------------------------------

    def _received(self, message: Message, now_ms: int, out: Outcome) -> None:
        if self.connection.received(message, now_ms, out):
            if not self.name and not self.opened and self.connection.ready:
                self.opened = True
                out.work.append(Opened(0, ()))
            return
        if isinstance(message, ProducerReady):
            self._open(message, out)
        elif isinstance(message, TopicDescribed):
            if self._questions.pop(message.topic, None) is not None:
                self.connection.topic_described(message, out)
                out.work.append(TopicKnown(message.topic, message.topic_id, message.partitions))
        elif isinstance(message, Failure) and self._refused(message, now_ms, out):
            return
        else:
            for settled in self.send_window.received(message, now_ms, out):
                out.work.append(settled)
                out.events.append(("producer.acked", _acked_fields(settled, self.name)))

    def _open(self, ready: ProducerReady, out: Outcome) -> None:
        if self._questions.pop("", None) is None:
            return  # the second answer to a question that was asked twice
        self.opened = True
        self.connection.rely(place_in(ready))
        self.send_window.epoch = ready.epoch
        for topic, partition, next_sequence, _ in ready.partitions:
            self._next[topic, partition] = next_sequence
            self.send_window.expect(topic, partition, next_sequence)
        out.work.append(Opened(ready.epoch, ready.partitions))
        out.events.append(("producer.opened", {"producer": self.name, "epoch": ready.epoch}))

    def _refused(self, failure: Failure, now_ms: int, out: Outcome) -> bool:
        """False if the failure does not answer a question."""
        question = next(
            (asked for asked in self._questions.values() if asked.request == failure.request), None
        )
        if question is None:
            return False
        error = from_code(failure.code, failure.reason, failure.hint)
        if not is_final(error):
            question.due_ms = now_ms + backoff_ms(question.failures)
            question.failures += 1
            question.refusal = error
        elif question.topic:
            del self._questions[question.topic]
            out.work.append(TopicRefused(question.topic, error))
        else:
            self._stop(error, out)
        return True

    # --- questions -------------------------------------------------------------------------------

    def _ask(self, now_ms: int, out: Outcome) -> None:
        if not self.connection.ready:
            return
        anew = self.connection.sessions != self._session_seen
        self._session_seen = self.connection.sessions
        for question in self._questions.values():
            if anew or question.request == 0 or question.due_ms <= now_ms:
                question.request = self.connection.next_request()
                question.due_ms = now_ms + RESEND_MS
                out.sends_after_sync.append(Send(BROKER, self._message(question)))

    def _message(self, question: _Question) -> Message:
        if question.topic:
            return self.connection.ask_for_topic(question.request, question.topic)
        return InitProducer(question.request, self.name, self._incarnation, self._label)

    # --- the end ---------------------------------------------------------------------------------

    def _check_end(self, out: Outcome) -> bool:
        if self.send_window.error is not None:
            self._stop(self.send_window.error, out)
        elif any(isinstance(item, Stop) for item in out.work):
            self.ended = True
        return self.ended

    def _stop(self, error: OnceMQError, out: Outcome) -> None:
        self.ended = True
        out.work.append(Stop(error))


def _acked_fields(settled: Settled, producer: str) -> dict[str, Any]:
    duplicates = sum(count for count, verdict, _ in settled.runs if verdict == DUPLICATE)
    return {
        "topic": settled.topic,
        "partition": settled.partition,
        "count": settled.count,
        "duplicates": duplicates,
        "first_offset": settled.runs[0][2] if settled.runs else None,
        "producer": producer,
    }
