"""Work beside the turn, in two threads of their own: one waits for the disk while one computes."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from ..ports import Job

# How long the turn waits for a thread that computes in Python, instead of 5 ms: it gives way at each
# call of numpy, and takes its turn again after this.
_SWITCH_S = 0.0005
_THREADS = 2  # a large merge must not keep a small file waiting
_M_ARENA_MAX = -8  # of malloc.h
Done = Callable[[], None]


def _one_arena() -> None:
    """Let all threads take memory from one heap: the turn fills the holes that a merge leaves.

    With a heap for each thread, a merge keeps many megabytes that nothing else can use. To give
    them back (malloc_trim) holds the locks of all heaps: turns of 15 ms were measured.
    Elsewhere than under glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def background_pool() -> ThreadPoolExecutor:
    """Its threads start with the first work."""
    sys.setswitchinterval(_SWITCH_S)
    _one_arena()
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="oncemq-background")


class BackgroundThreads:
    """`ports.Background` for one actor of a process. `close` it when the actor is closed."""

    def __init__(self, pool: ThreadPoolExecutor | None = None) -> None:
        """`pool`: threads that several actors share; its owner shuts it down."""
        self._owns_pool = pool is None
        self._pool = background_pool() if pool is None else pool
        self._jobs: list[Future[Done]] = []
        self._stop = threading.Event()

    def start(self, job: Job) -> None:
        self._jobs.append(self._pool.submit(job, self._stop.is_set))

    def finished(self) -> list[Done]:
        if not self._jobs:
            return []
        done = [job for job in self._jobs if job.done()]
        self._jobs = [job for job in self._jobs if job not in done]
        return [job.result() for job in done]

    def settle(self, *, stop: bool = True) -> list[Done]:
        jobs, self._jobs = self._jobs, []
        if stop:
            self._stop.set()
        try:
            return [job.result() for job in jobs]
        finally:
            self._stop.clear()

    def close(self) -> None:
        """Let jobs stop early and wait for them; what they made or raised is dropped."""
        self._stop.set()
        if self._owns_pool:
            self._pool.shutdown(cancel_futures=True)
        wait([job for job in self._jobs if not job.cancel()])
