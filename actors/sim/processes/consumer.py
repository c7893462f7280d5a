"""A consumer's process in a simulated world: one member for one partition of a group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.consumer.core import ConsumerCore
from ...core.consumer.effect_work import EffectAnswer, EffectHeld, EffectTold, EffectWanted
from ...core.consumer.work import Drain, ResolveTopic, RunHandler, TopicResolved
from ...errors import SinkUnavailable
from ...ids import private_topic
from ...limits import JOIN_RETRY_MS, LIMITS
from ...ports import Log
from ...shells.consumer import ConsumerShell, LedgerDoor
from ...shells.ledger.files import LedgerFiles
from ...storage.document import Owner
from ..disk.disk import SimProcess
from ..environment import Environment, Host
from ..oracles.effects import EffectModel
from ..oracles.ledger import RETRIES, LedgerOracle
from ..trace import Violation
from .handler import Group
from .handler_run import Blocked, HandlerRun
from .keyed import Kept, KeyedRun
from .late import Late
from .pauses import Pauses
from .role import NEVER_MS, ProcessClock, SimEvents, SimRole
from .watched import opener


class CheckedDoor:
    """The door to a ledger; what must hold before the ledger is opened is looked at first."""

    def __init__(self, door: LedgerDoor, check: Callable[[int], None]) -> None:
        """`check` takes the epoch and raises Violation."""
        self.directory = door.directory
        self.session = door.session
        self.peek = door.peek
        self.find_orders = door.find_orders
        self.keep_orders = door.keep_orders
        self.release = door.release
        self.close = door.close
        self._open = door.open
        self._check = check

    def open(self, epoch: int) -> Log:
        self._check(epoch)
        return self._open(epoch)


class CheckedEvents(SimEvents):
    """Events of a consumer; what its ledger holds after a recovery is looked at."""

    def __init__(self, consumer: SimConsumer) -> None:
        super().__init__(consumer.world, consumer.name)
        self._consumer = consumer

    def emit(self, event: str, **fields: Any) -> None:
        super().emit(event, **fields)
        if event == "log.opened":
            self._consumer.check_recovered()


class SimConsumer(SimRole):
    """One member; its ledger is in files (consumer_table.py: in a table). It hosts its shell."""

    may_be_kept_waiting = False  # by others that are at work, for as long as that takes

    def __init__(
        self,
        world: Environment,
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
        self._consumer: ConsumerShell | None = None
        self._call: RunHandler | None = None
        self._call_ms = NEVER_MS
        self._takes_ms = 0  # how long it takes, roughly
        self.cut_asked = False
        self._running: HandlerRun | None = None
        self._kept = Kept()
        self._resolved = False
        self._pauses = Pauses()
        # How this ledger is opened, by whom ever: what its oracle has been told must be there.
        self._open_log = opener(lambda: self.model, world.plan.ledger_segment_bytes)

    @property
    def place(self) -> tuple[str, str, int]:
        return self.group.name, self.group.topic, self.partition

    @property
    def model(self) -> LedgerOracle:
        """What its ledger has promised, whichever process wrote it."""
        world, key = self.world, (self.host.name, self.directory)
        model = world.ledgers.get(key)
        if model is None:
            name = f"{self.host.name}:{self.directory}"
            model = world.ledgers[key] = LedgerOracle(
                name, self.group, self.partition, world.oracle, world.plan.crash_retries
            )
            if world.plan.with_effects and self.may_have_effects:
                model.effects = EffectModel(name)
        return model

    @property
    def may_have_effects(self) -> bool:
        return not self.group.concurrency

    @property
    def holds_ledger(self) -> bool:
        """Whether its process lives and has not begun to close its ledger."""
        return self._consumer is not None and not self._consumer.ended

    @property
    def core(self) -> ConsumerCore | None:
        return None if self._consumer is None else self._consumer.core

    def begin(self) -> None:
        """Make the consumer; it peeks into the ledger by itself."""
        world, process = self.world, self.process
        assert process is not None
        door = self._make_door(process)
        self.transport = world.connect()
        outlived, self._outlived = self._outlived, 0
        self.actor = self._consumer = ConsumerShell(
            self.place,
            endpoint="sim",
            transport=self.transport,
            clock=ProcessClock(world.clock),
            events=self._make_events(),
            entropy=world.draw,
            ledger=CheckedDoor(door, self._check_grant),
            host=self,
            label=f"{self.name}.{self.incarnation}",
            retries=RETRIES,
            crash_retries=world.plan.crash_retries,
            process=self.member,
            outlived=outlived,
            snapshot_every_bytes=world.plan.ledger_snapshot_every_bytes,
            limits=world.limits,
            background=Late(f"{world.plan.seed} {self.name} {self.incarnation}"),
        )
        self._call = self._running = None
        self._call_ms = NEVER_MS
        if self._kept.seen:
            world.trace.add(self.name, "keyed.lost", {"count": len(self._kept.seen)})
        self._kept = Kept()
        self._resolved = False
        self._pauses = Pauses()

    def _make_door(self, process: SimProcess) -> LedgerDoor:
        return self.file_door(process, self)

    def file_door(self, process: SimProcess, who: SimRole) -> LedgerFiles:
        owner: Owner = {"shell": who.name, "host": who.host.name, "incarnation": who.incarnation}
        return LedgerFiles(
            process, self.directory, owner, draw=self.world.draw, open_log=self._open_log
        )

    def _make_events(self) -> SimEvents:
        return CheckedEvents(self)

    def _make_run(self, run: RunHandler) -> HandlerRun:
        if self.group.concurrency:
            return KeyedRun(self, run, self._kept, cut=self.cut_asked)
        return HandlerRun(self, run, cut=self.cut_asked)

    def gone(self) -> None:
        super().gone()
        self._consumer = None

    def next_due_ms(self) -> int:
        return min(super().next_due_ms(), self._call_ms)

    def turn(self) -> None:
        """Answer the call that is over, then turn the consumer once."""
        consumer = self._consumer
        assert consumer is not None, "it has begun"
        if self._call_ms <= self.world.clock.now_ms() and self._call is not None:
            self._answer_call()
        if self._consumer is consumer:  # no message has killed the process
            consumer.turn()
        if self._consumer is consumer and consumer.ended:
            self.finish(consumer.error)

    @property
    def serving(self) -> bool:
        return self._consumer is not None and self._consumer.serving

    def let_go(self, *, clean: bool) -> None:
        consumer = self._consumer
        if consumer is None:
            return
        consumer.end(self.error)
        if clean and consumer.error is not None and isinstance(consumer.error, Exception):
            raise consumer.error

    def stop(self) -> None:
        """Commit what is being handled, give the grant back."""
        self.post(Drain())
        self.due_ms = self.world.clock.now_ms()

    def post(self, event: Drain | EffectWanted | EffectTold) -> None:
        if self._consumer is not None:
            self._consumer.post(event)

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

    # --- checks ----------------------------------------------------------------------------------

    def _check_grant(self, epoch: int) -> None:
        """Called before the process opens its ledger. Raises Violation."""
        grant = self.world.oracle.grants.get(self.place)
        if grant is None or grant.epoch < epoch:
            raise Violation("grant not durable", f"{self.name} was granted epoch {epoch}")
        if self.stranger:
            raise Violation("stranger granted", f"{self.name} in {self.directory}")
        self.world.about_to_open(self)

    def check_recovered(self) -> None:
        """Compare the recovered ledger with its model. Raises Violation."""
        assert self.core is not None, "it has recovered"
        ledger, model = self.core.ledger, self.model
        found = (ledger.next_offset, ledger.commit_no, ledger.state, ledger.next_sequence)
        expected = (model.next_offset, model.commit_no, model.state, model.next_sequence)
        if model.effects is not None:
            effects = {
                (one.topic_id, one.offset): (one.number, one.policy, one.how, one.value)
                for one in ledger.effects
            }
            if model.effects.differs(effects):
                raise Violation("recovered effects", f"{self.name}: {effects}")
        if not model.knows_the_ids_of(ledger.processed):
            raise Violation("recovered ids", f"{self.name}: {ledger.processed.explicit_count}")
        if found != expected:
            raise Violation("recovered state", f"{self.name}: {found}, not {expected}")

    # --- host of the shell -----------------------------------------------------------------------

    def start_call(self, _: ConsumerShell, run: RunHandler, /) -> None:
        self._begin_call(run)

    def cut_call(self, _: ConsumerShell, /) -> None:
        self.cut_asked = True
        if self._running is not None:
            self._running.cut()

    def effect_answered(self, _: ConsumerShell, answer: EffectAnswer, /) -> None:
        if self._running is None:
            return
        left_ms = self._running.effects.answered(answer)
        if left_ms is not None:
            self.go_on_in(left_ms, work=False)

    def topic_resolved(self, _: ConsumerShell, resolved: TopicResolved, /) -> None:
        if resolved.error is not None:
            raise resolved.error
        if resolved.partitions != self.world.oracle.partitions()[self.group.output]:
            raise Violation("partitions", f"{resolved.topic} has {resolved.partitions}")
        self._resolved = True
        self._call_ms = self.world.clock.now_ms()

    def topic_found(self, _: ConsumerShell, partitions: int, /) -> None:
        """Nothing: the population has a member for each partition."""

    def standing_by(self, _: ConsumerShell, owner: str, /) -> None:
        """Nothing: no user reads it."""

    def effect_held(self, _: ConsumerShell, held: EffectHeld, /) -> None:
        """Nothing: operators look at the oracle."""

    def sink_away(self, _: ConsumerShell, error: SinkUnavailable, /) -> None:
        """Nothing: no user reads it."""

    # --- handlers --------------------------------------------------------------------------------

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
        run = self._call
        assert run is not None and self._consumer is not None  # noqa: PT018
        self._call_ms = NEVER_MS
        if self.group.output and not self._resolved:
            self._consumer.post(ResolveTopic(self.group.output))
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
            self._consumer.post(done)
