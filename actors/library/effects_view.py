"""Effects whose outcome is unknown, as an operator sees them, and the operator's word about them.

What is known stands in the ledgers on this machine; who owns which of them, the broker knows. A call
that an owner that lives may still be at is *running*, and nobody can say what became of it yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..codec.values import decode_value
from ..core.effect_work import EffectOrder
from ..core.effects import DIED, id_in
from ..core.open_effects import ANSWERED, ASK, UNKNOWN, OpenEffect
from ..errors import OnceMQError, TooLarge
from ..ids import private_topic
from ..limits import EFFECT_RESULT_BYTES_MAX
from ..runtime.os_disk import OsDisk
from ..storage.creation import hold_lock
from ..storage.disk import Disk
from ..storage.layout import generations
from .admin import AdminClient
from .effect_errors import EffectNotHeld, NoSuchEffect
from .effect_orders import find_orders, give_order
from .ledger_reader import read_ledger

RUNNING = "running"  # its call is under way, as far as anybody knows
RESOLVED = "resolved"  # an operator has spoken, and the consumer has not taken it yet


@dataclass(frozen=True, slots=True)
class EffectState:
    """One effect without a result."""

    id: str
    group: str
    topic: str
    partition: int
    offset: int
    name: str
    message: str  # idempotency key of the message
    state: str  # running | unknown | resolved
    policy: str
    calls: int  # how often it may have been called
    since_ms: int  # when the last call was intended
    why: str  # why its outcome is unknown
    order: str  # what an operator has said: answered | again
    directory: str  # of the ledger

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON carries it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Place:
    """A ledger, and who owns it as far as the broker knows."""

    place: tuple[str, str, int]
    epoch: int
    directory: str
    live: bool


class OpenEffectsView:
    """The effects without a result in the ledgers on this machine. Not thread-safe."""

    def __init__(self, client: AdminClient, *, host: str) -> None:
        """Ask the broker of `client` for the ledgers; those on `host` are read."""
        self._client = client
        self._host = host
        self._disk: Disk = OsDisk()
        #: Ledgers that lie on other machines, as group, topic, partition, host.
        self.elsewhere: list[tuple[str, str, int, str]] = []

    def load(self, group: str | None = None) -> list[EffectState]:
        """Return all, or those of one group. Raises NoAnswer, CorruptLog, StorageError."""
        found: list[EffectState] = []
        for where in self._ledgers(group):
            found += self._look(where)
        return found

    def resolve(self, effect_id: str, how: str, result: tuple[int, bytes] = (0, b"")) -> bool:
        """Say what became of one call; return whether it was said before.

        `how` is ANSWERED, with the `result` that the handler gets, or AGAIN. It is durable when this
        returns; the owner of the partition takes it, now or at its next start. Raises NoSuchEffect,
        EffectNotHeld, TooLarge, LogInUse, NoAnswer.
        """
        encoding, value = result
        if len(value) > EFFECT_RESULT_BYTES_MAX:
            raise TooLarge(
                f"a result of {len(value)} bytes, the limit is {EFFECT_RESULT_BYTES_MAX}"
            )
        group = effect_id.partition(":")[0]
        known = next((one for one in self.load(group) if one.id == effect_id), None)
        if known is None:
            raise NoSuchEffect(f"no effect {effect_id!r} is without a result on this machine")
        if known.state == RUNNING:
            raise EffectNotHeld(f"effect {effect_id} is being called right now")
        if known.policy != ASK:
            raise EffectNotHeld(
                f"effect {effect_id} waits for nobody: its policy is {known.policy}"
            )
        order = EffectOrder(effect_id, how, encoding, value)
        standing = give_order(self._disk, known.directory, order)
        if standing != order:
            what = "called again"
            if standing.how == ANSWERED:
                what = f"done, {decode_value(standing.encoding, standing.value)!r}"
            raise EffectNotHeld(f"effect {effect_id} was resolved before: {what}; that stands")
        return known.state == RESOLVED

    def _ledgers(self, group: str | None) -> Iterator[_Place]:
        for of, topic, partition, epoch, _, host, path, live in self._client.groups().groups:
            if group not in {None, of}:
                continue
            if host == self._host:
                yield _Place((of, topic, partition), epoch, path, live)
            else:
                self.elsewhere.append((of, topic, partition, host))

    def _look(self, where: _Place) -> Iterator[EffectState]:
        if not generations(self._disk, where.directory):
            return  # the ledger is in a database, and its handlers have no effects
        try:
            ledger = read_ledger(self._disk, where.directory)
        except FileNotFoundError as error:
            raise OnceMQError(f"the ledger in {where.directory} is being taken away") from error
        group, topic, _ = where.place
        private = private_topic(topic, group)
        for one in ledger.effects:
            if not one.unresolved:
                continue
            name = id_in(ledger, where.place, private, one)
            orders = find_orders(self._disk, where.directory, [name])
            state = RESOLVED if orders else self._state_of(one, where)
            why = (one.value or DIED).decode(errors="replace")
            mine = ledger.started is not None and one.topic_id == ledger.started.topic_id
            yield EffectState(
                name,
                group,
                topic if mine else private,
                where.place[2],
                one.offset,
                one.name,
                one.key,
                state,
                one.policy,
                one.number,
                one.since_ms,
                "" if state == RUNNING else why,
                orders[0].how if orders else "",
                where.directory,
            )

    def _state_of(self, one: OpenEffect, where: _Place) -> str:
        if one.how == UNKNOWN or not where.live or one.epoch != where.epoch:
            return UNKNOWN
        lock = hold_lock(self._disk, where.directory)
        if lock is None:
            return RUNNING
        lock.release()
        return UNKNOWN  # its owner is dead, though its lease still runs
