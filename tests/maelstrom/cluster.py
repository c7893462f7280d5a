"""Nodes of the bench wired by a small router in one process: every fault is chosen by the test."""

from __future__ import annotations

import itertools
import json
import random
from collections import deque
from typing import Any

from oncemq.limits import LIMITS, Limits
from oncemq.maelstrom.node import MaelstromNode
from oncemq.maelstrom.owners import owner_of
from oncemq.maelstrom.store import NodeStore
from oncemq.sim.clock import SimClock
from oncemq.storage.memory import MemoryDisk

Body = dict[str, Any]


class NoEvents:
    """Events that nobody reads."""

    def emit(self, event: str, **fields: Any) -> None:
        """Drop an event."""


class Station:
    """One node with its disk; it can be killed and started again."""

    def __init__(
        self,
        name: str,
        clock: SimClock,
        rng: random.Random,
        disk: Any | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.name = name
        self.disk = MemoryDisk() if disk is None else disk
        self.clock = clock
        self.rng = rng
        self.limits = limits
        self.written = b""
        self.reports: list[str] = []
        self.start()

    def start(self) -> None:
        def entropy() -> bytes:
            return self.rng.randbytes(16)

        self.store = NodeStore(
            self.disk,
            "data",
            clock=self.clock,
            events=NoEvents(),
            entropy=entropy,
            owner={"pid": 1},
            limits=self.limits,
        )
        self.node = MaelstromNode(
            self.store,
            self.clock,
            entropy=entropy,
            write=self._write,
            report=self.reports.append,
            limits=self.limits,
        )

    def kill(self) -> None:
        """End as kill -9 does: nothing is closed; only the locks go."""
        self.disk.drop_locks()
        self.written = b""

    def _write(self, data: bytes) -> None:
        self.written += data

    def take(self) -> list[Body]:
        lines, self.written = self.written.splitlines(), b""
        return [json.loads(line) for line in lines]


class Cluster:
    """Nodes, clients and the network between them."""

    def __init__(self, names: list[str], seed: int = 1, limits: Limits = LIMITS) -> None:
        self.rng = random.Random(seed)
        self.clock = SimClock()
        self.stations = {name: Station(name, self.clock, self.rng, limits=limits) for name in names}
        self.flying: deque[Body] = deque()
        self.replies: dict[str, list[Body]] = {}  # bodies by client
        self.cut: set[tuple[str, str]] = set()
        self.drop = self.duplicate = self.delay = 0.0
        self.counts = dict.fromkeys(("dropped", "duplicated", "delayed", "forwards"), 0)
        self._numbers = itertools.count(1_000_000)  # apart from those that tests choose
        for name in names:
            self.init(name)

    def init(self, name: str) -> Body:
        body = {"type": "init", "node_id": name, "node_ids": list(self.stations)}
        return self.ask("c0", name, body)

    def post(self, client: str, node: str, body: Body, number: int | None = None) -> int:
        """Send a request without waiting; return its msg_id."""
        number = next(self._numbers) if number is None else number
        self.flying.append({"src": client, "dest": node, "body": {**body, "msg_id": number}})
        return number

    def ask(self, client: str, node: str, body: Body, number: int | None = None) -> Body:
        """Send a request and let time pass until its (latest) reply is there."""
        number = self.post(client, node, body, number)
        before = len(self.answers(client, number))
        for _ in range(200):
            self.run()
            found = self.answers(client, number)
            if len(found) > before:
                return found[-1]
            self.clock.advance(100)
        raise AssertionError(f"no reply to {body}")

    def answers(self, client: str, number: int) -> list[Body]:
        return [body for body in self.replies.get(client, ()) if body["in_reply_to"] == number]

    def run(self) -> None:
        for _ in range(10_000):
            if not self.flying:
                break
            self._deliver(self.flying.popleft())
        else:
            raise AssertionError("messages never end")
        for station in self.stations.values():
            station.node.tick()
            self._collect(station)

    def _deliver(self, message: Body) -> None:
        station = self.stations.get(message["dest"])
        if station is None:
            self.replies.setdefault(message["dest"], []).append(message["body"])
            return
        station.node.feed([json.dumps(message).encode()])
        self._collect(station)

    def _collect(self, station: Station) -> None:
        for message in station.take():
            if message["dest"] not in self.stations:
                self.flying.append(message)
                continue
            self.counts["forwards"] += 1
            if (message["src"], message["dest"]) in self.cut or self._strikes(self.drop):
                self.counts["dropped"] += 1
                continue
            self.flying.append(message)
            if self._strikes(self.duplicate):
                self.counts["duplicated"] += 1
                self.flying.append(message)
            if self._strikes(self.delay):
                self.counts["delayed"] += 1
                self.flying.rotate(self.rng.randint(0, len(self.flying)))

    def _strikes(self, odds: float) -> bool:
        return odds > 0 and self.rng.random() < odds

    def partition(self, one: str, other: str) -> None:
        self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.cut.clear()

    def restart(self, name: str) -> None:
        self.stations[name].kill()
        self.stations[name].start()
        self.init(name)

    # --- requests --------------------------------------------------------------------------------

    def send(self, node: str, key: str, msg: Any, message_id: Any = None, **more: Any) -> Body:
        body: Body = {"type": "send", "key": key, "msg": msg}
        if message_id is not None:
            body["message_id"] = message_id
        return self.ask("c1", node, body, **more)

    def poll(self, node: str, **offsets: int) -> dict[str, list[list[Any]]]:
        reply = self.ask("c1", node, {"type": "poll", "offsets": offsets})
        assert reply["type"] == "poll_ok", reply
        found: dict[str, list[list[Any]]] = reply["msgs"]
        return found

    def values(self, node: str, key: str) -> list[Any]:
        """Return all messages of a key, checking that their offsets are dense."""
        found: list[list[Any]] = []
        while True:
            (more,) = self.poll(node, **{key: len(found)}).values()
            if not more:
                assert [offset for offset, _ in found] == list(range(len(found)))
                return [value for _, value in found]
            found += more

    def key_of(self, owner: str, number: int = 0) -> str:
        """Return the `number`th key that a node owns."""
        names = iter(f"k{index}" for index in itertools.count())
        members = tuple(sorted(self.stations))
        owned = (key for key in names if owner_of(key, members) == owner)
        return next(itertools.islice(owned, number, None))
