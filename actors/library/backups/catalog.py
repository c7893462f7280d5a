"""What lies in a backup directory, and whether all of it is whole.

    DIR/LOCK                     one backup at a time
    DIR/backup-TIME/BACKUP       the catalog: written last, so a directory without one is unfinished
                    broker/      SECRET and one generation, as in --data
                    ledgers/     GROUP/TOPIC/PARTITION, as in --state
                    sink.db      a copy of a SQLite sink

Broker and ledgers are logs that every reader opens. The catalog names each file with length and digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import BadInput, CorruptLog, StorageError
from ...storage import document, layout
from ...storage.check import Finding, Tell, check_log
from ...storage.disk import Disk

CATALOG = "BACKUP"
BROKER, LEDGERS, SINK = "broker", "ledgers", "sink.db"
_KIND = "backup"
_NAME = re.compile(r"backup-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z\Z", re.ASCII)
_RESTORE = "use another backup"


class NoBackup(StorageError):
    """There is no finished backup in the directory."""

    code = "no_backup"
    default_hint = "name a directory that `oncemq backup` has made, or the one above it"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    name: str  # below the backup's directory
    length: int  # bytes that count: reserved zeros may lie behind them
    digest: str  # SHA-256 of them
    tag: str  # of an immutable file: equal tags are equal bytes; "" for all others
    own: bool  # False: its blocks are those of a file in --data or --state


@dataclass(frozen=True, slots=True)
class Log:
    """One log in a backup."""

    name: str  # its directory, below the backup's
    log_id: str
    lineage: str  # of the original
    generation: int  # of the original when it was copied
    end: int  # position where the copy ends


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a finished backup says of itself."""

    made_at_ms: int
    host: str
    mark: str  # of the history in which the broker's copy ends
    logs: tuple[Log, ...]  # the broker's first
    sink: str  # the address of the sink that was copied; "" for none
    files: tuple[Entry, ...]

    def encode(self) -> bytes:
        return document.encode(
            _KIND,
            {
                "made_at_ms": self.made_at_ms,
                "host": self.host,
                "mark": self.mark,
                "logs": [[o.name, o.log_id, o.lineage, o.generation, o.end] for o in self.logs],
                "sink": self.sink,
                "files": [[f.name, f.length, f.digest, f.tag, f.own] for f in self.files],
            },
        )

    @property
    def broker(self) -> Log:
        return self.logs[0]

    @property
    def ledgers(self) -> tuple[Log, ...]:
        return self.logs[1:]


def read_catalog(disk: Disk, backup: str) -> Catalog:
    """Raises NoBackup, CorruptLog, UnsupportedFormat."""
    path = posixpath.join(backup, CATALOG)
    try:
        content = document.decode(_KIND, layout.read_file(disk, path), path)
    except FileNotFoundError:
        raise NoBackup(f"{backup} is no finished backup: it has no {CATALOG}") from None
    try:
        return _catalog(content)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptLog(path, 0, f"the catalog lacks a field: {error!r}", hint=_RESTORE) from error


def _catalog(content: dict[str, Any]) -> Catalog:
    logs = [Log(str(n), str(i), str(a), int(g), int(end)) for n, i, a, g, end in content["logs"]]
    files = [
        Entry(str(n), int(size), str(digest), str(tag), bool(own))
        for n, size, digest, tag, own in content["files"]
    ]
    if not logs or logs[0].name != BROKER:
        raise ValueError("the broker is missing")
    for name in [*(log.name for log in logs), *(entry.name for entry in files)]:
        if posixpath.isabs(name) or ".." in name.split("/"):
            raise ValueError(f"{name!r} lies outside of the backup")
    return Catalog(
        int(content["made_at_ms"]),
        str(content["host"]),
        str(content["mark"]),
        tuple(logs),
        str(content["sink"]),
        tuple(files),
    )


def backups_in(disk: Disk, directory: str) -> list[str]:
    """Return the names of all backups in a directory, oldest first, unfinished ones too."""
    return [name for name in layout.names_in(disk, directory) if _NAME.match(name)]


def find_backup(disk: Disk, directory: str) -> str:
    """Return `directory` if it is a backup, else the newest finished one in it. Raises NoBackup."""
    if disk.exists(posixpath.join(directory, CATALOG)):
        return directory
    for name in reversed(backups_in(disk, directory)):
        backup = posixpath.join(directory, name)
        if disk.exists(posixpath.join(backup, CATALOG)):
            return backup
    if disk.exists(posixpath.join(directory, BROKER)):
        raise NoBackup(f"the backup in {directory} was never finished: it has no {CATALOG}")
    raise NoBackup(f"there is no finished backup in {directory}")


def digest_of(disk: Disk, path: str, length: int) -> str:
    """Return the SHA-256 of the first `length` bytes. Raises CorruptLog: the file is shorter."""
    digest = hashlib.sha256()
    with contextlib.closing(disk.open(path)) as file:
        at = 0
        while at < length:
            chunk = file.read(at, min(layout.COPY_BYTES, length - at))
            if not chunk:
                raise CorruptLog(path, at, f"the file ends before its {length} bytes")
            digest.update(chunk)
            at += len(chunk)
        rest = file.read(length, max(0, file.length() - length))
    if rest.strip(b"\0"):
        raise CorruptLog(path, length, "bytes behind the end")
    return digest.hexdigest()


def check_backup(
    disk: Disk, backup: str, tell: Tell, wait: Callable[[], None]
) -> Iterator[Finding]:
    """Yield what is wrong with a backup: each file against the catalog, and each log in itself.

    Raises NoBackup.
    """
    try:
        catalog = read_catalog(disk, backup)
    except CorruptLog as error:
        yield Finding(error.path, error.offset, error.damage, _RESTORE)
        return
    known = {CATALOG}
    for entry in catalog.files:
        known.add(entry.name)
        path = posixpath.join(backup, entry.name)
        try:
            if digest_of(disk, path, entry.length) != entry.digest:
                yield Finding(path, 0, "other bytes than when the backup was made", _RESTORE)
        except CorruptLog as error:
            yield Finding(path, error.offset, error.damage, _RESTORE)
        except FileNotFoundError:
            yield Finding(path, 0, "the file is missing", _RESTORE)
        tell(entry.name, entry.length)
    for log in catalog.logs:
        for finding in check_log(disk, posixpath.join(backup, log.name), tell, wait):
            yield Finding(finding.path, finding.offset, finding.reason, _RESTORE, finding.damage)


def remove_tree(disk: Disk, path: str) -> None:
    """Delete a directory and all in it, as far as it is there."""
    for name in layout.names_in(disk, path):
        inner = posixpath.join(path, name)
        try:
            disk.unlink(inner)
        except (IsADirectoryError, PermissionError):  # what unlink(2) says of a directory
            remove_tree(disk, inner)
        except FileNotFoundError:
            continue
    with contextlib.suppress(FileNotFoundError):
        disk.remove_directory(path)


def check_empty(disk: Disk, directory: str, what: str) -> None:
    """Raise BadInput unless there is nothing in `directory`."""
    if layout.names_in(disk, directory):
        raise BadInput(
            f"{what} {directory} is not empty",
            hint="name a new directory: a restore replaces nothing",
        )
