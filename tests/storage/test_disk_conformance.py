"""One suite for the three disks: what holds for the real one holds for those that stand in for it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from oncemq.runtime.os_disk import OsDisk
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage.disk import Disk
from oncemq.storage.memory import MemoryDisk


@dataclass
class Place:
    """A disk and a fresh directory on it."""

    disk: Disk
    root: str

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, data: bytes = b"") -> str:
        path = self.path(name)
        file = self.disk.create(path)
        file.write(data, 0)
        file.close()
        return path

    def get(self, name: str) -> bytes:
        file = self.disk.open(self.path(name))
        try:
            return file.read(0, 1 << 20)
        finally:
            file.close()


@pytest.fixture(params=["memory", "sim", "os"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "os":
        return Place(OsDisk(), str(tmp_path))
    disk: Disk = MemoryDisk() if request.param == "memory" else SimDisk(sector_bytes=16)
    disk.make_directory("top")
    return Place(disk, "top")


def expect(code: int, call: Callable[[], object]) -> OSError:
    """Run a call that must fail with this errno."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == code, caught.value
    return caught.value


def test_written_bytes_are_read_back_at_their_place(place: Place) -> None:
    """Reads and writes name their offset; reads at the end are short, beyond it empty."""
    file = place.disk.create(place.path("a"))
    file.write(b"hello", 0)
    file.write(bytearray(b"world"), 5)
    file.write(memoryview(b"HE"), 0)
    assert file.read(0, 100) == b"HElloworld"
    assert file.read(3, 4) == b"lowo"
    assert file.read(8, 100) == b"ld"
    assert file.read(10, 5) == b""
    assert file.read(99, 5) == b""
    assert file.length() == 10
    file.close()


def test_a_hole_reads_as_zeros(place: Place) -> None:
    """A write beyond the end leaves zeros before it."""
    file = place.disk.create(place.path("a"))
    file.write(b"x", 40)
    assert file.read(0, 41) == bytes(40) + b"x"
    file.close()


def test_an_empty_write_changes_nothing(place: Place) -> None:
    """Writing no bytes does not grow a file, wherever it is aimed."""
    file = place.disk.create(place.path("a"))
    file.write(b"", 100)
    assert file.length() == 0
    file.close()


def test_large_writes_are_whole(place: Place) -> None:
    """A write is looped until all bytes are in."""
    data = bytes(range(256)) * 4096
    file = place.disk.create(place.path("a"))
    file.write(data, 7)
    assert file.read(7, len(data)) == data
    file.close()


def test_truncate_cuts_and_extends_with_zeros(place: Place) -> None:
    """What was cut off does not come back when the file grows again."""
    file = place.disk.create(place.path("a"))
    file.write(b"x" * 50, 0)
    file.truncate(20)
    assert file.length() == 20
    file.truncate(60)
    assert file.read(0, 100) == b"x" * 20 + bytes(40)
    file.close()


def test_reserve_keeps_bytes_and_never_shortens(place: Place) -> None:
    """Reserved room may show as zeros; bytes that were there stay, and so does the length."""
    file = place.disk.create(place.path("a"))
    file.write(b"abc", 0)
    file.reserve(0, 4096)
    assert file.read(0, 3) == b"abc"
    assert file.read(3, 4093).strip(b"\0") == b""
    file.write(b"y" * 5000, 0)
    file.reserve(0, 10)
    assert file.length() >= 5000
    file.close()


def test_sync_returns_nothing_and_may_be_called_with_nothing_to_do(place: Place) -> None:
    """Syncs of files and directories succeed on a healthy disk."""
    file = place.disk.create(place.path("a"))
    file.sync()
    file.write(b"x", 0)
    file.sync()
    file.sync()
    file.close()
    place.disk.sync_directory(place.root)
    assert place.get("a") == b"x"


def test_closing_twice_does_nothing(place: Place) -> None:
    """`close` can stand in a `finally` after an earlier close."""
    file = place.disk.create(place.path("a"))
    file.close()
    file.close()
    assert place.disk.exists(place.path("a"))


def test_a_closed_file_is_of_no_use(place: Place) -> None:
    """A write through a closed handle fails; it never reaches another file."""
    file = place.disk.create(place.path("a"))
    file.close()
    expect(errno.EBADF, lambda: file.write(b"x", 0))
    expect(errno.EBADF, lambda: file.read(0, 1))
    expect(errno.EBADF, file.sync)


def test_create_is_exclusive(place: Place) -> None:
    """A name that is taken, by a file or a directory, cannot be created again."""
    place.put("a", b"first")
    expect(errno.EEXIST, lambda: place.disk.create(place.path("a")))
    place.disk.make_directory(place.path("d"))
    expect(errno.EEXIST, lambda: place.disk.create(place.path("d")))
    assert place.get("a") == b"first"


