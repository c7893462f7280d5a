"""A broker with one topic that has a dedup horizon, for tests of what it forgets."""

from __future__ import annotations

from oncemq.limits import Limits
from oncemq.protocol import ConfigureTopic, CreateTopic, Failure, Produced
from tests.core.broker.help import World, batch_with_ids

HOUR = 3_600_000
AHEAD = 1_000
LIMITS = Limits(created_ahead_ms_max=AHEAD, id_table_ids=16)


class Shop(World):
    """A world whose topic `t` has a horizon, with messages that tell their age."""

    def __init__(self, dedup: str = "1h") -> None:
        super().__init__(limits=LIMITS)
        self.clock.ms = 100 * HOUR
        self.begin()
        self.ask(CreateTopic(self.n, "t", 2, dedup))

    def begin(self) -> None:
        self.counter = 0
        self.session = self.n.to_bytes(16, "big")
        self.hello(version_max=4)

    def sell(self, items: dict[str, str], created_ms: int | None, partition: int = 0):
        columns = {} if created_ms is None else {"created_at_ms": [created_ms] * len(items)}
        batch = batch_with_ids(list(items.items()), **columns)
        where = {"session": self.session, "partition": partition}
        answer = self.ask(self.explicit(self.counter, batch, **where), batch.raw)
        if isinstance(answer, Produced) or not answer.code.startswith("unknown_s"):
            self.counter += 1
        return answer if isinstance(answer, Failure) else runs_of(answer)

    def set(self, dedup: str):
        return self.ask(ConfigureTopic(self.n, "t", dedup, ""))

    def pass_time(self, ms: int) -> None:
        """Let time pass in a topic that is in use."""
        until = self.clock.ms + ms
        while self.clock.ms < until:
            self.clock.ms = min(until, self.clock.ms + HOUR // 8)
            self.sell({f"filler-{self.n}": "f"}, self.clock.ms)


def runs_of(answer: Produced):
    names = {0: "stored", 1: "duplicate", 2: "conflict", 3: "too_old", 4: "ahead"}
    return [(count, names[verdict], offset) for count, verdict, offset in answer.runs]
