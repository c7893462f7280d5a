"""What a checker judges: the history H of a run, its log L, its ledgers K and its effects E.

All of it is plain data in memory, so that simulator, real processes and users' own programs can
hand in the same thing. `collect.py` makes L and K from files, `history.py` makes H from event
files; a part that nobody has is left empty, and the checks that need it say that they did not run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

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
    value: Any = None  # whatever `expected_value` of the evidence computes from the message


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the log."""

    topic: str
    partition: int
    offset: int
    message_id: str
    producer: str
    epoch: int
    sequence: int  # -1: an explicit id
    body_hash: int
    position: int
    live_epoch: int  # of its producer at that position


@dataclass(frozen=True, slots=True)
class Grant:
    """A partition of a group was given to a ledger."""

    group: str
    topic: str
    partition: int
    epoch: int
    ledger_id: bytes
    next_offset: int
    position: int


@dataclass(frozen=True, slots=True)
class LogView:
    """The broker's log, as far as it is durable."""

    log_id: bytes
    entries: tuple[Entry, ...]
    grants: tuple[Grant, ...] = ()
    torn_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """One outgoing message of a commit."""

    message_id: str  # @group/topic/partition is its producer
    topic: str
    partition: int
    body_hash: int
    commit_no: int


@dataclass(frozen=True, slots=True)
class CommitView:
    """One commit of a ledger. `ids` are messages of its input, as the log names them."""

    commit_no: int
    epoch: int
    generation: int  # that wrote it
    first_offset: int
    next_offset: int
    ids: tuple[str, ...]  # an id that the log does not know is shown as 0x and its fingerprint
    position: int = 0
    parked: bool = False  # its messages became dead letters: they had no effect
    moved: bool = False  # an operator moved the offset, forward or back


@dataclass(frozen=True, slots=True)
class LedgerView:
    """A ledger, as far as it is durable. A snapshot at its start counts as one commit."""

    group: str
    topic: str
    partition: int
    ledger_id: bytes
    log_id: bytes
    start_offset: int
    commits: tuple[CommitView, ...]
    outputs: tuple[Sent, ...] = ()
    acked: dict[tuple[str, int], int] = field(default_factory=dict)
    base_commit_no: int = 0  # commits up to it come from a snapshot
    outputs_known_from: dict[tuple[str, int], int] = field(default_factory=dict)
    wrong_effects: tuple[str, ...] = ()  # what speaks against its records of effects

    @property
    def next_offset(self) -> int:
        """The offset behind the last commit."""
        return self.commits[-1].next_offset if self.commits else self.start_offset

    @property
    def where(self) -> str:
        """The ledger, for people."""
        return f"group {self.group} {self.topic}/{self.partition}"

    @property
    def place(self) -> tuple[str, str, int]:
        """(group, topic, partition)."""
        return self.group, self.topic, self.partition


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
        """Return the events with one of these names."""
        return [event for event in self.events if event.name in names]


@dataclass(slots=True)
class Evidence:
    """All that is known of one run."""

    history: History | None = None
    log: LogView | None = None
    ledgers: list[LedgerView] | None = None
    effects: list[Effect] | None = None
    # Earlier looks at logs and ledgers of the same run, oldest first.
    earlier_logs: list[LogView] = field(default_factory=list)
    earlier_ledgers: list[LedgerView] = field(default_factory=list)
    # Whether faults are over and everything had time to be processed.
    drained: bool = False
    # What the effect of a message must be, by (group, topic, id); None: it is not compared.
    expected_values: dict[tuple[str, str, str], Any] | None = None
    # What happened, by name; `required` says how often each must have happened at least.
    counters: Counter[str] = field(default_factory=Counter)
    required: dict[str, int] = field(default_factory=dict)
