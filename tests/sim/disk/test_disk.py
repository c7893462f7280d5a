"""The simulated disk loses exactly what a real one may lose."""

from __future__ import annotations

import errno

import pytest

from oncemq.sim.disk.cuts import (
    CutPolicy,
    Exactly,
    KeepEverything,
    LoseEverything,
    OnlyData,
    OnlyNames,
    Prefix,
    Seeded,
)
from oncemq.sim.disk.disk import SimDisk, SimulatedCrash
from oncemq.sim.disk.image import LengthSet, NamesChanged, SectorWritten
from oncemq.sim.disk.machine import FORGET_EVERY_NODES


def content(disk: SimDisk, path: str) -> bytes:
    """Return all bytes of a file."""
    file = disk.open(path)
    return file.read(0, file.length())


def one_file(data: bytes = b"", *, sector_bytes: int = 4) -> SimDisk:
    """A disk with the durable file `a`."""
    disk = SimDisk(sector_bytes=sector_bytes)
    file = disk.create("a")
    file.write(data, 0)
    file.sync()
    disk.sync_directory("")
    return disk


def test_synced_bytes_survive() -> None:
    """What a returned sync covered is there after any cut."""
    disk = one_file(b"durable")
    for policy in (LoseEverything(), KeepEverything(), *map(Seeded, range(8))):
        assert content(disk.after_power_cut(policy), "a") == b"durable"


def test_unsynced_bytes_may_be_lost_or_kept() -> None:
    """An append without a sync: the old file, or the new one."""
    disk = one_file(b"old!")
    disk.open("a", write=True).write(b"new!", 4)
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"old!"
    assert content(disk.after_power_cut(KeepEverything()), "a") == b"old!new!"


def test_sectors_survive_apart() -> None:
    """The second sector of one write may be there without the first."""
    disk = one_file(b"aaaabbbb")
    disk.open("a", write=True).write(b"AAAABBBB", 0)
    first, second = disk.pending()
    assert isinstance(first, SectorWritten)
    assert isinstance(second, SectorWritten)
    assert content(disk.after_power_cut(Exactly(frozenset({second.order}))), "a") == b"aaaaBBBB"
    assert content(disk.after_power_cut(Exactly(frozenset({first.order}))), "a") == b"AAAAbbbb"


def test_a_later_version_of_a_sector_holds_the_earlier_one() -> None:
    """A page is written back whole: losing the first of two writes to one sector is impossible
    when the second survives.
    """
    disk = one_file(b"....")
    file = disk.open("a", write=True)
    file.write(b"A", 0)
    file.write(b"B", 1)
    last = disk.pending()[-1]
    assert content(disk.after_power_cut(Exactly(frozenset({last.order}))), "a") == b"AB.."


def test_length_and_data_survive_apart() -> None:
    """The length may be there without the bytes (zeros), the bytes without the length (cut)."""
    disk = one_file(b"abcd")
    disk.open("a", write=True).write(b"efgh", 4)
    length, sector = disk.pending()
    assert isinstance(length, LengthSet)
    assert content(disk.after_power_cut(Exactly(frozenset({length.order}))), "a") == b"abcd\0\0\0\0"
    assert content(disk.after_power_cut(Exactly(frozenset({sector.order}))), "a") == b"abcd"


def test_a_truncation_is_pending_too() -> None:
    """Without a sync the cut-off bytes may come back; when it survives they are gone for good."""
    disk = one_file(b"abcdefgh")
    disk.open("a", write=True).truncate(6)
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"abcdefgh"
    left = disk.after_power_cut(KeepEverything())
    left.open("a", write=True).truncate(8)
    assert content(left, "a") == b"abcdef\0\0"


def test_a_name_is_durable_only_after_its_directory_was_synced() -> None:
    """File data that was synced is lost with its name."""
    disk = SimDisk()
    file = disk.create("a")
    file.write(b"x", 0)
    file.sync()
    assert disk.after_power_cut(LoseEverything()).list("") == []
    assert content(disk.after_power_cut(OnlyNames()), "a") == b"x"
    disk.sync_directory("")
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"x"


def test_a_durable_name_may_stand_before_an_empty_file() -> None:
    """Directory synced, file not: zero length, the classic of a forgotten fsync before rename."""
    disk = SimDisk()
    disk.create("a.tmp").write(b"x" * 2000, 0)
    disk.rename("a.tmp", "a")
    disk.sync_directory("")
    assert content(disk.after_power_cut(LoseEverything()), "a") == b""


def test_a_rename_is_old_or_new() -> None:
    """A replaced file is never missing under its name."""
    disk = one_file(b"old")
    file = disk.create("b")
    file.write(b"new", 0)
    file.sync()
    disk.sync_directory("")
    disk.rename("b", "a")
    seen = set()
    for policy in (LoseEverything(), KeepEverything(), *map(Seeded, range(8))):
        left = disk.after_power_cut(policy)
        seen.add((content(left, "a"), tuple(left.list(""))))
    assert seen == {(b"old", ("a", "b")), (b"new", ("a",))}


