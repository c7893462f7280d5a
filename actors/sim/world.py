"""A whole system in one thread: broker, producers and consumers on simulated disk, network, clock.

Theory of operation. The world is a loop: a timer that is due, else a turn of a random process that
has mail or a deadline, else time jumps to the next thing that will happen. A process that freezes
inside a disk call keeps its stack while the loop runs on inside that call, so it goes on later in
the very middle of its turn. A crash is an exception out of a disk call.

A run has two phases. *Safety*: faults strike as the plan says, and every promise is checked at every
event (oracle.py, ledger_oracle.py, users.py). *Liveness*: all is mended and started again, and then
everything must be sent, handled and acknowledged, with bounded waiting on top of the work itself.
Chance comes from the seed only, in a stream for each part, so one seed is one run.
"""

from __future__ import annotations

import errno
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import DiskFull, Fenced, LedgerNotHere, LogInUse, SinkUnavailable, StorageError
from ..limits import LIMITS, Limits
from .clock import SimClock
from .database.database import Database
from .disk.cuts import CutPolicy
from .disk.disk import SimDisk
from .doors import Doors
from .faults.base import Fault
from .faults.catalog import FAULTS
from .network import Endpoint, Faults, SimNetwork
from .oracles import liveness
from .oracles.effects import EffectModel
from .oracles.ledger import LedgerOracle
from .oracles.log import BrokerOracle
from .plan import Plan
from .processes.broker import MAIN_ADDRESS, SimBroker
from .processes.consumer import SimConsumer
from .processes.consumer_table import SimTableConsumer
from .processes.population import Population, member_elsewhere
from .processes.shell import NEVER_MS, Host, Shell, SimTransport
from .trace import Trace, Violation

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


