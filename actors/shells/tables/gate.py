"""One writer at a time among the consumers of this process that share a SQLite file.

SQLite has one writer. A handler may hold that place for as long as it runs, and its commit is made
by the I/O thread; so the I/O thread must never wait for the place in SQLite's own way, or nobody
would be there to make the commit that frees it. Here it asks, and comes again in a later turn.
It goes before handlers that wait, or they would pass the place on among themselves.
"""

from __future__ import annotations

import threading
import time
from weakref import WeakValueDictionary


class Gate:
    """Who may write. Any thread may call it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._owner: object | None = None
        self._wanted: set[int] = set()  # ids of those of the I/O thread that will ask again

    def wait(self, who: object, timeout_s: float) -> bool:
        """For the thread of handlers. False: the gate did not become free in time."""
        until = time.monotonic() + timeout_s
        with self._condition:
            while self._owner is not who and (self._owner is not None or self._wanted):
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._condition.wait(left)
            self._owner = who
            return True

    def take(self, who: object) -> bool:
        """For the I/O thread. False notes the wish, and handlers wait until it is met."""
        with self._condition:
            if self._owner not in {None, who}:
                self._wanted.add(id(who))
                return False
            self._wanted.discard(id(who))
            self._owner = who
            self._condition.notify_all()
            return True

    def free(self, who: object) -> None:
        with self._condition:
            self._wanted.discard(id(who))
            if self._owner is who:
                self._owner = None
            self._condition.notify_all()


_gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()
_lock = threading.Lock()


def gate_of(path: str) -> Gate:
    """Keep the gate as long as it is used."""
    with _lock:
        gate = _gates.get(path)
        if gate is None:
            gate = _gates[path] = Gate()
        return gate
