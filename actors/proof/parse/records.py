"""Records of the broker's log and of ledgers, from what frames hold.

1  topic created      msgpack [topic, topic_id, partitions, at_ms]
2  producer granted   msgpack [producer, epoch, nonce, label, at_ms]
3  batch stored       meta: topic number u32, partition u32, first offset u64, kept u32,
                      messages u32, at_ms u64, epoch u32, first sequence i64, lengths of
                      producer u16, digest u8 and mask u16; producer, digest, mask.
                      body: the batch as it arrived
4  group granted      msgpack [group, topic, partition, epoch, incarnation, ledger_id,
                      next_offset, host, path, label, at_ms]
5  group rewound      msgpack [group, topic, partition, epoch, next_offset, at_ms]
6  history begun      msgpack [mark, generation, at_ms]
7  group granted      the fields of 4, then what the ledger relied on: mark, position
8  ledger replaced    msgpack [group, topic, partition, epoch, ledger_id, at_ms]
9  topic configured   msgpack [topic number, dedup_ms, retain_ms, retain_bytes, retain_processed,
                      at_ms], nil for no bound
10 ledger started     msgpack [group, topic, partition, topic_id, log_id, lineage, start_offset]
11 committed          msgpack [epoch, commit_no, inputs, ranges, fingerprints, state, outputs,
                      acked]
12 the same and more  the fields of 11, then a map of names to lists:
                      parked [topic_id, offset, kind, attempts, and, if any, type of error],
                      skipped [topic_id, first_offset, next_offset, reason],
                      seen, one entry: what the ledger relies on [mark, position],
                      renumbered [topic, partition, first_sequence],
                      accepted, one entry: what an operator gave up [mark, position]
13 attempt marked     msgpack [epoch, topic_id, offset, deaths, returned]
14 effect intended    msgpack [epoch, topic_id, offset, key, name, number, policy, at_ms]
15 effect ended       msgpack [epoch, topic_id, offset, name, number, how, policy, encoding,
                      value, at_ms]
16 ledger ended       msgpack [epoch]
18 producer retired   msgpack [producer, at_ms]
17 horizon marked     msgpack [topic number, floor_ms, forgotten_ms, at_ms]
20 trimmed            msgpack [topic number, partition, below, why, at_ms]
21 topic deleted      msgpack [topic number, at_ms]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

import msgpack

from .frames import Frame

TOPIC, PRODUCER, STORED, GROUP, REWOUND, STARTED, COMMITTED = 1, 2, 3, 4, 5, 10, 11
HISTORY, GROUP_SEEN, REPLACED, CONFIGURED = 6, 7, 8, 9
COMMITTED_MORE, MARKED, INTENDED, EFFECT_ENDED, ENDED, HORIZON, RETIRED = 12, 13, 14, 15, 16, 17, 18
TRIMMED, DELETED = 20, 21
FINGERPRINT_BYTES = 16

_STORED = Struct("<IIQIIQIqHBH")


class BadRecord(Exception):
    """A frame whose checksum holds and whose content makes no sense. Carries the reason."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic was created."""

    topic: str
    topic_id: bytes
    partitions: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings of a topic from here on."""

    topic_number: int
    dedup_ms: int | None
    retain_ms: int | None
    retain_bytes: int | None
    retain_processed: bool
    at_ms: int

    @property
    def settings(self) -> tuple[int | None, int | None, int | None, bool]:
        return self.dedup_ms, self.retain_ms, self.retain_bytes, self.retain_processed


@dataclass(frozen=True, slots=True)
class HorizonMark:
    """A topic has forgotten the ids of what was stored up to `forgotten_ms`."""

    topic_number: int
    floor_ms: int
    forgotten_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class ProducerGrant:
    """A producer name has a new owner."""

    producer: str
    epoch: int
    nonce: bytes
    label: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Retirement:
    """Of a producer name only its epoch and its numbers are kept."""

    producer: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A batch was stored."""

    topic_number: int
    partition: int
    first_offset: int
    kept: int
    count: int
    at_ms: int
    epoch: int
    first_sequence: int  # -1: explicit ids
    producer: str
    digest: bytes
    mask: bytes
    raw: memoryview
    crc: int

    def kept_indices(self) -> Sequence[int]:
        if not self.mask:
            return range(self.count)
        bits = int.from_bytes(self.mask, "little")
        return [index for index in range(self.count) if bits >> index & 1]

    @property
    def end_offset(self) -> int:
        return self.first_offset + self.kept


