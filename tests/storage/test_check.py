"""fsck of one log: whatever byte is damaged, it is found and named, and nothing is written."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import pytest

from oncemq.storage import layout
from oncemq.storage.check import Finding, check_log
from oncemq.storage.creation import read_or_make_secret
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from tests.storage.loghelp import (
    DIRECTORY,
    HookedDisk,
    content,
    crash,
    flip,
    generation_path,
    open_log,
    overwrite,
    put,
    segment_path,
)


def findings(disk: MemoryDisk, waits: int = 3) -> list[Finding]:
    """All findings; a check that waits without end fails."""
    left = [waits]

    def wait() -> None:
        left[0] -= 1
        assert left[0] >= 0, "it waits for ever"

    return list(check_log(disk, DIRECTORY, lambda _path, _nbytes: None, wait))


def specimen(disk: MemoryDisk) -> FencedLog:
    """Two segments sealed, two snapshots of a plain and a mapped part, a secret; the owner is gone."""
    log = open_log(disk, segment_bytes=700)
    read_or_make_secret(disk, DIRECTORY, lambda: b"s" * 16)
    for number in range(3):
        put(log, b"%d" % number * 300)
        writer = log.part_writer(f"mapped-{number}")
        writer.write([b"mapped %d" % number * 20])
        assert writer.finish() is not None
        log.write_snapshot(log.durable_end, {f"plain-{number}": b"x" * 40}, {f"mapped-{number}"})
    log.close()
    crash(disk, log)
    return log


def files(disk: MemoryDisk, directory: str = DIRECTORY) -> Iterator[str]:
    for name in disk.list(directory):
        path = posixpath.join(directory, name)
        try:
            yield from files(disk, path)
        except NotADirectoryError:
            yield path


def test_a_whole_log_is_clean_with_its_owner_and_without() -> None:
    """No finding at all: an alarm that rings every day is switched off."""
    disk = MemoryDisk()
    specimen(disk)
    assert findings(disk) == []
    log = open_log(disk)
    put(log, b"more")
    assert findings(disk) == []


def test_every_flipped_byte_is_found_in_its_file() -> None:
    """Of each file, each byte: the damage is found, and one finding names that file."""
    disk = MemoryDisk()
    log = specimen(disk)
    paths = [path for path in files(disk) if layout.CREATE_LOCK not in path]
    assert len(paths) > 10
    names = {posixpath.basename(path) for path in paths}
    assert {layout.SECRET, layout.MANIFEST, layout.LOCK} <= names
    for path in paths:
        whole = content(disk, path)
        for offset in range(len(whole)):
            flip(disk, path, offset, 0x20)
            found = findings(disk)
            assert any(one.damage for one in found) or _a_tail(log, disk, found), (path, offset)
            assert any(one.path == path for one in found), (path, offset, found)
            overwrite(disk, path, whole)
    assert findings(disk) == []


def _a_tail(log: FencedLog, disk: MemoryDisk, found: list[Finding]) -> bool:
    """Whether all that is found is a group that nothing attests: no promise covers it."""
    last = segment_path(log, layout.segments_in(disk.list(generation_path(log)))[-1])
    return [one.path for one in found] == [last] and "not whole" in found[0].reason


def test_it_writes_nothing() -> None:
    """A reader beside the owner: it opens, locks and syncs, and makes no file."""
    disk = HookedDisk()
    specimen(disk)
    calls: set[str] = set()
    disk.hook = lambda call, _path: calls.add(call)
    assert findings(disk) == []
    assert calls <= {"open", "close", "list", "lock", "sync"}


def test_leftovers_are_notes() -> None:
    """What a crash may leave behind is named, and is no damage."""
    disk = MemoryDisk()
    log = specimen(disk)
    home = generation_path(log)
    layout.write_new(disk, posixpath.join(home, "snap-00000000000000000001.snapshot.tmp"), b"x")
    layout.write_new(disk, posixpath.join(home, "part-00000000000000000001-99.part"), b"x")
    layout.write_new(disk, posixpath.join(DIRECTORY, "RESERVE.tmp"), b"x")
    disk.make_directory(posixpath.join(DIRECTORY, layout.generation_name(99)))
    found = findings(disk)
    assert len(found) == 4
    assert not any(one.damage for one in found)
    assert all(one.advice for one in found)


@pytest.mark.parametrize("name", [layout.MANIFEST, "00000000000000000000.log"])
def test_a_missing_file_is_found(name: str) -> None:
    disk = MemoryDisk()
    log = specimen(disk)
    path = posixpath.join(generation_path(log), name)
    disk.unlink(path)
    assert [one.path for one in findings(disk) if one.damage][:1] == [path]


def test_a_newer_format_is_named() -> None:
    """Not damage to be repaired from a backup, but a file to be read by a newer version."""
    disk = MemoryDisk()
    log = specimen(disk)
    path = posixpath.join(generation_path(log), layout.MANIFEST)
    overwrite(disk, path, content(disk, path).replace(b"manifest 1", b"manifest 2"))
    [found] = [one for one in findings(disk) if one.damage]
    assert "format 2" in found.reason
    assert "upgrade" in found.advice
