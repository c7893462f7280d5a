"""Mutants of effects: intents, outcomes, and what is done where nobody knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.consumer.effects import Effects
from oncemq.core.consumer.handling import Handling
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.open_effects import RETURNED, OpenEffects
from oncemq.library.effects.effects import Effects as HandlerEffects
from oncemq.records import EffectEnded
from tests.sim.mutants.table import mutant

# Each seed with effects in play, and processes that die at any moment.
STRIKES = ("effect orders", "kill", "power cut", "call error")
LIBRARY = ("tests/library/effects/test_effects.py",)


def _recorded_first(original: Any) -> Any:
    def broken(self: Any, wanted: Any, topic_id: bytes, number: int, now: int, out: Any) -> None:
        original(self, wanted, topic_id, number, now, out)
        place = (self._epoch, topic_id, wanted.offset, wanted.name, number)
        out.appends.append(EffectEnded(*place, RETURNED, wanted.policy, 0, b"done", now))

    return broken


mutant(
    "effect recorded before the call",
    "a result is written when there is one",
    (Effects, "_intend", _recorded_first),
    faults=STRIKES,
)


def _at_once(original: Any) -> Any:
    def broken(self: Any, wanted: Any, topic_id: bytes, number: int, now: int, out: Any) -> None:
        original(self, wanted, topic_id, number, now, out)
        out.work += out.work_after_sync
        out.work_after_sync.clear()

    return broken


mutant(
    "intent not synced before the call",
    "a power cut in the call leaves the intent",
    (Effects, "_intend", _at_once),
    faults=STRIKES,
)


def _call_if(asked: str) -> Any:
    def change(original: Any) -> Any:
        def broken(self: Any, wanted: Any, topic_id: bytes, now: int, out: Any) -> None:
            known = self._ledger.effects.find(topic_id, wanted.offset, wanted.name)
            if known is not None and getattr(known, asked):
                self._intend(wanted, topic_id, known.number + 1, now, out)
            else:
                original(self, wanted, topic_id, now, out)

        return broken

    return change


mutant(
    "unknown under ask called again",
    "nobody but an operator has a call repeated",
    (Effects, "_wanted", _call_if("unresolved")),
    faults=STRIKES,
)
mutant(
    "recorded result not used",
    "a handler that runs again gets the result of the first call",
    (Effects, "_wanted", _call_if("recorded")),
    faults=STRIKES,
)
mutant(
    "a message is passed while its effect is unknown",
    "under ask no commit passes a message before an operator has spoken",
    (OpenEffects, "barrier", lambda _original: lambda self, topic_id: None),
    faults=STRIKES,
)


def _forgets_effects(original: Any) -> Any:
    def broken(self: Any, parts: dict[str, Any]) -> None:
        fields = {n: v for n, v in parts["ledger"].items() if n != "effects"}
        original(self, {**parts, "ledger": fields})

    return broken


mutant(
    "effects are lost by compaction",
    "snapshots carry the effects of messages that are not committed",
    (Ledger, "restore", _forgets_effects),
    faults=STRIKES,
)


def _any_order(original: Any) -> Any:
    def broken(self: Any, order: Any, now: int, out: Any) -> Any:
        for one in self._ledger.effects:
            if one.unresolved and order.effect_id.rpartition(":")[0] in self.id_of(one):
                order = replace(order, effect_id=self.id_of(one))
        return original(self, order, now, out)

    return broken


mutant(
    "an order counts for a later call of the same effect",
    "an operator speaks about one call, once",
    (Effects, "ordered", _any_order),
    tests=("tests/core/consumer/test_effects.py",),
)


def _nobody_waits(original: Any) -> Any:
    def broken(self: Any, its: Any, offset: int, out: Any) -> None:
        original(self, its, offset, out)
        its.held = False

    return broken


mutant(
    "a held message is called again and again",
    "a message waits for an operator, its process does not spin",
    (Handling, "_hold", _nobody_waits),
    tests=("tests/core/consumer/test_effects.py",),
)


def _told_first(original: Any) -> Any:
    def broken(self: Any, wish: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            wish.effect._end(RETURNED, 0, b"early")
            self._desk.tell(wish.effect.ended)
            return wish.function(*args, **kwargs)

        return original(self, replace(wish, function=function))

    return broken


mutant(
    "the handler's thread tells a result before the call",
    "a process that dies in the call has told nothing",
    (HandlerEffects, "_make", _told_first),
    tests=LIBRARY,
)


def _swallowed(_original: Any) -> Any:
    return lambda self: None


mutant(
    "a handler that swallows the error is committed",
    "whatever a handler makes of it, an unknown effect is not passed",
    (HandlerEffects, "accept", _swallowed),
    tests=LIBRARY,
)
