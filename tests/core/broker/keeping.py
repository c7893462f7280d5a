"""A broker whose topic has a bound on what it retains, with small segments and snapshots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq import protocol
from oncemq.limits import RETENTION_EVERY_MS, Limits
from oncemq.protocol import Fetched, Join, Renew
from oncemq.storage import layout
from tests.core.broker.help import OTHER, World, values_of

SMALL = {"offset_index_step_bytes": 1, "offset_part_bytes": 4096}
MEMBER = b"m" * 16


class Keeping(World):
    """A broker whose topic `t` has a bound on what it retains."""

    def __init__(
        self, retain: str, *, partitions: int = 1, disk: Any = None, **bounds: int
    ) -> None:
        limits = Limits(**{**SMALL, **bounds})
        super().__init__(disk=disk, limits=limits, snapshot_every=4096, segment_bytes=8192)
        self.open_peers()
        self.topic(partitions=partitions, retain=retain)
        self.producer()

    def open_peers(self) -> None:
        self.hello(version_max=protocol.VERSION_MAX)
        self.hello(OTHER, version_max=protocol.VERSION_MAX)

    def topic(self, name: str = "t", partitions: int = 1, retain: str = "") -> Any:
        return self.ask(protocol.CreateTopic(self.n, name, partitions, "", retain))

    def crash(self, *, clean: bool = False) -> None:
        super().crash(clean=clean)
        self.open_peers()

    def later(self, ms: int = RETENTION_EVERY_MS) -> None:
        """Let time pass, and retention finish what it finds."""
        self.clock.ms += ms
        self.settle()
        self.clock.ms += RETENTION_EVERY_MS
        self.settle()

    def fill(self, count: int, first: int = 0, **changes: Any) -> None:
        for number in range(first, first + count):
            self.send(number, f"{number:04}" + "x" * 200, **changes)

    def churn(self) -> None:
        """Let 60 KB go through the topic."""
        for number in range(120):
            self.fill(1, first=number)
            if number % 4 == 0:
                self.later()
        self.later()

    def join(self, group: str = "g", partition: int = 0, next_offset: int = 0, **more: Any) -> Any:
        join = Join(
            self.n, group, "t", partition, b"i" * 16, b"l" * 16, b"", b"", next_offset, 0,
            False, "host", "/path", "label", MEMBER,
        )  # fmt: skip
        return self.ask(replace(join, **more))

    def report(self, committed: int, epoch: int = 1, group: str = "g", partition: int = 0) -> Any:
        return self.ask(Renew(self.n, group, "t", partition, epoch, MEMBER, committed))

    def start_of(self, partition: int = 0) -> int:
        return self.core.state.topics.get("t").partition(partition).log_start_offset

    def segments(self) -> list[int]:
        names = self.disk.list(f"data/{layout.generation_name(self.log.generation)}")
        return layout.segments_in(names)


def stored_from(world: World, first: int, **changes: Any) -> list[str]:
    """The first four letters of all messages from an offset on."""
    values: list[str] = []
    while True:
        received = world.fetch(first + len(values), **changes)
        assert isinstance(received.message, Fetched), received.message
        if not received.stored:
            return values
        for record in received.stored:
            values += [value[:4] for value in values_of(record)]
