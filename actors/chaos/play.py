"""One run of chaos on a user's application: start, feed, hurt, heal, drain, stop, judge.

    outcome = Play(plan, directory, say=print).run()
    outcome.verdict.ok

Everything happens below one directory: `broker/` and `consumers/` (their files), `events/`,
`printed/` (what processes printed), `input/` (the portions that producers follow).
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ..errors import OnceMQError
from ..library.handling.call import Consumer
from ..proof.findings import Violation
from ..proof.parse.log import LogMoved
from ..proof.verify.verify import Report
from .cast import ROLES, cast, environment
from .engine import Chaos
from .feed import Feed, Input
from .judge import IN_MEMORY_MAX, Run, Sink, Verdict, judge, look
from .programs import ProgramFailed, free_endpoint
from .slots import Deeds, Fault
from .timeline import Watch

POLL_S = 0.03
GAP_S = 1.0  # peace after a fault, at most
RATE_PER_S = 500.0
TAKEOVER_EVERY_S = 20.0  # a consumer's costs a lease of ten
TAKEOVER_EVERY_KILLS = 10
KILL_TIMEOUT_S = 60.0  # for one kill, on the average
SETTLE_S = 0.5  # after the last row of a portion: its producer has read it by then
ASK_AGAIN_S = 2.0
IDLE_S = 1.5  # without an event of progress: everybody is done
STILL_S = 120.0  # without progress and not done: it will never be
SAY_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done. Exactly one of `seconds` and `kills` is set."""

    application: str  # MODULE:APP
    consumers: tuple[Consumer, ...]
    source: Input
    seed: int
    seconds: float | None = None
    kills: int | None = None
    roles: tuple[str, ...] = ROLES
    pauses: bool = False  # freezes and takeovers as well
    producers: int = 2
    rate_per_s: float = RATE_PER_S
    sink: Sink | None = None  # the database that ledgers are in

    @property
    def topic(self) -> str:
        return self.source.job.topic


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    plan: Plan
    verdict: Verdict
    lanes: list[str]  # names of the slots
    deeds: Deeds
    faults: list[Fault]
    watch: Watch
    fed: int
    rounds: int
    processes: int
    played_s: float  # from the start to the end of the last process
    faults_over_s: float  # when healing began

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints; the faults one by one are in the report only."""
        plan, verdict = self.plan, self.verdict
        report = verdict.report
        return {
            "ok": verdict.ok,
            "app": plan.application,
            "topic": plan.topic,
            "input": plan.source.job.path,
            "seed": plan.seed,
            "seconds": round(self.played_s, 1),
            "rows_fed": self.fed,
            "rounds": self.rounds,
            "processes": self.processes,
            **self.deeds.as_dict(),
            "suppressed": {
                "refused_by_broker": self.watch.duplicates,
                "skipped_by_consumers": self.watch.skipped,
            },
            "topics": {} if report is None else report.topics,
            "outputs_pending": 0 if report is None else report.outputs_pending,
            "checks_run": verdict.checks_run,
            "checks_not_run": verdict.checks_not_run,
            "anomalies": verdict.anomalies_total,
            "anomalies_shown": [anomaly.as_dict() for anomaly in verdict.anomalies],
            "stories": verdict.stories,
            "notes": verdict.notes,
        }


@dataclass(slots=True)
class _Lateness:
    """When a lane was first seen whole, and last asked to end."""

    whole_s: float = 0.0
    asked_s: float = field(default=-ASK_AGAIN_S)


Progress = Callable[[float, str], None]  # share done, what is going on


def _silent(share: float, text: str) -> None:
    """Report no progress."""


class Play:
    """One run in one directory, which must be empty."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        *,
        say: Callable[[str], None],
        progress: Progress = _silent,
    ) -> None:
        """`say` gets a line for each fault.

        `progress` is called several times a second, wherever the run can be broken off: what it
        raises comes out of `run`, after every process was ended.
        """
        self.plan = plan
        self._directory = directory
        self._say = say
        self._progress = progress
        for name in ("events", "printed", "input"):
            (directory / name).mkdir(parents=True)
        rng = random.Random(f"feed {plan.seed}")
        self._feed = Feed(
            plan.source, directory / "input", plan.producers, rate=plan.rate_per_s, rng=rng
        )
        self._slots = cast(plan.application, plan.consumers, self._feed, plan.topic)
        self._watch = Watch(directory / "events")
        self._chaos = Chaos(
            self._slots,
            seed=plan.seed,
            directory=directory / "printed",
            environ=environment(directory, free_endpoint()),
            history=self._watch,
            say=say,
            feed=self._tick,
            roles=plan.roles,
            pauses=plan.pauses,
            gap_s=GAP_S,
            poll_s=POLL_S,
        )
        self._watch.count_from(self._chaos.began_s)
        self._late = {lane.name: _Lateness() for lane in self._feed.lanes}
        self._next_say_s = 0.0
        self._phase = "starting"
        self._earlier: tuple[Report, ...] = ()
        self._damage: tuple[Violation, ...] = ()

    def run(self) -> Outcome:
        """Do it all. Only what `progress` raises and bugs come out; processes end in any case."""
        failure, drained = "", False
        over_s = 0.0
        try:
            self._chaos.start()
            self._hurt()
            over_s = self._chaos.now_s
            self._drain()
            drained = True
        except ProgramFailed as error:
            failure = str(error)
            self._say(f"broken off: {failure.splitlines()[0]}")
        finally:
            self._chaos.close()
        played_s = self._chaos.now_s
        self._watch.refresh()
        run = Run(
            self._directory,
            self.plan.topic,
            self._feed,
            tuple((its.group, its.topic) for its in self.plan.consumers),
            self.plan.roles,
            self._chaos.deeds,
            Counter(refused=self._watch.duplicates, skipped=self._watch.skipped),
            drained,
            failure,
            self._earlier,
            self._damage,
            self.plan.sink,
        )
        verdict = judge(run, self._tell_judge)
        return Outcome(
            self.plan,
            verdict,
            [slot.program.name for slot in self._slots],
            self._chaos.deeds,
            self._chaos.faults,
            self._watch,
            self._feed.fed,
            self._feed.rounds,
            self._chaos.started,
            played_s,
            over_s or played_s,
        )

    # --- faults ----------------------------------------------------------------------------------

    def _hurt(self) -> None:
        """Both halves of the faults, with a look at the files between them."""
        plan, chaos = self.plan, self._chaos
        self._phase = "faults"
        takeovers = self._takeovers()
        if plan.kills is None:
            assert plan.seconds is not None, "a plan has a time or a number of kills"
            chaos.run_for(plan.seconds / 2, takeovers=takeovers[::2])
            self._look()
            chaos.run_for(plan.seconds - chaos.now_s, takeovers=takeovers[1::2])
        else:
            patience_s = KILL_TIMEOUT_S * (plan.kills + 5 + 2 * len(takeovers))
            half = plan.kills // 2
            chaos.run(half, takeovers=takeovers[::2], timeout_s=patience_s)
            self._look()
            chaos.run(plan.kills, takeovers=takeovers[1::2], timeout_s=patience_s, each_role=1)
        self._phase = "healing"
        chaos.calm()

    def _takeovers(self) -> list[str]:
        """Choose the slots that a successor shall replace: each in turn, role after role."""
        plan = self.plan
        if not plan.pauses:
            return []
        able = {
            role: [slot.program.name for slot in self._slots if slot.role == role and slot.owned]
            for role in plan.roles
        }
        turns = [cycle(names) for names in able.values() if names]
        if plan.kills is None:
            assert plan.seconds is not None, "a plan has a time or a number of kills"
            count = int(plan.seconds / TAKEOVER_EVERY_S)
        else:
            count = plan.kills // TAKEOVER_EVERY_KILLS
        count = max(len(turns), count)  # each role once at least
        return [next(names) for names in islice(cycle(turns), count)] if turns else []

    def _look(self) -> None:
        """Prove the files of the system at work: a later look must show the same and more."""
        if sum(its.end for its in self._watch.accepted.values()) > IN_MEMORY_MAX // 2:
            return
        try:
            found = look(self._directory, self.plan.sink)
        except LogMoved as error:  # takeovers and compactions came faster than the look
            self._say(f"no look at the files: {error}")
        except OnceMQError as error:
            reason = f"{type(error).__name__}: {error}"
            self._damage += (Violation("files", str(self._directory), (), reason),)
        else:
            self._earlier += (found,)
            accepted = sum(its["accepted"] for its in found.topics.values())
            self._say(f"{self._chaos.now_s:8.2f} look    at {accepted} messages")

    # --- work ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now_s, watch, topic = self._chaos.now_s, self._watch, self.plan.topic
        done = [
            watch.processed_of(its.group, topic)
            for its in self.plan.consumers
            if its.topic == topic
        ]
        behind = self._feed.fed - min(done)
        self._feed.grow(now_s, behind, watch.best_per_s, self._chaos.in_takeover)
        for lane in self._feed.lanes:
            late = self._late[lane.name]
            if lane.name not in self._chaos.present or not lane.portion.whole:
                late.whole_s = now_s
                continue
            due_s = max(late.whole_s + SETTLE_S, late.asked_s + ASK_AGAIN_S)
            if now_s >= due_s and self._chaos.ask_to_end(lane.name):
                late.asked_s = now_s
        if now_s >= self._next_say_s:
            self._next_say_s = now_s + SAY_EVERY_S
            self._progress(self._share(now_s), self._status())

    def _share(self, now_s: float) -> float:
        plan = self.plan
        if plan.kills is not None:
            return min(1.0, self._chaos.deeds.kills.total() / plan.kills)
        return min(1.0, now_s / (plan.seconds or 1.0))

    def _status(self) -> str:
        deeds = self._chaos.deeds
        processed = sum(its.end for its in self._watch.processed.values())
        return (
            f"{self._phase}: {deeds.kills.total()} kills, {self._feed.fed:,} fed, "
            f"{processed:,} processed"
        )

    def _tell_judge(self, phase: str, done: int, whole: int) -> None:
        now_s = self._chaos.now_s
        if now_s >= self._next_say_s:
            self._next_say_s = now_s + SAY_EVERY_S
            share = f" {100 * done // whole} %" if whole else ""
            self._progress(1.0, f"verifying: {phase}{share}")

    # --- the end ---------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Let everything be sent and processed, then end all, downstream of the broker first."""
        self._phase = "draining"
        self._feed.finish()
        lanes = {lane.name for lane in self._feed.lanes}
        self._wait(lambda: lanes.isdisjoint(self._chaos.present), 0.0)
        if not lanes.isdisjoint(self._chaos.present):
            raise ProgramFailed("producers do not come to the end of their files")
        self._wait(self._caught_up, IDLE_S)
        self._phase = "stopping"
        for slot in self._slots:
            if slot.role == "consumer":
                self._chaos.leave(slot.program.name, frozenset({"client.connected"}))
        self._chaos.leave("broker", frozenset({"broker.ready"}))

    def _caught_up(self) -> bool:
        watch = self._watch
        return all(
            watch.processed_of(its.group, its.topic) >= watch.accepted_of(its.topic)
            for its in self.plan.consumers
        )

    def _wait(self, done: Callable[[], bool], idle_s: float) -> None:
        """Wait until `done` holds and nothing has moved for `idle_s`, or nothing moves any more."""
        moved_s, before = time.monotonic(), self._moved()
        while True:
            self._chaos.breathe(POLL_S)
            now_s, now = time.monotonic(), self._moved()
            if now != before:
                moved_s, before = now_s, now
            if now_s - moved_s >= (idle_s if done() else STILL_S):
                return

    def _moved(self) -> Sequence[int]:
        events = self._watch.events
        names = ("batch.appended", "batch.duplicate", "commit.synced", "output.acked")
        return [events[name] for name in names]
