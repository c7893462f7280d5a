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
Done = Callable[[], None]


def _give_back() -> None:
    """Let the C library return what it keeps of freed memory: a merge leaves it much, in many holes.

    Elsewhere than under glibc nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def background_pool() -> ThreadPoolExecutor:
    """Its threads start with the first work."""
    sys.setswitchinterval(_SWITCH_S)
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
        self._jobs.append(self._pool.submit(self._run, job))

    def _run(self, job: Job) -> Done:
        try:
            return job(self._stop.is_set)
        finally:
            _give_back()

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
