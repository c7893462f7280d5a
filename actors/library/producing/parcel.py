"""Messages between `send` and the wire: checked and encoded columns, and the batches made of them.

All checks happen here, in the caller's thread, before a message gets a number: a number whose
message is refused later would leave a gap. Checked are values that cannot travel, and names, ids,
keys and headers against their limits. `send_many` works by bulk calls in C; it walks only mixed
columns in Python.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from ...batch import Batch, measure
from ...codec import batch as batch_codec
from ...codec import values as value_codec
from ...errors import InvalidName, TooLarge, ValueNotEncodable
from ...ids import BYTES_TAG, ID_HINT, TEXT_TAG, tagged_id
from ...limits import KEY_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGE_ID_BYTES_MAX
from ..messages.payloads import Serializer, encode_payload
from .acks import Verdicts

# Aimed size of a batch: far below the limits, so that several are in flight at once.
BATCH_MESSAGES = 4096
BATCH_BYTES = 1024 * 1024
# Bounds of a parcel that gathers single sends.
GATHER_MESSAGES = 1000
GATHER_BYTES = 256 * 1024

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MESSAGE_COST = 48  # memory of a message beside its bytes, so that the bound holds for tiny ones too

Item = TypeVar("Item")


class Parcel:
    """Messages of one topic and one kind of id, in the order of their sends. Columns are lists."""

    __slots__ = (
        "born_ms",
        "created_at_ms",
        "encodings",
        "headers",
        "ids",
        "keys",
        "open",
        "size",
        "topic",
        "values",
        "verdicts",
    )

    def __init__(self, topic: str, verdicts: Verdicts, *, explicit: bool, born_ms: int) -> None:
        self.topic = topic
        self.verdicts = verdicts
        self.values: list[bytes] = []
        self.encodings: int | list[int] = []
        self.keys: list[bytes | None] | None = None
        self.ids: list[bytes] | None = [] if explicit else None
        self.headers: list[bytes] | None = None
        self.created_at_ms: list[int] | None = None  # of all messages or of none
        self.size = 0  # bytes that count against the bound of the producer
        self.open = True  # more single messages may be added
        self.born_ms = born_ms

    def __len__(self) -> int:
        return len(self.values)

    def add(self, message: Message) -> int:
        index = len(self.values)
        self.values.append(message.value)
        assert isinstance(self.encodings, list)
        self.encodings.append(message.encoding)
        if message.key is not None and self.keys is None:
            self.keys = [None] * index
        if self.keys is not None:
            self.keys.append(message.key)
        if message.headers and self.headers is None:
            self.headers = [b""] * index
        if self.headers is not None:
            self.headers.append(message.headers)
        if self.ids is not None:
            assert message.id is not None
            self.ids.append(message.id)
        if message.created_at_ms is not None:
            if index == 0:
                self.created_at_ms = []
            assert self.created_at_ms is not None, "see takes"
            self.created_at_ms.append(message.created_at_ms)
        self.size += message.size
        return index

    def takes(self, message: Message) -> bool:
        """Whether `message` belongs into this parcel and finds room."""
        return (
            self.open
            and (self.ids is not None) == (message.id is not None)
            and (not self.values or self._dated == (message.created_at_ms is not None))
            and len(self.values) < GATHER_MESSAGES
            and self.size + message.size <= GATHER_BYTES
        )

    @property
    def _dated(self) -> bool:
        return self.created_at_ms is not None

    @property
    def full(self) -> bool:
        return not self.open or len(self.values) >= GATHER_MESSAGES or self.size >= GATHER_BYTES

    def seal(self) -> None:
        if self.open:
            self.open = False
            self.verdicts.expect(len(self.values))
            self.verdicts.ids = self.ids
            if isinstance(self.encodings, list) and len(set(self.encodings)) == 1:
                self.encodings = self.encodings[0]


class Message(NamedTuple):
    """One checked and encoded message."""

    encoding: int
    value: bytes
    key: bytes | None
    id: bytes | None  # tagged
    headers: bytes
    size: int  # bytes that it takes, roughly, until it is acknowledged
    created_at_ms: int | None = None


def checked_message(
    value: Any,
    *,
    id: str | bytes | None,  # noqa: A002 - the name that users know
    key: str | bytes | None,
    headers: Mapping[str, bytes] | None,
    serializer: Serializer | None = None,
    created_at: datetime | int | None = None,
) -> Message:
    """Return a message ready to be sent.

    Raises ValueNotEncodable, TooLarge, InvalidName (an id that is empty or of a wrong type).
    """
    created_at_ms = None if created_at is None else milliseconds_of(created_at)
    encoding, data = encode_payload(value, canonical=id is not None, serializer=serializer)
    key_bytes = None if key is None else value_codec.encode_key(key)
    tagged = None if id is None else tagged_id(id)
    header_bytes = value_codec.encode_headers(headers) if headers else b""
    length = len(data) + len(key_bytes or b"")
    if length > MESSAGE_BYTES_MAX:
        raise TooLarge(f"a message is {length} bytes long, the limit is {MESSAGE_BYTES_MAX}")
    size = length + len(tagged or b"") + len(header_bytes) + MESSAGE_COST
    return Message(encoding, data, key_bytes, tagged, header_bytes, size, created_at_ms)


def milliseconds_of(created_at: object) -> int:
    """Return milliseconds since 1970. Raises ValueNotEncodable."""
    found: object = created_at
    if isinstance(created_at, datetime) and created_at.tzinfo is not None:
        found = (created_at - _EPOCH) // timedelta(milliseconds=1)
    if type(found) is not int or not 0 <= found < 1 << 63:
        raise ValueNotEncodable(
            f"created_at is {created_at!r}",
            hint="pass an aware datetime, or whole milliseconds since 1970",
        )
    return found


def checked_many(
    parcel: Parcel,
    values: list[Any],
    ids: list[Any] | None,
    keys: list[Any] | None,
    serializer: Serializer | None = None,
    created_at: list[Any] | None = None,
) -> None:
    """Raises what `checked_message` raises."""
    for name, column in (("ids", ids), ("keys", keys), ("created_at", created_at)):
        if column is not None and len(column) != len(values):
            raise ValueError(f"{len(values)} values but {len(column)} {name}")
    parcel.encodings, parcel.values = _encode_values(
        values, canonical=ids is not None, serializer=serializer
    )
    total, longest = measure(array("I", map(len, parcel.values)))
    parcel.size = total + MESSAGE_COST * len(values)
    if ids is not None:
        parcel.ids = _tag_ids(ids)
        parcel.size += sum(map(len, parcel.ids))
    if keys is not None:
        parcel.keys = _encode_keys(keys)
        if parcel.keys is not None:
            longest = max(
                len(k or b"") + len(v) for k, v in zip(parcel.keys, parcel.values, strict=True)
            )
            parcel.size += sum(len(key) for key in parcel.keys if key)
    if longest > MESSAGE_BYTES_MAX:
        raise TooLarge(f"a message is {longest} bytes long, the limit is {MESSAGE_BYTES_MAX}")
    if created_at is not None:
        parcel.created_at_ms = list(map(milliseconds_of, created_at))
    parcel.seal()


def _encode_values(
    values: list[Any], *, canonical: bool, serializer: Serializer | None
) -> tuple[int | list[int], list[bytes]]:
    kinds = set(map(type, values))
    if kinds == {bytes}:
        return value_codec.BYTES, values
    if kinds == {str}:
        try:
            return value_codec.TEXT, list(map(str.encode, values))
        except UnicodeEncodeError:
            raise ValueNotEncodable("value: text holds a lone surrogate") from None
    encoded = []
    for index, value in enumerate(values):
        try:
            encoded.append(encode_payload(value, canonical=canonical, serializer=serializer))
        except ValueNotEncodable as error:
            reason = f"values[{index}]: {error.reason}"
            raise ValueNotEncodable(reason, hint=error.hint) from None
    encodings = [encoding for encoding, _ in encoded]
    one_kind = len(set(encodings)) == 1
    return (encodings[0] if one_kind else encodings), [data for _, data in encoded]


def _tag_ids(ids: list[Any]) -> list[bytes]:
    kinds = set(map(type, ids))
    if kinds == {str}:
        try:
            # One encode for all ids. An id that holds a NUL gives another number of pieces.
            tagged = ("s" + "\0s".join(ids)).encode().split(b"\0")
            if len(tagged) != len(ids):
                tagged = list(map(TEXT_TAG.__add__, map(str.encode, ids)))
        except UnicodeEncodeError:
            raise InvalidName("a message id holds a lone surrogate", hint=ID_HINT) from None
    elif kinds == {bytes}:
        tagged = list(map(BYTES_TAG.__add__, ids))
    else:
        return list(map(tagged_id, ids))
    sizes = list(map(len, tagged))
    if min(sizes) < 2 or max(sizes) > MESSAGE_ID_BYTES_MAX + 1:
        return list(map(tagged_id, ids))  # finds the culprit and raises
    return tagged


def _encode_keys(keys: list[Any]) -> list[bytes | None] | None:
    kinds = set(map(type, keys))
    if kinds == {type(None)}:
        return None
    if kinds == {str}:
        try:
            encoded: list[bytes | None] = list(map(str.encode, keys))
        except UnicodeEncodeError:
            raise ValueNotEncodable("key: text holds a lone surrogate") from None
        longest = max(len(key or b"") for key in encoded)
        if longest > KEY_BYTES_MAX:
            raise value_codec.too_long_key(longest)
        return encoded
    return [None if key is None else value_codec.encode_key(key) for key in keys]


# --- batches -------------------------------------------------------------------------------------


class Cut(NamedTuple):
    """One batch of a parcel."""

    partition: int
    members: Sequence[int]  # indices of its messages in the parcel
    batch: Batch


def cut(parcel: Parcel, partitions: int, next_keyless: Callable[[int], int]) -> Iterator[Cut]:
    """Yield the batches of a sealed parcel, each made when it is asked for.

    `next_keyless(n)` takes n numbers from the count of messages without key and id.
    """
    assert not parcel.open, "seal the parcel first"
    small = len(parcel) <= BATCH_MESSAGES and parcel.size <= BATCH_BYTES
    weights = None if small else _weights(parcel)
    for partition, members in _by_partition(parcel, partitions, next_keyless):
        for chosen in _slices(members, weights):
            yield Cut(partition, chosen, build_batch(parcel, chosen))


def _by_partition(
    parcel: Parcel, partitions: int, next_keyless: Callable[[int], int]
) -> Iterator[tuple[int, Sequence[int]]]:
    count = len(parcel)
    if partitions == 1:
        yield 0, range(count)
        return
    chosen: dict[int, list[int]] = {}
    for index, partition in enumerate(_partitions(parcel, partitions, next_keyless)):
        chosen.setdefault(partition, []).append(index)
    yield from sorted(chosen.items())


def _partitions(
    parcel: Parcel, partitions: int, next_keyless: Callable[[int], int]
) -> Iterator[int]:
    """As ids.partition_of chooses them."""
    keys = parcel.keys or [None] * len(parcel)
    if parcel.ids is not None:
        for key, tagged in zip(keys, parcel.ids, strict=True):
            yield zlib.crc32(tagged[1:] if key is None else key) % partitions
        return
    keyless = next_keyless(keys.count(None))
    for key in keys:
        if key is None:
            yield keyless % partitions
            keyless += 1
        else:
            yield zlib.crc32(key) % partitions


def _slices(members: Sequence[int], weights: list[int] | None) -> Iterator[Sequence[int]]:
    """Pieces that make batches of a good size; no weights: all are small."""
    if weights is None:
        yield members
        return
    ends = list(accumulate(map(weights.__getitem__, members)))
    start, done = 0, 0
    while start < len(members):
        stop = bisect_right(ends, done + BATCH_BYTES, start, min(start + BATCH_MESSAGES, len(ends)))
        stop = max(stop, start + 1)
        yield members[start:stop]
        start, done = stop, ends[stop - 1]


def _weights(parcel: Parcel) -> list[int]:
    columns = [column for column in (parcel.keys, parcel.ids, parcel.headers) if column is not None]
    weights = list(map(len, parcel.values))
    for column in columns:
        weights = [weight + len(item or b"") for weight, item in zip(weights, column, strict=True)]
    return weights


def _pick(column: list[Item], members: Sequence[int]) -> list[Item]:
    if isinstance(members, range):
        if len(members) == len(column):
            return column
        return column[members.start : members.stop]
    return [column[index] for index in members]


def build_batch(parcel: Parcel, members: Sequence[int]) -> Batch:
    encodings = parcel.encodings
    return batch_codec.build(
        _pick(parcel.values, members),
        encodings=encodings if isinstance(encodings, int) else _pick(encodings, members),
        keys=None if parcel.keys is None else _pick(parcel.keys, members),
        ids=None if parcel.ids is None else _pick(parcel.ids, members),
        headers=None if parcel.headers is None else _pick(parcel.headers, members),
        created_at_ms=None
        if parcel.created_at_ms is None
        else _pick(parcel.created_at_ms, members),
    )
