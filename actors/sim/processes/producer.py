"""A producer's process in a simulated world."""

from __future__ import annotations

from ...core.client.producer import Opened
from ...core.client.send_window import Settled
from ...history import Place
from ...shells.producer import ProducerShell
from ..environment import Environment, Host
from ..trace import Violation
from .role import NEVER_MS, ProcessClock, SimEvents, SimRole
from .users import User


class SimProducer(SimRole):
    """One process that sends for a user."""

    def __init__(self, world: Environment, name: str, host: Host, user: User) -> None:
        super().__init__(world, name, host)
        self.user = user
        self._producer: ProducerShell | None = None
        self._may_send = False  # the producer is open and its topic known
        self._memory: dict[str, int] = {}  # the user's notes in this process
        self._submit_ms = NEVER_MS
        self.relied = -1  # position of the furthest record whose verdict this process has

    def begin(self) -> None:
        world = self.world
        self.transport = world.connect()
        self.actor = self._producer = ProducerShell(
            self.user.name,
            endpoint="sim",
            transport=self.transport,
            clock=ProcessClock(world.clock),
            events=SimEvents(world, self.name),
            entropy=world.draw,
            label=f"{self.name}.{self.incarnation}",
            limits=world.limits,
        )
        self._producer.ask(self.user.topic)
        self._may_send = False
        self.relied = -1
        self._memory.clear()
        self._submit_ms = NEVER_MS

    def gone(self) -> None:
        super().gone()
        self._producer = None

    def next_due_ms(self) -> int:
        return min(super().next_due_ms(), self._submit_ms)

    def turn(self) -> None:
        """Send what is due, then one turn of the shell; tell the user what came of it."""
        producer = self._producer
        assert producer is not None, "it has begun"
        now = self.world.clock.now_ms()
        if self._submit_ms <= now:
            self._submit_ms = now + self.world.plan.submit_ms(self.rng)
            if producer.room:
                submit = self.user.next_submit(
                    f"{self.name}.{self.incarnation}", self.rng, self._memory
                )
                if submit is not None:
                    producer.submit(submit)
                else:
                    self._submit_ms = NEVER_MS  # until something happens: else half of all turns
        producer.turn(0)
        if not self._may_send:
            self._look_whether_it_may_send(producer)
        settled = producer.take_settled()
        for one in settled:
            self._rely(one)
            self.user.settled(one)
        if settled and self._submit_ms == NEVER_MS:
            self._submit_ms = now
        if producer.error is not None:
            self.finish(producer.error)

    def _rely(self, settled: Settled) -> None:
        stored = self.world.oracle.messages[settled.topic, settled.partition]
        for count, _, offset in settled.runs:
            if offset >= 0:
                self.relied = max(self.relied, stored[offset + count - 1].position)

    @property
    def place(self) -> Place | None:
        """What its next hello would name; None while there is no process."""
        return None if self._producer is None else self._producer.core.connection.place

    @property
    def settled(self) -> bool:
        return self._producer is None or not self._producer.in_flight

    def _look_whether_it_may_send(self, producer: ProducerShell) -> None:
        for topic, error in producer.refused.items():
            raise Violation("refused", f"{self.name}: {topic}: {error}")
        known = producer.topics.get(self.user.topic)
        if producer.opened is None or known is None:
            return
        if known.partitions != self.world.oracle.partitions()[known.topic]:
            raise Violation("partitions", f"{known.topic}: {known.partitions}")
        self._check_grant(producer.opened)
        self.user.opened(producer.opened, self._memory)
        self._may_send = True
        self._submit_ms = self.world.clock.now_ms()

    def _check_grant(self, opened: Opened) -> None:
        if (
            self.user.name
            and self.world.oracle.producer_epochs.get(self.user.name, 0) < opened.epoch
        ):
            raise Violation("grant not durable", f"{self.name} was granted epoch {opened.epoch}")
