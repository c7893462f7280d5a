"""The threads of plain handlers that run at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class HandlerThreads:
    """One pool for each width, made at first use and kept, so that thread-local things live on.

    Belongs to the thread that carries calls out.
    """

    def __init__(self) -> None:
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def pool(self, width: int) -> ThreadPoolExecutor:
        if width not in self._pools:
            self._pools[width] = ThreadPoolExecutor(width, thread_name_prefix="oncemq-handler")
        return self._pools[width]

    def close(self) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.shutdown()
