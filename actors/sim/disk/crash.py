"""The proof by exhaustion: crash a scenario at every call to the disk, in every way, and look.

`sweep` runs a scenario once on a `SimDisk` and takes a picture of the disk between every two
calls; nothing needs to be run again to crash there. Each picture becomes several disks:

- *killed*: the process is gone, the page cache is whole and nothing more is durable than before;
- *power cut*: everything unsynced lost, everything kept, only names, only data, each prefix of
  what was pending, and seeded subsets in which sectors and names live or die one by one.

Each of those disks is given to the `recover` and `check` of the case, together with the promise
that had been made when the picture was taken. Then recovery itself is photographed in the same
way, and every second crash is recovered and checked too.

A promise is an immutable value of the case's own choosing: what was acknowledged, what was only
attempted. Equal disks with equal promises are looked at once; the report counts both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .cuts import CutPolicy, KeepEverything, LoseEverything, OnlyData, OnlyNames, Prefix, Seeded
from .disk import SimDisk

P = TypeVar("P")


class CrashCase(Protocol[P]):
    """What is crashed, and what must be true afterwards. `P` is the type of its promises."""

    def run(self, disk: SimDisk, promise: Callable[[P], None]) -> None:
        """Work on `disk`; call `promise` whenever more (or less) is promised than before.

        The promise before the first call is `nothing()`.
        """

    def nothing(self) -> P:
        """Return the promise of a case that has not begun."""

    def recover(self, disk: SimDisk, promised: P) -> P:
        """Open what a crash left, as a restarted process does; return what is promised from then.

        Raises whatever recovery raises: any exception is a violation.
        """

    def check(self, disk: SimDisk, promised: P) -> None:
        """Raise AssertionError if `promised` does not hold on `disk`. May write to it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to crash: None is a killed process, a policy is a power cut."""

    policy: CutPolicy | None

    def apply(self, picture: SimDisk) -> SimDisk:
        return picture.copy() if self.policy is None else picture.after_power_cut(self.policy)

    def __str__(self) -> str:
        return "killed" if self.policy is None else str(self.policy)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which cuts a sweep makes at a picture; `prefixes` bounds the number of prefixes.

    With `only`, exactly these policies and nothing else.
    """

    seeds: int = 16
    prefixes: int | None = None
    only: tuple[CutPolicy, ...] = ()

    def cuts(self, picture: SimDisk) -> list[Cut]:
        if self.only:
            return [Cut(policy) for policy in self.only]
        count = len(picture.pending())
        found = [Cut(None), Cut(LoseEverything())]
        if count == 0:
            return found
        found += [Cut(KeepEverything()), Cut(OnlyNames()), Cut(OnlyData())]
        places = list(range(1, count))
        if self.prefixes is not None and len(places) > self.prefixes:
            bound, every = self.prefixes, len(places)
            places = [places[turn * every // bound] for turn in range(bound)]
        found += [Cut(Prefix(place)) for place in places]
        found += [Cut(Seeded(seed)) for seed in range(self.seeds)]
        return found


@dataclass(frozen=True, slots=True)
class Picture(Generic[P]):
    """The disk between two calls, and what was promised then."""

    call: int
    next_call: str
    disk: SimDisk
    promised: P


@dataclass(frozen=True, slots=True)
class Violation:
    """A crash after which the promise did not hold."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(slots=True)
class SweepReport:
    """What a sweep did and found."""

    calls: int = 0
    states: int = 0  # calls that found the disk or the promise changed; the others add nothing
    crashes: int = 0  # states x variants
    looked_at: int = 0  # of them, different disks or promises
    second_calls: int = 0
    second_states: int = 0
    second_crashes: int = 0
    second_looked_at: int = 0
    violations: list[Violation] = field(default_factory=list)

    def __str__(self) -> str:
        found = "zero violations" if not self.violations else f"{len(self.violations)} VIOLATIONS"
        return (
            f"{self.calls} calls in {self.states} states x variants = {self.crashes} crashes "
            f"({self.looked_at} different); in recovery {self.second_calls} calls in "
            f"{self.second_states} states x variants = {self.second_crashes} crashes "
            f"({self.second_looked_at} different): {found}"
        )


def pictures(
    disk: SimDisk, work: Callable[[Callable[[P], None]], None], first: P
) -> list[Picture[P]]:
    """Run `work` on `disk` and return a picture before every call that found the disk changed,
    and one of the end. `work` is given the function by which it makes promises.
    """
    taken: list[Picture[P]] = []
    now = [first]
    last: list[tuple[int, P]] = []

    def look(kind: str, path: str) -> None:
        state = (disk.changes, now[0])
        if not last or last[0][0] != state[0] or last[0][1] != state[1]:
            last[:] = [state]
            taken.append(Picture(disk.calls + 1, f"{kind} {path}", disk.copy(), now[0]))

    def promise(promised: P) -> None:
        now[0] = promised

    disk.observer = look
    try:
        work(promise)
    finally:
        disk.observer = None
    look("the", "end")
    return taken


@dataclass(slots=True)
class _Sweep(Generic[P]):
    case: CrashCase[P]
    selection: Selection
    second: Selection | None
    second_every: int
    violations_max: int
    report: SweepReport = field(default_factory=SweepReport)
    seen: set[tuple[bytes, bytes, P]] = field(default_factory=set)
    turn: int = 0

    def full(self) -> bool:
        return len(self.report.violations) >= self.violations_max

    def first_crashes(self, disk: SimDisk) -> None:
        taken = pictures(disk, lambda promise: self.case.run(disk, promise), self.case.nothing())
        self.report.calls, self.report.states = disk.calls, len(taken)
        for picture in taken:
            for cut in self.selection.cuts(picture.disk):
                if self.full():
                    return
                self.report.crashes += 1
                left = cut.apply(picture.disk)
                if not self.new(left, picture.promised):
                    continue
                self.report.looked_at += 1
                where = f"crash before call {picture.call} ({picture.next_call}), {cut}"
                self.examine(left, picture.promised, where)

    def new(self, left: SimDisk, promised: P) -> bool:
        durable = left.after_power_cut(LoseEverything()).fingerprint()
        key = (left.fingerprint(), durable, promised)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True

    def examine(self, left: SimDisk, promised: P, where: str) -> None:
        """Recover and check; then crash recovery itself, if it is this one's turn."""
        self.turn += 1
        deeper = self.second is not None and self.turn % self.second_every == 0
        before = left.copy() if deeper else left
        try:
            after = self.case.recover(left, promised)
            self.case.check(left, after)
        except Exception as error:  # noqa: BLE001 - whatever recovery raises is the finding
            self.note(where, error)
            return
        if deeper:
            self.second_crashes(before, promised, where)

    def second_crashes(self, disk: SimDisk, promised: P, where: str) -> None:
        assert self.second is not None
        taken = pictures(disk, lambda promise: promise(self.case.recover(disk, promised)), promised)
        self.report.second_calls += disk.calls
        self.report.second_states += len(taken)
        for picture in taken:
            for cut in self.second.cuts(picture.disk):
                if self.full():
                    return
                self.report.second_crashes += 1
                left = cut.apply(picture.disk)
                if not self.new(left, picture.promised):
                    continue
                self.report.second_looked_at += 1
                try:
                    self.case.check(left, self.case.recover(left, picture.promised))
                except Exception as error:  # noqa: BLE001 - as above
                    call = f"recovery call {picture.call} ({picture.next_call})"
                    self.note(f"{where}; second crash before {call}, {cut}", error)

    def note(self, where: str, error: Exception) -> None:
        self.report.violations.append(Violation(where, f"{type(error).__name__}: {error}"))


def sweep(
    case: CrashCase[P],
    *,
    disk: Callable[[], SimDisk] = SimDisk,
    selection: Selection | None = None,
    second: Selection | None = None,
    second_every: int = 1,
    violations_max: int = 10,
) -> SweepReport:
    """Crash `case` everywhere and return what was found.

    `selection` says in which ways each picture crashes; `second`, when given, does the same inside
    recovery, for one in `second_every` of the first crashes. Stops after `violations_max` findings.
    """
    work = _Sweep(case, selection or Selection(), second, second_every, violations_max)
    work.first_crashes(disk())
    return work.report
