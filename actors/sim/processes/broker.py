"""The broker's process in a simulated world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...core.broker.core import BrokerCore, CheckFence
from ...driver import Driver
from ...errors import LogInUse
from ...storage.log import FencedLog
from ..trace import Violation
from .shell import Host, ProcessClock, Shell, SimEvents, SimTransport
from .watched import WatchedLog

if TYPE_CHECKING:
    from ..world import World

DATA = "data"
MAIN_ADDRESS = b"broker"


class BrokerShell(Shell):
    """One place where a broker may run. `takeover`: its processes end a frozen owner."""

    def __init__(self, world: World, name: str, host: Host) -> None:
        super().__init__(world, name, host)
        self.takeover = False
        self.zombie_stays = False  # a takeover leaves the frozen owner alive: a zombie
        self.core: BrokerCore | None = None
        self._log: FencedLog | None = None

    def begin(self) -> None:
        """Recover, bind, take the generation."""
        world, process = self.world, self.process
        assert process is not None
        world.about_to_open(self)
        log = WatchedLog.open(
            process,
            DATA,
            generation=None,
            owner={"shell": self.name, "incarnation": self.incarnation, "host": self.host.name},
            prepare=self._bind,
            segment_bytes=world.plan.segment_bytes,
            takeover=self.takeover,
            end_owner=self._end_owner,
            create_log_id=world.draw(),
        )
        assert isinstance(log, WatchedLog)
        log.watch(world.oracle)
        self._log = log
        core = BrokerCore(log.log_id, log.lineage, entropy=world.draw, limits=world.limits)
        assert self.transport is not None
        self.core = core
        events = SimEvents(world, self.name)
        if log.cut_report is not None:
            events.emit("log.tail_cut", bytes=log.cut_report.nbytes)
        driver = Driver(
            core,
            self.transport,
            ProcessClock(world.clock),
            events,
            perform=self._perform,
            snapshot_every_bytes=world.plan.snapshot_every_bytes,
        )
        driver.open_log(log)
        self.driver = driver
        for damage in log.snapshot_damage:
            events.emit("snapshot.fallback", reason=str(damage))
        self._check_recovered(core)
        world.broker_opened(self)

    def gone(self) -> None:
        """See the base class."""
        super().gone()
        self.core = self._log = None

    def _bind(self) -> None:
        name = self.world.free_address()
        endpoint = self.world.network.listen(name)
        self.transport = SimTransport(self.world, endpoint)

    def _end_owner(self, facts: Mapping[str, str | int]) -> None:
        """End a frozen owner, as the operator's --takeover does; one that runs is left alone."""
        owner = self.world.shell(str(facts.get("shell", "")))
        if owner is None or owner.incarnation != facts["incarnation"] or not owner.alive:
            return
        if owner.frozen_until_ms <= self.world.clock.now_ms():
            raise LogInUse(f"{owner.name} is running and not frozen")
        if self.zombie_stays:
            self.world.trace.add(self.name, "zombie left", {"owner": owner.name})
            return
        self.world.kill(owner)

    def _perform(self, item: Any) -> None:
        assert isinstance(item, CheckFence), f"not work of a broker: {item!r}"
        assert self._log is not None
        self._log.check_fence()

    def _check_recovered(self, core: BrokerCore) -> None:
        """Compare the recovered state with the list of all that was stored."""
        for topic, partition in core.state.topics.partitions():
            stored = len(self.world.oracle.messages[topic.name, partition.number])
            if partition.end_offset != stored:
                raise Violation(
                    "recovered state",
                    f"{topic.name}/{partition.number} ends at {partition.end_offset}, not {stored}",
                )
        for name, producer in core.state.producers.by_name.items():
            if producer.epoch != self.world.oracle.producer_epochs[name]:
                raise Violation("recovered state", f"{name} has epoch {producer.epoch}")
