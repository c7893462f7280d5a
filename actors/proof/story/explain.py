"""The story of one message: where it was accepted, who processed it, what that caused.

    story = explain(OsFiles(), "o-1", topic="orders", data=..., state=..., history=...)

Log and ledgers are read once each, as far as they are whole, with flat memory; events add what
files do not hold: attempts, errors, and why a duplicate was refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import msgpack
import xxhash

from ...errors import CorruptLog, UnknownTopic
from ...ids import did_you_mean, output_producer, sequence_id
from ..checks.evidence import History
from ..parse.batch import parse as parse_batch
from ..parse.batch import split_body
from ..parse.explicit_ids import ids_of_snapshot
from ..parse.files import Files
from ..parse.frames import Frame
from ..parse.log import Log, LogMoved
from ..parse.records import (
    BadRecord,
    Committed,
    Deletion,
    EffectEnded,
    EffectIntended,
    Output,
    ProducerGrant,
    Skips,
    Started,
    Stored,
    Topic,
    Trim,
    after_skip,
    parse,
    unpack,
)
from ..parse.tables import Look as TableLook
from ..verify.rows import seed_of
from ..verify.verify import Look, broker_log, ledgers_of
from .effects import EffectStory
from .story import Story, Wanted, tell_events, wanted_message

ATTEMPTS_MAX = 5
VALUE_BYTES_SHOWN = 200
_MSGPACK = 2
_ENCODINGS = {0: "bytes", 1: "text", _MSGPACK: "msgpack", 4: "serializer"}


def explain(
    files: Files,
    message_id: str,
    *,
    topic: str,
    data: str | None = None,
    state: str | None = None,
    sink: tuple[str, TableLook] | None = None,
    history: History | None = None,
) -> Story:
    """Tell what became of `message_id` in `topic`. `sink`: as for `verify`.

    Explicit ids as they were given (bytes that are no text as 0x and hexadecimal), sequence ids as
    topic/producer:partition:number. Raises CorruptLog, UnknownTopic, StorageError, LogMoved.
    """
    story = Story(message_id, topic)
    wanted = wanted_message(message_id, topic)
    if data is not None:
        _again(lambda: _read_log(files, data, wanted, story))
    for look in ledgers_of(files, state, sink).values():
        _again(partial(_read_ledger, look, wanted, story))
    if data is not None:
        _settle_outputs(files, data, story)
    if history is not None:
        tell_events(history, wanted, story)
    return story


def _again(read: Any) -> None:
    for attempt in range(ATTEMPTS_MAX):
        try:
            read()
        except LogMoved:
            if attempt + 1 == ATTEMPTS_MAX:
                raise
        else:
            return


# --- the log -------------------------------------------------------------------------------------


class _Walk:
    """All records of the broker's log in order, and the names of topics where the walk stands."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.topics: dict[int, str] = {}  # by number
        self.shortened = log.start > 0
        self._count = 0

    def __iter__(self) -> Iterator[tuple[Any, int, int]]:
        """Yield record, position and generation. Raises CorruptLog, LogMoved."""
        log, position = self._log, 0
        if log.start:
            base = next(head for head in log.snapshots if head.position >= log.start)
            position, self._count = base.position, unpack(log.snapshot_part(base, "broker"))[3]
            for row in unpack(log.snapshot_part(base, "topics")):
                self.topics[row[6][0]] = row[0]
            for frame in log.frames_before(base):
                yield self._parsed(frame), frame.position, base.generation
        for group in log.groups(position):
            for frame in group.frames:
                record = self._parsed(frame)
                if isinstance(record, Topic):
                    self.topics[self._count] = record.topic
                    self._count += 1
                yield record, frame.position, group.generation
                if isinstance(record, Deletion):
                    del self.topics[record.topic_number]

    def _parsed(self, frame: Frame) -> Any:
        try:
            return parse(frame)
        except BadRecord as bad:
            raise CorruptLog(self._log.path, frame.position, str(bad)) from None


