"""Typed payloads: `send(topic, Order(...))` writes what a handler with `Message[Order]` reads.

A class with `model_validate` (pydantic) validates itself. msgspec, which comes with the extra
`typed`, decodes every other type: dataclass, msgspec.Struct, TypedDict, NamedTuple, or a composition
of them. Decoding is strict: a text is no number; csv rows are all text.

A sender writes the fields in the form that the reader takes, reads that back and compares: an object
that would not come back equal is refused. What this does not serve, a Serializer of the App may.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from ...codec.values import (
    MSGPACK,
    SERIALIZED,
    decode_value,
    encode_value,
    join_serialized,
    split_serialized,
)
from ...errors import Malformed, NotSupported, ValueNotEncodable

if TYPE_CHECKING:
    from .message import Decode

_BUILT_IN = frozenset({bytes, str, int, float, bool, type(None), dict, list, tuple})
_WITH_FIELDS = ("__dataclass_fields__", "__struct_fields__", "__attrs_attrs__", "model_dump")
SERIALIZER_NAME_BYTES_MAX = 64


class Serializer(Protocol):
    """How objects travel that OnceMQ does not carry: `App(serializer=...)`.

    `name`, text of at most 64 bytes, is stored with each value, so that a reader without the
    serializer gets a clear error. Change the name when the bytes change their meaning. Both methods
    are called in the threads of senders and handlers.
    """

    name: str

    def encode(self, value: Any) -> bytes | None:
        """Return the bytes of an object; equal objects give equal bytes. None: it is not served."""

    def decode(self, data: bytes) -> Any:
        """The inverse of `encode`. What it raises makes the message a PayloadInvalid."""


def check_serializer(serializer: Serializer | None) -> Serializer | None:
    """Raises TypeError, ValueError."""
    if serializer is None:
        return None
    name = getattr(serializer, "name", None)
    if type(name) is not str or not 0 < len(name.encode()) <= SERIALIZER_NAME_BYTES_MAX:
        raise ValueError(f"serializer.name is text of 1 to {SERIALIZER_NAME_BYTES_MAX} bytes")
    if not callable(getattr(serializer, "encode", None)) or not callable(
        getattr(serializer, "decode", None)
    ):
        raise TypeError("a serializer has the methods encode(value) and decode(data)")
    return serializer


def encode_payload(
    value: Any, *, canonical: bool = False, serializer: Serializer | None = None
) -> tuple[int, bytes]:
    """As `encode_value`, of the value of a message: that may also be an object with named fields."""
    kind = type(value)
    if kind not in _BUILT_IN:
        if serializer is not None:
            data = serializer.encode(value)
            if data is not None:
                return SERIALIZED, join_serialized(serializer.name, bytes(memoryview(data)))
        if any(hasattr(kind, name) for name in _WITH_FIELDS):
            return _encode_object(value, canonical=canonical)
    return encode_value(value, canonical=canonical)


def _encode_object(value: Any, *, canonical: bool) -> tuple[int, bytes]:
    kind = type(value)
    name = name_of(kind)
    try:
        decode = _known_decoder(kind)
        encoding, data = encode_value(_as_sent(value), canonical=canonical)
        back = decode(encoding, data)
        differs = "" if back == value else _difference(_as_held(back), _as_held(value), "value")
    except NotSupported as error:
        raise ValueNotEncodable(f"value: {error.reason}", hint=error.hint) from None
    except Misfit as misfit:
        raise ValueNotEncodable(f"value: Message[{name}] would refuse it: {misfit}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueNotEncodable(f"value: {name} cannot be carried: {error}") from None
    if differs:
        raise ValueNotEncodable(
            f"{differs}: Message[{name}] would not give it back equal",
            hint="annotate the field with the type that it holds",
        )
    return encoding, data


def _as_sent(value: Any) -> Any:
    """Return an object as a map of its fields, in the form that its reader takes."""
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json", by_alias=True)
    import msgspec

    kept = (bytes, bytearray, dt.datetime)
    return msgspec.to_builtins(value, builtin_types=kept, order="deterministic")


def _as_held(value: Any) -> Any:
    """Return an object as a map of its fields, which keep their types: to be compared."""
    if callable(getattr(value, "model_dump", None)):
        return value.model_dump()
    import decimal
    import uuid

    import msgspec

    times = (dt.datetime, dt.date, dt.time, dt.timedelta)
    kept = (bytes, bytearray, *times, uuid.UUID, decimal.Decimal)
    return msgspec.to_builtins(value, builtin_types=kept, order="deterministic")


def _difference(back: Any, sent: Any, path: str) -> str:
    """Return the path to the first difference; "" without one. Times are compared as instants."""
    if isinstance(back, dict) and isinstance(sent, dict) and back.keys() == sent.keys():
        found = (_difference(back[key], sent[key], f"{path}[{key!r}]") for key in sent)
        return next(filter(None, found), "")
    rows = (list, tuple)
    if isinstance(back, rows) and isinstance(sent, rows) and len(back) == len(sent):
        pairs = enumerate(zip(back, sent, strict=True))
        found = (_difference(one, other, f"{path}[{index}]") for index, (one, other) in pairs)
        return next(filter(None, found), "")
    if isinstance(back, dt.datetime) and isinstance(sent, dt.datetime):
        if (back.tzinfo is None) == (sent.tzinfo is None) and back - sent == dt.timedelta(0):
            return ""
        return path
    both_nan = isinstance(back, float) and isinstance(sent, float) and back != back and sent != sent  # noqa: PLR0124
    return "" if back == sent or both_nan else path


def decoder_with(serializer: Serializer, decode: Decode | None, kind: Any = None) -> Decode:
    """Return `decode`, or that of untyped values, which also reads what the serializer wrote."""
    inner = decode or decode_value

    def decode_any(encoding: int, data: bytes) -> Any:
        if encoding == SERIALIZED:
            name, rest = split_serialized(data)
            if name == serializer.name:
                return _deserialized(serializer, rest, kind)
        return inner(encoding, data)

    return decode_any


def _deserialized(serializer: Serializer, data: bytes, kind: Any) -> Any:
    try:
        value = serializer.decode(data)
    except Exception as error:
        raise Misfit(f"serializer {serializer.name!r}: {type(error).__name__}: {error}") from error
    if isinstance(kind, type) and not isinstance(value, kind):
        raise Misfit(f"serializer {serializer.name!r} gave a {type(value).__name__}")
    return value


class Misfit(Exception):
    """A payload is not of the type: `path` leads to the field, as far as it is known."""

    def __init__(self, reason: str, path: str = "") -> None:
        self.path = path
        super().__init__(f"{reason} - at {path}" if path else reason)


def decoder_of(kind: Any) -> Decode:
    """Return a function that decodes values as `kind` and raises Misfit.

    Raises NotSupported where msgspec is needed and missing, and for types that it cannot make.
    """
    validate = getattr(kind, "model_validate", None)
    if isinstance(kind, type) and callable(validate):
        return _by_its_own(validate)
    return _by_msgspec(kind)


_known_decoder: Callable[[Any], Decode] = lru_cache(maxsize=1024)(decoder_of)


def _by_its_own(validate: Any) -> Decode:
    def decode(encoding: int, data: bytes) -> Any:
        value = _plain(encoding, data)
        try:
            return validate(value)
        except (ValueError, TypeError) as error:  # pydantic's ValidationError is one
            raise _misfit_of_pydantic(error) from None

    return decode


def _misfit_of_pydantic(error: Exception) -> Misfit:
    """The first complaint, and how many more there are."""
    errors = getattr(error, "errors", None)
    found = errors() if callable(errors) else []
    if not found:
        return Misfit(str(error))
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in first.get("loc", ())
    )
    return Misfit(f"{first.get('msg', error)}{more}", f"${path}")


def _by_msgspec(kind: Any) -> Decode:
    try:
        import msgspec
    except ImportError:
        raise NotSupported(
            f"payloads of type {name_of(kind)} need msgspec",
            hint="install it with: pip install 'oncemq[typed]'",
        ) from None
    try:
        decoder: Any = msgspec.msgpack.Decoder(kind)
    except TypeError as error:
        raise NotSupported(f"payloads cannot be of type {name_of(kind)}: {error}") from None

    def decode(encoding: int, data: bytes) -> Any:
        try:
            if encoding == MSGPACK:
                return decoder.decode(data)
            return msgspec.convert(decode_value(encoding, data), kind)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
            reason, _, path = str(error).partition(" - at `")
            raise Misfit(reason, path.rstrip("`")) from None
        except (Malformed, RecursionError) as error:
            raise Misfit(str(error)) from None

    return decode


def _plain(encoding: int, data: bytes) -> Any:
    try:
        return decode_value(encoding, data)
    except Malformed as error:
        raise Misfit(error.reason) from None


def name_of(kind: Any) -> str:
    return getattr(kind, "__qualname__", None) or repr(kind)