class World:
    """One run."""

    def __init__(self, plan: Plan, doors: Doors, *, trace: bool = False) -> None:
        """`doors` makes what consumers look at their ledger with; `trace` keeps all."""
        self.plan = plan
        self.doors = doors
        self.clock = SimClock()
        self.trace = Trace(self.clock, keep_all=trace)
        self.network = SimNetwork(self.clock, plan.seed, Faults(delay_max_ms=5))
        self.rng = random.Random(f"{plan.seed} world")
        self._entropy = random.Random(f"{plan.seed} entropy")
        self.oracle = BrokerOracle()
        self.ledgers: dict[tuple[str, str], LedgerOracle] = {}
        self.events = 0
        self.healing = False
        self.at_rest = False  # whether nothing follows from faults any more
        self.io_faults = 0
        self.disks_full = 0
        self.strangers = 0
        # What happens to the next process that opens a log.
        self.next_opening: Callable[[Shell], None] | None = None
        # Addresses at which a broker was, the present one last.
        self.addresses: list[bytes] = [MAIN_ADDRESS]
        self._depth = 0
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._power: dict[Shell, Callable[[], CutPolicy]] = {}  # what a crash of a shell means
        names = ("alpha",) if plan.one_host else ("alpha", "beta")
        self.hosts = [
            Host(name, SimDisk(sector_bytes=plan.sector_bytes)) for name in (*names, "elsewhere")
        ]
        people = Population(self)
        self.broker: SimBroker = people.broker
        self.spare_broker: SimBroker = people.spare_broker
        self.producers = people.producers
        self.users = people.users
        self.members: list[SimConsumer] = people.members
        # Databases that hold ledgers, by group.
        self.databases: dict[str, Database] = people.databases
        self.outbox = people.outbox
        self._program, self._relays = people.program, people.relays
        self.shells: list[Shell] = [
            self.broker,
            self.spare_broker,
            *self.producers,
            *people.relays,
            *self.members,
        ]
        self._faults: list[Fault] = [
            FAULTS[name](self, mean_ms) for name, mean_ms in sorted(plan.faults.items())
        ]
        # What every process gets, from its start to the end of the run.
        self.limits: Limits = replace(LIMITS, solitary_messages_max=plan.solitary_max)
        for one in self._faults:
            self.limits = one.tightened(self.limits)

    # --- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run both phases. Raises Violation, and whatever a core raises that it should not."""
        self.broker.start()
        self._make_topics()
        for shell in [*self.producers, *self.members]:
            self.after(self.rng.randint(0, 500), shell.start)
        if self._program is not None:
            self._program.arm()
            for relay in self._relays:
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
        liveness.heal(self)
        self.after(liveness.SETTLE_MS, self._come_to_rest)
        healed_ms = self.clock.now_ms()
        while not liveness.done(self):
            if liveness.late(self, healed_ms):
                raise Violation("not live", liveness.what_is_left(self))
            for _ in range(STEPS_BETWEEN_LOOKS):
                self._step()
        liveness.validate(self)

    def _come_to_rest(self) -> None:
        self.at_rest = True

    def close(self) -> None:
        """End what lives outside of this world. Call it after `run`, however that ended."""
        for database in self.databases.values():
            database.close()
        for relay in self._relays:
            relay.gone()

    def outline(self) -> Outline:
        """Return what happened, in numbers."""
        counts = Counter(self.trace.counts)
        network = self.network.counts
        for name in ("dropped", "duplicated", "reordered"):
            counts[f"message {name}"] = getattr(network, name)
        return Outline(self.events, self._simulated_ms, self.trace.hash(), counts)

    @property
    def _simulated_ms(self) -> int:
        """How long the run lasts so far."""
        return self.clock.now_ms() - SimClock().now_ms()

    def _step(self) -> None:
        """Do one thing."""
        now = self.clock.now_ms()
        if self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
            return
        self.network.deliver()
        ready = [shell for shell in self.shells if shell.ready(now)]
        if ready:
            self.events += 1
            if self.events > max(EVENTS_MAX, EVENTS_PER_S_MAX * self._simulated_ms // 1000):
                raise Violation("stuck", f"{self.events} events: {liveness.what_is_left(self)}")
            shell = ready[0] if len(ready) == 1 else self.rng.choice(ready)
            self.trace.add(shell.name, "turn")
            shell.run_turn()
            if self.rng.random() < 0.3:
                self.clock.advance(1)
            return
        self.clock.advance_to(max(now + 1, min(self._next_ms(now), now + 1_000)))

    def _next_ms(self, now: int) -> int:
        times = [shell.due_ms for shell in self.shells if shell.alive]
        times = [time for time in times if time > now]
        times += [s.frozen_until_ms for s in self.shells if s.frozen_until_ms > now]
        if self._timers:
            times.append(self._timers[0][0])
        due = self.network.next_due_ms()
        if due is not None:
            times.append(due)
        return min(times, default=NEVER_MS)

    def after(self, milliseconds: int, work: Callable[[], None]) -> None:
        """Do `work` after some time, between two turns."""
        self._timer_count += 1
        due = self.clock.now_ms() + milliseconds
        heapq.heappush(self._timers, (due, self._timer_count, work))

    # --- phases ----------------------------------------------------------------------------------

    def _make_topics(self) -> None:
        """Make the topics before anything goes wrong."""
        client = self.connect()
        for frames in Population.topic_requests(self):
            client.send(b"", frames)
        wanted = set(self.plan.partitions)
        while {created.topic for created in self.oracle.topics} != wanted:
            self._step()
        client.close()

    # --- what shells ask for ---------------------------------------------------------------------

    def draw(self) -> bytes:
        """Draw 16 random bytes."""
        return self._entropy.randbytes(16)

    def shell(self, name: str) -> Shell | None:
        """Return the shell called `name`."""
        return next((shell for shell in self.shells if shell.name == name), None)

    def connect(self) -> SimTransport:
        """Return a new socket to where the broker is."""
        return SimTransport(self, self.connect_endpoint())

    def connect_endpoint(self, address: bytes | None = None) -> Endpoint:
        """Return a new client's side of the network: to where the broker is, or to `address`."""
        return self.network.connect(self.draw(), self.addresses[-1] if address is None else address)

    def clients(self) -> list[Shell]:
        """Return all living clients."""
        brokers = (self.broker, self.spare_broker)
        return [s for s in self.shells if s.alive and s.transport is not None and s not in brokers]

    def free_address(self) -> bytes:
        """Return where a new broker may listen: the usual place unless somebody is there."""
        if not self.network.listening(MAIN_ADDRESS):
            return MAIN_ADDRESS
        return b"broker-%d" % self.trace.counts["broker open"]

    def about_to_open(self, shell: Shell) -> None:
        """A process begins to open a log."""
        happening, self.next_opening = self.next_opening, None
        if happening is not None:
            happening(shell)

    def broker_opened(self, shell: SimBroker) -> None:
        """A broker serves from now on: whoever connects anew finds it."""
        self.trace.add(shell.name, "broker open", {"address": shell.endpoint_name()})
        self.addresses.append(shell.endpoint_name())

    def ledger_oracle(self, shell: SimConsumer) -> LedgerOracle:
        """Return the oracle of the ledger that a member works with."""
        key = (shell.host.name, shell.directory)
        oracle = self.ledgers.get(key)
        if oracle is None:
            name = f"{shell.host.name}:{shell.directory}"
            oracle = self.ledgers[key] = LedgerOracle(
                name, shell.group, shell.partition, self.oracle, self.plan.crash_retries
            )
            plain = not isinstance(shell, SimTableConsumer) and not shell.group.concurrency
            if self.plan.with_effects and plain:
                oracle.effects = EffectModel(name)
        return oracle

    # --- ends and interruptions ------------------------------------------------------------------

    def kill(self, shell: Shell) -> None:
        """kill -9."""
        self.trace.add(shell.name, "killed")
        shell.gone()
        self.restart(shell)

    def crashed(self, shell: Shell) -> None:
        """A process died inside a disk call; perhaps its machine did."""
        policy = self._power.pop(shell, None)
        if policy is None:
            self.kill(shell)
        else:
            self.power_cut(shell.host, policy())

    def cut_power_at_crash(self, shell: Shell, policy: Callable[[], CutPolicy]) -> None:
        """The crash of `shell` that comes now is that of its machine."""
        self._power[shell] = policy

    def power_cut(self, host: Host, policy: CutPolicy) -> None:
        """Stop a machine: all its processes die, its disk keeps what `policy` says."""
        host.boots += 1
        left = host.disk.power_cut(policy)
        self.trace.add(host.name, "power off", {"policy": policy})
        host.disk = left
        for database in self.databases.values():
            database.power_cut(host)
        for shell in self.shells:
            if shell.host is host:
                self._power.pop(shell, None)
                if shell.alive:
                    self.kill(shell)

    def may_nest(self) -> bool:
        """Whether one more process may stand still with its turn on the stack."""
        return self._depth < NESTING_MAX and not self.healing

    def freeze_inside(self, shell: Shell, kind: str, pause_ms: int) -> None:
        """Let the world go on while `shell` stands still inside a disk call."""
        self.trace.add(shell.name, "frozen inside", {"call": kind, "ms": pause_ms})
        until_ms = min(self.clock.now_ms() + pause_ms, self._safety_end_ms)
        shell.frozen_until_ms = until_ms
        self._depth += 1
        try:
            while self.clock.now_ms() < until_ms and shell.alive:
                self._step()
        finally:
            self._depth -= 1
        self.trace.add(shell.name, "thawed")

    def ended(self, shell: Shell, error: BaseException | None, *, serving: bool) -> None:
        """A process ended by itself: was it right to? `serving`: it had its log open."""
        if not self._expected(shell, error, serving=serving):
            raise Violation(
                "unexpected end", f"{shell.name}: {type(error).__name__}: {error}"
            ) from error
        self.restart(shell)

    def _expected(self, shell: Shell, error: BaseException | None, *, serving: bool) -> bool:
        if error is None or isinstance(error, Fenced | LogInUse):
            return True
        if isinstance(error, SinkUnavailable):
            return isinstance(shell, SimTableConsumer) and not (self.at_rest and shell.alone)
        if isinstance(error, DiskFull):
            return self.disks_full > 0
        if isinstance(error, LedgerNotHere):
            return isinstance(shell, SimConsumer) and (shell.stranger or self.strangers > 0)
        if isinstance(error, OSError):
            # A full disk may keep a process from starting; one that runs refuses and waits.
            full = error.errno == errno.ENOSPC and self.disks_full > 0 and not serving
            return full or (error.errno == errno.EIO and self.io_faults > 0)
        return type(error) is StorageError and self.io_faults + self.disks_full > 0

    def restart(self, shell: Shell) -> None:
        """Start `shell` again after a while, as a supervisor or an operator does."""
        if not shell.wanted or shell.restart_due:
            return
        shell.restart_due = True
        low, high = RESTART_MS
        pause = low if self.healing else int(low * (high / low) ** self.rng.random())
        self.after(pause + (400 if isinstance(shell.error, LogInUse) else 0), shell.start)

    def start_elsewhere(self, member: SimConsumer, *, copy: bool) -> bool:
        """Start a consumer with another directory: an empty one, or a copy of the member's."""
        if self.oracle.grants.get(member.place) is None:
            return False
        self.strangers += 1
        shell = member_elsewhere(self, member, copy=copy)
        if shell is None:
            return False
        shell.stranger = not copy
        shell.wanted = copy
        self.shells.append(shell)
        shell.start()
        return True
