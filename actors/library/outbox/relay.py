"""The relay: sends the committed rows of an outbox, and removes the rows that the broker has.

Theory of operation. One loop in one thread: read the first waiting rows, send them as an anonymous
producer under the ids they have, wait for every verdict, remove them in one transaction, and read
again. The process may die between any two of these steps: the next relay sends rows again that were
sent and not removed, and the broker answers that they are duplicates. So the relay remembers
nothing, and above all no last place: a transaction that began early may commit late, with lower
places than rows that were sent long ago.

A row that is refused for good is marked with the reason and blocks no other row. When a whole batch
is refused, the relay sends its messages one by one: this finds the bad one, and the others pass.

The relay waits for what is away, and reports it: the engine for the broker, this file for the
database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...backoff import backoff_ms
from ...codec.values import check_value, decode_headers
from ...core.client.producer import Submit
from ...core.client.send_window import Settled
from ...errors import DatabaseAway, Malformed, OnceMQError, TooLarge
from ...ids import BYTES_TAG, TEXT_TAG, check_name, untagged_id
from ...limits import (
    HEADERS_BYTES_MAX,
    KEY_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_ID_BYTES_MAX,
    RELAY_POLL_S_DEFAULT,
)
from ...ports import Events
from ...protocol import DUPLICATE, STORED
from ...runtime.crash_points import RELAY_AFTER_ACK, RELAY_AFTER_COMMIT, RELAY_AFTER_READ
from ...shells.producer import ProducerShell
from ..producing.acks import Verdicts, refusal_of
from ..producing.parcel import MESSAGE_COST, Message, Parcel, cut, milliseconds_of
from .database import OutboxDatabase, Visit
from .table import Row

TURN_MS = 100  # how often an idle relay looks at the stop flag
STOP_MS = 4_000  # how long a stopped relay waits for messages in flight
_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class Progress:
    """Counters of a relay; at the end they are the summary."""

    sent: int = 0  # acknowledged
    appended: int = 0  # of them: new to the broker
    duplicates: int = 0  # of them: known already, sent by a relay that died or by another relay
    failed: int = 0  # refused for good, and marked
    waiting_for: str | None = None  # what is away (broker or database), as a sentence


class _Round:
    """The rows of one read, and their verdicts so far."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.place: row for row in rows}
        self.acked: list[int] = []
        self.errors: dict[int, OnceMQError] = {}
        self.alone: deque[int] = deque()  # of refused batches: still to be sent one by one
        self.appended = 0

    @property
    def open(self) -> int:
        return len(self.rows) - len(self.acked) - len(self.errors)


