"""A backup shows one moment, shares what never changes, and is whole or not there at all."""

from __future__ import annotations

import errno
import os
import posixpath
import random
from typing import Any

import pytest

from oncemq.codec import wire
from oncemq.errors import BadInput, CorruptLog, DiskFull, LogInUse, LogRegressed
from oncemq.history import Place
from oncemq.library.backups.catalog import (
    CATALOG,
    Catalog,
    backups_in,
    check_backup,
    find_backup,
    read_catalog,
)
from oncemq.library.backups.make import ATTEMPTS_MAX, check_apart
from oncemq.records import BatchStored, TopicDeleted
from oncemq.storage import layout
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.outside_reader import LogReader
from tests.library.backups.small import (
    DATA,
    GROUP_BYTES,
    LEDGER,
    System,
    check_fits,
    check_made,
    job,
    open_log,
    records_of,
)
from tests.storage.loghelp import HookedDisk, content, flip

SEEDS = 30


def worked(disk: MemoryDisk, count: int = 40) -> System:
    """A system with some sealed segments."""
    system = System(disk)
    for _ in range(count):
        system.store()
        system.commit()
        system.send()
    return system


def problems(disk: MemoryDisk, backup: str) -> list[str]:
    quiet: Any = lambda *_: None  # noqa: E731
    return [str(finding) for finding in check_backup(disk, backup, quiet, quiet)]


def test_a_backup_of_a_system_at_rest_holds_all_of_it() -> None:
    disk = MemoryDisk()
    system = worked(disk)
    system.close()
    made = job(disk).run()
    assert check_made(disk, made) == 40
    assert problems(disk, made.path) == []
    assert made.notes == []
    assert made.catalog.broker.end == open_log(disk, DATA, None, b"").end
    assert find_backup(disk, "backups") == made.path == find_backup(disk, made.path)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_backup_beside_a_system_at_work_shows_one_moment(seed: int) -> None:
    """The system goes on between any two calls to the disk, and the parts of the copy fit."""
    rng = random.Random(seed)
    disk = HookedDisk()
    system = worked(disk, 8)
    often = rng.choice([0.02, 0.1, 0.3])
    busy, left = False, 60  # steps: then the system rests, so that a backup comes to its end

    def hook(_call: str, _path: str) -> None:
        nonlocal busy, left
        if not busy and left and rng.random() < often:
            busy, left = True, left - 1
            system.step(rng)
            busy = False

    acknowledged = len(system.stored)
    disk.hook = hook
    copies = [job(disk, independent=rng.random() < 0.3).run() for _ in range(3)]
    disk.hook = lambda _call, _path: None
    for made in copies:
        assert problems(disk, made.path) == []
        base = ledger_base(disk, f"{made.path}/ledgers/g/orders/0")
        commits = check_fits(disk, f"{made.path}/broker", f"{made.path}/ledgers/g/orders/0", base)
        assert commits >= 8
        assert stored_in(disk, f"{made.path}/broker") >= acknowledged


def stored_in(disk: MemoryDisk, broker: str) -> int:
    records = [record for _, record in records_of(disk, broker)]
    return sum(isinstance(r, BatchStored) and not r.producer for r in records)


def ledger_base(disk: MemoryDisk, directory: str) -> int:
    """The commits that the newest snapshot stands for."""
    reader = LogReader.open(disk, directory)
    heads = reader.snapshots()
    base = 0
    if heads:
        base = wire.unpack_plain(reader.read_snapshot(heads[0])["ledger"])["commit_no"]
    reader.close()
    return base


def test_a_ledger_ahead_is_cut_back_to_what_the_broker_has() -> None:
    """Also where it took another owner and a snapshot meanwhile; the first commits are kept."""
    disk = MemoryDisk()
    system = worked(disk, 10)
    system.snapshot_ledger()
    done = []

    def tell(_name: str, _nbytes: int) -> None:
        if not done:  # the broker's end is taken, its first file is written
            done.append(1)
            for _ in range(5):
                system.store()
                system.commit()
                system.send()
            system.grant()
            system.store()
            system.commit()
            system.snapshot_ledger()

    made = job(disk, tell=tell).run()
    assert done
    ledger = f"{made.path}/ledgers/g/orders/0"
    assert check_fits(disk, f"{made.path}/broker", ledger, ledger_base(disk, ledger)) == 10


def test_a_ledger_that_was_compacted_past_the_cut_means_another_attempt() -> None:
    disk = MemoryDisk()
    system = worked(disk, 10)
    left = [2]

    def tell(name: str, _nbytes: int) -> None:
        if left[0] and "broker" in name:
            left[0] -= 1
            for _ in range(3):
                for _ in range(40):
                    system.store()
                    system.commit()
                system.snapshot_ledger()

    made = job(disk, tell=tell).run()
    assert left == [0]
    assert backups_in(disk, "backups") == [posixpath.basename(made.path)]
    base = ledger_base(disk, f"{made.path}/ledgers/g/orders/0")
    assert base > 10


