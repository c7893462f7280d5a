"""Effects in a test: which ones are held, and an operator's word about them."""

from __future__ import annotations

from typing import Any

from ...codec.values import encode_value
from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.open_effects import AGAIN, ANSWERED
from ...errors import NoSuchEffect
from ...shells.ledger.files import ledger_directory
from ...shells.ledger.orders import give_order
from ..sinks.operators import open_office
from .system import STATE, LocalSystem


class HarnessEffects:
    """What `oncemq effects` does, for the consumers of a harness."""

    __slots__ = ("_system",)

    def __init__(self, system: LocalSystem) -> None:
        self._system = system

    @property
    def held(self) -> list[str]:
        """The ids of the effects that hold a partition, in order of group, topic, partition."""
        return self._system.held()

    def done(self, effect_id: str, value: Any) -> None:
        """The call happened, and this is its result: the handler gets it in the next `drain`.

        Raises NoSuchEffect, ValueNotEncodable.
        """
        self._order(EffectOrder(effect_id, ANSWERED, *encode_value(value)))

    def retry(self, effect_id: str) -> None:
        """The call did not happen: the next `drain` makes it again. Raises NoSuchEffect."""
        self._order(EffectOrder(effect_id, AGAIN))

    def _order(self, order: EffectOrder) -> None:
        for place, actor in self._system.actors.items():
            if order.effect_id in self._system.holding(actor):
                self._system.resolved.add(order.effect_id)
                sink = actor.consumer.sink
                if sink is None:
                    give_order(self._system.disk, ledger_directory(STATE, *place), order)
                else:
                    with open_office(sink) as office:
                        office.give(place, order)
                return
        raise NoSuchEffect(f"effect {order.effect_id!r} does not hold a partition")
