"""The broker's process in a simulated world."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from typing import Any

from ...core.broker.core import BrokerCore
from ...errors import LogInUse
from ...shells.broker import BrokerShell
from ...storage import layout
from ...storage.document import Owner
from ...storage.recovery import read_owner
from ...storage.view import highest_complete
from ..environment import Environment, Host, SimTransport
from ..trace import Violation
from .consumer import SimConsumer
from .late import Late
from .role import ProcessClock, SimEvents, SimRole
from .watched import opener

DATA = "data"


class BrokerEvents(SimEvents):
    """Looks at each grant that did not wait for a lease because its owner was dead: it must be."""

    def emit(self, event: str, **fields: Any) -> None:
        """Raises Violation."""
        super().emit(event, **fields)
        if event != "group.granted" or fields["reason"] != "owner dead":
            return
        before = self._world.oracle.replaced[fields["group"], fields["topic"], fields["partition"]]
        name, _, incarnation = before.label.rpartition(".")
        owner = self._world.role(name)
        if (
            isinstance(owner, SimConsumer)
            and str(owner.incarnation) == incarnation
            and owner.holds_ledger
        ):
            raise Violation("live owner proved dead", f"{before.label} by {fields['consumer']}")


class SimBroker(SimRole):
    """One place where a broker may run. `takeover`: its processes end a frozen owner."""

    def __init__(self, world: Environment, name: str, host: Host) -> None:
        super().__init__(world, name, host)
        self.takeover = False
        self.zombie_stays = False  # a takeover leaves the frozen owner alive: a zombie
        # What happens at the next bind, by a fault; None: it succeeds.
        self.before_bind: Callable[[], None] | None = None
        self._broker: BrokerShell | None = None
        self._open_log = opener(lambda: world.oracle, world.plan.segment_bytes)

    def begin(self) -> None:
        world, process = self.world, self.process
        assert process is not None
        world.about_to_open(self)
        every = world.plan.snapshot_every_bytes
        broker = self.actor = self._broker = BrokerShell(
            process,
            DATA,
            owner=self._facts(),
            bind=self._bind,
            clock=ProcessClock(world.clock),
            events=BrokerEvents(world, self.name),
            entropy=world.draw,
            open_log=self._open_log,
            takeover=self.takeover,
            end_owner=self._end_owner,
            snapshot_every_bytes=every,
            snapshot_at_close_bytes=every // 8,  # as far below it as in production
            limits=world.limits,
            background=Late(f"{world.plan.seed} {self.name} {self.incarnation}"),
        )
        self._check_recovered(broker.core)
        world.broker_opened(self.name, self.endpoint_name())

    @property
    def serving(self) -> bool:
        return self._broker is not None

    def let_go(self, *, clean: bool) -> None:
        if self._broker is not None:
            self._broker.close(clean=clean)

    def gone(self) -> None:
        super().gone()
        self._broker = None

    def calm(self) -> None:
        super().calm()
        self.before_bind = None

    def _facts(self) -> Owner:
        return {"shell": self.name, "incarnation": self.incarnation, "host": self.host.name}

    def _bind(self) -> SimTransport:
        if self._has_taken_over():
            raise Violation("fenced before bound", f"{self.name} could stop others in vain")
        happening, self.before_bind = self.before_bind, None
        if happening is not None:
            happening()
        name = self.world.free_address()
        endpoint = self.world.network.listen(name)
        self.transport = SimTransport(self.world, endpoint)
        return self.transport

    def _has_taken_over(self) -> bool:
        looker = self.host.disk.process("looker")
        number, _ = highest_complete(looker, DATA)
        if number is None or number == 1:  # the first one is made together with the log
            return False
        lock = posixpath.join(DATA, layout.generation_name(number), layout.LOCK)
        return read_owner(looker, lock) == self._facts()

    def _end_owner(self, facts: Mapping[str, str | int]) -> None:
        """End a frozen owner, as the operator's --takeover does; one that runs is left alone."""
        owner = self.world.role(str(facts.get("shell", "")))
        if owner is None or owner.incarnation != facts["incarnation"] or not owner.alive:
            return
        if owner.frozen_until_ms <= self.world.clock.now_ms():
            raise LogInUse(f"{owner.name} is running and not frozen")
        if self.zombie_stays:
            self.world.trace.add(self.name, "zombie left", {"owner": owner.name})
            return
        self.world.kill(owner)

    def _check_recovered(self, core: BrokerCore) -> None:
        for topic, partition in core.state.topics.partitions():
            stored = len(self.world.oracle.messages[topic.name, partition.number])
            if partition.end_offset != stored:
                raise Violation(
                    "recovered state",
                    f"{topic.name}/{partition.number} ends at {partition.end_offset}, not {stored}",
                )
            start = self.world.oracle.starts.get((topic.name, partition.number), 0)
            if partition.log_start_offset != start:
                raise Violation(
                    "recovered state",
                    f"{topic.name}/{partition.number} starts at {partition.log_start_offset}",
                )
        for name, producer in core.state.producers.by_name.items():
            if producer.epoch != self.world.oracle.producer_epochs[name]:
                raise Violation("recovered state", f"{name} has epoch {producer.epoch}")
