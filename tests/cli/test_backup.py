"""`oncemq backup`, `restore` and `fsck` as a person calls them: exit status, JSON, one line a finding."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oncemq.cli import main
from oncemq.runtime.os_disk import OsDisk
from tests.library.backups.small import System


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system that has ended, in the directories that commands take by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONCEMQ_DATA", "data")
    monkeypatch.setenv("ONCEMQ_STATE", "state")
    system = System(OsDisk())
    for _ in range(30):
        system.store()
        system.commit()
        system.send()
    system.close()
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main.cli, list(arguments), standalone_mode=False)


def status(*arguments: str) -> int:
    return main.main(list(arguments))


def test_a_round_by_hand(shop: Path) -> None:
    """Back up twice, check, restore the newest, check again; figures say what was shared."""
    first = json.loads(call("backup", "backups", "--json").stdout)
    assert (first["ledgers"], first["shared_bytes"], first["notes"]) == (1, 0, [])
    assert first["linked_bytes"] > 4096
    second = json.loads(call("backup", "backups", "--json").stdout)
    assert (second["linked_bytes"], second["shared_bytes"]) == (0, first["linked_bytes"])
    assert call("fsck", "backups").stdout == "clean\n"
    restored = json.loads(
        call("restore", "backups", "--data=new/data", "--state=new/state", "--json").stdout
    )
    assert restored["backup"] == second["backup"]
    assert restored["end"] == second["end"]
    told = call("fsck", "--data=new/data", "--state=new/state", "--json").stdout
    assert json.loads(told) == {"ok": True, "findings": []}
    sealed = next((shop / "data").rglob("*0.log"))
    assert sealed.stat().st_nlink == 3
    assert all(path.stat().st_nlink == 1 for path in (shop / "new").rglob("*.log"))


def test_copies_are_links_of_nothing(shop: Path) -> None:
    assert call("backup", "backups", "--copy").exit_code == 0
    assert all(path.stat().st_nlink == 1 for path in (shop / "data").rglob("*.log"))


def test_damage_is_one_line_and_exit_status_1(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the original and in a backup; backup and restore refuse it."""
    assert status("backup", "backups", "--copy") == 0
    for base in (shop / "data", next((shop / "backups").glob("backup-*"))):
        path = next(base.rglob("*00.log"))
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
    capsys.readouterr()
    assert status("fsck") == 1
    [line, last] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"damaged {shop}/data/gen-")
    assert ".log at byte 64: " in line
    assert line.endswith("; restore this log from a backup")
    assert last == "1 damaged"
    assert status("fsck", "backups") == 1
    assert status("backup", "others") == 1
    assert "at byte 64" in capsys.readouterr().err
    assert status("restore", "backups", "--data=new/data", "--state=new/state") == 1
    assert not (shop / "new").exists()


def test_wrong_directories_are_wrong_usage(shop: Path) -> None:
    assert status("fsck", "--data=nowhere") == 2
    assert status("backup", "backups", "--state=nowhere") == 2
    assert status("restore", "nowhere", "--data=new") == 2
    assert status("backup", "data/backups") == 1
    assert status("backup", "backups") == 0
    assert status("restore", "backups", "--data=data", "--state=new") == 1
    assert status("restore", "backups", "--data=new") == 1


def test_a_sink_that_is_no_file_is_refused(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own tools copy it; the page says in which order."""
    assert status("backup", "backups", "--sink=postgresql://user@nowhere/shop") == 1
    assert "docs/BACKUP.md" in capsys.readouterr().err
    assert not (shop / "backups").exists()


def test_another_file_system_is_copied_to(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(_self: OsDisk, old: str, new: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), old, None, new)

    monkeypatch.setattr(OsDisk, "link", other)
    made = json.loads(call("backup", "backups", "--json").stdout)
    assert made["linked_bytes"] == 0
    assert call("fsck", "backups").exit_code == 0