def test_create_needs_its_directory(place: Place) -> None:
    """Directories are not made on the way."""
    expect(errno.ENOENT, lambda: place.disk.create(place.path("no/a")))
    place.put("file")
    expect(errno.ENOTDIR, lambda: place.disk.create(place.path("file/a")))


def test_open_needs_the_file(place: Place) -> None:
    """Opening never creates."""
    expect(errno.ENOENT, lambda: place.disk.open(place.path("a")))
    expect(errno.ENOENT, lambda: place.disk.open(place.path("a"), write=True))
    assert not place.disk.exists(place.path("a"))


def test_open_for_reading_cannot_write(place: Place) -> None:
    """A reader's handle changes nothing."""
    place.put("a", b"abc")
    file = place.disk.open(place.path("a"))
    expect(errno.EBADF, lambda: file.write(b"x", 0))
    file.close()
    assert place.get("a") == b"abc"


def test_open_for_writing_keeps_what_is_there(place: Place) -> None:
    """Opening does not truncate."""
    place.put("a", b"abc")
    file = place.disk.open(place.path("a"), write=True)
    file.write(b"X", 1)
    file.close()
    assert place.get("a") == b"aXc"


def test_list_is_sorted_and_complete(place: Place) -> None:
    """Names of files and directories in a stated order."""
    for name in ("b", "a", "c"):
        place.put(name)
    place.disk.make_directory(place.path("aa"))
    assert place.disk.list(place.root) == ["a", "aa", "b", "c"]
    assert place.disk.list(place.path("aa")) == []


def test_list_needs_a_directory(place: Place) -> None:
    """Listing nothing, or a file, fails as the system call does."""
    expect(errno.ENOENT, lambda: place.disk.list(place.path("no")))
    place.put("a")
    expect(errno.ENOTDIR, lambda: place.disk.list(place.path("a")))


def test_exists_sees_files_and_directories(place: Place) -> None:
    """A path below a file does not exist; asking is not an error."""
    place.put("a")
    place.disk.make_directory(place.path("d"))
    assert place.disk.exists(place.path("a"))
    assert place.disk.exists(place.path("d"))
    assert not place.disk.exists(place.path("b"))
    assert not place.disk.exists(place.path("a/b"))
    assert not place.disk.exists(place.path("x/y"))


def test_make_directory_is_exclusive(place: Place) -> None:
    """Of two makers of one generation one gets FileExistsError."""
    place.disk.make_directory(place.path("d"))
    error = expect(errno.EEXIST, lambda: place.disk.make_directory(place.path("d")))
    assert isinstance(error, FileExistsError)
    place.put("a")
    expect(errno.EEXIST, lambda: place.disk.make_directory(place.path("a")))
    expect(errno.ENOENT, lambda: place.disk.make_directory(place.path("x/y")))


def test_remove_directory_wants_it_empty(place: Place) -> None:
    """A directory with names in it stays."""
    place.disk.make_directory(place.path("d"))
    place.put("d/a")
    expect(errno.ENOTEMPTY, lambda: place.disk.remove_directory(place.path("d")))
    place.disk.unlink(place.path("d/a"))
    place.disk.remove_directory(place.path("d"))
    assert place.disk.list(place.root) == []
    expect(errno.ENOENT, lambda: place.disk.remove_directory(place.path("d")))
    place.put("f")
    expect(errno.ENOTDIR, lambda: place.disk.remove_directory(place.path("f")))


def test_sync_directory_needs_one(place: Place) -> None:
    """A directory that is not there cannot be synced."""
    expect(errno.ENOENT, lambda: place.disk.sync_directory(place.path("no")))


def test_a_mapped_file_is_there_without_its_name(place: Place) -> None:
    """All bytes are there, also when the name is gone; an empty file is no error."""
    path = place.put("mapped", b"0123456789" * 1000)
    empty = place.disk.map(place.put("empty"))
    mapped = place.disk.map(path)
    place.disk.unlink(path)
    assert bytes(mapped) == b"0123456789" * 1000
    assert bytes(empty) == b""
    expect(errno.ENOENT, lambda: place.disk.map(path))


def test_rename_moves_a_name(place: Place) -> None:
    """The old name is gone, the file is the same."""
    place.put("a", b"abc")
    place.disk.rename(place.path("a"), place.path("b"))
    assert place.disk.list(place.root) == ["b"]
    assert place.get("b") == b"abc"
    expect(errno.ENOENT, lambda: place.disk.rename(place.path("a"), place.path("c")))


