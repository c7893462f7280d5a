"""Actors of one process, wired without sockets: the transport of the test kit and embedded queue.

    clock = LocalClock()
    network = LocalNetwork()
    broker = BrokerShell(disk, directory, bind=lambda: network.broker, clock=clock, ...)
    client = Driver(client_core, network.connect(), clock, events, ...)
    loop = LocalLoop(clock)
    loop.add(broker); loop.add(client)
    loop.run_until(lambda: done)

Nothing here waits and nothing is lost or reordered. Time stands still while anybody has something
to do and jumps to the next deadline when nobody has, so a back-off of seconds costs nothing and
two runs do the same. All of it belongs to one thread at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from ...errors import OnceMQError
from ...limits import LIMITS, ROUTING_ID_BYTES
from ...ports import Frames

QUEUE_MESSAGES_MAX = 2 * LIMITS.turn_events_max  # a send beyond it is refused, as with a socket
RUN_MS_MAX = 600_000  # simulated time after which `run_until` gives up


class LocalClock:
    """Time that passes only when nobody has anything to do."""

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        """Milliseconds since 1970."""
        self._now_ms = start_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, milliseconds: int) -> None:
        assert milliseconds >= 0, "time does not go back"
        self._now_ms += milliseconds


class LocalEndpoint:
    """One end of the wire: a Transport. Clients have one peer, the broker, which is b""."""

    def __init__(self, network: LocalNetwork, routing_id: bytes) -> None:
        """Use `LocalNetwork.connect`."""
        self.routing_id = routing_id
        self._network = network
        self._waiting: deque[tuple[bytes, list[bytes]]] = deque()
        self._closed = False

    @property
    def has_mail(self) -> bool:
        return bool(self._waiting)

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """At most one turn's worth; never waits."""
        del timeout_ms
        count = min(len(self._waiting), LIMITS.turn_events_max)
        return [self._waiting.popleft() for _ in range(count)]

    def send(self, peer: bytes, frames: Frames) -> bool:
        """False if the peer is gone or its queue is full."""
        if self._closed:
            return False
        copies = [bytes(frame) for frame in frames]
        return self._network.deliver(self.routing_id, peer, copies)

    def accept(self, sender: bytes, frames: list[bytes]) -> bool:
        if len(self._waiting) >= QUEUE_MESSAGES_MAX:
            return False
        self._waiting.append((sender, frames))
        return True

    def wake(self) -> None:
        """Nothing: nobody waits in `poll`."""

    def reopen(self) -> None:
        """Come back under a fresh routing id; what was on its way is gone."""
        self._network.forget(self.routing_id)
        self._waiting.clear()
        self.routing_id = self._network.adopt(self)

    def close(self) -> None:
        """Leave; what was on its way is gone. Closing twice does nothing."""
        self._closed = True
        self._network.forget(self.routing_id)
        self._waiting.clear()


class LocalNetwork:
    """One broker and its clients."""

    def __init__(self) -> None:
        self._clients: dict[bytes, LocalEndpoint] = {}
        self._count = 0
        self.broker = LocalEndpoint(self, b"")

    def connect(self) -> LocalEndpoint:
        endpoint = LocalEndpoint(self, b"")
        endpoint.routing_id = self.adopt(endpoint)
        return endpoint

    def restart_broker(self) -> LocalEndpoint:
        """What the old broker had not read is gone."""
        self.broker.close()
        self.broker = LocalEndpoint(self, b"")
        return self.broker

    def adopt(self, endpoint: LocalEndpoint) -> bytes:
        """Give an endpoint a routing id that nobody had before."""
        self._count += 1
        routing_id = self._count.to_bytes(ROUTING_ID_BYTES, "big")
        self._clients[routing_id] = endpoint
        return routing_id

    def forget(self, routing_id: bytes) -> None:
        self._clients.pop(routing_id, None)

    def deliver(self, sender: bytes, peer: bytes, frames: list[bytes]) -> bool:
        """From a client to the broker, or from the broker to a client."""
        if sender:
            return self.broker.accept(sender, frames)
        client = self._clients.get(peer)
        return client is not None and client.accept(b"", frames)


class Turnable(Protocol):
    """What a LocalLoop drives: a Driver, a consumer, anything with turns."""

    def turn(self, timeout_ms: int | None = 0, /) -> bool | None:
        """Return whether anything happened."""

    def time_left_ms(self) -> int:
        """How long the next turn may wait."""


class LocalLoop:
    """Turns several actors in the order in which they were added, and moves their clock."""

    def __init__(self, clock: LocalClock) -> None:
        self.clock = clock
        self._members: list[Turnable] = []

    def add(self, member: Turnable) -> None:
        self._members.append(member)

    def remove(self, member: Turnable) -> None:
        self._members.remove(member)

    def turn(self) -> bool:
        """Return whether anything happened."""
        happened = False
        for member in list(self._members):
            happened = bool(member.turn(0)) or happened
        return happened

    def run_until(self, done: Callable[[], bool], *, limit_ms: int = RUN_MS_MAX) -> None:
        """Turn until `done()`; time jumps when nobody has anything to do.

        Raises OnceMQError after `limit_ms` of that time: whatever is waited for does not come.
        """
        deadline = self.clock.now_ms() + limit_ms
        while not done():
            if self.turn():
                continue
            if self.clock.now_ms() >= deadline:
                raise OnceMQError(f"nothing happened within {limit_ms} simulated ms")
            lefts = [member.time_left_ms() for member in self._members]
            self.clock.advance(max(1, min(lefts, default=1)))
