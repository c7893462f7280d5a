"""A consumer's process in a simulated world: one member for one partition of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xxhash

from ...core.client.connection import Reconnect
from ...core.consumer.core import ConsumerCore
from ...core.consumer.effect_work import (
    EffectAnswer,
    EffectHeld,
    EffectTold,
    EffectWanted,
    KeepOrders,
    LookForOrders,
)
from ...core.consumer.grant import Member
from ...core.consumer.work import (
    CutHandler,
    Drain,
    GaveBack,
    HandlerDone,
    OpenLedger,
    PeekLedger,
    Repost,
    ResolveTopic,
    RunHandler,
    StandingBy,
    TopicFound,
    TopicResolved,
)
from ...driver import DISK_FULL_RETRY_MS, Driver
from ...errors import DiskFull, LogInUse
from ...ids import private_topic
from ...limits import JOIN_RETRY_MS, LIMITS, STANDBY_RETRY_MS
from ...outcome import Stop
from ...ports import Log
from ...storage.document import Owner
from ...storage.log import FencedLog
from ..disk.disk import SimProcess
from ..doors import FileDoor, LedgerDoor
from ..oracles.effects import Blocked
from ..oracles.ledger import RETRIES
from ..trace import Violation
from .handler import Group
from .handler_run import HandlerRun
from .keyed import Kept, KeyedRun
from .pauses import Pauses
from .shell import NEVER_MS, Host, ProcessClock, Shell, SimEvents
from .watched import opener

if TYPE_CHECKING:
    from ..world import World


class ConsumerShell(Shell):
    """One member; its ledger is in files (table_shell.py: in a table)."""

    commit_first = False  # no call before the commit before it
    may_be_kept_waiting = False  # by others that are at work, for as long as that takes

    def __init__(
        self,
        world: World,
        name: str,
        host: Host,
        group: Group,
        partition: int,
        directory: str,
    ) -> None:
        super().__init__(world, name, host)
        self.group = group
        self.partition = partition
        self.directory = directory
        self.member = (
            b""  # the process that it is a part of, for the broker; b"": takes what is free
        )
        self.stranger = False  # started with a wrong directory: it must never be granted
        self.healed_work_ms = 0  # what its handler runs were given to take since all was mended
        self._outlived = 0  # under which epoch it had its partition when its database failed
        self.core: ConsumerCore | None = None
        self._ledger: LedgerDoor | None = None
        self._seed = 0
        self._again: Any = None
        self._again_ms = NEVER_MS
        self._call: RunHandler | None = None
        self._call_ms = NEVER_MS
        self._takes_ms = 0  # how long it takes, roughly
        self.cut_asked = False
        self._running: HandlerRun | None = None
        self._kept = Kept()
        self._resolved = False
        self._pauses = Pauses()
        # How this ledger is opened, by whom ever: what its oracle has been told must be there.
        self._open_log = opener(lambda: world.ledger_oracle(self), world.plan.ledger_segment_bytes)

    @property
    def place(self) -> tuple[str, str, int]:
        """(group, topic, partition)."""
        return self.group.name, self.group.topic, self.partition

    def begin(self) -> None:
        """Make the core; it peeks into the ledger by itself."""
        world, process = self.world, self.process
        assert process is not None
        self._ledger = self._make_door(process)
        label = f"{self.name}.{self.incarnation}"
        limits = (RETRIES, world.plan.crash_retries)
        outlived, self._outlived = self._outlived, 0
        member = Member(
            *(*self.place, world.draw(), label, *limits, self.member),
            commit_first=self.commit_first,
            outlived=outlived,
        )
        self.core = ConsumerCore(member, "sim", fingerprint=self._fingerprints, limits=world.limits)
        self.transport = world.connect()
        self.driver = Driver(
            self.core,
            self.transport,
            ProcessClock(world.clock),
            self._make_events(),
            perform=self._perform,
            snapshot_every_bytes=world.plan.ledger_snapshot_every_bytes,
            compacts=True,
        )
        self._again = self._call = self._running = None
        self._again_ms = self._call_ms = NEVER_MS
        if self._kept.seen:
            world.trace.add(self.name, "keyed.lost", {"count": len(self._kept.seen)})
        self._kept = Kept()
        self._resolved = False
        self._pauses = Pauses()

    def _make_door(self, process: SimProcess) -> LedgerDoor:
        return self.file_door(process, self)

    def file_door(self, process: SimProcess, who: Shell) -> FileDoor:
        """Return the door to this ledger for a process of `who`."""
        owner: Owner = {"shell": who.name, "host": who.host.name, "incarnation": who.incarnation}
        return self.world.doors.files(
            process, self.directory, owner, draw=self.world.draw, open_log=self._open_log
        )

    def _make_events(self) -> SimEvents:
        return SimEvents(self.world, self.name)

    def _make_run(self, run: RunHandler) -> HandlerRun:
        if self.group.concurrency:
            return KeyedRun(self, run, self._kept, cut=self.cut_asked)
        return HandlerRun(self, run, cut=self.cut_asked)

    def gone(self) -> None:
        """See the base class."""
        super().gone()
        self.core = self._ledger = None

    def next_due_ms(self) -> int:
        """See the base class."""
        return min(super().next_due_ms(), self._again_ms, self._call_ms)

    def turn(self) -> None:
        """Do what waits outside of the core, then one turn of the driver."""
        now = self.world.clock.now_ms()
        if self._again_ms <= now:
            item, self._again, self._again_ms = self._again, None, NEVER_MS
            self._perform(item)
        if self._call_ms <= now and self._call is not None:
            self._answer_call()
        if self.driver is not None:
            self.driver.turn(0)

    def stop(self) -> None:
        """See the base class: commit what is being handled, give the grant back."""
        self._post(Drain())
        self.due_ms = self.world.clock.now_ms()

    @property
    def settled(self) -> bool:
        """Whether all that is stored was handled, committed and acknowledged."""
        core = self.core
        if core is None or core.idle_since_ms is None or core.phase != "running":
            return False
        messages = self.world.oracle.messages
        stored = messages[self.group.topic, self.partition]
        private = messages.get((private_topic(self.group.topic, self.group.name), self.partition))
        handled = sum(core.ledger.private_offsets.values())
        return core.ledger.next_offset == len(stored) and handled == len(private or ())

    # --- work ------------------------------------------------------------------------------------

    def _perform(self, item: Any) -> None:
        match item:
            case RunHandler():
                self._begin_call(item)
            case CutHandler():
                self.cut_asked = True
                if self._running is not None:
                    self._running.cut()
            case Repost():
                self._post(item.event)
            case EffectAnswer() if self._running is not None:
                left_ms = self._running.effects.answered(item)
                if left_ms is not None:
                    self.go_on_in(left_ms, work=False)
            case LookForOrders():
                assert self._ledger is not None
                for order in self._ledger.find_orders(item.effect_ids):
                    self._post(order)
            case KeepOrders():
                assert self._ledger is not None
                self._ledger.keep_orders(item.effect_ids)
            case PeekLedger():
                self._peek(item)
            case OpenLedger():
                self._open(item)
            case TopicResolved():
                self._topic_resolved(item)
            case Reconnect():
                self.world.reopen(self)
            case Stop():
                self.finish(item.error)
            case _:
                known = TopicFound | StandingBy | GaveBack | EffectHeld | EffectAnswer
                assert isinstance(item, known), f"unknown {item!r}"

    def tell(self, event: EffectWanted | EffectTold) -> None:
        """The handler says something of an effect."""
        self._post(event)

    def _post(self, event: object) -> None:
        if self.driver is not None:
            self.driver.post(event)

    def _peek(self, item: PeekLedger) -> None:
        assert self._ledger is not None
        try:
            facts = self._ledger.peek()
        except LogInUse:
            self._try_again(item, STANDBY_RETRY_MS)
            return
        self._seed = int.from_bytes(facts.ledger_id[:8], "little")
        self._post(facts)

    def _open(self, item: OpenLedger) -> None:
        assert self._ledger is not None and self.driver is not None and self.core is not None  # noqa: PT018
        grant = self.world.oracle.grants.get(self.place)
        if grant is None or grant.epoch < item.epoch:
            raise Violation("grant not durable", f"{self.name} was granted epoch {item.epoch}")
        if self.stranger:
            raise Violation("stranger granted", f"{self.name} in {self.directory}")
        self.world.about_to_open(self)
        try:
            log: Log = self._ledger.open(item.epoch)
        except DiskFull:
            self._try_again(item, DISK_FULL_RETRY_MS)
            return
        if isinstance(log, FencedLog) and log.cut_report is not None:
            self.world.trace.add(self.name, "log.tail_cut", {"bytes": log.cut_report.nbytes})
        self.driver.open_log(log)
        for damage in log.snapshot_damage if isinstance(log, FencedLog) else ():
            self.world.trace.add(self.name, "snapshot.fallback", {"reason": str(damage)})
        self._check_recovered(self.core)

    def _check_recovered(self, core: ConsumerCore) -> None:
        ledger, model = core.ledger, self.world.ledger_oracle(self)
        found = (ledger.next_offset, ledger.commit_no, ledger.state, ledger.next_sequence)
        expected = (model.next_offset, model.commit_no, model.state, model.next_sequence)
        if model.effects is not None:
            effects = {
                (one.topic_id, one.offset): (one.number, one.policy, one.how, one.value)
                for one in ledger.effects
            }
            if model.effects.differs(effects):
                raise Violation("recovered effects", f"{self.name}: {effects}")
        if found != expected:
            raise Violation("recovered state", f"{self.name}: {found}, not {expected}")

    def _try_again(self, item: Any, pause_ms: int) -> None:
        self._again = item
        self._again_ms = self.world.clock.now_ms() + pause_ms

    def _fingerprints(self, ids: list[bytes]) -> list[bytes]:
        return [xxhash.xxh3_128_digest(tagged, self._seed) for tagged in ids]

    # --- handlers --------------------------------------------------------------------------------

    def _topic_resolved(self, item: TopicResolved) -> None:
        if item.error is not None:
            raise item.error
        if item.partitions != self.world.oracle.partitions()[self.group.output]:
            raise Violation("partitions", f"{item.topic} was said to have {item.partitions}")
        self._resolved = True
        self._call_ms = self.world.clock.now_ms()

    def _begin_call(self, run: RunHandler) -> None:
        few_may_wait = self.world.limits.waiting_fetches_max < LIMITS.waiting_fetches_max
        refused_ms = JOIN_RETRY_MS if few_may_wait else 0
        now_ms, at_rest = self.world.clock.now_ms(), self.world.at_rest
        if self.may_be_kept_waiting:
            at_rest = False
        self._pauses.called(run, now_ms, at_rest=at_rest, refused_ms=refused_ms)
        self._takes_ms = self._handler_ms()
        self._call = run
        self._running = None
        self.cut_asked = False
        self.go_on_in(self._takes_ms)

    def _handler_ms(self) -> int:
        return self.world.plan.handler_ms(self.rng)

    def go_on_in(self, pause_ms: int, *, work: bool = True) -> None:
        """The call has its next step then; `work`: the handlers need that time."""
        self.healed_work_ms += pause_ms if work and self.world.healing else 0
        self._call_ms = self.world.clock.now_ms() + pause_ms

    def _answer_call(self) -> None:
        """The handler calls are over: tell the core what they did."""
        run = self._call
        assert run is not None and self.driver is not None  # noqa: PT018
        self._call_ms = NEVER_MS
        if self.group.output and not self._resolved:
            self.driver.post(ResolveTopic(self.group.output))
            return
        if self._running is None:
            self._running = self._make_run(run)
        try:
            done = self._running.answer()
        except Blocked:
            return
        self._call = None
        if done is None:
            self.world.trace.add(self.name, "killed by a message")
            self.world.kill(self)
        else:
            stored = self.world.oracle.messages[self.group.topic, self.partition]
            self._pauses.answered(run, done, len(stored), self.world.clock.now_ms())
            self._hand_over(done)

    def _hand_over(self, done: HandlerDone) -> None:
        """Give the answer of a call to the core."""
        self._post(done)
