"""Each command of the bench runs end to end at a small size and prints what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.workload import BATCH, KINDS, id_maker, values

ROOT = Path(__file__).resolve().parents[2]


def run(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run `python -m bench ... --json` and return its figures."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--json", f"--directory={directory}"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert list(directory.iterdir()) == [], "the bench cleans up"
    figures: dict[str, Any] = json.loads(line)
    return figures


def check_positive(figures: dict[str, Any], *names: str) -> None:
    """Assert that these figures are there and above zero."""
    for name in names:
        assert figures[name] > 0, name


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("ids", KINDS)
def test_pipeline(tmp_path: Path, ids: str) -> None:
    """Both contenders move every message; the ratio is of their speeds."""
    arguments = ["--messages=5500", "--size=20", f"--ids={ids}", "--rounds=1"]
    figures = run(tmp_path, "pipeline", *arguments)
    check_positive(
        figures, "msgs_per_s", "mb_per_s", "floor_mb_per_s", "fdatasync_p50_ms", "naive_msgs_per_s"
    )
    assert figures["ratio"] == pytest.approx(
        figures["msgs_per_s"] / figures["naive_msgs_per_s"], abs=0.01
    )
    assert set(figures["cpu_s"]) == {"producer", "broker", "consumer"}
    assert figures["send_call"] == "send_many"


@pytest.mark.process
@pytest.mark.slow
def test_latency(tmp_path: Path) -> None:
    """Half of the sends are quicker than the 99th percentile, and the floor is measured too."""
    figures = run(tmp_path, "latency", "--messages=20")
    check_positive(figures, "p50_ms", "p99_ms", "floor_ms")
    assert figures["p50_ms"] <= figures["p99_ms"]


@pytest.mark.process
@pytest.mark.slow
def test_retain(tmp_path: Path) -> None:
    """No answer is wrong, and nothing that is retained is lost."""
    figures = run(tmp_path, "retain", "--gigabytes=0.05", "--bound-gb=0.01")
    check_positive(figures, "sent_bytes", "disk_over_bound", "longest_turn_ms", "resent")
    assert figures["wrong_answers"] == figures["lost"] == 0


@pytest.mark.process
@pytest.mark.slow
def test_dedup(tmp_path: Path) -> None:
    """All ids are stored, and each resend is answered with its first offset."""
    figures = run(tmp_path, "dedup", "--ids=5500", "--batches=2")
    check_positive(figures, "ids_per_s_start", "ids_per_s_end", "longest_turn_ms")
    assert figures["ids"] >= 5_500
    assert figures["resent"] > 100
    assert "anon_bytes_per_id" in figures


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("actor", ["consumer", "sink"])
def test_dedup_of_a_consumer(tmp_path: Path, actor: str) -> None:
    """Each message is handled once; those that come again are left out, before and after a restart."""
    figures = run(tmp_path, "dedup", "--ids=40000", f"--actor={actor}")
    check_positive(figures, "ids_per_s_start", "ids_per_s_end", "longest_turn_ms")
    assert figures["ids"] >= 40_000
    assert figures["known"] > 1_000
    assert figures["disk_bytes_per_id"] > 16


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("ids", ["sequence", "explicit"])
def test_recover(tmp_path: Path, ids: str) -> None:
    """A broker that finds the log of a killed one is ready, and the log holds the messages."""
    figures = run(tmp_path, "recover", "--messages=5500", f"--ids={ids}")
    check_positive(figures, "ready_s", "stopped_s")
    assert figures["log_bytes"] > 5_500 * 100


@pytest.mark.process
@pytest.mark.slow
def test_recover_with_damage(tmp_path: Path) -> None:
    """A damaged snapshot is passed over, and the broker says so."""
    figures = run(tmp_path, "recover", "--messages=150000", "--ids=explicit", "--damaged")
    check_positive(figures, "ready_s", "damaged_ready_s", "damaged_snapshots_passed_over")


@pytest.mark.process
@pytest.mark.slow
def test_acks(tmp_path: Path) -> None:
    """Single sends are acknowledged while many ids are stored."""
    figures = run(tmp_path, "acks", "--ids=200000")
    check_positive(figures, "ids_per_s", "acks", "ack_p50_ms", "ack_p99_9_ms", "floor_p50_ms")
    assert figures["ack_p50_ms"] <= figures["ack_p99_9_ms"] <= figures["ack_longest_ms"]


@pytest.mark.process
@pytest.mark.slow
def test_backlog(tmp_path: Path) -> None:
    """A broker without consumers stores on, and its memory is told."""
    figures = run(tmp_path, "backlog", "--seconds=3")
    check_positive(figures, "log_bytes", "anon_early_mb", "anon_late_mb", "stopped_s")


@pytest.mark.parametrize("kind", ["explicit", "uuid"])
def test_made_ids_are_all_different(kind: str) -> None:
    """An id that came twice would make a contender look faster than it is."""
    make = id_maker(kind)
    ids = [one for _ in range(5) for one in make(BATCH)]
    assert len(set(ids)) == len(ids) == 5 * BATCH


def test_values_have_the_size_asked_for() -> None:
    """Every batch holds different values of one size, the same in every run."""
    made = values(37)
    assert set(map(len, made)) == {37}
    assert len(set(made)) == BATCH
    assert made == values(37)
