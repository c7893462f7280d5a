"""The ports of a driver: what it needs of the outside world, as protocols.

Runtime, simulator and tests implement them. A real and a simulated process differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .errors import CorruptLog
from .storage.log import Mapped, SnapshotInfo, StoredRecord, TailCut

Frames = Sequence[bytes | memoryview]
# Gets a function that tells whether to stop early; returns what the turn does with the result.
Job = Callable[[Callable[[], bool]], Callable[[], None]]


class Transport(Protocol):
    """Messages as lists of frames.

    It may drop, duplicate and reorder: ZeroMQ drops silently when a peer is gone or a queue is full
    (zguide, chapter 2), so cores rely on none of it.
    """

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """Wait up to `timeout_ms`; return the messages that wait, bounded, as (peer, frames)."""

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Hand over a message; False if the peer is gone or its queue is full (it is dropped)."""


class Clock(Protocol):
    """Time in milliseconds."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970: never decreasing, unmoved by jumps of the system clock."""


class Events(Protocol):
    """The sink of structured events."""

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event of the registry in runtime/event_names.py."""


class SnapshotMaking(Protocol):
    """A snapshot that was begun."""

    def write(self, parts: Mapping[str, bytes]) -> None:
        """Write it, beside the turn or in it. Raises DiskFull; all else is final."""

    def finish(self) -> Any:
        """Let it stand, in the turn; return what it is."""


class PartMaking(Protocol):
    """A part of snapshots to come that was begun."""

    unfinished: bool  # whether `finish` is to be called again, in a later turn

    def write(self, pieces: Iterable[bytes], stop: Callable[[], bool], /) -> None:
        """Write it, beside the turn or in it. Raises DiskFull; all else is final."""

    def finish(self) -> Mapped | None:
        """Let it stand, in the turn; return it. None: it is unfinished, or was stopped."""


class Background(Protocol):
    """Where work is done that must not stop a turn."""

    def start(self, job: Job) -> None:
        """Do `job`, now or later. It returns, or raises, what the turn does when it is done."""

    def finished(self) -> list[Callable[[], None]]:
        """Return what jobs that are done want done in the turn. Raises what a job raised."""

    def settle(self, *, stop: bool = True) -> list[Callable[[], None]]:
        """Wait until all jobs are done, and return as `finished`; `stop` lets them end early."""


class Log(Protocol):
    """What a driver needs of a fenced log (storage/log.py)."""

    log_id: bytes
    lineage: bytes
    generation: int
    cut_report: TailCut | None  # the torn tail that the opening left out
    snapshot_damage: list[CorruptLog]  # snapshots that `snapshots` passed over

    @property
    def end(self) -> int:
        """The position the next record will get."""

    @property
    def durable_end(self) -> int:
        """The end covered by an fsync that has returned."""

    @property
    def attested(self) -> int:
        """The end that something written later attests."""

    def reserve(self, nbytes: int) -> None:
        """Make room for the records of a turn. Raises DiskFull, having changed nothing."""

    def append(
        self, kind: int, meta: bytes, body: bytes | memoryview, body_crc: int | None = None, /
    ) -> int:
        """Add a record to the group of this turn; return its position."""

    def must_wait(self) -> bool:
        """Return whether a write would wait for another log of this thread: try in a later turn."""

    def sync(self) -> int:
        """Make the group durable, check the fence, return the durable end. Raises Fenced."""

    def attest(self) -> None:
        """Attest the last group by a frame of its own."""

    def check_fence(self) -> None:
        """Raise Fenced if a higher generation exists."""

    def read(self, position: int, max_bytes: int) -> list[StoredRecord]:
        """Return records from a record boundary on, below the durable end."""

    def replay(self, position: int) -> Iterator[StoredRecord]:
        """Yield all records from a record boundary on."""

    def snapshots(self) -> list[SnapshotInfo]:
        """Return the usable snapshots, newest first."""

    def pass_over(self, info: SnapshotInfo) -> None:
        """The core cannot use this snapshot: the next one keeps nothing of it."""

    def read_snapshot(self, info: SnapshotInfo) -> Mapping[str, bytes | Mapped]:
        """Return the parts of a snapshot."""

    def snapshot_writer(self, position: int, keep: Collection[str] = ()) -> SnapshotMaking:
        """Begin a snapshot of the state at `position`; `keep` names parts that are there."""

    def part_writer(self, name: str) -> PartMaking:
        """Begin a part that later snapshots keep by its name."""

    @property
    def start(self) -> int:
        """The position at which the log starts: what lay below was discarded."""

    def discard(self, below: int) -> int:
        """Forget whole segments below `below`."""

    def close(self, *, clean: bool = True) -> None:
        """Attest the last group (when clean) and release the log."""
