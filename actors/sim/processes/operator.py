"""An operator's `groups seek` in a simulated world: an owner that makes one commit and goes.

What library/seek.py does with a real broker, ledger and clock, step by step and with nobody who
repeats a lost message: the command gives up then, as one that was interrupted, and the operator
runs it again some other time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...codec import wire
from ...core.consumer.grant import join_with
from ...core.consumer.seeker import MoveOffset, SeekerCore
from ...driver import Driver, Silence
from ...errors import LogInUse
from ...protocol import (
    VERSION_MAX,
    VERSION_MIN,
    Granted,
    Hello,
    Leave,
    Left,
    Message,
    Rewind,
    Rewound,
    Standby,
)
from ..doors import FileDoor
from .consumer import ConsumerShell
from .shell import ProcessClock, Shell, SimEvents

if TYPE_CHECKING:
    from ..world import World

PATIENCE_MS = 5_000  # then the command gives up
REASON = "moved by an operator"


class OperatorShell(Shell):
    """One command that moves the offset of one partition."""

    def __init__(self, world: World, name: str, member: ConsumerShell) -> None:
        """Move the group of `member` in its partition, on its ledger."""
        super().__init__(world, name, member.host)
        self.member = member
        self.wanted = False  # a command that ends has ended
        self.core: SeekerCore | None = None
        self._door: FileDoor | None = None
        self._give_up_ms = 0
        self._target = 0

    def begin(self) -> None:
        """Look at the ledger and ask for the partition."""
        world, process, member = self.world, self.process, self.member
        assert process is not None
        self.core = None
        door = self._door = member.file_door(process, self)
        try:
            facts = door.peek()
        except LogInUse:
            self.finish(None)
            return
        self.transport = world.connect()
        self._give_up_ms = world.clock.now_ms() + PATIENCE_MS
        self._say(Hello(1, VERSION_MIN, VERSION_MAX, "admin", world.draw(), b"", 0))
        self._say(join_with(facts, 2, member.place, world.draw(), self.name))

    def next_due_ms(self) -> int:
        """See the base class."""
        return self._give_up_ms

    def gone(self) -> None:
        """See the base class."""
        super().gone()
        self.core = self._door = None

    def turn(self) -> None:
        """Take what the broker says."""
        assert self.transport is not None
        for peer, frames in self.transport.poll(0):
            message = wire.decode(peer, frames).message
            if self.core is None and isinstance(message, Granted):
                self._open(message)
            elif self.driver is not None and isinstance(message, Rewound):
                self._move(self.driver)
            elif isinstance(message, Standby | Left):
                self.finish(None)
            if not self.alive:
                return
        if self._give_up_ms <= self.world.clock.now_ms():
            self.finish(None)

    def _open(self, granted: Granted) -> None:
        """The partition is ours: open its ledger, and say where to it goes."""
        world, member = self.world, self.member
        grant = world.oracle.grants.get(member.place)
        assert grant is not None and grant.epoch >= granted.epoch, "grants are durable"  # noqa: PT018
        core = self.core = SeekerCore(member.place, granted, world.limits)
        self.driver = Driver(
            core,
            Silence(),
            ProcessClock(world.clock),
            SimEvents(world, self.name),
            perform=self._perform,
            snapshot_every_bytes=world.plan.ledger_snapshot_every_bytes,
            compacts=True,
        )
        assert self._door is not None, "it has begun"
        world.about_to_open(self)
        self.driver.open_log(self._door.open(granted.epoch))
        self.driver.turn(0)
        first, end = core.ledger.next_offset, granted.end_offset
        low, high = max(0, first - 12), min(end, first + 3)
        self._target = self.rng.choice((low, self.rng.randint(low, high), high))
        if self._target < first:
            self._say(Rewind(3, *member.place, granted.epoch, self._target))
        else:
            self._move(self.driver)

    def _move(self, driver: Driver) -> None:
        """Make the one commit, and give the partition back."""
        core = self.core
        assert core is not None, "there is a driver for it"
        first = core.ledger.next_offset
        if self._target != first:
            driver.post(MoveOffset(self._target, REASON))
            driver.turn(0)
            where = "back" if self._target < first else "forward"
            self.world.trace.add(self.name, f"moved {where}", {"by": abs(self._target - first)})
        driver.close(clean=True)
        self.driver = None
        self._say(Leave(4, *self.member.place, core.epoch, core.ledger.next_offset))

    def _perform(self, item: object) -> None:
        raise AssertionError(f"this core asks for no work: {item!r}")

    def _say(self, message: Message) -> None:
        assert self.transport is not None
        self.transport.send(b"", wire.encode(message, None))
