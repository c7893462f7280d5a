"""The life of a log on a real file system, told promise by promise to a file that is elsewhere.

The story and what it promises are those of tests/storage/crash_log.py; only the disk is real.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from oncemq.runtime.os_disk import OsDisk, OsFile, OsLock
from tests.storage.crash_log import LogCase, Promise, Written


class ForgetfulDisk(OsDisk):
    """The disk of the operating system; on request it forgets one kind of sync.

    `forget` is "" (nothing), "rename:TEXT" (the directory sync after a rename to a name that
    contains TEXT) or "file:TEXT" (syncs of files whose name contains TEXT).
    """

    def __init__(self, forget: str = "") -> None:
        super().__init__()
        self._kind, _, self._text = forget.partition(":")
        self._renamed = False
        self.forgotten = 0

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._renamed = self._kind == "rename" and self._text in os.path.basename(new)

    def sync_directory(self, path: str) -> None:
        if self._renamed:
            self._renamed = False
            self.forgotten += 1
            return
        super().sync_directory(path)


class ForgetfulFile(OsFile):
    """A file whose sync returns without doing anything."""

    def sync(self) -> None:
        """Forget it."""


class OsProcess(ForgetfulDisk):
    """One life: what it opened is let go at its end, as when a process dies."""

    def __init__(self, forget: str) -> None:
        super().__init__(forget)
        self._held: list[OsFile | OsLock] = []

    def create(self, path: str) -> OsFile:
        return self._hold(super().create(path), path)

    def open(self, path: str, *, write: bool = False) -> OsFile:
        return self._hold(super().open(path, write=write), path)

    def lock(self, path: str) -> OsLock | None:
        lock = super().lock(path)
        if lock is not None:
            self._held.append(lock)
        return lock

    def _hold(self, file: OsFile, path: str) -> OsFile:
        if self._kind == "file" and self._text in os.path.basename(path):
            file.__class__ = ForgetfulFile
            self.forgotten += 1
        self._held.append(file)
        return file

    def kill(self) -> None:
        """Let go of all files and locks and finish nothing."""
        for held in self._held:
            if isinstance(held, OsLock):
                held.release()
            else:
                held.close()
        self._held.clear()


class OsWorld(OsDisk):
    """The disk below the working directory, as seen by one process after the other."""

    def __init__(self, forget: str = "") -> None:
        super().__init__()
        self._forget = forget
        self.processes: list[OsProcess] = []

    def process(self, _name: str) -> OsProcess:
        process = OsProcess(self._forget)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            process.kill()


def write_promise(promised: Promise) -> bytes:
    """Return one line that `read_promise` understands."""
    table: dict[str, Any] = {
        "made": promised.made,
        "durable_end": promised.durable_end,
        "snapshot": promised.snapshot,
        "discardable": promised.discardable,
        "written": [
            [
                w.position,
                w.type,
                base64.b64encode(w.meta).decode(),
                base64.b64encode(w.body).decode(),
            ]
            for w in promised.written
        ],
    }
    return json.dumps(table).encode() + b"\n"


def read_promise(path: Path, case: LogCase) -> Promise:
    """Return the last promise told in `path`; a torn last line was told to nobody."""
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        return case.nothing()
    table = json.loads(lines[-1])
    written = tuple(
        Written(position, kind, base64.b64decode(meta), base64.b64decode(body))
        for position, kind, meta, body in table.pop("written")
    )
    return replace(Promise(**table), written=written)


def teller(descriptor: int) -> Callable[[Promise], None]:
    """Return a function that tells a promise by one write."""

    def tell(promised: Promise) -> None:
        os.write(descriptor, write_promise(promised))

    return tell
