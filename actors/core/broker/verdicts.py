"""The verdict on each message of a batch, and runs of equal verdicts.

Theory of operation. A batch is judged message by message: a new message is kept, any other is a
duplicate (answered with the offset of its original) or a conflict (the id is stored with another
body). The answer packs neighbours with the same verdict and adjacent offsets into one run.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...batch import Batch
from ...protocol import CONFLICT, DUPLICATE, UNKNOWN_OFFSET
from ...records import BatchStored

Run = tuple[int, int, int]  # count, verdict, first offset


class Runs:
    """Collects verdicts in the order of the messages."""

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        """Begin with `runs`, of which no two neighbours could be one."""
        # Invariant: neighbours could not be one run.
        self.runs: list[Run] = list(runs)

    def add(self, count: int, verdict: int, offset: int) -> None:
        """Add the verdict of the next `count` messages; their offsets are adjacent."""
        if count == 0:
            return
        if self.runs:
            last_count, last_verdict, last_offset = self.runs[-1]
            follows = (
                offset == UNKNOWN_OFFSET
                if last_offset == UNKNOWN_OFFSET
                else offset == last_offset + last_count
            )
            if verdict == last_verdict and follows:
                self.runs[-1] = (last_count + count, verdict, last_offset)
                return
        self.runs.append((count, verdict, offset))

    def count(self, verdict: int) -> int:
        return sum(count for count, found, _ in self.runs if found == verdict)


def judge_bodies(
    runs: Runs, batch: Batch, start: int, count: int, record: BatchStored, at: int
) -> None:
    """Judge messages of a resend against a stored batch that holds their numbers.

    Messages [start, start + count) of `batch` have the numbers of the messages from `at` on in the
    stored one. Headers do not count: a retry may carry new ones.
    """
    first_offset = record.first_offset + at - (record.count - record.kept)
    if start == 0 and at == 0 and count == record.count and batch.raw == record.raw:
        runs.add(count, DUPLICATE, first_offset)
        return
    assert record.batch is not None, "stored batches are read with their columns"
    for number in range(count):
        same = batch.body(start + number) == record.batch.body(at + number)
        runs.add(1, DUPLICATE if same else CONFLICT, first_offset + number)


def mask_of(new: Sequence[int], count: int) -> bytes:
    """Return the mask of a record that keeps only the messages `new`; b"" if it keeps all."""
    if len(new) == count:
        return b""
    mask = bytearray((count + 7) // 8)
    for number in new:
        mask[number >> 3] |= 1 << (number & 7)
    return bytes(mask)


def kept_of(mask: bytes, count: int) -> list[int]:
    """Return a mark for each message, 1 if the mask keeps it, for `itertools.compress`."""
    if not mask:
        return [1] * count
    return [mask[number >> 3] >> (number & 7) & 1 for number in range(count)]
