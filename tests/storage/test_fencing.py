"""Zombies: nothing that a replaced owner still does counts, wherever it was frozen."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from oncemq.errors import Fenced, LogInUse, StorageError
from oncemq.storage import layout
from oncemq.storage.log import FencedLog, hold_lock
from oncemq.storage.memory import MemoryDisk
from tests.storage.loghelp import (
    DIRECTORY,
    OWNER,
    HookedDisk,
    bodies,
    content,
    failing,
    generation_path,
    open_log,
    put,
)


def granted(disk: MemoryDisk, number: int) -> FencedLog:
    return open_log(disk, generation=number)


def test_a_second_owner_is_refused_and_the_first_one_named() -> None:
    """While its owner lives, a log without grants belongs to it."""
    disk = MemoryDisk()
    log = open_log(disk)
    with pytest.raises(LogInUse, match="pid 7, host here"):
        open_log(disk)
    put(log, b"still mine")


def test_an_owner_that_cannot_be_read_is_still_an_owner() -> None:
    """A damaged lock file does not free the lock."""
    disk = MemoryDisk()
    log = open_log(disk)
    file = disk.open(f"{generation_path(log)}/LOCK", write=True)
    file.truncate(3)
    with pytest.raises(LogInUse, match="another process"):
        open_log(disk)


def test_a_takeover_ends_the_owner_and_fences_it() -> None:
    """With takeover the owner's data is handed out to end it, and it is fenced either way."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    told: list[Mapping[str, str | int]] = []
    new = open_log(disk, takeover=True, end_owner=told.append)

    assert told[0] == OWNER
    assert bodies(new) == [b"one"]
    with pytest.raises(Fenced):
        log.check_fence()
    newest = open_log(disk, takeover=True)
    with pytest.raises(Fenced):
        new.sync()
    put(newest, b"two")


def test_a_sync_under_a_newer_generation_is_fenced_and_does_not_count() -> None:
    """The zombie's group is on its disk, but unacknowledged, and the new owner does not have it."""
    disk = MemoryDisk()
    old = granted(disk, 5)
    put(old, b"counts")
    new = granted(disk, 6)
    old.append(1, b"", b"late")
    with pytest.raises(Fenced):
        old.sync()
    for again in (old.sync, old.attest, old.check_fence, lambda: old.append(1, b"", b"x")):
        with pytest.raises(Fenced):
            again()
    old.close()
    put(new, b"next")
    assert bodies(new) == [b"counts", b"next"]


def test_an_unfinished_generation_fences_too() -> None:
    """The directory alone ends the older owner: its successor may be reading the tail already."""
    disk = MemoryDisk()
    log = open_log(disk)
    disk.make_directory(f"{DIRECTORY}/{layout.generation_name(99)}")
    log.append(1, b"", b"x")
    with pytest.raises(Fenced):
        log.sync()


def test_other_names_in_the_directory_do_not_fence() -> None:
    """Only a generation's name is one."""
    disk = MemoryDisk()
    log = open_log(disk)
    disk.make_directory(f"{DIRECTORY}/gen-x")
    disk.make_directory(f"{DIRECTORY}/gen-{'x' * 20}")
    disk.make_directory(f"{DIRECTORY}/zzz")
    assert put(log, b"fine") == log.durable_end


def test_a_number_that_is_not_above_all_others_is_fenced() -> None:
    """A grant that was overtaken opens nothing."""
    disk = MemoryDisk()
    granted(disk, 5)
    for number in (1, 4, 5):
        with pytest.raises(Fenced):
            granted(disk, number)
    disk.make_directory(f"{DIRECTORY}/{layout.generation_name(9)}")
    with pytest.raises(Fenced):
        granted(disk, 8)


def test_a_grant_does_not_wait_for_the_lock_of_a_frozen_owner() -> None:
    """Numbers fence by themselves: the lock of the old owner is no obstacle."""
    disk = MemoryDisk()
    old = granted(disk, 5)
    assert hold_lock(disk, DIRECTORY) is None
    new = granted(disk, 6)
    put(new, b"x")
    with pytest.raises(Fenced):
        old.check_fence()


