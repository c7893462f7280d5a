"""A program that writes to the outbox in its own database, and that database.

The program is a user: it begins transactions, writes rows in them, and commits or rolls back, some
of them much later than others. What it has committed must be stored once, and what it has rolled
back must never be sent: only committed bodies are known to the oracle as sent. The database keeps
what was committed through everything; it may be away, and it may lose the answer to a commit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from ...codec.values import BYTES
from ..environment import Environment
from ..oracles.log import BrokerOracle
from ..trace import Violation
from .handler import encoded_body
from .users import User

ROLLBACKS = 0.2  # odds that a transaction comes to nothing
LIES = 0.08  # odds that a row has the id of one that is stored, with another body
ROWS_MAX = 4  # of one transaction
LINGER_MS = 3_000  # of the longest transactions
ROUND_ROWS = 5  # that a relay reads at once

BEFORE, AFTER = "before", "after"  # where an answer is lost: before a commit, and after it


class OutboxLost(Exception):
    """The database does not answer."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row that waits, as library/outbox/table.py has it."""

    place: int
    topic: str
    message_id: bytes
    key: bytes | None
    value: bytes
    encoding: int = BYTES
    headers: bytes = b""

    @property
    def identity(self) -> bytes:
        return self.topic.encode() + b"?" + self.message_id

    @property
    def body(self) -> bytes:
        return encoded_body(self.key, self.value)


@dataclass(slots=True)
class Outbox:
    """The table. Its rows are what is committed."""

    oracle: BrokerOracle
    waiting: dict[int, OutboxRow] = field(default_factory=dict)
    failed: set[bytes] = field(default_factory=set)  # identities of rows that were refused
    up: bool = True
    next_settle: str = ""  # what becomes of the next answer: BEFORE, AFTER, "": it comes
    next_place: int = 1

    def read(self) -> list[OutboxRow]:
        """Raises OutboxLost."""
        self._reached()
        return [self.waiting[place] for place in sorted(self.waiting)[:ROUND_ROWS]]

    def settle(self, acked: list[int], failed: list[int]) -> int:
        """Return how many rows were still there. Raises OutboxLost: they may be gone."""
        self._reached()
        lost, self.next_settle = self.next_settle, ""
        if lost == BEFORE:
            raise OutboxLost("the connection broke before the commit")
        gone = [self.waiting.pop(p) for p in (*acked, *failed) if p in self.waiting]
        for row in gone:
            known = self.oracle.by_identity.get(row.identity)
            refused = row.place in failed
            if known is None:
                raise Violation("outbox emptied", f"{row} is not stored")
            if (known[1].body != row.body) != refused:
                raise Violation("outbox verdict", f"{row}, refused: {refused}, stored: {known[1]}")
            if refused:
                self.failed.add(row.identity)
        if lost == AFTER:
            raise OutboxLost("the connection broke after the commit")
        return len(gone)

    def _reached(self) -> None:
        if not self.up:
            raise OutboxLost("the database is stopped")


class OutboxUser(User):
    """The program. `content` once all it wanted is committed and has left the outbox."""

    def __init__(self, world: Environment, outbox: Outbox, topic: str, quota: int) -> None:
        super().__init__("outbox", topic, quota, world.oracle)
        self._world = world
        self._outbox = outbox
        self._rng = random.Random(f"{world.plan.seed} outbox")
        self._made = 0
        self._open = 0  # transactions that have not ended

    @property
    def content(self) -> bool:
        return self._made >= self.quota and not self._open and not self._outbox.waiting

    def arm(self) -> None:
        if self._made < self.quota:
            self._world.after(self._world.plan.submit_ms(self._rng), self._begin)

    def _begin(self) -> None:
        rows = [self._row() for _ in range(self._rng.randint(1, ROWS_MAX))]
        self._open += 1
        rng = self._rng
        pause_ms = rng.randint(0, LINGER_MS) if rng.random() < 0.2 else rng.randint(0, 20)
        keeps = rng.random() >= ROLLBACKS
        self._world.after(pause_ms, lambda: self._end(rows if keeps else []))
        self.arm()

    def _row(self) -> OutboxRow:
        """Write a row; it has its place from now on, whenever its transaction ends."""
        rng, outbox = self._rng, self._outbox
        number = self._made
        self._made += 1
        if number and rng.random() < LIES:
            number = rng.randrange(number)
        place, outbox.next_place = outbox.next_place, outbox.next_place + 1
        key = b"k%d" % (number % 5) if number % 2 else None
        body = b"row %d written at %d" % (number, place)
        return OutboxRow(place, self.topic, b"sout-%d" % number, key, body)

    def _end(self, rows: list[OutboxRow]) -> None:
        """Commit what is unique in the table, as the table itself sees to it."""
        self._open -= 1
        there = {row.message_id for row in self._outbox.waiting.values()}
        for row in rows:
            if row.message_id not in there:
                there.add(row.message_id)
                self.oracle.sent.add(row.body)
                self._outbox.waiting[row.place] = row
