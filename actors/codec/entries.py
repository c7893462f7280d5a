"""State by key as bytes: one entry of the ledger's state for each message key.

The name of the entry names the message key, injectively: `s:` and the text, `b:` and the bytes in
hexadecimal where they are no text, `n:` for messages without a key. The value begins with the byte
KEYED instead of an encoding, then comes a msgpack map of the mapping's keys to their encoded values.
So a reader of a ledger can tell both kinds of state apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgpack

KEYED = 3  # in place of an encoding
NO_KEY = "n:"


def entry_name(key: str | bytes | None) -> str:
    if key is None:
        return NO_KEY
    return f"s:{key}" if isinstance(key, str) else f"b:{key.hex()}"


def message_key(name: str) -> str | bytes | None:
    if name == NO_KEY:
        return None
    return name[2:] if name.startswith("s:") else bytes.fromhex(name[2:])


def pack_entry(values: Mapping[str, bytes]) -> bytes | None:
    """Return a mapping of encoded values as an entry; None for an empty mapping.

    None deletes the entry, so a ledger does not grow with keys that hold nothing.
    """
    if not values:
        return None
    packed: bytes = msgpack.packb(dict(sorted(values.items())))
    return bytes((KEYED,)) + packed


def unpack_entry(entry: bytes | None) -> dict[str, bytes]:
    if entry is None:
        return {}
    values: dict[str, bytes] = msgpack.unpackb(memoryview(entry)[1:])
    return values


def change_entry(entry: bytes | None, changes: Mapping[str, bytes | None]) -> bytes | None:
    """Return the entry after `changes`, in which None deletes a value."""
    if not changes:
        return entry
    values = {**unpack_entry(entry), **changes}
    return pack_entry({key: value for key, value in values.items() if value is not None})