class Relay:
    """Relays one outbox. Call `run`; `stop` from a signal handler ends it."""

    def __init__(
        self,
        database: OutboxDatabase,
        engine: ProducerShell,
        events: Events,
        *,
        keep: bool = False,
        until_idle_s: float | None = None,
        poll_s: float = RELAY_POLL_S_DEFAULT,
        report: Callable[[Progress], None] = lambda _: None,
        visit: Visit = lambda _: None,
    ) -> None:
        """`engine` is of an anonymous producer. `keep` marks rows as sent and leaves them there.

        With `until_idle_s` the relay ends after that time without a row; 0 ends it when no row
        waits. `report` gets the progress at every turn; `visit` gets the names of crash points.
        """
        self.progress = Progress()
        self._database = database
        self._engine = engine
        self._events = events
        self._keep = keep
        self._until_idle_ms = None if until_idle_s is None else int(until_idle_s * 1000)
        self._poll_ms = max(1, int(poll_s * 1000))
        self._report = report
        self._visit = visit
        self.stopped = False
        self._stop_by_ms: int | None = None
        self._failures = 0  # of the database, in a row

    def stop(self) -> None:
        """Read no more; `run` returns when messages in flight are acknowledged and removed."""
        self.stopped = True

    def run(self) -> Progress:
        """Relay until stopped or idle. Raises DatabaseRefused, or the error of the producer."""
        idle_since_ms = self._engine.now_ms()
        while not self.stopped:
            rows = self._from_database(self._database.read)
            if rows is None:
                idle_since_ms = self._engine.now_ms()
                continue
            if rows:
                if not self._relay(rows):
                    self._pause(self._poll_ms)  # another relay is removing the same rows
                idle_since_ms = self._engine.now_ms()
                continue
            idle_ms = self._engine.now_ms() - idle_since_ms
            if self._until_idle_ms is not None and idle_ms >= self._until_idle_ms:
                break
            self._pause(self._poll_ms)
        return self.progress

    def _relay(self, rows: Sequence[Row]) -> bool:
        """Whether any row left the outbox."""
        began_ms = self._engine.now_ms()
        current = _Round(rows)
        self._visit(RELAY_AFTER_READ)
        self._send(current)
        if current.open == len(rows):  # stopped before any verdict
            return False
        self._visit(RELAY_AFTER_ACK)
        acked = [current.rows[place] for place in current.acked]
        failed = [
            (current.rows[place], f"{error.code}: {error.reason}")
            for place, error in sorted(current.errors.items())
        ]
        changed = None
        while changed is None:
            changed = self._from_database(
                lambda: self._database.settle(acked, failed, keep=self._keep)
            )
            if changed is None and self.stopped:
                return False  # sent rows stay in the outbox: the next relay sends them again
        self._visit(RELAY_AFTER_COMMIT)
        self._count(current, self._engine.now_ms() - began_ms)
        return changed > 0

    def _count(self, current: _Round, took_ms: int) -> None:
        progress = self.progress
        acked = len(current.acked)
        progress.sent += acked
        progress.appended += current.appended
        progress.duplicates += acked - current.appended
        progress.failed += len(current.errors)
        self._events.emit(
            "relay.settled",
            database=self._database.name,
            count=acked,
            duplicates=acked - current.appended,
            failed=len(current.errors),
            took_ms=took_ms,
        )
        for place, error in current.errors.items():
            row = current.rows[place]
            self._events.emit(
                "relay.refused",
                topic=row.topic,
                id=shown_id(row.message_id),
                place=place,
                code=error.code,
                reason=error.reason,
            )
        self._report(progress)

    # --- sending ---------------------------------------------------------------------------------

    def _send(self, current: _Round) -> None:
        """Send the rows of a round until each has a verdict, or patience after `stop` ends."""
        by_topic: dict[str, list[tuple[Row, Message]]] = {}
        for row in current.rows.values():
            try:
                message = checked_row(row)
            except OnceMQError as error:
                current.errors[row.place] = error
            else:
                by_topic.setdefault(row.topic, []).append((row, message))
        for topic, messages in by_topic.items():
            if not self._knows(topic):
                refusal = self._engine.refused.get(topic)
                if refusal is None:
                    break  # stopped
                current.errors.update(dict.fromkeys((row.place for row, _ in messages), refusal))
                continue
            if not self._submit_all(current, topic, messages):
                break
        self._drain(current)

    def _knows(self, topic: str) -> bool:
        """Wait until the broker has described a topic; False: refused, or stopped meanwhile."""
        engine = self._engine
        if topic in engine.topics and engine.opened is not None:
            return True
        engine.ask(topic)
        while topic not in engine.topics or engine.opened is None:
            if topic in engine.refused or self.stopped:
                return False
            self._turn(TURN_MS)
        return True

    def _submit_all(
        self, current: _Round, topic: str, messages: Sequence[tuple[Row, Message]]
    ) -> bool:
        """Submit as the engine has room; False: stopped meanwhile."""
        parcel = Parcel(topic, Verdicts(topic), explicit=True, born_ms=0)
        for _, message in messages:
            parcel.add(message)
        parcel.seal()
        for piece in cut(parcel, self._engine.topics[topic].partitions, lambda _: 0):
            while not self._engine.room:
                if self.stopped:
                    return False
                self._take(current)
            places = [messages[index][0].place for index in piece.members]
            self._engine.submit(Submit(topic, piece.partition, piece.batch, places))
        return True

    def _drain(self, current: _Round) -> None:
        while (self._engine.in_flight or current.alone) and not self._impatient():
            while current.alone and self._engine.room:
                row = current.rows[current.alone.popleft()]
                self._submit_all(current, row.topic, [(row, checked_row(row))])
            self._take(current)

    def _take(self, current: _Round) -> None:
        self._turn(TURN_MS)
        for settled in self._engine.take_settled():
            places: list[int] = settled.token
            if settled.error is None:
                self._note(current, settled, places)
            elif len(places) == 1:
                current.errors[places[0]] = settled.error
            else:
                current.alone += places

    def _note(self, current: _Round, settled: Settled, places: list[int]) -> None:
        at = 0
        for count, verdict, _ in settled.runs:
            named = places[at : at + count]
            if verdict not in {STORED, DUPLICATE}:
                for place in named:
                    row = current.rows[place]
                    name = f"id {shown_id(row.message_id)!r}"
                    current.errors[place] = refusal_of(verdict, name, row.topic)
            else:
                current.acked += named
                current.appended += count if verdict == STORED else 0
            at += count

    def _turn(self, timeout_ms: int) -> None:
        engine = self._engine
        engine.turn(timeout_ms)
        if engine.error is not None:
            raise engine.error
        if self._failures == 0:
            self.progress.waiting_for = engine.waits_for or None
        self._report(self.progress)

    def _impatient(self) -> bool:
        """Whether `stop` was so long ago that missing acknowledgements are given up."""
        if not self.stopped:
            return False
        now_ms = self._engine.now_ms()
        if self._stop_by_ms is None:
            self._stop_by_ms = now_ms + STOP_MS
        return now_ms >= self._stop_by_ms

    def _pause(self, duration_ms: int) -> None:
        """Keep the connection to the broker alive meanwhile."""
        until_ms = self._engine.now_ms() + duration_ms
        while not self.stopped and (left_ms := until_ms - self._engine.now_ms()) > 0:
            self._turn(min(left_ms, TURN_MS))

    # --- the database ----------------------------------------------------------------------------

    def _from_database(self, call: Callable[[], _Answer]) -> _Answer | None:
        """None: the database is away, and a back-off has passed."""
        try:
            answer = call()
        except DatabaseAway as error:
            if not self._failures:
                self._events.emit(
                    "relay.database_away", database=self._database.name, reason=str(error)
                )
            self.progress.waiting_for = f"the database is not available: {error}"
            self._report(self.progress)
            self._failures += 1
            self._pause(backoff_ms(self._failures - 1))
            return None
        if self._failures:
            self._failures = 0
            self.progress.waiting_for = None
            self._events.emit("relay.database_back", database=self._database.name)
        return answer


