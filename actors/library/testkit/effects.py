"""Effects in a test: which ones are held, and an operator's word about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...codec.values import encode_value
from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.open_effects import AGAIN, ANSWERED
from ...errors import EffectUnknown, NoSuchEffect
from ...storage.disk import Disk
from ..consuming.actor import ConsumerActor
from ..ledgers.files import ledger_directory
from ..ledgers.orders import give_order
from ..sinks.operators import open_office

Actors = Mapping[tuple[str, str, int], ConsumerActor]


class HarnessEffects:
    """What `oncemq effects` does, for the consumers of a harness."""

    def __init__(self, disk: Disk, state: str, actors: Actors) -> None:
        """Their ledgers are below `state`."""
        self._disk = disk
        self._state = state
        self._actors = actors
        self._ordered: set[str] = set()  # what somebody has spoken about; no id comes twice

    @property
    def held(self) -> list[str]:
        """The ids of the effects that hold a partition, in order of group, topic, partition."""
        return [one for _, actor in sorted(self._actors.items()) for one in self.holding(actor)]

    def holding(self, actor: ConsumerActor) -> list[str]:
        """Return the effects that hold the partition of one consumer until somebody speaks."""
        return [one for one in actor.core.held_effects if one not in self._ordered]

    def done(self, effect_id: str, value: Any) -> None:
        """The call happened, and this is its result: the handler gets it in the next `drain`.

        Raises NoSuchEffect, ValueNotEncodable.
        """
        self._order(EffectOrder(effect_id, ANSWERED, *encode_value(value)))

    def retry(self, effect_id: str) -> None:
        """The call did not happen: the next `drain` makes it again. Raises NoSuchEffect."""
        self._order(EffectOrder(effect_id, AGAIN))

    def _order(self, order: EffectOrder) -> None:
        for place, actor in self._actors.items():
            if order.effect_id in self.holding(actor):
                self._ordered.add(order.effect_id)
                sink = actor.consumer.sink
                if sink is None:
                    give_order(self._disk, ledger_directory(self._state, *place), order)
                else:
                    with open_office(sink) as office:
                        office.give(place, order)
                return
        raise NoSuchEffect(f"effect {order.effect_id!r} does not hold a partition")

    def check(self) -> None:
        """Raise EffectUnknown if a partition is held."""
        held = self.held
        if held:
            raise EffectUnknown(
                f"unknown whether effect {held[0]} happened",
                hint="resolve it: harness.effects.done(ID, VALUE) or harness.effects.retry(ID)",
            )
