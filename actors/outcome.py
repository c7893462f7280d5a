"""What goes into a core (events) and what comes out of it (an Outcome): work to do, as data.

Theory of operation. A core is `step(event, now_ms) -> Outcome`, `apply(record, position)`,
`snapshot()`, `restore()`. `step` decides and touches only what may be lost; `apply` alone changes
what must survive. The driver appends and applies every record of an outcome before it gives the
core its next event, so the next decision already sees the record. Nothing that a peer could rely on
leaves before the sync at the end of the turn. The models are etcd raft's `Ready` and Kafka's order
of validate, append, update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from .batch import Batch
from .protocol import Message
from .records import BatchStored, Plain, Record

# --- events that every core may meet -------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A well-formed message from a peer."""

    peer: bytes  # identity on the transport; b"" for the broker, the one peer of a client
    message: Message
    batch: Batch | None = None  # of a Produce: body CRC and columns already checked
    stored: list[BatchStored] | None = None  # of a Fetched: body CRCs already checked


@dataclass(frozen=True, slots=True)
class Recovered:
    """Snapshot and log have been applied; `end` is the durable end."""

    generation: int
    end: int


@dataclass(frozen=True, slots=True)
class Synced:
    """An fsync that covers everything below `end` has returned, and no successor had fenced us."""

    end: int


@dataclass(frozen=True, slots=True)
class SnapshotWritten:
    """The last snapshot of the core is durable: the next one may keep its parts by name.

    Without this event it may not: a snapshot that met a full disk has left nothing behind.
    """

    position: int


@dataclass(frozen=True, slots=True)
class Tick:
    """The clock has reached `wake_at_ms`."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The log could not reserve space for this turn (`full`), or can again."""

    full: bool


@dataclass(frozen=True, slots=True)
class ReadDone:
    """The answer to a `Read`: stored batches in log order, and where to read on."""

    token: int
    found: list[tuple[int, BatchStored]]  # (position, record)
    next_position: int
    stopped: bool = False  # this turn may read no more: go on in the next one


Event = Any  # the events above, and those of a single core, which this layer does not know

# --- outcome -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """A message for a peer. `body` is a batch, or stored batches to be packed behind a Fetched."""

    peer: bytes
    message: Message
    body: bytes | memoryview | list[BatchStored] | None = None
    # After a sync the driver writes the log's durable end into the message's field `durable`.
    tells_end: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Stored batches wanted, from a record boundary on; answered by ReadDone in the same turn."""

    token: int  # chosen by the core, to tell its reads apart
    position: int
    max_bytes: int
    columns: bool = False  # parse ids, hashes and lengths, not only the record's own fields


@dataclass(slots=True)
class Outcome:
    """Work to do, each list in execution order."""

    # Only what follows from the request alone and reads no state of the core; lease renewals. An
    # answer that reads state may rest on a record that a crash before the sync takes back.
    sends: list[Send] = field(default_factory=list)
    appends: list[Record] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    # Everything that a peer may rely on. Invariant: leaves after a sync that covers all appends
    # of this turn and of all turns before, and after the fence check that follows it.
    sends_after_sync: list[Send] = field(default_factory=list)
    # For the shell around the core (run a handler, open a ledger, complete a Pending, stop).
    work: list[Any] = field(default_factory=list)
    work_after_sync: list[Any] = field(default_factory=list)
    # Structured events (name, fields), written after the sync.
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stop:
    """Work for any shell: end this actor. `error` None is a clean end."""

    error: Exception | None = None


class FrozenRow(NamedTuple):
    """A row of a part of a snapshot that is a list."""

    part: str
    row: Plain


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a core: new parts, and names of unchanged parts of its last durable snapshot."""

    # Parts that are small, or whose values never change again: packed beside the turn.
    parts: dict[str, Plain]
    keep: frozenset[str] = frozenset()
    # Parts that may be large lists. The core freezes a row when it is asked for the next one, or
    # before it changes it; it makes one snapshot at a time.
    lists: frozenset[str] = frozenset()
    rows: Iterator[FrozenRow] = field(default_factory=lambda: iter(()))

    def whole(self) -> dict[str, Plain]:
        """Return all parts, for who can wait: takes the rows that are left."""
        lists: dict[str, list[Plain]] = {name: [] for name in self.lists}
        for part, row in self.rows:
            lists[part].append(row)
        return {**self.parts, **lists}


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file wanted beside the log: immutable, and kept by snapshots under its name."""

    name: str
    # Makes its bytes, in steps of bounded size; another thread may run it.
    pieces: Callable[[], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Keep:
    """A file wanted of what is left of the log in [start, end), so that its segments may go.

    It is a `NewFile` whose bytes the log makes.
    """

    name: str
    start: int
    # From here on it is made of the log, before of kept parts. Between the last of those and here
    # nothing is left, and the log may go meanwhile.
    log_start: int
    end: int
    # The least offset that is left of each partition, by topic number and partition.
    starts: Mapping[tuple[int, int], int]

    def wants(self, partition: tuple[int, int], end_offset: int) -> bool:
        """Return whether a batch that ends at `end_offset` is left."""
        start = self.starts.get(partition)
        return start is not None and end_offset > start


class Files(Protocol):
    """What of a core's state lies in files of its own, which are made beside the turn."""

    def due(self) -> Sequence[NewFile | Keep]:
        """Return the files that should be made now; each one is given once."""

    def made(self, name: str, buffer: Any, path: str) -> None:
        """Take a file that was made."""

    def failed(self, name: str) -> None:
        """A file could not be made, because the disk is full or the actor closes."""


class Core(Protocol):
    """A pure actor: no clock, no randomness, no input or output, no logging."""

    @property
    def wake_at_ms(self) -> int | None:
        """When the core wants a Tick; None for never."""

    def step(self, event: Event, now_ms: int) -> Outcome:
        """Decide what follows from `event`. Changes nothing that must survive a crash."""

    def apply(self, record: Record, position: int) -> None:
        """Change what must survive: live right after the append, and on replay.

        Must depend on the record and earlier records alone, or a restart makes another state.
        """

    def snapshot(self) -> Snapshot:
        """Return the state that all applied records have made."""

    def restore(self, parts: dict[str, Plain]) -> None:
        """Become the state that `snapshot` returned (new and kept parts together).

        A part that is a file of its own comes as it was read or mapped (storage's Mapped). Raises
        CorruptLog or UnsupportedFormat, having changed nothing, where the records must make the
        state anew.
        """
