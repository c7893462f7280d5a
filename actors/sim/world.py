"""A whole system in one thread: broker, producers and consumers on simulated disk, network, clock.

Theory of operation. The world is a loop: a timer that is due, else a turn of a random process that
has mail or a deadline, else time jumps to the next thing that will happen. A process that freezes
inside a disk call keeps its stack while the loop runs on inside that call, so it goes on later in
the very middle of its turn. A crash is an exception out of a disk call.

A run has two phases. *Safety*: faults strike as the plan says, and every promise is checked at every
event (oracles/, processes/users.py). *Liveness*: all is mended and started again, and then
everything must be sent, handled and acknowledged, with bounded waiting on top of the work itself.
Chance comes from the seed only, in a stream for each part, so one seed is one run.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import (
    DiskFull,
    Fenced,
    LedgerNotHere,
    LogInUse,
    RetiredProducer,
    SinkUnavailable,
    StorageError,
)
from . import end_of_run
from .clock import SimClock
from .disk.cuts import CutPolicy
from .environment import Environment, Host, Role
from .faults.base import Fault
from .faults.catalog import FAULTS
from .plan import Plan
from .processes.consumer import SimConsumer
from .processes.consumer_table import SimTableConsumer
from .processes.dated_user import TOPIC
from .processes.population import Population
from .processes.producer import SimProducer
from .processes.relay import MakeRelay
from .processes.role import NEVER_MS
from .trace import Violation

EVENTS_MAX = 60_000  # of a run of a minute; a longer one may have
EVENTS_PER_S_MAX = 1_000  # for each simulated second: a busy world makes half of it, a spin more
NESTING_MAX = 3
STEPS_BETWEEN_LOOKS = 16  # at whether all is done: it takes longer than a step
RESTART_MS = (20, 4_000)


@dataclass(slots=True)
class Outline:
    """How a run went, for sums over many runs."""

    events: int
    simulated_ms: int
    trace_hash: str
    counts: Counter[str]


class World(Environment):
    """One run."""

    def __init__(self, plan: Plan, make_relay: MakeRelay, *, trace: bool = False) -> None:
        super().__init__(plan, trace=trace)
        self.rng = random.Random(f"{plan.seed} world")
        self.events = 0
        self.people = Population(self, make_relay)
        self._depth = 0
        self._power: dict[Role, Callable[[], CutPolicy]] = {}  # what a crash of a role means
        self._faults: list[Fault] = [
            FAULTS[name](self.people, mean_ms) for name, mean_ms in sorted(plan.faults.items())
        ]
        for one in self._faults:
            self.limits = one.tightened(self.limits)

    # --- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run both phases. Raises Violation, and whatever a core raises that it should not."""
        self.people.broker.start()
        self._make_topics()
        for role in [*self.people.producers, *self.people.members]:
            self.after(self.rng.randint(0, 500), role.start)
        if self.people.program is not None:
            self.people.program.arm()
            for relay in self.people.relays:
                relay.start()
        for one in self._faults:
            one.arm()
        self._safety_end_ms = self.clock.now_ms() + self.plan.safety_ms
        while self.clock.now_ms() < self._safety_end_ms:
            self._step()
        self.healing = True
        self.trace.add("world", "heal")
        for one in self._faults:
            one.heal()
        self._power.clear()
        end_of_run.heal(self.people)
        self.after(end_of_run.SETTLE_MS, self._come_to_rest)
        healed_ms = self.clock.now_ms()
        while not end_of_run.done(self.people):
            if end_of_run.late(self.people, healed_ms):
                raise Violation("not live", end_of_run.what_is_left(self.people))
            for _ in range(STEPS_BETWEEN_LOOKS):
                self._step()
        end_of_run.validate(self.people)

    def _come_to_rest(self) -> None:
        self.at_rest = True

    def close(self) -> None:
        """End what lives outside of this world. Call it after `run`, however that ended."""
        for database in self.people.databases.values():
            database.close()
        for relay in self.people.relays:
            relay.gone()

    def outline(self) -> Outline:
        counts = Counter(self.trace.counts)
        network = self.network.counts
        for name in ("dropped", "duplicated", "reordered"):
            counts[f"message {name}"] = getattr(network, name)
        return Outline(self.events, self._simulated_ms, self.trace.hash(), counts)

    @property
    def _simulated_ms(self) -> int:
        return self.clock.now_ms() - SimClock().now_ms()

    def _step(self) -> None:
        now = self.clock.now_ms()
        timer = self.next_timer_ms
        if timer is not None and timer <= now:
            self.run_timer()
            return
        self.network.deliver()
        ready = [role for role in self.people.roles if role.ready(now)]
        if ready:
            self.events += 1
            if self.events > max(EVENTS_MAX, EVENTS_PER_S_MAX * self._simulated_ms // 1000):
                raise Violation(
                    "stuck", f"{self.events} events: {end_of_run.what_is_left(self.people)}"
                )
            role = ready[0] if len(ready) == 1 else self.rng.choice(ready)
            self.trace.add(role.name, "turn")
            role.run_turn()
            if self.rng.random() < 0.3:
                self.clock.advance(1)
            return
        self.clock.advance_to(max(now + 1, min(self._next_ms(now), now + 1_000)))

    def _next_ms(self, now: int) -> int:
        times = [role.due_ms for role in self.people.roles if role.alive]
        times = [time for time in times if time > now]
        times += [s.frozen_until_ms for s in self.people.roles if s.frozen_until_ms > now]
        dues = (self.next_timer_ms, self.network.next_due_ms())
        times += [due for due in dues if due is not None]
        return min(times, default=NEVER_MS)

    # --- phases ----------------------------------------------------------------------------------

    def _make_topics(self) -> None:
        client = self.connect()
        for frames in self.people.topic_requests():
            client.send(b"", frames)
        wanted = {*self.plan.partitions, *([TOPIC] if self.plan.with_horizons else [])}
        while {created.topic for created in self.oracle.topics} != wanted:
            self._step()
        client.close()

    # --- who lives here --------------------------------------------------------------------------

    def role(self, name: str) -> Role | None:
        return next((role for role in self.people.roles if role.name == name), None)

    # --- ends and interruptions ------------------------------------------------------------------

    def kill(self, role: Role) -> None:
        self.trace.add(role.name, "killed")
        role.gone()
        self.restart(role)

    def crashed(self, role: Role) -> None:
        policy = self._power.pop(role, None)
        if policy is None:
            self.kill(role)
        else:
            self.power_cut(role.host, policy())

    def cut_power_at_crash(self, role: Role, policy: Callable[[], CutPolicy]) -> None:
        self._power[role] = policy

    def power_cut(self, host: Host, policy: CutPolicy) -> None:
        host.boots += 1
        left = host.disk.power_cut(policy)
        self.trace.add(host.name, "power off", {"policy": policy})
        host.disk = left
        for database in self.people.databases.values():
            database.power_cut(host)
        for role in self.people.roles:
            if role.host is host:
                self._power.pop(role, None)
                if role.alive:
                    self.kill(role)

    def may_nest(self) -> bool:
        return self._depth < NESTING_MAX and not self.healing

    def freeze_inside(self, role: Role, kind: str, pause_ms: int) -> None:
        self.trace.add(role.name, "frozen inside", {"call": kind, "ms": pause_ms})
        until_ms = min(self.clock.now_ms() + pause_ms, self._safety_end_ms)
        role.frozen_until_ms = until_ms
        self._depth += 1
        try:
            while self.clock.now_ms() < until_ms and role.alive:
                self._step()
        finally:
            self._depth -= 1
        self.trace.add(role.name, "thawed")

    def ended(self, role: Role, error: BaseException | None, *, serving: bool) -> None:
        if not self._expected(role, error, serving=serving):
            raise Violation(
                "unexpected end", f"{role.name}: {type(error).__name__}: {error}"
            ) from error
        self.restart(role)

    def _expected(self, role: Role, error: BaseException | None, *, serving: bool) -> bool:
        if error is None or isinstance(error, Fenced | LogInUse):
            return True
        if isinstance(error, RetiredProducer):
            return isinstance(role, SimProducer) and "retirement" in self.plan.faults
        if isinstance(error, SinkUnavailable):
            return isinstance(role, SimTableConsumer) and not (self.at_rest and role.alone)
        if isinstance(error, DiskFull):
            return self.disks_full > 0
        if isinstance(error, LedgerNotHere):
            return isinstance(role, SimConsumer) and (role.stranger or self.people.strangers > 0)
        if isinstance(error, OSError):
            # A full disk may keep a process from starting; one that runs refuses and waits.
            full = error.errno == errno.ENOSPC and self.disks_full > 0 and not serving
            taken = error.errno == errno.EADDRINUSE and not serving  # by the fault of that name
            return full or taken or (error.errno == errno.EIO and self.io_faults > 0)
        return type(error) is StorageError and self.io_faults + self.disks_full > 0

    def restart(self, role: Role) -> None:
        if not role.wanted or role.restart_due:
            return
        role.restart_due = True
        low, high = RESTART_MS
        pause = low if self.healing else int(low * (high / low) ** self.rng.random())
        self.after(pause + (400 if isinstance(role.error, LogInUse) else 0), role.start)
