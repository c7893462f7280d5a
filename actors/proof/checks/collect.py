"""Log and ledgers in memory, from files: the L and K of a run whose messages fit there.

For systems of any size there is verify.py; this is for simulated and chaos runs, whose checkers
want to look at every message.
"""

from __future__ import annotations

import contextlib
from typing import Any

import xxhash

from ...errors import CorruptLog
from ...ids import output_producer, private_topic, sequence_id
from ..model import shown_id
from ..parse.batch import BadBatch, body_hash
from ..parse.batch import parse as parse_batch
from ..parse.files import Files
from ..parse.frames import Frame
from ..parse.log import Log, LogMoved
from ..parse.records import (
    BadRecord,
    Committed,
    EffectEnded,
    EffectIntended,
    GroupGrant,
    Output,
    ProducerGrant,
    Started,
    Stored,
    Topic,
    parse,
    unpack,
)
from ..parse.tables import Look as TableLook
from ..parse.tables import TableLog
from ..verify.effects import Effects
from ..verify.parked import PRIVATE_ID_MARK
from ..verify.rows import seed_of
from ..verify.verify import Look, ledgers_of
from .evidence import CommitView, Entry, Grant, LedgerView, LogView, Sent

ATTEMPTS_MAX = 5


def _record(log: Log | TableLog, frame: Frame) -> Any:
    try:
        return parse(frame)
    except BadRecord as bad:
        raise CorruptLog(log.path, frame.position, str(bad)) from None


def read_log(files: Files, directory: str) -> LogView | None:
    """Return the broker's log; None if there is none yet. Raises CorruptLog, LogMoved."""
    log = Log.look(files, directory)
    if log is None:
        return None
    topics: list[str] = []
    epochs: dict[str, int] = {}
    entries: list[Entry] = []
    grants: list[Grant] = []
    for group in log.groups():
        for frame in group.frames:
            record = _record(log, frame)
            if isinstance(record, Topic):
                topics.append(record.topic)
            elif isinstance(record, ProducerGrant):
                epochs[record.producer] = record.epoch
            elif isinstance(record, GroupGrant):
                epochs[output_producer(record.group, record.topic, record.partition)] = record.epoch
                grants.append(
                    Grant(
                        record.group,
                        record.topic,
                        record.partition,
                        record.epoch,
                        record.ledger_id,
                        record.next_offset,
                        frame.position,
                    )
                )
            elif isinstance(record, Stored):
                try:
                    entries += _entries(record, topics[record.topic_number], epochs, frame.position)
                except (BadBatch, IndexError) as bad:
                    raise CorruptLog(log.path, frame.position, str(bad)) from None
    return LogView(log.log_id, tuple(entries), tuple(grants), log.torn_bytes)


def _entries(record: Stored, topic: str, epochs: dict[str, int], position: int) -> list[Entry]:
    batch = parse_batch(record.raw)
    bodies = batch.bodies()
    live = epochs.get(record.producer, 0) if record.producer else 0
    found = []
    for step, index in enumerate(record.kept_indices()):
        sequence = -1 if batch.ids is not None else record.first_sequence + index
        name = (
            shown_id(batch.ids[index])
            if batch.ids is not None
            else sequence_id(topic, record.producer, record.partition, sequence)
        )
        found.append(
            Entry(
                topic,
                record.partition,
                record.first_offset + step,
                name,
                record.producer,
                record.epoch,
                sequence,
                body_hash(bodies[index]),
                position,
                live,
            )
        )
    return found


def read_ledgers(
    files: Files,
    state: str | None,
    log: LogView | None,
    *,
    sink: tuple[str, TableLook] | None = None,
) -> list[LedgerView]:
    """Return all ledgers below a state directory, and those in a database (as for `verify`).

    `log` gives explicit ids their names. Raises CorruptLog, LogMoved.
    """
    looks = ledgers_of(files, state, sink)
    found = [_read_ledger(directory, look, log) for directory, look in looks.items()]
    return [ledger for ledger in found if ledger is not None]


def _read_ledger(directory: str, look: Look, log: LogView | None) -> LedgerView | None:
    for _ in range(ATTEMPTS_MAX):
        with contextlib.suppress(LogMoved):
            return _Ledger(look, log).read()
    raise LogMoved(f"{directory} does not hold still")


