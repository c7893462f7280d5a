"""Reading a log from outside, beside its owner: what `state`, `verify` and `dump` print.

People rely on what a reader prints as a client relies on an answer. So a reader takes whole groups
only, syncs them through a descriptor of its own, and looks again for a newer generation before it
trusts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

from ..errors import CorruptLog, LogInUse, StorageError
from . import layout, snapshots
from .by_position import RecordReader, StoredRecord
from .creation import sync_end
from .disk import Disk
from .document import Manifest, SnapshotInfo
from .recovery import being_made
from .snapshots import Mapped
from .view import LOOKS_MAX, View, highest_complete, known_chain, read_latest


def latest_view(disk: Disk, directory: str, *, wait: Callable[[], None] | None = None) -> View:
    """Return the highest complete generation up to its last whole group, which is synced.

    While a live process makes a newer one, `wait` is called (it sleeps a little) and the look
    starts over; without `wait` it raises LogInUse. Raises CorruptLog, and StorageError if there
    is no log.
    """
    for _ in range(LOOKS_MAX):
        view = read_latest(disk, directory)
        if view is None:
            raise StorageError(f"there is no log in {directory}")
        number = view.manifest.generation
        sync_end(disk, view)
        complete, numbers = highest_complete(disk, directory)
        if complete != number:
            continue
        if not any(being_made(disk, directory, n) for n in numbers if n > number):
            if layout.generations(disk, directory)[-1:] == numbers[-1:]:
                return view
            continue
        if wait is None:
            raise LogInUse(f"a new generation of {directory} is being made", hint="try again")
        wait()
    raise LogInUse(f"{directory} is opened again and again by other processes", hint="try again")


class LogReader:
    """One generation as it stood when it was opened. Nothing on disk is changed."""

    def __init__(self, disk: Disk, directory: str, view: View) -> None:
        self.manifest: Manifest = view.manifest
        self.log_id = view.manifest.log_id
        self.lineage = view.manifest.lineage
        self.generation = view.manifest.generation
        self.start = view.start
        self.end = view.end  # position after the last whole group
        self.cut_report = view.cut  # bytes behind it that are no whole group
        self._disk = disk
        self._directory = directory
        self._view = view
        self._reader = RecordReader(disk, view.path, view.firsts, view.place.seed)

    @classmethod
    def open(
        cls, disk: Disk, directory: str, *, wait: Callable[[], None] | None = None
    ) -> LogReader:
        """Read the highest complete generation: see `latest_view`."""
        return cls(disk, directory, latest_view(disk, directory, wait=wait))

    def replay(self, position: int | None = None) -> Iterator[StoredRecord]:
        """`position` None: from the start. Raises CorruptLog."""
        at = self.start if position is None else position
        try:
            chain = known_chain(self._disk, self._view, at)
            trusted_from = self._view.firsts[-1] if self._view.firsts else 0
            yield from self._reader.replay(at, self.end, trusted_from, chain)
        except FileNotFoundError as error:
            self._replaced(error)

    def snapshots(self) -> list[SnapshotInfo]:
        """Return the undamaged snapshots, newest first. Raises as `FencedLog.snapshots` does."""
        try:
            return snapshots.usable(self._disk, self._view)[0]
        except (CorruptLog, FileNotFoundError) as error:
            self._replaced(error)

    def read_snapshot(self, info: SnapshotInfo) -> dict[str, bytes | Mapped]:
        """Raises CorruptLog."""
        try:
            return snapshots.load(self._disk, self._view.path, info)
        except CorruptLog as error:
            self._replaced(error)

    def _replaced(self, error: Exception) -> NoReturn:
        """Raise StorageError instead of `error` where the owner deleted what was being read.

        That is no damage: the reader was too slow.
        """
        if highest_complete(self._disk, self._directory)[0] != self.generation or isinstance(
            error, FileNotFoundError
        ):
            raise StorageError(
                f"{self._directory} moved on while it was read", hint="read it again"
            ) from error
        raise error

    def close(self) -> None:
        self._reader.close()