@dataclass(frozen=True, slots=True)
class GroupGrant:
    """A partition of a group has a new owner."""

    group: str
    topic: str
    partition: int
    epoch: int
    incarnation: bytes
    ledger_id: bytes
    next_offset: int
    host: str
    path: str
    label: str
    at_ms: int
    mark: bytes = b""
    position: int = 0


@dataclass(frozen=True, slots=True)
class GroupRewind:
    """An operator, who owns the partition, lets its ledger stand at a lower offset."""

    group: str
    topic: str
    partition: int
    epoch: int
    next_offset: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """An operator gives a partition another ledger, with the grant of this epoch."""

    group: str
    topic: str
    partition: int
    epoch: int
    ledger_id: bytes  # of the lost one
    at_ms: int


@dataclass(frozen=True, slots=True)
class History:
    """A generation of the broker begins: what it writes has this mark."""

    mark: bytes
    generation: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Trim:
    """Messages below an offset are deleted."""

    topic_number: int
    partition: int
    below: int
    why: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """A topic is deleted."""

    topic_number: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Started:
    """The first record of a ledger."""

    group: str
    topic: str
    partition: int
    topic_id: bytes
    log_id: bytes
    lineage: bytes
    start_offset: int


@dataclass(frozen=True, slots=True)
class Output:
    """Outgoing messages of a commit to one partition."""

    topic: str
    partition: int
    first_sequence: int
    count: int
    raw: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class Committed:
    """One commit of a consumer."""

    epoch: int
    commit_no: int
    inputs: tuple[tuple[bytes, int], ...]
    ranges: tuple[tuple[str, int, int], ...]
    fingerprints: bytes
    state: dict[str, bytes | None]
    outputs: tuple[Output, ...]
    acked: tuple[tuple[str, int, int], ...]
    parked: tuple[tuple[Any, ...], ...] = ()  # topic_id, offset, kind, attempts[, type of error]
    skipped: tuple[tuple[bytes, int, int, str], ...] = ()  # topic_id, from, to, reason
    seen: tuple[tuple[bytes, int], ...] = ()  # mark, position
    renumbered: tuple[tuple[str, int, int], ...] = ()  # topic, partition, next output's number
    accepted: tuple[tuple[bytes, int], ...] = ()  # mark, position


@dataclass(frozen=True, slots=True)
class Marked:
    """An attempt at one message alone begins, or came back."""

    epoch: int
    topic_id: bytes
    offset: int
    deaths: int
    returned: bool