def test_name_operations_survive_apart() -> None:
    """Of two creations the second may be there alone."""
    disk = SimDisk()
    disk.create("a")
    disk.create("b")
    second = disk.pending()[-1]
    assert isinstance(second, NamesChanged)
    assert disk.after_power_cut(Exactly(frozenset({second.order}))).list("") == ["b"]
    assert disk.after_power_cut(Prefix(1)).list("") == ["a"]


def test_a_directory_without_a_durable_name_takes_its_files_along() -> None:
    """Syncing a new directory does not save it: its parent must be synced."""
    disk = SimDisk()
    disk.make_directory("d")
    disk.create("d/a").sync()
    disk.sync_directory("d")
    assert disk.after_power_cut(LoseEverything()).list("") == []
    disk.sync_directory("")
    assert disk.after_power_cut(LoseEverything()).list("d") == ["a"]


def test_an_unlinked_file_comes_back_until_the_directory_is_synced() -> None:
    """An unlink is a name operation like any other."""
    disk = one_file(b"x")
    disk.unlink("a")
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"x"
    disk.sync_directory("")
    assert disk.after_power_cut(KeepEverything()).list("") == []


def test_hard_links_share_their_bytes_over_a_cut() -> None:
    """One sync makes the data durable under every name that is."""
    disk = one_file(b"abcd")
    disk.link("a", "b")
    disk.sync_directory("")
    file = disk.open("b", write=True)
    file.write(b"X", 0)
    file.sync()
    left = disk.after_power_cut(LoseEverything())
    assert content(left, "a") == content(left, "b") == b"Xbcd"
    left.open("a", write=True).write(b"Y", 0)
    assert content(left, "b") == b"Ybcd"


def test_a_failed_sync_loses_what_it_covered_while_the_cache_shows_it() -> None:
    """fsyncgate: the next sync returns, the bytes are not on the disk."""
    disk = one_file(b"1111")
    file = disk.open("a", write=True)
    file.write(b"2222", 4)
    disk.inject("sync", errno.EIO)
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        file.sync()
    file.sync()
    assert disk.sync_retries == 1
    assert content(disk, "a") == b"11112222"
    assert content(disk.after_power_cut(KeepEverything()), "a") == b"1111"
    file.write(b"3333", 8)
    file.sync()
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"1111\0\0\0\x003333"


def test_a_full_disk_takes_a_part_of_a_write_first() -> None:
    """ENOSPC comes after a short write, and reserve takes nothing at all."""
    disk = SimDisk(capacity=10)
    file = disk.create("a")
    with pytest.raises(OSError, match=r"\[Errno 28\]"):
        file.write(b"x" * 16, 0)
    assert file.length() == 10
    file.truncate(4)
    with pytest.raises(OSError, match=r"\[Errno 28\]"):
        file.reserve(4, 7)
    assert file.length() == 4
    file.reserve(4, 6)
    file.write(b"y" * 6, 4)
    assert disk.used() == 10


def test_space_of_an_unlinked_file_is_free_when_its_last_handle_closes() -> None:
    """As on a real disk, an open handle keeps the bytes."""
    disk = SimDisk(capacity=10)
    file = disk.create("a")
    file.write(b"x" * 10, 0)
    disk.unlink("a")
    assert disk.used() == 10
    file.close()
    assert disk.used() == 0


def test_an_injected_error_strikes_the_nth_call_of_its_kind_and_path() -> None:
    """Other calls, other paths and later calls go through."""
    disk = SimDisk()
    disk.inject("create", errno.EROFS, nth=2, path="b")
    disk.create("a")
    disk.create("b1")
    with pytest.raises(OSError, match=r"\[Errno 30\]"):
        disk.create("b2")
    disk.create("b2")
    assert disk.list("") == ["a", "b1", "b2"]


def test_an_injected_write_error_leaves_the_stated_prefix() -> None:
    """A write that fails has written some of its bytes."""
    disk = one_file()
    disk.inject("write", errno.ENOSPC, written=3)
    with pytest.raises(OSError, match=r"\[Errno 28\]"):
        disk.open("a", write=True).write(b"abcdef", 0)
    assert content(disk, "a") == b"abc"


def test_a_failed_close_closes() -> None:
    """EIO of close(2) is told once; the handle is gone."""
    disk = one_file()
    file = disk.open("a")
    disk.inject("close", errno.EIO)
    with pytest.raises(OSError, match=r"\[Errno 5\]"):
        file.close()
    file.close()
    with pytest.raises(OSError, match=r"\[Errno 9\]"):
        file.read(0, 1)


def test_crash_before_a_call() -> None:
    """`fail_at` stops before the call has any effect, and nothing works afterwards."""
    disk = one_file(b"x")
    disk.fail_at = disk.calls + 2
    file = disk.open("a", write=True)
    with pytest.raises(SimulatedCrash):
        file.write(b"y", 0)
    with pytest.raises(SimulatedCrash):
        file.close()
    with pytest.raises(SimulatedCrash):
        disk.list("")
    assert content(disk.after_power_cut(KeepEverything()), "a") == b"x"


