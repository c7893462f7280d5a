"""Two processes on one disk, switched at chosen calls: every interleaving with two switches."""

from __future__ import annotations

import threading
from collections.abc import Callable

from oncemq.sim.disk.disk import SimDisk

WAIT_S = 300


class Turns:
    """Runs `first` up to its call `i`, then `second` up to its call `j`, then `first` to its end,
    then `second` to its end. One of the two threads runs at any time, so nothing is by chance.
    """

    def __init__(self, disk: SimDisk, i: int, j: int) -> None:
        self._disk = disk
        self._switch_at = (i, j)
        self._may_run = (threading.Event(), threading.Event())
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._done = [False, False]
        self.calls = [0, 0]  # of each

    def run(self, first: Callable[[], None], second: Callable[[], None]) -> None:
        """Run both to their ends. Raises what either of them raises."""
        self._threads = [
            threading.Thread(target=self._body, args=(me, work), daemon=True)
            for me, work in enumerate((first, second))
        ]
        self._disk.observer = self._look
        for thread in self._threads:
            thread.start()
        self._may_run[0].set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the two processes wait for each other"
        self._disk.observer = None
        if self._failures:
            raise self._failures[0]

    def _body(self, me: int, work: Callable[[], None]) -> None:
        self._may_run[me].wait(WAIT_S)
        try:
            work()
        except BaseException as error:
            self._failures.append(error)
        self._done[me] = True
        self._may_run[1 - me].set()

    def _look(self, _kind: str, _path: str) -> None:
        me = self._threads.index(threading.current_thread())
        self.calls[me] += 1
        if self.calls[me] == self._switch_at[me] and not self._done[1 - me]:
            self._may_run[me].clear()
            self._may_run[1 - me].set()
            self._may_run[me].wait(WAIT_S)


def every_switch(run: Callable[[int, int], tuple[int, int]], stride: int = 1) -> int:
    """Run with every pair (i, j) of switches (one in `stride`) that both processes reach; `run`
    returns the calls of both. Returns how many interleavings there were.
    """
    count = turn = 0
    i, reach_of_first = 1, 1
    while i <= reach_of_first:
        j, reach_of_second = 1, 1
        while j <= reach_of_second:
            turn += 1
            if j == 1 or turn % stride == 0:
                calls_of_first, reach_of_second = run(i, j)
                reach_of_first = max(reach_of_first, calls_of_first)
                count += 1
            j += 1
        i += 1
    return count
