"""User values and headers as bytes.

A value is bytes, text, or what msgpack carries. Map keys are text, datetimes are aware (they
travel as msgpack timestamps and come back as the same instant in UTC), tuples come back as lists. A
subclass (a member of an enum, `OrderedDict`, a datetime of pandas) travels as its built-in type if it
equals that. Whatever is accepted comes back equal. What cannot is refused when it is sent, with the
path to the fault, not when it is read.
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
# 3 marks the state of a message key (entries.py).
SERIALIZED = 4  # one byte with the length of a serializer's name, the name, and its bytes

RESERVED_HEADER = "oncemq-"
_NESTING_MAX = 100  # below Python's recursion limit, and below what msgpack itself reads back
_PLAIN = frozenset({int, str, float, bool, bytes, type(None)})  # travel as they are, unchecked
_INT_MIN, _INT_END = -(2**63), 2**64
# Of each built-in type: what returns the built-in value inside an object of a subclass. The methods
# of the subclass are not asked, since `str()` of an enum member gives the name of the member.
_BASES: tuple[tuple[Any, Any], ...] = (
    (str, str.__str__),
    (bytes, lambda value: bytes(memoryview(value))),
    (int, int.__int__),
    (float, float.__float__),
    (dict, lambda value: dict(dict.items(value))),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: tuple(tuple.__iter__(value))),
)
# By the name of a class: what to write instead of an object of it.
_ADVICE = {
    "UUID": "write: str(id)",
    "Decimal": "write: str(amount)",
    "date": "write: day.isoformat()",
    "time": "write: clock.isoformat()",
    "timedelta": "write: span.total_seconds()",
    "set": "write: sorted(items)",
    "frozenset": "write: sorted(items)",
    "Enum": "write: member.value",
    "generic": "write: number.item()",  # of numpy
    "ndarray": "write: array.tolist()",
}
# By an attribute of a class with named fields: the same for its objects.
_FORMS = (
    ("__dataclass_fields__", "write: dataclasses.asdict(item)"),
    ("__struct_fields__", "write: msgspec.to_builtins(item)"),
    ("__attrs_attrs__", "write: attrs.asdict(item)"),
    ("model_dump", "write: item.model_dump(mode='json')"),
)


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
    if kind not in _PLAIN:
        value = _checked(value, "value", canonical=canonical, depth=0)
        if type(value) is bytes:
            return BYTES, value
        if type(value) is str:
            return TEXT, _encode_text(value, "value")
    try:
        return MSGPACK, msgpack.packb(value, datetime=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueNotEncodable(_fault_in(value, "value") or f"value: {error}") from None


def decode_value(encoding: int, data: bytes) -> Any:
    """The inverse of `encode_value`. Raises Malformed."""
    if encoding == BYTES:
        return bytes(data)
    try:
        if encoding == TEXT:
            return str(data, "utf-8")
        if encoding == MSGPACK:
            return msgpack.unpackb(data, timestamp=3)
    except (ValueError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"a stored value cannot be decoded: {error}") from None
    if encoding == SERIALIZED:
        name, _ = split_serialized(data)
        raise Malformed(
            f"serializer {name!r} wrote the value, and this reader does not have it",
            hint="give the App the serializer of the sender: App(serializer=...)",
        )
    raise Malformed(f"unknown encoding of a value: {encoding}")


def check_value(encoding: int, data: bytes) -> None:
    """Raise Malformed unless a reader can decode it, one with the right serializer if need be."""
    if encoding == SERIALIZED:
        split_serialized(data)
    else:
        decode_value(encoding, data)


def join_serialized(name: str, data: bytes) -> bytes:
    """Return what is stored of a value that the serializer `name` made bytes of."""
    packed = name.encode()
    return bytes((len(packed),)) + packed + data


def split_serialized(stored: bytes) -> tuple[str, bytes]:
    """The inverse of `join_serialized`. Raises Malformed."""
    end = 1 + stored[0] if stored else 0
    try:
        name = str(stored[1:end], "utf-8")
    except UnicodeDecodeError:
        name = ""
    if not name or end > len(stored):
        raise Malformed("a serialized value does not name its serializer")
    return name, bytes(stored[end:])


def too_long_key(size: int) -> TooLarge:
    return TooLarge(
        f"a key is {size} bytes long, the limit is {KEY_BYTES_MAX}",
        hint="use a shorter key, a hash of it for example",
    )


def encode_key(key: str | bytes) -> bytes:
    """Raises ValueNotEncodable, TooLarge."""
    if isinstance(key, str):
        data = _encode_text(key, "key")
    elif isinstance(key, bytes):
        data = bytes(memoryview(key))
    else:
        raise ValueNotEncodable(f"key: text or bytes wanted, not {type(key).__name__}")
    if len(data) > KEY_BYTES_MAX:
        raise too_long_key(len(data))
    return data


def encode_headers(headers: Mapping[str, bytes]) -> bytes:
    """No headers give b"". Raises ValueNotEncodable, TooLarge."""
    if not headers:
        return b""
    for name, value in headers.items():
        if type(name) is not str or type(value) is not bytes:
            raise ValueNotEncodable(f"headers[{name!r}]: headers map text to bytes")
        _encode_text(name, f"headers[{name!r}]")
        if name.startswith(RESERVED_HEADER):
            raise ValueNotEncodable(f"headers[{name!r}]: names with {RESERVED_HEADER} are reserved")
    data: bytes = msgpack.packb(dict(headers))
    if len(data) > HEADERS_BYTES_MAX:
        raise TooLarge(
            f"headers are {len(data)} bytes long, the limit is {HEADERS_BYTES_MAX}",
            hint="put what is long into the value",
        )
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
        return str.encode(text)
    except UnicodeEncodeError:
        raise ValueNotEncodable(f"{path}: text holds a lone surrogate") from None


def _checked(value: Any, path: str, *, canonical: bool, depth: int) -> Any:
    """Return `value` in a form that msgpack carries faithfully; raise ValueNotEncodable if none."""
    kind = type(value)
    if depth > _NESTING_MAX:
        raise ValueNotEncodable(f"{path}: nested deeper than {_NESTING_MAX}")
    if kind is dict:
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
    if kind is list or kind is tuple:
        return [
            item
            if type(item) in _PLAIN
            else _checked(item, f"{path}[{index}]", canonical=canonical, depth=depth + 1)
            for index, item in enumerate(value)
        ]
    if isinstance(value, dt.datetime):
        return _instant(value, path)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    plain = _plain_base(value, path)
    return (
        plain if type(plain) in _PLAIN else _checked(plain, path, canonical=canonical, depth=depth)
    )


def _plain_base(value: Any, path: str) -> Any:
    """Return an object of a subclass as its built-in type, which it equals."""
    kind = type(value)
    for base, taken in _BASES:
        if isinstance(value, base):
            plain = taken(value)
            if not (plain == value or (base is float and plain != plain)):  # noqa: PLR0124 - NaN
                raise ValueNotEncodable(
                    f"{path}: {kind.__qualname__} differs from the {base.__name__} that it holds"
                )
            return plain
    advice = next((_ADVICE[base.__name__] for base in kind.__mro__ if base.__name__ in _ADVICE), "")
    advice = next((text for name, text in _FORMS if hasattr(kind, name)), advice)
    raise ValueNotEncodable(f"{path}: {kind.__qualname__} cannot be carried", hint=advice)


def _instant(value: dt.datetime, path: str) -> dt.datetime:
    """Return a datetime as a built-in one that timestamps can hold."""
    plain = value
    if type(value) is not dt.datetime:
        day, time = (value.year, value.month, value.day), (value.hour, value.minute, value.second)
        plain = dt.datetime(*day, *time, value.microsecond, tzinfo=value.tzinfo, fold=value.fold)
        if plain != value:
            raise ValueNotEncodable(
                f"{path}: {type(value).__qualname__} differs from the datetime that it holds"
            )
    if plain.utcoffset() is None:
        raise ValueNotEncodable(
            f"{path}: a datetime without a time zone", hint="write: datetime.now(UTC)"
        )
    try:
        return plain.astimezone(dt.UTC)
    except OverflowError:
        raise ValueNotEncodable(
            f"{path}: {plain} is outside of the years 1 to 9999 in UTC"
        ) from None


def _fault_in(value: Any, path: str) -> str:
    """Return path and fault of the first part that msgpack refuses; "" if it is none of those."""
    if isinstance(value, dict):
        for key, item in value.items():
            found = _fault_in(key, f"{path}: map key {key!r}") or _fault_in(
                item, f"{path}[{key!r}]"
            )
            if found:
                return found
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found = _fault_in(item, f"{path}[{index}]")
            if found:
                return found
    elif isinstance(value, str) and not _is_unicode(value):
        return f"{path}: text holds a lone surrogate"
    elif isinstance(value, int) and not _INT_MIN <= value < _INT_END:
        return f"{path}: a whole number beyond 64 bits"
    return ""


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
