"""Log records as (type, meta, body): what storage frames and chains.

A stored batch keeps the bytes in which it arrived as the body, with the sender's CRC; what the
broker decided about it is the meta, a packed struct. All other records are one msgpack array.
docs/STORAGE.md lists the types; a type's number and layout never change, only new ones come.
"""

from __future__ import annotations

import struct
from operator import attrgetter
from typing import Any

import msgpack

from ..errors import Malformed, UnsupportedFormat
from ..history import Place
from ..records import (
    AttemptMarked,
    BatchStored,
    Committed,
    EffectEnded,
    EffectIntended,
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    HorizonMarked,
    LedgerEnded,
    LedgerReplaced,
    LedgerStarted,
    Output,
    Parked,
    ProducerGranted,
    ProducerRetired,
    Record,
    Renumbered,
    Skipped,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    Trimmed,
)
from . import batch as batch_codec

TOPIC_CREATED = 1
PRODUCER_GRANTED = 2
BATCH_STORED = 3
GROUP_GRANTED = 4
GROUP_REWOUND = 5
HISTORY_BEGUN = 6
GROUP_GRANTED_SEEN = (
    7  # GroupGranted with the place of its ledger, which earlier versions did not know
)
LEDGER_REPLACED = 8
TOPIC_CONFIGURED = 9
LEDGER_STARTED = 10
COMMITTED = 11
COMMITTED_MORE = 12  # Committed with the parts of _MORE, which earlier versions did not write
ATTEMPT_MARKED = 13
EFFECT_INTENDED = 14
EFFECT_ENDED = 15
LEDGER_ENDED = 16
HORIZON_MARKED = 17
PRODUCER_RETIRED = 18
TRIMMED = 20
TOPIC_DELETED = 21

# topic number, partition, first offset, kept, count, at_ms, epoch, first sequence,
# bytes of producer name, of digest, of mask; then those bytes
_STORED = struct.Struct("<IIQIIQIqHBH")

_SIMPLE: dict[int, tuple[type[Any], tuple[str, ...]]] = {
    TOPIC_CREATED: (TopicCreated, ("topic", "topic_id", "partitions", "at_ms")),
    PRODUCER_GRANTED: (ProducerGranted, ("producer", "epoch", "nonce", "label", "at_ms")),
    GROUP_GRANTED: (
        GroupGranted,
        (
            "group",
            "topic",
            "partition",
            "epoch",
            "incarnation",
            "ledger_id",
            "next_offset",
            "host",
            "path",
            "label",
            "at_ms",
        ),
    ),
    GROUP_REWOUND: (
        GroupRewound,
        ("group", "topic", "partition", "epoch", "next_offset", "at_ms"),
    ),
    LEDGER_REPLACED: (
        LedgerReplaced,
        ("group", "topic", "partition", "epoch", "ledger_id", "at_ms"),
    ),
    TOPIC_CONFIGURED: (
        TopicConfigured,
        (
            "topic_number",
            "dedup_ms",
            "retain_ms",
            "retain_bytes",
            "retain_processed",
            "at_ms",
        ),
    ),
    HISTORY_BEGUN: (HistoryBegun, ("mark", "generation", "at_ms")),
    LEDGER_STARTED: (
        LedgerStarted,
        ("group", "topic", "partition", "topic_id", "log_id", "lineage", "start_offset"),
    ),
    ATTEMPT_MARKED: (AttemptMarked, ("epoch", "topic_id", "offset", "deaths", "returned")),
    EFFECT_INTENDED: (
        EffectIntended,
        ("epoch", "topic_id", "offset", "key", "name", "number", "policy", "at_ms"),
    ),
    EFFECT_ENDED: (
        EffectEnded,
        (
            "epoch",
            "topic_id",
            "offset",
            "name",
            "number",
            "how",
            "policy",
            "encoding",
            "value",
            "at_ms",
        ),
    ),
    LEDGER_ENDED: (LedgerEnded, ("epoch",)),
    PRODUCER_RETIRED: (ProducerRetired, ("producer", "at_ms")),
    HORIZON_MARKED: (HorizonMarked, ("topic_number", "floor_ms", "forgotten_ms", "at_ms")),
    TRIMMED: (Trimmed, ("topic_number", "partition", "below", "why", "at_ms")),
    TOPIC_DELETED: (TopicDeleted, ("topic_number", "at_ms")),
}
_NUMBER_OF = {kind: number for number, (kind, _) in _SIMPLE.items()}
_FIELDS_OF = dict(_SIMPLE.values())


def _parked_fields(parked: Parked) -> tuple[Any, ...]:
    fields = (parked.topic_id, parked.offset, parked.kind, parked.attempts)
    return (*fields, parked.error) if parked.error else fields


_OUTPUT = attrgetter("topic", "partition", "first_sequence", "count", "raw", "crc")
# Parts of a commit that are written under their names, and only where there are any: an unknown
# name is refused, so an earlier version never drops a part that it does not know.
_MORE: dict[str, tuple[type[Any], Any]] = {
    "parked": (Parked, _parked_fields),
    "skipped": (Skipped, attrgetter("topic_id", "first_offset", "next_offset", "reason")),
    "renumbered": (Renumbered, attrgetter("topic", "partition", "first_sequence")),
}
_PLACES = ("seen", "accepted")  # more parts: places, each as a list with one entry


