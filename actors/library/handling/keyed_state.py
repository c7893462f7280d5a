"""State by key: each message key has a mapping of its own, an entry of the ledger (codec/entries.py)."""

from __future__ import annotations

from dataclasses import dataclass

from ...codec.entries import KEYED, message_key, unpack_entry
from ...core.consumer.ledger import Ledger
from ...errors import StateMismatch
from .state import decode_state


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
