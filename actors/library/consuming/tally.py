"""What a consumer process has done, also in partitions that it has given back since."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .actor import ConsumerActor


@dataclass(slots=True)
class Summary:
    """What a consumer process did: the last line of its output."""

    processed: int = 0
    skipped: int = 0
    parked: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    parked_in: set[str] = field(default_factory=set)  # topics
    held: list[str] = field(default_factory=list)  # effects that partitions wait for a word about

    def as_dict(self) -> dict[str, object]:
        summary: dict[str, object] = {
            "processed": self.processed,
            "skipped": self.skipped,
            "parked": self.parked,
            "offsets": dict(sorted(self.offsets.items())),
        }
        return {**summary, "held": self.held} if self.held else summary

    def waiting(self) -> str:
        """Return what a person has to look at, and with which command; empty if there is nothing."""
        parts = []
        if self.parked:
            letters = (
                "1 message was parked"
                if self.parked == 1
                else f"{self.parked:,} messages were parked"
            )
            parts.append(f"{letters} in this run ({self._list_letters()})")
        if self.held:
            effects = (
                "1 effect is held"
                if len(self.held) == 1
                else f"{len(self.held):,} effects are held"
            )
            parts.append(f"{effects} (oncemq effects list)")
        return "; ".join(parts)

    def _list_letters(self) -> str:
        topics = " or --topic ".join(map(shlex.quote, sorted(self.parked_in)))
        return f"oncemq dlq list --topic {topics}"

    def take(self, actor: ConsumerActor) -> None:
        """Add what one actor did. A partition that it never owned has no offset here."""
        core = actor.core
        self.processed += core.processed
        self.skipped += core.skipped
        self.parked += core.parked
        if core.parked:
            self.parked_in.add(actor.place[1])
        if core.ledger.started is not None:
            _, topic, partition = actor.place
            self.offsets[f"{topic}/{partition}"] = core.ledger.next_offset


class Tally:
    """Sums over all actors of a process, those that made room for another included."""

    def __init__(self) -> None:
        self._past = Summary()

    def retire(self, actor: ConsumerActor) -> None:
        """Keep what an actor did that has ended; call it once, before it is forgotten."""
        self._past.take(actor)

    def summary(self, actors: Iterable[ConsumerActor]) -> Summary:
        past = self._past
        total = replace(past, offsets=dict(past.offsets), parked_in=set(past.parked_in), held=[])
        for actor in actors:
            total.take(actor)
            total.held += actor.core.held_effects
        return total
