"""`make demo` as its reader meets it."""

from __future__ import annotations

import os
import re
import signal
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from examples.flights import demo, expected
from oncemq.chaos import Program, wait_until
from tests.process.house import ROOT, START_S

pytestmark = pytest.mark.process


def test_expected_figures_of_january() -> None:
    """The file is the whole of January: these are its figures, counted by other means."""
    totals = expected.totals_of(expected.rows())
    assert sum(entry["flights"] for entry in totals.values()) == 27_004
    assert sum(entry["cancelled"] for entry in totals.values()) == 521
    assert totals["UA"]["flights"] == 4_637
    assert totals["HA"] == {"flights": 31, "delay_minutes": 852, "cancelled": 0}
    assert expected.airlines()["HA"] == "Hawaiian Airlines Inc."


def test_a_difference_is_named() -> None:
    """The comparison names the carrier and both figures, also for one that is missing."""
    assert expected.differences({"UA": 1, "B6": 2}, {"UA": 1, "B6": 2}) == []
    assert expected.differences({"UA": 1, "B6": 2}, {"B6": 3, "ZZ": 4}) == [
        "B6: expected 2, found 3",
        "UA: expected 1, found None",
        "ZZ: expected None, found 4",
    ]


@pytest.mark.parametrize("flaw", ["none", "totals", "cancelled", "log"])
def test_the_verdict_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flaw: str
) -> None:
    """One flight, one cancellation or one message too many: the verdict is "wrong" and says why."""
    printed = StringIO()
    run = demo.Demo(tmp_path, Console(file=printed, width=100))
    states = {"totals": dict(run.totals), "cancelled": dict(run.cancelled)}
    run.stored = {"flights": 27_004, "cancelled": 521}
    if flaw == "totals":
        states["totals"]["UA"] = {**run.totals["UA"], "flights": 4_638}
    if flaw == "cancelled":
        states["cancelled"]["UA"] += 1
    if flaw == "log":
        run.stored["flights"] += 1
    monkeypatch.setattr(run, "_state", states.__getitem__)
    assert run._report() is (flaw == "none")
    assert ("WRONG" in printed.getvalue()) is (flaw != "none")
    assert ("nothing was doubled" in printed.getvalue()) is (flaw == "none")


def test_demo_ends_by_itself_with_exact_totals(tmp_path: Path) -> None:
    """Three kills on the way, the exact table, exit 0, nothing left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = Program("demo", (sys.executable, "-m", "examples.flights.demo"))
    environ = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    with program.start(tmp_path, environ) as running:
        try:
            running.wait(500, 0)
        finally:
            running.send_signal(signal.SIGTERM)
    printed = running.stdout()
    for role in ("producer", "consumer", "broker"):
        match = re.search(rf"killed {role} \(pid \d+\) after ([\d,]+) of 27,004 flights", printed)
        assert match is not None, printed
        assert 0 < int(match[1].replace(",", "")) < 27_004
    assert "nothing was lost, nothing was doubled" in printed
    assert re.search(r"UA United Air Lines Inc\.\W+4,637\W", printed), printed
    assert re.search(r"all\W+27,004\W+[\d,]+\W+521\W", printed), printed
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM on the way: all processes end, the directory goes, exit 1."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = Program("demo", (sys.executable, "-m", "examples.flights.demo"))
    environ = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with program.start(tmp_path, environ) as running:
        wait_until(lambda: "flights totalled" in running.stdout(), START_S, "first progress")
        (directory,) = temporary.iterdir()
        started = {int(path.stem.rpartition("-")[2]) for path in directory.rglob("events/*.jsonl")}
        running.send_signal(number)
        running.wait(START_S, 1)
    assert "interrupted" in running.stdout()
    assert list(temporary.iterdir()) == []
    assert len(started) >= 8  # broker, producer, two consumers, and a supervisor of each
    assert [pid for pid in started if demo.is_alive(pid)] == []


def test_demo_that_is_stopped_while_it_starts_a_process(tmp_path: Path) -> None:
    """Ctrl-C in a hook around a fork, where Python drops exceptions, is not lost either."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    code = (
        "import os, signal, sys\n"
        "os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))\n"
        "from examples.flights.demo import main\n"
        "sys.exit(main())\n"
    )
    program = Program("demo", (sys.executable, "-c", code))
    environ = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with program.start(tmp_path, environ) as running:
        running.wait(START_S, 1)
    assert running.stdout() == "interrupted\n"
    assert "Traceback" not in running.stderr()
    assert list(temporary.iterdir()) == []
