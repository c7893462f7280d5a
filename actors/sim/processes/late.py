"""Work beside the turn of a simulated process."""

from __future__ import annotations

import random
from collections.abc import Callable

from ...ports import Job

AT_ONCE = 0.4  # share of the work beside the turn that is done by its end


class Late:
    """`ports.Background`: work is done in the turns that follow, or never."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self._jobs: list[Job] = []

    def start(self, job: Job) -> None:
        self._jobs.append(job)

    def finished(self) -> list[Callable[[], None]]:
        """Any job may overtake any other, as threads do."""
        due = [job for job in self._jobs if self._rng.random() < AT_ONCE]
        self._jobs = [job for job in self._jobs if job not in due]
        self._rng.shuffle(due)
        return [job(lambda: False) for job in due]

    def settle(self, *, stop: bool = True) -> list[Callable[[], None]]:
        jobs, self._jobs = self._jobs, []
        early = stop and self._rng.random() < AT_ONCE
        return [job(lambda: early) for job in jobs]
