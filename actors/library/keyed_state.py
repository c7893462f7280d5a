"""State by key: each message key has a mapping of its own, kept as one entry of the ledger's state.

The entry's name says which key it is of, injectively: `s:` and the text, `b:` and the bytes in
hexadecimal where they are no text, `n:` for messages without a key. Its value begins with the byte
KEYED instead of an encoding; behind it stands a msgpack map of the mapping's keys to their encoded
values. So whoever reads a ledger can tell both kinds of state apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgpack

from ..core.ledger import Ledger
from ..errors import StateMismatch
from .state_view import KEYED, decode_state

NO_KEY = "n:"


def entry_name(key: str | bytes | None) -> str:
    """Return the name of the entry that holds the state of a message key."""
    if key is None:
        return NO_KEY
    return f"s:{key}" if isinstance(key, str) else f"b:{key.hex()}"


def message_key(name: str) -> str | bytes | None:
    """Return the message key that `entry_name` was given."""
    if name == NO_KEY:
        return None
    return name[2:] if name.startswith("s:") else bytes.fromhex(name[2:])


def pack_entry(values: dict[str, bytes]) -> bytes | None:
    """Return a mapping of encoded values as an entry; None for an empty one, which is not kept."""
    if not values:
        return None
    packed: bytes = msgpack.packb(dict(sorted(values.items())))
    return bytes((KEYED,)) + packed


def unpack_entry(entry: bytes | None) -> dict[str, bytes]:
    """Return the encoded values of an entry."""
    if entry is None:
        return {}
    values: dict[str, bytes] = msgpack.unpackb(memoryview(entry)[1:])
    return values


@dataclass(slots=True)
class KeyState:
    """The state of one message key, as a StateView reads it."""

    state: dict[str, bytes]
    state_bytes: int

    @classmethod
    def of(cls, entry: bytes | None) -> KeyState:
        """Return what an entry holds."""
        state = unpack_entry(entry)
        size = sum(len(key.encode()) + len(value) for key, value in state.items())
        return cls(state, size)


def check_state_kind(ledger: Ledger, *, by_key: bool) -> None:
    """Raise StateMismatch if the ledger holds state of the other kind.

    A handler that suddenly found nothing of its state would count anew, without anybody noticing.
    """
    for name, value in ledger.state.items():
        if (value[0] == KEYED) == by_key:
            continue
        was, now = "without state_by", 'with state_by="key"'
        if not by_key:
            was, now = now, was
        group = "" if ledger.started is None else f" of group {ledger.started.group}"
        raise StateMismatch(
            f"the state{group} was kept {was} (it holds {name!r}); the handler is {now}"
        )


def shown_state(state: dict[str, bytes]) -> dict[str | bytes | None, object]:
    """Return a ledger's state decoded, in order: that of keys as one dict for each message key."""
    return {
        message_key(name) if value[0] == KEYED else name: decode_state(value)
        for name, value in sorted(state.items())
    }
