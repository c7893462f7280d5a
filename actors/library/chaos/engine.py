"""The engine: keeps a cast of programs at work while it kills, freezes and replaces them.

Theory of operation. Each `Slot` always has one process that should be alive. The engine is the
supervisor: what was killed is started again at once, so that every end is known and logged, and
an end that nobody caused fails the run. Faults are drawn from a seeded source:

- a kill (SIGKILL) some moments after the victim has shown by an event that it is at work,
- a crash at a named point inside the process (environment ONCEMQ_CRASH_AT="point:n"),
- a pause: SIGSTOP, then SIGCONT before anybody can take over,
- a takeover: SIGSTOP, a second process takes the place, and only then SIGCONT. The first is a
  zombie now and must end as fenced, or have been ended by its successor.

What faults hit is counted, since a run in which nothing was hit proves nothing: see `Deeds`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .history import History
from .programs import FENCED, KILLED, POLL_S, Program, ProgramFailed, Running

AT_WORK_S = 10.0  # how long a victim may take to show work; then it is killed as it is
DELAY_S = 0.25  # a kill comes within this time after the first sign of work
PATIENCE_S = 3.0  # how long a process with a crash point is left alone
PAUSE_S = 1.5
ZOMBIE_S = 90.0  # a takeover must be over by then; a lease or two may pass, and a broker's restart
CRASH_SHARE = 0.35  # of the starts get a crash point
EARLY_SHARE = 0.15  # of the kills do not wait for work: they hit start and recovery
PASSES_MAX = 8  # a crash point fires when it is passed for up to the n-th time


@dataclass(frozen=True, slots=True)
class Slot:
    """One part in the play. The program must go on for ever unless it is ended."""

    role: str
    program: Program
    working: frozenset[str]  # events by which a process shows that it is at work
    crash_points: tuple[str, ...] = ()
    starting_points: tuple[str, ...] = ()  # crash points that are passed once, at the start
    owned: str = ""  # by this event a successor tells that it is one; "": no takeover
    takeover: tuple[str, ...] = ()  # arguments for a process that takes over
    lease: bool = False  # a taker must wait for a lease: the broker is spared meanwhile


@dataclass(slots=True)
class Deeds:
    """What was done to whom, by role."""

    kills: Counter[str] = field(default_factory=Counter)
    at_work: Counter[str] = field(default_factory=Counter)  # of the kills: after a sign of work
    crashes: Counter[str] = field(default_factory=Counter)  # of the kills, by crash point
    pauses: Counter[str] = field(default_factory=Counter)
    takeovers: Counter[str] = field(default_factory=Counter)
    fenced: Counter[str] = field(default_factory=Counter)  # zombies that ended as fenced


class _Part:
    """A slot at work."""

    def __init__(self, slot: Slot, running: Running, before: Counter[str]) -> None:
        self.slot = slot
        self.running = running
        self.before = before  # events of that pid at the start: an earlier process had it
        self.zombie: Running | None = None  # frozen, being replaced by `running`
        self.thawed = False


class Chaos:
    """Runs slots under faults. Use it as: `start()`, `run(...)`, `calm()`, then check, `close()`."""

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        seed: int,
        directory: Path,
        environ: Mapping[str, str],
        history: History,
        say: Callable[[str], None],
        feed: Callable[[], None] = lambda: None,
    ) -> None:
        """`feed` is called all the time, to give the cast work; `say` gets a line for each fault.

        `environ` is the whole environment of the programs; their output goes to `directory`.
        """
        self.rng = random.Random(seed)
        self.history = history
        self.deeds = Deeds()
        self._directory = directory
        self._environ = environ
        self._say_line = say
        self._feed = feed
        self._began_s = time.monotonic()
        self._crashing = False
        self._slots = {slot.program.name: slot for slot in slots}
        self._parts: dict[str, _Part] = {}
        self._all: list[Running] = []

    # --- the play --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, without faults at first."""
        for name, slot in self._slots.items():
            self._parts[name] = self._start(slot)

    def run(
        self, kills: int, *, takeovers: Sequence[str], timeout_s: float, each_role: int = 0
    ) -> None:
        """Do `kills` kills, with a takeover of each slot named in `takeovers` spread among them.

        Kills are counted from the start of the play. It goes on beyond `kills` until each role
        was killed `each_role` times. Raises ProgramFailed when something ends that nobody ended,
        when a zombie is not fenced, and after `timeout_s`.
        """
        self._crashing = True
        deadline = time.monotonic() + timeout_s
        order = list(takeovers)
        self.rng.shuffle(order)
        due = [(index + 1) * kills // (len(order) + 1) for index in range(len(order))]
        roles = {slot.role for slot in self._slots.values()}
        while True:
            done = self.deeds.kills.total()
            spared = [role for role in roles if self.deeds.kills[role] < each_role]
            if done >= kills and not (spared or order or self._zombies()):
                return
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{done} of {kills} kills within {timeout_s:g} s")
            if order and done >= due[-len(order)] and not self._zombies():
                self._freeze(order.pop(0))
            elif done >= kills and not spared:
                self.breathe(POLL_S)
            elif self.rng.random() < 0.05:
                self._pause(self._victim())
            else:
                self._kill(self._victim())

    def calm(self) -> None:
        """No more faults: whoever still has a crash point ahead is replaced by one without."""
        self._crashing = False
        for name, part in self._parts.items():
            if part.running.crash_at:
                part.running.kill()
                self._parts[name] = self._start(part.slot)

    def leave(self, name: str) -> None:
        """Take a slot out of the play: once at work, end its process by SIGTERM, exit code 0."""
        self._await_work(name)
        self._parts.pop(name).running.stop(30.0, 0)

    def breathe(self, seconds: float) -> None:
        """Let time pass: feed the cast, read events, start again what was killed."""
        until = time.monotonic() + seconds
        while True:
            self._feed()
            self.history.refresh()
            for name, part in self._parts.items():
                self._parts[name] = self._tend(part)
            if time.monotonic() >= until:
                return
            time.sleep(POLL_S)

    def close(self) -> None:
        """End every process that was started here."""
        for running in self._all:
            running.end()

    # --- faults ----------------------------------------------------------------------------------

    def _victim(self) -> str:
        """Choose a slot: often of the role that was hit least, and never one in a takeover."""
        leased = any(part.slot.lease for part in self._zombies())
        names = [
            name
            for name, part in self._parts.items()
            if part.zombie is None and not (leased and part.slot.role == "broker")
        ]
        if not names:
            names = list(self._parts)
        if self.rng.random() < 0.5:
            least = min(self.deeds.kills[self._slots[name].role] for name in names)
            names = [n for n in names if self.deeds.kills[self._slots[n].role] == least]
        return self.rng.choice(names)

    def _kill(self, name: str) -> None:
        if self.rng.random() >= EARLY_SHARE:
            self._await_work(name)
        running = self._parts[name].running
        until = time.monotonic() + (PATIENCE_S if running.crash_at else 0.0)
        while running.exit_code is None and time.monotonic() < until:
            self.breathe(POLL_S)  # it shall have the time to reach its crash point
        self.breathe(self.rng.uniform(0, DELAY_S))
        part = self._parts[name]
        if part.running is not running:  # it has crashed, and that was this kill
            return
        if part.zombie is not None:  # a successor is left alone until the takeover is over
            return
        worked = self._at_work(part)
        if part.running.kill() == KILLED:
            self._count_kill(part, "killed", worked=worked)
            self._parts[name] = self._start(part.slot)

    def _pause(self, name: str) -> None:
        """Stop the world for one process, as a long garbage collection or a swapped host does."""
        running = self._parts[name].running
        if running.freeze():
            self.deeds.pauses[self._parts[name].slot.role] += 1
            self._say(f"pause   {running}")
            self.breathe(self.rng.uniform(0.1, PAUSE_S))
            running.thaw()

    def _freeze(self, name: str) -> None:
        """Freeze the owner and start its successor; `_tend` does the rest."""
        assert self._slots[name].owned, f"{name} cannot be taken over"
        self._await_work(name)
        part = self._parts[name]
        if not part.running.freeze():
            return
        successor = self._start(part.slot, *part.slot.takeover)
        successor.zombie = part.running
        self._parts[name] = successor
        self.deeds.takeovers[part.slot.role] += 1
        self._say(f"freeze  {part.running}, {successor.running} shall take over")

    # --- keeping the cast at work ----------------------------------------------------------------

    def _start(self, slot: Slot, *more: str) -> _Part:
        environ = dict(self._environ)
        points = slot.crash_points + slot.starting_points
        if self._crashing and points and not more and self.rng.random() < CRASH_SHARE:
            point = self.rng.choice(points)
            times = 1 if point in slot.starting_points else self.rng.randint(1, PASSES_MAX)
            environ["ONCEMQ_CRASH_AT"] = f"{point}:{times}"
        running = slot.program.start(self._directory, environ, *more)
        self._all.append(running)
        return _Part(slot, running, self.history.of(running.pid))

    def _tend(self, part: _Part) -> _Part:
        """Look after one slot: a crash, a zombie. Returns the part as it is from now on."""
        running = part.running
        if part.zombie is not None:
            self._tend_zombie(part)
        if running.exit_code is None:
            return part
        crash_point = running.crash_at.partition(":")[0]
        if not (running.was_killed and crash_point):
            raise ProgramFailed(f"{running} ended with {running.exit_code}\n{running.told()}")
        self.deeds.crashes[crash_point] += 1
        self._count_kill(part, f"crashed at {running.crash_at}", worked=self._at_work(part))
        successor = self._start(part.slot)
        successor.zombie, successor.thawed = part.zombie, part.thawed
        return successor

    def _tend_zombie(self, part: _Part) -> None:
        zombie = part.zombie
        assert zombie is not None
        code = zombie.exit_code
        if code == FENCED:
            self.deeds.fenced[part.slot.role] += 1
            self._say(f"fenced  {zombie}")
            part.zombie = None
        elif code == KILLED:  # its successor proved it frozen and ended it
            self._say(f"ended   {zombie} by its successor")
            part.zombie = None
        elif code is not None:
            raise ProgramFailed(f"zombie {zombie} ended with {code}\n{zombie.told()}")
        elif not part.thawed and self._seen(part)[part.slot.owned]:
            self._say(f"thaw    {zombie}")
            part.thawed = zombie.thaw()
        elif part.running.age_s > ZOMBIE_S:
            what = "is not fenced" if part.thawed else "has no successor"
            raise ProgramFailed(f"zombie {zombie} {what}\n{zombie.told()}\n{part.running.told()}")

    def _zombies(self) -> list[_Part]:
        return [part for part in self._parts.values() if part.zombie is not None]

    def _await_work(self, name: str) -> None:
        """Let time pass until a slot's process shows work, or has had its chance to."""
        until = time.monotonic() + AT_WORK_S
        while not self._at_work(self._parts[name]) and time.monotonic() < until:
            self.breathe(POLL_S)

    def _at_work(self, part: _Part) -> bool:
        return not part.slot.working.isdisjoint(self._seen(part))

    def _seen(self, part: _Part) -> Counter[str]:
        """Return the events of the slot's present process."""
        return self.history.of(part.running.pid) - part.before

    def _count_kill(self, part: _Part, how: str, *, worked: bool) -> None:
        self.deeds.kills[part.slot.role] += 1
        self.deeds.at_work[part.slot.role] += worked
        where = "at work" if worked else "at start"
        self._say(f"{self.deeds.kills.total():4} {how} {part.running}, {where}")

    def _say(self, text: str) -> None:
        self._say_line(f"{time.monotonic() - self._began_s:8.2f} {text}")
