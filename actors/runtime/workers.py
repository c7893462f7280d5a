"""Processes that compute for this one and end with it, however it ends."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from .process import end_with_parent


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of `workers` processes, which know nothing of this process but their input.

    They are spawned, not forked: a fork of a process with threads may inherit a held lock.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(end_with_parent, parent=os.getpid()),
    )