class _Ledger:
    """Reads one ledger."""

    def __init__(self, look: Look, log: LogView | None) -> None:
        self._look = look
        self._view = log
        self._names: dict[bytes, str] = {}
        # Ids of the private topic: names of dead letters, not of messages of this partition.
        self._private: set[bytes] = set()
        self._started: Started | None = None
        self._commits: list[CommitView] = []
        self._outputs: list[Sent] = []
        self._acked: dict[tuple[str, int], int] = {}
        self._known_from: dict[tuple[str, int], int] = {}
        self._offset = 0
        self._base = 0
        self._effects = Effects()
        self._epoch = 0
        self._private_offsets: dict[bytes, int] = {}
        self._wrong: list[str] = []

    def read(self) -> LedgerView | None:
        log = self._look()
        if log is None:
            return None
        position = 0
        if log.start:
            head = next(head for head in log.snapshots if head.position >= log.start)
            parts = {part.name: unpack(log.snapshot_part(head, part.name)) for part in head.parts}
            self._restore(parts, log.log_id, head.position)
            position = head.position
        for group in log.groups(position):
            for frame in group.frames:
                record = _record(log, frame)
                if isinstance(record, Started):
                    self._start(record, log.log_id)
                elif isinstance(record, Committed):
                    self._effects_of(record)
                    self._commit(record, group.generation, frame.position)
                elif isinstance(record, EffectIntended | EffectEnded):
                    at = self._next_offset_of(record.topic_id)
                    taken = self._effects.take(record, self._epoch, group.generation, at)
                    self._wrong += taken
                    self._epoch = max(self._epoch, record.epoch)
        started = self._started
        if started is None:
            return None
        return LedgerView(
            started.group,
            started.topic,
            started.partition,
            log.log_id,
            started.log_id,
            started.start_offset,
            tuple(self._commits),
            tuple(self._outputs),
            self._acked,
            self._base,
            self._known_from,
            tuple(self._wrong),
        )

    def _next_offset_of(self, topic_id: bytes) -> int:
        mine = self._started is not None and topic_id == self._started.topic_id
        return self._offset if mine else self._private_offsets.get(topic_id, 0)

    def _effects_of(self, record: Committed) -> None:
        """Take what a commit says of effects: it must not pass what somebody is asked about."""
        spans = {
            topic_id: (self._next_offset_of(topic_id), offset) for topic_id, offset in record.inputs
        }
        self._wrong += self._effects.commit(record, spans)
        self._epoch = max(self._epoch, record.epoch)
        for topic_id, (_, offset) in spans.items():
            self._private_offsets[topic_id] = offset

    def _start(self, record: Started, ledger_id: bytes) -> None:
        self._started = record
        self._offset = record.start_offset
        seed = seed_of(ledger_id)
        private = private_topic(record.topic, record.group)
        for entry in self._view.entries if self._view else ():
            if (entry.topic, entry.partition) == (private, record.partition):
                name = PRIVATE_ID_MARK + b"s" + entry.message_id.encode()
                self._private.add(xxhash.xxh3_128_digest(name, seed))
            elif (entry.topic, entry.partition) == (record.topic, record.partition):
                for tag in (b"s", b"b"):
                    name = tag + _untold(entry.message_id, tag)
                    digest = xxhash.xxh3_128_digest(name, seed)
                    self._names[digest] = entry.message_id

    def _ids(self, ranges: Any, blob: bytes) -> tuple[str, ...]:
        assert self._started is not None, "a ledger starts before it commits"
        topic, partition = self._started.topic, self._started.partition
        ids = [
            sequence_id(topic, producer, partition, number)
            for producer, first, count in ranges
            for number in range(first, first + count)
        ]
        prints = [blob[at : at + 16] for at in range(0, len(blob), 16)]
        prints = [each for each in prints if each not in self._private]
        return (*ids, *[self._names.get(each, "0x" + each.hex()) for each in prints])

    def _commit(self, record: Committed, generation: int, position: int) -> None:
        assert self._started is not None, "a ledger starts before it commits"
        moved = dict(record.inputs).get(self._started.topic_id)
        following = self._offset if moved is None else moved
        private = bool(record.inputs) and moved is None
        ids = () if private else self._ids(record.ranges, record.fingerprints)
        self._commits.append(
            CommitView(
                record.commit_no,
                record.epoch,
                generation,
                self._offset,
                following,
                ids,
                position,
                bool(record.parked),
                any(skip[0] == self._started.topic_id for skip in record.skipped),
            )
        )
        self._offset = following
        for topic, partition, end in record.acked:
            target = (topic, partition)
            self._acked[target] = max(end, self._acked.get(target, 0))
        for output in record.outputs:
            self._output(output, record.commit_no)

    def _output(self, output: Output, commit_no: int) -> None:
        assert self._started is not None
        started = self._started
        producer = output_producer(started.group, started.topic, started.partition)
        self._known_from.setdefault((output.topic, output.partition), output.first_sequence)
        for step, body in enumerate(parse_batch(output.raw).bodies()):
            number = output.first_sequence + step
            name = sequence_id(output.topic, producer, output.partition, number)
            self._outputs.append(
                Sent(name, output.topic, output.partition, body_hash(body), commit_no)
            )

    def _restore(self, parts: dict[str, Any], ledger_id: bytes, position: int) -> None:
        fields = parts["ledger"]
        self._start(Started(*fields["started"]), ledger_id)
        blob = b"".join(parts[name] for name in sorted(parts) if name.startswith("ids-"))
        ids = self._ids(fields["ranges"], blob)
        self._base, epoch = fields["commit_no"], fields["epoch"]
        following = fields["next_offset"]
        self._effects.restore(fields)
        self._epoch = epoch
        self._private_offsets = dict(fields.get("private_offsets", ()))
        base = CommitView(self._base, epoch, epoch, self._offset, following, ids, position)
        self._commits.append(base)
        self._offset = following
        ends = {(topic, partition): end for topic, partition, end in fields["next_sequence"]}
        self._acked, self._known_from = dict(ends), dict(ends)
        for kept in parts["outputs"]:
            output = Output(*kept)
            target = (output.topic, output.partition)
            for table in (self._acked, self._known_from):
                table[target] = min(table[target], output.first_sequence)
            self._output(output, self._base)


def _untold(shown: str, tag: bytes) -> bytes:
    """Return the bytes of an id that is shown as text: of text, or of bytes."""
    if tag == b"b" and shown.startswith("0x"):
        try:
            return bytes.fromhex(shown[2:])
        except ValueError:
            return shown.encode()
    return shown.encode()
