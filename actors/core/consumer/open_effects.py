"""Effects of messages that are not committed: their last calls, and what is known of the outcome.

A part of the ledger's state (ledger.py). The commit that passes a message deletes its effects, so
only effects of messages in progress are here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...records import EffectEnded, EffectIntended, Plain

# How the call of an effect ended.
RETURNED = "returned"  # the function returned: its result is recorded
NOT_DONE = "not_done"  # the function reported that nothing happened
UNKNOWN = "unknown"  # it may have happened or not
ANSWERED = "answered"  # an operator gave the result
AGAIN = "again"  # an operator wants another call
RUNNING = ""  # no outcome is recorded yet

RECORDED = frozenset({RETURNED, ANSWERED})
UNRESOLVED = frozenset({RUNNING, UNKNOWN})

# Policies for an effect whose outcome is unknown.
RETRY, PARK, ASK = "retry", "park", "ask"
POLICIES = (RETRY, PARK, ASK)


@dataclass(slots=True)
class OpenEffect:
    """One effect: its last call, and what is known of the outcome."""

    topic_id: bytes
    offset: int
    key: str  # idempotency key of the message
    name: str
    number: int  # of the last call
    epoch: int  # of the intent
    policy: str
    since_ms: int  # time of the intent
    how: str = RUNNING
    encoding: int = 0
    value: bytes = b""

    @property
    def unresolved(self) -> bool:
        """Whether the outcome of the call is unknown, or not recorded yet."""
        return self.how in UNRESOLVED

    @property
    def recorded(self) -> bool:
        return self.how in RECORDED


class OpenEffects:
    """All of one ledger, by input, offset and name."""

    def __init__(self) -> None:
        self._all: dict[tuple[bytes, int, str], OpenEffect] = {}

    def __iter__(self) -> Iterator[OpenEffect]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)

    def find(self, topic_id: bytes, offset: int, name: str) -> OpenEffect | None:
        return self._all.get((topic_id, offset, name))

    def of_message(self, topic_id: bytes, offset: int) -> list[OpenEffect]:
        return [effect for effect in self if (effect.topic_id, effect.offset) == (topic_id, offset)]

    def first_unresolved(self, topic_id: bytes) -> int | None:
        return min(
            (effect.offset for effect in self if effect.topic_id == topic_id and effect.unresolved),
            default=None,
        )

    def barrier(self, topic_id: bytes) -> int | None:
        """Return the first offset that no commit may pass before an operator's order."""
        return min(
            (
                effect.offset
                for effect in self
                if effect.topic_id == topic_id and effect.unresolved and effect.policy == ASK
            ),
            default=None,
        )

    def apply(self, record: EffectIntended | EffectEnded) -> None:
        place = (record.topic_id, record.offset, record.name)
        known = self._all.get(place)
        if isinstance(record, EffectIntended):
            assert record.number == (known.number if known else 0) + 1, "calls are numbered"
            assert known is None or not known.recorded, "a recorded effect is not called again"
            self._all[place] = OpenEffect(
                record.topic_id,
                record.offset,
                record.key,
                record.name,
                record.number,
                record.epoch,
                record.policy,
                record.at_ms,
            )
            return
        assert known is not None and known.number == record.number, "an intent goes before"  # noqa: PT018
        assert known.unresolved, "a call ends once"
        known.how, known.policy = record.how, record.policy
        known.encoding, known.value = record.encoding, record.value

    def passed(self, topic_id: bytes, next_offset: int) -> None:
        gone = [p for p in self._all if p[0] == topic_id and p[1] < next_offset]
        for place in gone:
            del self._all[place]

    def plain(self) -> list[Plain]:
        return [
            [
                effect.topic_id,
                effect.offset,
                effect.key,
                effect.name,
                effect.number,
                effect.epoch,
                effect.policy,
                effect.since_ms,
                effect.how,
                effect.encoding,
                effect.value,
            ]
            for _, effect in sorted(self._all.items())
        ]

    def restore(self, rows: list[Plain]) -> None:
        for row in rows:
            effect = OpenEffect(*row)
            self._all[effect.topic_id, effect.offset, effect.name] = effect
