"""What a consumer must not forget: the state that its ledger's records make.

Theory of operation. A ledger belongs to one (group, topic, partition). Its first record names the
log that it follows and its start. Nearly every other record is one commit, which carries inputs,
ids, state and outputs together, so any prefix of the ledger is a state that the group really was
in. Only `apply` changes a Ledger, live and on replay. Besides the partition itself the group reads
that of the private topic (`topic@group`); each commit moves one of the two.

Other records are about processes that die in a handler (inputs.py): marks of attempts, and the end
of a generation on purpose. A mark counts as a death from the start, until a later record says how
the attempt ended. Intents and outcomes of effects (open_effects.py) do not say that.

The ledger numbers outputs, by target partition and without holes, and keeps them until a later
commit records the broker's acknowledgement: the next process sends the rest under the same numbers.

Snapshots. State, ranges and unacknowledged outputs are written whole. Explicit ids only ever grow:
most lie in files that never change (explicit_ids.py), which a snapshot names, and it holds the
newest.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import replace
from typing import Any

from ...errors import UnsupportedFormat
from ...history import NO_PLACE, Place
from ...limits import LIMITS, Limits
from ...outcome import Snapshot
from ...records import (
    AttemptMarked,
    Committed,
    EffectEnded,
    EffectIntended,
    LedgerEnded,
    LedgerStarted,
    Output,
    Plain,
    Record,
    Renumbered,
    Skipped,
)
from .open_effects import OpenEffects
from .processed import MARK_BYTES, Processed

Target = tuple[str, int]  # (topic, partition) of an output

FORMAT = 2  # of a snapshot; 1 had the explicit ids in parts `ids-NO`, and no field for this
_OWN = Committed | AttemptMarked | EffectIntended | EffectEnded | LedgerEnded


class Ledger:
    """Hard state of one consumer. Not thread-safe; `state` may be read while nothing is applied."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        # The bounds for all code that works on this ledger.
        self.limits = limits
        # The first record. Invariant: None only before any other record.
        self.started: LedgerStarted | None = None
        # The next offset to process. Invariant: decreases only by an operator's order.
        self.next_offset = 0
        # The same for the private topic, by its topic_id. Invariant: as above.
        self.private_offsets: dict[bytes, int] = {}
        # The highest that `next_offset` ever was. Invariant: not below it.
        self.reached = 0
        # Ranges that an operator had skipped, as (first, next, reason). Invariant: ascending, below
        # `next_offset`: offsets that are read again after going back are not skipped any more.
        self.skips: list[tuple[int, int, str]] = []
        # The furthest place of the broker's log that all of this relies on; NO_PLACE before the first
        # message, and in ledgers of versions without marks. Invariant: goes back only by an order.
        self.seen = NO_PLACE
        # Number of commits. Invariant: each commit record carries the next number.
        self.commit_no = 0
        # Epoch of the last commit. Invariant: never decreases.
        self.epoch = 0
        # tx.state as encoded bytes, and the sum of the lengths of its keys and values.
        self.state: dict[str, bytes] = {}
        self.state_bytes = 0
        # Messages that were handled. Invariant: only grows.
        self.processed = Processed(limits)
        # The next number of an output to each target. Invariant: decreases only by an order.
        self.next_sequence: dict[Target, int] = {}
        # Outputs without a recorded acknowledgement. Invariant: contiguous numbers that end at
        # next_sequence of the target.
        self.unacked: dict[Target, deque[Output]] = {}
        # Messages that were parked, and dead letters that an operator dropped.
        self.parked = 0
        self.dropped = 0
        # How many messages were parked in a row with the same type of error, and which that is. A
        # handled message ends the row, a restart does not.
        self.parked_row = 0
        self.row_error = ""
        # By topic_id: offset of the message in which processes died while it ran alone, and their
        # number. Invariant: not below the next offset of its input.
        self.deaths: dict[bytes, tuple[int, int]] = {}
        # The marked attempt without a recorded end; `deaths` counts it.
        self.open_attempt: AttemptMarked | None = None
        # Effects of messages that are not committed.
        self.effects = OpenEffects()
        # Whether the last record is the end of its generation on purpose.
        self.ended = False

    @property
    def unacked_count(self) -> int:
        return sum(output.count for outputs in self.unacked.values() for output in outputs)

    @property
    def unmarked(self) -> bool:
        """Whether it relies on a log without saying on which past of it: an older version wrote it."""
        relies = self.reached or self.private_offsets or self.next_sequence
        return bool(relies) and not self.seen.mark

    def apply(self, record: Record, position: int) -> None:
        """Apply a record: live right after its append, and on replay."""
        del position
        if isinstance(record, LedgerStarted):
            assert self.started is None, "a ledger starts once"
            self.started = record
            self.processed.mark = _mark_of(record)
            self.next_offset = self.reached = record.start_offset
            return
        assert self.started is not None, "a ledger starts with its first record"
        assert isinstance(record, _OWN), "a record of another log"
        assert record.epoch >= self.epoch, "an epoch never goes back"
        self.epoch = record.epoch
        self.ended = isinstance(record, LedgerEnded)
        if isinstance(record, Committed):
            self._commit(record)
            return
        if isinstance(record, EffectIntended | EffectEnded):
            self.effects.apply(record)
            return
        running, self.open_attempt = self.open_attempt, None
        if running is not None and running.epoch == record.epoch:
            # Its process lives and writes on: the attempt was no death.
            self._set_deaths(running.topic_id, running.offset, running.deaths)
        if isinstance(record, AttemptMarked):
            deaths = record.deaths if record.returned else record.deaths + 1
            self._set_deaths(record.topic_id, record.offset, deaths)
            self.open_attempt = None if record.returned else record

    def next_offset_of(self, topic_id: bytes) -> int:
        if self.started is None or topic_id == self.started.topic_id:
            return self.next_offset
        return self.private_offsets.get(topic_id, 0)

    def deaths_in(self, topic_id: bytes, offset: int) -> int:
        """How many processes died while this message ran alone."""
        marked, deaths = self.deaths.get(topic_id, (-1, 0))
        return deaths if marked == offset else 0

    def _commit(self, record: Committed) -> None:
        assert record.commit_no == self.commit_no + 1, "commits are numbered without holes"
        self.commit_no = record.commit_no
        if record.seen.mark:
            self.seen = record.seen
        if record.accepted.mark:
            self.effects = OpenEffects()
            self.deaths.clear()
            self.open_attempt = None
        for skipped in record.skipped:
            self._skip(skipped)
        for topic_id, next_offset in record.inputs:
            self._move(topic_id, next_offset)
        for producer, first, count in record.ranges:
            self.processed.add_numbers(producer, first, count)
        if record.fingerprints:
            self.processed.explicit.add(record.fingerprints)
        self._change_state(record.state)
        for topic, partition, next_sequence in record.acked:
            self._forget_acked((topic, partition), next_sequence)
        for target in record.renumbered:
            self._renumber(target)
        for output in record.outputs:
            self._add_output(output)
        self._count_row(record)
        self.parked += len(record.parked)
        for skipped in record.skipped:
            if skipped.topic_id in self.private_offsets:
                self.dropped += max(0, skipped.next_offset - skipped.first_offset)

    def _count_row(self, record: Committed) -> None:
        for parked in record.parked:
            follows = parked.error == self.row_error
            self.parked_row = (self.parked_row if follows else 0) + bool(parked.error)
            self.row_error = parked.error
        handled = record.ranges or record.fingerprints  # unless an operator dropped it
        if handled and not record.parked and not record.skipped:
            self.parked_row, self.row_error = 0, ""

    def _move(self, topic_id: bytes, next_offset: int) -> None:
        assert next_offset >= self.next_offset_of(topic_id), "only an order moves an offset back"
        assert self.started is not None, "a ledger starts with its first record"
        if topic_id == self.started.topic_id:
            self.next_offset = next_offset
            self.reached = max(self.reached, next_offset)
        else:
            self.private_offsets[topic_id] = next_offset
        self.effects.passed(topic_id, next_offset)
        if self.deaths.get(topic_id, (next_offset, 0))[0] < next_offset:
            del self.deaths[topic_id]
        running = self.open_attempt
        if running is not None and running.topic_id == topic_id and running.offset < next_offset:
            self.open_attempt = None

    def _skip(self, skip: Skipped) -> None:
        """Apply an operator's move of the partition's offset, forward or back.

        That of the private topic goes back with it where the operator accepts another log.
        """
        assert self.started is not None, "a ledger starts with its first record"
        if skip.topic_id != self.started.topic_id:
            if skip.next_offset < skip.first_offset:
                self.private_offsets[skip.topic_id] = skip.next_offset
            return
        self.parked_row, self.row_error = 0, ""  # a person has looked at it
        if skip.first_offset < skip.next_offset:
            self.skips.append((skip.first_offset, skip.next_offset, skip.reason))
            return
        assert skip.first_offset == self.next_offset, "an order names the offset that it moves"
        back = self.next_offset = skip.next_offset
        self.skips = [(low, min(high, back), why) for low, high, why in self.skips if low < back]

    def _set_deaths(self, topic_id: bytes, offset: int, deaths: int) -> None:
        self.deaths.pop(topic_id, None)
        if deaths:
            self.deaths[topic_id] = (offset, deaths)

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

    def _renumber(self, order: Renumbered) -> None:
        target, following = (order.topic, order.partition), order.first_sequence
        outputs = self.unacked.pop(target, deque())
        self.next_sequence[target] = following
        for output in outputs:
            self._add_output(replace(output, first_sequence=self.next_sequence[target]))

    # --- snapshots -------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        started = self.started
        ids, files = self.processed.freeze()
        parts: dict[str, Plain] = {
            "ledger": {
                "format": FORMAT,
                "started": None if started is None else _start_fields(started),
                "next_offset": self.next_offset,
                "commit_no": self.commit_no,
                "epoch": self.epoch,
                "ranges": self.processed.ranges(),
                "next_sequence": [[*t, n] for t, n in sorted(self.next_sequence.items())],
                **self._rarely(),
            },
            "state": dict(self.state),
            "outputs": [
                [o.topic, o.partition, o.first_sequence, o.count, o.raw, o.crc]
                for _, outputs in sorted(self.unacked.items())
                for o in outputs
            ],
        }
        return Snapshot({**parts, **ids}, frozenset(files))

    def _rarely(self) -> dict[str, Plain]:
        """Fields that are empty in most ledgers, without the empty ones."""
        running = self.open_attempt
        fields: dict[str, Plain] = {
            "private_offsets": sorted(map(list, self.private_offsets.items())),
            "parked": self.parked,
            "dropped": self.dropped,
            "parked_row": [self.parked_row, self.row_error] if self.parked_row else None,
            "deaths": [[topic_id, *at] for topic_id, at in sorted(self.deaths.items())],
            "running": running
            and [running.epoch, running.topic_id, running.offset, running.deaths],
            "ended": self.ended,
            "reached": self.reached if self.reached != self.next_offset else 0,
            "skips": [list(skip) for skip in self.skips],
            "effects": self.effects.plain(),
            "seen": list(self.seen) if self.seen.mark else None,
        }
        return {name: value for name, value in fields.items() if value}

    def restore(self, parts: dict[str, Plain]) -> None:
        """The ledger must be fresh. Raises CorruptLog, UnsupportedFormat, unchanged."""
        assert self.started is None and self.commit_no == 0, "restore into a fresh ledger"  # noqa: PT018
        fields: dict[str, Any] = parts["ledger"]
        if fields.get("format", 1) > FORMAT:
            raise UnsupportedFormat(
                f"a snapshot of format {fields['format']}: this OnceMQ reads {FORMAT}"
            )
        started = None if fields["started"] is None else LedgerStarted(*fields["started"])
        if started is not None:
            self.processed.mark = _mark_of(started)
        self.processed.restore(parts)  # before all else, which then another snapshot may still set
        self.started = started
        self.next_offset = fields["next_offset"]
        self.reached = fields.get("reached", self.next_offset)
        self.skips = [(low, high, why) for low, high, why in fields.get("skips", ())]
        self.seen = Place(*fields.get("seen", ()))
        self.commit_no = fields["commit_no"]
        self.epoch = fields["epoch"]
        for producer, first, count in fields["ranges"]:
            self.processed.add_numbers(producer, first, count)
        self.next_sequence = {(t, p): n for t, p, n in fields["next_sequence"]}
        self.private_offsets = dict(fields.get("private_offsets", ()))
        self.parked, self.dropped = fields.get("parked", 0), fields.get("dropped", 0)
        self.parked_row, self.row_error = fields.get("parked_row") or (0, "")
        self.deaths = {topic_id: (at, n) for topic_id, at, n in fields.get("deaths", ())}
        if fields.get("running"):
            epoch, topic_id, offset, deaths = fields["running"]
            self.open_attempt = AttemptMarked(epoch, topic_id, offset, deaths, returned=False)
        self.ended = fields.get("ended", False)
        self.effects.restore(fields.get("effects", ()))
        self._change_state(parts["state"])
        for output in parts["outputs"]:
            kept = Output(*output)
            self.unacked.setdefault((kept.topic, kept.partition), deque()).append(kept)


def _mark_of(started: LedgerStarted) -> bytes:
    place = f"{started.group}\0{started.topic}\0{started.partition}\0".encode()
    named = place + started.topic_id + started.log_id
    return hashlib.blake2b(named, digest_size=MARK_BYTES).digest()


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
