"""Kills and errors at the k-th system call of a process, by plain strace.

Not with --seccomp-bpf: a signal that is injected that way never arrives, and nothing says so.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Self

ATTACH_S = 120.0
KILL_POINTS = (
    "fsync",
    "fdatasync",
    "pwrite64",
    "openat",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "ftruncate",
    "fallocate",
)


class Strace:
    """strace on a living process; `inject` as for its option of that name, without the call."""

    def __init__(self, pid: int, calls: str, inject: str, log: Path) -> None:
        """Return when every following system call of `pid` is seen."""
        self._log = log
        self._errors = log.with_suffix(".err")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    "strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none",
                    "-e", f"inject={inject}", "-p", str(pid),
                ],
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )  # fmt: skip
        deadline = time.monotonic() + ATTACH_S
        # It says so after the process was told to stop at its next step.
        while b"attached" not in self._errors.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise RuntimeError(f"strace does not attach: {self._errors.read_text()}")
            time.sleep(0.001)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def lines(self) -> list[str]:
        """Return what it saw, one call a line. Call `wait` before."""
        return self._log.read_text("utf-8", "replace").splitlines()

    def wait(self) -> None:
        """Wait until it has ended with the process that it watches."""
        self._process.wait(ATTACH_S)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(ATTACH_S)
