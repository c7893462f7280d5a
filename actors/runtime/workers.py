"""Processes that compute for this one and end with it, however it ends."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from .process import end_with_parent


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of `workers` processes that share nothing with this one but what they are given."""
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(end_with_parent, parent=os.getpid()),
    )
