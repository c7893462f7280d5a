"""What `Harness.assert_exactly_once` looks at besides the user's own assertions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from ...ids import output_producer
from ...shells.broker import BrokerShell
from ..consuming.actor import ConsumerActor
from .actors import stored_batches
from .outside_effects import KINDS, OutsideEffect

_SHOWN_MAX = 10


def check_kinds(allow: Collection[str]) -> None:
    """Raises ValueError for a kind of effect that does not exist."""
    for kind in allow:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of effect {kind!r}; known: {', '.join(KINDS)}")


def complaints(
    broker: BrokerShell,
    actors: Mapping[tuple[str, str, int], ConsumerActor],
    effects: list[OutsideEffect],
    allow: Collection[str],
) -> Iterator[str]:
    """Yield what speaks against exactly-once, as sentences."""
    for place, actor in sorted(actors.items()):
        yield from _of_input(broker, place, actor)
        yield from _of_outputs(broker, place, actor)
    bad = list(dict.fromkeys(str(effect) for effect in effects if effect.kind not in allow))
    if bad:
        yield (
            "handlers acted outside tx; this happens again when a process dies before the commit. "
            "Use tx instead (tx.state, tx.send), or make the other side accept each tx.key once "
            "and allow these effects: assert_exactly_once(allow=[...])"
        )
        yield from (f"  {line}" for line in bad[:_SHOWN_MAX])
        if len(bad) > _SHOWN_MAX:
            yield f"  and {len(bad) - _SHOWN_MAX} more"


def _of_input(
    broker: BrokerShell, place: tuple[str, str, int], actor: ConsumerActor
) -> Iterator[str]:
    """Every stored message is in the processed set."""
    group, topic, partition = place
    processed = actor.core.ledger.processed
    known = broker.core.state.topics.by_name[topic]
    for stored in stored_batches(broker, known.number):
        batch = stored.batch
        if stored.partition != partition or batch is None:
            continue
        if batch.ids is not None:
            fresh = processed.explicit.fresh(actor.fingerprints(list(batch.ids)), b"")
            done = fresh is not None and not any(fresh)
        else:
            first = stored.first_sequence
            done = all(
                processed.knows_number(stored.producer, first + index)
                for index in range(stored.count)
            )
        if not done:
            yield f"{topic}/{partition} at offset {stored.first_offset}: not processed by {group}"


def _of_outputs(
    broker: BrokerShell, place: tuple[str, str, int], actor: ConsumerActor
) -> Iterator[str]:
    """Every output of the ledger is stored once, under its number."""
    producer = output_producer(*place)
    for (topic, partition), following in sorted(actor.core.ledger.next_sequence.items()):
        known = broker.core.state.topics.by_name[topic]
        numbers = [
            stored.first_sequence + index
            for stored in stored_batches(broker, known.number)
            if stored.producer == producer and stored.partition == partition
            for index in range(stored.count)
        ]
        if numbers != list(range(following)):
            yield (
                f"{topic}/{partition} holds outputs {numbers} of {producer}, the ledger sent "
                f"{following}"
            )
