"""What a ledger says of effects: each call was intended first, and none came where it must not.

A call is made after its intent is on disk. So the records tell of every call that may have been
made, and of each why it was allowed: it is the first of its name for the message, the last one
surely did not happen, an operator wants it again, or the handler's policy is to retry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..parse.records import Committed, EffectEnded, EffectIntended

RECORDED = frozenset({"returned", "answered"})
UNRESOLVED = frozenset({"", "unknown"})  # "": nothing was told yet
MAY_FOLLOW = frozenset({"not_done", "again"})  # after these the call may be made once more
_SNAPSHOT_FIELDS = 11

_Place = tuple[bytes, int, str]  # topic_id, offset, name
_Last = tuple[int, str, str]  # number, policy, how it ended


class Effects:
    """The effects of messages that no commit passes, and how many calls were intended."""

    def __init__(self) -> None:
        self._open: dict[_Place, _Last] = {}
        self.calls = 0

    @property
    def unknown(self) -> int:
        return sum(how in UNRESOLVED for _, _, how in self._open.values())

    def take(
        self, record: EffectIntended | EffectEnded, epoch: int, generation: int, next_offset: int
    ) -> Iterator[str]:
        """Take a record of a ledger at `epoch` and `next_offset`; yield what is wrong with it."""
        place = (record.topic_id, record.offset, record.name)
        what = f"effect {record.name!r} at offset {record.offset}"
        if record.epoch < epoch or record.epoch != generation:
            yield (
                f"{what}: a record of epoch {record.epoch} was written by generation {generation}, "
                f"after epoch {epoch}"
            )
        if record.offset < next_offset:
            yield f"{what} is of a message that was committed: {next_offset} is the next one"
        known = self._open.get(place)
        if isinstance(record, EffectIntended):
            self.calls += 1
            yield from self._intended(record, known, what)
            self._open[place] = (record.number, record.policy, "")
            return
        if known is None or known[0] != record.number:
            yield f"{what}: call {record.number} ended and was never intended"
        elif known[2] not in UNRESOLVED:
            yield f"{what}: call {record.number} ended twice, {known[2]} and {record.how}"
        elif record.how not in RECORDED | MAY_FOLLOW | UNRESOLVED - {""}:
            yield f"{what}: {record.how!r} is no known outcome"
        self._open[place] = (record.number, record.policy, record.how)

    def _intended(self, record: EffectIntended, known: _Last | None, what: str) -> Iterator[str]:
        number, how = (0, "") if known is None else (known[0], known[2])
        if record.number != number + 1:
            yield f"{what}: call {record.number} follows call {number}"
        if known is None or how in MAY_FOLLOW:
            return
        if how in RECORDED:
            yield f"{what} is called again though its result is recorded"
        elif record.policy != "retry":
            yield f"{what} is called again under {record.policy!r} though the outcome of the last call is unknown"

    def commit(self, record: Committed, spans: dict[bytes, tuple[int, int]]) -> Iterator[str]:
        """Take a commit that moves inputs over `spans`; yield what is wrong with it."""
        if record.accepted:  # they are of messages of a past that an operator gave up
            self._open.clear()
        skipped = {(topic_id, first) for topic_id, first, _, _ in record.skipped}
        for topic_id, (first, following) in spans.items():
            for place, (number, policy, how) in list(self._open.items()):
                if place[0] != topic_id or place[1] >= following:
                    continue
                del self._open[place]
                waits = how in UNRESOLVED and policy == "ask"
                if waits and (topic_id, first) not in skipped:
                    yield (
                        f"commit {record.commit_no} passes offset {place[1]}, though call {number} "
                        f"of effect {place[2]!r} has an unknown outcome"
                    )

    def restore(self, fields: dict[str, Any]) -> None:
        self._open = open_in(fields)
        self.calls = sum(number for number, _, _ in self._open.values())

    def differs(self, fields: dict[str, Any]) -> bool:
        return open_in(fields) != self._open


def open_in(fields: dict[str, Any]) -> dict[_Place, _Last]:
    """Raises ValueError where the effects make no sense."""
    found: dict[_Place, _Last] = {}
    for row in fields.get("effects", ()):
        if len(row) != _SNAPSHOT_FIELDS:
            raise ValueError("an effect with another number of fields")
        topic_id, offset, _, name, number, _, policy, _, how, _, _ = row
        found[topic_id, offset, name] = (number, policy, how)
    return found
