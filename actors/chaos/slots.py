"""Who plays and what is done to them: slots, faults, and how often which role was hit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from .holdings import Owning, Place
from .programs import Program, Running

KILL, CRASH, PAUSE, TAKEOVER = "kill", "crash", "pause", "takeover"
FENCED_AFTER = "fenced"  # what became of a zombie: it ended as fenced, or by its successor
FAULT_KINDS = (KILL, CRASH, PAUSE, TAKEOVER, FENCED_AFTER)
FAULTS_KEPT_MAX = 100_000  # later ones are counted only


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Slot:
    """One part in the play. The program must go on for ever unless it is ended."""

    role: str
    program: Program
    working: frozenset[str]  # events by which a process shows that it is at work
    crash_points: tuple[str, ...] = ()
    starting_points: tuple[str, ...] = ()  # crash points that are passed once, at the start
    owned: Owning | None = None  # how it tells that it is the owner; None: no takeover
    takeover: tuple[str, ...] = ()  # arguments for a process that takes over
    lease: bool = False  # a taker must wait for a lease: the broker is spared meanwhile
    # What comes after a process that was asked to end and did; None: the slot is done.
    renew: Callable[[Running], Program | None] | None = None
    # Whether there is more for it to say: a zombie is noticed when it speaks.
    talks: Callable[[], bool] = _always


@dataclass(slots=True)
class Fault:
    """One thing that was done to a process. Times are seconds since the start of the play."""

    at_s: float
    kind: str  # one of FAULT_KINDS
    role: str
    name: str  # of the slot
    pid: int
    detail: str = ""
    until_s: float | None = None  # the end of a pause or of a takeover

    def as_dict(self) -> dict[str, object]:
        until = {} if self.until_s is None else {"until_s": round(self.until_s, 3)}
        return {
            "at_s": round(self.at_s, 3),
            "kind": self.kind,
            "role": self.role,
            "name": self.name,
            "pid": self.pid,
            "detail": self.detail,
            **until,
        }


@dataclass(slots=True)
class Deeds:
    """What was done to whom, by role."""

    kills: Counter[str] = field(default_factory=Counter)
    at_work: Counter[str] = field(default_factory=Counter)  # of the kills: after a sign of work
    crashes: Counter[str] = field(default_factory=Counter)  # of the kills, by crash point
    pauses: Counter[str] = field(default_factory=Counter)
    takeovers: Counter[str] = field(default_factory=Counter)
    fenced: Counter[str] = field(default_factory=Counter)  # zombies that ended as fenced

    def as_dict(self) -> dict[str, dict[str, int]]:
        names = ("kills", "at_work", "crashes", "pauses", "takeovers", "fenced")
        return {name: dict(sorted(getattr(self, name).items())) for name in names}


class Part:
    """A slot at work."""

    def __init__(
        self, slot: Slot, program: Program, running: Running, before: Counter[str]
    ) -> None:
        self.slot = slot
        self.program = program  # the slot's, or what renewed it
        self.running = running
        self.leaving = False  # it was asked to end
        self.before = before  # events of that pid at the start: an earlier process had it
        self.zombie: Running | None = None  # frozen, being replaced by `running`
        self.thawed = False
        # What it owned when it was frozen; once thawed, what of that the successor has.
        self.disputed: frozenset[Place] = frozenset()
        self.takeover: Fault | None = None  # the fault that made `zombie`


class Logbook:
    """Everything that was done, counted and with its time since the start of the play."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.began_s = time.monotonic()
        self.deeds = Deeds()
        self.faults: list[Fault] = []  # in order of their times, FAULTS_KEPT_MAX at most
        self._say = say

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def tell(self, text: str) -> None:
        self._say(f"{self.now_s:8.2f} {text}")

    def note(self, kind: str, slot: Slot, running: Running, detail: str = "") -> Fault:
        fault = Fault(self.now_s, kind, slot.role, slot.program.name, running.pid, detail)
        if len(self.faults) < FAULTS_KEPT_MAX:
            self.faults.append(fault)
        return fault

    def killed(self, part: Part, kind: str, *, worked: bool) -> None:
        """Count, keep and tell a kill. `worked`: it had shown that it was at work."""
        self.deeds.kills[part.slot.role] += 1
        self.deeds.at_work[part.slot.role] += worked
        where = "at work" if worked else "at start"
        how = "killed" if kind == KILL else f"crashed at {part.running.crash_at}"
        detail = where if kind == KILL else f"{where}, {part.running.crash_at}"
        self.note(kind, part.slot, part.running, detail)
        self.tell(f"{self.deeds.kills.total():4} {how} {part.running}, {where}")

    def zombie_ended(self, part: Part, how: str, *, fenced: bool = True) -> None:
        zombie = part.zombie
        assert zombie is not None, "only a zombie ends as one"
        self.deeds.fenced[part.slot.role] += fenced
        self.tell(f"{'fenced ' if fenced else 'ended  '} {zombie}: {how}")
        self.note(FENCED_AFTER, part.slot, zombie, how)
        if part.takeover is not None:
            part.takeover.until_s = self.now_s
        part.zombie = part.takeover = None
