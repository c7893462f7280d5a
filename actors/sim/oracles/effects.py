"""Effects of simulated handlers: a world outside that remembers each call, and what may be recorded.

Which message calls it, under which policy, and how its first call ends follows from the message
alone: it returns, raises, says that nothing happened, or its process dies in it. Later calls return.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from ...codec.values import BYTES
from ...core.consumer.effect_work import (
    EffectOrder,
)
from ...core.consumer.open_effects import (
    AGAIN,
    ANSWERED,
    ASK,
    NOT_DONE,
    PARK,
    RETRY,
    RETURNED,
    RUNNING,
    UNKNOWN,
    UNRESOLVED,
)
from ...core.consumer.work import REJECTED
from ...ids import effect_id
from ...records import EffectEnded, EffectIntended
from ..processes.handler import fate_of
from ..trace import Violation

NAME = "call"
CALL_MEAN_MS = 30
DIED = "died"

RESULTS = frozenset({RETURNED, ANSWERED})

Place = tuple[bytes, int]  # topic_id, offset


@dataclass(frozen=True, slots=True)
class Wish:
    """The effect of one message."""

    policy: str
    first: str  # how the first call ends: returned | raised | not_done | died


def wish_of(identity: bytes, *, replayed: bool) -> Wish | None:
    weight = crc32(b"bank" + identity) >> 3
    if weight % 3 or fate_of(identity, replayed=replayed) == REJECTED:
        return None
    policy = (ASK, ASK, PARK, RETRY)[weight // 3 % 4]
    first = (RETURNED, RETURNED, DIED, "raised", NOT_DONE)[weight // 12 % 5]
    return Wish(policy, first)


def order_about(name: str) -> EffectOrder:
    if crc32(name.encode()) % 2:
        return EffectOrder(name, AGAIN)
    return EffectOrder(name, ANSWERED, BYTES, b"said of " + name.encode())


@dataclass(slots=True)
class Last:
    """The last call of one effect, as durable records tell of it."""

    number: int
    policy: str
    epoch: int
    how: str = RUNNING
    value: bytes = b""


class EffectModel:
    """The effects of one ledger, fed with its durable records, and what really happened outside."""

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self.last: dict[Place, Last] = {}
        self._made: dict[tuple[Place, int], bytes] = {}  # what calls returned

    def call(self, place: Place, number: int) -> None:
        """A handler makes a call right now. Raises Violation if its intent may be lost."""
        last = self.last.get(place)
        if last is None or (last.number, last.how) != (number, RUNNING):
            raise Violation("call before intent", f"{self._ledger}: {place} call {number}, {last}")

    def made(self, place: Place, number: int, value: bytes) -> None:
        self._made[place, number] = value

    def intended(self, record: EffectIntended, *, private: bool) -> None:
        """Take an intent: it must be what the handler wants, and allowed."""
        place = (record.topic_id, record.offset)
        wish = wish_of(record.key.encode(), replayed=private)
        if wish is None or wish.policy != record.policy:
            raise Violation("effect unwanted", f"{self._ledger}: {record}, {wish}")
        last = self.last.get(place)
        if record.number != (last.number if last else 0) + 1:
            raise Violation("effect numbers", f"{self._ledger}: {record} after {last}")
        if last is not None and last.how in RESULTS:
            raise Violation("effect twice", f"{self._ledger}: {record} after {last}")
        if last is not None and last.how in UNRESOLVED and record.policy != RETRY:
            raise Violation("effect unasked", f"{self._ledger}: {record} after {last}")
        self.last[place] = Last(record.number, record.policy, record.epoch)

    def ended(self, record: EffectEnded, name: str) -> None:
        """Take an outcome of the call `name`: it must be true."""
        place = (record.topic_id, record.offset)
        last = self.last.get(place)
        if last is None or last.number != record.number or last.how not in UNRESOLVED:
            raise Violation("effect numbers", f"{self._ledger}: {record} after {last}")
        if record.how == RETURNED and self._made.get((place, record.number)) != record.value:
            raise Violation("effect never made", f"{self._ledger}: {record}")
        if record.how in {ANSWERED, AGAIN}:
            order = order_about(name)
            if (order.how, order.value) != (record.how, record.value) or last.policy != ASK:
                raise Violation("effect never ordered", f"{self._ledger}: {record}")
        last.how, last.policy, last.value = record.how, record.policy, record.value

    def result_of(self, place: Place) -> bytes:
        """Return the recorded result of a message that is handled. Raises Violation."""
        last = self.last.get(place)
        if last is None or last.how not in RESULTS:
            raise Violation("effect left out", f"{self._ledger}: {place} with {last}")
        return last.value

    def parks(self, place: Place) -> bool:
        """Whether a message may be parked because the outcome of its call is unknown."""
        last = self.last.get(place)
        return last is not None and last.how in UNRESOLVED and last.policy == PARK

    def passed(self, topic_id: bytes, next_offset: int) -> None:
        """A commit passes messages: none of them may wait for an operator."""
        for place in [p for p in self.last if p[0] == topic_id and p[1] < next_offset]:
            last = self.last.pop(place)
            if last.how in UNRESOLVED and last.policy == ASK:
                raise Violation("passed unasked", f"{self._ledger}: {place} with {last}")

    def forgotten(self, topic_id: bytes, next_offset: int) -> None:
        """An operator's skip also resolves the effects of the messages that it passes over."""
        for place in [p for p in self.last if p[0] == topic_id and p[1] < next_offset]:
            del self.last[place]

    def held(self, epoch: int) -> Iterator[tuple[Place, Last]]:
        """Yield what an operator would speak about while `epoch` owns the partition."""
        for place, last in self.last.items():
            gone = last.how == RUNNING and last.epoch < epoch
            if last.policy == ASK and (last.how == UNKNOWN or gone):
                yield place, last

    def differs(self, found: dict[Place, tuple[int, str, str, bytes]]) -> bool:
        mine = {p: (one.number, one.policy, one.how, one.value) for p, one in self.last.items()}
        return mine != found


def name_of(place: tuple[str, str, int], topic: str, offset: int, number: int) -> str:
    return effect_id(place[0], topic, place[2], offset, NAME, number)
