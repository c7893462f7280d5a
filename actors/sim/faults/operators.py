"""What operators do, rightly or wrongly."""

from __future__ import annotations

import errno
import os

from ...codec import wire
from ...protocol import (
    VERSION_MAX,
    VERSION_MIN,
    ConfigureTopic,
    Hello,
    Message,
    RetireProducer,
)
from ..disk.cuts import KeepEverything
from ..environment import Environment
from ..processes.broker import SimBroker
from ..processes.consumer import SimConsumer
from ..processes.dated_user import TOPIC
from ..processes.operator import SimOperator
from ..processes.restored import Backup
from .base import Fault

CLOSE_MS = 2_000
BACKUPS_MAX = 2  # of a run


def _tell(world: Environment, request: Message) -> None:
    """Send a request as an operator's command; whether it arrives is up to the network."""
    client = world.connect()
    hello = Hello(1, VERSION_MIN, VERSION_MAX, "admin", world.draw(), b"", 0)
    for message in (hello, request):
        client.send(b"", wire.encode(message, None))
    world.after(CLOSE_MS, client.endpoint.close)


class Takeover(Fault):
    """A second broker is started on the same directory, with --takeover; sometimes without."""

    name = "takeover"

    def strike(self) -> bool:
        """Start the spare broker; a frozen owner is killed, or stays as a zombie."""
        spare = self.people.spare_broker
        if spare.alive or spare.host is not self.people.broker.host:
            return False
        spare.takeover = self.rng.random() < 0.8
        spare.zombie_stays = self.rng.random() < 0.5
        if self.rng.random() < 0.7:  # they mean it: the owner hangs
            owner: SimBroker = self.people.broker
            if owner.alive and owner.frozen_until_ms == 0:
                owner.frozen_until_ms = self.world.clock.now_ms() + self.rng.choice((500, 15_000))
        spare.start()
        return True


class Stop(Fault):
    """A process is asked to end in good order, and started again."""

    name = "clean stop"

    def strike(self) -> bool:
        living = [
            role
            for role in self.people.roles
            if role.ready_to_stop() and isinstance(role, SimConsumer | SimBroker)
        ]
        if not living:
            return False
        self.rng.choice(living).stop()
        return True


class AddressTaken(Fault):
    """A broker is started where another program listens: the log must stay with the broker before."""

    name = "address taken"

    def strike(self) -> bool:
        broker = self.rng.choice((self.people.broker, self.people.spare_broker))
        broker.before_bind = self._refuse
        if broker.ready_to_stop():
            broker.stop()
        return False

    def _refuse(self) -> None:
        self.fired()
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


class WrongDirectory(Fault):
    """A consumer is started with another state directory: it must not handle anything."""

    name = "wrong directory"

    def strike(self) -> bool:
        if self.people.strangers >= 3:
            return False
        role = self.rng.choice(self.people.members)
        return self.people.start_elsewhere(role, copy=False)


class CopiedLedger(Fault):
    """A consumer is started on another machine with a copy of the ledger directory."""

    name = "copied ledger"

    def strike(self) -> bool:
        if self.people.strangers >= 3:
            return False
        role = self.rng.choice(self.people.members)
        return self.people.start_elsewhere(role, copy=True)


class BackUp(Fault):
    """An operator copies the broker's data, at rest or while it runs, and starts the copy at the end.

    What must come of that is in processes/restored.py.
    """

    name = "backup"

    def strike(self) -> bool:
        broker, backups = self.people.broker, self.people.backups
        if len(backups) >= BACKUPS_MAX or not self.world.oracle.topics:
            return False
        disk = broker.host.disk.after_power_cut(KeepEverything())
        disk.capacity = None  # the operator starts it where there is room
        live = broker.alive or self.people.spare_broker.alive
        backups.append(Backup(disk, live))
        self.world.trace.add("operator", "backup live" if live else "backup at rest")
        return True


class Horizons(Fault):
    """An operator changes the dedup horizon of a topic, shorter or longer, at any moment."""

    name = "horizons"

    def strike(self) -> bool:
        world = self.world
        dedup = self.rng.choice(("700ms", "2s", "5s", "1h", "forever"))
        _tell(world, ConfigureTopic(2, TOPIC, dedup, ""))
        return True


class Retirement(Fault):
    """A producer name is retired while its program runs, or is away; the program is started again."""

    name = "retirement"

    def strike(self) -> bool:
        names = sorted({user.name for user in self.people.users if user.name})
        if not names:
            return False
        _tell(self.world, RetireProducer(2, self.rng.choice(names), 0))
        return True


class Seek(Fault):
    """An operator stops the members of a partition and moves its offset, forward or back."""

    name = "seek"

    def strike(self) -> bool:
        """Stop the owner, start the command a little later, and the members after it."""
        world = self.world
        if "copied ledger" in world.plan.faults:
            return False  # the copy knows nothing of what an operator does to its original
        running = [one for one in self.people.roles if isinstance(one, SimOperator) and one.alive]
        if running:
            return False
        member = self.rng.choice(self.people.members)
        if member.place not in world.oracle.grants or member.group.name in world.plan.tables:
            return False
        there = [one for one in self.people.members if one.place == member.place]
        polite = self.rng.random() < 0.8
        for one in there if polite else ():
            one.wanted = False
            if one.ready_to_stop():
                one.stop()
        command = SimOperator(world, f"operator-{world.trace.counts['fault.seek']}", member)
        self.people.roles.append(command)
        world.after(self.rng.randint(50, 3_000), lambda: self._start(command))
        world.after(self.rng.randint(3_000, 8_000), lambda: self._bring_back(there))
        return True

    def _start(self, command: SimOperator) -> None:
        if not self.world.healing:
            command.start()

    def _bring_back(self, members: list[SimConsumer]) -> None:
        for member in members:
            member.wanted = True
            if not member.alive:
                self.world.restart(member)
