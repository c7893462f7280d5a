"""Real processes with a name, a directory for what they print, and an end that is never forgotten.

A `Program` says how something is started; a `Running` is one start of it. Everything that was
started is ended by its own pid, also when it is frozen, so nothing outlives a test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..runtime.process import end_with_parent

KILLED = -signal.SIGKILL
CRASHED = 137  # how a process ends at a crash point: without any clean-up
FENCED = 3
POLL_S = 0.005
TAIL_BYTES = 4000


class ProgramFailed(AssertionError):
    """A program ended, or went on, against expectation. The text shows the end of its output."""


def free_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def wait_until(holds: Any, timeout_s: float, what: str) -> Any:
    """Return the value of `holds()` once it is true; raise ProgramFailed after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise ProgramFailed(f"{what}: not within {timeout_s:g} s")
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Program:
    """How to start something. `name` names its output files and the lines that tell of it."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)  # added to the environment given

    def start(self, directory: Path, environ: Mapping[str, str], *more: str) -> Running:
        """Start it with `more` arguments; what it prints goes to files in `directory`."""
        return Running(self, directory, {**environ, **self.environ}, more)


class Running:
    """One process, from its start to its end. Use it as a context manager, or call `end()`."""

    def __init__(
        self,
        program: Program,
        directory: Path,
        environ: Mapping[str, str],
        more: tuple[str, ...] = (),
    ) -> None:
        self.program = program
        self.crash_at = environ.get("ONCEMQ_CRASH_AT", "")
        self.argv = [*program.argv, *more]
        self.started_s = time.monotonic()
        count = len(list(directory.glob(f"{program.name}-*.out")))
        self.stdout_path = directory / f"{program.name}-{count:04d}.out"
        self.stderr_path = self.stdout_path.with_suffix(".err")
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            self._process = subprocess.Popen(  # noqa: S603
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environ),
                start_new_session=True,  # Ctrl-C reaches the caller, and the caller decides
                preexec_fn=end_with_parent,  # noqa: PLW1509 - a test run has one thread
            )
        self.pid = self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs."""
        return self._process.poll()

    @property
    def was_killed(self) -> bool:
        """Whether it ended without any clean-up: by SIGKILL, or at a crash point."""
        return self.exit_code in {KILLED, CRASHED}

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_s

    def send_signal(self, number: signal.Signals) -> bool:
        """Return whether it still ran."""
        if self._process.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def kill(self) -> int:
        """End it by SIGKILL and return the exit code, which may be that of an earlier end."""
        self.send_signal(signal.SIGKILL)
        return self._process.wait()

    def freeze(self) -> bool:
        return self.send_signal(signal.SIGSTOP)

    def thaw(self) -> bool:
        return self.send_signal(signal.SIGCONT)

    def wait(self, timeout_s: float, *expected: int) -> int:
        """Wait for the end. Raises ProgramFailed after the time, or if the exit code is another.

        Without `expected` any exit code will do.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{self} still runs after {timeout_s:g} s\n{self.told()}") from None
        if expected and code not in expected:
            raise ProgramFailed(f"{self} ended with {code}, not {expected}\n{self.told()}")
        return code

    def stop(self, timeout_s: float = 15.0, *expected: int) -> int:
        """Ask it to end (SIGTERM) and wait; any exit code will do unless some are expected."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout_s, *expected)

    def end(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.wait()

    def stdout(self) -> str:
        return self.stdout_path.read_text("utf-8", "replace")

    def stderr(self) -> str:
        return self.stderr_path.read_text("utf-8", "replace")

    def summary(self) -> dict[str, Any]:
        """The object is on the last line of stdout. Raises ProgramFailed without one."""
        lines = self.stdout().splitlines()
        try:
            summary = json.loads(lines[-1])
        except (IndexError, json.JSONDecodeError):
            summary = None
        if not isinstance(summary, dict):
            raise ProgramFailed(f"{self} printed no summary\n{self.told()}")
        return summary

    def told(self) -> str:
        """Return the end of its output, for a person who looks for the reason of a failure."""
        return (
            f"$ {' '.join(self.argv)}\n--- stdout\n{self.stdout()[-TAIL_BYTES:]}\n"
            f"--- stderr\n{self.stderr()[-TAIL_BYTES:]}"
        )

    def __str__(self) -> str:
        return f"{self.program.name} (pid {self.pid})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.end()
