"""`oncemq sim` over many seeds: its workers do not outlive it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from oncemq.chaos import wait_until
from tests.process.house import START_S, House

pytestmark = pytest.mark.process


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")  # whichever thread has started them
    return [int(child) for path in tasks for child in path.read_text().split()]


def at_work(pid: int) -> list[int]:
    """All of them, once there are two workers beside what keeps count of their semaphores."""
    found = children(pid)
    return found if len(found) >= 3 else []


def working(pid: int) -> bool:
    """Whether a process has not ended; one that nobody waits for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a kill ends children on Linux")
def test_workers_end_with_a_swarm_that_is_killed(house: House) -> None:
    """Nobody is left behind who computes seeds for nobody."""
    swarm = house.start("sim", "-m", "oncemq", "sim", "--seeds=100000", "--jobs=2")
    workers = wait_until(lambda: at_work(swarm.pid), START_S, "both workers")
    swarm.kill()
    assert wait_until(lambda: not any(map(working, workers)), 20, f"the end of {workers}")
