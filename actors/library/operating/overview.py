"""A broker at one look: its topics with what they counted, and each group with owner and lag.

`oncemq top`, the metrics of the broker and the web page take their figures from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...ids import dead_topic
from ...protocol import Surveyed
from .client import AdminClient

Place = tuple[str, str, int]  # topic, group, partition
_START: Place = ("", "", 0)


@dataclass(frozen=True, slots=True)
class TopicLine:
    """One topic. What it stored ever is right over restarts; the last three count from the start
    of the broker."""

    topic: str
    partitions: int
    stored: int  # messages ever
    messages: int  # that are there
    bytes_stored: int
    bytes_held: int
    ids: int  # explicit ids ever
    duplicates: int
    conflicts: int
    refused: int


@dataclass(frozen=True, slots=True)
class GrantLine:
    """One partition of a group, with its last owner."""

    group: str
    topic: str
    partition: int
    epoch: int
    consumer: str
    live: bool
    committed: int
    end: int
    age_ms: int  # of the first message that is not committed; 0: there is none

    @property
    def lag(self) -> int:
        """Messages that are stored and not committed."""
        return self.end - self.committed


@dataclass(frozen=True, slots=True)
class Overview:
    """All topics and grants of a broker, in the order of names."""

    at_ms: int  # broker time
    durable: int  # end of the log, in bytes
    disk_full: bool
    topics: list[TopicLine]
    grants: list[GrantLine]

    def letters(self, topic: str) -> int:
        """Return how many dead letters of `topic` are there."""
        dead = dead_topic(topic)
        return next((line.messages for line in self.topics if line.topic == dead), 0)

    def as_dict(self) -> dict[str, Any]:
        return {
            "at_ms": self.at_ms,
            "durable": self.durable,
            "disk_full": self.disk_full,
            "topics": [asdict(line) for line in self.topics],
            "groups": [{**asdict(line), "lag": line.lag} for line in self.grants],
        }


def overview(client: AdminClient) -> Overview:
    """Return what the broker has. Raises NotSupported (an older broker), NoAnswer."""
    return gathered(client.survey)


def gathered(page_behind: Callable[[Place], Surveyed]) -> Overview:
    """Return what the pages say together; each begins behind the last row of the one before."""
    topics: list[TopicLine] = []
    grants: list[GrantLine] = []
    after = _START
    while True:
        page = page_behind(after)
        topics += [TopicLine(*row) for row in page.topics]
        grants += [GrantLine(*row) for row in page.grants]
        if not page.more:
            return Overview(page.at_ms, page.durable, page.disk_full, topics, grants)
        places = [(row[0], "", 0) for row in page.topics[-1:]]
        after = max([*places, *((row[1], row[0], row[2]) for row in page.grants[-1:])])
