"""Reading one ledger for a proof: its records must follow from each other; its ids become rows.

A ledger that was compacted starts at a snapshot: what the snapshot says is taken for the records
below it, and every later snapshot is compared with the records up to its place.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

from ...errors import CorruptLog
from ...ids import output_producer
from ..findings import Findings
from ..parse.batch import BadBatch
from ..parse.batch import parse as parse_batch
from ..parse.document import SnapshotHead
from ..parse.explicit_ids import ids_of_snapshot
from ..parse.frames import Group
from ..parse.log import Log
from ..parse.records import (
    BadRecord,
    Committed,
    EffectEnded,
    EffectIntended,
    Ended,
    Marked,
    Output,
    Started,
    after_skip,
    parse,
    unpack,
)
from ..parse.tables import TableLog
from .facts import Ledger, Target
from .kept import KeptCommit, kept_commit
from .parked import ANY_OFFSET, mark_is_wrong
from .rows import IN_LEDGER, Rows

STATE_KEYS_MAX = 100_000  # of a larger state the snapshots are not compared


class LedgerReader:
    """Reads one ledger into rows."""

    def __init__(
        self,
        look: Callable[[], Log | TableLog | None],
        directory: str,
        number: int,
        rows: Rows,
        found: Findings,
        *,
        keep: bool = False,
    ) -> None:
        """Read the ledger that `look` finds; its rows carry `number`. `keep` keeps all commits."""
        self.ledger = Ledger(directory, number, kept=[] if keep else None)
        self._look = look
        self._rows = rows
        self._found = found
        # The log behind the ledger, once read.
        self.log: Log | TableLog | None = None

    def read(self) -> Ledger | None:
        """Read to the last whole group; None if there is no ledger yet.

        Raises CorruptLog, LogMoved, UnsupportedFormat.
        """
        ledger = self.ledger
        log = self._look()
        if log is None:
            return None
        self.log = log
        ledger.ledger_id, ledger.generation, ledger.end = log.log_id, log.generation, log.end
        self._found.notes += [f"{ledger.directory}: {damage}" for damage in log.snapshot_damage]
        later = list(log.snapshots)
        if log.start:
            later = [head for head in later if head.position >= log.start]
            sensible(self._restore, later[0], log.path)
        position = later[0].position if log.start else 0
        later = [head for head in later if head.position > position]
        for group in log.groups(position):
            self._group(group)
            while later and later[0].position <= group.end:
                sensible(self._compare, later.pop(0), log.path)
        if isinstance(log, TableLog) and log.commit_no != ledger.commit_no:
            reason = f"its row says commit {log.commit_no}, its records {ledger.commit_no}"
            self._violation("I13-atomicity", reason)
        return ledger

    def read_outputs(self, known: Ledger) -> bool:
        """Take the outputs behind what `known` holds, for a ledger that has grown since.

        Returns False if they are not there any more. Raises CorruptLog, LogMoved.
        """
        log = self._look()
        if log is None or log.start > known.end:
            return False
        self.ledger = known
        for group in log.groups(known.end):
            for frame in group.frames:
                record = self._parsed(frame)
                if isinstance(record, Committed):
                    self._outputs(record.outputs, frame.position)
        return True

    def _violation(self, check: str, explanation: str) -> None:
        self._found.add(check, self.ledger.where, explanation)

    # --- records ---------------------------------------------------------------------------------

    def _group(self, group: Group) -> None:
        for frame in group.frames:
            record = self._parsed(frame)
            if isinstance(record, Started):
                self._started(record, frame.position)
            elif isinstance(record, Committed):
                if self.ledger.started is None:
                    self._violation("ledger-shape", "a commit before the first record")
                self._committed(record, frame.position, group.generation)
            elif isinstance(record, Marked | Ended):
                self._process(record, group.generation)
            elif isinstance(record, EffectIntended | EffectEnded):
                self._effect(record, group.generation)
            else:
                self._violation("ledger-shape", f"a record of the broker at {frame.position}")

    def _process(self, record: Marked | Ended, generation: int) -> None:
        ledger = self.ledger
        at = ledger.next_offset_of(record.topic_id) if isinstance(record, Marked) else 0
        wrong = mark_is_wrong(record, ledger.epoch, generation, at)
        if wrong:
            self._violation("I10-zombie-fenced", wrong)
        ledger.epoch = max(ledger.epoch, record.epoch)

    def _effect(self, record: EffectIntended | EffectEnded, generation: int) -> None:
        ledger = self.ledger
        at = ledger.next_offset_of(record.topic_id)
        for wrong in ledger.effects.take(record, ledger.epoch, generation, at):
            self._violation("P10-effects", wrong)
        ledger.epoch = max(ledger.epoch, record.epoch)

    def _parsed(self, frame: Any) -> Any:
        try:
            return parse(frame)
        except BadRecord as bad:
            raise CorruptLog(self.ledger.directory, frame.position, str(bad)) from None

    def _started(self, record: Started, position: int) -> None:
        ledger = self.ledger
        if ledger.started is not None:
            self._violation("ledger-shape", f"it starts a second time at position {position}")
        ledger.started = record
        ledger.next_offset = ledger.base_offset = ledger.reached = record.start_offset

    def _committed(self, record: Committed, position: int, generation: int) -> None:
        ledger = self.ledger
        spans = self._spans(record)
        first, following = next(iter(spans.values()), (ledger.next_offset, ledger.next_offset))
        self._check_order(record, position, generation)
        ledger.commit_no = record.commit_no
        ledger.epoch = max(ledger.epoch, record.epoch)
        ledger.epochs.setdefault(record.epoch, ledger.next_offset)
        ledger.seen = record.seen[-1] if record.seen else ledger.seen
        ledger.commits += 1
        count = len(record.fingerprints) // 16
        if record.fingerprints:
            self._rows.committed_ids(ledger.number, record.fingerprints, first, following)
            self._count_fingerprints(record.fingerprints)
        for producer, start, size in record.ranges:
            self._range(producer, start, size, first, following)
            count += size
        passed_over = max(following - first, 0) - count - self._skip(record)
        if passed_over < 0:
            self._violation(
                "I7-effect-once",
                f"commit {record.commit_no} names {count} messages, its offsets "
                f"[{first}, {following}) are {following - first}",
            )
        for topic_id, (_, end) in spans.items():
            if ledger.started is None or topic_id == ledger.started.topic_id:
                ledger.processed += count
                again = max(0, min(following, ledger.reached) - first)  # read a second time
                ledger.passed_over += max(0, passed_over - again)
                ledger.next_offset = end
                ledger.reached = max(ledger.reached, end)
            else:
                ledger.parked.offsets[topic_id] = end
        if ledger.started is not None:
            for wrong in ledger.parked.take(record, ledger.started.topic, spans):
                self._violation("P9-parked", wrong)
        for wrong in ledger.effects.commit(record, spans):
            self._violation("P10-effects", wrong)
        if ledger.kept is not None:
            ledger.kept.append(kept_commit(record, ledger.next_offset))
        self._change_state(record.state)
        for topic, partition, end in record.acked:
            self._acked((topic, partition), end, record.commit_no)
        for topic, partition, first in record.renumbered:
            self._renumbered(topic, partition, first)
        self._outputs(record.outputs, position)

    def _renumbered(self, topic: str, partition: int, first: int) -> None:
        """Take an operator's order that outputs without an acknowledgement begin at `first`."""
        ledger, target = self.ledger, (topic, partition)
        waiting = ledger.unacked(topic, partition)
        before = ledger.next_sequence.get(target, 0) - waiting
        if before < first:
            ledger.foreign.setdefault(target, []).append((before, first))
        ledger.next_sequence[target] = first + waiting
        ledger.acked[target] = first
        ledger.known_from.setdefault(target, first)

    def _skip(self, record: Committed) -> int:
        """Take an operator's moves of the partition; return how many offsets they jump over."""
        ledger, jumped = self.ledger, 0
        for skip in record.skipped:
            if ledger.started is not None and skip[0] == ledger.started.topic_id:
                ledger.skips = after_skip(ledger.skips, skip)
                jumped += max(0, skip[2] - skip[1])
            elif skip[2] < skip[1]:  # with a log that an operator accepted: its end may be lower
                ledger.parked.offsets[skip[0]] = skip[2]
        return jumped

    def _spans(self, record: Committed) -> dict[bytes, tuple[int, int]]:
        """Return which offsets of which input the commit passes. It moves one input, or none."""
        ledger = self.ledger
        spans: dict[bytes, tuple[int, int]] = {}
        for topic_id, offset in record.inputs:
            first = ledger.next_offset_of(topic_id)
            back = any(skip[:3] == (topic_id, first, offset) for skip in record.skipped)
            if back and ledger.started is not None and topic_id == ledger.started.topic_id:
                spans[topic_id] = (first, offset)  # by order
                continue
            if offset < first:
                self._violation(
                    "I8-commit-monotone",
                    f"commit {record.commit_no} goes back from offset {first} to {offset}",
                )
            spans[topic_id] = (first, max(first, offset))
        if len(spans) > 1:
            self._violation("ledger-shape", f"commit {record.commit_no} moves two inputs")
        return spans

    def _check_order(self, record: Committed, position: int, generation: int) -> None:
        ledger = self.ledger
        if record.commit_no != ledger.commit_no + 1:
            self._violation(
                "I8-commit-monotone",
                f"commit {record.commit_no} at position {position} follows {ledger.commit_no}",
            )
        if record.epoch < ledger.epoch or record.epoch != generation:
            self._violation(
                "I10-zombie-fenced",
                f"commit {record.commit_no} of epoch {record.epoch} was written by generation "
                f"{generation}, after epoch {ledger.epoch}",
            )

    def _range(self, producer: str, first: int, count: int, low: int, high: int) -> None:
        ledger = self.ledger
        self._rows.sequence_range(ledger.number, producer, first, count, IN_LEDGER, low, high)
        ledger.numbers[producer] = ledger.numbers.get(producer, 0) + count

    def _count_fingerprints(self, blob: bytes) -> None:
        self.ledger.fingerprints += len(blob) // 16
        self.ledger.words += sum(array("Q", blob))

    def _change_state(self, changes: dict[str, bytes | None]) -> None:
        state = self.ledger.state
        if state is None:
            return
        for key, value in changes.items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        if len(state) > STATE_KEYS_MAX:
            self.ledger.state = None

    def _acked(self, target: Target, end: int, commit_no: int) -> None:
        ledger = self.ledger
        sent = ledger.next_sequence.get(target, 0)
        if end > sent:
            self._violation(
                "I11-outputs-once",
                f"commit {commit_no} takes outputs below {end} to {target[0]}/{target[1]} as "
                f"acknowledged, {sent} were made",
            )
        ledger.acked[target] = max(end, ledger.acked.get(target, 0))

    def _outputs(self, outputs: tuple[Output, ...], position: int) -> None:
        ledger = self.ledger
        group, topic, partition = ledger.place
        producer = output_producer(group, topic, partition)
        for output in outputs:
            target = (output.topic, output.partition)
            expected = ledger.next_sequence.get(target, 0)
            if output.first_sequence != expected:
                self._violation(
                    "I11-outputs-once",
                    f"outputs to {target[0]}/{target[1]} start at {output.first_sequence}, "
                    f"{expected} is expected",
                )
            ledger.next_sequence[target] = output.first_sequence + output.count
            ledger.known_from.setdefault(target, output.first_sequence)
            self._rows.output(
                (producer, *target),
                output.first_sequence,
                output.count,
                output.crc,
                IN_LEDGER,
                position,
            )
            try:
                whole = crc32(output.raw) == output.crc
                whole = whole and parse_batch(output.raw).count == output.count
            except BadBatch:
                whole = False
            if not whole:
                self._violation("I11-outputs-once", f"damaged outputs at position {position}")

    # --- snapshots -------------------------------------------------------------------------------

    def _part(self, head: SnapshotHead, name: str) -> Any:
        assert self.log is not None, "read first"
        return unpack(self.log.snapshot_part(head, name))

    def _explicit_ids(self, head: SnapshotHead) -> Iterator[bytes]:
        assert self.log is not None, "read first"
        started = self.ledger.started
        return iter(()) if started is None else ids_of_snapshot(self.log, head, started)

    def _restore(self, head: SnapshotHead) -> None:
        ledger = self.ledger
        fields = self._part(head, "ledger")
        if fields["started"] is not None:
            self._started(Started(*fields["started"]), head.position)
        ledger.next_offset = ledger.base_offset = fields["next_offset"]
        ledger.reached = fields.get("reached", ledger.next_offset)
        ledger.skips = [(low, high, why) for low, high, why in fields.get("skips", ())]
        ledger.commit_no, ledger.epoch = fields["commit_no"], fields["epoch"]
        ledger.base_commit_no = ledger.commit_no
        if fields.get("seen"):
            ledger.seen = (fields["seen"][0], fields["seen"][1])
        ledger.parked.restore(fields)
        ledger.effects.restore(fields)
        # Which ids are those of the private input is not told: theirs lie at any offset.
        end = ANY_OFFSET if ledger.parked.offsets else ledger.reached
        start = 0 if ledger.started is None else ledger.started.start_offset
        for producer, first, count in fields["ranges"]:
            self._range(producer, first, count, start, ledger.reached)
            ledger.processed += count
        kept: list[bytes] = []
        for blob in self._explicit_ids(head):
            self._rows.committed_ids(ledger.number, blob, start, end)
            self._count_fingerprints(blob)
            ledger.processed += len(blob) // 16
            if ledger.kept is not None:
                kept.append(blob)
        ledger.processed -= ledger.parked.answered  # ids of the private input
        if ledger.kept is not None:
            ranges = tuple((producer, first, count) for producer, first, count in fields["ranges"])
            base = KeptCommit(
                ledger.commit_no, ledger.next_offset, ranges, b"".join(kept), parked=False
            )
            ledger.kept.append(base)
        self._change_state(self._part(head, "state"))
        ledger.next_sequence = {(t, p): number for t, p, number in fields["next_sequence"]}
        ledger.known_from = dict(ledger.next_sequence)
        ledger.acked = dict(ledger.next_sequence)
        for output in self._part(head, "outputs"):
            self._unacked(Output(*output), head.position)

    def _unacked(self, output: Output, position: int) -> None:
        """Outputs that the snapshot carries: they were made and not acknowledged."""
        ledger = self.ledger
        target = (output.topic, output.partition)
        for table in (ledger.known_from, ledger.acked):
            table[target] = min(table[target], output.first_sequence)
        made, ledger.next_sequence[target] = ledger.next_sequence[target], output.first_sequence
        self._outputs((output,), position)
        ledger.next_sequence[target] = made

    def _compare(self, head: SnapshotHead) -> None:
        """A snapshot says the same as the records below it."""
        ledger = self.ledger
        fields = self._part(head, "ledger")
        said = (fields["next_offset"], fields["commit_no"], fields["epoch"])
        sequences = {(t, p): number for t, p, number in fields["next_sequence"]}
        numbers: dict[str, int] = {}
        for producer, _, count in fields["ranges"]:
            numbers[producer] = numbers.get(producer, 0) + count
        fingerprints = words = 0
        for blob in self._explicit_ids(head):
            fingerprints += len(blob) // 16
            words += sum(array("Q", blob))
        wrong = [
            what
            for what, same in (
                ("offset", said == (ledger.next_offset, ledger.commit_no, ledger.epoch)),
                ("dead letters", not ledger.parked.differs(fields)),
                ("effects", not ledger.effects.differs(fields)),
                ("outputs", sequences == ledger.next_sequence),
                ("sequence ids", numbers == ledger.numbers),
                ("explicit ids", (fingerprints, words) == (ledger.fingerprints, ledger.words)),
                ("state", ledger.state is None or self._part(head, "state") == ledger.state),
            )
            if not same
        ]
        if wrong:
            self._violation(
                "I13-atomicity",
                f"the snapshot at {head.position} differs from the records in {', '.join(wrong)}",
            )


def sensible(look: Callable[[SnapshotHead], None], head: SnapshotHead, path: str) -> None:
    """A snapshot whose parts have another shape than they must is damage."""
    try:
        look(head)
    except (BadRecord, LookupError, TypeError, ValueError) as error:
        reason = f"the parts of the snapshot at {head.position} make no sense: {error!r}"
        raise CorruptLog(path, 0, reason) from error
