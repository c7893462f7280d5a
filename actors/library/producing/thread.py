"""The I/O thread of a producer: takes gathered sends, turns the engine, hands out verdicts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ...core.client.producer import Submit
from ...core.client.send_window import Settled
from ...errors import OnceMQError
from ...limits import FEED_BATCHES_MAX, LINGER_MS
from ...runtime.diagnostics import log
from ...shells.producer import ProducerShell
from .accumulator import Accumulator
from .acks import Verdicts
from .guard import Guard
from .parcel import Cut, Parcel, cut

_BLOCKED_MS = 50  # how often new topics and deadlines are looked at while nothing can be sent


class _Share(NamedTuple):
    """The token of a batch: the sends that its verdict settles, and the bytes that it frees."""

    verdicts: Verdicts
    members: Sequence[int]
    size: int


class _Cutting:
    """A parcel that is being cut into batches, and its bytes that no batch has taken yet."""

    def __init__(self, parcel: Parcel, cuts: Iterator[Cut]) -> None:
        self._verdicts = parcel.verdicts
        self._size_left = parcel.size
        self._count_left = len(parcel)
        self._cuts = cuts

    def next_submit(self, topic: str) -> Submit | None:
        """None at the end."""
        piece = next(self._cuts, None)
        if piece is None:
            return None
        count = len(piece.members)
        size = self._size_left * count // self._count_left
        self._size_left -= size
        self._count_left -= count
        share = _Share(self._verdicts, piece.members, size)
        return Submit(topic, piece.partition, piece.batch, share)


class ProducerThread(threading.Thread):
    """Runs until `stop`, or until the engine ends with an error."""

    def __init__(
        self,
        connect: Callable[[], ProducerShell],
        gathered: Accumulator,
        lock: Guard,
        *,
        freed: Callable[[int, int], None],
        done: Callable[[Verdicts], None],
        ended: Callable[[OnceMQError], None],
    ) -> None:
        """`lock` guards `gathered`; `freed(messages, bytes)`, `done` and `ended` are reports."""
        super().__init__(name="oncemq-producer", daemon=True)
        self._connect = connect
        self._gathered = gathered
        self._lock = lock
        self._freed = freed
        self._done = done
        self._ended = ended
        self._engine: ProducerShell | None = None
        self._cutting: dict[str, _Cutting] = {}
        # Count of messages without key and id, by topic: chooses their partitions.
        self._keyless: dict[str, int] = {}
        self._stopping = False
        # Whether a nudge must wake the engine: it waits for answers only. While it lingers, only
        # an urgent one must. Both under the lock.
        self._asleep = False
        self._lingering = False

    # --- called by other threads, under the lock -------------------------------------------------

    def nudge(self, *, urgent: bool) -> None:
        """`urgent` ends the lingering of the thread."""
        if self._engine is not None and (self._asleep or (self._lingering and urgent)):
            self._asleep = self._lingering = False
            self._engine.wake()

    def wake(self) -> None:
        """End the wait of the engine, if it is there. Any thread, with the lock or without."""
        engine = self._engine
        if engine is not None:
            engine.wake()

    def describe_wait(self) -> str:
        engine = self._engine
        waits_for = "" if engine is None else engine.waits_for
        return f": {waits_for}" if waits_for else ""

    def stop(self) -> None:
        """Not under the lock."""
        with self._lock:
            self._stopping = True
            if self._engine is not None:
                self._engine.wake()
        if threading.current_thread() is not self:
            self.join()

    # --- the thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn the engine; an error of any kind fails what is outstanding and ends the thread."""
        try:
            engine = self._connect()
            with self._lock:
                self._engine = engine
            try:
                self._run(engine)
            finally:
                with self._lock:
                    self._engine = None
                engine.close()
        except OnceMQError as error:
            self._ended(error)
        except BaseException as error:  # noqa: BLE001 - told by every send that waits
            self._ended(OnceMQError(f"the I/O thread failed: {type(error).__name__}: {error}"))
            log(logging.ERROR, "the I/O thread of a producer failed", exc_info=error)

    def _run(self, engine: ProducerShell) -> None:
        while True:
            timeout_ms = self._feed(engine)
            if timeout_ms == -1:
                return
            engine.turn(timeout_ms)
            with self._lock:
                self._asleep = self._lingering = False
            for settled in engine.take_settled():
                self._deliver(settled)
            if engine.error is not None:
                if isinstance(engine.error, OnceMQError):
                    raise engine.error
                raise OnceMQError(str(engine.error)) from engine.error

    def _deliver(self, settled: Settled) -> None:
        share: _Share = settled.token
        self._freed(len(share.members), share.size)
        share.verdicts.give(share.members, settled.partition, settled.runs, settled.error)
        if share.verdicts.settled:
            self._done(share.verdicts)

    def _fail(self, parcel: Parcel, error: OnceMQError) -> None:
        """The bytes of the parcel are free already."""
        self._freed(len(parcel), 0)
        parcel.verdicts.fail(error, refused=True)
        self._done(parcel.verdicts)

    # --- feeding the engine ----------------------------------------------------------------------

    def _feed(self, engine: ProducerShell) -> int | None:
        """Return how long the engine may wait in milliseconds, -1: stop."""
        now_ms = monotonic_ms()
        with self._lock:
            if self._stopping:
                return -1
            expired = self._gathered.admit_late(now_ms)
            topics = list(dict.fromkeys([*self._cutting, *self._gathered.topics()]))
        for parcel in expired:
            self._fail(parcel, self._gathered.full())
        for topic in topics:
            self._ask(engine, topic)
        known = [topic for topic in topics if topic in engine.topics]
        for _ in range(FEED_BATCHES_MAX):
            if not known or not engine.room:
                break
            known = [topic for topic in known if self._submit_one(engine, topic, now_ms)]
        with self._lock:
            return self._patience(engine)

    def _ask(self, engine: ProducerShell, topic: str) -> None:
        error = engine.refused.pop(topic, None)
        if error is not None:
            with self._lock:
                parcels = self._gathered.drop(topic)
            for parcel in parcels:
                self._fail(parcel, error)
        elif topic not in engine.topics:
            engine.ask(topic)

    def _submit_one(self, engine: ProducerShell, topic: str, now_ms: int) -> bool:
        """False if there is no batch now."""
        if not engine.room:
            return True
        cutting = self._cutting.get(topic)
        submit = None if cutting is None else cutting.next_submit(topic)
        if submit is None:
            self._cutting.pop(topic, None)
            with self._lock:
                parcel = self._gathered.take(topic, now_ms, in_flight=engine.in_flight)
            if parcel is None:
                return False
            cuts = cut(parcel, engine.topics[topic].partitions, self._keyless_of(engine, topic))
            cutting = self._cutting[topic] = _Cutting(parcel, cuts)
            submit = cutting.next_submit(topic)
            assert submit is not None, "a parcel holds at least one message"
        engine.submit(submit)
        return True

    def _keyless_of(self, engine: ProducerShell, topic: str) -> Callable[[int], int]:
        """The counter of messages without key and id; it goes on from earlier runs."""

        def take(count: int) -> int:
            first = self._keyless.get(topic)
            if first is None:
                assert engine.opened is not None
                first = sum(row[2] for row in engine.opened.partitions if row[0] == topic)
            self._keyless[topic] = first + count
            return first

        return take

    def _patience(self, engine: ProducerShell) -> int | None:
        """How long the next turn may wait for answers. Under the lock."""
        late = _BLOCKED_MS if self._gathered.has_late else None
        topics = self._gathered.topics()
        if not topics and not self._cutting:
            self._asleep = True
            return late
        if not engine.room or any(topic not in engine.topics for topic in topics):
            return _BLOCKED_MS
        if self._cutting or self._gathered.ready(monotonic_ms(), in_flight=engine.in_flight):
            return 0
        self._lingering = True
        return LINGER_MS


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