@dataclass(frozen=True, slots=True)
class EffectIntended:
    """A handler may call the outside world from here on."""

    epoch: int
    topic_id: bytes
    offset: int
    key: str
    name: str
    number: int
    policy: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class EffectEnded:
    """What became of the call of this number."""

    epoch: int
    topic_id: bytes
    offset: int
    name: str
    number: int
    how: str
    policy: str
    encoding: int
    value: bytes
    at_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A generation ended well."""

    epoch: int


Record = (
    Topic
    | ProducerGrant
    | Stored
    | GroupGrant
    | GroupRewind
    | Replacement
    | Configuration
    | HorizonMark
    | Retirement
    | History
    | Trim
    | Deletion
    | Started
    | Committed
    | Marked
    | EffectIntended
    | EffectEnded
    | Ended
)

_ARRAYS: dict[int, Any] = {
    TOPIC: Topic,
    PRODUCER: ProducerGrant,
    GROUP: GroupGrant,
    GROUP_SEEN: GroupGrant,
    REWOUND: GroupRewind,
    REPLACED: Replacement,
    CONFIGURED: Configuration,
    HORIZON: HorizonMark,
    RETIRED: Retirement,
    HISTORY: History,
    STARTED: Started,
    MARKED: Marked,
    INTENDED: EffectIntended,
    EFFECT_ENDED: EffectEnded,
    ENDED: Ended,
    TRIMMED: Trim,
    DELETED: Deletion,
}
# How many fields an entry may have.
_MORE = {"parked": {4, 5}, "skipped": {4}, "seen": {2}, "renumbered": {3}, "accepted": {2}}


def parse(frame: Frame) -> Record:
    """Raises BadRecord."""
    try:
        if frame.kind == STORED:
            return _stored(frame)
        fields = msgpack.unpackb(frame.body, use_list=False)
        if frame.kind == COMMITTED:
            return _committed(fields, {})
        if frame.kind == COMMITTED_MORE:
            return _committed(fields[:-1], fields[-1])
        return _ARRAYS[frame.kind](*fields)  # type: ignore[no-any-return]
    except KeyError:
        raise BadRecord(f"unknown record type {frame.kind}") from None
    except (ValueError, TypeError, msgpack.UnpackException, UnicodeDecodeError) as error:
        raise BadRecord(f"a record of type {frame.kind} cannot be decoded: {error}") from None


def _committed(fields: tuple[Any, ...], more: dict[str, Any]) -> Committed:
    epoch, number, inputs, ranges, fingerprints, state, outputs, acked = fields
    if len(fingerprints) % FINGERPRINT_BYTES:
        raise BadRecord("fingerprints that are not whole")
    for name, entries in more.items():
        if name not in _MORE:
            raise BadRecord(f"a commit holds {name!r}: a newer OnceMQ wrote it")
        if any(len(entry) not in _MORE[name] for entry in entries):
            raise BadRecord(f"a commit whose {name} have another shape than they must")
    its = tuple(Output(*output) for output in outputs)
    return Committed(epoch, number, inputs, ranges, fingerprints, state, its, acked, **more)


Skip = tuple[bytes, int, int, str]  # as in a commit
Skips = list[tuple[int, int, str]]  # what is passed over: first and next offset, reason


def after_skip(skips: Skips, skip: Skip) -> Skips:
    """Return what is passed over once an operator has moved the offset, forward or back."""
    _, first, following, reason = skip
    if first < following:
        return [*skips, (first, following, reason)]
    return [(low, min(high, following), why) for low, high, why in skips if low < following]


def _stored(frame: Frame) -> Stored:
    meta = frame.meta
    if len(meta) < _STORED.size:
        raise BadRecord("the meta of a stored batch is too short")
    number, partition, first, kept, count, at_ms, epoch, sequence, name, digest, mask = (
        _STORED.unpack_from(meta)
    )
    digest_at = _STORED.size + name
    mask_at = digest_at + digest
    if mask_at + mask != len(meta):
        raise BadRecord("the meta of a stored batch has another length than it says")
    stored = Stored(
        number,
        partition,
        first,
        kept,
        count,
        at_ms,
        epoch,
        sequence,
        meta[_STORED.size : digest_at].decode(),
        meta[digest_at:mask_at],
        meta[mask_at:],
        frame.body,
        frame.body_crc,
    )
    if not 0 < kept <= count or (not mask and kept != count):
        raise BadRecord(f"a stored batch that keeps {kept} of {count} messages")
    if mask and (int.from_bytes(stored.mask, "little").bit_count() != kept):
        raise BadRecord("a mask that keeps another number of messages than the record says")
    return stored


def unpack(data: bytes) -> Any:
    """Raises BadRecord."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadRecord(f"a snapshot part cannot be decoded: {error}") from None
