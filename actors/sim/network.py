"""A network that drops, doubles, reorders and delays messages, the same way for the same seed.

Endpoints have names. A broker side (`listen`) is addressed by its name and addresses its peers by
routing id, as a ROUTER socket does; a client side (`connect`) has one peer, whose frames arrive
under the name it connected to. Messages between two endpoints keep their order unless the odds of
reordering strike: a reordered message is one that later ones may overtake. Time comes from a
`SimClock`, chance from the seed, and nothing else decides, so a run can be repeated.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .clock import SimClock

Frames = Sequence[bytes | memoryview]
Envelope = tuple[bytes, list[bytes]]

QUEUE_MESSAGES_MAX = 10_000
POLL_MESSAGES_MAX = 512


@dataclass(slots=True)
class Faults:
    """How bad the network is: odds from 0 to 1, times in milliseconds."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay_min_ms: int = 0
    delay_max_ms: int = 0


@dataclass(slots=True)
class Counts:
    """What happened so far; a run that injected nothing proves nothing."""

    sent: int = 0
    delivered: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    refused: int = 0


class SimNetwork:
    """All links between named endpoints."""

    def __init__(self, clock: SimClock, seed: int, faults: Faults | None = None) -> None:
        self.clock = clock
        self.faults = faults or Faults()
        self.counts = Counts()
        self._draw = random.Random(seed)
        self._sides: dict[bytes, Endpoint] = {}
        self._flying: list[tuple[int, int, bytes, bytes, list[bytes]]] = []  # a heap by due time
        self._number = 0  # breaks ties, so that equal due times arrive in the order sent
        self._latest_due: dict[tuple[bytes, bytes], int] = {}
        self._cuts: set[tuple[bytes, bytes]] = set()

    def listen(self, name: bytes) -> Endpoint:
        """A new endpoint under a used name replaces the old one (a restart)."""
        return self._add(name, None)

    def connect(self, routing_id: bytes, to: bytes) -> Endpoint:
        """Routing ids are fresh for each incarnation."""
        return self._add(routing_id, to)

    def _add(self, name: bytes, to: bytes | None) -> Endpoint:
        if name in self._sides:
            self._sides[name].close()
        side = Endpoint(self, name, to)
        self._sides[name] = side
        return side

    def listening(self, name: bytes) -> bool:
        return name in self._sides

    def partition(self, sender: bytes, receiver: bytes, *, one_way: bool = False) -> None:
        """Without `one_way` the other direction is cut too."""
        self._cuts.add((sender, receiver))
        if not one_way:
            self._cuts.add((receiver, sender))

    def heal(self) -> None:
        self._cuts.clear()

    def next_due_ms(self) -> int | None:
        return self._flying[0][0] if self._flying else None

    def offer(self, sender: bytes, receiver: bytes, frames: Frames) -> bool:
        """False if no endpoint has the receiver's name."""
        self.counts.sent += 1
        if receiver not in self._sides or len(self._flying) >= QUEUE_MESSAGES_MAX:
            self.counts.refused += 1
            return False
        if (sender, receiver) in self._cuts or self._strikes(self.faults.drop):
            self.counts.dropped += 1
            return True  # as with a socket: taken, and lost later
        copies = 1
        if self._strikes(self.faults.duplicate):
            self.counts.duplicated += 1
            copies = 2
        for _ in range(copies):
            self._launch(sender, receiver, [bytes(frame) for frame in frames])
        return True

    def _launch(self, sender: bytes, receiver: bytes, frames: list[bytes]) -> None:
        faults = self.faults
        delay = self._draw.randint(faults.delay_min_ms, faults.delay_max_ms)
        link = (sender, receiver)
        due = max(self.clock.now_ms() + delay, self._latest_due.get(link, 0))
        if self._strikes(faults.reorder):
            self.counts.reordered += 1
            due += self._draw.randint(1, 2 * faults.delay_max_ms + 10)
        else:
            self._latest_due[link] = due
        self._number += 1
        heapq.heappush(self._flying, (due, self._number, sender, receiver, frames))

    def deliver(self) -> None:
        while self._flying and self._flying[0][0] <= self.clock.now_ms():
            _, _, sender, receiver, frames = heapq.heappop(self._flying)
            side = self._sides.get(receiver)
            cut = (sender, receiver) in self._cuts
            if side is None or cut or len(side.waiting) >= QUEUE_MESSAGES_MAX:
                self.counts.dropped += 1
            else:
                self.counts.delivered += 1
                side.waiting.append((sender, frames))

    def forget(self, side: Endpoint) -> None:
        if self._sides.get(side.name) is side:
            del self._sides[side.name]
            self._flying = [flight for flight in self._flying if flight[3] != side.name]
            heapq.heapify(self._flying)
            for link in [link for link in self._latest_due if side.name in link]:
                del self._latest_due[link]

    def _strikes(self, odds: float) -> bool:
        return odds > 0 and self._draw.random() < odds


class Endpoint:
    """One side of the network: a `Transport`."""

    def __init__(self, network: SimNetwork, name: bytes, to: bytes | None) -> None:
        self.name = name
        self.waiting: list[Envelope] = []
        self._network = network
        self._to = to
        self._closed = False

    def poll(self, timeout_ms: int = 0) -> list[Envelope]:
        """Return what has arrived, at most POLL_MESSAGES_MAX. Simulated time is not waited for:
        `timeout_ms` is taken and ignored, the world advances the clock between turns.
        """
        del timeout_ms
        if self._closed:
            return []
        self._network.deliver()
        found = self.waiting[:POLL_MESSAGES_MAX]
        del self.waiting[:POLL_MESSAGES_MAX]
        return found

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Send to a routing id (broker side) or to the broker (client side; `peer` is ignored)."""
        if self._closed:
            return False
        return self._network.offer(self.name, peer if self._to is None else self._to, frames)

    def close(self) -> None:
        """Leave the network; what was on its way here is lost."""
        self._closed = True
        self.waiting.clear()
        self._network.forget(self)
