"""A sender whose topic has a dedup horizon: it sends again and again, long after ids are forgotten."""

from __future__ import annotations

import random

from ...batch import Batch
from ...core.client.producer import Submit
from ...core.client.send_window import Settled
from ...ids import partition_of
from ...protocol import AHEAD, CONFLICT, TOO_OLD
from ..oracles.log import BrokerOracle, StoredMessage
from ..trace import Violation
from .users import BATCH_MESSAGES, User

TOPIC = "visits"
PARTITIONS = 2
FIRST_DEDUP = "2s"
RESENDS = 0.5  # odds that a message which has its verdict is sent again
NEW_TIMES = 0.05  # odds that a resend has another time, as of a program that stamps each attempt
REACH_MS = 6_000  # how long before the latest record of the log a message may have been created


class DatedUser(User):
    """Workers that share ids, each with the time of its message."""

    def __init__(self, quota: int, oracle: BrokerOracle) -> None:
        super().__init__("", TOPIC, quota, oracle)
        self.times: dict[int, int] = {}  # of each message, when it was made
        self.judged: set[int] = set()  # that have a verdict

    @property
    def content(self) -> bool:
        return len(self.judged) >= self.quota

    def next_submit(
        self, process: str, rng: random.Random, memory: dict[str, int]
    ) -> Submit | None:
        del memory
        if self.content:
            return None
        open_ones = [n for n in range(self.quota) if n not in self.judged]
        picked = rng.sample(open_ones, min(len(open_ones), rng.randint(1, BATCH_MESSAGES // 2)))
        if self.judged and rng.random() < RESENDS:
            picked += rng.sample(sorted(self.judged), min(len(self.judged), 2))
        partition = -1
        rows: list[tuple[bytes | None, bytes]] = []
        ids: list[bytes] = []
        times: list[int] = []
        for number in picked:
            tagged = b"svisit-%d" % number
            at = partition_of(None, tagged, 0, PARTITIONS)
            if partition in {-1, at}:
                partition = at
                rows.append((None, b"visit %d" % number))
                ids.append(tagged)
                times.append(self._time(number, rng))
        batch = self._batch(process, rows, ids, times)
        return Submit(self.topic, partition, batch, batch)

    def _time(self, number: int, rng: random.Random) -> int:
        now_ms = self.oracle.last_at_ms
        made_ms = self.times.setdefault(number, now_ms - rng.randrange(min(now_ms, REACH_MS) + 1))
        if number in self.judged and rng.random() < NEW_TIMES:
            return now_ms
        return made_ms

    def _verdict(
        self, settled: Settled, batch: Batch, number: int, verdict: int, offset: int
    ) -> None:
        """What is refused must be old, or of another time than the one that is stored."""
        assert batch.ids is not None
        assert batch.created_at_ms is not None
        created_ms, tagged = batch.created_at_ms[number], batch.ids[number]
        self.judged.add(int(tagged.rpartition(b"-")[2]))
        if verdict == TOO_OLD:
            if created_ms >= self.oracle.floors.get(self.topic, 0):
                raise Violation("too old", f"{tagged!r} of {created_ms} is not below the floor")
        elif verdict == CONFLICT:
            if not self.oracle.times_of.get((self.topic, tagged), {}).keys() - {created_ms}:
                raise Violation("conflict", f"{tagged!r} of {created_ms} has no other time")
        elif verdict != AHEAD:
            super()._verdict(settled, batch, number, verdict, offset)

    def _identity(self, settled: Settled, batch: Batch, number: int) -> bytes:
        assert batch.created_at_ms is not None
        plain = super()._identity(settled, batch, number)
        assert batch.ids is not None
        created_ms = batch.created_at_ms[number]
        times = self.oracle.times_of.get((self.topic, batch.ids[number]), {})
        if created_ms not in times and times:
            created_ms = max(times, key=times.__getitem__)  # stored while no time counted
        return plain + b"@%d" % created_ms

    def _stored(self, identity: bytes, stored: StoredMessage) -> None:
        """Nothing more: the verdict is what it waits for."""
