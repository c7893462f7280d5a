"""The engine: keeps a cast of programs at work while it kills, freezes and replaces them.

Theory of operation. Each `Slot` always has one process that should be alive. The engine is the
supervisor: what was killed is started again at once, so that every end is known and logged, and
an end that no fault caused fails the run. Faults are drawn from a seeded source:

- a kill (SIGKILL) some moments after the victim has shown by an event that it is at work,
- a crash at a named point inside the process (environment ONCEMQ_CRASH_AT="point:n"),
- a pause: SIGSTOP, then SIGCONT before a successor can take over,
- a takeover: SIGSTOP, a second process takes the place, and only then SIGCONT. The first is a
  zombie now and must end as fenced, or have been ended by its successor; a member that still owns
  other partitions may instead say that it has given up what the successor has.

What faults hit is counted, since a run in which nothing was hit proves nothing: see `Deeds`.
Each one is kept with its time, see `Fault`.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from .history import History
from .holdings import Holdings
from .programs import FENCED, KILLED, POLL_S, Program, ProgramFailed, Running
from .slots import CRASH, KILL, PAUSE, TAKEOVER, Logbook, Part, Slot

AT_WORK_S = 10.0  # how long a victim may take to show work; then it is killed as it is
DELAY_S = 0.25  # a kill comes within this time after the first sign of work
PATIENCE_S = 3.0  # how long a process with a crash point is left alone
PAUSE_S = 1.5
ZOMBIE_S = 240.0  # a takeover must be over by then: leases, restarts, a busy machine
CRASH_SHARE = 0.35  # of the starts get a crash point
EARLY_SHARE = 0.15  # of the kills do not wait for work: they hit start and recovery
PASSES_MAX = 8  # a crash point fires when it is passed for up to the n-th time
PAUSE_SHARE = 0.05  # of the faults are pauses
SIGN_OF_LIFE_S = 120.0  # how long a process that shall end may take to show that it is up
END_S = 120.0  # and how long to end


class Chaos:
    """Runs slots under faults. Use it as: `start()`, `run(...)`, `calm()`, then check, `close()`.

    `run` goes by a number of kills, `run_for` by the clock.
    """

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
        roles: Collection[str] | None = None,
        pauses: bool = True,
        gap_s: float = 0.0,
        poll_s: float = POLL_S,
    ) -> None:
        """`feed` is called all the time, to give the cast work; `say` gets a line for each fault.

        What `feed` raises ends the play: it comes out of the method that was called.
        `environ` is the whole environment of the programs; their output goes to `directory`.
        Only `roles` are hit (None: all), `pauses` allows short freezes, and after each fault comes
        peace for up to `gap_s`. Events are read every `poll_s`.
        """
        self.rng = random.Random(seed)
        self.history = history
        self.started = 0  # processes
        self._book = Logbook(say)
        self.deeds, self.faults = self._book.deeds, self._book.faults
        self.began_s = self._book.began_s
        self._roles = frozenset(roles or (slot.role for slot in slots))
        self._pauses = pauses
        self._gap_s = gap_s
        self._poll_s = poll_s
        self._directory = directory
        self._environ = environ
        self._feed = feed
        self._crashing = False
        self._slots = {slot.program.name: slot for slot in slots}
        self._parts: dict[str, Part] = {}
        self._all: list[Running] = []
        self._holdings = Holdings(slot.owned for slot in slots if slot.owned is not None)
        history.follow(self._holdings.take)

    # --- the play --------------------------------------------------------------------------------

    def start(self) -> None:
        """No fault strikes at first."""
        for name, slot in self._slots.items():
            self._parts[name] = self._start(slot)

    def run(
        self, kills: int, *, takeovers: Sequence[str], timeout_s: float, each_role: int = 0
    ) -> None:
        """Do `kills` kills, with a takeover of each slot named in `takeovers` spread among them.

        Kills are counted from the start of the play. It goes on beyond `kills` until each role
        was killed `each_role` times. Raises ProgramFailed when a process ends by itself,
        when a zombie is not fenced, and after `timeout_s`.
        """
        self._crashing = True
        deadline = time.monotonic() + timeout_s
        order = list(takeovers)
        self.rng.shuffle(order)
        due = [(index + 1) * kills // (len(order) + 1) for index in range(len(order))]
        while True:
            done = self.deeds.kills.total()
            spared = [role for role in self._roles if self.deeds.kills[role] < each_role]
            if done >= kills and not (spared or order or self._zombies()):
                return
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{done} of {kills} kills within {timeout_s:g} s")
            if order and done >= due[-len(order)] and self._can_freeze(order[0]):
                if self._freeze(order[0]):
                    order.pop(0)
            elif done >= kills and not spared:
                self.breathe(self._poll_s)
            else:
                self._hurt()

    def run_for(self, seconds: float, *, takeovers: Sequence[str]) -> None:
        """Do faults for `seconds`, with a takeover of each slot in `takeovers` spread among them.

        It goes on until every zombie has ended; a takeover whose time does not come is left out.
        Raises ProgramFailed as `run` does.
        """
        self._crashing = True
        began_s = time.monotonic()
        order = list(takeovers)
        self.rng.shuffle(order)
        due = [(index + 0.5) * seconds / len(order) for index in range(len(order))]
        while True:
            passed_s = time.monotonic() - began_s
            if passed_s >= seconds:
                if not self._zombies():
                    return
                self.breathe(self._poll_s)
            elif order and passed_s >= due[-len(order)] and self._can_freeze(order[0]):
                if self._freeze(order[0]):
                    order.pop(0)
            else:
                self._hurt()

    def calm(self) -> None:
        """No more faults: replace each process that still has a crash point ahead."""
        self._crashing = False
        for name, part in self._parts.items():
            if part.running.crash_at:
                part.running.kill()
                self._parts[name] = self._start(part.slot, program=part.program)

    def leave(self, name: str, shown: frozenset[str] = frozenset()) -> None:
        """Take a slot out of the play: once it is up, end its process by SIGTERM, exit code 0.

        `shown`: events that tell so; by default those of work, which it may find no more. Raises
        ProgramFailed if it ends otherwise.
        """
        shown = shown or self._slots[name].working
        until = time.monotonic() + SIGN_OF_LIFE_S
        while shown.isdisjoint(self._seen(self._parts[name])) and time.monotonic() < until:
            self.breathe(self._poll_s)
        running = self._parts.pop(name).running
        running.send_signal(signal.SIGTERM)
        self.await_end(running, END_S)

    def await_end(self, running: Running, timeout_s: float) -> None:
        """Let time pass until a process outside of the play ends, as it must, in good order."""
        until = time.monotonic() + timeout_s
        while running.exit_code is None:
            if time.monotonic() > until:
                raise ProgramFailed(f"{running} does not end in {timeout_s:g} s\n{running.told()}")
            self.breathe(self._poll_s)
        running.wait(0.0, 0, 4)  # 4: messages were parked; the verdict tells of them

    def ask_to_end(self, name: str) -> bool:
        """Send SIGTERM to a process at work; `renew` of its slot tells what comes then.

        Returns False if it cannot be asked now: starting, ending, or in a takeover.
        """
        part = self._parts[name]
        assert part.slot.renew is not None, f"{name} goes on for ever"
        if part.leaving or part.zombie is not None or not self._at_work(part):
            return False
        part.leaving = part.running.send_signal(signal.SIGTERM)
        return part.leaving

    def in_takeover(self, name: str) -> bool:
        part = self._parts.get(name)
        return part is not None and part.zombie is not None

    @property
    def present(self) -> list[str]:
        return list(self._parts)

    def breathe(self, seconds: float) -> None:
        """Let time pass: feed the cast, read events, start again what was killed."""
        until = time.monotonic() + seconds
        while True:
            self._feed()
            self.history.refresh()
            for name, part in list(self._parts.items()):
                following = self._tend(part)
                if following is None:
                    del self._parts[name]
                else:
                    self._parts[name] = following
            if time.monotonic() >= until:
                return
            time.sleep(min(self._poll_s, max(until - time.monotonic(), POLL_S)))

    def close(self) -> None:
        for running in self._all:
            running.end()

    # --- faults ----------------------------------------------------------------------------------

    def _hurt(self) -> None:
        """Do the next fault, if a slot can be hit, and leave some peace after it."""
        name = self._victim()
        if name is None:
            self.breathe(self._poll_s)
            return
        if self._pauses and self.rng.random() < PAUSE_SHARE:
            self._pause(name)
        else:
            self._kill(name)
        if self._gap_s:
            self.breathe(self.rng.uniform(0, self._gap_s))

    def _victim(self) -> str | None:
        """Choose a slot: often of the role that was hit least, and never one in a takeover."""
        leased = any(part.slot.lease for part in self._zombies())
        names = [
            name
            for name, part in self._parts.items()
            if part.zombie is None
            and part.slot.role in self._roles
            and not (leased and part.slot.role == "broker")
        ]
        if not names:
            return None
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
            self.breathe(self._poll_s)  # it shall have the time to reach its crash point
        self.breathe(self.rng.uniform(0, DELAY_S))
        part = self._parts[name]
        if part.running is not running:  # it has crashed, and that was this kill
            return
        if part.zombie is not None:  # a successor is left alone until the takeover is over
            return
        worked = self._at_work(part)
        if part.running.kill() == KILLED:
            self._book.killed(part, KILL, worked=worked)
            self._parts[name] = self._start(part.slot, program=part.program)

    def _pause(self, name: str) -> None:
        """Stop the world for one process, as a long garbage collection or a swapped host does."""
        running = self._parts[name].running
        if running.freeze():
            slot = self._parts[name].slot
            self.deeds.pauses[slot.role] += 1
            fault = self._book.note(PAUSE, slot, running)
            self._book.tell(f"pause   {running}")
            self.breathe(self.rng.uniform(0.1, PAUSE_S))
            running.thaw()
            fault.until_s = self.now_s

    def _can_freeze(self, name: str) -> bool:
        part = self._parts[name]
        return not self._zombies() and not part.leaving and part.slot.talks()

    def _freeze(self, name: str) -> bool:
        """Freeze the owner and start its successor; `_tend` does the rest.

        Returns False if the process owns nothing at the moment: who takes its place would be no
        successor, and it no zombie.
        """
        assert self._slots[name].owned, f"{name} cannot be taken over"
        self._await_work(name)
        part = self._parts[name]
        if part.leaving or not part.running.freeze():
            return False
        self.history.refresh()  # it writes no more: this is all it ever said
        owns = self._holdings.of(part.running.pid)
        if not owns:
            part.running.thaw()
            self.breathe(self._poll_s)
            return False
        successor = self._start(part.slot, *part.slot.takeover, program=part.program)
        successor.zombie, successor.disputed = part.running, owns
        successor.takeover = self._book.note(TAKEOVER, part.slot, part.running)
        self._parts[name] = successor
        self.deeds.takeovers[part.slot.role] += 1
        self._book.tell(f"freeze  {part.running}, {successor.running} shall take over")
        return True

    # --- keeping the cast at work ----------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self._book.now_s

    def _start(self, slot: Slot, *more: str, program: Program | None = None) -> Part:
        program = program or slot.program
        environ = dict(self._environ)
        points = slot.crash_points + slot.starting_points
        hit = self._crashing and slot.role in self._roles
        if hit and points and not more and self.rng.random() < CRASH_SHARE:
            point = self.rng.choice(points)
            times = 1 if point in slot.starting_points else self.rng.randint(1, PASSES_MAX)
            environ["ONCEMQ_CRASH_AT"] = f"{point}:{times}"
        running = program.start(self._directory, environ, *more)
        self._all = [one for one in self._all if one.exit_code is None]
        self._all.append(running)
        self.started += 1
        self._holdings.begin(running.pid)
        return Part(slot, program, running, self.history.of(running.pid))

    def _tend(self, part: Part) -> Part | None:
        """Look after one slot: a crash, a zombie. Returns the part as it is from now on."""
        running = part.running
        if part.zombie is not None:
            self._tend_zombie(part)
        if running.exit_code is None:
            return part
        if part.leaving and not running.was_killed:
            assert part.slot.renew is not None, "only such slots are asked to end"
            program = part.slot.renew(running)
            return None if program is None else self._start(part.slot, program=program)
        crash_point = running.crash_at.partition(":")[0]
        if not (running.was_killed and crash_point):
            raise ProgramFailed(f"{running} ended with {running.exit_code}\n{running.told()}")
        self.deeds.crashes[crash_point] += 1
        self._book.killed(part, CRASH, worked=self._at_work(part))
        successor = self._start(part.slot, program=part.program)
        successor.zombie, successor.thawed = part.zombie, part.thawed
        successor.disputed, successor.takeover = part.disputed, part.takeover
        return successor

    def _tend_zombie(self, part: Part) -> None:
        zombie = part.zombie
        assert zombie is not None
        code = zombie.exit_code
        if code == FENCED:
            self._book.zombie_ended(part, "it ended as fenced")
        elif code == KILLED:  # its successor proved it frozen and ended it
            self._book.zombie_ended(part, "its successor ended it", fenced=False)
        elif zombie.was_killed and zombie.crash_at:  # thawed, it came to its crash point first
            self._book.zombie_ended(part, f"it crashed at {zombie.crash_at}", fenced=False)
        elif code is not None:
            raise ProgramFailed(f"zombie {zombie} ended with {code}\n{zombie.told()}")
        elif not part.thawed:
            taken = part.disputed & self._holdings.of(part.running.pid)
            if taken:
                self._book.tell(f"thaw    {zombie}")
                part.disputed, part.thawed = taken, zombie.thaw()
        elif part.disputed.isdisjoint(self._holdings.of(zombie.pid)):  # it owns other places
            zombie.kill()
            self._book.zombie_ended(part, "it gave up what its successor has")
        if part.zombie is not None and part.running.age_s > ZOMBIE_S:
            what = "is not fenced" if part.thawed else "has no successor"
            raise ProgramFailed(f"zombie {zombie} {what}\n{zombie.told()}\n{part.running.told()}")

    def _zombies(self) -> list[Part]:
        return [part for part in self._parts.values() if part.zombie is not None]

    def _await_work(self, name: str) -> None:
        """Let time pass until a slot's process shows work, or has had its chance to."""
        until = time.monotonic() + AT_WORK_S
        while not self._at_work(self._parts[name]) and time.monotonic() < until:
            self.breathe(self._poll_s)

    def _at_work(self, part: Part) -> bool:
        return not part.slot.working.isdisjoint(self._seen(part))

    def _seen(self, part: Part) -> Counter[str]:
        return self.history.of(part.running.pid) - part.before
