"""The producer that users hold: `send`, `send_many`, `flush`, from any thread or event loop.

A send waits here while too many bytes are unsettled.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import EllipsisType, TracebackType
from typing import Any

from ...errors import IdRequired, OnceMQError, ProducerClosed, Unacknowledged
from ...ids import check_name
from ...limits import ACK_TIMEOUT_S, IN_FLIGHT_BYTES_DEFAULT, LIMITS, SEND_TIMEOUT_MS
from ...runtime import settings
from ...runtime.diagnostics import log
from ...shells.producer import ProducerShell
from ...topic_settings import TopicWish
from ..messages.payloads import Serializer, check_serializer
from ..raised import end_fenced_programs_with_their_status
from .accumulator import Accumulator
from .acks import Ack, Patience, Verdicts
from .guard import Guard
from .parcel import Parcel, checked_many, checked_message
from .pending import Pending, PendingMany, PendingOne
from .thread import ProducerThread, monotonic_ms

_LIVE: weakref.WeakSet[Producer] = weakref.WeakSet()
_EXIT_FLUSH_S = 1.0  # time for a producer that was never closed, at the end of the interpreter

Connect = Callable[[str, str], ProducerShell]  # (producer name, endpoint)


class Producer:
    """Sends messages, each exactly once. Use it in a `with` block; threads may share it.

    Without a name it is anonymous: every send needs `id=`, and any number of them may run. With
    a name, messages get numbers, and one owner lives at a time: a second one fences the first,
    whose sends then raise Fenced for ever; a program that does not catch it ends with status 3. A
    forked child is an owner of its own and inherits
    nothing unsent. Sockets open at the first send.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        broker: str | None = None,
        in_flight_bytes: int = IN_FLIGHT_BYTES_DEFAULT,
        ack_timeout: float | None = ACK_TIMEOUT_S,
        close_timeout: float = SEND_TIMEOUT_MS / 1000,
        serializer: Serializer | None = None,
        connect: Connect | None = None,
        topics: Mapping[str, TopicWish] | None = None,
    ) -> None:
        """`broker` is an endpoint; the environment's ONCEMQ_BROKER goes before it.

        `ack_timeout`: seconds after which waiting for an acknowledgement (`await`, `result()`,
        `flush()`) raises ResultTimeout, if the broker has acknowledged nothing of this producer in
        that time; None: never. The message stays, is sent until it has its acknowledgement, and can
        be awaited again. `close_timeout`: seconds that leaving `with` waits for acknowledgements.
        `topics` are those that the App has declared. `connect` makes the engine, for tests. Raises InvalidName, ValueError.
        """
        if ack_timeout is not None and not ack_timeout > 0:
            raise ValueError(f"ack_timeout is {ack_timeout!r}; expected seconds above 0, or None")
        self._ack_timeout = ack_timeout
        self._name = "" if name is None else check_name(name, "producer")
        self._broker = broker
        self._in_flight_bytes = in_flight_bytes
        self._close_timeout = close_timeout
        self._serializer = check_serializer(serializer)
        self._connect = connect or _connect
        self._topics = topics
        self._closed = False
        self._begin()
        _LIVE.add(self)

    def _begin(self) -> None:
        """Become a new incarnation that has sent nothing."""
        self._lock = Guard(self._take_handed)
        self._patience = Patience(self._ack_timeout, self._describe_wait)
        self._gathered = Accumulator(self._in_flight_bytes, self._new_verdicts)
        self._checked_topics: set[str] = set()
        # Sends without all their verdicts, and the messages in them.
        self._outstanding: dict[Verdicts, None] = {}
        self._messages = 0
        self._thread: ProducerThread | None = None
        # Why this incarnation ended.
        self._error: OnceMQError | None = None

    @property
    def name(self) -> str | None:
        """The producer name; None for an anonymous producer."""
        return self._name or None

    # --- sending ---------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,
        *,
        id: str | bytes | None = None,  # noqa: A002 - the field's word
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
        created_at: datetime | int | None = None,
        timeout: float | None = None,
    ) -> Pending[Ack]:
        """Take one message and return a handle on its acknowledgement.

        Blocks up to `timeout` seconds (default 30) while too many bytes are on their way; in an
        event loop it never blocks, and the message waits for room by itself.

        Raises ValueNotEncodable, TooLarge, InvalidName, IdRequired (anonymous producer without
        `id`), BufferFull (nothing was taken), ProducerClosed, or the error that ended this
        producer, such as Fenced. IdConflict and TooOld come from the handle's `result()`.

        `created_at` (an aware datetime, or milliseconds since 1970) is when the message came into being,
        the same in every resend. A topic with a dedup horizon demands it beside `id` (docs/IDS.md).
        """
        if id is None and not self._name:
            raise IdRequired("an anonymous producer needs an id for each message")
        if type(topic) is not str:
            topic = check_name(topic, "topic")
        message = checked_message(
            value,
            id=id,
            key=key,
            headers=headers,
            serializer=self._serializer,
            created_at=created_at,
        )
        now_ms = monotonic_ms()
        deadline_ms = now_ms + _milliseconds(timeout)
        with self._lock as lock:
            self._check(topic)
            if lock.nested:
                verdicts = self._new_verdicts(topic)
                parcel = Parcel(topic, verdicts, explicit=id is not None, born_ms=now_ms)
                index = parcel.add(message)
                parcel.seal()
                self._hand_over(parcel)
                return PendingOne(verdicts, index)
            if self._wait_for_room(message.size, deadline_ms):
                parcel, index = self._gathered.add(topic, message, now_ms)
            else:
                parcel, index = self._gathered.add_late(topic, message, now_ms, deadline_ms)
            self._outstanding[parcel.verdicts] = None
            self._messages += 1
            self._io().nudge(urgent=parcel.full)
            return PendingOne(parcel.verdicts, index)

    def send_many(
        self,
        topic: str,
        values: Sequence[Any],
        *,
        ids: Sequence[str | bytes] | None = None,
        keys: Sequence[str | bytes | None] | None = None,
        created_at: Sequence[datetime | int] | None = None,
        timeout: float | None = None,
    ) -> PendingMany:
        """Take many messages of one topic, in order, and return one handle for all.

        Much cheaper a message than `send`, most of all with values that are all bytes. It is
        taken as a whole or not at all. Blocks and raises as `send` does; ValueError if `ids`,
        `keys` or `created_at` have another length.
        """
        if ids is None and not self._name:
            raise IdRequired("an anonymous producer needs an id for each message")
        if type(topic) is not str:
            topic = check_name(topic, "topic")
        verdicts = self._new_verdicts(topic)
        parcel = Parcel(topic, verdicts, explicit=ids is not None, born_ms=monotonic_ms())
        if not values:
            verdicts.settled = True
            return PendingMany(verdicts)
        checked_many(
            parcel,
            list(values),
            None if ids is None else list(ids),
            None if keys is None else list(keys),
            self._serializer,
            None if created_at is None else list(created_at),
        )
        deadline_ms = parcel.born_ms + _milliseconds(timeout)
        with self._lock as lock:
            self._check(topic)
            if lock.nested:
                self._hand_over(parcel)
                return PendingMany(verdicts)
            if self._wait_for_room(parcel.size, deadline_ms):
                self._gathered.add_parcel(parcel)
            else:
                self._gathered.add_parcel_late(parcel, deadline_ms)
            self._outstanding[verdicts] = None
            self._messages += verdicts.count
            self._io().nudge(urgent=True)
        return PendingMany(verdicts)

    def _hand_over(self, parcel: Parcel) -> None:
        """Leave a parcel to the holder of the lock further out. Raises BufferFull: it cannot wait."""
        if not self._gathered.has_room(parcel.size):
            raise self._gathered.full()
        self._lock.handed.append(parcel)
        if self._thread is not None:
            self._thread.wake()

    def _take_handed(self, parcel: Parcel) -> None:
        self._gathered.add_parcel(parcel)
        self._outstanding[parcel.verdicts] = None
        self._messages += len(parcel)
        self._io().nudge(urgent=True)

    def _check(self, topic: str) -> None:
        """Raise the error that forbids a send now. Under the lock."""
        if self._closed:
            raise ProducerClosed("the producer is closed")
        if self._error is not None:
            raise self._error.with_traceback(None)
        if topic not in self._checked_topics:
            check_name(topic, "topic")
            if len(self._checked_topics) >= LIMITS.topics_max:
                self._checked_topics.clear()
            self._checked_topics.add(topic)

    def _wait_for_room(self, size: int, deadline_ms: int) -> bool:
        """Wait under the lock until `size` bytes may be taken; False: the caller may not block."""
        while not self._gathered.has_room(size):
            if _in_event_loop():
                return False
            left_ms = deadline_ms - monotonic_ms()
            if left_ms <= 0 or self._thread is threading.current_thread():
                raise self._gathered.full()
            self._lock.wait(left_ms / 1000)
            if self._closed or self._error is not None:
                raise self._error or ProducerClosed("the producer was closed during the call")
        return True

    def _new_verdicts(self, topic: str) -> Verdicts:
        return Verdicts(topic, self._patience)

    def _describe_wait(self) -> str:
        thread = self._thread
        return "" if thread is None else thread.describe_wait()

    def _io(self) -> ProducerThread:
        """Return the I/O thread, started at the first send. Under the lock."""
        if self._thread is None:
            endpoint = settings.resolve("broker", argument=self._broker).value
            self._thread = ProducerThread(
                lambda: self._engine(str(endpoint)),
                self._gathered,
                self._lock,
                freed=self._freed,
                done=self._done,
                ended=self._ended,
            )
            self._thread.start()
            _close_with_child_process()
            if self._name:
                end_fenced_programs_with_their_status()
        return self._thread

    def _engine(self, endpoint: str) -> ProducerShell:
        engine = self._connect(self._name, endpoint)
        if self._topics:
            engine.core.connection.wishes = self._topics
        return engine

    # --- what the I/O thread reports -------------------------------------------------------------

    def _freed(self, count: int, size: int) -> None:
        """Called for messages that got their verdict."""
        self._patience.heard()
        with self._lock:
            self._messages -= count
            self._gathered.used -= size
            self._lock.notify_all()

    def _done(self, verdicts: Verdicts) -> None:
        with self._lock:
            self._outstanding.pop(verdicts, None)

    def _ended(self, error: OnceMQError) -> None:
        """Fail all outstanding sends: their outcome is unknown."""
        with self._lock:
            self._error = error
            self._lock.take_handed()
            self._gathered.clear()
            outstanding, self._outstanding = list(self._outstanding), {}
            self._lock.notify_all()
        for verdicts in outstanding:
            verdicts.fail(error)

    # --- the end ---------------------------------------------------------------------------------

    def flush(self, timeout: float | EllipsisType | None = ...) -> None:
        """Wait until all that was sent before has its verdict, up to `timeout` seconds.

        Without it `ack_timeout` counts; None waits for ever. Raises ResultTimeout, or the error that ended this producer. What became of each message
        is told by its own handle.
        """
        left, began = timeout, time.monotonic()
        with self._lock as lock:
            lock.take_handed()
            waiting = list(self._outstanding)
        for verdicts in waiting:
            if timeout is not None and not isinstance(timeout, EllipsisType):
                left = max(0.0, began + timeout - time.monotonic())
            verdicts.wait(left)
        if self._error is not None and waiting:
            raise self._error.with_traceback(None)

    def close(self, timeout: float | None = None) -> None:
        """Flush for up to `timeout` seconds (default: close_timeout), then let go of the socket.

        Raises Unacknowledged(n) if n messages have no verdict, or the error that ended the
        producer if it left messages in that state. Closing again does nothing.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        _LIVE.discard(self)
        try:
            with contextlib.suppress(OnceMQError):  # a timeout or the end: told by what is left
                self.flush(self._close_timeout if timeout is None else timeout)
        finally:
            if self._thread is not None:
                self._thread.stop()
            unknown = self._messages
            ended = self._error
            self._ended(Unacknowledged(unknown))
        if unknown:
            raise ended or Unacknowledged(unknown)

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:  # the error of the block is what counts; sends before it get a moment
            self.close(min(self._close_timeout, _EXIT_FLUSH_S))
        except OnceMQError as left:
            error.add_note(f"while the producer closed: {left}")

    async def __aenter__(self) -> Producer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__, kind, error, traceback)

    def _forked(self) -> None:
        """Begin again in a forked child, which cannot use lock, thread and socket of the parent."""
        outstanding = [*self._outstanding, *(parcel.verdicts for parcel in self._lock.handed)]
        self._begin()
        error = ProducerClosed(
            "this message was sent before the process forked",
            hint="ask in the parent process, which receives the answer",
        )
        for verdicts in outstanding:
            verdicts.forked(error)


def _connect(name: str, endpoint: str) -> ProducerShell:
    from ...runtime.clock import SystemClock
    from ...runtime.process import draw, own_label
    from ...runtime.zmq_transport import DealerTransport
    from ..library_events import LibraryEvents

    return ProducerShell(
        name,
        endpoint=endpoint,
        transport=DealerTransport(endpoint),
        clock=SystemClock(),
        events=LibraryEvents(),
        entropy=draw,
        label=own_label(),
    )


def _in_event_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:  # not loaded: no loop runs
        return False
    return asyncio._get_running_loop() is not None  # noqa: SLF001 - the one without an exception


def _milliseconds(timeout: float | None) -> int:
    return SEND_TIMEOUT_MS if timeout is None else int(timeout * 1000)


def _after_fork_in_child() -> None:
    for producer in list(_LIVE):
        producer._forked()  # noqa: SLF001 - this module's own class


def _close_with_child_process() -> None:
    """Have `_at_exit` called at the end of a child of multiprocessing, which runs no atexit handlers."""
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _at_exit, exitpriority=0)


def _at_exit() -> None:
    for producer in list(_LIVE):
        try:
            producer.close(_EXIT_FLUSH_S)
        except OnceMQError as error:
            log(logging.WARNING, "a producer was not closed: %s", error)


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
