"""Keep one child process running: restart it with back-off, and know when to give up.

The supervisor does not restart a child after exit 0 (done), 2 (wrong usage: it would fail the same
way), 3 (fenced: a newer owner exists, and a restart would only fence that one in turn) and 4 (done, but
something waits for a person, which a restart does not do). Any other end is a crash. After `limit` crashes within `window_s` the supervisor gives up and exits with the
child's code, so that its own supervisor sees it.

The child has a process group of its own. A Ctrl-C, or a runner that signals the whole group, then
reaches it once, through the supervisor, and not twice: a second stop signal means "exit at once".
If the supervisor itself is killed, the kernel sends the child SIGTERM (Linux).
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ..backoff import backoff_ms
from .process import end_with_parent, heeded

FINAL_EXIT_CODES = frozenset({0, 2, 3, 4})
_FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
}


class Events(Protocol):
    """Where events go (`EventLog`)."""

    def emit(self, event: str, **fields: Any) -> None: ...


@dataclass(slots=True)
class RestartPolicy:
    """Decide after each crash: pause how long, or give up. Pure but for its random source."""

    limit: int = 10  # crashes within the window that are too many
    window_s: float = 60.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    rng: random.Random = field(default_factory=random.Random)
    _crashes_s: deque[float] = field(default_factory=deque)

    @property
    def failures(self) -> int:
        """Crashes within the window."""
        return len(self._crashes_s)

    def after_crash(self, now_s: float) -> float | None:
        """Return the pause in seconds before the next start, or None to give up.

        The pause doubles with each crash in the window, up to its bound; jitter takes up to half
        of it off, so that processes that died together do not all come back at one moment.
        """
        self._crashes_s.append(now_s)
        while self._crashes_s[0] <= now_s - self.window_s:
            self._crashes_s.popleft()
        if self.failures >= self.limit:
            return None
        pause_ms = backoff_ms(
            self.failures - 1,
            jitter=self.rng.random(),
            first_ms=1000 * self.backoff_first_s,
            max_ms=1000 * self.backoff_max_s,
        )
        return pause_ms / 1000


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return str(number)


class Supervisor:
    """Run `command` until it ends for good. At most one in a process, in its main thread."""

    def __init__(
        self,
        command: Sequence[str],
        events: Events,
        policy: RestartPolicy | None = None,
        *,
        stay: bool = False,
    ) -> None:
        """Nothing starts before `run`. With `stay`, `run` outlasts a child that is done.

        That is for runners which end all their processes as soon as one of them ends.
        """
        self._command = list(command)
        self._events = events
        self._policy = policy or RestartPolicy()
        self._stay = stay
        self._child: subprocess.Popen[bytes] | None = None
        self._stop_seen = False

    def run(self) -> int:
        """Run the child, again and again. Returns the exit status of the last one.

        Raises OSError when the command cannot be started at all.
        """
        # Signals arrive as bytes on a socket: no handler ever runs beside this loop.
        wake, signalled = socket.socketpair()
        wake.setblocking(False)
        signalled.setblocking(False)
        numbers = (*heeded(_FORWARDED), signal.SIGCHLD)
        before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        before_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            return self._run(signalled)
        finally:
            signal.set_wakeup_fd(before_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            wake.close()
            signalled.close()

    def _run(self, signalled: socket.socket) -> int:
        attempt = 0
        while True:
            attempt += 1
            returncode = self._run_once(attempt, signalled)
            status = 128 - returncode if returncode < 0 else returncode  # as a shell shows it
            if self._stay and status in {0, 4} and not self._stopping():
                self._events.emit("supervise.staying")
                while not self._stopping():
                    self._listen(signalled, None)
            if self._stopping() or status in FINAL_EXIT_CODES:
                return status
            pause_s = self._policy.after_crash(time.monotonic())
            failures = self._policy.failures
            if pause_s is None:
                reason = f"{failures} crashes in {self._policy.window_s:g} s"
                self._events.emit(
                    "supervise.gave_up", exit_code=status, reason=reason, failures=failures
                )
                return status
            self._events.emit("supervise.restarting", delay_s=round(pause_s, 3), failures=failures)
            until = time.monotonic() + pause_s
            while not self._stopping() and (left := until - time.monotonic()) > 0:
                self._listen(signalled, left)
            if self._stopping():
                return status

    def _run_once(self, attempt: int, signalled: socket.socket) -> int:
        started = time.monotonic()
        # process_group keeps stop signals from reaching the child twice; see above.
        self._child = child = subprocess.Popen(  # noqa: S603
            self._command,
            process_group=0,
            # The child must not outlive a killed supervisor.
            preexec_fn=partial(end_with_parent, signal.SIGTERM, parent=os.getpid()),  # noqa: PLW1509
        )
        self._events.emit(
            "supervise.started", child_pid=child.pid, command=self._command, attempt=attempt
        )
        if self._stopping():  # the signal came before there was a child to send it to
            child.send_signal(signal.SIGTERM)
        while (returncode := child.poll()) is None:
            self._listen(signalled, None)
        self._child = None
        self._events.emit(
            "supervise.exited",
            child_pid=child.pid,
            exit_code=returncode if returncode >= 0 else None,
            signal=_signal_name(-returncode) if returncode < 0 else None,
            ran_s=round(time.monotonic() - started, 3),
        )
        return returncode

    def _stopping(self) -> bool:
        return self._stop_seen

    def _listen(self, signalled: socket.socket, timeout_s: float | None) -> None:
        if not select.select([signalled], [], [], timeout_s)[0]:
            return
        for number in signalled.recv(4096):
            if number in _FORWARDED:
                self._stop_seen = True
                if self._child is not None:
                    self._child.send_signal(_FORWARDED[signal.Signals(number)])