def test_an_owner_fenced_by_a_later_opening_gives_way_at_its_end() -> None:
    """An opening that was overtaken while it copied ends Fenced and deletes nothing."""
    disk = HookedDisk()
    put(granted(disk, 5), b"one")
    taken: list[FencedLog] = []

    def overtake(call: str, path: str) -> None:
        if call == "rename" and path.endswith("MANIFEST"):
            disk.hook = HookedDisk.hook
            taken.append(granted(disk, 9))

    disk.hook = overtake
    with pytest.raises(Fenced):
        granted(disk, 8)
    assert bodies(taken[0]) == [b"one"]
    put(taken[0], b"two")


def test_an_opening_looks_at_the_fence_before_it_deletes_the_old_log() -> None:
    """A higher number made at the last moment: the lower opening ends and leaves all to it."""
    disk = HookedDisk()
    put(granted(disk, 5), b"one")

    def overtake(call: str, path: str) -> None:
        if call == "rename" and path.endswith("MANIFEST"):
            disk.hook = HookedDisk.hook
            disk.make_directory(f"{DIRECTORY}/{layout.generation_name(9)}")

    disk.hook = overtake
    with pytest.raises(Fenced):
        granted(disk, 8)
    assert layout.generations(disk, DIRECTORY) == [5, 8, 9]
    assert bodies(granted(disk, 10)) == [b"one"]


def test_an_overtaken_grant_does_not_even_prepare() -> None:
    """No socket is bound for a number that is already void."""
    disk = MemoryDisk()
    granted(disk, 5)
    prepared: list[int] = []
    with pytest.raises(Fenced):
        open_log(disk, generation=4, prepare=lambda: prepared.append(1))
    assert prepared == []


@pytest.mark.parametrize("call", ["write", "reserve", "sync", "sync_directory", "create"])
def test_an_opening_that_loses_its_files_to_a_later_one_is_fenced(call: str) -> None:
    """Wherever an opening is overtaken it ends Fenced, and the log is whole."""
    for after in range(8):
        disk = HookedDisk()
        put(granted(disk, 5), b"one")
        taken: list[FencedLog] = []
        left = [after]

        def overtake(name: str, path: str, disk: HookedDisk = disk, left: list[int] = left) -> None:
            made = disk.exists(f"{DIRECTORY}/{layout.generation_name(8)}")
            if name == call and made and left[0] == 0:
                disk.hook = HookedDisk.hook
                taken.append(granted(disk, 9))  # noqa: B023 - called within this round
            elif name == call and made:
                left[0] -= 1

        disk.hook = overtake
        try:
            log = granted(disk, 8)
        except Fenced:
            assert bodies(taken[0]) == [b"one"]
            put(taken[0], b"two")
        else:
            disk.hook = HookedDisk.hook
            assert not taken
            put(log, b"two")


def test_the_zombie_of_a_deleted_generation_is_fenced_not_broken() -> None:
    """Any error that a newer generation explains is raised as Fenced."""
    disk = HookedDisk()
    old = granted(disk, 5)
    put(old, b"one")
    granted(disk, 6)
    disk.hook = failing("write")
    old.append(1, b"", b"late")
    with pytest.raises(Fenced):
        old.sync()


def test_a_zombie_that_reads_what_is_gone_is_fenced_not_broken() -> None:
    """A successor deletes sealed segments: an owner that still reads them gets Fenced."""
    disk = MemoryDisk()
    old = open_log(disk, generation=5, segment_bytes=400)
    for _ in range(4):
        put(old, b"x" * 300)
    granted(disk, 6)
    with pytest.raises(Fenced):
        old.read(0, 1000)
    with pytest.raises(Fenced):
        old.sync()


