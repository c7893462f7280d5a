"""One (topic, partition) of an outbox: the batches that wait and those in flight, in order.

Theory of operation: see outbox.py, which moves batches through `waiting` and `flying`. Here is
what a lane knows by itself: the order of its batches and how verdicts leave in that order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ...errors import OnceMQError
from ...protocol import Produced

EXPLICIT = -1  # the first_sequence of a batch with explicit ids

Run = tuple[int, int, int]


@dataclass(slots=True)
class Entry:
    """One batch on its way. `token` is the owner's and comes back in `Settled`."""

    topic: str
    partition: int
    first_sequence: int  # EXPLICIT with explicit ids
    count: int
    raw: bytes | memoryview
    crc: int
    digest: bytes
    token: Any
    # Place in the session of the lane; -1 with sequence ids and before the first attempt.
    counter: int = -1
    # Request numbers of the attempts, the latest last. Invariant: at most ATTEMPTS_KEPT.
    requests: list[int] = field(default_factory=list)
    # What had been acknowledged in the lane when the latest attempt left.
    acked_when_sent: int = 0
    # The verdict, held until all earlier batches of the lane have theirs.
    verdict: Produced | OnceMQError | None = None

    @property
    def explicit(self) -> bool:
        """Whether its messages have explicit ids."""
        return self.first_sequence == EXPLICIT

    def settled(self) -> Settled:
        """Return the verdict as the owner gets it."""
        verdict = self.verdict
        assert verdict is not None
        produced = verdict if isinstance(verdict, Produced) else None
        return Settled(
            self.token,
            self.topic,
            self.partition,
            self.first_sequence,
            self.count,
            produced.at_ms if produced else 0,
            produced.runs if produced else (),
            None if isinstance(verdict, Produced) else verdict,
        )


@dataclass(frozen=True, slots=True)
class Settled:
    """The final verdict of one batch. In each lane they come in the order of `add`."""

    token: Any
    topic: str
    partition: int
    first_sequence: int
    count: int
    at_ms: int
    runs: tuple[Run, ...]  # empty with an error
    error: OnceMQError | None = None


class Lane:
    """The batches of one (topic, partition)."""

    __slots__ = (
        "acked_end",
        "due_ms",
        "failures",
        "flying",
        "held_until_ms",
        "next_counter",
        "partition",
        "session",
        "topic",
        "waiting",
    )

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        # Not yet sent, in order.
        self.waiting: deque[Entry] = deque()
        # Sent and not settled, in order. Invariant: all of one kind, at most
        # in_flight_batches_max, and with sequence ids contiguous.
        self.flying: deque[Entry] = deque()
        # Sequence numbers below it are known to be durable. Invariant: never falls.
        self.acked_end = 0
        # Session of explicit ids; b"" before the first. Invariant: next_counter counts the
        # batches sent under it, and those in flight hold the numbers just below it.
        self.session = b""
        self.next_counter = 0
        # When all in flight is sent again. Meaningful while something flies.
        self.due_ms = 0
        # No sending before this time: the broker asked for patience. 0: none.
        self.held_until_ms = 0
        # Fruitless attempts in a row: they stretch the next wait.
        self.failures = 0

    def unjudged(self) -> list[Entry]:
        """Return what is in flight without a verdict, in order."""
        return [entry for entry in self.flying if entry.verdict is None]

    def renew_session(self, session: bytes) -> None:
        """Count what is in flight from 0 again under a new session."""
        self.session = session
        entries = self.unjudged()
        for counter, entry in enumerate(entries):
            entry.counter = counter
        self.next_counter = len(entries)

    def next_may_fly(self) -> bool:
        """Whether the first waiting batch is of the kind that flies now."""
        return bool(self.waiting) and (
            not self.flying or self.flying[-1].explicit == self.waiting[0].explicit
        )

    def pop_settled(self) -> list[Entry]:
        """Take out the batches that have a verdict and none without one before them."""
        settled = []
        while self.flying and self.flying[0].verdict is not None:
            settled.append(self.flying.popleft())
        return settled