def test_rename_replaces(place: Place) -> None:
    """A name that is taken is taken over; an open handle still reads the old file."""
    place.put("a", b"new")
    place.put("b", b"old")
    held = place.disk.open(place.path("b"))
    place.disk.rename(place.path("a"), place.path("b"))
    assert place.disk.list(place.root) == ["b"]
    assert place.get("b") == b"new"
    assert held.read(0, 10) == b"old"
    held.close()


def test_rename_of_one_file_onto_its_other_name_does_nothing(place: Place) -> None:
    """POSIX: two names of one file stay two names."""
    place.put("a", b"x")
    place.disk.link(place.path("a"), place.path("b"))
    place.disk.rename(place.path("a"), place.path("b"))
    assert place.disk.list(place.root) == ["a", "b"]


def test_a_file_never_replaces_a_directory(place: Place) -> None:
    """A directory's name is not taken over by a rename."""
    place.put("a")
    place.disk.make_directory(place.path("d"))
    expect(errno.EISDIR, lambda: place.disk.rename(place.path("a"), place.path("d")))
    assert place.disk.list(place.root) == ["a", "d"]


def test_a_hard_link_is_the_same_file(place: Place) -> None:
    """Bytes written under one name are read under the other, and one name may go."""
    place.put("a", b"abc")
    place.disk.make_directory(place.path("d"))
    place.disk.link(place.path("a"), place.path("d/b"))
    file = place.disk.open(place.path("a"), write=True)
    file.write(b"X", 0)
    file.close()
    assert place.get("d/b") == b"Xbc"
    place.disk.unlink(place.path("a"))
    assert place.get("d/b") == b"Xbc"


def test_link_never_replaces(place: Place) -> None:
    """A name that is taken stays what it is."""
    place.put("a", b"a")
    place.put("b", b"b")
    expect(errno.EEXIST, lambda: place.disk.link(place.path("a"), place.path("b")))
    expect(errno.ENOENT, lambda: place.disk.link(place.path("no"), place.path("c")))
    expect(errno.ENOENT, lambda: place.disk.link(place.path("a"), place.path("no/c")))
    assert place.get("b") == b"b"


def test_unlink_removes_the_name_only(place: Place) -> None:
    """An open handle goes on reading; the name can be used again for another file."""
    place.put("a", b"old")
    held = place.disk.open(place.path("a"))
    place.disk.unlink(place.path("a"))
    assert not place.disk.exists(place.path("a"))
    place.put("a", b"new")
    assert held.read(0, 10) == b"old"
    held.close()
    assert place.get("a") == b"new"


def test_unlink_needs_a_file(place: Place) -> None:
    """A missing name is an error; a directory is not unlinked."""
    expect(errno.ENOENT, lambda: place.disk.unlink(place.path("a")))
    place.disk.make_directory(place.path("d"))
    with pytest.raises(OSError):
        place.disk.unlink(place.path("d"))  # EISDIR on Linux, EPERM on macOS
    assert place.disk.exists(place.path("d"))


def test_a_lock_is_exclusive_until_released(place: Place) -> None:
    """The second taker gets None, also in the same process; after release it gets the lock."""
    place.put("LOCK")
    first = place.disk.lock(place.path("LOCK"))
    assert first is not None
    assert place.disk.lock(place.path("LOCK")) is None
    first.release()
    first.release()
    second = place.disk.lock(place.path("LOCK"))
    assert second is not None
    second.release()


def test_reading_a_locked_file_does_not_free_it(place: Place) -> None:
    """Opening and closing the lock file elsewhere leaves the lock (flock, not fcntl)."""
    place.put("LOCK", b"pid 1")
    lock = place.disk.lock(place.path("LOCK"))
    assert lock is not None
    assert place.get("LOCK") == b"pid 1"
    assert place.disk.lock(place.path("LOCK")) is None
    lock.release()


def test_a_file_has_one_identity_under_all_its_names(place: Place) -> None:
    """A rename, a hard link and a lock do not change it; a copy has another one."""
    path = place.put("a", b"data")
    file, lock = place.disk.open(path), place.disk.lock(path)
    assert lock is not None
    found = file.identity()
    assert lock.identity() == found
    place.disk.rename(path, place.path("b"))
    place.disk.link(place.path("b"), place.path("c"))
    for name in "bc":
        again = place.disk.open(place.path(name))
        assert again.identity() == found
        again.close()
    place.disk.unlink(place.path("b"))
    place.disk.unlink(place.path("c"))
    copy = place.disk.open(place.put("a", b"data"))
    assert copy.identity() != found, "while the first one is open"
    for opened in (file, copy):
        opened.close()
    lock.release()


def test_a_lock_needs_its_file(place: Place) -> None:
    """Locking does not create."""
    expect(errno.ENOENT, lambda: place.disk.lock(place.path("LOCK")))
    assert place.disk.list(place.root) == []
