"""Restoring a backup as a log of a new lineage, in directories that are empty before.

Everything is checked before anything is written, and copied: a restored system shares no block with its
backup. The broker's manifest is the last file, so until then no broker opens the data, and RESTORING keeps
one from beginning a log of its own there.

Generations jump, the broker's to the seconds since 1970 at least: what clients have met stays below, also a
copy that was restored earlier. The lineage is new, so copies of one log can be told apart.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import BadInput, CorruptLog, DiskFull
from ...storage import layout
from ...storage.check import Tell
from ...storage.copying import (
    JUMP,
    Copies,
    Immutable,
    copy_generation,
    cut_at,
    restored_number,
)
from ...storage.disk import Disk
from ...storage.document import Manifest
from ...storage.outside_reader import latest_view
from ...storage.view import read_view
from .catalog import (
    BROKER,
    LEDGERS,
    SINK,
    Catalog,
    check_backup,
    check_empty,
    digest_of,
    find_backup,
    read_catalog,
    remove_tree,
)
from .sink import SqliteCopies


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has made."""

    backup: str
    catalog: Catalog
    lineage: bytes
    generation: int  # of the broker's log; the broker that opens it gets the next one
    nbytes: int


@dataclass(slots=True)
class Restore:
    """One call of `oncemq restore`."""

    disk: Disk
    directory: str  # a backup, or where backups lie: then the newest
    data: str
    state: str | None
    sink: SqliteCopies | None
    host: str
    now_ms: int
    lineage: bytes  # 16 random bytes
    tell: Tell
    wait: Callable[[], None]
    nbytes: int = field(default=0, init=False)

    def run(self) -> Restored:
        """Raises NoBackup, BadInput (a target is not empty), CorruptLog, DiskFull, OSError."""
        backup = find_backup(self.disk, self.directory)
        catalog = read_catalog(self.disk, backup)
        self._check_targets(backup, catalog)
        for finding in check_backup(self.disk, backup, self.tell, self.wait):
            if finding.damage:
                raise CorruptLog(finding.path, finding.offset, finding.reason, hint=finding.advice)
        try:
            generation = self._copy(backup, catalog)
        except OSError as error:
            self._take_back()
            if error.errno in layout.FULL:
                raise DiskFull(
                    f"no room to restore {backup}; nothing of it is left",
                    hint="free space and restore again",
                ) from error
            raise
        return Restored(backup, catalog, self.lineage, generation, self.nbytes)

    def _check_targets(self, backup: str, catalog: Catalog) -> None:
        """Raises BadInput."""
        check_empty(self.disk, self.data, "--data")
        if self.state is not None:
            check_empty(self.disk, self.state, "--state")
        elif catalog.ledgers:
            raise BadInput(f"{backup} holds ledgers", hint="name their new directory: --state DIR")
        if self.sink is not None:
            self.sink.check_absent()
        if (self.sink is not None) != bool(catalog.sink):
            raise BadInput(
                f"{backup} holds {'the sink ' + catalog.sink if catalog.sink else 'no sink'}",
                hint="name its new file: --sink sqlite:///FILE" if catalog.sink else "",
            )

    def _copy(self, backup: str, catalog: Catalog) -> int:
        """The ledgers and the sink first; the broker's manifest last."""
        disk = self.disk
        digests = {posixpath.join(backup, entry.name): entry.digest for entry in catalog.files}
        layout.make_directories(disk, self.data)
        layout.write_new(disk, posixpath.join(self.data, layout.RESTORING), b"see docs/BACKUP.md\n")
        disk.sync_directory(self.data)
        secret = posixpath.join(backup, BROKER, layout.SECRET)
        if secret in digests:
            layout.replace(disk, self.data, layout.SECRET, layout.read_file(disk, secret))
        least = self.now_ms // 1000
        path, manifest = self._log(posixpath.join(backup, BROKER), self.data, least, digests)
        for log in catalog.ledgers:
            assert self.state is not None, "checked before"
            target = posixpath.join(self.state, posixpath.relpath(log.name, LEDGERS))
            self._finish(*self._log(posixpath.join(backup, log.name), target, 0, digests))
        if self.sink is not None:
            self.sink.restore(disk, posixpath.join(backup, SINK), JUMP)
        self._finish(path, manifest)
        layout.remove(disk, posixpath.join(self.data, layout.RESTORING))
        disk.sync_directory(self.data)
        return manifest.generation

    def _log(
        self, source: str, target: str, least: int, digests: dict[str, str]
    ) -> tuple[str, Manifest]:
        """Copy all of a log but its manifest; return the directory and that manifest."""
        view = latest_view(self.disk, source)
        number = restored_number(view.manifest, least)
        path = posixpath.join(target, layout.generation_name(number))
        layout.make_directories(self.disk, path)
        owner = {"restored_from": source, "host": self.host}
        files = _Files(self.disk, path, self, digests)
        view = cut_at(self.disk, view, view.end)
        manifest = copy_generation(self.disk, view, files, number, self.lineage, owner)
        self.disk.sync_directory(path)
        return path, manifest

    def _finish(self, path: str, manifest: Manifest) -> None:
        layout.replace(self.disk, path, layout.MANIFEST, manifest.encode())
        if read_view(self.disk, path, manifest.generation).end != manifest.cut:
            raise CorruptLog(path, 0, "the copy reads back changed")

    def _take_back(self) -> None:
        """Delete what was made. RESTORING goes last: without it a broker may begin a log there."""
        with contextlib.suppress(OSError):
            if self.state is not None:
                for name in layout.names_in(self.disk, self.state):
                    remove_tree(self.disk, posixpath.join(self.state, name))
            names = [n for n in layout.names_in(self.disk, self.data) if n != layout.RESTORING]
            for name in names:
                path = posixpath.join(self.data, name)
                if layout.generations_in([name]):
                    remove_tree(self.disk, path)
                else:
                    layout.remove(self.disk, path)
            self.disk.sync_directory(self.data)
            layout.remove(self.disk, posixpath.join(self.data, layout.RESTORING))


@dataclass(slots=True)
class _Files(Copies):
    """The directory of a generation that is restored."""

    restore: Restore
    digests: dict[str, str]

    def checked(self, source: Immutable, name: str) -> None:
        """Look whether the bytes are still those that the catalog names."""
        path = posixpath.join(self.path, name)
        if digest_of(self.disk, path, source.length) != self.digests.get(source.path):
            raise CorruptLog(source.path, 0, "other bytes than when the backup was made")
        self._done(name, source.length)

    def write(self, name: str, data: bytes) -> None:
        Copies.write(self, name, data)
        self._done(name, len(data))

    def _done(self, name: str, nbytes: int) -> None:
        self.restore.nbytes += nbytes
        self.restore.tell(name, nbytes)
