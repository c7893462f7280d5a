"""Typed payloads: how the annotation `Message[Order]` of a handler decodes a message.

A class with `model_validate` (pydantic) validates itself. msgspec, which comes with the extra
`typed`, decodes every other type: dataclass, msgspec.Struct, TypedDict, NamedTuple, or a composition
of them. Decoding is strict: a text is no number; csv rows are all text.
"""

from __future__ import annotations

from typing import Any

from ...codec.values import MSGPACK, decode_value
from ...errors import Malformed, NotSupported
from .message import Decode


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
