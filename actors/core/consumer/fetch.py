"""Fetching ahead: one request in flight, few replies held, every reply checked.

Theory of operation. The next fetch leaves while a handler runs, until `fetches_held_max` replies
are held. A reply counts only if it answers the request in flight, by number and epoch: after a lost
reply the same offset is fetched under a new number, so a late reply is dropped and can neither leave
a hole nor come twice. A reply that starts above the expected offset is a gap and is fetched again
after a pause. A reply from another log, or from a log shorter than what was read before, ends the
consumer. Each fetch names the place in the broker's log of what was read before it, and a reply the
place of each stored batch: a log with another past refuses. docs/PROTOCOL.md, "Fetch".
"""

from __future__ import annotations

from collections import deque

from ...errors import LogRegressed, StoreMismatch
from ...history import NO_PLACE, History, Place, highest
from ...limits import FETCH_WAIT_MS_DEFAULT, JOIN_RETRY_MS, RESEND_MS
from ...outcome import Outcome, Send
from ...protocol import Fetch, Fetched
from ...records import BatchStored
from ..client.connection import BROKER, Connection
from .window import Fingerprint, Window, cut, with_fingerprints


class Fetcher:
    """The read side of one (group, topic, partition) under one grant."""

    def __init__(
        self,
        connection: Connection,
        place: tuple[str, str, int],
        epoch: int,
        log: tuple[bytes, bytes],
        offset: int,
        seen: Place,
        fingerprint: Fingerprint,
        bytes_max: int,
    ) -> None:
        """Read `place` (group, topic, partition) of `log` (log_id, topic_id) from `offset` on.

        `seen` is the place of the broker's log that the ledger relies on. A reply holds `bytes_max` bytes, or one batch that is larger.
        """
        self._connection = connection
        self._place = place
        self._epoch = epoch
        self._log = log
        self._fingerprint = fingerprint
        self._bytes_max = bytes_max
        # Fetched and not handled yet. Invariant: windows follow each other without holes, and the
        # last one ends at `offset`.
        self.windows: deque[Window] = deque()
        # The offset to fetch next. Invariant: never falls.
        self.offset = offset
        # The furthest place in the broker's log of what was read, here or before.
        self._seen = seen
        # (end offset, place) of stored batches. Invariant: ascending; of those that hold messages
        # which no commit has passed, and of the last one that a commit ended in.
        self._places: deque[tuple[int, Place]] = deque()
        # The durable end of the partition in the last reply; -1 before the first.
        self.end_offset = -1
        # Number of the fetch in flight; 0: none.
        self._request = 0
        # When to send again: a fetch without a reply, or the next one after a pause.
        self.wake_at_ms = 0

    @property
    def caught_up(self) -> bool:
        """Whether the last reply reached the end of the partition."""
        return self.end_offset == self.offset

    @property
    def owed(self) -> bool:
        return self._request != 0

    def lost(self) -> None:
        """Forget the fetch in flight: the connection is new and will not answer it."""
        self._request = 0
        self.wake_at_ms = 0

    def pause(self, now_ms: int) -> None:
        self._request = 0
        self.wake_at_ms = now_ms + JOIN_RETRY_MS

    def answers(self, request: int) -> bool:
        return request == self._request

    def ask(self, now_ms: int, out: Outcome) -> None:
        """Does nothing while a fetch is in flight, or a pause lasts."""
        if now_ms < self.wake_at_ms:
            return
        group, topic, partition = self._place
        self._request = self._connection.next_request()
        self.wake_at_ms = now_ms + FETCH_WAIT_MS_DEFAULT + RESEND_MS
        out.sends_after_sync.append(
            Send(
                BROKER,
                Fetch(
                    self._request,
                    group,
                    topic,
                    partition,
                    self._epoch,
                    self.offset,
                    self._bytes_max,
                    FETCH_WAIT_MS_DEFAULT,
                    *(self._seen if self._connection.knows_places else NO_PLACE),
                ),
            )
        )

    def received(self, fetched: Fetched, stored: list[BatchStored], now_ms: int) -> None:
        """Raises StoreMismatch, LogRegressed: the consumer must end."""
        if fetched.request != self._request or fetched.epoch != self._epoch:
            return  # stale: an earlier request, or another grant
        self._request = 0
        self.wake_at_ms = 0
        if (fetched.log_id, fetched.topic_id) != self._log:
            raise StoreMismatch(
                f"fetched from log {fetched.log_id.hex()} topic {fetched.topic_id.hex()}, the "
                f"ledger follows log {self._log[0].hex()} topic {self._log[1].hex()}"
            )
        if fetched.end_offset < self.offset:
            raise regressed(self._place, self.offset, fetched.end_offset)
        self.end_offset = fetched.end_offset
        window = cut(stored, self.offset, fetched.next_offset)
        if self._connection.knows_places and len(fetched.positions) != len(stored):
            window = None  # the broker has forgotten which version this connection speaks
        if window is None:
            self.wake_at_ms = now_ms + JOIN_RETRY_MS
        elif window.next_offset > self.offset:
            self._note_places(fetched, stored)
            self.windows.append(self._identified(window))
            self.offset = window.next_offset

    def _note_places(self, fetched: Fetched, stored: list[BatchStored]) -> None:
        """A broker that knows no marks tells no positions."""
        history = History(fetched.marks)
        for record, position in zip(stored, fetched.positions, strict=False):
            end = record.first_offset + record.kept
            if end > self.offset:
                self._places.append((end, history.place_of(position)))
                self._seen = highest(self._seen, self._places[-1][1])
        self._connection.rely(self._seen)

    def place_of(self, next_offset: int) -> Place:
        """Return where the message below `next_offset`, which was fetched, lies in the broker's log."""
        return next((place for end, place in self._places if end >= next_offset), NO_PLACE)

    def passed(self, next_offset: int) -> None:
        """A commit goes up to here: places of earlier messages are not asked for any more."""
        while self._places and self._places[0][0] < next_offset:
            self._places.popleft()

    def _identified(self, window: Window) -> Window:
        return with_fingerprints(window, self._fingerprint)


def regressed(place: tuple[str, str, int], offset: int, end_offset: int) -> LogRegressed:
    """Return the error for a log that ends below what was read from it."""
    group, topic, partition = place
    return LogRegressed(
        f"group {group} has read {topic}/{partition} up to offset {offset}, "
        f"but the log ends at {end_offset}",
        hint=LogRegressed.group_hint,
    )
