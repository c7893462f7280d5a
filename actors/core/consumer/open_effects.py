"""Effects of messages that are not committed: what was called, and what is known of its outcome.

A part of the ledger's state (ledger.py). The commit that passes a message takes its effects away,
so there are only those of the messages that handlers are at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...records import EffectEnded, EffectIntended, Plain

# How the call of an effect ended.
RETURNED = "returned"  # the function returned: its result is recorded
NOT_DONE = "not_done"  # it said that nothing happened
UNKNOWN = "unknown"  # it may have happened or not
ANSWERED = "answered"  # an operator gave the result
AGAIN = "again"  # an operator wants it called again
RUNNING = ""  # nobody has told yet

RECORDED = frozenset({RETURNED, ANSWERED})
UNRESOLVED = frozenset({RUNNING, UNKNOWN})

# What is done with an effect whose outcome is unknown.
RETRY, PARK, ASK = "retry", "park", "ask"
POLICIES = (RETRY, PARK, ASK)


@dataclass(slots=True)
class OpenEffect:
    """One effect: its last call, and what is known of it."""

    topic_id: bytes
    offset: int
    key: str  # idempotency key of the message
    name: str
    number: int
    epoch: int  # of the intent
    policy: str
    since_ms: int  # when it was intended
    how: str = RUNNING
    encoding: int = 0
    value: bytes = b""

    @property
    def unresolved(self) -> bool:
        """Whether nobody knows what became of the call."""
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
        return [one for one in self if (one.topic_id, one.offset) == (topic_id, offset)]

    def first_unresolved(self, topic_id: bytes) -> int | None:
        """Return the first offset of an input that has an effect nobody knows the outcome of."""
        return min(
            (one.offset for one in self if one.topic_id == topic_id and one.unresolved),
            default=None,
        )

    def barrier(self, topic_id: bytes) -> int | None:
        """Return the first offset that no commit may pass before an operator has spoken."""
        return min(
            (
                one.offset
                for one in self
                if one.topic_id == topic_id and one.unresolved and one.policy == ASK
            ),
            default=None,
        )

    def apply(self, record: EffectIntended | EffectEnded) -> None:
        """Take a record that was appended or is replayed."""
        place = (record.topic_id, record.offset, record.name)
        known = self._all.get(place)
        if isinstance(record, EffectIntended):
            assert record.number == (known.number if known else 0) + 1, "calls are numbered"
            assert known is None or not known.recorded, "what is recorded is not called again"
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
        """Forget the effects of messages that were committed."""
        gone = [p for p in self._all if p[0] == topic_id and p[1] < next_offset]
        for place in gone:
            del self._all[place]

    def plain(self) -> list[Plain]:
        return [
            [
                one.topic_id,
                one.offset,
                one.key,
                one.name,
                one.number,
                one.epoch,
                one.policy,
                one.since_ms,
                one.how,
                one.encoding,
                one.value,
            ]
            for _, one in sorted(self._all.items())
        ]

    def restore(self, rows: list[Plain]) -> None:
        for row in rows:
            one = OpenEffect(*row)
            self._all[one.topic_id, one.offset, one.name] = one
