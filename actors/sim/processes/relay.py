"""A relay's process in a simulated world: the relay of production, which waits in its own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...errors import OnceMQError
from ...limits import Limits
from ...ports import Clock, Events, Frames
from ..disk.disk import SimulatedCrash
from ..environment import Environment, Host
from .aside import Aside
from .outbox import Outbox
from .role import NEVER_MS, ProcessClock, SimEvents, SimRole


class MakeRelay(Protocol):
    """How a relay is made (library/outbox/relay.py)."""

    def __call__(
        self,
        socket: RelaySocket,
        clock: Clock,
        events: Events,
        outbox: Outbox,
        *,
        draw: Callable[[], bytes],
        label: str,
        limits: Limits,
        visit: Callable[[str], None],
    ) -> Callable[[], None]:
        """Return what runs it until it fails."""


class SimRelay(SimRole):
    """One relay of an outbox."""

    def __init__(
        self, world: Environment, name: str, host: Host, outbox: Outbox, make: MakeRelay
    ) -> None:
        super().__init__(world, name, host)
        self._outbox = outbox
        self._make = make
        self._program: Aside | None = None
        self._wake_ms = NEVER_MS
        # What happens at the next of the places at which a relay may die; by a fault.
        self.interlude: Callable[[str], None] | None = None

    def begin(self) -> None:
        world = self.world
        self.transport = world.connect()
        run = self._make(
            RelaySocket(self),
            ProcessClock(world.clock),
            SimEvents(world, self.name),
            self._outbox,
            draw=world.draw,
            label=f"{self.name}.{self.incarnation}",
            limits=world.limits,
            visit=self._visit,
        )
        self._program = Aside(run)
        self._wake_ms = world.clock.now_ms()

    def turn(self) -> None:
        assert self._program is not None, "it has begun"
        self._program.go_on()
        assert not self._program.over, "a relay does not end by itself"

    def next_due_ms(self) -> int:
        return self._wake_ms

    def gone(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            program.kill()
        super().gone()
        self._wake_ms = NEVER_MS

    def calm(self) -> None:
        super().calm()
        self.interlude = None

    # --- called by the relay ---------------------------------------------------------------------

    def wait(self, duration_ms: int) -> None:
        """Let the world go on for so long, or until there is mail. Raises SimulatedCrash."""
        assert self._program is not None, "it runs"
        self._wake_ms = self.world.clock.now_ms() + duration_ms
        self._program.wait()

    def _visit(self, place: str) -> None:
        interlude, self.interlude = self.interlude, None
        if interlude is not None:
            interlude(place)

    def die(self) -> None:
        raise SimulatedCrash("between two steps of a relay")

    def freeze(self, pause_ms: int) -> None:
        self.frozen_until_ms = self.world.clock.now_ms() + pause_ms
        self.wait(pause_ms)


class RelaySocket:
    """The socket of a relay; it waits as one does, while the world goes on."""

    def __init__(self, shell: SimRelay) -> None:
        self._shell = shell

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        transport = self._shell.transport
        if transport is None:  # the relay ends: its process is gone
            raise OnceMQError("the socket is closed")
        if not transport.endpoint.waiting:
            self._shell.wait(timeout_ms)
        return transport.poll(0)

    def send(self, peer: bytes, frames: Frames) -> bool:
        transport = self._shell.transport
        return transport is not None and transport.send(peer, frames)

    def wake(self) -> None:
        """Nobody waits in another thread."""

    def reopen(self) -> None:
        if self._shell.transport is not None:
            self._shell.transport.reopen()

    def close(self) -> None:
        """The shell closes its endpoint."""
