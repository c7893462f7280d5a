"""Which message a story is about, the story itself, and what events add to it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import Any

from ..checks.evidence import Event, History

EVENTS_SHOWN_MAX = 200
_SEQUENCE = re.compile(r"(?P<topic>[^/]+)/(?P<producer>.+):(?P<partition>\d+):(?P<number>\d+)\Z")


@dataclass(slots=True)
class Story:
    """What is known of one message."""

    message_id: str
    topic: str
    # Where it is stored: partition, offset, position, appended_at_ms, producer, key, value ...
    accepted: dict[str, Any] | None = None
    # Per group: committed, pending or before the group's start; with the commit and its outputs.
    groups: list[dict[str, Any]] = field(default_factory=list)
    # What processes told, oldest first: {"ts_ns", "process", "what", "event", "fields"}.
    events: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "topic": self.topic,
            "accepted": self.accepted,
            "groups": self.groups,
            "events": self.events,
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """The message that is looked for."""

    topic: str
    tagged: frozenset[bytes]  # as an explicit id
    producer: str  # as a sequence id; "" if it is none
    partition: int
    number: int


def wanted_message(message_id: str, topic: str) -> Wanted:
    """Return all readings of an id as it was shown or given."""
    tagged = {b"s" + message_id.encode(), b"b" + message_id.encode()}
    if message_id.startswith("0x"):
        with contextlib.suppress(ValueError):  # it may be text that only looks like hexadecimal
            tagged.add(b"b" + bytes.fromhex(message_id[2:]))
    match = _SEQUENCE.match(message_id)
    if match is None or match["topic"] != topic:
        return Wanted(topic, frozenset(tagged), "", 0, -1)
    partition, number = int(match["partition"]), int(match["number"])
    return Wanted(topic, frozenset(tagged), match["producer"], partition, number)


_MEANING = {
    "message.appended": "accepted",
    "message.duplicate": "duplicate: answered with the original offset",
    "id.conflict": "refused: the id is stored with another body",
    "batch.appended": "accepted with its batch",
    "batch.duplicate": "a batch was sent again: it held only duplicates",
    "batch.refused": "a batch for this partition was refused",
    "producer.fenced": "a stale owner of the producer name was refused",
    "producer.granted": "the producer name got a new owner",
    "consumer.handled": "its handler returned",
    "consumer.skipped": "skipped: the group processed it before",
    "commit.synced": "committed",
    "handler.raised": "its handler raised",
    "handler.retry": "will be retried",
    "handler.failed": "its handler raised on its last attempt",
    "message.parked": "parked as a dead letter",
    "effect.intended": "its handler is about to call another service",
    "effect.done": "the call of its handler ended",
    "effect.unknown": "it is unknown whether the call of its handler happened",
    "effect.resolved": "an operator resolved the call",
}


def tell_events(history: History, wanted: Wanted, story: Story) -> None:
    for event in history.events:
        if event.name in _MEANING and _concerns(event, wanted, story):
            if len(story.events) >= EVENTS_SHOWN_MAX:
                story.notes.append(f"more than {EVENTS_SHOWN_MAX} events; the others are not shown")
                return
            story.events.append(
                {
                    "mono_ns": event.mono_ns,
                    "process": f"{event.role} {event.pid}",
                    "event": event.name,
                    "meaning": _MEANING[event.name],
                    "fields": event.fields,
                }
            )


def _concerns(event: Event, wanted: Wanted, story: Story) -> bool:
    fields, accepted = event.fields, story.accepted
    if event.name.startswith("producer."):
        return bool(wanted.producer) and fields.get("producer") == wanted.producer
    if fields.get("topic") != wanted.topic:
        return False
    if "id" in fields:
        return bool(fields["id"] == story.message_id)
    if accepted is None or fields.get("partition") != accepted["partition"]:
        return False
    if event.name in {"batch.refused", "batch.duplicate"} and fields.get("producer"):
        first = fields.get("first_sequence", -1)
        in_batch = first <= wanted.number < first + fields.get("count", 0)
        return bool(fields["producer"] == wanted.producer and in_batch)
    if "offset" in fields:
        return bool(fields["offset"] == accepted["offset"])
    first = fields.get("first_offset")
    if first is None:
        return False
    following = fields.get("next_offset", first + fields.get("count", 0))
    return bool(first <= accepted["offset"] < following)
