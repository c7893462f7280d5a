"""Files of format 1, frozen: every later version reads them, and this one writes the same bytes.

`tests/golden/v1/clean` is a log after a clean stop, `tests/golden/v1/torn` the same log killed in
the middle of a group. Format 1 never changes: a test that fails here means a new format number,
not new golden files. They were written by `python -m tests.storage.test_golden`.
"""

from __future__ import annotations

import posixpath
from pathlib import Path

from oncemq.storage import document, layout
from oncemq.storage.log import FencedLog, create
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.outside_reader import LogReader
from tests.storage.loghelp import DIRECTORY, content, overwrite, segment_path

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "v1"
LOG_ID = bytes(range(16))
OWNER: dict[str, str | int] = {"pid": 4711, "host": "golden", "boot_id": "boot", "start_time": 99}
GROUPS = [
    [(1, b"meta", b"first"), (2, b"", b"second")],
    [(199, b"\0\xff", bytes(range(256)))],
    [(7, b"only meta", b"")],
    [(1, b"meta", b"x" * 300), (1, b"", b"fourth")],
    [(2, b"", b"last")],
]


def open_golden(disk: MemoryDisk) -> FencedLog:
    return FencedLog.open(disk, DIRECTORY, generation=None, owner=OWNER, segment_bytes=512)


def write_golden() -> tuple[MemoryDisk, FencedLog]:
    """Write the golden log, up to the moment before it is closed."""
    disk = MemoryDisk()
    create(disk, DIRECTORY, log_id=LOG_ID, owner=OWNER)
    log = open_golden(disk)
    for group in GROUPS[:3]:
        log.reserve(sum(len(meta) + len(body) for _, meta, body in group))
        for record in group:
            log.append(*record)
        log.sync()
    log.write_snapshot(log.durable_end, {"table": b"rows", "base": b"never changes"})
    log.close()
    log = open_golden(disk)
    log.reserve(400)
    for group in GROUPS[3:]:
        for record in group:
            log.append(*record)
        log.sync()
        log.write_snapshot(log.durable_end, {"table": b"%d rows" % len(group)}, ["base"])
    log.discard(log.durable_end)
    return disk, log


def clean() -> MemoryDisk:
    disk, log = write_golden()
    log.close()
    return disk


def torn() -> MemoryDisk:
    disk, log = write_golden()
    end = log.end
    log.append(1, b"", b"nobody was told of this")
    log._writer._write()
    path = segment_path(log, log._view.firsts[-1])
    data = content(disk, path)
    overwrite(disk, path, data[: data.index(b"nobody was told") + 9])
    disk.drop_locks()
    assert end < log.end
    return disk


def files(disk: MemoryDisk) -> dict[str, bytes]:
    """All files below the log's directory."""
    found = {}
    for name in disk.list(DIRECTORY):
        path = posixpath.join(DIRECTORY, name)
        if name.startswith("gen-"):
            inside = disk.list(path)
            found.update({f"{name}/{n}": content(disk, posixpath.join(path, n)) for n in inside})
        else:
            found[name] = content(disk, path)
    return found


def golden(name: str) -> dict[str, bytes]:
    root = GOLDEN / name
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def loaded(name: str) -> MemoryDisk:
    disk = MemoryDisk()
    for path, data in sorted(golden(name).items()):
        layout.make_directories(disk, posixpath.dirname(posixpath.join(DIRECTORY, path)))
        layout.write_new(disk, posixpath.join(DIRECTORY, path), data)
    return disk


def test_the_same_records_give_the_same_bytes() -> None:
    """Today's code writes format 1 as it was frozen, file by file."""
    for disk, name in ((clean(), "clean"), (torn(), "torn")):
        made, frozen = files(disk), golden(name)
        locks = [path for path in frozen if path.endswith("LOCK")]
        for path in locks:  # since then it names itself too, by a number of this disk
            assert _owner(made.pop(path), path) == _owner(frozen.pop(path), path)
        assert made == frozen
        assert locks


def _owner(data: bytes, path: str) -> object:
    return document.decode("owner", data, path)["owner"]


def test_a_frozen_log_is_read() -> None:
    """Records, positions, snapshots and identity of a frozen log come out as they went in."""
    reader = LogReader.open(loaded("clean"), DIRECTORY)
    records = list(reader.replay())
    assert (reader.log_id, reader.generation, reader.cut_report) == (LOG_ID, 3, None)
    kept = [record for group in GROUPS for record in group][-len(records) :]
    assert [(r.type, r.meta, bytes(r.body)) for r in records] == kept
    assert len(records) >= 2
    newest, older = reader.snapshots()
    assert reader.read_snapshot(newest) == {"table": b"1 rows", "base": b"never changes"}
    assert reader.read_snapshot(older) == {"table": b"2 rows", "base": b"never changes"}
    assert newest.position > older.position >= reader.start > 0


def test_a_frozen_log_goes_on() -> None:
    """A log of format 1 opens for writing; a torn tail in it is cut and reported."""
    for name, cut in (("clean", False), ("torn", True)):
        disk = loaded(name)
        log = open_golden(disk)
        assert (log.generation, log.cut_report is not None) == (4, cut)
        before = len(list(log.replay(log.start)))
        log.append(1, b"", b"new")
        log.sync()
        assert len(list(log.replay(log.start))) == before + 1


if __name__ == "__main__":
    for title, disk in (("clean", clean()), ("torn", torn())):
        for file, data in files(disk).items():
            target = GOLDEN / title / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
