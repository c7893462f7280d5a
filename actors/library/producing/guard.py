"""The lock of a producer, which tells a thread that it meets itself.

A signal handler, a finalizer and a logging handler run in the middle of any code of their thread, also
while that thread holds this lock. A `send` of theirs must neither wait for the lock, which would be for
ever, nor touch what is half done: `nested` says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

from .parcel import Parcel


class Guard:
    """A lock with a condition. One thread may take it again inside of itself.

    What it leaves in `handed` there is taken before the lock is let go.
    """

    def __init__(self, take: Callable[[Parcel], None]) -> None:
        """`take` is called with the lock held, and not nested."""
        self.handed: deque[Parcel] = deque()  # append and popleft are atomic
        self._take = take
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._depth = 0  # changed by the holder alone

    @property
    def nested(self) -> bool:
        """Whether the holder had the lock already, further out. Ask with the lock held."""
        return self._depth > 1

    def wait(self, timeout: float) -> None:
        """Let go of the lock until `notify_all`, at most `timeout` seconds. Not where nested."""
        self.take_handed()
        self._depth = 0
        try:
            self._room.wait(timeout)
        finally:
            self._depth = 1

    def notify_all(self) -> None:
        """Wake all that wait. With the lock held."""
        self._room.notify_all()

    def take_handed(self) -> None:
        """Take what was handed over. With the lock held; nested it is left for later."""
        while self._depth == 1 and self.handed:
            self._take(self.handed.popleft())

    def __enter__(self) -> Guard:
        self._lock.acquire()
        self._depth += 1
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self.take_handed()
        finally:
            self._depth -= 1
            self._lock.release()
