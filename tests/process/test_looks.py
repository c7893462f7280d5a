"""Looks at the files of real processes under load, kills, freezes and takeovers: none cries."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from oncemq.chaos import Running
from oncemq.cli.verify import verify as verify_command
from oncemq.proof.checks.evidence import Evidence
from oncemq.proof.checks.verdict import run_checks
from oncemq.proof.parse.files import OsFiles
from oncemq.proof.parse.log import LogMoved
from oncemq.proof.verify.verify import Report, verify
from tests.process.house import START_S
from tests.process.test_chaos_command import Shop

pytestmark = pytest.mark.process

COMMAND_EVERY = 5  # looks: that one is made by `oncemq verify`


class Looker:
    """Looks again and again while a run goes on; each look is compared with the one before."""

    def __init__(self, directory: Path) -> None:
        self.data, self.state = str(directory / "broker"), str(directory / "consumers")
        self.looks = 0
        self.moved = 0  # looks that ended with log_moved: they say nothing
        self.accepted = 0
        self._earlier: list[Report] = []

    def look(self) -> None:
        self.looks += 1
        if self.looks % COMMAND_EVERY == 0:
            self._command()
            return
        try:
            report = verify(OsFiles(), self.data, self.state, keep_max=1_000_000)
        except LogMoved:
            self.moved += 1
            return
        verdict = run_checks(Evidence(report=report, earlier=self._earlier))
        assert verdict.ok, verdict.found.kept
        self._earlier = [report]
        self.accepted = report.topics["orders"]["accepted"]

    def _command(self) -> None:
        argv = ["--data", self.data, "--state", self.state, "--json"]
        ended = CliRunner().invoke(verify_command, argv)
        if isinstance(ended.exception, LogMoved):
            self.moved += 1
            return
        assert ended.exit_code == 0, (ended.output, ended.exception)
        assert json.loads(ended.stdout)["ok"]


def wait_for_work(running: Running, directory: Path) -> None:
    """Wait until there are a log and ledgers to look at."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert running.exit_code is None, running.told()
        logs = ("broker/gen-*/MANIFEST", "consumers/*/*/*/gen-*/MANIFEST")  # in any order
        if all(list(directory.glob(log)) for log in logs):
            return
        time.sleep(0.1)
    raise AssertionError(running.told())


def look_on(tmp_path: Path, looks: int, seed: int, minutes: float) -> Looker:
    """Look `looks` times at one run that would go on for `minutes`, and stop it then."""
    shop = Shop(tmp_path)
    options = (f"--seed={seed}", "--id-field=id", "--pause", f"--minutes={minutes}")
    with shop.chaos(*options, f"--keep={shop.kept}") as running:
        wait_for_work(running, shop.kept)
        looker = Looker(shop.kept)
        while looker.looks < looks:
            assert running.exit_code is None, f"after {looker.looks} looks\n{running.told()}"
            looker.look()
        running.stop(START_S, 130)
    assert looker.accepted > 0
    return looker


@pytest.mark.timeout(600)
def test_twenty_looks(tmp_path: Path, seed: int) -> None:
    """The quick one, of the ordinary suite."""
    looker = look_on(tmp_path, 20, seed, minutes=9)
    assert looker.moved <= 2, "most looks saw nothing"


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("run", range(4))
def test_two_hundred_looks(tmp_path: Path, seed: int, run: int) -> None:
    """Fifty looks at each of four runs."""
    looker = look_on(tmp_path, 50, 10 * seed + run, minutes=25)
    assert looker.moved <= 5, "too many looks saw nothing"
