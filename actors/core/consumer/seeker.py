"""An operator's move of a group's offset in one partition: one commit, by an owner like any other.

Theory of operation. The shell around it has joined, was granted an epoch and opens that generation
of the ledger; so whoever owned the partition before is fenced, as at any takeover. `MoveOffset` then
becomes one commit that holds the new offset and says from where to where, why and by whom. Going
forward passes over messages; going back reads them again, of which the processed set still leaves
out those that were handled. Before an offset goes back the broker is told (`Rewind`).

docs/GROUPS.md, "Moving the offset".
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import NotSupported, OffsetOutOfRange
from ...limits import LIMITS, Limits
from ...outcome import Event, Outcome, Recovered, Snapshot, SnapshotWritten
from ...protocol import Granted
from ...records import Committed, LedgerEnded, LedgerStarted, Plain, Record, Skipped
from .grant import check_follows
from .ledger import Ledger
from .running import START_OFFSET


@dataclass(frozen=True, slots=True)
class MoveOffset:
    """Let the group go on at `offset`. `reason` says why and by whom."""

    offset: int
    reason: str


class SeekerCore:
    """The owner of a partition that only moves its offset."""

    def __init__(
        self, place: tuple[str, str, int], grant: Granted, limits: Limits = LIMITS
    ) -> None:
        """Work on the ledger of `place` (group, topic, partition) under `grant`."""
        self._place = place
        self._grant = grant
        self.ledger = Ledger(limits)
        self.wake_at_ms = None
        # Whether no generation before died at its work: then ours ends well too, and the next
        # owner need not look for the message that kills (handling.py).
        self._clean = False

    @property
    def epoch(self) -> int:
        """The epoch of the grant."""
        return self._grant.epoch

    def step(self, event: Event, now_ms: int) -> Outcome:
        """Check the ledger once it is open; move the offset. Raises OnceMQError: nothing is done."""
        del now_ms
        out = Outcome()
        match event:
            case Recovered():
                self._begin(out)
            case MoveOffset():
                self._move(event, out)
            case SnapshotWritten():
                self.ledger.snapshot_written()
        return out

    def _begin(self, out: Outcome) -> None:
        grant = self._grant
        self._clean = self.ledger.started is None or self.ledger.ended
        if self.ledger.started is None:
            log = (grant.topic_id, grant.log_id, grant.lineage)
            out.appends.append(LedgerStarted(*self._place, *log, START_OFFSET))
            self._end_well(out)
        else:
            check_follows(self.ledger, self._place, grant)

    def _move(self, move: MoveOffset, out: Outcome) -> None:
        ledger, grant = self.ledger, self._grant
        first = ledger.next_offset
        if not 0 <= move.offset <= grant.end_offset:
            raise OffsetOutOfRange(
                f"offset {move.offset} is not between 0 and {grant.end_offset}, the end of "
                f"{self._place[1]}/{self._place[2]}"
            )
        most = ledger.limits.skips_max
        if len(ledger.skips) >= most and move.offset > first:
            raise NotSupported(f"this ledger has {most} skipped ranges, the limit")
        skipped = Skipped(grant.topic_id, first, move.offset, move.reason)
        inputs = [(grant.topic_id, move.offset)]
        record = Committed(grant.epoch, ledger.commit_no + 1, inputs, [], b"", {})
        record.skipped = [skipped]
        out.appends.append(record)
        self._end_well(out)
        group, topic, partition = self._place
        fields = {"group": group, "topic": topic, "partition": partition, "epoch": grant.epoch}
        moved = {"first_offset": first, "next_offset": move.offset, "reason": move.reason}
        out.events.append(("group.moved", {**fields, **moved, "commit_no": record.commit_no}))

    def _end_well(self, out: Outcome) -> None:
        if self._clean:
            out.appends.append(LedgerEnded(self._grant.epoch))

    def apply(self, record: Record, position: int) -> None:
        """Change the ledger."""
        self.ledger.apply(record, position)

    def snapshot(self) -> Snapshot:
        """Return the ledger's state."""
        return self.ledger.snapshot()

    def restore(self, parts: dict[str, Plain]) -> None:
        """Become what a snapshot holds."""
        self.ledger.restore(parts)
