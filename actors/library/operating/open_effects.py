"""Effects whose outcome is unknown, as an operator sees them, and the operator's orders about them.

The ledgers, on this machine or in a database, hold what is known of an effect; the broker knows the
owners of the ledgers. A call that a living owner may still be making is *running*: its outcome is
open, so no order about it is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from ...codec.values import decode_value
from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.effects import DIED, id_in
from ...core.consumer.ledger import Ledger
from ...core.consumer.open_effects import ANSWERED, ASK, UNKNOWN, OpenEffect
from ...errors import EffectNotHeld, NoSuchEffect, OnceMQError, TooLarge
from ...ids import IN_DATABASE, private_topic
from ...limits import EFFECT_RESULT_BYTES_MAX
from ...runtime.os_disk import OsDisk
from ...runtime.process import owner_facts
from ...shells.ledger.files import proves_owner_dead
from ...shells.ledger.orders import find_orders, give_order
from ...storage.creation import hold_lock
from ...storage.disk import Disk
from ...storage.layout import generations
from ...storage.view import read_latest
from ..ledgers.reader import read_ledger
from ..sinks.operators import SinkOffice
from .client import AdminClient

RUNNING = "running"  # the call may be under way in a living owner
RESOLVED = "resolved"  # an operator has given an order, which the consumer has not taken yet


@dataclass(frozen=True, slots=True)
class EffectState:
    """An effect without a result."""

    id: str
    group: str
    topic: str
    partition: int
    offset: int
    name: str
    message: str  # idempotency key of the message
    state: str  # running | unknown | resolved
    policy: str
    calls: int  # calls that may have happened
    since_ms: int  # time of the last intent
    why: str  # why the outcome is unknown
    order: str  # of an operator: answered | again; "" without one
    directory: str  # of the ledger, or the database

    @property
    def key(self) -> str:
        """The idempotency key of the effect, which `tx.effect_key` gave to the remote service."""
        return f"{self.message}:{self.name}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "key": self.key}


class Home(Protocol):
    """The place of one ledger: a directory or a database."""

    def read(self) -> Ledger | None:
        """Return the ledger; None if it is not here. Raises CorruptLog."""

    def ordered(self, effect_id: str) -> EffectOrder | None:
        """None once the owner has taken the order."""

    def give(self, order: EffectOrder) -> EffectOrder:
        """Leave an order durably; return the order that stands."""

    def owner_is_dead(self) -> bool:
        """Whether the last owner is proved dead."""


class _Files:
    """A ledger in a directory."""

    def __init__(self, directory: str) -> None:
        self._disk: Disk = OsDisk()
        self._directory = directory

    def read(self) -> Ledger | None:
        if not generations(self._disk, self._directory):
            return None
        try:
            return read_ledger(self._disk, self._directory)
        except FileNotFoundError as error:
            raise OnceMQError(f"the ledger in {self._directory} is being removed") from error

    def ordered(self, effect_id: str) -> EffectOrder | None:
        found = find_orders(self._disk, self._directory, [effect_id])
        return found[0] if found else None

    def give(self, order: EffectOrder) -> EffectOrder:
        return give_order(self._disk, self._directory, order)

    def owner_is_dead(self) -> bool:
        """Also False while a generation comes or goes: the operator asks again."""
        lock = hold_lock(self._disk, self._directory)
        if lock is None:
            return False
        try:
            view = read_latest(self._disk, self._directory)
            numbers = generations(self._disk, self._directory)
            return view is not None and proves_owner_dead(
                self._disk, self._directory, lock, view.manifest, numbers, owner_facts()
            )
        finally:
            lock.release()


class _Tables:
    """A ledger in a database."""

    def __init__(self, office: SinkOffice, place: tuple[str, str, int], ledger: Ledger) -> None:
        self._office, self._place, self._ledger = office, place, ledger

    def read(self) -> Ledger | None:
        return self._ledger

    def ordered(self, effect_id: str) -> EffectOrder | None:
        orders = self._office.orders(self._place)
        return next((order for order in orders if order.effect_id == effect_id), None)

    def give(self, order: EffectOrder) -> EffectOrder:
        return self._office.give(self._place, order)

    def owner_is_dead(self) -> bool:
        return self._office.owner_is_dead(self._place)


@dataclass(frozen=True, slots=True)
class _Place:
    """A ledger, and its owner as far as the broker knows."""

    place: tuple[str, str, int]
    epoch: int  # of the last grant
    path: str
    live: bool  # whether the lease of that grant still runs
    home: Home


class OpenEffectsView:
    """The effects without a result in ledgers that can be read here. Not thread-safe."""

    def __init__(self, client: AdminClient, *, host: str, office: SinkOffice | None = None) -> None:
        """Ask the broker of `client` for the ledgers; those on `host` are read.

        With `office` those in its database are read, and no others.
        """
        self._client = client
        self._host = host
        self._office = office
        #: Ledgers that lie on other machines, as group, topic, partition, host.
        self.elsewhere: list[tuple[str, str, int, str]] = []
        #: Databases that hold ledgers, which are not read without `office`.
        self.databases: list[str] = []

    def load(self, group: str | None = None) -> list[EffectState]:
        """Return all effects without a result, or those of one group.

        Raises NoAnswer, CorruptLog, StorageError, SinkUnavailable.
        """
        return [state for _, state in self._all(group)]

    def resolve(self, effect_id: str, how: str, result: tuple[int, bytes] = (0, b"")) -> bool:
        """Give an order about a call; return whether the same order was given before.

        `how` is ANSWERED, with the `result` that the handler gets, or AGAIN. The order is durable
        when this returns; the owner of the partition takes it, now or at its next start. Raises
        NoSuchEffect, EffectNotHeld, TooLarge, LogInUse, SinkLocked, NoAnswer.
        """
        encoding, value = result
        if len(value) > EFFECT_RESULT_BYTES_MAX:
            raise TooLarge(
                f"the result has {len(value)} bytes, the limit is {EFFECT_RESULT_BYTES_MAX}",
                hint="give a shorter result, an address of it for example",
            )
        group = effect_id.partition(":")[0]
        found = [(home, known) for home, known in self._all(group) if known.id == effect_id]
        if not found:
            where = "on this machine" if self._office is None else f"in {self._office.path}"
            raise NoSuchEffect(f"there is no effect {effect_id!r} without a result {where}")
        [(home, known)] = found
        if known.state == RUNNING:
            raise EffectNotHeld(f"effect {effect_id} is running right now")
        if known.policy != ASK:
            raise EffectNotHeld(
                f"effect {effect_id} does not wait for an operator: its policy is {known.policy}"
            )
        order = EffectOrder(effect_id, how, encoding, value)
        standing = home.give(order)
        if standing != order:
            what = "called again"
            if standing.how == ANSWERED:
                what = f"done, {decode_value(standing.encoding, standing.value)!r}"
            raise EffectNotHeld(f"effect {effect_id} is already resolved: {what}")
        return known.state == RESOLVED

    def _all(self, group: str | None) -> Iterator[tuple[Home, EffectState]]:
        places = self._ledgers if self._office is None else partial(self._tables, self._office)
        for where in places(group):
            for state in self._look(where):
                yield where.home, state

    def _ledgers(self, group: str | None) -> Iterator[_Place]:
        for owner, topic, partition, epoch, _, host, path, live in self._client.groups().groups:
            if group not in {None, owner}:
                continue
            if path.endswith(IN_DATABASE):
                shown = path.removesuffix(IN_DATABASE)
                if shown not in self.databases:
                    self.databases.append(shown)
            elif host == self._host:
                yield _Place((owner, topic, partition), epoch, path, live, _Files(path))
            else:
                self.elsewhere.append((owner, topic, partition, host))

    def _tables(self, office: SinkOffice, group: str | None) -> Iterator[_Place]:
        granted = {row[:3]: row for row in self._client.groups().groups if row[6] == office.path}
        for place, ledger in list(office.ledgers(group)):
            row = granted.get(place)
            epoch, live = (row[3], row[7]) if row is not None else (0, False)
            yield _Place(place, epoch, office.path, live, _Tables(office, place, ledger))

    def _look(self, where: _Place) -> Iterator[EffectState]:
        ledger = where.home.read()
        group, topic, _ = where.place
        private = private_topic(topic, group)
        for effect in () if ledger is None else ledger.effects:
            if ledger is None or not effect.unresolved:
                continue
            name = id_in(ledger, where.place, private, effect)
            order = where.home.ordered(name)
            state = RESOLVED if order is not None else self._state_of(effect, where)
            why = (effect.value or DIED).decode(errors="replace")
            mine = ledger.started is not None and effect.topic_id == ledger.started.topic_id
            yield EffectState(
                name,
                group,
                topic if mine else private,
                where.place[2],
                effect.offset,
                effect.name,
                effect.key,
                state,
                effect.policy,
                effect.number,
                effect.since_ms,
                "" if state == RUNNING else why,
                order.how if order is not None else "",
                where.path,
            )

    def _state_of(self, effect: OpenEffect, where: _Place) -> str:
        # The broker was asked before the ledger was read: an intent of a later epoch is of a newer
        # owner.
        replaced = effect.epoch < where.epoch or (effect.epoch == where.epoch and not where.live)
        if effect.how == UNKNOWN or replaced:
            return UNKNOWN
        # A dead owner's lease may still run.
        return UNKNOWN if where.home.owner_is_dead() else RUNNING
