"""Backup and restore, crashed at every call to the disk: never a half that is taken for a whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from oncemq.errors import StorageError
from oncemq.library.backups.catalog import CATALOG, backups_in, check_backup
from oncemq.library.backups.restore import Restore
from oncemq.sim.disk.crash import Selection, SweepReport, sweep
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage.log import identity
from tests.library.backups.small import (
    DATA,
    LEDGER,
    LEDGER_ID,
    LOG_ID,
    System,
    check_fits,
    job,
    open_log,
)
from tests.library.backups.test_restore import NEW_LEDGER, quiet, restore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FEW = Selection(seeds=3, prefixes=4)
COMMITS = 12


def prepared(*, backup: bool) -> SimDisk:
    """A disk with a system that has ended, and perhaps a backup of it."""
    disk = SimDisk(sector_bytes=512)
    process = disk.process("system")
    system = System(process)
    for _ in range(COMMITS):
        system.store()
        system.commit()
        system.send()
    system.close()
    if backup:
        job(process).run()
    process.kill()
    return disk


def whole_backups(disk: SimDisk) -> int:
    """How many finished backups there are; each of them is whole."""
    process = disk.process("looker")
    count = 0
    for name in backups_in(process, "backups"):
        if process.exists(f"backups/{name}/{CATALOG}"):
            count += 1
            found = list(check_backup(process, f"backups/{name}", quiet, quiet))
            assert found == [], found
            home = f"backups/{name}"
            assert check_fits(process, f"{home}/broker", f"{home}/ledgers/g/orders/0") == COMMITS
    process.kill()
    return count


@dataclass
class BackupCase:
    """Two backups, the second of which shares with the first. A promise counts the finished ones."""

    def nothing(self) -> int:
        return 0

    def run(self, disk: SimDisk, promise) -> None:
        process = disk.process("backup")
        for count in (1, 2):
            job(process).run()
            promise(count)
        process.kill()

    def recover(self, disk: SimDisk, promised: int) -> int:
        """The next backup takes away what was cut short, and is whole."""
        assert whole_backups(disk) in {promised, promised + 1}
        process = disk.process("next")
        job(process).run()
        process.kill()
        names = backups_in(disk.process("lister"), "backups")
        count = whole_backups(disk)
        assert count == len(names) > promised
        return promised

    def check(self, disk: SimDisk, promised: int) -> None:
        """Nothing happened to the original."""
        assert whole_backups(disk) >= promised
        process = disk.process("owner")
        open_log(process, DATA, None, b"").close()
        open_log(process, LEDGER, 50, b"").close()
        assert check_fits(process, DATA, LEDGER) == COMMITS
        process.kill()


@dataclass
class RestoreCase:
    """One restore. The promise is whether it has returned."""

    def nothing(self) -> bool:
        return False

    def run(self, disk: SimDisk, promise) -> None:
        process = disk.process("restore")
        restore(process).run()
        promise(True)
        process.kill()

    def recover(self, disk: SimDisk, promised: bool) -> bool:
        """A broker and a consumer start there, whatever was left."""
        process = disk.process("owner")
        begun = process.exists("new/data") and process.list("new/data") != []
        try:
            found = identity(process, "new/data")
        except StorageError:
            assert not promised, "a finished restore is refused"
            return promised
        if found is None:
            assert not promised
            assert not begun, "a broker would begin a log of its own in a half restored directory"
            return promised
        assert found.log_id == LOG_ID
        open_log(process, "new/data", None, b"other log id....").close()
        open_log(process, NEW_LEDGER, 1 << 30, LEDGER_ID).close()
        assert check_fits(process, "new/data", NEW_LEDGER) == COMMITS
        process.kill()
        return promised

    def check(self, disk: SimDisk, promised: bool) -> None:
        """The backup is as it was."""
        assert whole_backups(disk) == 1


def told(report: SweepReport) -> SweepReport:
    print(f"\n{report}")
    for violation in report.violations:
        print(f"  {violation}")
    return report


def test_a_backup_is_whole_or_none_wherever_the_power_goes() -> None:
    report = told(sweep(BackupCase(), disk=lambda: prepared(backup=False), selection=FEW))
    assert report.violations == []
    assert report.calls > 100


def test_a_restore_is_whole_or_refused_wherever_the_power_goes() -> None:
    report = told(sweep(RestoreCase(), disk=lambda: prepared(backup=True), selection=FEW))
    assert report.violations == []
    assert report.calls > 100


@pytest.mark.parametrize("path", [CATALOG, "MANIFEST", ".log"])
def test_a_forgotten_sync_of_a_backup_is_found(path: str) -> None:
    """The sweep is no decoration: a sync that does nothing breaks a promise."""

    def lying() -> SimDisk:
        disk = prepared(backup=False)
        disk.lie("sync", path=path, nth=1, times=1_000_000)
        return disk

    assert sweep(BackupCase(), disk=lying, selection=FEW, violations_max=1).violations


def test_a_manifest_before_its_files_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RESTORING, and the broker's manifest last, a half restore would be opened."""
    log, finish = Restore._log, Restore._finish

    def early(self, source, target, least, digests):
        path, manifest = log(self, source, target, least, digests)
        finish(self, path, manifest)
        return path, manifest

    monkeypatch.setattr(Restore, "_log", early)
    monkeypatch.setattr(Restore, "_finish", lambda *_: None)
    report = sweep(
        RestoreCase(), disk=lambda: prepared(backup=True), selection=FEW, violations_max=1
    )
    assert report.violations
