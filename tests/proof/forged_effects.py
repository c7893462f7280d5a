"""Ledgers whose effects break a promise, each made by hand: (forge, the check that says so)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oncemq.records import EffectEnded, EffectIntended, Skipped
from tests.proof.golden import Broker, Consumer, explicit, put, topic_id

AT = 7  # the next offset of the shop


def intend(consumer: Consumer, number: int = 1, **more: Any) -> None:
    record = EffectIntended(
        more.get("epoch", consumer.epoch),
        topic_id("orders"),
        more.get("offset", AT),
        "billing@orders:s:o-4",
        "charge",
        number,
        more.get("policy", "ask"),
        1_000,
    )
    put(consumer.log, record)


def end(consumer: Consumer, how: str, number: int = 1, policy: str = "ask", **more: Any) -> None:
    epoch = more.get("epoch", consumer.epoch)
    place = (epoch, topic_id("orders"), AT, "charge", number)
    put(consumer.log, EffectEnded(*place, how, policy, 0, b"why", 2_000))


def _passed_unasked(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    consumer.commit(8, ["o-4"])


def _passed_unknown(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    end(consumer, "unknown")
    consumer.commit(8, ["o-4"])


def _called_unasked(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    end(consumer, "unknown")
    intend(consumer, 2)


def _called_though_recorded(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    end(consumer, "returned")
    intend(consumer, 2, policy="retry")


def _call_number_skipped(broker: Broker, consumer: Consumer) -> None:
    intend(consumer, 2)


def _never_intended(broker: Broker, consumer: Consumer) -> None:
    end(consumer, "returned")


def _ended_twice(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    end(consumer, "returned")
    end(consumer, "answered")


def _strange_end(broker: Broker, consumer: Consumer) -> None:
    intend(consumer)
    end(consumer, "perhaps")


def _zombie_intent(broker: Broker, consumer: Consumer) -> None:
    intend(consumer, epoch=1)


def _effect_of_what_is_passed(broker: Broker, consumer: Consumer) -> None:
    intend(consumer, offset=AT - 1)


FORGED: list[tuple[Callable[[Broker, Consumer], None], str]] = [
    (forge, "P10-effects")
    for forge in (
        _passed_unasked,
        _passed_unknown,
        _called_unasked,
        _called_though_recorded,
        _call_number_skipped,
        _never_intended,
        _ended_twice,
        _strange_end,
        _zombie_intent,
        _effect_of_what_is_passed,
    )
]


def life(consumer: Consumer) -> None:
    """Everything that may happen to an effect, one message after the other; nothing is wrong."""
    intend(consumer)
    end(consumer, "not_done")
    intend(consumer, 2)
    end(consumer, "unknown", 2)
    end(consumer, "again", 2)
    intend(consumer, 3, policy="retry")
    intend(consumer, 4, policy="retry")
    end(consumer, "unknown", 4, "park")
    end(consumer, "unknown", 4, "ask")
    end(consumer, "answered", 4)
    consumer.commit(8, ["o-4"])


def skipped(broker: Broker, consumer: Consumer) -> None:
    """An operator passes over a message whose effect is unknown: that is their word."""
    broker.store("orders", explicit("o-5"))
    intend(consumer)
    consumer.commit(8, [], skipped=[Skipped(topic_id("orders"), AT, 8, "by hand")])
