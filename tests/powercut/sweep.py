"""A power cut before each storage system call of a log's life, on a real file system.

    unshare --mount python -m tests.powercut.sweep --on xfs [--every N --first I] [--forget rename:.snapshot]

For each kind of call and each k: a process lives the story and is killed (SIGKILL) at its k-th such
call, the power goes, the log is recovered and compared with what was promised; the power goes
again, and what recovery showed must still be there, and the log must work on. The last line of
stdout is a JSON object with the counts. Exit 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from tests.powercut.filesystems import KINDS, Mounted, file_system
from tests.powercut.scenario import OsWorld, read_promise, teller
from tests.powercut.strace import KILL_POINTS, Strace
from tests.storage.crash_log import LogCase, Promise

POINTS_MAX = 1_000  # calls of one kind in one life; the story has far fewer
BROKEN_SHOWN_MAX = 5


@dataclass
class Report:
    """What a sweep did and found."""

    points: dict[str, int] = field(default_factory=dict)  # calls of one life
    kills: dict[str, int] = field(default_factory=dict)  # of them, how many were tried
    power_cuts: int = 0
    promised: int = 0  # cuts at which something had been promised
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Sweep:
    """All cut points of one story on one file system."""

    def __init__(self, mounted: Mounted, case: LogCase, outside: Path, forget: str) -> None:
        self.mounted = mounted
        self.case = case
        self.outside = outside  # a directory that loses no power
        self.forget = forget
        self.report = Report()
        self._runs = 0

    def run(self, calls: tuple[str, ...], first: int, every: int, broken_max: int) -> None:
        """Cut at every `every`-th call of each kind; one more is no kill: the story is over."""
        for call in calls:
            points = self._points(call)
            assert points, f"the story has no call of {call}"
            self.report.points[call] = len(points)
            self.report.kills[call] = 0
            for k in points[first % min(every, len(points)) :: every]:
                assert self._cut(call, k), f"no kill at {call} {k} of {len(points)}"
                self.report.kills[call] += 1
                if len(self.report.broken) >= broken_max:
                    return
            assert not self._cut(call, POINTS_MAX), f"killed at {call} {POINTS_MAX}"

    def _points(self, call: str) -> list[int]:
        """Live the story to its end and return the numbers of the calls that change something."""
        directory = self.mounted.fresh_directory(f"{call}-all")
        assert not self._live(
            directory, self.outside / "told", f"{call}:signal=SIGKILL:when={POINTS_MAX}", call
        )
        shutil.rmtree(directory)
        lines = (self.outside / "calls").read_text().splitlines()
        seen = [line for line in lines if f" {call}(" in line]
        changing = [number for number, line in enumerate(seen, 1) if _changes(line, call)]
        return changing

    def _cut(self, call: str, k: int) -> bool:
        """Kill at the k-th `call`, cut the power and check; False if the story came to its end."""
        self._runs += 1
        name = f"{call}-{k}"
        directory = self.mounted.fresh_directory(name)
        told = self.outside / "told"
        killed = self._live(directory, told, f"{call}:signal=SIGKILL:when={k}", call)
        promised = read_promise(told, self.case)
        self.report.promised += promised.durable_end > 0
        self._check(directory, promised, name)
        shutil.rmtree(directory)
        return killed

    def _live(self, directory: Path, told: Path, inject: str, call: str) -> bool:
        """Live the story in a child that strace watches; say whether it was killed."""
        go_read, go_write = os.pipe()
        # Emptied here: a child that is killed at its first call must not leave what the last one told.
        tells, errors = (
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for path in (told, self.outside / "child")
        )
        pid = os.fork()
        if pid == 0:
            self._child(directory, tells, errors, go_read)
        for descriptor in (go_read, tells, errors):
            os.close(descriptor)
        try:
            with Strace(pid, call, inject, self.outside / "calls") as strace:
                os.write(go_write, b"g")
                _, status = os.waitpid(pid, 0)
                strace.wait()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(go_write)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"ended by signal {os.WTERMSIG(status)}"
            return True
        assert os.WEXITSTATUS(status) == 0, (self.outside / "child").read_text()
        return False

    def _child(self, directory: Path, tells: int, errors: int, go: int) -> None:
        """Never returns."""
        code = 1
        try:
            os.chdir(directory)
            os.read(go, 1)
            try:
                self.case.run(OsWorld(self.forget), teller(tells))  # type: ignore[arg-type]
                code = 0
            except Exception:
                os.write(errors, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def _check(self, directory: Path, promised: Promise, name: str) -> None:
        """Recover after one cut and work on after a second one."""
        try:
            self.mounted.cut_power()
            shown = self._in(directory, lambda world: self.case.recover(world, promised))
            self.mounted.cut_power()
            self._in(directory, lambda world: self.case.check(world, shown))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.report.broken.append(
                f"{name}: {type(error).__name__}: {error} ({last.name}:{last.lineno})"
            )

    @staticmethod
    def _in(directory: Path, work):  # type: ignore[no-untyped-def]
        world = OsWorld()
        before = os.getcwd()
        os.chdir(directory)
        try:
            return work(world)
        finally:
            world.end()
            os.chdir(before)


def _changes(line: str, call: str) -> bool:
    """An openat that makes no file leaves the disk as the call before it did."""
    return call != "openat" or "O_CREAT" in line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=sorted(KINDS), required=True)
    parser.add_argument("--calls", default=",".join(KILL_POINTS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--ledger", action="store_true")
    parser.add_argument("--forget", default="")
    parser.add_argument("--broken-max", type=int, default=BROKEN_SHOWN_MAX)
    asked = parser.parse_args()
    started = time.monotonic()
    with file_system(asked.on) as mounted:
        outside = mounted.path.parent
        sweep = Sweep(mounted, LogCase(ledger=asked.ledger), outside, asked.forget)
        sweep.run(tuple(asked.calls.split(",")), asked.first, asked.every, asked.broken_max)
        report = sweep.report
        report.power_cuts = mounted.power_cuts
    report.seconds = round(time.monotonic() - started, 1)
    print(json.dumps(vars(report)))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
