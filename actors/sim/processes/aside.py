"""A program that waits in the middle of a call, in a world with one thread: it runs aside.

What runs aside has a thread of its own, and one of the two threads always stands still: `go_on`
lets it run until it waits again, `wait` (called by it) hands back. So the order of all that happens
is as if there were one thread, and a seed is one run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..disk.disk import SimulatedCrash


class Aside:
    """One such program, from its first `go_on` to its end."""

    def __init__(self, work: Callable[[], None]) -> None:
        """`work` is run by the first `go_on`."""
        self._work = work
        self._mine = threading.Semaphore(0)  # it may run
        self._theirs = threading.Semaphore(0)  # the world may go on
        self._killed = False
        self._error: BaseException | None = None
        self.over = False
        self._thread = threading.Thread(target=self._run, name="aside", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self._killed:
                self._work()
        except BaseException as error:  # noqa: BLE001 - raised by `go_on`, in the world's thread
            self._error = error
        self.over = True
        self._theirs.release()

    def go_on(self) -> None:
        """Let it run until it waits or ends. Raises what it ended with."""
        assert not self.over, "what is over does not go on"
        self._mine.release()
        self._theirs.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Called by the program: let the world go on until the next `go_on`.

        Raises SimulatedCrash if it is not to go on any more.
        """
        self._theirs.release()
        self._mine.acquire()
        if self._killed:
            raise SimulatedCrash("killed while it waited")

    def kill(self) -> None:
        """Must not be called by the work itself."""
        if not self.over:
            self._killed = True
            self._mine.release()
            self._theirs.acquire()
        self._thread.join()