def test_a_ledger_of_another_past_is_no_backup() -> None:
    """The log was put back by hand: which messages fit this ledger nobody knows. It says so."""
    disk = MemoryDisk()
    system = worked(disk, 3)
    system.seen = Place(b"?" * 16, 5)
    system.place_of = lambda _position: Place(b"?" * 16, 5)  # type: ignore[method-assign]
    system.store()
    system.commit()
    tries = []
    with pytest.raises(Exception, match="relies on position 5"):
        job(disk, wait=lambda: tries.append(1)).run()
    assert len(tries) == ATTEMPTS_MAX
    assert backups_in(disk, "backups") == []
    system.place_of = lambda _position: Place(system.history[0][0], 1 << 40)  # type: ignore[method-assign]
    system.start_broker()
    system.store()
    system.commit()
    with pytest.raises(LogRegressed, match="groups seek"):
        job(disk).run()


def test_a_ledger_of_a_deleted_topic_stands_as_it_is() -> None:
    """The broker has forgotten its grants and the topic: nothing can be wrong with it."""
    disk = MemoryDisk()
    system = worked(disk, 10)
    system.snapshot_ledger()
    system.put_broker(TopicDeleted(0, 2))
    for number in range(2):
        made = job(disk).run()
        [ledger] = made.catalog.ledgers
        assert system.ledger is not None
        assert ledger.end == system.ledger.end
        if number == 0:
            system.snapshot_broker()


def test_snapshots_that_go_while_they_are_copied_are_no_reason_to_begin_again() -> None:
    """Their files are open: checking them may take longer than two snapshots of the owner live."""
    disk = HookedDisk()
    system = worked(disk, 10)
    system.snapshot_ledger()
    home = f"{LEDGER}/{layout.generation_name(2)}"
    [part] = [name for name in disk.list(home) if name.startswith("part")]
    seen: list[str] = []

    def hook(call: str, path: str) -> None:
        if call == "link" and path.endswith(part) and not seen:
            seen.append(path)
            disk.unlink(f"{home}/{part}")

    disk.hook = hook
    made = job(disk, wait=lambda: seen.append("again")).run()
    assert len(seen) == 1
    [entry] = [entry for entry in made.catalog.files if entry.name.endswith(part)]
    assert entry.own
    assert problems(disk, made.path) == []


# --- sharing -------------------------------------------------------------------------------------


def test_the_second_backup_shares_what_the_first_has() -> None:
    disk = MemoryDisk()
    system = worked(disk)
    first = job(disk).run()
    before = disk.used()
    second = job(disk).run()
    assert second.linked_bytes == 0
    assert second.shared_bytes == first.linked_bytes > 4096
    assert disk.used() - before == second.copied_bytes + len(second.catalog.encode())
    system.start_broker()  # another generation: the same sealed segments
    third = job(disk).run()
    assert third.shared_bytes >= first.linked_bytes
    for made in (first, second, third):
        assert problems(disk, made.path) == []


def test_a_copy_shares_no_block_with_the_original() -> None:
    """Nor through a backup before that was made of links; a copy shares with a copy."""
    disk = MemoryDisk()
    worked(disk).close()
    job(disk).run()
    second = job(disk, independent=True).run()
    assert (second.linked_bytes, second.shared_bytes) == (0, 0)
    third = job(disk, independent=True).run()
    assert third.shared_bytes > 4096
    for name in disk.list(f"{DATA}/{disk.list(DATA)[-1]}"):
        if name.endswith(".log"):
            path = f"{DATA}/{disk.list(DATA)[-1]}/{name}"
            flip(disk, path, 100)
    assert problems(disk, second.path) == problems(disk, third.path) == []


def test_a_damaged_block_of_a_link_is_damaged_in_both() -> None:
    disk = MemoryDisk()
    worked(disk).close()
    made = job(disk).run()
    generation = next(name for name in disk.list(DATA) if name.startswith("gen-"))
    flip(disk, f"{DATA}/{generation}/{layout.segment_name(0)}", 200)
    assert problems(disk, made.path)


def test_without_links_everything_is_copied() -> None:
    disk = HookedDisk()
    worked(disk).close()

    def hook(call: str, path: str) -> None:
        if call == "link":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)

    disk.hook = hook
    for _ in range(2):
        made = job(disk).run()
        assert (made.linked_bytes, made.shared_bytes) == (0, 0)
        assert problems(disk, made.path) == []


