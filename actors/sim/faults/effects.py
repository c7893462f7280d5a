"""What operators say about effects of unknown outcome, whether anybody listens or not.

Where this fault is in a plan, handlers have effects at all (oracles/effects.py).
"""

from __future__ import annotations

from ...errors import LogInUse
from ...shells.ledger.orders import give_order
from ..oracles.effects import name_of, order_about
from ..oracles.ledger import LedgerOracle
from .base import Fault

HEALED_MS = 1_000  # how often they look once all is mended


class EffectOrders(Fault):
    """An operator resolves an effect that nobody knows the outcome of, perhaps twice."""

    name = "effect orders"

    def strike(self) -> bool:
        chosen = self._held()
        return bool(chosen) and self._give(*self.rng.choice(chosen))

    def heal(self) -> None:
        for one in self._held():
            self._give(*one)
        self.world.after(HEALED_MS, self.heal)

    def _held(self) -> list[tuple[LedgerOracle, str]]:
        world = self.world
        found = []
        topics = {one.topic_id: one.topic for one in world.oracle.topics}
        for place, grant in sorted(world.oracle.grants.items()):
            model = world.ledgers.get((grant.host, grant.path))
            if model is None or model.effects is None:
                continue
            for (topic_id, offset), last in model.effects.held(grant.epoch):
                found.append((model, name_of(place, topics[topic_id], offset, last.number)))
        return found

    def _give(self, model: LedgerOracle, name: str) -> bool:
        world = self.world
        key = next(key for key, one in world.ledgers.items() if one is model)
        host = next(host for host in world.hosts if host.name == key[0])
        process = host.disk.process("operator")
        try:
            give_order(process, key[1], order_about(name))
        except (LogInUse, OSError):
            return False
        finally:
            process.kill()
        return True
