"""What only the operating system's disk does: odd writes, locks of processes, warnings."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from oncemq.errors import LogInUse, NotSupported
from oncemq.runtime import os_disk
from oncemq.runtime.os_disk import OsDisk, filesystem_warning
from oncemq.storage.log import FencedLog
from oncemq.storage.outside_reader import LogReader


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes three bytes at a time still writes all, in place."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:3], at))
    file = OsDisk().create(str(tmp_path / "f"))
    file.write(memoryview(b"0123456789"), 5)
    file.write(bytearray(b"abcdefgh"), 2)

    assert file.read(0, 100) == b"\0\0abcdefgh56789"[:2] + b"abcdefgh" + b"56789"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(OSError, match="wrote nothing"):
        file.write(b"x", 0)
    file.close()


def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the end of the file makes a read shorter."""
    file = OsDisk().create(str(tmp_path / "f"))
    file.write(b"0123456789", 0)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: real(fd, min(length, 3), at))
    assert file.read(1, 8) == b"12345678"
    assert file.read(4, 100) == b"456789"
    assert file.read(10, 1) == b""
    file.close()


def test_room_is_reserved_where_the_system_cannot_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fallocate the range is written with zeros; what was there stays."""

    def refuse(*_args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no fallocate here")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file = OsDisk().create(str(tmp_path / "f"))
    file.write(b"data", 0)
    file.reserve(2, 3_000_000)
    assert (file.length(), file.read(0, 6)) == (3_000_002, b"data\0\0")
    file.close()


def test_an_error_of_fallocate_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not worked around."""

    def full(*_args: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    file = OsDisk().create(str(tmp_path / "f"))
    with pytest.raises(OSError, match="full"):
        file.reserve(0, 10)
    file.close()


def test_a_log_on_the_real_disk(tmp_path: Path) -> None:
    """The whole life of a log on a real file system, with its lock held by a real flock."""
    disk, directory = OsDisk(), str(tmp_path / "a" / "b")
    owner: dict[str, str | int] = {"pid": os.getpid(), "host": "here"}
    log = FencedLog.open(
        disk, directory, generation=None, owner=owner, create_log_id=bytes(16), segment_bytes=4096
    )
    for number in range(20):
        log.reserve(600)
        log.append(1, b"", b"%02d" % number * 300)
        log.sync()
    log.write_snapshot(log.durable_end, {"a": b"x"})
    log.discard(log.durable_end)
    assert log.start > 0
    with pytest.raises(LogInUse, match=f"pid {os.getpid()}"):
        FencedLog.open(disk, directory, generation=None, owner=owner)
    log.close()
    log = FencedLog.open(disk, directory, generation=None, owner=owner)
    kept = list(log.replay(log.start))
    reader = LogReader.open(disk, directory)
    assert [r.position for r in reader.replay()] == [r.position for r in kept]
    assert log.read_snapshot(log.snapshots()[0]) == {"a": b"x"}
    reader.close()
    log.close()


def test_windows_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flock and directory syncs are missing nothing is promised, so nothing starts."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotSupported, match="does not run on Windows"):
        OsDisk()


def test_macos_syncs_through_the_cache_of_the_drive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS fsync is not enough: F_FULLFSYNC is asked for."""
    calls = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os_disk.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(os_disk.fcntl, "fcntl", lambda fd, what: calls.append(what))
    file = OsDisk().create(str(tmp_path / "f"))
    file.sync()
    file.close()
    assert calls == [51]


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /tmp rw - tmpfs tmpfs rw
31 22 0:27 / /data rw shared:1 - nfs4 server:/x rw
32 22 0:28 / /data/local rw - xfs /dev/vdb rw
33 22 0:29 / /with\\040space rw - fuse.sshfs x rw
34 22 0:30 / /data/local rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/home/x", None),
        ("/tmp/x", "tmpfs"),
        ("/tmpx", None),
        ("/data/far", "nfs4"),
        ("/data/local/x", "overlay"),
        ("/with space/x", "fuse.sshfs"),
    ],
)
def test_file_systems_that_may_lose_data_are_warned_of(
    tmp_path: Path, path: str, word: str | None
) -> None:
    """The innermost and last mount over a path decides about the warning."""
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(MOUNTS, "utf-8")
    warning = filesystem_warning(path, str(mountinfo))

    assert (warning is None) == (word is None)
    assert word is None or f"is on {word}, which" in str(warning)


def test_without_mount_data_nothing_is_said(tmp_path: Path) -> None:
    """Other systems have no mountinfo: no warning is better than a wrong one."""
    assert filesystem_warning("/", str(tmp_path / "none")) is None
