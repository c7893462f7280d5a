"""An operator's move of a group's offset in one partition: one commit, by an owner like any other.

Theory of operation. The shell around it has joined, was granted an epoch and opens that generation
of the ledger, so the last owner of the partition is fenced, as at any takeover. `MoveOffset` then
becomes one commit with the old and the new offset and the reason. Going forward passes over
messages. Going back reads them again, but the processed set still leaves out those that were
handled. Before an offset goes back, the shell tells the broker (`Rewind`).

An operator may give the partition another ledger in place of one that is lost (`replaces`). Its first
commit gives its outputs numbers that the broker has not seen, together with its first record: numbers
from 0 would be taken for those of the lost ledger.

A move is also how an operator accepts that the broker's log has another past than the ledger relied
on: the commit carries the place where the log stands now.

docs/GROUPS.md, "Moving the offset".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import NotSupported, OffsetOutOfRange
from ...history import UNMARKED, Place
from ...limits import LIMITS, Limits
from ...outcome import Event, Outcome, Recovered, Snapshot
from ...protocol import Granted, place_in
from ...records import (
    Committed,
    LedgerEnded,
    LedgerStarted,
    Plain,
    Record,
    Renumbered,
    Skipped,
)
from .grant import check_follows
from .ledger import Ledger, Target


@dataclass(frozen=True, slots=True)
class MoveOffset:
    """Move the group to `offset`. `reason` names the cause and the operator."""

    offset: int
    reason: str
    # What the broker expects next of the ledger's outputs, by (topic, partition). Only where the
    # operator accepts another past: the numbers go on from there.
    expected: Mapping[Target, int] = field(default_factory=dict)


class SeekerCore:
    """The owner of a partition that only moves its offset."""

    def __init__(
        self,
        place: tuple[str, str, int],
        grant: Granted,
        limits: Limits = LIMITS,
        *,
        accepts: bool = False,
        replaces: Mapping[Target, int] | None = None,
    ) -> None:
        """`accepts`: the log has another past than the ledger relied on, and the operator knows.

        `replaces`: this ledger takes the place of a lost one; what the broker expects next of its
        outputs, by (topic, partition).
        """
        self._place = place
        self._grant = grant
        # Whether a move accepts another past. Invariant: then even a move to where the ledger stands
        # is a commit.
        self.accepts = accepts
        self._replaces = replaces
        self.ledger = Ledger(limits)
        self.wake_at_ms = None
        # Whether the last generation ended on purpose. Then this one does too, and the next owner
        # need not run messages alone (inputs.py).
        self._clean = False

    @property
    def epoch(self) -> int:
        return self._grant.epoch

    def step(self, event: Event, now_ms: int) -> Outcome:
        """Check the open ledger; move the offset. Raises OnceMQError, having done nothing."""
        del now_ms
        out = Outcome()
        match event:
            case Recovered():
                self._begin(out)
            case MoveOffset():
                self._move(event, out)
        return out

    def _begin(self, out: Outcome) -> None:
        grant = self._grant
        self._clean = self.ledger.started is None or self.ledger.ended
        if self.ledger.started is None:
            log = (grant.topic_id, grant.log_id, grant.lineage)
            out.appends.append(LedgerStarted(*self._place, *log, grant.start_offset))
        else:
            check_follows(self.ledger, self._place, grant, accepts=self.accepts)
        renumbered = [] if self._replaces is None else self._renumbered(self._replaces)
        if renumbered:
            record = Committed(grant.epoch, self.ledger.commit_no + 1, [], [], b"", {})
            record.seen, record.renumbered = place_in(grant), renumbered
            out.appends.append(record)
        if out.appends:
            self._end_well(out)

    def _move(self, move: MoveOffset, out: Outcome) -> None:
        ledger, grant = self.ledger, self._grant
        first = ledger.next_offset
        if not grant.start_offset <= move.offset <= grant.end_offset:
            raise OffsetOutOfRange(
                f"offset {move.offset} is not between {grant.start_offset} and {grant.end_offset}, "
                f"start and end of {self._place[1]}/{self._place[2]}"
            )
        most = ledger.limits.skips_max
        if len(ledger.skips) >= most and move.offset > first:
            raise NotSupported(
                f"this ledger has {most} skipped ranges and takes no more",
                hint="let the group handle what it can and its handler reject the rest; a new group "
                "begins without skipped ranges",
            )
        skipped = Skipped(grant.topic_id, first, move.offset, move.reason)
        inputs = [(grant.topic_id, move.offset)]
        record = Committed(grant.epoch, ledger.commit_no + 1, inputs, [], b"", {})
        if move.offset != first:
            record.skipped = [skipped]
        record.seen = place_in(grant)
        if self.accepts:
            record.renumbered = self._renumbered(move.expected)
            record.accepted = ledger.seen if ledger.seen.mark else Place(UNMARKED)
            # How much of the private topic is left is not known: it is read again, and what was
            # handled is left out by its id.
            record.skipped += [
                Skipped(topic_id, offset, 0, move.reason)
                for topic_id, offset in sorted(ledger.private_offsets.items())
                if offset
            ]
        out.appends.append(record)
        self._end_well(out)
        group, topic, partition = self._place
        fields = {"group": group, "topic": topic, "partition": partition, "epoch": grant.epoch}
        moved = {"first_offset": first, "next_offset": move.offset, "reason": move.reason}
        out.events.append(("group.moved", {**fields, **moved, "commit_no": record.commit_no}))
        if self.accepts:
            lost, now = ledger.seen, record.seen
            histories = {"seen": str(lost), "mark": now.mark.hex(), "position": now.position}
            out.events.append(("history.accepted", {**fields, **histories}))

    def _renumbered(self, expected: Mapping[Target, int]) -> list[Renumbered]:
        """Return the targets whose unacknowledged outputs the broker would never take."""
        ledger, wrong = self.ledger, []
        for target in sorted({*ledger.next_sequence, *expected}):
            following = ledger.next_sequence.get(target, 0)
            outputs = ledger.unacked.get(target)
            first = outputs[0].first_sequence if outputs else following
            wanted = expected.get(target, 0)
            if not first <= wanted <= following:
                wrong.append(Renumbered(*target, wanted))
        return wrong

    def _end_well(self, out: Outcome) -> None:
        if self._clean:
            out.appends.append(LedgerEnded(self._grant.epoch))

    def apply(self, record: Record, position: int) -> None:
        self.ledger.apply(record, position)

    def snapshot(self) -> Snapshot:
        return self.ledger.snapshot()

    def restore(self, parts: dict[str, Plain]) -> None:
        self.ledger.restore(parts)
