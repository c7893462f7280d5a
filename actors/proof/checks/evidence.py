"""What the checks of a run judge: its history, the proof of its files, and its effects.

The proof is the report of `verify`, which has judged the files by themselves. What stands here is
about files and something else: what clients and processes reported, an earlier look, effects where
a handler left them. Without a part, the checks that need it say that they did not run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..verify.kept import Kept
from ..verify.verify import Report

OK, FAIL, INFO = "ok", "fail", "info"  # it happened; definitely not; unknown


@dataclass(frozen=True, slots=True)
class Event:
    """One structured event of one process."""

    name: str
    role: str
    pid: int
    incarnation: str
    n: int
    mono_ns: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Send:
    """One attempt of a client to have a message stored."""

    process: str
    topic: str
    partition: int
    message_id: str  # sequence ids as topic/producer:partition:number
    outcome: str = INFO
    offset: int | None = None  # told by the broker
    body_hash: int | None = None  # xxh3-64 of encoding, key and value
    duplicate: bool = False
    began: int = 0  # any clock that all processes share
    ended: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """What one look at one partition showed, in the order shown."""

    process: str
    topic: str
    partition: int
    messages: tuple[tuple[int, str], ...]  # (offset, id)
    outcome: str = OK
    began: int = 0
    sought: bool = False  # the first one after a jump: order with earlier reads means nothing


@dataclass(frozen=True, slots=True)
class Effect:
    """A handler's effect that was found where exactly-once is promised."""

    group: str
    topic: str
    message_id: str
    value: Any = None  # what `expected_values` of the evidence holds for the message


@dataclass(slots=True)
class History:
    """What processes and clients said."""

    events: list[Event] = field(default_factory=list)  # by mono_ns
    sends: list[Send] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    # Whether `sends` holds every attempt of every client, and whether `reads` ended with looks
    # from the first offset to the end of every partition.
    sends_complete: bool = False
    read_to_the_end: bool = False
    # Lines that were cut, and (file, reason) of what cannot be trusted.
    torn_lines: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events if event.name in names]


@dataclass(slots=True)
class Evidence:
    """All that is known of one run."""

    history: History | None = None
    # What `verify` says of the files in the end, and what it said earlier in the run, oldest first.
    report: Report | None = None
    earlier: list[Report] = field(default_factory=list)
    effects: list[Effect] | None = None
    # Whether faults are over and everything had time to be processed.
    drained: bool = False
    # What the effect of a message must be, by (group, topic, id); None: it is not compared.
    expected_values: dict[tuple[str, str, str], Any] | None = None
    # What happened, by name; `required` says how often each must have happened at least.
    counters: Counter[str] = field(default_factory=Counter)
    required: dict[str, int] = field(default_factory=dict)

    @property
    def messages(self) -> Kept | None:
        """All messages and commits in the files, if the report keeps them."""
        return None if self.report is None else self.report.kept
