"""Volatile tables of the broker about its clients: peers and sessions.

Theory of operation. Both tables are bounded and forget the least recently used entry. Forgetting is
safe, because the refusal that follows makes the client introduce itself again. A peer that is not in
the table must say hello. A session orders batches with explicit ids: its counter starts at 0 and
advances with each batch that got a final verdict, so a lost batch shows as a gap before anything
behind it is stored. A session that is unknown at a counter above 0 is refused: the client opens
another one and resends everything that was not acknowledged, in order.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...errors import GapError, UnknownSession
from .refusal import Refusal

Value = TypeVar("Value")


class RecentTable(Generic[Value]):
    """A mapping from bytes that forgets the least recently used entry at its bound."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        # Least recently used first. Invariant: at most `bound` entries.
        self._entries: OrderedDict[bytes, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """A read counts as a use."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: Value) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._bound:
            self._entries.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Peer:
    """A connection that said hello."""

    role: str
    incarnation: bytes
    version: int  # of the protocol, that both sides speak


class PeerTable(RecentTable[Peer]):
    """The connections that said hello. Volatile."""

    def version_of(self, key: bytes) -> int:
        """Return 0 for one that is not known."""
        known = self.get(key)
        return 0 if known is None else known.version


class SessionTable:
    """The next counter of each session. Volatile."""

    def __init__(self, bound: int) -> None:
        # The counter above the last batch with a final verdict. Invariant: rises by one.
        self._expected: RecentTable[int] = RecentTable(bound)

    def __len__(self) -> int:
        return len(self._expected)

    def check(self, session: bytes, counter: int) -> bool:
        """Return whether the batch is the next one; False for an earlier one, to judge again.

        Raises UnknownSession, and Refusal for a gap: nothing may be stored then.
        """
        expected = self._expected.get(session)
        if expected is None:
            if counter > 0:
                raise UnknownSession(f"this session is not known at its batch {counter}")
            return True
        if counter > expected:
            raise Refusal(
                GapError(f"batch {counter} of a session came, batch {expected} is expected"),
                expected,
            )
        return counter == expected

    def advance(self, session: bytes, counter: int) -> None:
        self._expected.put(session, counter + 1)