def test_crash_in_the_middle_of_a_write() -> None:
    """With `fail_halfway` half of the bytes went in."""
    disk = one_file(b"........")
    disk.fail_at = disk.calls + 2
    disk.fail_halfway = True
    with pytest.raises(SimulatedCrash):
        disk.open("a", write=True).write(b"abcdefgh", 0)
    assert content(disk.after_power_cut(KeepEverything()), "a") == b"abcd...."


def test_the_old_disk_is_down_after_a_power_cut() -> None:
    """A `finally:` of a process that is gone reaches nothing."""
    disk = one_file(b"x")
    file = disk.open("a", write=True)
    left = disk.power_cut()
    with pytest.raises(SimulatedCrash):
        file.write(b"y", 0)
    assert content(left, "a") == b"x"


def test_locks_belong_to_a_process_and_end_with_it() -> None:
    """Another process is kept out until the owner releases, dies, or the power goes."""
    disk = one_file()
    owner, other = disk.process("owner"), disk.process("other")
    assert owner.lock("a") is not None
    assert other.lock("a") is None
    assert disk.copy().lock("a") is not None
    owner.kill()
    assert other.lock("a") is not None
    with pytest.raises(SimulatedCrash):
        owner.list("")
    assert disk.list("") == ["a"]
    assert disk.power_cut(KeepEverything()).lock("a") is not None


def test_a_killed_process_leaves_the_page_cache() -> None:
    """SIGKILL loses nothing that was written, and makes nothing durable."""
    disk = one_file(b"1")
    first = disk.process("first")
    first.open("a", write=True).write(b"2", 0)
    first.kill()
    assert content(disk, "a") == b"2"
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"1"


def test_copies_are_independent() -> None:
    """What is done on a copy is not seen on the original, pending units included."""
    disk = one_file(b"x")
    disk.open("a", write=True).write(b"y", 0)
    copy = disk.copy()
    copy.open("a", write=True).write(b"z", 0)
    copy.create("b")
    assert content(disk, "a") == b"y"
    assert disk.list("") == ["a"]
    assert content(copy.after_power_cut(KeepEverything()), "a") == b"z"
    assert content(copy.after_power_cut(LoseEverything()), "a") == b"x"


def test_fingerprints_tell_disks_apart() -> None:
    """Equal trees and bytes give equal digests; a byte, a name or a shared inode makes another."""
    disk, same = one_file(b"abc"), one_file(b"abc")
    assert disk.fingerprint() == same.fingerprint()
    same.open("a", write=True).write(b"X", 0)
    assert disk.fingerprint() != same.fingerprint()
    linked, copied = disk.copy(), disk.copy()
    linked.link("a", "b")
    copied.create("b").write(b"abc", 0)
    assert linked.fingerprint() != copied.fingerprint()


@pytest.mark.parametrize("seed", range(4))
def test_a_seed_decides_the_cut(seed: int) -> None:
    """The same seed leaves the same disk."""
    disk = SimDisk(sector_bytes=2)
    for name in ("a", "b", "c"):
        disk.create(name).write(name.encode() * 20, 0)
    policy: CutPolicy = Seeded(seed)
    first, second = disk.after_power_cut(policy), disk.after_power_cut(policy)
    assert first.fingerprint() == second.fingerprint()


def test_data_without_names_and_names_without_data() -> None:
    """The two extremes between which every journal lies."""
    disk = one_file(b"old")
    disk.open("a", write=True).write(b"new", 0)
    disk.create("b")
    assert disk.after_power_cut(OnlyData()).list("") == ["a"]
    assert content(disk.after_power_cut(OnlyData()), "a") == b"new"
    assert disk.after_power_cut(OnlyNames()).list("") == ["a", "b"]
    assert content(disk.after_power_cut(OnlyNames()), "a") == b"old"


def test_only_a_sync_can_lie() -> None:
    """A lie is for proofs about forgotten syncs; other calls have visible effects."""
    disk = one_file(b"1")
    disk.lie("sync", path="a")
    file = disk.open("a", write=True)
    file.write(b"2", 0)
    file.sync()
    assert content(disk.after_power_cut(LoseEverything()), "a") == b"1"
    with pytest.raises(ValueError, match="rename cannot lie"):
        disk.lie("rename")


def test_links_can_be_missing() -> None:
    """A file system without hard links answers EPERM, as a real one does."""
    disk = SimDisk(links=False)
    disk.create("a")
    with pytest.raises(PermissionError):
        disk.link("a", "b")
    assert disk.list("") == ["a"]


def test_nodes_that_nothing_can_reach_are_forgotten() -> None:
    """A long simulated run does not grow with the files that it has deleted."""
    disk = SimDisk()
    for _ in range(10 * FORGET_EVERY_NODES):
        file = disk.create("a")
        file.close()
        disk.unlink("a")
        disk.sync_directory("")
        assert len(disk.nodes) <= 1 + FORGET_EVERY_NODES
