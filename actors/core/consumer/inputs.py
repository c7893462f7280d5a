"""One input of a ledger: its windows, the retry at its head, and which messages run alone.

Theory of operation. A ledger reads its partition and, once somebody sent anything there, the same
partition of the private topic `topic@group`. Each has an order of its own; both share state,
outputs and the one call at a time.

A process that dies in a handler tells nobody which message it was at: normal batches write no
marks. So a generation that follows one without a clean end handles the uncommitted messages that
the dead one may have been at *alone*: the first window that is fetched, because a call never holds
more, but at most `solitary_messages_max`, because each costs a sync. A death beyond that bound, or in
a window behind a commit that was lost with the process, blames nobody; the next generation begins
further on and finds it. A message that processes died in before runs alone until it is passed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from .window import Window
from .work import FailedMessage

# The headers of a message of a private topic that says: an operator dropped this dead letter.
# It is the msgpack map {"oncemq-dropped": b"1"} and nothing else; cores decode no headers.
DROPPED_HEADERS = b"\x81\xaeoncemq-dropped\xc4\x011"


@dataclass(frozen=True, slots=True)
class Parking:
    """A message that will be parked as soon as that can be committed."""

    window: Window  # of this one message
    failure: FailedMessage
    attempts: int


class Input:
    """Where the handling of one input stands. All of it is volatile."""

    def __init__(
        self, topic_id: bytes, windows: deque[Window], *, private: bool, alone_max: int
    ) -> None:
        """Handle `windows`, which a fetcher fills.

        A process may have died in one of the first `alone_max` messages.
        """
        self.topic_id = topic_id
        self.windows = windows
        self.private = private
        # The attempt at the first message of the next window, and not before when.
        self.attempt = 1
        self.not_before_ms = 0
        # What is parked next. Invariant: it lies right before the next window.
        self.parking: Parking | None = None
        # Whether the first message waits for an operator's word about an effect.
        self.held = False
        # How many messages may still run alone, and up to which offset; None: not fetched yet.
        self._alone_left = alone_max
        self._alone_until: int | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing can be handled or parked now."""
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
        """Make the first message of the next window a window of its own."""
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
        """The message at the head is committed: the next one starts with its first attempt."""
        self.attempt = 1
        self.not_before_ms = 0


def is_dropped(window: Window) -> bool:
    """Tell whether the one message of a private window drops a dead letter."""
    for piece in window.pieces:
        batch = piece.stored.batch
        if batch is not None and batch.headers is not None:
            return batch.headers[piece.indices[0]] == DROPPED_HEADERS
    return False
