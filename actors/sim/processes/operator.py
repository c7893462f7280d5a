"""An operator's `groups seek` in a simulated world: an owner that makes one commit and goes.

What library/operating/seek.py does with a real broker, ledger and clock, step by step. No message
is sent again when it is lost: the command gives up then, as one that was interrupted, and the operator
runs it again some other time.
"""

from __future__ import annotations

from ...codec import wire
from ...core.consumer.grant import join_with
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
from ...shells.ledger.files import LedgerFiles
from ...shells.seeker import SeekerShell
from ..environment import Environment
from .consumer import SimConsumer
from .role import ProcessClock, SimEvents, SimRole

PATIENCE_MS = 5_000  # then the command gives up
REASON = "moved by an operator"


class SimOperator(SimRole):
    """One command that moves the offset of one partition."""

    def __init__(self, world: Environment, name: str, member: SimConsumer) -> None:
        super().__init__(world, name, member.host)
        self.member = member
        self.wanted = False  # a command that ends has ended
        self._granted = False
        self._seeker: SeekerShell | None = None  # from the grant to the commit
        self._door: LedgerFiles | None = None
        self._give_up_ms = 0
        self._target = 0

    def begin(self) -> None:
        world, process, member = self.world, self.process, self.member
        assert process is not None
        self._granted = False
        door = self._door = member.file_door(process, self)
        try:
            facts = door.peek()
        except LogInUse:
            self.finish(None)
            return
        self.transport = world.connect()
        self._give_up_ms = world.clock.now_ms() + PATIENCE_MS
        self._say(Hello(1, VERSION_MIN, VERSION_MAX, "admin", world.draw(), b"", 0))
        self._say(join_with(facts, 2, member.place, world.draw(), self.name, marked=True))

    def next_due_ms(self) -> int:
        return self._give_up_ms

    def gone(self) -> None:
        super().gone()
        self._door = self._seeker = None

    @property
    def serving(self) -> bool:
        return self._seeker is not None and self._seeker.serving

    def let_go(self, *, clean: bool) -> None:
        if self._seeker is not None:
            self._seeker.close(clean=clean)

    def turn(self) -> None:
        assert self.transport is not None
        for peer, frames in self.transport.poll(0):
            message = wire.decode(peer, frames).message
            if not self._granted and isinstance(message, Granted):
                self._open(message)
            elif self._seeker is not None and isinstance(message, Rewound):
                self._move(self._seeker)
            elif isinstance(message, Standby | Left):
                self.finish(None)
            if not self.alive:
                return
        if self._give_up_ms <= self.world.clock.now_ms():
            self.finish(None)

    def _open(self, granted: Granted) -> None:
        """The partition is granted: open its ledger and move the offset."""
        world, place = self.world, self.member.place
        grant = world.oracle.grants.get(place)
        assert grant is not None and grant.epoch >= granted.epoch, "grants are durable"  # noqa: PT018
        assert self._door is not None, "it has begun"
        seeker = self._seeker = SeekerShell(
            place,
            granted,
            ledger=self._door,
            clock=ProcessClock(world.clock),
            events=SimEvents(world, self.name),
            snapshot_every_bytes=world.plan.ledger_snapshot_every_bytes,
            limits=world.limits,
        )
        self._granted = True
        world.about_to_open(self)
        seeker.open()
        first, end = seeker.core.ledger.next_offset, granted.end_offset
        low, high = max(0, first - 12), min(end, first + 3)
        self._target = self.rng.choice((low, self.rng.randint(low, high), high))
        if self._target < first:
            self._say(Rewind(3, *place, granted.epoch, self._target))
        else:
            self._move(seeker)

    def _move(self, seeker: SeekerShell) -> None:
        first = seeker.core.ledger.next_offset
        if self._target != first:
            seeker.move(self._target, REASON)
            where = "back" if self._target < first else "forward"
            self.world.trace.add(self.name, f"moved {where}", {"by": abs(self._target - first)})
        seeker.close(clean=True)
        self._seeker = None
        self._say(Leave(4, *seeker.place, seeker.core.epoch, seeker.core.ledger.next_offset))

    def _say(self, message: Message) -> None:
        assert self.transport is not None
        self.transport.send(b"", wire.encode(message, None))