def _read_log(files: Files, data: str, wanted: Wanted, story: Story) -> None:
    walk = _Walk(broker_log(files, data))
    labels: dict[tuple[str, int], str] = {}
    story.accepted, trimmed = None, False
    for record, position, generation in walk:
        if isinstance(record, ProducerGrant):
            labels[record.producer, record.epoch] = record.label
            continue
        if not isinstance(record, Stored | Trim | Deletion):
            continue
        if walk.topics.get(record.topic_number) != wanted.topic:
            continue
        if isinstance(record, Deletion):
            story.accepted, trimmed = None, False
            story.notes.append(f"a topic {wanted.topic} was deleted with its messages")
        elif isinstance(record, Trim):
            trimmed = True
        elif (index := _find(record, wanted)) is not None:
            label = labels.get((record.producer, record.epoch), "")
            story.accepted = _accepted(record, index, position, label)
            story.accepted["generation"] = generation
    if wanted.topic not in walk.topics.values():
        near = did_you_mean(wanted.topic, walk.topics.values())
        raise UnknownTopic(
            f"the log holds no topic {wanted.topic!r}{near}", hint="list topics: oncemq topics list"
        )
    if story.accepted is None:
        story.notes.append(f"the log holds no message {story.message_id} in topic {wanted.topic}")
        if trimmed or walk.shortened:
            story.notes.append("messages were deleted by retention: it may have been one of them")


def _find(record: Stored, wanted: Wanted) -> int | None:
    if record.first_sequence >= 0:
        index = wanted.number - record.first_sequence
        mine = (record.producer, record.partition) == (wanted.producer, wanted.partition)
        return index if mine and index in record.kept_indices() else None
    ids = parse_batch(record.raw).ids or []
    if wanted.tagged.isdisjoint(ids):
        return None
    kept = record.kept_indices()
    return next((index for index in kept if ids[index] in wanted.tagged), None)


def _accepted(record: Stored, index: int, position: int, label: str) -> dict[str, Any]:
    batch = parse_batch(record.raw)
    encoding, key, value = split_body(batch.bodies()[index])
    accepted: dict[str, Any] = {
        "partition": record.partition,
        "offset": record.first_offset + list(record.kept_indices()).index(index),
        "position": position,
        "appended_at_ms": record.at_ms,
        "batch_messages": record.count,
        "kind": "sequence" if record.first_sequence >= 0 else "explicit",
        "encoding": _ENCODINGS.get(encoding, str(encoding)),
        "value": _value(encoding, value),
        "value_bytes": len(value),
    }
    if key is not None:
        accepted["key"] = _shown(key)
    if record.producer:
        accepted |= {"producer": record.producer, "epoch": record.epoch, "owner": label}
    if batch.ids is not None:
        accepted["tagged"] = batch.ids[index].hex()
    return accepted


def _value(encoding: int, data: bytes) -> str:
    if encoding != _MSGPACK or len(data) > 10 * VALUE_BYTES_SHOWN:
        return _shown(data)
    try:
        return _shown(repr(msgpack.unpackb(data, timestamp=3)).encode())
    except (ValueError, OverflowError, RecursionError, msgpack.UnpackException):
        return _shown(data)


def _shown(data: bytes) -> str:
    cut = data[:VALUE_BYTES_SHOWN]
    more = "..." if len(data) > len(cut) else ""
    try:
        return cut.decode() + more
    except UnicodeDecodeError:
        return "0x" + cut.hex() + more


# --- ledgers -------------------------------------------------------------------------------------


