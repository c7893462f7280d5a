"""What a consumer must not forget: the state that its ledger's records make.

Theory of operation. A ledger belongs to one (group, topic, partition). Its first record says which
log it follows and where it began; every other record is one commit, which carries inputs, ids,
state and outputs together, so that any prefix of the ledger is a state the group really was in.
`apply` is the only thing that changes a Ledger, live and on replay.

Outputs are numbered here, by target partition and without holes, and kept until a later commit
says that the broker acknowledged them: whatever process comes next sends what is left, under the
same numbers.

Snapshots. State, ranges and unacknowledged outputs are written whole. Fingerprints only ever grow,
so each snapshot adds one immutable part with those that are new and keeps the older parts by
name; when the parts become many they are written anew as one. What is new is forgotten only when
the snapshot is known to be on disk (`snapshot_written`).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..limits import LEDGER_PARTS_MAX
from ..outcome import Snapshot
from ..records import Committed, LedgerStarted, Output, Plain, Record
from .processed import Processed, fingerprints_of, split_fingerprints

Target = tuple[str, int]  # (topic, partition) of an output

_IDS = "ids-"


class Ledger:
    """Hard state of one consumer. Not thread-safe; `state` may be read while nothing is applied."""

    def __init__(self) -> None:
        # The first record. Invariant: None only before any other record.
        self.started: LedgerStarted | None = None
        # The next offset to be processed. Invariant: never decreases.
        self.next_offset = 0
        # Number of commits. Invariant: each commit record carries the next number.
        self.commit_no = 0
        # Epoch of the last commit. Invariant: never decreases.
        self.epoch = 0
        # tx.state as encoded bytes, and the sum of the lengths of its keys and values.
        self.state: dict[str, bytes] = {}
        self.state_bytes = 0
        # Messages that were handled. Invariant: only grows.
        self.processed = Processed()
        # The next number of an output to each target. Invariant: never decreases.
        self.next_sequence: dict[Target, int] = {}
        # Outputs that no commit knows to be acknowledged. Invariant: contiguous numbers that end
        # at next_sequence of the target.
        self.unacked: dict[Target, deque[Output]] = {}
        # Fingerprints that no snapshot on disk holds, as they were committed.
        self._fresh: list[bytes] = []
        # Names of the parts that the last snapshot on disk holds, and the one being written.
        self._parts: list[str] = []
        self._writing: tuple[list[str], int] | None = None

    @property
    def unacked_count(self) -> int:
        """How many outgoing messages no commit knows to be acknowledged."""
        return sum(output.count for outputs in self.unacked.values() for output in outputs)

    def apply(self, record: Record, position: int) -> None:
        """Take a record that was appended or is replayed."""
        del position
        if isinstance(record, LedgerStarted):
            assert self.started is None, "a ledger starts once"
            self.started = record
            self.next_offset = record.start_offset
            return
        assert isinstance(record, Committed), "a ledger holds a start and commits"
        assert self.started is not None, "a ledger starts with its first record"
        assert record.commit_no == self.commit_no + 1, "commits are numbered without holes"
        assert record.epoch >= self.epoch, "an epoch never goes back"
        self.commit_no = record.commit_no
        self.epoch = record.epoch
        for topic_id, next_offset in record.inputs:
            assert topic_id == self.started.topic_id, "a commit of another topic"
            assert next_offset >= self.next_offset, "an offset never goes back"
            self.next_offset = next_offset
        for producer, first, count in record.ranges:
            self.processed.add_numbers(producer, first, count)
        if record.fingerprints:
            self.processed.add_fingerprints(fingerprints_of(record))
            self._fresh.append(record.fingerprints)
        self._change_state(record.state)
        for topic, partition, next_sequence in record.acked:
            self._forget_acked((topic, partition), next_sequence)
        for output in record.outputs:
            self._add_output(output)

    def _change_state(self, changes: dict[str, bytes | None]) -> None:
        state = self.state
        for key, value in changes.items():
            size = len(key.encode())
            old = state.pop(key, None) if value is None else state.get(key)
            if old is not None:
                self.state_bytes -= size + len(old)
            if value is not None:
                state[key] = value
                self.state_bytes += size + len(value)

    def _forget_acked(self, target: Target, next_sequence: int) -> None:
        outputs = self.unacked.get(target)
        while outputs and outputs[0].first_sequence + outputs[0].count <= next_sequence:
            outputs.popleft()
        if outputs is not None and not outputs:
            del self.unacked[target]

    def _add_output(self, output: Output) -> None:
        target = (output.topic, output.partition)
        expected = self.next_sequence.get(target, 0)
        assert output.first_sequence == expected, "outputs are numbered without holes"
        self.next_sequence[target] = expected + output.count
        self.unacked.setdefault(target, deque()).append(output)

    # --- snapshots -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the parts of a snapshot. Call `snapshot_written` once it is on disk."""
        started = self.started
        parts: dict[str, Plain] = {
            "ledger": {
                "started": None if started is None else _start_fields(started),
                "next_offset": self.next_offset,
                "commit_no": self.commit_no,
                "epoch": self.epoch,
                "ranges": self.processed.ranges(),
                "next_sequence": [[*t, n] for t, n in sorted(self.next_sequence.items())],
            },
            "state": dict(self.state),
            "outputs": [
                [o.topic, o.partition, o.first_sequence, o.count, o.raw, o.crc]
                for _, outputs in sorted(self.unacked.items())
                for o in outputs
            ],
        }
        kept = list(self._parts)
        if len(kept) >= LEDGER_PARTS_MAX:
            kept = []
            fresh = b"".join(sorted(self.processed.fingerprints))
        else:
            fresh = b"".join(self._fresh)
        names = list(kept)
        if fresh:
            # Each name stands for one content for ever: ids are fresh only after a commit.
            names.append(f"{_IDS}{self.commit_no:020d}")
            parts[names[-1]] = fresh
        self._writing = (names, len(self._fresh))
        return Snapshot(parts, frozenset(kept))

    def snapshot_written(self) -> None:
        """The snapshot that `snapshot` returned last is durable: its parts can be kept by name."""
        assert self._writing is not None, "no snapshot was asked for"
        self._parts, written = self._writing
        del self._fresh[:written]
        self._writing = None

    def restore(self, parts: dict[str, Plain]) -> None:
        """Become what `snapshot` described. The ledger must be fresh."""
        assert self.started is None and self.commit_no == 0, "restore into a fresh ledger"  # noqa: PT018
        fields: dict[str, Any] = parts["ledger"]
        if fields["started"] is not None:
            self.started = LedgerStarted(*fields["started"])
        self.next_offset = fields["next_offset"]
        self.commit_no = fields["commit_no"]
        self.epoch = fields["epoch"]
        for producer, first, count in fields["ranges"]:
            self.processed.add_numbers(producer, first, count)
        self.next_sequence = {(t, p): n for t, p, n in fields["next_sequence"]}
        self._change_state(parts["state"])
        for output in parts["outputs"]:
            kept = Output(*output)
            self.unacked.setdefault((kept.topic, kept.partition), deque()).append(kept)
        self._parts = sorted(name for name in parts if name.startswith(_IDS))
        for name in self._parts:
            self.processed.add_fingerprints(split_fingerprints(parts[name]))


def _start_fields(started: LedgerStarted) -> list[Plain]:
    return [
        started.group,
        started.topic,
        started.partition,
        started.topic_id,
        started.log_id,
        started.lineage,
        started.start_offset,
    ]
