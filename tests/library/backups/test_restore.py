"""A restore makes a whole new lineage, or nothing that a broker would open."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest

from oncemq.errors import BadInput, CorruptLog, DiskFull, StorageError
from oncemq.library.backups.catalog import CATALOG, NoBackup, check_backup, read_catalog
from oncemq.library.backups.restore import Restore, Restored
from oncemq.storage import layout
from oncemq.storage.check import check_log
from oncemq.storage.copying import JUMP
from oncemq.storage.log import identity
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.view import read_latest
from tests.library.backups.small import DATA, LEDGER, LOG_ID, check_fits, job, open_log, records_of
from tests.library.backups.test_backup import problems, worked
from tests.storage.loghelp import HookedDisk, content, flip, overwrite
from tests.storage.test_check import files

LINEAGE = b"a new lineage..."
NOW_MS = 1_800_000_000_000
NEW_LEDGER = "new/state/g/orders/0"


def quiet(*_: Any) -> None:
    """Nothing is told, nothing is waited for."""


def restore(disk: MemoryDisk, **more: Any) -> Restore:
    settings: dict[str, Any] = {
        "directory": "backups",
        "data": "new/data",
        "state": "new/state",
        "sink": None,
        "host": "there",
        "now_ms": NOW_MS,
        "lineage": LINEAGE,
        "tell": quiet,
        "wait": quiet,
    }
    return Restore(disk, **{**settings, **more})


def backed_up(disk: MemoryDisk, **more: Any) -> str:
    system = worked(disk)
    system.snapshot_broker()
    system.close()
    return job(disk, **more).run().path


def check_restored(disk: MemoryDisk, restored: Restored) -> None:
    """All of it, whole, as a lineage of its own above everything the original will reach."""
    for directory, new in ((DATA, "new/data"), (LEDGER, NEW_LEDGER)):
        old, made = read_latest(disk, directory), read_latest(disk, new)
        assert old is not None
        assert made is not None
        assert (made.manifest.log_id, made.manifest.lineage) == (old.manifest.log_id, LINEAGE)
        assert old.manifest.lineage == old.manifest.log_id
        assert made.manifest.generation >= old.manifest.generation + JUMP
        assert records_of(disk, new) == records_of(disk, directory)
        assert list(check_log(disk, new, quiet, quiet)) == []
    assert check_fits(disk, "new/data", NEW_LEDGER) == 40
    assert content(disk, f"new/data/{layout.SECRET}") == content(disk, f"{DATA}/{layout.SECRET}")
    assert not disk.exists(f"new/data/{layout.RESTORING}")
    log = open_log(disk, "new/data", None, LOG_ID)
    assert log.generation == restored.generation + 1
    log.close()


def test_a_backup_is_restored_as_a_lineage_of_its_own() -> None:
    disk = MemoryDisk()
    backed_up(disk)
    check_restored(disk, restore(disk).run())


def test_what_is_restored_shares_no_block_with_its_backup() -> None:
    disk = MemoryDisk()
    backup = backed_up(disk)
    restore(disk).run()
    for path in list(files(disk, "new")):
        if content(disk, path):
            flip(disk, path, 0)
    assert problems(disk, backup) == []


def test_a_later_restore_is_above_an_earlier_one() -> None:
    """Of the same backup: whoever has met the later copy does not follow the earlier one."""
    disk = MemoryDisk()
    backed_up(disk)
    first = restore(disk).run()
    second = restore(disk, data="n2/data", state="n2/state", now_ms=NOW_MS + 2000).run()
    assert first.generation < second.generation
    nested = job(disk, data="n2/data", state="n2/state", directory="b2").run()
    third = restore(disk, directory=nested.path, data="n3/data", state="n3/state", now_ms=5).run()
    assert third.generation > second.generation


@pytest.mark.parametrize("target", ["new/data", "new/state"])
def test_a_target_that_is_not_empty_is_refused(target: str) -> None:
    disk = MemoryDisk()
    backed_up(disk)
    layout.make_directories(disk, target)
    layout.write_new(disk, f"{target}/file", b"of a user")
    with pytest.raises(BadInput, match="not empty"):
        restore(disk).run()
    assert sorted(files(disk, "new")) == [f"{target}/file"]


def test_ledgers_need_a_place() -> None:
    disk = MemoryDisk()
    backed_up(disk)
    with pytest.raises(BadInput, match="holds ledgers"):
        restore(disk, state=None).run()


def test_an_unfinished_backup_is_refused() -> None:
    disk = MemoryDisk()
    backup = backed_up(disk)
    disk.unlink(f"{backup}/{CATALOG}")
    for directory in ("backups", backup):
        with pytest.raises(NoBackup):
            restore(disk, directory=directory).run()
    assert not disk.exists("new")


def test_each_flipped_byte_of_a_backup_is_found() -> None:
    """By fsck each byte of each file; by restore in each file, and then nothing was written."""
    disk = MemoryDisk()
    backup = backed_up(disk)
    rng = random.Random(1)
    paths = list(files(disk, backup))
    assert len(paths) > 12
    for path in paths:
        whole = content(disk, path)
        for offset in rng.sample(range(len(whole)), min(len(whole), 12)):
            flip(disk, path, offset, 0x20)
            found = [f for f in check_backup(disk, backup, quiet, quiet) if f.damage]
            assert any(one.path == path for one in found), (path, offset)
            overwrite(disk, path, whole)
        flip(disk, path, rng.randrange(len(whole)), 0x20)
        with pytest.raises(StorageError):
            restore(disk).run()
        assert not disk.exists("new/data")
        overwrite(disk, path, whole)
    check_restored(disk, restore(disk).run())


@pytest.mark.parametrize("end", ["cut", "longer", "gone"])
def test_a_file_of_another_length_is_found(end: str) -> None:
    disk = MemoryDisk()
    backup = backed_up(disk)
    for path in list(files(disk, backup)):
        if path.endswith(CATALOG):
            continue
        whole = content(disk, path)
        if end == "gone":
            disk.unlink(path)
        else:
            overwrite(disk, path, whole[:-1] if end == "cut" else whole + b"x")
        with pytest.raises(CorruptLog, match=path):
            restore(disk).run()
        if end == "gone":
            layout.write_new(disk, path, whole)
        else:
            overwrite(disk, path, whole)
    check_restored(disk, restore(disk).run())


# The polynomial of CRC-32 as bytes: what is changed by it keeps its checksum.
UNSEEN = (0xEDB88320 << 1 | 1).to_bytes(5, "little")


@pytest.mark.parametrize(("end", "change"), [("0.log", b"\1"), (".map", UNSEEN)])
def test_what_changes_after_the_check_is_found(end: str, change: bytes) -> None:
    """The copy is compared with the catalog again as it is made, also where no checksum tells."""
    disk = HookedDisk()
    backup = backed_up(disk)
    path = next(f for f in files(disk, backup) if "broker/gen" in f and f.endswith(end))
    before = crc32(content(disk, path))

    def hook(call: str, name: str) -> None:
        if call == "make_directory" and name == "new":
            for number, mask in enumerate(change):
                flip(disk, path, 100 + number, mask)

    disk.hook = hook
    with pytest.raises(CorruptLog, match=path):
        restore(disk).run()
    assert (crc32(content(disk, path)) == before) == (change == UNSEEN)
    with pytest.raises(StorageError, match="did not finish"):
        identity(disk, "new/data")


def test_a_full_disk_leaves_nothing_of_the_restore() -> None:
    disk = MemoryDisk()
    backed_up(disk)
    before = disk.used()
    for room in range(0, 18_000, 997):
        disk.capacity = before + room
        with pytest.raises(DiskFull, match="nothing of it is left"):
            restore(disk).run()
        assert list(files(disk, "new")) == []
        assert disk.used() == before
    disk.capacity = None
    check_restored(disk, restore(disk).run())


def test_a_newer_format_of_the_catalog_is_named() -> None:
    disk = MemoryDisk()
    backup = backed_up(disk)
    path = f"{backup}/{CATALOG}"
    overwrite(disk, path, content(disk, path).replace(b"backup 1", b"backup 2"))
    with pytest.raises(StorageError, match="has format 2"):
        restore(disk).run()


def test_the_brokers_manifest_comes_last() -> None:
    """RESTORING is durable before anything else is there, and goes after that manifest."""
    disk = HookedDisk()
    backed_up(disk)
    calls: list[tuple[str, str]] = []
    disk.hook = lambda call, path: calls.append((call, path))
    restore(disk).run()
    began = calls.index(("create", f"new/data/{layout.RESTORING}"))
    durable = calls.index(("sync_directory", "new/data"), began)
    ended = calls.index(("unlink", f"new/data/{layout.RESTORING}"))
    manifests = [
        n for n, (call, path) in enumerate(calls) if call == "rename" and "MANIFEST" in path
    ]
    files = [n for n, (call, path) in enumerate(calls) if call == "create" and "gen-" in path]
    assert durable < min(files)
    assert max(manifests) < ended
    assert calls[max(manifests)][1].startswith("new/data/gen-")
    assert max(files) < max(manifests)


@pytest.mark.parametrize("name", ["/etc/passwd", "ledgers/../../x", ".."])
def test_names_that_lead_out_of_a_backup_are_refused(name: str) -> None:
    """A catalog may come from anywhere: what it names lies in the backup and in the new directories."""
    disk = MemoryDisk()
    backup = backed_up(disk)
    catalog = read_catalog(disk, backup)
    for change in (
        {"logs": (catalog.broker, replace(catalog.ledgers[0], name=name))},
        {"files": (replace(catalog.files[0], name=name),)},
    ):
        overwrite(disk, f"{backup}/{CATALOG}", replace(catalog, **change).encode())
        with pytest.raises(CorruptLog, match="lies outside"):
            restore(disk).run()
        assert not disk.exists("new")
