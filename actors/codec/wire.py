"""Wire messages as ZeroMQ frames: a msgpack header and, for some, one body frame.

docs/PROTOCOL.md is the contract. Everything that arrives is bounded before it is decoded, and
checked before it is believed: one `msgpack.unpackb` on one bounded frame, never a stream.
"""

from __future__ import annotations

import dataclasses
import struct
import typing
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import msgpack

from ..errors import Malformed, TooLarge
from ..limits import FRAME_BYTES_MAX, HEADER_FRAME_BYTES_MAX
from ..outcome import Received
from ..protocol import KINDS, Fetched, Message, Produce
from ..records import BatchStored
from . import batch as batch_codec
from .records import decode_stored, encode_stored_meta

_INT_MAX = 2**63 - 1  # offsets and positions are stored as signed 64-bit numbers
_SIGNED = frozenset({"first_sequence", "expected"})  # the fields in which -1 means "none"
_BYTES_FIELD_MAX = 64  # ids, nonces and digests have 16 to 32 bytes

# How msgpack begins an array of up to 15 and of more fields, and an integer.
_SHORT_ARRAY = 0x9
_LONG_ARRAY = 0xDC
_SMALL_INT_MAX = 0x7F
_INT_BYTES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_TEXT_FIELD_MAX = 4096  # room for a path; names have a shorter limit of their own
_STORED_HEAD = struct.Struct("<III")  # meta bytes, body bytes, body CRC