def type_name(number: int) -> str:
    """Return "" for an unknown type."""
    known = {number: kind.__name__ for number, (kind, _) in _SIMPLE.items()}
    known[BATCH_STORED] = BatchStored.__name__
    known[COMMITTED] = known[COMMITTED_MORE] = Committed.__name__
    known[GROUP_GRANTED_SEEN] = GroupGranted.__name__
    return known.get(number, "")


def encode(record: Record) -> tuple[int, bytes, bytes | memoryview, int | None]:
    """Return (type, meta, body, body CRC; None where the log must compute it)."""
    if isinstance(record, BatchStored):
        return BATCH_STORED, encode_stored_meta(record), record.raw, record.crc
    if isinstance(record, Committed):
        return _encode_committed(record)
    kind = type(record)
    fields = [getattr(record, name) for name in _FIELDS_OF[kind]]
    if isinstance(record, GroupGranted) and record.seen.mark:
        return GROUP_GRANTED_SEEN, b"", msgpack.packb([*fields, *record.seen]), None
    return _NUMBER_OF[kind], b"", msgpack.packb(fields), None


def _encode_committed(record: Committed) -> tuple[int, bytes, bytes, None]:
    fields: tuple[Any, ...] = (
        record.epoch,
        record.commit_no,
        record.inputs,
        record.ranges,
        record.fingerprints,
        record.state,
        [_OUTPUT(output) for output in record.outputs],
        record.acked,
    )
    more = {
        name: [fields_of(entry) for entry in entries]
        for name, (_, fields_of) in _MORE.items()
        if (entries := getattr(record, name))
    }
    for name in _PLACES:
        if (place := getattr(record, name)).mark:
            more[name] = [tuple(place)]
    if not more:
        return COMMITTED, b"", msgpack.packb(fields), None
    return COMMITTED_MORE, b"", msgpack.packb((*fields, more)), None


def decode(
    type_number: int,
    meta: bytes | memoryview,
    body: bytes | memoryview,
    crc: int,
    *,
    columns: bool = False,
) -> Record:
    """Return the record; `columns` also parses the columns of a stored batch.

    Raises UnsupportedFormat, and Malformed: the bytes passed their CRC, so a bug wrote them.
    """
    if type_number == BATCH_STORED:
        stored = decode_stored(meta, body, crc)
        if columns:
            stored.batch = batch_codec.parse(body, crc, check=False)
        return stored
    try:
        fields = msgpack.unpackb(body, use_list=False, strict_map_key=True)
        if type_number == COMMITTED:
            return _decode_committed(fields)
        if type_number == COMMITTED_MORE:
            return _decode_more(fields)
        if type_number == GROUP_GRANTED_SEEN:
            *of_grant, mark, position = fields
            granted = GroupGranted(*of_grant)
            granted.seen = Place(mark, position)
            return granted
        kind, names = _SIMPLE[type_number]
        return kind(**dict(zip(names, fields, strict=True)))  # type: ignore[no-any-return]
    except KeyError:
        raise Malformed(f"unknown record type {type_number}") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Malformed(f"record of type {type_number} cannot be decoded: {error}") from None


def _decode_committed(fields: tuple[Any, ...]) -> Committed:
    epoch, commit_no, inputs, ranges, fingerprints, state, outputs, acked = fields
    return Committed(
        epoch,
        commit_no,
        list(inputs),
        list(ranges),
        fingerprints,
        state,
        [Output(*output) for output in outputs],
        list(acked),
    )


def _decode_more(fields: tuple[Any, ...]) -> Committed:
    committed = _decode_committed(fields[:-1])
    for name, entries in fields[-1].items():
        if name in _PLACES:
            (place,) = entries
            setattr(committed, name, Place(*place))
            continue
        if name not in _MORE:
            raise UnsupportedFormat(f"a commit holds {name!r}, which this version does not know")
        kind = _MORE[name][0]
        setattr(committed, name, [kind(*entry) for entry in entries])
    return committed


def encode_stored_meta(record: BatchStored) -> bytes:
    producer = record.producer.encode()
    return (
        _STORED.pack(
            record.topic_number,
            record.partition,
            record.first_offset,
            record.kept,
            record.count,
            record.at_ms,
            record.epoch,
            record.first_sequence,
            len(producer),
            len(record.digest),
            len(record.mask),
        )
        + producer
        + record.digest
        + record.mask
    )


def stored_place(meta: bytes | memoryview) -> tuple[tuple[int, int], int]:
    """Return (topic number, partition) and end offset of a stored batch, without decoding the rest."""
    topic_number, partition, first_offset, kept = _STORED.unpack_from(meta)[:4]
    return (topic_number, partition), first_offset + kept


def decode_stored(meta: bytes | memoryview, body: bytes | memoryview, crc: int) -> BatchStored:
    """The columns are not parsed. Raises Malformed."""
    meta = bytes(meta)
    if len(meta) < _STORED.size:
        raise Malformed("the meta of a stored batch is too short")
    (
        topic_number,
        partition,
        first_offset,
        kept,
        count,
        at_ms,
        epoch,
        first_sequence,
        producer_bytes,
        digest_bytes,
        mask_bytes,
    ) = _STORED.unpack_from(meta)
    digest_at = _STORED.size + producer_bytes
    mask_at = digest_at + digest_bytes
    if mask_at + mask_bytes != len(meta):
        raise Malformed("the meta of a stored batch has another length than it says")
    return BatchStored(
        topic_number,
        partition,
        first_offset,
        kept,
        at_ms,
        meta[_STORED.size : digest_at].decode(errors="strict"),
        epoch,
        first_sequence,
        meta[mask_at:],
        meta[digest_at:mask_at],
        body,
        crc,
        count,
    )
