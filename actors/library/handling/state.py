"""`tx.state`: the group's state as a mapping, whose truth is encoded bytes.

A value that can change in place (a list, a dict) is handed out as a private copy of the message
that asks for it. When the handler returns, what it has got and set is encoded and compared; when
it raises, all of that is thrown away, so `tx.state["x"].append(1)` followed by an error leaves no
trace. Values that cannot change are kept decoded for the whole batch and encoded once at its end:
a counter that a thousand messages add to costs one encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

from ...codec.entries import KEYED, message_key, unpack_entry
from ...codec.values import decode_value, encode_value
from ...core.consumer.ledger import Ledger
from ...errors import StateMismatch, StateTooLarge, ValueNotEncodable
from ...limits import MESSAGE_EFFECTS_BYTES_MAX, STATE_KEY_BYTES_MAX, Limits

_FIXED = frozenset({int, float, bool, type(None)})  # encoded in at most 10 bytes
_IMMUTABLE = _FIXED | {str, bytes}
_FIXED_BYTES = 10
_INT_MIN, _INT_END = -(2**63), 2**64
_GONE: Any = object()
_MISSING: Any = object()


def encode_state(value: Any) -> bytes:
    """Return a value of the state as the ledger keeps it: one byte of encoding, then its bytes."""
    encoding, data = encode_value(value)
    return bytes((encoding,)) + data


def decode_state(encoded: bytes) -> Any:
    """Return the value of the state that `encode_state` was given. Raises Malformed.

    The state of a message key comes back as a dict.
    """
    if encoded[0] == KEYED:
        return {key: decode_state(value) for key, value in unpack_entry(encoded).items()}
    return decode_value(encoded[0], encoded[1:])


class HasState(Protocol):
    """Where a view reads: a ledger, or the state of one message key."""

    @property
    def state(self) -> dict[str, bytes]:
        """Encoded values by key."""

    @property
    def state_bytes(self) -> int:
        """The sum of the lengths of keys and values."""


class StateView(MutableMapping[str, Any]):
    """The state during one batch. `accept` after each message that returned, `reject` else."""

    __slots__ = (
        "_base",
        "_cache",
        "_changes",
        "_mine",
        "_pending",
        "_seen",
        "_sizes",
        "_undo",
        "commit_bytes",
        "touched",
    )

    def __init__(self, ledger: HasState, limits: Limits) -> None:
        self._base = ledger.state
        # Above so many changed bytes, what is sent included, a commit ends.
        self.commit_bytes = limits.commit_bytes
        # Whether the message at hand has set, deleted, or got something that can change.
        self.touched = False
        # Of the message at hand: values set or got (_GONE: deleted), and for those that were got,
        # the bytes they came from.
        self._mine: dict[str, Any] = {}
        self._seen: dict[str, bytes] = {}
        # Of the message at hand too: what it replaced in the cache, for counters (see __setitem__).
        self._undo: dict[str, Any] = {}
        # Of earlier messages of the batch: immutable values as they stand, decoded or set ...
        self._cache: dict[str, Any] = {}
        # ... those of them that were set and are not encoded yet ...
        self._pending: set[str] = set()
        # ... and all other changes, encoded. Invariant: no key is in both.
        self._changes: dict[str, bytes | None] = {}
        # Bytes of the whole state with the changes, at most; of one changed entry.
        self._sizes = _Sizes(ledger, limits.state_bytes_max)

    # --- what a handler calls --------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        value = self._find(key)
        if value is _GONE:
            raise KeyError(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` (which is not stored)."""
        value = self._find(key)
        return default if value is _GONE else value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not _GONE

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a value. Raises ValueNotEncodable with the path, TypeError for keys but text."""
        kind = type(value)
        in_range = kind is not int or _INT_MIN <= value < _INT_END
        if kind in _FIXED and in_range and key in self._pending and key not in self._mine:
            # A counter that an earlier message of the batch has set: it has its room already.
            if key not in self._undo:
                self._undo[key] = self._cache[key]
            self._cache[key] = value
            self.touched = True
            return
        if type(key) is not str:
            raise TypeError(f"keys of tx.state are text, not {type(key).__name__}")
        if kind not in _FIXED or not in_range:
            _encode(key, value)
        if key not in self._cache:
            _check_key(key)
        self._mine[key] = value
        self._seen.pop(key, None)
        self.touched = True

    def __delitem__(self, key: str) -> None:
        if self._find(key) is _GONE:
            raise KeyError(key)
        self._mine[key] = _GONE
        self._seen.pop(key, None)
        self.touched = True

    def __iter__(self) -> Iterator[str]:
        keys = dict.fromkeys(self._base)
        keys.update(dict.fromkeys(self._changes))
        keys.update(dict.fromkeys(self._pending))
        keys.update(dict.fromkeys(self._mine))
        return iter([key for key in keys if self._find(key) is not _GONE])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<state of {len(self)} keys>"

    def _find(self, key: str) -> Any:
        """The value as the message at hand sees it, or _GONE."""
        if self._mine:
            value = self._mine.get(key, _MISSING)
            if value is not _MISSING:
                return value
        value = self._cache.get(key, _MISSING)
        if value is not _MISSING:
            return value
        encoded = self._changes[key] if key in self._changes else self._base.get(key)
        if encoded is None:
            return _GONE
        value = decode_state(encoded)
        if type(value) in _IMMUTABLE:
            self._cache[key] = value
        else:
            self._mine[key] = value
            self._seen[key] = encoded
            self.touched = True
        return value

    # --- what the runner of handlers calls -------------------------------------------------------

    @property
    def changed_bytes(self) -> int:
        """Bytes that the changes of the batch need, about."""
        return self._sizes.changed

    def accept(self) -> None:
        """The message returned: keep what it did. Raises ValueNotEncodable, StateTooLarge."""
        if not self._mine:
            self._undo.clear()
            self.touched = False
            return
        encoded = {
            key: None if value is _GONE else _encode(key, value)
            for key, value in self._mine.items()
            if type(value) not in _FIXED
        }
        sizes = {
            key: _FIXED_BYTES if type(value) in _FIXED else len(encoded[key] or b"")
            for key, value in self._mine.items()
            if value is not _GONE and (key not in self._seen or encoded[key] != self._seen[key])
        }
        gone = [key for key, value in self._mine.items() if value is _GONE]
        self._sizes.change(sizes, gone)  # raises before anything is kept
        for key, value in self._mine.items():
            if type(value) in _IMMUTABLE:
                self._cache[key] = value
                self._pending.add(key)
                self._changes.pop(key, None)
            elif key in sizes or value is _GONE:
                self._cache.pop(key, None)
                self._pending.discard(key)
                self._changes[key] = encoded[key]
        self._undo.clear()
        self.reject()

    def reject(self) -> None:
        self._cache.update(self._undo)
        self._undo.clear()
        self._mine.clear()
        self._seen.clear()
        self.touched = False

    def changes(self) -> dict[str, bytes | None]:
        changes = dict(self._changes)
        for key in self._pending:
            changes[key] = encode_state(self._cache[key])
        base = self._base
        return {key: changes[key] for key in sorted(changes) if changes[key] != base.get(key)}


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


class _Sizes:
    """How many bytes the state has, at most, and how many of them a commit must carry."""

    __slots__ = ("_base", "_bytes_max", "_entries", "changed", "total")

    def __init__(self, ledger: HasState, bytes_max: int) -> None:
        self._base = ledger.state
        self._bytes_max = bytes_max
        self._entries: dict[str, int] = {}  # of changed keys; 0: deleted
        self.total = ledger.state_bytes
        self.changed = 0

    def change(self, sizes: dict[str, int], gone: list[str]) -> None:
        """Take new sizes of values. Raises StateTooLarge and changes nothing then."""
        entries = self._entries
        total, changed = self.total, self.changed
        fresh: dict[str, int] = {key: len(key.encode()) + size for key, size in sizes.items()}
        fresh.update(dict.fromkeys(gone, 0))
        for key, size in fresh.items():
            before = entries.get(key)
            if before is None:
                old = self._base.get(key)
                total -= 0 if old is None else len(key.encode()) + len(old)
                changed += size + len(key)
            else:
                total -= before
                changed += size - before
            total += size
        if total > self._bytes_max:
            raise StateTooLarge(
                f"tx.state would have {total} bytes, the limit is {self._bytes_max}",
            )
        if changed - self.changed > MESSAGE_EFFECTS_BYTES_MAX:
            raise StateTooLarge(
                f"one message changes {changed - self.changed} bytes of tx.state, the limit is "
                f"{MESSAGE_EFFECTS_BYTES_MAX}"
            )
        entries.update(fresh)
        self.total, self.changed = total, changed


def _encode(key: str, value: Any) -> bytes:
    """As `encode_state`; the error names the key."""
    try:
        return encode_state(value)
    except ValueNotEncodable as error:
        reason = f"tx.state[{key!r}]{error.reason.removeprefix('value')}"
        raise ValueNotEncodable(reason, hint=error.hint) from None


def _check_key(key: str) -> None:
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise TypeError("a key of tx.state holds a lone surrogate") from None
    if size > STATE_KEY_BYTES_MAX:
        raise StateTooLarge(
            f"a key of tx.state is {size} bytes long, the limit is {STATE_KEY_BYTES_MAX}",
            hint="use a shorter key, a hash of it for example",
        )
