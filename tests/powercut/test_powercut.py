"""Power cuts and failing disks on real file systems: what was promised is there afterwards.

They need root, loop devices, strace and the tools of ext4 and XFS (`tests/powercut/install.sh`);
where something is missing they are skipped, counted and told why. ONCEMQ_TEST_POWERCUT_ALL=1 tries
every cut point (`make powercut`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALL = "ONCEMQ_TEST_POWERCUT_ALL" in os.environ
FILE_SYSTEMS = ("ext4", "ext4-noauto_da_alloc", "xfs")
TOOLS = ("strace", "unshare", "mkfs.ext4", "mkfs.xfs")


def missing() -> str:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "needs root on Linux"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (tests/powercut/install.sh)"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    known = Path("/proc/filesystems").read_text("utf-8").split()
    lacking = [name for name in ("ext4", "xfs") if name not in known]
    if lacking:
        return f"this kernel has no {', '.join(lacking)}"
    done = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True)
    return "" if done.returncode == 0 else "may not make a mount namespace"


REASON = missing()
pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.timeout(3600 if ALL else 1200),
    pytest.mark.skipif(bool(REASON), reason=f"power cuts: {REASON}"),
]


def run(module: str, *arguments: str, expect: int = 0) -> dict[str, Any]:
    """Run a program of this directory in a mount namespace of its own; return what it reports."""
    command = ["unshare", "--mount", sys.executable, "-m", f"tests.powercut.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == expect, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def show(title: str, report: dict[str, Any]) -> None:
    """Print what was done; `pytest -s` and `make powercut` show it."""
    print(f"\n{title}: {json.dumps(report)}")


@pytest.mark.parametrize("ledger", [False, True], ids=["broker_log", "ledger"])
@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_a_power_cut_before_any_storage_call_breaks_no_promise(kind: str, ledger: bool) -> None:
    """Killed at a storage call, then without power, twice: all that was promised is there."""
    every = 1 if ALL else (6 if ledger else 3)
    first = FILE_SYSTEMS.index(kind)  # CI: other points on each file system
    more = ("--ledger",) if ledger else ()
    report = run("sweep", "--on", kind, "--every", str(every), "--first", str(first), *more)
    show(f"power cuts, {kind}, {'ledger' if ledger else 'broker log'}", report)
    assert report["broken"] == []
    assert all(report["kills"].values()), "a kind of call at which nobody was killed"
    assert sum(report["kills"].values()) >= 30
    assert report["power_cuts"] >= 2 * sum(report["kills"].values())
    assert report["promised"] > sum(report["kills"].values()) // 2


@pytest.mark.parametrize(
    ("kind", "forget"),
    [
        *[(kind, "rename:.snapshot") for kind in FILE_SYSTEMS],
        ("ext4-noauto_da_alloc", "file:.snapshot.tmp"),
        ("xfs", "file:.snapshot.tmp"),
        ("xfs", "file:part-"),
        ("ext4", "file:.log"),
    ],
)
def test_the_sweep_sees_a_forgotten_sync(kind: str, forget: str) -> None:
    """One directory sync, or the syncs of one kind of file, left out: a promise is broken."""
    report = run(
        "sweep",
        "--on",
        kind,
        "--calls",
        "pwrite64",
        "--forget",
        forget,
        "--broken-max",
        "1",
        expect=1,
    )
    show(f"forgotten {forget}, {kind}", report)
    assert report["broken"]


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
def test_real_processes_through_power_cuts(kind: str) -> None:
    """Broker, producer and consumer lose power again and again; each row counts once."""
    count = 21 if ALL else {"ext4": 3, "ext4-noauto_da_alloc": 2, "xfs": 7}[kind]
    report = run("siege", "cuts", "--on", kind, "--count", str(count))
    show(f"real processes, {kind}", report)
    assert report["cuts"] == count
    assert report["kills"] >= count - count // 7 - 1


SQL_CALLS = "fdatasync,pwrite64,fsync,unlink,ftruncate"
# CI: one in so many of each kind of call, others on each file system.
SQL_POINTS = {"ext4": (SQL_CALLS, 19, 54), "xfs": ("fdatasync,pwrite64", 47, 54)}


@pytest.mark.parametrize("kind", FILE_SYSTEMS if ALL else SQL_POINTS)
def test_no_acknowledged_row_of_a_sqlite_sink_is_lost(kind: str) -> None:
    """Killed at storage calls of the database, or cut while at work: rows and commits agree."""
    calls, first, every = (SQL_CALLS, 0, 1) if ALL else SQL_POINTS[kind]
    more = ("--live=20", "--followed=1", "--patient") if ALL else ("--live=1", "--followed=40")
    report = run("sql_siege", "--on", kind, f"--calls={calls}", f"--first={first}",
                 f"--every={every}", f"--seed={len(kind)}", *more)  # fmt: skip
    show(f"SQLite under power cuts, {kind}", report)
    assert report["broken"] == []
    assert all(report["kills"].values()), "a kind of call at which nobody was killed"
    kills = sum(report["kills"].values())
    assert kills == sum(report["points"].values()) if ALL else kills >= 3
    assert report["live"] == (20 if ALL else 1)
    assert report["followed"] >= 1
    assert report["power_cuts"] >= 3 * (kills + report["live"]) + 2 * report["followed"]
    assert report["acknowledged"] > 0, "no cut behind an acknowledged commit"
    assert report["lost_unsynced"] > 0, "no cut took anything away"


@pytest.mark.parametrize("weakened", ["normal", "journal"])
def test_the_siege_sees_what_a_weaker_setting_loses(weakened: str) -> None:
    """synchronous=NORMAL, or a rollback journal with FULL: an acknowledged commit is gone."""
    report = run("sql_siege", "--on", "ext4", f"--weakened={weakened}", "--calls=pwrite64",
                 "--first=60", "--every=300", "--broken-max=1", expect=1)  # fmt: skip
    show(f"SQLite weakened: {weakened}", report)
    assert "was acknowledged" in report["broken"][0]


def test_a_failed_sync_is_final() -> None:
    """EIO from fsync or fdatasync ends the broker; that file is never touched by it again."""
    report = run("siege", "failing-sync", "--on", "xfs", "--count", "20" if ALL else "4")
    show("failing syncs", report)
    assert len(report["failed"]) == report["cuts"] > 0


def test_a_full_disk_refuses_and_recovers() -> None:
    """A small disk runs full: writes are refused, reads go on, work resumes by itself."""
    report = run("siege", "full", "--on", "ext4-small")
    show("full disk", report)
    assert report["acked"] > report["before"] >= 20


def test_a_ledger_without_room_waits_and_goes_on() -> None:
    """A small disk runs full under a ledger: nothing is committed, then each message counts once."""
    report = run("full_disk", "ledger")
    show("full disk of a ledger", report)
    assert report["told"] > report["before"] + 20


def test_files_of_ids_are_made_when_there_is_room_again() -> None:
    """A small disk runs full under files of ids, then under the log: every id keeps its offset."""
    report = run("full_disk", "index")
    show("full disk of files of ids", report)
    assert report["stored"] > report["before"] > 6


def test_a_short_write_on_a_full_disk_tears_nothing() -> None:
    """The group that a full disk cut in two is gone; all before it is there and work goes on."""
    report = run("short_write")
    show("short write", report)
    assert report["short_writes"] > 0


def test_a_disk_that_turns_read_only_ends_the_broker() -> None:
    """No acknowledgement after it, one sentence that names it, all of it there afterwards."""
    report = run("siege", "read-only", "--on", "ext4")
    show("read-only disk", report)
    assert "read-only" in report["said"]


def test_a_slow_disk_makes_no_duplicates() -> None:
    """300 ms for each sync: slower answers, no resend that became a message, no lost lease."""
    report = run("siege", "slow", "--on", "ext4")
    show("slow disk", report)
    assert report["one_s"] >= 0.3