def test_a_zombie_makes_no_snapshot_deletes_nothing_and_begins_no_segment() -> None:
    """Each act of a writer is preceded by a look at the fence."""
    acts = [
        lambda log: log.write_snapshot(log.durable_end, {"a": b"x"}),
        lambda log: log.reserve(1 << 20),
        lambda log: log.discard(log.durable_end),
        lambda log: log.attest(),
    ]
    for act in acts:
        disk = MemoryDisk()
        old = open_log(disk, generation=5, segment_bytes=400)
        for _ in range(4):
            put(old, b"x" * 300)
        old.write_snapshot(old.durable_end, {"a": b"1"})
        put(old, b"y" * 300)
        disk.make_directory(f"{DIRECTORY}/{layout.generation_name(6)}")
        path = generation_path(old)
        before = [n for n in disk.list(path) if n.endswith((".log", ".snapshot"))]
        with pytest.raises(Fenced):
            act(old)
        assert before == [n for n in disk.list(path) if n.endswith((".log", ".snapshot"))]


def test_a_frozen_owner_cannot_write_into_the_files_of_its_successor() -> None:
    """The last segment is always a copy: what the zombie writes goes to its own file."""
    disk = MemoryDisk()
    old = granted(disk, 5)
    put(old, b"one")
    old.attest()
    new = granted(disk, 6)
    path = f"{generation_path(new)}/{layout.segment_name(0)}"
    before = content(disk, path)
    old.append(1, b"", b"late")
    with pytest.raises(Fenced):
        old.sync()
    assert before == content(disk, path)


def test_a_group_synced_but_not_told_of_is_taken_over_whole_or_not_at_all() -> None:
    """A successor that reads the tail while the zombie writes it takes whole groups only."""
    disk = HookedDisk()
    old = granted(disk, 5)
    put(old, b"one")
    seen: list[list[bytes]] = []

    def take(call: str, path: str) -> None:
        if call == "sync" and path.endswith(".log"):
            disk.hook = HookedDisk.hook
            seen.append(bodies(granted(disk, 6)))

    disk.hook = take
    old.append(1, b"", b"two")
    with pytest.raises(Fenced):
        old.sync()
    assert seen == [[b"one", b"two"]]


def test_a_complete_generation_deletes_all_lower_ones() -> None:
    """Only the newest generation stays on disk."""
    disk = MemoryDisk()
    for number in (3, 7, 20):
        granted(disk, number)
    assert layout.generations(disk, DIRECTORY) == [20]


def test_a_file_that_a_zombie_leaves_in_its_directory_does_no_harm() -> None:
    """A lower generation that cannot be deleted now is deleted by the next opening."""
    disk = HookedDisk()
    old = granted(disk, 5)
    path = generation_path(old)

    def leave(call: str, name: str) -> None:
        if call == "remove_directory" and name == path:
            disk.hook = HookedDisk.hook
            disk.create(f"{path}/late").close()

    disk.hook = leave
    granted(disk, 6)
    assert layout.generations(disk, DIRECTORY) == [5, 6]
    granted(disk, 7)
    assert layout.generations(disk, DIRECTORY) == [7]


def test_a_directory_that_is_gone_ends_the_log() -> None:
    """Deleting the data of a live broker is noticed at its next look, not at its next start."""
    disk = MemoryDisk()
    log = open_log(disk)
    layout.remove_generation(disk, DIRECTORY, log.generation)
    with pytest.raises(StorageError, match="is missing in"):
        log.check_fence()


def test_a_clean_close_of_a_zombie_tells_it_and_lets_go() -> None:
    """The attesting frame of a clean stop is followed by a look at the fence like any other."""
    disk = MemoryDisk()
    old = granted(disk, 5)
    put(old, b"one")
    path = f"{generation_path(old)}/LOCK"
    disk.make_directory(f"{DIRECTORY}/{layout.generation_name(6)}")
    with pytest.raises(Fenced):
        old.close()
    assert disk.lock(path) is not None
    old.close()


def test_a_part_that_a_successor_deleted_is_no_damage() -> None:
    """Neither one that was just written nor one of a snapshot: their writer is fenced."""
    disk = MemoryDisk()
    old = open_log(disk)
    end = put(old, b"one")
    snapshot = old.write_snapshot(end, {"whole": b"part"})
    writer = old.part_writer("ahead")
    writer.write([b"written"])
    put(open_log(disk, generation=9), b"two")
    with pytest.raises(Fenced):
        old.read_snapshot(snapshot)
    with pytest.raises(Fenced):
        writer.finish()
    with pytest.raises(Fenced):
        old.sync()
