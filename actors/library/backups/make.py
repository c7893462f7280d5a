"""Making a backup beside a running system.

Each log is read as every reader reads it (synced, of the newest generation) and becomes a generation of its
own in the backup. Immutable files are links: to the same file of the backup before, or to the original. All
that was not checked for an earlier backup is checked here, byte by byte. Where an owner takes a file away
meanwhile, or a ledger runs too far ahead, all begins again. The catalog comes last: until then there is no
backup, only a directory that the next one deletes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from ...errors import BadInput, CorruptLog, DiskFull, StorageError
from ...shells.tables.records import Row
from ...storage import document, layout
from ...storage.check import Tell
from ...storage.copying import Immutable, copy_generation, cut_at
from ...storage.disk import Disk
from ...storage.outside_reader import latest_view
from ...storage.view import View, read_view
from .catalog import (
    BROKER,
    CATALOG,
    LEDGERS,
    SINK,
    Catalog,
    Entry,
    Log,
    backups_in,
    digest_of,
    read_catalog,
    remove_tree,
)
from .cut import BrokerCut, Moved, elsewhere, end_for, ledger_cut
from .fsck import ledgers_in

ATTEMPTS_MAX = 20  # each one means that the system went on; a bound turns a bug into an error


class SinkCopy(Protocol):
    """A database with ledgers that can be copied at one instant."""

    shown: str  # its address

    def copy(self, path: str) -> list[Row]:
        """Copy it to a new file; return the rows of its ledgers."""


@dataclass(slots=True)
class Made:
    """A finished backup, and what it cost."""

    path: str
    catalog: Catalog
    copied_bytes: int
    linked_bytes: int  # to files of the original
    shared_bytes: int  # with the backup before
    notes: list[str]


@dataclass(slots=True)
class Job:
    """One call of `oncemq backup`."""

    disk: Disk
    directory: str  # where backups lie
    data: str
    state: str | None
    host: str
    now_ms: int
    sink: SinkCopy | None
    independent: bool  # copy all bytes: no block is shared with the original
    tell: Tell
    wait: Callable[[], None]  # sleeps a little

    def run(self) -> Made:
        """Raises LogInUse (another backup runs), CorruptLog, LogRegressed, DiskFull, OSError."""
        layout.make_directories(self.disk, self.directory)
        lock = posixpath.join(self.directory, layout.LOCK)
        with layout.exclusively(self.disk, lock, f"making a backup in {self.directory}"):
            for name in backups_in(self.disk, self.directory):
                home = posixpath.join(self.directory, name)
                if not self.disk.exists(posixpath.join(home, CATALOG)):
                    remove_tree(self.disk, home)
            return self._attempts()

    def _attempts(self) -> Made:
        last: Exception | None = None
        for _ in range(ATTEMPTS_MAX):
            home = self._new_name()
            try:
                return Attempt(self, home).run()
            except Exception as error:
                with contextlib.suppress(OSError):
                    remove_tree(self.disk, home)
                if isinstance(error, DiskFull) or (
                    isinstance(error, OSError) and error.errno in layout.FULL
                ):
                    raise DiskFull(
                        f"no room for a backup in {self.directory}; nothing of it is left",
                        hint="free space there, or delete old backups",
                    ) from error
                if not _may_pass(error, last):
                    raise
                last = error
            self.wait()
        assert last is not None
        raise last

    def _new_name(self) -> str:
        at_ms = self.now_ms
        while True:
            at = dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)
            home = posixpath.join(self.directory, f"backup-{at:%Y%m%dT%H%M%S}.{at_ms % 1000:03d}Z")
            if not self.disk.exists(home):
                return home
            at_ms += 1


def _may_pass(error: Exception, before: Exception | None) -> bool:
    """Return whether another attempt may do better.

    A file that its owner has just replaced may look damaged or be missing. Damage stays at its place.
    """
    if isinstance(error, CorruptLog):
        return not isinstance(before, CorruptLog) or (before.path, before.offset) != (
            error.path,
            error.offset,
        )
    return isinstance(error, Moved | FileNotFoundError)


@dataclass(slots=True)
class Attempt:
    """One attempt to make the backup in directory `home`."""

    job: Job
    home: str
    disk: Disk = field(init=False)
    entries: list[Entry] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # Immutable files of the backup before, by what they hold; each with its path.
    earlier: dict[tuple[str, int], tuple[str, Entry]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)  # of the ledgers in the sink
    own: set[str] = field(default_factory=set)  # immutable files that were copied, not linked
    copied_bytes: int = 0
    linked_bytes: int = 0
    shared_bytes: int = 0

    def __post_init__(self) -> None:
        self.disk = self.job.disk

    def run(self) -> Made:
        job = self.job
        self._find_earlier()
        layout.make_directories(self.disk, self.home)
        cut = self._broker()
        seen = {row.ledger_id for row in self.rows}
        if job.state is not None:
            for place in ledgers_in(self.disk, job.state):
                seen.add(self._ledger(place, cut))
        for (group, topic, partition), grant in elsewhere(cut, seen).items():
            self.notes.append(
                f"the ledger of group {group}, {topic} partition {partition} is not in this backup: "
                f"it lies on {grant.host} in {grant.path}"
            )
        catalog = Catalog(
            job.now_ms,
            job.host,
            cut.history.current.hex(),
            tuple(self.logs),
            job.sink.shown if job.sink is not None else "",
            tuple(self.entries),
        )
        layout.replace(self.disk, self.home, CATALOG, catalog.encode())
        return Made(
            self.home, catalog, self.copied_bytes, self.linked_bytes, self.shared_bytes, self.notes
        )

    def _find_earlier(self) -> None:
        directory = self.job.directory
        for name in reversed(backups_in(self.disk, directory)):
            backup = posixpath.join(directory, name)
            try:
                catalog = read_catalog(self.disk, backup)
            except StorageError as error:
                self.notes.append(f"no file is shared with an earlier backup: {error.reason}")
                continue
            for entry in catalog.files:
                if entry.tag and (entry.own or not self.job.independent):
                    path = posixpath.join(backup, entry.name)
                    self.earlier[entry.tag, entry.length] = path, entry
            return

    def _broker(self) -> BrokerCut:
        job, disk = self.job, self.disk
        view = latest_view(disk, job.data, wait=job.wait)
        end = view.end
        if job.sink is not None:
            self.rows = job.sink.copy(posixpath.join(self.home, SINK))
            self._add_file(SINK)
            view = latest_view(disk, job.data, wait=job.wait)
            if view.start > end:
                raise Moved(f"{job.data} was trimmed meanwhile")
            mine = [row for row in self.rows if row.log_id == view.manifest.log_id]
            end = end_for(disk, view, end, mine)
        view = cut_at(disk, view, end)
        copy = self._copy(view, BROKER, job.data)
        secret = posixpath.join(job.data, layout.SECRET)
        if disk.exists(secret):
            data = layout.read_file(disk, secret)
            document.decode("secret", data, secret)
            self.write(posixpath.join(BROKER, layout.SECRET), data)
            disk.sync_directory(posixpath.join(self.home, BROKER))
        cut = BrokerCut.read(disk, copy)
        for row in self.rows:
            if row.log_id == cut.log_id:
                cut.check_same_past(f"a ledger in {SINK}", row.seen)
            elif row.log_id:
                self.notes.append(f"a ledger in {SINK} is of another log, {row.log_id.hex()}")
        return cut

    def _ledger(self, place: str, broker: BrokerCut) -> bytes:
        """Copy one ledger and return its id."""
        assert self.job.state is not None
        directory = posixpath.join(self.job.state, place)
        view = latest_view(self.disk, directory, wait=self.job.wait)
        end, log_id = ledger_cut(self.disk, view, f"the ledger in {directory}", broker)
        if log_id not in {b"", broker.log_id}:
            self.notes.append(f"the ledger in {directory} is of another log, {log_id.hex()}")
        self._copy(cut_at(self.disk, view, end), posixpath.join(LEDGERS, place), directory)
        return view.manifest.log_id

    def _copy(self, view: View, name: str, directory: str) -> View:
        """Make the copy of a log and return it, read back."""
        old = view.manifest
        number = old.generation + 1
        generation = posixpath.join(name, layout.generation_name(number))
        path = posixpath.join(self.home, generation)
        layout.make_directories(self.disk, path)
        files = LogFiles(self, generation)
        owner = {"backup_of": directory, "host": self.job.host}
        manifest = copy_generation(self.disk, view, files, number, old.lineage, owner)
        layout.replace(self.disk, path, layout.MANIFEST, manifest.encode())
        self._add(posixpath.join(generation, layout.MANIFEST), manifest.encode())
        self.logs.append(Log(name, old.log_id.hex(), old.lineage.hex(), old.generation, view.end))
        copy = read_view(self.disk, path, number)
        if copy.end != view.end:
            raise CorruptLog(path, 0, "the copy reads back changed")
        return copy

    # --- files ----------------------------------------------------------------------------------

    def write(self, name: str, data: bytes) -> None:
        layout.write_new(self.disk, posixpath.join(self.home, name), data)
        self._add(name, data)

    def _add(self, name: str, data: bytes) -> None:
        self.entries.append(Entry(name, len(data), hashlib.sha256(data).hexdigest(), "", own=True))
        self.copied_bytes += len(data)
        self.job.tell(name, len(data))

    def _add_file(self, name: str) -> None:
        path = posixpath.join(self.home, name)
        with contextlib.closing(self.disk.open(path)) as file:
            file.sync()
            length = file.length()
        self.disk.sync_directory(self.home)
        self.entries.append(Entry(name, length, digest_of(self.disk, path, length), "", own=True))
        self.copied_bytes += length

    def keep(self, source: Immutable, name: str) -> str:
        """Take an immutable file from the backup before, or from the original: see `Target`."""
        path = posixpath.join(self.home, name)
        if self._share(source, name, path):
            return ""
        if not self._link(source, path):
            layout.copy_new(self.disk, source.file, path, source.length)
            self.own.add(name)
        return path

    def _link(self, source: Immutable, path: str) -> bool:
        if self.job.independent:
            return False
        try:
            return layout.link(self.disk, source.path, path)
        except FileNotFoundError:  # its owner has deleted the name, and it is open here
            return False

    def checked(self, source: Immutable, name: str) -> None:
        digest = digest_of(self.disk, posixpath.join(self.home, name), source.length)
        own = name in self.own
        self.entries.append(Entry(name, source.length, digest, source.tag, own))
        if own:
            self.copied_bytes += source.length
        else:
            self.linked_bytes += source.length
        self.job.tell(name, source.length)

    def _share(self, source: Immutable, name: str, path: str) -> bool:
        known = self.earlier.get((source.tag, source.length))
        if known is None:
            return False
        there, entry = known
        try:
            if not layout.link(self.disk, there, path):
                return False
        except FileNotFoundError:
            return False  # deleted from the backup before
        self.entries.append(replace(entry, name=name))
        self.shared_bytes += source.length
        self.job.tell(name, source.length)
        return True


@dataclass(slots=True)
class LogFiles:
    """The place of one log in a backup."""

    attempt: Attempt
    generation: str

    def keep(self, source: Immutable, name: str) -> str:
        return self.attempt.keep(source, posixpath.join(self.generation, name))

    def checked(self, source: Immutable, name: str) -> None:
        self.attempt.checked(source, posixpath.join(self.generation, name))

    def write(self, name: str, data: bytes) -> None:
        self.attempt.write(posixpath.join(self.generation, name), data)


def check_apart(directory: str, *others: str | None) -> None:
    """Raise BadInput where backups would lie inside of what is backed up."""
    for other in others:
        if other is not None and (directory + "/").startswith(other.rstrip("/") + "/"):
            raise BadInput(f"{directory} lies inside {other}", hint="name a place of its own")
