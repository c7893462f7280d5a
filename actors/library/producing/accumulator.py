"""The gathered sends that wait for the I/O thread, and the bound on their bytes.

`producer.py` waits for room.

Call everything here under the lock of the producer. Parcels of a topic leave in the order of their
sends. A single message leaves at once when nothing is in flight. Else it waits LINGER_MS for more
messages, since a batch of a thousand costs hardly more than a batch of one (`linger.ms` of Kafka).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...errors import BufferFull
from ...limits import LINGER_MS
from .acks import Verdicts
from .parcel import Message, Parcel

_DEADLINES_ALIKE_MS = 100  # waiting messages share a parcel if their deadlines are so close


class Accumulator:
    """Parcels that wait, by topic, and the bytes of all that has no verdict."""

    def __init__(self, bound: int, new_verdicts: Callable[[str], Verdicts]) -> None:
        self._bound = bound
        self._new_verdicts = new_verdicts
        # Taken and waiting for the I/O thread. Invariant: no empty queue; only the last parcel
        # of a queue is open.
        self._queues: dict[str, deque[Parcel]] = {}
        # Bytes taken and not settled. Invariant: at most `bound`, or those of a single send.
        self.used = 0
        # Not yet taken because the bound is reached and their senders may not block (event
        # loops): (deadline, parcel). Invariant: at most `bound` bytes.
        self._late: deque[tuple[int, Parcel]] = deque()
        self._late_bytes = 0

    # --- senders ---------------------------------------------------------------------------------

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes may be taken. A send above the bound goes alone."""
        return not self._late and (self.used == 0 or self.used + size <= self._bound)

    def add(self, topic: str, message: Message, now_ms: int) -> tuple[Parcel, int]:
        """Return the parcel of the message and its index there."""
        queue = self._queues.setdefault(topic, deque())
        if not queue or not queue[-1].takes(message):
            self._close_last(queue)
            queue.append(self._new_parcel(topic, message, now_ms))
        self.used += message.size
        return queue[-1], queue[-1].add(message)

    def add_parcel(self, parcel: Parcel) -> None:
        queue = self._queues.setdefault(parcel.topic, deque())
        self._close_last(queue)
        queue.append(parcel)
        self.used += parcel.size

    def add_late(
        self, topic: str, message: Message, now_ms: int, deadline_ms: int
    ) -> tuple[Parcel, int]:
        """Queue a message that waits for room until its deadline. Raises BufferFull."""
        self._check_late(message.size)
        if self._late:
            deadline, parcel = self._late[-1]
            alike = abs(deadline - deadline_ms) <= _DEADLINES_ALIKE_MS
            if alike and parcel.topic == topic and parcel.takes(message):
                self._late_bytes += message.size
                return parcel, parcel.add(message)
        parcel = self._new_parcel(topic, message, now_ms)
        self._late.append((deadline_ms, parcel))
        self._late_bytes += message.size
        return parcel, parcel.add(message)

    def add_parcel_late(self, parcel: Parcel, deadline_ms: int) -> None:
        """Queue a sealed parcel that waits for room until its deadline. Raises BufferFull."""
        self._check_late(parcel.size)
        self._late.append((deadline_ms, parcel))
        self._late_bytes += parcel.size

    def full(self) -> BufferFull:
        return BufferFull(
            f"{self.used} bytes wait for an acknowledgement, the limit is {self._bound} "
            "(in_flight_bytes)"
        )

    def _check_late(self, size: int) -> None:
        if self._late and self._late_bytes + size > self._bound:
            raise BufferFull(
                f"{self.used} bytes are unacknowledged and {self._late_bytes} wait, the limit of each "
                f"is {self._bound} (in_flight_bytes)"
            )

    def _new_parcel(self, topic: str, message: Message, now_ms: int) -> Parcel:
        explicit = message.id is not None
        return Parcel(topic, self._new_verdicts(topic), explicit=explicit, born_ms=now_ms)

    @staticmethod
    def _close_last(queue: deque[Parcel]) -> None:
        if queue:
            queue[-1].seal()

    # --- the I/O thread --------------------------------------------------------------------------

    def topics(self) -> list[str]:
        return list(self._queues)

    def take(self, topic: str, now_ms: int, *, in_flight: bool) -> Parcel | None:
        """Sealed; None if it should wait for more messages."""
        queue = self._queues.get(topic)
        if queue is None:
            return None
        if not _ready(queue, now_ms, in_flight=in_flight):
            return None
        first = queue[0]
        first.seal()
        queue.popleft()
        if not queue:
            del self._queues[topic]
        return first

    def ready(self, now_ms: int, *, in_flight: bool) -> bool:
        return any(_ready(queue, now_ms, in_flight=in_flight) for queue in self._queues.values())

    def admit_late(self, now_ms: int) -> list[Parcel]:
        """Admit late parcels while there is room; return those whose deadline has passed."""
        expired = []
        while self._late:
            deadline, parcel = self._late[0]
            if self.used == 0 or self.used + parcel.size <= self._bound:
                parcel.seal()
                queue = self._queues.setdefault(parcel.topic, deque())
                self._close_last(queue)
                queue.append(parcel)
                self.used += parcel.size
            elif deadline <= now_ms:
                parcel.seal()
                expired.append(parcel)
            else:
                break
            self._late.popleft()
            self._late_bytes -= parcel.size
        return expired

    def drop(self, topic: str) -> list[Parcel]:
        """Their bytes are free again."""
        parcels = list(self._queues.pop(topic, ()))
        for parcel in parcels:
            parcel.seal()
            self.used -= parcel.size
        return parcels

    def clear(self) -> list[Parcel]:
        """The caller fails the parcels outside the lock."""
        waiting = [parcel for queue in self._queues.values() for parcel in queue]
        waiting += [parcel for _, parcel in self._late]
        self._queues.clear()
        self._late.clear()
        self.used = self._late_bytes = 0
        for parcel in waiting:
            parcel.seal()
        return waiting

    @property
    def idle(self) -> bool:
        return not self._queues and not self._late

    @property
    def has_late(self) -> bool:
        return bool(self._late)


def _ready(queue: deque[Parcel], now_ms: int, *, in_flight: bool) -> bool:
    first = queue[0]
    return not in_flight or first.full or now_ms - first.born_ms >= LINGER_MS