def _check_int(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _INT_MAX


_CHECKS: dict[type, Callable[[Any], bool]] = {
    int: _check_int,
    bool: lambda value: type(value) is bool,
    str: lambda value: type(value) is str and len(value) <= _TEXT_FIELD_MAX,
    bytes: lambda value: type(value) is bytes and len(value) <= _BYTES_FIELD_MAX,
}


def _check_signed(value: Any) -> bool:
    return type(value) is int and -1 <= value <= _INT_MAX


def _check_tuple(value: Any) -> bool:
    return type(value) is tuple


class _Shape:
    """How one kind of message looks on the wire: the fields in order, and a check for each.

    Fields with a default came with a later version and stand last. Those that hold the default are
    left off the end, so a peer of the earlier version never meets a field that it does not know.
    """

    def __init__(self, number: int, kind: type[Message]) -> None:
        hints = typing.get_type_hints(kind)
        self.kind: Any = kind
        self.number = number
        self.names = tuple(hints)
        self.values = attrgetter(*hints) if len(hints) > 1 else None
        fields = dataclasses.fields(kind)
        self.later = [f.default for f in fields if f.default is not dataclasses.MISSING]
        self.least = len(fields) - len(self.later)
        self.checks = tuple(
            _check_signed if name in _SIGNED else _CHECKS.get(hint, _check_tuple)
            for name, hint in hints.items()
        )

    def pack(self, message: Message) -> bytes:
        fields = self.values(message) if self.values else (message.request,)
        end = len(fields)
        while end > self.least and fields[end - 1] == self.later[end - 1 - self.least]:
            end -= 1
        if end < len(fields):
            fields = fields[:end]
        packed: bytes = msgpack.packb((self.number, *fields))
        return packed


_SHAPES = {number: _Shape(number, kind) for number, kind in KINDS.items()}
_SHAPE_OF = {shape.kind: shape for shape in _SHAPES.values()}


def encode(
    message: Message, body: bytes | memoryview | list[BatchStored] | None
) -> list[bytes | memoryview]:
    header = _SHAPE_OF[type(message)].pack(message)
    if body is None:
        return [header]
    return [header, pack_stored(body) if isinstance(body, list) else body]


def decode(peer: bytes, frames: list[bytes]) -> Received:
    """Return the checked message of a peer; b"" is the broker. Raises Malformed, TooLarge."""
    if not 1 <= len(frames) <= 2:
        raise Malformed(f"a message of {len(frames)} frames")
    if peer and len(frames[0]) > HEADER_FRAME_BYTES_MAX:  # a broker's lists may be longer
        raise TooLarge(
            f"a header frame of {len(frames[0])} bytes, the limit is {HEADER_FRAME_BYTES_MAX}",
            hint="use shorter names",
        )
    if max(map(len, frames)) > FRAME_BYTES_MAX:
        raise TooLarge(f"a frame of {max(map(len, frames))} bytes, the limit is {FRAME_BYTES_MAX}")
    message = _decode_header(frames[0])
    body = frames[1] if len(frames) == 2 else None
    if isinstance(message, Produce):
        if body is None:
            raise Malformed("a batch without its body")
        return Received(peer, message, batch=batch_codec.parse(body, message.crc, check=True))
    if isinstance(message, Fetched):
        return Received(peer, message, stored=unpack_stored(body or b""))
    if body is not None:
        raise Malformed(f"{type(message).__name__} has no body")
    return Received(peer, message)


def _decode_header(frame: bytes) -> Message:
    try:
        fields = msgpack.unpackb(frame, use_list=False, strict_map_key=True)
    except Exception as error:  # noqa: BLE001 - hostile bytes: whatever the parser raises
        raise Malformed(f"a header that is not msgpack: {type(error).__name__}") from None
    if type(fields) is not tuple or not fields or type(fields[0]) is not int:
        raise Malformed("a header that is not an array with a kind in front")
    shape = _SHAPES.get(fields[0])
    if shape is None:
        raise Malformed(f"unknown kind of message {fields[0]}")
    values = fields[1:]
    if not shape.least <= len(values) <= len(shape.names):
        raise Malformed(f"{shape.kind.__name__} with {len(values)} fields")
    for name, check, value in zip(shape.names, shape.checks, values, strict=False):
        if not check(value):
            raise Malformed(f"{shape.kind.__name__}.{name} has an impossible value")
    message: Message = shape.kind(*values)
    return message


def peek(frames: Sequence[bytes | memoryview]) -> tuple[type[Message] | None, int] | None:
    """Return kind and request number, not decoding the rest; None: there is no number to be read.

    The kind is None if it is not known. Nothing else of the message is checked.
    """
    header = frames[0] if frames else b""
    try:
        kind_at = 1 if header[0] >> 4 == _SHORT_ARRAY else 3
        if kind_at == 3 and header[0] != _LONG_ARRAY:
            return None
        tag = header[kind_at + 1]
        if tag <= _SMALL_INT_MAX:
            return KINDS.get(header[kind_at]), tag
        width = _INT_BYTES[tag]
        number = header[kind_at + 2 : kind_at + 2 + width]
    except (IndexError, KeyError):
        return None
    if len(number) < width:
        return None
    return KINDS.get(header[kind_at]), int.from_bytes(number, "big")


def request_number(frames: list[bytes]) -> int | None:
    """Return the request number of a message that could not be decoded; None if it has none."""
    if not frames or len(frames[0]) > HEADER_FRAME_BYTES_MAX:
        return None
    try:
        fields = msgpack.unpackb(frames[0], use_list=False)
    except Exception:  # noqa: BLE001 - hostile bytes: whatever the parser raises
        return None
    if type(fields) is tuple and len(fields) > 1 and _check_int(fields[1]):
        return int(fields[1])
    return None


def pack_stored(records: list[BatchStored]) -> bytes:
    parts: list[bytes | memoryview] = []
    for record in records:
        meta = encode_stored_meta(record)
        parts += (_STORED_HEAD.pack(len(meta), len(record.raw), record.crc), meta, record.raw)
    return b"".join(parts)


def unpack_stored(body: bytes) -> list[BatchStored]:
    """CRCs and columns are checked. Raises Malformed."""
    records: list[BatchStored] = []
    view = memoryview(body)
    at = 0
    while at < len(body):
        if at + _STORED_HEAD.size > len(body):
            raise Malformed("fetched records end inside a header")
        meta_bytes, body_bytes, crc = _STORED_HEAD.unpack_from(body, at)
        meta_at = at + _STORED_HEAD.size
        raw_at = meta_at + meta_bytes
        at = raw_at + body_bytes
        if at > len(body):
            raise Malformed("fetched records end inside a batch")
        record = decode_stored(view[meta_at:raw_at], view[raw_at:at], crc)
        record.batch = batch_codec.parse(record.raw, crc, check=True)
        if record.batch.count != record.count:
            raise Malformed("a stored batch has another count than its record says")
        records.append(record)
    return records


def pack_plain(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def pack_list(rows: Sequence[bytes]) -> bytes:
    """Return what `pack_plain` returns of a list, from its packed items."""
    header: bytes = msgpack.Packer().pack_array_header(len(rows))
    return b"".join((header, *rows))


def unpack_plain(data: bytes) -> Any:
    """Lists stand for arrays. Raises Malformed."""
    try:
        return msgpack.unpackb(
            data,
            strict_map_key=False,
            max_bin_len=len(data),
            max_str_len=len(data),
            max_array_len=len(data),
            max_map_len=len(data),
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise Malformed(f"a snapshot part cannot be decoded: {error}") from None
