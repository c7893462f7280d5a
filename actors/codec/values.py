"""User values and headers as bytes.

A value is bytes, text, or what msgpack carries. Map keys are text, datetimes are aware (they
travel as msgpack timestamps and come back in UTC), tuples come back as lists. A value that cannot
travel is refused when it is sent, with the path to the fault, not when it is read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgpack

from ..errors import Malformed, TooLarge, ValueNotEncodable
from ..limits import HEADERS_BYTES_MAX, KEY_BYTES_MAX, SYSTEM_HEADERS_BYTES_MAX

BYTES = 0
TEXT = 1
MSGPACK = 2

RESERVED_HEADER = "oncemq-"
_NESTING_MAX = 100  # below Python's recursion limit, and below what msgpack itself reads back
_BASES: tuple[Any, ...] = (
    str,
    bytes,
    bool,
    int,
    float,
)  # bool before int, of which it is a subclass
_PLAIN = frozenset({int, str, float, bool, bytes, type(None)})  # travel as they are, unchecked


def encode_value(value: Any, *, canonical: bool = False) -> tuple[int, bytes]:
    """Return (encoding, bytes) of a value.

    `canonical` sorts the keys of maps, so that equal maps give equal bytes: wanted under explicit
    ids, where two bodies are compared. Raises ValueNotEncodable with the path inside the value.
    """
    kind = type(value)
    if kind is bytes:
        return BYTES, value
    if kind is str:
        return TEXT, _encode_text(value, "value")
    if isinstance(value, bytearray | memoryview):
        return BYTES, bytes(value)
    if kind not in _PLAIN:
        value = _checked(value, "value", canonical=canonical, depth=0)
    try:
        return MSGPACK, msgpack.packb(value, datetime=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueNotEncodable(f"value: {error}") from None


def decode_value(encoding: int, data: bytes) -> Any:
    """The inverse of `encode_value`. Raises Malformed."""
    if encoding == BYTES:
        return bytes(data)
    try:
        if encoding == TEXT:
            return str(data, "utf-8")
        if encoding == MSGPACK:
            return msgpack.unpackb(data, timestamp=3)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"a stored value cannot be decoded: {error}") from None
    raise Malformed(f"unknown encoding of a value: {encoding}")


def encode_key(key: str | bytes) -> bytes:
    """Raises ValueNotEncodable, TooLarge."""
    if isinstance(key, str):
        data = _encode_text(key, "key")
    elif isinstance(key, bytes):
        data = key
    else:
        raise ValueNotEncodable(f"key: text or bytes wanted, not {type(key).__name__}")
    if len(data) > KEY_BYTES_MAX:
        raise TooLarge(f"a key is {len(data)} bytes long, the limit is {KEY_BYTES_MAX}")
    return data


def encode_headers(headers: Mapping[str, bytes]) -> bytes:
    """No headers give b"". Raises ValueNotEncodable, TooLarge."""
    if not headers:
        return b""
    for name, value in headers.items():
        if type(name) is not str or type(value) is not bytes:
            raise ValueNotEncodable(f"headers[{name!r}]: headers map text to bytes")
        _encode_text(name, "headers")
        if name.startswith(RESERVED_HEADER):
            raise ValueNotEncodable(f"headers[{name!r}]: names with {RESERVED_HEADER} are reserved")
    data: bytes = msgpack.packb(dict(headers))
    if len(data) > HEADERS_BYTES_MAX:
        raise TooLarge(f"headers are {len(data)} bytes long, the limit is {HEADERS_BYTES_MAX}")
    return data


def encode_letter_headers(own: Mapping[str, bytes], system: Mapping[str, bytes]) -> bytes:
    """Return a message's own headers and those that OnceMQ adds as bytes, within the limits.

    `own` come from the log. Headers above the limit of senders are left out: parking a message must
    never fail because of its headers.
    """
    data: bytes = msgpack.packb({**own, **system})
    if len(data) <= HEADERS_BYTES_MAX + SYSTEM_HEADERS_BYTES_MAX:
        return data
    alone: bytes = msgpack.packb(dict(system))
    assert len(alone) <= SYSTEM_HEADERS_BYTES_MAX, "system headers are bounded one by one"
    return alone


def decode_headers(data: bytes) -> dict[str, bytes]:
    """Raises Malformed."""
    if not data:
        return {}
    headers = decode_value(MSGPACK, data)
    if not isinstance(headers, dict) or not all(isinstance(v, bytes) for v in headers.values()):
        raise Malformed("stored headers are not a map of text to bytes")
    return headers


def _encode_text(text: str, path: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueNotEncodable(f"{path}: text holds a lone surrogate") from None


def _checked(value: Any, path: str, *, canonical: bool, depth: int) -> Any:
    """Return `value` in a form that msgpack carries faithfully; raise ValueNotEncodable if none."""
    if depth > _NESTING_MAX:
        raise ValueNotEncodable(f"{path}: nested deeper than {_NESTING_MAX}")
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise ValueNotEncodable(f"{path}: map key {key!r} is not text")
        items = sorted(value.items()) if canonical else value.items()
        return {
            key: item
            if type(item) in _PLAIN
            else _checked(item, f"{path}[{key!r}]", canonical=canonical, depth=depth + 1)
            for key, item in items
        }
    if isinstance(value, list | tuple):
        return [
            item
            if type(item) in _PLAIN
            else _checked(item, f"{path}[{index}]", canonical=canonical, depth=depth + 1)
            for index, item in enumerate(value)
        ]
    if isinstance(value, dt.datetime):
        if value.tzinfo is None:
            raise ValueNotEncodable(f"{path}: a datetime without a time zone")
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    for plain in _BASES:  # subclasses, enums among them
        if isinstance(value, plain):
            return plain(value)
    raise ValueNotEncodable(f"{path}: {type(value).__name__} cannot be carried")
