"""A disk that runs full in the middle of a write: the torn group is gone, all before it is there.

unshare --mount python -m tests.powercut.short_write
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys

import pytest

from oncemq.errors import StorageError
from oncemq.runtime.os_disk import OsDisk
from tests.powercut.filesystems import file_system
from tests.powercut.scenario import OsWorld
from tests.storage.crash_log import Life, LogCase, Promise

ROOM_BYTES = 300_000  # left on the disk
GROUP_BYTES = 1_000_000  # asks for more than that


def fill_all_but(room: int) -> None:
    """Leave `room` bytes on the disk of the working directory."""
    filler = OsDisk().create("filler")
    chunk = random.Random(1).randbytes(1 << 20)
    try:
        for at in range(1 << 10):
            filler.write(chunk, at << 20)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    else:
        raise AssertionError("a gigabyte did not fill the disk")
    filler.sync()
    filler.truncate(max(0, filler.length() - room))
    filler.sync()
    filler.close()


def write_too_much(life: Life) -> list[int]:
    """Write a group that was not reserved; return what was written of what was asked, each time."""
    real, missing = os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        written = real(descriptor, data, offset)
        missing.append(len(data) - written)
        return written

    os.pwrite = pwrite
    try:
        with pytest.raises(OSError) as full:
            life.log.append(1, b"", random.Random(0).randbytes(GROUP_BYTES))
            life.log.sync()
    finally:
        os.pwrite = real
    assert full.value.errno == errno.ENOSPC
    return missing


def main() -> int:
    with file_system("ext4-small") as mounted:
        os.chdir(mounted.fresh_directory("short"))
        world, case = OsWorld(), LogCase()
        life = case.begin(world, Promise())
        life.group(b"there" * 1000)
        fill_all_but(ROOM_BYTES)
        missing = write_too_much(life)
        with pytest.raises(StorageError, match="failed before"):
            life.log.sync()
        world.end()
        os.unlink("filler")
        shown = case.recover(world, life.promised)
        assert [w.body for w in shown.written] == [b"there" * 1000], "the torn group came back"
        case.check(world, shown)
        world.end()
        os.chdir("/")
    print(json.dumps({"short_writes": sum(bytes_left > 0 for bytes_left in missing)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