def checked_row(row: Row) -> Message:
    """Return a row as a message; raise for a row that a producer's `send` would have refused.

    `outbox.send` writes only valid rows. A row written by hand may hold anything, in SQLite of any
    type.
    """
    check_name(row.topic, "topic")
    for column, content in (
        ("message_id", row.message_id),
        ("message_key", b"" if row.key is None else row.key),
        ("value", row.value),
        ("headers", row.headers),
    ):
        if not isinstance(content, bytes):
            raise Malformed(f"{column} holds {type(content).__name__}, not bytes")
    key_size = len(row.key or b"")
    for what, size, bound in (
        ("a message", len(row.value) + key_size, MESSAGE_BYTES_MAX),
        ("a message id", len(row.message_id) - 1, MESSAGE_ID_BYTES_MAX),
        ("a key", key_size, KEY_BYTES_MAX),
        ("headers", len(row.headers), HEADERS_BYTES_MAX),
    ):
        if size > bound:
            raise TooLarge(f"{what} is {size} bytes long, the limit is {bound}")
    if row.message_id[:1] not in {TEXT_TAG, BYTES_TAG} or len(row.message_id) < 2:
        raise Malformed("message_id holds no id behind the tag of its type")
    if isinstance(shown_id(row.message_id), bytes) and row.message_id[:1] == TEXT_TAG:
        raise Malformed("message_id says text but holds no UTF-8")
    check_value(row.encoding, row.value)  # a bad value must fail here, not at its consumers
    decode_headers(row.headers)
    size = len(row.value) + key_size + len(row.message_id) + len(row.headers) + MESSAGE_COST
    created = milliseconds_of(row.created_at_ms)
    return Message(row.encoding, row.value, row.key, row.message_id, row.headers, size, created)


def shown_id(tagged: Any) -> Any:
    """As the user gave it, or the raw column if it is no id."""
    try:
        return untagged_id(tagged)
    except (UnicodeDecodeError, TypeError):
        return tagged