def test_a_segment_whose_successor_holds_nothing_is_copied() -> None:
    """A full disk may take the successor back, and the segment grows on: a link would grow too."""
    disk = MemoryDisk()
    system = worked(disk, 3)
    broker = system.broker
    assert broker is not None
    while not broker._writer.must_roll(GROUP_BYTES):
        system.store()
    broker.reserve(GROUP_BYTES)
    made = job(disk).run()
    before = layout.segment_name(broker._view.firsts[-2])
    [entry] = [e for e in made.catalog.files if e.name.endswith(before) and "broker" in e.name]
    assert (entry.tag, entry.own) == ("", True)


# --- damage, a full disk, two at once ------------------------------------------------------------


@pytest.mark.parametrize("directory", [DATA, LEDGER])
def test_a_damaged_source_is_no_backup(directory: str) -> None:
    """Each of its segments and snapshots: the file and the place are named, nothing is left."""
    disk = MemoryDisk()
    system = worked(disk)
    system.snapshot_broker()
    system.snapshot_ledger()
    system.close()
    home = next(f"{directory}/{n}" for n in disk.list(directory) if n.startswith("gen-"))
    for name in disk.list(home):
        if name in {layout.LOCK, layout.START}:
            continue
        path = f"{home}/{name}"
        flip(disk, path, len(content(disk, path)) // 2, 0x10)
        with pytest.raises(CorruptLog) as told:
            job(disk).run()
        assert told.value.path == path
        assert backups_in(disk, "backups") == []
        flip(disk, path, len(content(disk, path)) // 2, 0x10)
    job(disk).run()


def test_a_full_disk_leaves_nothing_that_looks_whole() -> None:
    """Whatever the room: either all of it or none; and when there is room, it works."""
    probe = MemoryDisk()
    worked(probe).close()
    before = probe.used()
    made = job(probe, independent=True).run()
    need = probe.used() - before
    assert need > 10_000
    for room in range(0, need, 2311):
        disk = MemoryDisk()
        worked(disk).close()
        disk.capacity = disk.used() + room
        with pytest.raises(DiskFull, match="nothing of it is left"):
            job(disk, independent=True).run()
        assert backups_in(disk, "backups") == []
        disk.capacity = disk.used() + need
        assert problems(disk, job(disk, independent=True).run().path) == []
    assert made.copied_bytes <= need


def test_an_unfinished_backup_is_none_and_goes_with_the_next() -> None:
    disk = MemoryDisk()
    worked(disk).close()
    first = job(disk).run()
    disk.unlink(f"{first.path}/{CATALOG}")
    with pytest.raises(Exception, match="no finished backup"):
        find_backup(disk, "backups")
    with pytest.raises(Exception, match="never finished"):
        find_backup(disk, first.path)
    second = job(disk, now_ms=1_900_000_000_000).run()
    assert backups_in(disk, "backups") == [posixpath.basename(second.path)]


def test_two_backups_at_once_are_refused() -> None:
    disk = MemoryDisk()
    worked(disk).close()
    job(disk).run()
    lock = disk.lock("backups/LOCK")
    assert lock is not None
    with pytest.raises(LogInUse, match="making a backup"):
        job(disk).run()


def test_a_backup_inside_of_what_it_copies_is_refused() -> None:
    check_apart("/backups", "/data", None)
    check_apart("/database", "/data")
    with pytest.raises(BadInput, match="lies inside"):
        check_apart("/data/backups", "/data")


def test_a_grant_whose_ledger_is_not_there_is_told() -> None:
    """A sink, or another machine: whoever restores must know."""
    disk = MemoryDisk()
    worked(disk).close()
    made = job(disk, state=None).run()
    [note] = made.notes
    assert "group g, orders partition 0 is not in this backup" in note


def test_the_catalog_is_read_as_it_was_written() -> None:
    disk = MemoryDisk()
    worked(disk).close()
    made = job(disk).run()
    assert isinstance(made.catalog, Catalog)
    assert read_catalog(disk, made.path) == made.catalog


def test_the_catalog_comes_last() -> None:
    """All other bytes and names are durable before it has its name; nothing follows but its own sync."""
    disk = HookedDisk()
    worked(disk).close()
    calls: list[tuple[str, str]] = []
    disk.hook = lambda call, path: calls.append((call, path))
    made = job(disk).run()
    named = calls.index(("rename", f"{made.path}/{CATALOG}"))
    assert [call for call, _ in calls[named + 1 :] if call in {"create", "write", "link"}] == []
    assert ("sync_directory", made.path) in calls[named:]
    made_names = [(n, path) for n, (call, path) in enumerate(calls) if call in {"create", "link"}]
    for number, path in made_names:
        home = posixpath.dirname(path)
        if made.path in path and home != made.path:
            assert ("sync_directory", home) in calls[number:named]
