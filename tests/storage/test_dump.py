"""`dump`: every item of a log with a verdict, also of a damaged one, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from oncemq.cli.dump import command
from oncemq.storage.inspection import inspect
from oncemq.storage.memory import MemoryDisk
from tests.storage.loghelp import DIRECTORY, flip, generation_path, open_log, put, segment_path

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "v1"


def dump(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_whole_log_is_dumped_item_by_item() -> None:
    """Generation, segments, records, commit frames, snapshots, verdict: one JSON object each."""
    result = dump(GOLDEN / "clean", "--json")
    items = [json.loads(line) for line in result.stdout.splitlines()]

    assert result.exit_code == 0
    kinds = {item["kind"] for item in items}
    assert kinds == {"generation", "segment", "record", "commit", "snapshot", "verdict"}
    assert items[0]["state"] == "complete"
    assert items[-1]["ok"] is True
    assert all(item.get("verdict", "ok") == "ok" for item in items)


def test_people_get_lines_and_may_leave_the_records_out() -> None:
    """Without --json each item is a line; --no-records keeps what is not a good frame."""
    every = dump(GOLDEN / "clean").stdout.splitlines()
    few = dump(GOLDEN / "clean", "--no-records").stdout.splitlines()

    assert any(line.startswith("    record ") for line in every)
    assert not any("record " in line for line in few)
    assert few[-1].startswith("verdict  ok=True")


def test_a_torn_tail_is_shown_and_is_no_failure() -> None:
    """The verdict counts the torn bytes; such a log opens."""
    result = dump(GOLDEN / "torn", "--json", "--no-records")
    items = [json.loads(line) for line in result.stdout.splitlines()]

    assert result.exit_code == 0
    assert [item["kind"] for item in items if item["kind"] == "bad"] == ["bad"]
    assert items[-1]["torn_bytes"] > 0


def test_a_damaged_log_exits_1_and_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    """Damage names its place; the rest is still printed."""
    shutil.copytree(GOLDEN / "clean", tmp_path / "log")
    segment = next((tmp_path / "log").rglob("*.log"))
    data = bytearray(segment.read_bytes())
    data[-100] ^= 1
    segment.write_bytes(data)
    result = dump(tmp_path / "log", "--json")
    last = json.loads(result.stdout.splitlines()[-1])

    assert result.exit_code == 1
    assert last["ok"] is False
    assert "at byte" in last["reason"]


def test_a_directory_without_a_log_is_wrong_usage(tmp_path: Path) -> None:
    """The status tells a wrong path from a damaged log."""
    result = dump(tmp_path)
    assert (result.exit_code, "holds no log" in result.stderr) == (2, True)


def test_unfinished_and_damaged_generations_are_told_apart() -> None:
    """Without a manifest: unfinished; with a bad one: damaged. Segments are shown in both."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    disk.make_directory(f"{DIRECTORY}/gen-00000000000000000009")
    flip(disk, f"{generation_path(log)}/MANIFEST", 60)
    items = list(inspect(disk, DIRECTORY))

    assert [i["state"] for i in items if i["kind"] == "generation"] == ["damaged", "unfinished"]
    assert [i["verdict"] for i in items if i["kind"] == "record"] == ["ok"]
    assert [i["kind"] for i in items if i["kind"] == "reserved"] == ["reserved"]
    assert items[-1]["ok"] is False


@pytest.mark.parametrize(
    ("offset", "kind", "verdict"),
    [
        (20, "segment", "checksum of the segment header"),
        (64 + 25, "record", "checksum of a record body"),
    ],
)
def test_each_damaged_item_carries_its_own_verdict(offset: int, kind: str, verdict: str) -> None:
    """A flipped byte is shown at the item that it damages."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    flip(disk, segment_path(log), offset)
    items = [item for item in inspect(disk, DIRECTORY) if item["kind"] == kind]
    assert verdict in items[0]["verdict"]


def test_a_damaged_snapshot_carries_its_verdict() -> None:
    """Snapshots are checked part by part."""
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"one")
    info = log.write_snapshot(log.durable_end, {"a": b"x"})
    flip(disk, f"{generation_path(log)}/{info.parts[0].file}", 0)
    items = list(inspect(disk, DIRECTORY))
    assert "checksum of a part" in items[-2]["verdict"]
    assert items[-1]["ok"] is True
    assert len(items[-1]["snapshot_damage"]) == 1


def test_a_directory_that_is_missing_holds_no_log() -> None:
    """The library call answers with a verdict, not with a traceback."""
    (item,) = inspect(MemoryDisk(), DIRECTORY)
    assert (item["kind"], item["ok"]) == ("verdict", False)
