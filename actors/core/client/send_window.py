"""Numbered batches on their way to the broker: a send window, resends and verdicts in order.

Theory of operation. Each (topic, partition) has a lane: batches that wait, and batches in flight,
both in the order in which they were added. One repair mends everything: send all that is in flight
in the lane again, in order (go-back-N). The broker knows the numbers, so it answers a batch that it
has with the original offsets and never stores it twice. Causes of a resend are a new session of the
connection, a refusal that a retry mends (Gap, Busy, DiskFull) and silence.

A batch carries either sequence numbers, given by the owner and never changed, or explicit ids and
a (session, counter) that orders it within its lane. The lane counts by itself; an answer of
UnknownSession draws a new session and counts from 0 again. The two kinds are not mixed in flight:
a batch of the other kind waits until the lane is empty, because the broker orders each kind by
itself only.

Each attempt has a request number of its own, so that a refusal of an attempt that was repeated
already is not taken for news; a verdict counts whichever attempt it answers. Cause and effect tell
a lost log from old news: a Gap that names a number below what had been acknowledged *when the
refused attempt left* comes from a log that forgot (LogRegressed).

docs/PROTOCOL.md, "Produce". The owner bounds what it adds; this window bounds what is in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...backoff import backoff_ms
from ...errors import LogRegressed, OnceMQError, from_code
from ...history import NO_PLACE, Place
from ...limits import IN_FLIGHT_BYTES_DEFAULT, RESEND_MS
from ...outcome import Outcome, Send
from ...protocol import Failure, Message, Produce, Produced, place_in
from ...records import Output
from .connection import BROKER, Connection

ATTEMPTS_KEPT = 8  # attempts of one batch whose late answers still count: bounds `_by_request`
_RESEND_MAX_MS = 8 * RESEND_MS
REFUSALS_TOLD = 4  # so often refused, 1.5 s: people are told why they wait
# Refusals of one explicit batch that are final for it and harmless for the others.
_FINAL_CODES = frozenset(
    {"bad_created_at", "too_large", "invalid_name", "unknown_topic", "malformed"}
)
EXPLICIT = -1  # the first_sequence of a batch with explicit ids

Run = tuple[int, int, int]  # (count, verdict, first offset), as in Produced


@dataclass(slots=True)
class Entry:
    """A batch without a final verdict, waiting or in flight."""

    topic: str
    partition: int
    first_sequence: int  # EXPLICIT with explicit ids
    count: int
    raw: bytes | memoryview
    crc: int
    digest: bytes
    token: Any  # chosen by the owner; comes back in `Settled`
    # Place in the session of the lane; -1 with sequence ids and before the first attempt.
    counter: int = -1
    # Request numbers of the attempts, the latest last. Invariant: at most ATTEMPTS_KEPT.
    requests: list[int] = field(default_factory=list)
    # What had been acknowledged in the lane when the latest attempt left.
    acked_when_sent: int = 0
    # The verdict, held until all earlier batches of the lane have theirs.
    verdict: Produced | OnceMQError | None = None

    @property
    def explicit(self) -> bool:
        return self.first_sequence == EXPLICIT

    def settled(self) -> Settled:
        verdict = self.verdict
        assert verdict is not None
        produced = verdict if isinstance(verdict, Produced) else None
        return Settled(
            self.token,
            self.topic,
            self.partition,
            self.first_sequence,
            self.count,
            produced.at_ms if produced else 0,
            produced.runs if produced else (),
            None if isinstance(verdict, Produced) else verdict,
            place_in(produced) if produced else NO_PLACE,
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """The final verdict of one batch. In each lane they come in the order of `add`."""

    token: Any
    topic: str
    partition: int
    first_sequence: int
    count: int
    at_ms: int
    runs: tuple[Run, ...]  # empty with an error
    error: OnceMQError | None = None
    place: Place = NO_PLACE  # in the broker's log, of who relies on the verdict


class Lane:
    """The batches of one (topic, partition), and the order in which verdicts leave."""

    __slots__ = (
        "acked_end",
        "due_ms",
        "failures",
        "flying",
        "held_by",
        "held_until_ms",
        "next_counter",
        "partition",
        "session",
        "topic",
        "waiting",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        # Not yet sent, in order.
        self.waiting: deque[Entry] = deque()
        # Sent and not settled, in order. Invariant: all of one kind, at most
        # in_flight_batches_max, and with sequence ids contiguous.
        self.flying: deque[Entry] = deque()
        # Sequence numbers below it are known to be durable. Invariant: never falls.
        self.acked_end = 0
        # Session of explicit ids; b"" before the first. Invariant: next_counter counts the
        # batches sent under it, and those in flight hold the numbers just below it.
        self.session = b""
        self.next_counter = 0
        # When all in flight is sent again. Meaningful while a batch is in flight.
        self.due_ms = 0
        # No sending before this time: the broker refused with Busy or DiskFull. 0: no hold.
        self.held_until_ms = 0
        self.held_by: OnceMQError | None = None  # the last such refusal, until there is a verdict
        # Fruitless attempts in a row: they stretch the next wait.
        self.failures = 0

    def unjudged(self) -> list[Entry]:
        return [entry for entry in self.flying if entry.verdict is None]

    def renew_session(self, session: bytes) -> None:
        """Number the batches in flight from 0 again, under a new session."""
        self.session = session
        entries = self.unjudged()
        for counter, entry in enumerate(entries):
            entry.counter = counter
        self.next_counter = len(entries)

    def next_may_fly(self) -> bool:
        """Return whether the first waiting batch is of the kind in flight; see the theory above."""
        return bool(self.waiting) and (
            not self.flying or self.flying[-1].explicit == self.waiting[0].explicit
        )

    def pop_settled(self) -> list[Entry]:
        """Remove and return batches with a verdict, up to the first one without: order is kept."""
        settled = []
        while self.flying and self.flying[0].verdict is not None:
            settled.append(self.flying.popleft())
        return settled


class SendWindow:
    """Sends batches until each has its verdict. One producer name and epoch; not thread-safe."""

    def __init__(
        self,
        connection: Connection,
        *,
        producer: str = "",
        epoch: int = 0,
        entropy: Callable[[], bytes] | None = None,
        window_bytes: int = IN_FLIGHT_BYTES_DEFAULT,
        batches_max: int,
    ) -> None:
        """`producer` "" sends explicit ids only; `entropy` draws the 16 bytes of a session.

        A batch larger than `window_bytes` goes out when nothing else flies; each lane has at most
        `batches_max` in flight.
        """
        self._connection = connection
        self.producer = producer
        self.epoch = epoch
        self._entropy = entropy
        self._window_bytes = window_bytes
        self._batches_max = batches_max
        # Why sending has ended: Fenced, LogRegressed, or a refusal of numbered messages, behind
        # which no number may be used. Invariant: once set it stays, and no verdict follows.
        self.error: OnceMQError | None = None
        # Batches added and not settled, and the messages in them.
        self.batches = 0
        self.messages = 0
        # Bytes of all batches in flight.
        self._flying_bytes = 0
        # Every lane ever used, and those with work. Invariant: a lane with batches is busy.
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._busy: dict[tuple[str, int], Lane] = {}
        # Attempts whose answers still count.
        self._by_request: dict[int, tuple[Lane, Entry]] = {}
        # Session of the connection in which all batches in flight were last sent.
        self._session_seen = 0

    # --- what the owner calls --------------------------------------------------------------------

    def expect(self, topic: str, partition: int, acked_end: int) -> None:
        """Set the end of acknowledged numbers, from ProducerReady or a ledger."""
        lane = self._lane(topic, partition)
        lane.acked_end = max(lane.acked_end, acked_end)

    def add(
        self,
        topic: str,
        partition: int,
        *,
        first_sequence: int,
        count: int,
        raw: bytes | memoryview,
        crc: int,
        digest: bytes = b"",
        token: Any = None,
    ) -> None:
        """Queue a batch behind all earlier ones of its lane; call `advance` afterwards.

        `first_sequence` is EXPLICIT for explicit ids. Numbers must be contiguous in a lane.
        """
        assert self.producer or first_sequence == EXPLICIT, "sequence ids need a producer name"
        lane = self._lane(topic, partition)
        lane.waiting.append(Entry(topic, partition, first_sequence, count, raw, crc, digest, token))
        self._busy[topic, partition] = lane
        self.batches += 1
        self.messages += count

    def add_output(self, output: Output, token: Any = None) -> None:
        self.add(
            output.topic,
            output.partition,
            first_sequence=output.first_sequence,
            count=output.count,
            raw=output.raw,
            crc=output.crc,
            token=token,
        )

    @property
    def owed(self) -> bool:
        """Whether batches have no verdict yet: the `owed` of the connection."""
        return self.batches > 0 and self.error is None

    @property
    def waiting(self) -> bool:
        """Whether some batch waits because a window is full or the broker is away."""
        return any(lane.waiting for lane in self._busy.values())

    @property
    def held_by(self) -> OnceMQError | None:
        """What the broker keeps refusing some batch with; None: nothing waits for that."""
        told = (lane for lane in self._busy.values() if lane.failures >= REFUSALS_TOLD)
        return next((lane.held_by for lane in told if lane.held_by), None)

    def received(self, message: Message, now_ms: int, out: Outcome) -> list[Settled]:
        """Take an answer; return the batches that it settles, in order. Others are ignored.

        Afterwards look at `error`: once it is set the owner must end. Then call `advance`.
        """
        if not isinstance(message, Produced | Failure) or self.error is not None:
            return []
        found = self._by_request.get(message.request)
        if found is None:
            return []
        lane, entry = found
        if isinstance(message, Produced):
            if sum(run[0] for run in message.runs) != entry.count:
                self.error = OnceMQError(
                    f"the broker judged another number of messages than the {entry.count} sent"
                )
                return []
            lane.due_ms = now_ms + RESEND_MS
            self._connection.rely(place_in(message))
            self._judged(lane, entry, message)
        else:
            self._refused(lane, entry, message, now_ms, out)
        return self._settle(lane)

    def advance(self, now_ms: int, out: Outcome) -> None:
        """Send, or resend, batches that are due. Call at the end of every step of the owner."""
        if self.error is not None or not self._connection.ready or not self._busy:
            return
        if self._connection.sessions != self._session_seen:
            self._session_seen = self._connection.sessions
            lanes = [lane for lane in self._busy.values() if lane.flying]
            for lane in lanes:
                lane.failures = lane.held_until_ms = 0
            if lanes:
                self._send_again(lanes, "new connection", now_ms, out)
        for lane in self._busy.values():
            self._advance_lane(lane, now_ms, out)

    @property
    def wake_at_ms(self) -> int | None:
        """When `advance` has work without any message; None for never."""
        if self.error is not None or not self._connection.ready:
            return None
        times = [
            lane.held_until_ms or lane.due_ms
            for lane in self._busy.values()
            if lane.flying or lane.held_until_ms
        ]
        return min(times, default=None)

    def unsettled(self) -> list[Any]:
        """Return the tokens of all batches without a verdict: their outcome is unknown."""
        return [
            entry.token for lane in self._busy.values() for entry in (*lane.flying, *lane.waiting)
        ]

    # --- answers ---------------------------------------------------------------------------------

    def _judged(self, lane: Lane, entry: Entry, verdict: Produced | OnceMQError) -> None:
        assert entry.verdict is None, "a settled batch has no attempts any more"
        entry.verdict = verdict
        lane.held_by = None
        if isinstance(verdict, Produced) and not entry.explicit:
            lane.acked_end = max(lane.acked_end, entry.first_sequence + entry.count)
        lane.failures = 0
        for request in entry.requests:
            self._by_request.pop(request, None)

    def _refused(
        self, lane: Lane, entry: Entry, failure: Failure, now_ms: int, out: Outcome
    ) -> None:
        error = from_code(failure.code, failure.reason, failure.hint)
        if failure.code == "unknown_producer":
            self.error = LogRegressed(f"the log does not know {self.producer!r}: {failure.reason}")
        elif not error.retriable:
            if entry.explicit and failure.code in _FINAL_CODES:
                self._judged(lane, entry, error)
            else:
                self.error = error
        elif failure.request != entry.requests[-1] or lane.held_until_ms:
            return  # this attempt was or will be repeated: the window has acted on its refusal
        elif failure.code in {"gap", "unknown_session"}:
            self._out_of_order(lane, entry, failure, error, now_ms, out)
        else:
            self._hold(lane, error, now_ms)

    def _out_of_order(
        self,
        lane: Lane,
        entry: Entry,
        failure: Failure,
        error: OnceMQError,
        now_ms: int,
        out: Outcome,
    ) -> None:
        if entry.explicit:
            counters = {flying.counter for flying in lane.unjudged()}
            if failure.code == "unknown_session" or failure.expected not in counters:
                lane.renew_session(self._draw())
        elif failure.expected < entry.acked_when_sent:
            self.error = LogRegressed(
                f"{lane.topic}/{self.producer}:{lane.partition} was acknowledged up to "
                f"{entry.acked_when_sent}, the log expects {failure.expected}"
            )
            return
        if lane.failures:  # a second refusal without progress: the broker is slow or at a bound
            self._hold(lane, error, now_ms)
            return
        lane.failures = 1
        self._send_again([lane], failure.code, now_ms, out)

    def _hold(self, lane: Lane, error: OnceMQError, now_ms: int) -> None:
        """Wait for a back-off because of `error`, then send all in flight again."""
        lane.held_by = error
        lane.held_until_ms = now_ms + backoff_ms(lane.failures)
        lane.failures += 1

    def _settle(self, lane: Lane) -> list[Settled]:
        settled = []
        for entry in lane.pop_settled():
            self._flying_bytes -= len(entry.raw)
            self.batches -= 1
            self.messages -= entry.count
            settled.append(entry.settled())
        if not lane.flying:
            lane.failures = lane.held_until_ms = 0
            if not lane.waiting:
                self._busy.pop((lane.topic, lane.partition), None)
        return settled

    # --- sending ---------------------------------------------------------------------------------

    def _advance_lane(self, lane: Lane, now_ms: int, out: Outcome) -> None:
        if lane.held_until_ms > now_ms:
            return
        if lane.held_until_ms:
            lane.held_until_ms = 0
            self._send_again([lane], "back-off", now_ms, out)
        elif lane.flying and lane.due_ms <= now_ms:
            lane.failures += 1
            self._send_again([lane], "no answer", now_ms, out)
        while lane.next_may_fly() and self._has_room(lane, lane.waiting[0]):
            entry = lane.waiting.popleft()
            if entry.explicit:
                if not lane.session:
                    lane.renew_session(self._draw())
                entry.counter = lane.next_counter
                lane.next_counter += 1
            if not lane.flying:
                lane.due_ms = now_ms + RESEND_MS
            lane.flying.append(entry)
            self._flying_bytes += len(entry.raw)
            self._send(lane, entry, out)

    def _has_room(self, lane: Lane, entry: Entry) -> bool:
        if len(lane.flying) >= self._batches_max:
            return False
        return not self._flying_bytes or self._flying_bytes + len(entry.raw) <= self._window_bytes

    def _send_again(self, lanes: list[Lane], reason: str, now_ms: int, out: Outcome) -> None:
        batches = messages = 0
        for lane in lanes:
            for entry in lane.unjudged():
                self._send(lane, entry, out)
                batches += 1
                messages += entry.count
            lane.due_ms = now_ms + min(_RESEND_MAX_MS, RESEND_MS << min(lane.failures, 10))
        fields = {"batches": batches, "messages": messages, "reason": reason}
        out.events.append(("producer.resent", fields))

    def _send(self, lane: Lane, entry: Entry, out: Outcome) -> None:
        request = self._connection.next_request()
        entry.requests.append(request)
        entry.acked_when_sent = lane.acked_end
        self._by_request[request] = (lane, entry)
        if len(entry.requests) > ATTEMPTS_KEPT:
            self._by_request.pop(entry.requests.pop(0), None)
        produce = Produce(
            request,
            entry.topic,
            entry.partition,
            self.producer,
            self.epoch,
            entry.first_sequence,
            lane.session if entry.explicit else b"",
            entry.counter if entry.explicit else 0,
            entry.digest,
            entry.crc,
        )
        out.sends_after_sync.append(Send(BROKER, produce, entry.raw))

    def _draw(self) -> bytes:
        assert self._entropy is not None, "explicit ids need a source of session names"
        return self._entropy()

    def _lane(self, topic: str, partition: int) -> Lane:
        key = (topic, partition)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(topic, partition)
        return lane
