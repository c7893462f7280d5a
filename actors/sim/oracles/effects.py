"""Effects of simulated handlers: a world outside that remembers each call, and what may be recorded.

Which message calls it, under which policy, and how its first call ends follows from the message
alone: it returns, raises, says that nothing happened, or its process dies in it. Later calls return.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

from ...codec.values import BYTES
from ...core.consumer.effect_work import (
    CALL,
    RECORDED,
    STALE,
    EffectAnswer,
    EffectOrder,
    EffectTold,
    EffectWanted,
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
from ...core.consumer.work import HELD_EFFECT, RAISED, REJECTED, UNKNOWN_EFFECT, RunHandler
from ...ids import effect_id
from ...records import EffectEnded, EffectIntended
from ..processes.handler import fate_of
from ..trace import Violation

if TYPE_CHECKING:
    from ..processes.consumer import SimConsumer

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
    """Return the effect that a message has, if any."""
    weight = crc32(b"bank" + identity) >> 3
    if weight % 3 or fate_of(identity, replayed=replayed) == REJECTED:
        return None
    policy = (ASK, ASK, PARK, RETRY)[weight // 3 % 4]
    first = (RETURNED, RETURNED, DIED, "raised", NOT_DONE)[weight // 12 % 5]
    return Wish(policy, first)


def order_about(name: str) -> EffectOrder:
    """Return what every operator says about one call: always the same."""
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
        """A call returned."""
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
        """Whether a message may be parked because nobody knows what became of its call."""
        last = self.last.get(place)
        return last is not None and last.how in UNRESOLVED and last.policy == PARK

    def passed(self, topic_id: bytes, next_offset: int) -> None:
        """A commit passes messages: nobody may wait for an operator."""
        for place in [p for p in self.last if p[0] == topic_id and p[1] < next_offset]:
            last = self.last.pop(place)
            if last.how in UNRESOLVED and last.policy == ASK:
                raise Violation("passed unasked", f"{self._ledger}: {place} with {last}")

    def forgotten(self, topic_id: bytes, next_offset: int) -> None:
        """An operator has the group pass over messages: that is a word about their effects too."""
        for place in [p for p in self.last if p[0] == topic_id and p[1] < next_offset]:
            del self.last[place]

    def held(self, epoch: int) -> Iterator[tuple[Place, Last]]:
        """Yield what an operator would speak about while `epoch` owns the partition."""
        for place, last in self.last.items():
            gone = last.how == RUNNING and last.epoch < epoch
            if last.policy == ASK and (last.how == UNKNOWN or gone):
                yield place, last

    def differs(self, found: dict[Place, tuple[int, str, str, bytes]]) -> bool:
        """Tell whether a recovered ledger has other effects."""
        mine = {p: (one.number, one.policy, one.how, one.value) for p, one in self.last.items()}
        return mine != found


class Blocked(Exception):
    """The handler waits for an answer or for the world outside: the run goes on later."""


class RunEffects:
    """The effects of one handler run of a shell."""

    def __init__(self, shell: SimConsumer, run: RunHandler, topic: str) -> None:
        self._shell = shell
        self._run = run
        ids = {one.topic: one.topic_id for one in shell.world.oracle.topics}
        self._topic_id = ids[topic]
        self._model = shell.world.ledger_oracle(shell).effects
        # By offset: the result, or the kind of failure that a message of the run ends in.
        self._results: dict[int, bytes] = {}
        self._failures: dict[int, str] = {}
        # What is waited for: the answer to the question, or the end of the call.
        self._asked: tuple[int, Wish] | None = None
        self._calling: int | None = None

    def of_message(self, identity: bytes, offset: int) -> tuple[str, bytes | None]:
        """Return how the effect of a message ended: DIED, a kind of failure, or "" and its result.

        The result is None where it has no effect. Raises Blocked.
        """
        wish = wish_of(identity, replayed=self._run.private)
        if self._model is None or wish is None:
            return "", None
        if self._calling is not None and self._end_call(self._model, identity, offset, wish):
            return DIED, None
        if offset in self._failures:
            return self._failures[offset], None
        if offset not in self._results:
            self._asked = (offset, wish)
            run, key = self._run, identity.decode(errors="replace")
            self._shell.post(
                EffectWanted(
                    run.epoch, run.first_offset, run.private, offset, key, NAME, wish.policy
                )
            )
            raise Blocked
        return "", self._results[offset]

    def answered(self, answer: EffectAnswer) -> int | None:
        """Take an answer; return in how many milliseconds the run goes on, None: not for this."""
        if self._asked is None or self._asked[0] != answer.offset or answer.verdict == STALE:
            return None
        (offset, wish), self._asked = self._asked, None
        if answer.verdict == CALL:
            assert self._model is not None, "somebody asked"
            self._model.call((self._topic_id, offset), answer.number)
            self._calling = answer.number
            return int(self._shell.rng.expovariate(1 / CALL_MEAN_MS))
        if answer.verdict == RECORDED:
            self._results[offset] = answer.value
        else:
            self._failures[offset] = HELD_EFFECT if wish.policy == ASK else UNKNOWN_EFFECT
        return 0

    def _end_call(self, model: EffectModel, identity: bytes, offset: int, wish: Wish) -> bool:
        """The time of the call is over; return whether its process died in it."""
        number, self._calling = self._calling, None
        assert number is not None, "a call has a number"
        how = wish.first if number == 1 else RETURNED
        if how == DIED:
            return True
        value = b""
        if how == RETURNED:
            value = b"result %d of %s" % (number, identity)
            model.made((self._topic_id, offset), number, value)
            self._results[offset] = value
        elif how == NOT_DONE or wish.policy == RETRY:
            self._failures[offset] = RAISED
        else:
            self._failures[offset] = HELD_EFFECT if wish.policy == ASK else UNKNOWN_EFFECT
        how = UNKNOWN if how == "raised" else how
        run = self._run
        where = (run.epoch, run.first_offset, run.private, offset)
        self._shell.post(EffectTold(*where, NAME, number, how, BYTES, value))
        return False


def name_of(place: tuple[str, str, int], topic: str, offset: int, number: int) -> str:
    """Return how a call in a topic is named: `place` is that of the ledger."""
    return effect_id(place[0], topic, place[2], offset, NAME, number)