def _read_ledger(look: Look, wanted: Wanted, story: Story) -> None:
    log = look()
    if log is None:
        return
    started: Started | None = None
    offset, position = 0, 0
    row: dict[str, Any] | None = None
    skips: Skips = []
    seed = seed_of(log.log_id)
    prints = {xxhash.xxh3_128_digest(tagged, seed) for tagged in wanted.tagged}
    effects = EffectStory(wanted, story.message_id)
    if log.start:
        head = next(head for head in log.snapshots if head.position >= log.start)
        fields = unpack(log.snapshot_part(head, "ledger"))
        started, offset = Started(*fields["started"]), fields["next_offset"]
        position = head.position
        skips = [(low, high, why) for low, high, why in fields.get("skips", ())]
        effects.restore(fields)
        blobs = chain([b""], ids_of_snapshot(log, head, started))
        if any(_holds(fields["ranges"], blob, prints, wanted) for blob in blobs):
            row = {"status": "processed", "commit_no": None, "up_to_commit": fields["commit_no"]}
            if fields.get("parked"):
                story.notes.append(
                    f"group {started.group} has parked messages in commits compacted since; "
                    f"whether this is one of them: oncemq dlq list --topic {started.topic}"
                )
    for group in log.groups(position):
        for frame in group.frames:
            try:
                record = parse(frame)
            except BadRecord as bad:
                raise CorruptLog(log.path, frame.position, str(bad)) from None
            if isinstance(record, Started):
                started, offset = record, record.start_offset
            elif isinstance(record, EffectIntended | EffectEnded):
                effects.take(record)
            elif isinstance(record, Committed):
                following = _moved(record, started, offset)
                if _holds(record.ranges, record.fingerprints, prints, wanted):
                    if started is None or started.topic != wanted.topic:
                        return
                    row = _committed(record, frame.position, (offset, following), started)
                    parked = _parked(record, story.accepted)
                    if parked is not None:
                        row |= {"status": "parked", "kind": parked[2], "attempts": parked[3]}
                for skip in record.skipped:
                    if started is not None and skip[0] == started.topic_id:
                        skips = after_skip(skips, skip)
                offset = following
    if started is None or started.topic != wanted.topic:
        return
    accepted = story.accepted
    if accepted is not None and accepted["partition"] != started.partition:
        return
    where = {"group": started.group, "partition": started.partition}
    if row is None:
        row = _unprocessed(accepted, started, offset, skips)
        if accepted is None:
            return
    row["committed_offset"] = offset
    if effects.calls:
        row["effects"] = effects.calls
    story.groups = [its for its in story.groups if its["group"] != started.group]
    story.groups.append({**where, **row})


def _moved(record: Committed, started: Started | None, offset: int) -> int:
    """Return where the partition stands after a commit, which may be of the private topic."""
    return offset if started is None else dict(record.inputs).get(started.topic_id, offset)


def _parked(record: Committed, accepted: dict[str, Any] | None) -> Any:
    """Return the entry of the commit that parks the message; None: it was handled."""
    if not record.parked:
        return None
    offset = None if accepted is None else accepted["offset"]
    return next((one for one in record.parked if offset in {None, one[1]}), None)


def _unprocessed(
    accepted: dict[str, Any] | None, started: Started, offset: int, skips: Skips
) -> dict[str, Any]:
    if accepted is None:
        return {"status": "unknown"}
    its = accepted["offset"]
    if its < started.start_offset:
        return {"status": "before the start of the group"}
    for low, high, reason in skips:
        if low <= its < high:
            return {"status": "skipped by an operator", "reason": reason}
    return {"status": "pending" if its >= offset else "passed over"}


def _holds(ranges: Any, blob: bytes, prints: set[bytes], wanted: Wanted) -> bool:
    if any(
        producer == wanted.producer and first <= wanted.number < first + count
        for producer, first, count in ranges
    ):
        return True
    return any((at := blob.find(each)) >= 0 and _aligned(blob, each, at) for each in prints)


def _aligned(blob: bytes, each: bytes, at: int) -> bool:
    while at >= 0 and at % 16:
        at = blob.find(each, at + 1)
    return at >= 0


def _committed(
    record: Committed, position: int, span: tuple[int, int], started: Started
) -> dict[str, Any]:
    """One commit may hold many messages: its outputs are those of all of them."""
    producer = output_producer(started.group, started.topic, started.partition)
    return {
        "status": "processed",
        "commit_no": record.commit_no,
        "epoch": record.epoch,
        "position": position,
        "first_offset": span[0],
        "next_offset": span[1],
        "state_keys": sorted(record.state)[:20],
        "outputs": [_output(output, producer) for output in record.outputs],
    }


def _output(output: Output, producer: str) -> dict[str, Any]:
    ids = [
        sequence_id(output.topic, producer, output.partition, output.first_sequence + step)
        for step in range(output.count)
    ]
    return {
        "topic": output.topic,
        "partition": output.partition,
        "producer": producer,
        "first_sequence": output.first_sequence,
        "count": output.count,
        "ids": ids[:20],
    }


def _settle_outputs(files: Files, data: str, story: Story) -> None:
    wanted = {
        (output["producer"], output["topic"], output["partition"]): output
        for group in story.groups
        for output in group.get("outputs", ())
    }
    if not wanted:
        return
    walk = _Walk(broker_log(files, data))
    for record, _, _ in walk:
        if isinstance(record, Stored) and record.producer.startswith("@"):
            key = (record.producer, walk.topics.get(record.topic_number), record.partition)
            output = wanted.get(key)
            if output is not None and record.first_sequence == output["first_sequence"]:
                output["offset"] = record.first_offset
