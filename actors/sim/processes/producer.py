"""A producer's process in a simulated world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.client.connection import Reconnect
from ...core.client.producer import Describe, Opened, ProducerCore, Start, TopicKnown
from ...core.client.send_window import Settled
from ...driver import Driver
from ...outcome import Stop
from ..trace import Violation
from .shell import NEVER_MS, Host, ProcessClock, Shell, SimEvents
from .users import User

if TYPE_CHECKING:
    from ..world import World


class ProducerShell(Shell):
    """One process that sends for a user."""

    def __init__(self, world: World, name: str, host: Host, user: User) -> None:
        super().__init__(world, name, host)
        self.user = user
        self.core: ProducerCore | None = None
        self._opened = False
        self._topic_known = False
        self._memory: dict[str, int] = {}  # the user's notes in this process
        self._submit_ms = NEVER_MS

    def begin(self) -> None:
        """Make the core and say hello."""
        world = self.world
        self.core = ProducerCore(
            self.user.name,
            incarnation=world.draw(),
            label=f"{self.name}.{self.incarnation}",
            endpoint="sim",
            entropy=world.draw,
            limits=world.limits,
        )
        self.transport = world.connect()
        self.driver = Driver(
            self.core,
            self.transport,
            ProcessClock(world.clock),
            SimEvents(world, self.name),
            perform=self._perform,
        )
        self.driver.post(Start())
        self.driver.post(Describe(self.user.topic))
        self._opened = self._topic_known = False
        self._memory.clear()
        self._submit_ms = NEVER_MS

    def gone(self) -> None:
        """See the base class."""
        super().gone()
        self.core = None

    def next_due_ms(self) -> int:
        """See the base class."""
        return min(super().next_due_ms(), self._submit_ms)

    def turn(self) -> None:
        """Send what is due, then one turn of the driver."""
        assert self.driver is not None and self.core is not None  # noqa: PT018
        now = self.world.clock.now_ms()
        if self._submit_ms <= now:
            self._submit_ms = now + self.world.plan.submit_ms(self.rng)
            if self.core.send_window.batches < self.core.batches_max:
                submit = self.user.next_submit(
                    f"{self.name}.{self.incarnation}", self.rng, self._memory
                )
                if submit is not None:
                    self.driver.post(submit)
                else:
                    self._submit_ms = NEVER_MS  # until something happens: else half of all turns
        self.driver.turn(0)

    @property
    def settled(self) -> bool:
        """Whether nothing is in flight."""
        return self.core is None or self.core.send_window.batches == 0

    def _perform(self, item: Any) -> None:
        match item:
            case Opened():
                self._open(item)
            case TopicKnown():
                if item.partitions != self.world.oracle.partitions()[item.topic]:
                    raise Violation("partitions", f"{item.topic}: {item.partitions}")
                self._topic_known = True
            case Settled():
                self.user.settled(item)
            case Reconnect():
                self.world.reopen(self)
            case Stop():
                self.finish(item.error)
            case _:
                raise Violation("refused", f"{self.name}: {item}")
        if self._opened and self._topic_known and self._submit_ms == NEVER_MS:
            self._submit_ms = self.world.clock.now_ms()

    def _open(self, item: Opened) -> None:
        if self.user.name and self.world.oracle.producer_epochs.get(self.user.name, 0) < item.epoch:
            raise Violation("grant not durable", f"{self.name} was granted epoch {item.epoch}")
        self.user.opened(item, self._memory)
        self._opened = True
