"""One input of a ledger: its windows, the retry at its head, and which messages run alone.

Theory of operation. A ledger reads its partition and, once that holds a message, the same partition
of the private topic `topic@group`. Each input has an order of its own; both share state, outputs
and the one call at a time.

The death of a process does not show which message killed it, because normal batches write no marks.
So a generation that follows one without a clean end runs the uncommitted messages in question
*alone*: the first fetched window, because a call never holds more, but at most
`solitary_messages_max`, because each costs a sync. A death beyond that bound, or in a window behind
a commit that was lost with the process, is not attributed to a message; the next generation begins
further on and finds it. A message in which processes died before runs alone until it is passed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ...history import Place
from .window import Window
from .work import FailedMessage

# The headers of a message in a private topic by which an operator drops a dead letter. They are the
# msgpack map {"oncemq-dropped": b"1"} and nothing else, because cores decode no headers.
DROPPED_HEADERS = b"\x81\xaeoncemq-dropped\xc4\x011"


@dataclass(frozen=True, slots=True)
class Parking:
    """A message to park, as soon as the commit is possible."""

    window: Window  # of this message alone
    failure: FailedMessage
    attempts: int


class Input:
    """The progress of handling in one input. Volatile."""

    def __init__(
        self,
        topic_id: bytes,
        windows: deque[Window],
        place_of: Callable[[int], Place],
        forget: Callable[[int], None],
        *,
        private: bool,
        alone_max: int,
    ) -> None:
        """Handle `windows`, which a fetcher fills.

        `place_of` tells where the message below an offset lies in the broker's log, until `forget`
        is told that a commit goes further. A process may have died in one of the first `alone_max` messages.
        """
        self.topic_id = topic_id
        self.windows = windows
        self.place_of = place_of
        self.forget = forget
        self.private = private
        # Number and earliest time of the next attempt at the first message.
        self.attempt = 1
        self.not_before_ms = 0
        # How often in a row the database has wanted the call at its head run again.
        self.conflicts = 0
        # The message to park next. Invariant: it lies right before the next window.
        self.parking: Parking | None = None
        # Whether the first message waits for an operator's order about an effect.
        self.held = False
        # How many messages may still run alone, and below which offset; None: not fetched yet.
        self._alone_left = alone_max
        self._alone_until: int | None = None

    @property
    def idle(self) -> bool:
        return self.held or (not self.windows and self.parking is None)

    def alone(self) -> bool:
        """Whether the first message of the next window must run alone, with a mark."""
        if not self._alone_left:
            return False
        window = self.windows[0]
        if self._alone_until is None:
            self._alone_until = window.next_offset
        if window.first_offset >= self._alone_until:
            self._alone_left = 0
            return False
        self._alone_left -= self.attempt == 1
        return True

    def split_first(self) -> None:
        if self.windows[0].count > 1:
            first, rest = self.windows[0].split(1)
            self.windows[0] = rest
            self.windows.appendleft(first)

    def isolate(self, offset: int | None) -> None:
        """Let the next window end before the message at `offset`, or hold it alone."""
        window = self.windows[0]
        if offset is None or not window.first_offset <= offset < window.next_offset:
            return
        before = sum(bisect_left(piece.offsets, offset) for piece in window.pieces)
        if before:
            first, rest = window.split(before)
            self.windows[0] = rest
            self.windows.appendleft(first)
        else:
            self.split_first()

    def passed(self) -> None:
        """Reset the attempt: the message at the head is committed."""
        self.attempt = 1
        self.not_before_ms = self.conflicts = 0


def is_dropped(window: Window) -> bool:
    """Return whether the only message of a private window drops a dead letter."""
    for piece in window.pieces:
        batch = piece.stored.batch
        if batch is not None and batch.headers is not None:
            return batch.headers[piece.indices[0]] == DROPPED_HEADERS
    return False
