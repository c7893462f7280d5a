"""What a ledger says of messages that were parked, replayed or dropped, and of processes that died.

A private topic (`topic@group`) is a second input of the ledger: each of its messages says what
becomes of one dead letter, so letters parked less messages read there are the ones still parked.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...ids import dead_topic
from ..parse.records import Committed, Ended, Marked

PRIVATE_ID_MARK = b"@"  # in front of tagged ids of a private topic, before they are hashed
ANY_OFFSET = (1 << 64) - 1


class Parked:
    """The counts of one ledger, and where its private inputs stand."""

    def __init__(self) -> None:
        # Letters made, those that an operator dropped, and the next offset of private inputs.
        self.letters = 0
        self.dropped = 0
        self.offsets: dict[bytes, int] = {}

    @property
    def answered(self) -> int:
        return sum(self.offsets.values())

    @property
    def left(self) -> int:
        return self.letters - self.answered

    @property
    def processed(self) -> int:
        """What to add to the ids in the ledger for the messages that were processed."""
        return self.answered - self.dropped - self.letters

    def restore(self, fields: dict[str, object]) -> None:
        letters, dropped, offsets = counts_in(fields)
        self.letters, self.dropped, self.offsets = letters, dropped, offsets

    def differs(self, fields: dict[str, object]) -> bool:
        return counts_in(fields) != (self.letters, self.dropped, self.offsets)

    def take(
        self, record: Committed, topic: str, spans: dict[bytes, tuple[int, int]]
    ) -> Iterator[str]:
        """Count a commit that moves inputs over `spans`; yield what is wrong with it."""
        self.letters += len(record.parked)
        for topic_id, first, following, _ in record.skipped:
            if following < first:  # an operator went back: told of where the offsets are judged
                continue
            self.dropped += following - first if topic_id in self.offsets else 0
            low, high = spans.get(topic_id, (0, 0))
            if not low <= first < following <= high:
                yield f"commit {record.commit_no} skips offsets that it does not pass"
        for topic_id, offset, _, attempts, *_error in record.parked:
            low, high = spans.get(topic_id, (0, 0))
            if not low <= offset < high:
                yield f"commit {record.commit_no} parks offset {offset} and does not pass it"
            if attempts < 1:
                yield f"commit {record.commit_no} parks offset {offset} without an attempt"
        dead = dead_topic(topic)
        letters = sum(output.count for output in record.outputs if output.topic == dead)
        if letters != len(record.parked):
            yield (
                f"commit {record.commit_no} parks {len(record.parked)} messages and makes "
                f"{letters} dead letters"
            )


def mark_is_wrong(record: Marked | Ended, epoch: int, generation: int, next_offset: int) -> str:
    """Return "" where nothing is wrong with a record about a process."""
    if record.epoch < epoch or record.epoch != generation:
        return (
            f"a record of epoch {record.epoch} was written by generation {generation}, after "
            f"epoch {epoch}"
        )
    if isinstance(record, Marked) and record.offset < next_offset:
        return f"an attempt at offset {record.offset} is marked, {next_offset} is the next one"
    return ""


def counts_in(fields: dict[str, object]) -> tuple[int, int, dict[bytes, int]]:
    letters, dropped = fields.get("parked", 0), fields.get("dropped", 0)
    offsets = fields.get("private_offsets", ())
    if not isinstance(letters, int) or not isinstance(dropped, int):
        raise TypeError("counts are numbers")
    return letters, dropped, dict(offsets)  # type: ignore[call-overload]
