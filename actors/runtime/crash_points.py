"""Named places where a process kills itself on demand, for tests of what a crash leaves behind.

With `ONCEMQ_CRASH_AT=name:n` in the environment the process ends at its n-th visit of the place
`name`, as if by SIGKILL: nothing is flushed, no handler runs. Without the variable a process uses
the plain classes, and the places cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..storage.log import FencedLog, StoredRecord
from .os_disk import OsDisk
from .settings import BadSetting

VARIABLE = "ONCEMQ_CRASH_AT"
EXIT_STATUS = 137  # what a shell reports for SIGKILL

AFTER_APPEND_BEFORE_SYNC = "after_append_before_sync"
AFTER_SYNC_BEFORE_REPLY = "after_sync_before_reply"
AFTER_COMMIT_BEFORE_OUTPUT = "after_commit_before_output"
DURING_SNAPSHOT = "during_snapshot"
DURING_GENERATION_CHANGE = "during_generation_change"
DURING_RECOVERY = "during_recovery"
RELAY_AFTER_READ = "relay_after_read"
RELAY_AFTER_ACK = "relay_after_ack"
RELAY_BEFORE_COMMIT = "relay_before_commit"
RELAY_AFTER_COMMIT = "relay_after_commit"
NAMES = frozenset(
    {
        AFTER_APPEND_BEFORE_SYNC,
        AFTER_SYNC_BEFORE_REPLY,
        AFTER_COMMIT_BEFORE_OUTPUT,
        DURING_SNAPSHOT,
        DURING_GENERATION_CHANGE,
        DURING_RECOVERY,
        RELAY_AFTER_READ,
        RELAY_AFTER_ACK,
        RELAY_BEFORE_COMMIT,
        RELAY_AFTER_COMMIT,
    }
)


class CrashPoint:
    """The place at which this process dies, and how many visits are left until then."""

    def __init__(self, name: str, times: int) -> None:
        """Die at the `times`-th visit of the place `name`."""
        self.name = name
        self._left = times

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> CrashPoint | None:
        """None unless the environment names a place. Raises BadSetting."""
        text = (os.environ if environ is None else environ).get(VARIABLE)
        if not text:
            return None
        name, _, times = text.partition(":")
        if name not in NAMES or not times.isascii() or not times.isdigit() or int(times) < 1:
            raise BadSetting(
                f"{VARIABLE}={text!r}", hint=f"expected NAME:N, NAME one of {sorted(NAMES)}"
            )
        return cls(name, int(times))

    def visit(self, name: str) -> None:
        """Count a visit of the place `name`; at the last one this does not return."""
        if name != self.name:
            return
        self._left -= 1
        if self._left == 0:
            os._exit(EXIT_STATUS)


class CrashingDisk(OsDisk):
    """Dies when a generation's directory was just made."""

    def __init__(self, point: CrashPoint) -> None:
        super().__init__()
        self._point = point

    def make_directory(self, path: str) -> None:
        super().make_directory(path)
        if os.path.basename(path).startswith("gen-"):
            self._point.visit(DURING_GENERATION_CHANGE)


class CrashingLog(FencedLog):
    """Dies around a sync, inside a snapshot, or on replay. Open it with `log_opener`."""

    point: CrashPoint

    def sync(self) -> int:
        grows = self.end > self.durable_end
        if grows:
            self.point.visit(AFTER_APPEND_BEFORE_SYNC)
        end = super().sync()
        if grows:
            self.point.visit(AFTER_SYNC_BEFORE_REPLY)
        return end

    def look_at_fence(self) -> None:
        super().look_at_fence()  # the parts are written, the name is not in place yet
        self.point.visit(DURING_SNAPSHOT)

    def replay(self, position: int) -> Iterator[StoredRecord]:
        for record in super().replay(position):
            yield record
            self.point.visit(DURING_RECOVERY)


def log_opener(
    point: CrashPoint | None, kind: type[CrashingLog] = CrashingLog
) -> Callable[..., FencedLog]:
    """Return what opens a log as `FencedLog.open` does; with a `point`, one that dies there."""
    if point is None:
        return FencedLog.open

    def open_log(*arguments: Any, **options: Any) -> FencedLog:
        log = kind.open(*arguments, **options)
        assert isinstance(log, CrashingLog)
        log.point = point
        return log

    return open_log
