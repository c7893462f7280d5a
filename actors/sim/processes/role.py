"""The process around a core in a simulated world: what starts, dies, freezes and starts again.

A `SimRole` is a place in the world (a role on a host) and outlives its processes. Its current
process has a disk of its own (locks, open files), a clock that was set at its start, and an endpoint.
Interruptions strike at a call to the disk, so they hit the middle of a turn as well as its ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from ...errors import OnceMQError
from ..clock import SimClock
from ..disk.disk import SimProcess, SimulatedCrash
from ..environment import Environment, Host, SimTransport

NEVER_MS = 1 << 60


class ProcessClock:
    """What a process takes for the time: the date at its start, steady from there on."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self._skew_ms = clock.wall_ms() - clock.now_ms()

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._skew_ms


class SimEvents:
    """Structured events of one process go into the trace."""

    def __init__(self, world: Environment, who: str) -> None:
        self._world = world
        self._who = who

    def emit(self, event: str, **fields: Any) -> None:
        self._world.trace.add(self._who, event, fields)


class Turned(Protocol):
    """What a process turns: a shell of production, or a driver."""

    def turn(self, timeout_ms: int | None = None) -> bool:
        """Run one turn."""

    def time_left_ms(self) -> int:
        """Return how long the next turn may wait."""


class SimRole:
    """One role in the world. Subclasses say what runs in it."""

    def __init__(self, world: Environment, name: str, host: Host) -> None:
        self.world = world
        self.name = name
        self.host = host
        self.rng = random.Random(f"{world.plan.seed} {name}")
        self.process: SimProcess | None = None
        self.transport: SimTransport | None = None
        self.actor: Turned | None = None
        self.incarnation = 0
        self._working: SimProcess | None = None  # the process whose turn is on the stack
        self.frozen_until_ms = 0
        self.due_ms = NEVER_MS  # when it wants its next turn without any message
        self.restart_due = False  # a restart is under way
        self.wanted = True  # whether it is started again when it ends
        self.error: BaseException | None = None  # how the last process ended; None: a crash, clean
        self._countdown = 0
        self._interruption: Callable[[str, str], None] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None

    def ready(self, now_ms: int) -> bool:
        if self.process is None or self._working is self.process or self.frozen_until_ms > now_ms:
            return False
        if self.due_ms <= now_ms:
            return True
        return self.transport is not None and bool(self.transport.endpoint.waiting)

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        self.restart_due = False
        if self.process is not None:
            return
        self.incarnation += 1
        self.error = None
        self.frozen_until_ms = 0
        self.process = self.host.disk.process(f"{self.name}.{self.incarnation}")
        self.world.trace.add(self.name, "start", {"incarnation": self.incarnation})
        self.guarded(self.begin)

    def begin(self) -> None:
        """Make `actor`, which is turned from now on."""
        raise AssertionError(f"{self.name} does not know how to begin")

    def turn(self) -> None:
        assert self.actor is not None
        self.actor.turn(0)

    def next_due_ms(self) -> int:
        if self.actor is None:
            return NEVER_MS
        return self.world.clock.now_ms() + self.actor.time_left_ms()

    @property
    def serving(self) -> bool:
        """Whether the process has a log open: on a full disk it waits for room then."""
        return False

    def run_turn(self) -> None:
        """Run one turn; however it ends, the world goes on (unless a promise was broken)."""
        self.guarded(self.turn)

    def guarded(self, work: Callable[[], None]) -> None:
        """Run `work` of the process; an error ends the process."""
        process = self.process
        before, self._working = self._working, process
        try:
            work()
        except SimulatedCrash:
            if process is self.process and process is not None:
                self.world.crashed(self)
        except (OnceMQError, OSError) as error:
            self.finish(error)
        finally:
            self._working = before
        self.due_ms = self.next_due_ms() if self.process is not None else NEVER_MS

    def finish(self, error: BaseException | None) -> None:
        if self.process is None:
            return
        self.error = error
        fields = {} if error is None else {"error": f"{type(error).__name__}: {error}"}
        self.world.trace.add(self.name, "end", fields)
        serving = self.serving
        try:
            self.let_go(clean=error is None)
        except SimulatedCrash:
            self.world.crashed(self)
            return
        except (OnceMQError, OSError) as closing:
            self.world.trace.add(self.name, "close failed", {"error": closing})
        self.gone()
        self.world.ended(self, error, serving=serving)

    def let_go(self, *, clean: bool) -> None:
        """Close the log of the process, if it has one."""

    def gone(self) -> None:
        """Take the process out of the world; only the page cache of its host remembers it."""
        if self.process is not None:
            self.process.kill()
        if self.transport is not None:
            self.transport.close()
        self.process = self.transport = self.actor = None
        self.due_ms = NEVER_MS
        self._interruption = None

    def stop(self) -> None:
        """As SIGTERM does."""
        self.guarded(lambda: self.finish(None))

    def ready_to_stop(self) -> bool:
        """Whether `stop` can be done now: the process runs, and not on the stack."""
        running = self.process is not None and self._working is not self.process
        return running and self.frozen_until_ms <= self.world.clock.now_ms()

    def endpoint_name(self) -> bytes:
        assert self.transport is not None
        return self.transport.endpoint.name

    # --- interruptions ---------------------------------------------------------------------------

    def interrupt(self, calls: int, action: Callable[[str, str], None]) -> None:
        """Do `action(kind, path)` at the disk call `calls` from now, inside of it."""
        assert self.process is not None
        self._countdown = calls
        self._interruption = action
        self.process.hook = self._on_call

    def _on_call(self, kind: str, path: str) -> None:
        self._countdown -= 1
        if self._countdown > 0 or self._interruption is None:
            return
        action, self._interruption = self._interruption, None
        if self.process is not None:
            self.process.hook = None
        action(kind, path)

    def calm(self) -> None:
        """Thaw, and forget an interruption that has not come yet."""
        self.frozen_until_ms = 0
        self._interruption = None
        if self.process is not None:
            self.process.hook = None
