"""Members of one group that come, go, are killed and frozen, under keyed messages that keep coming.

The feed is a growing file that `producer.py --follow` sends; what the group makes of it is read back
from its outgoing topic, its state and its files.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from oncemq.chaos import read_topic
from oncemq.chaos.programs import FENCED, KILLED, Running, wait_until
from oncemq.library.operating.client import AdminClient
from tests.process.house import START_S, House

PARTITIONS = 8
KEYS = 512
DRAIN_S = 120.0

APP = """
from oncemq import App
app = App()

@app.consumer("orders", group="g")
def apply(message, tx):
    number = message.value["n"]
    expected = tx.state.get(message.key, 0)
    if number != expected:
        tx.send("wrong", [message.key, number, expected])
    tx.state[message.key] = number + 1
    tx.send("applied", number, key=message.key)
"""


@dataclass
class Life:
    """One member: when it ran, and when it stood still."""

    running: Running
    started_s: float
    ended_s: float | None = None
    frozen_since_s: float | None = None
    frozen_s: float = 0.0
    done: list[str] = field(default_factory=list)

    def alive_s(self, until_s: float) -> float:
        end = until_s if self.ended_s is None else self.ended_s
        return end - self.started_s - self.frozen_s


class GroupLife:
    """A broker, a feed and members."""

    def __init__(self, house: House, seed: int) -> None:
        print(f"seed {seed}")
        self.rng = random.Random(seed)
        self.house = house
        (house.directory / "groupapp.py").write_text(APP)
        house.broker()
        with AdminClient(house.endpoint) as client:
            client.create_topic("orders", PARTITIONS)
            client.create_topic("applied", PARTITIONS)
        self.path = house.directory / "feed.jsonl"
        self.path.touch()
        self.numbers: Counter[int] = Counter()
        self.fed = 0
        self.members: list[Life] = []
        self.handled: Counter[int] = Counter()
        house.producer(
            "--topic=orders", "--name=feed", "--format=jsonl", "--key-field=key", "--follow",
            str(self.path),
        )  # fmt: skip

    # --- the feed ---

    def feed(self, count: int) -> None:
        """Add messages: each key counts from 0."""
        lines = []
        for _ in range(count):
            key = self.rng.randrange(KEYS)
            lines.append(json.dumps({"key": f"k{key}", "n": self.numbers[key]}))
            self.numbers[key] += 1
        with self.path.open("a") as file:
            file.writelines(line + "\n" for line in lines)
        self.fed += count

    # --- members ---

    def start(self) -> Life:
        running = self.house.consumer("groupapp:app", "--drain=20")
        life = Life(running, time.monotonic())
        self.members.append(life)
        return life

    def living(self) -> list[Life]:
        """Members that run now; notes the ends of the others."""
        for life in self.members:
            if life.ended_s is None and life.running.exit_code is not None:
                self.thaw(life)
                life.ended_s = time.monotonic()
        return [life for life in self.members if life.ended_s is None]

    def kill(self, life: Life) -> None:
        life.running.kill()
        life.done.append("killed")

    def leave(self, life: Life) -> None:
        self.thaw(life)
        life.running.send_signal(signal.SIGTERM)
        life.done.append("left")

    def freeze(self, life: Life) -> None:
        if life.frozen_since_s is None and life.running.freeze():
            life.frozen_since_s = time.monotonic()
            life.done.append("frozen")

    def thaw(self, life: Life) -> None:
        if life.frozen_since_s is not None:
            life.running.thaw()
            life.frozen_s += time.monotonic() - life.frozen_since_s
            life.frozen_since_s = None

    def refresh(self) -> None:
        for line in self.house.history.refresh():
            if line["event"] == "consumer.handled":
                self.handled[line["pid"]] += line["count"]

    # --- the end ---

    def finish(self, members: int) -> None:
        """Mend all, wait until everything is applied, and stop everybody."""
        for life in self.living():
            self.thaw(life)
        while len(self.living()) < members:
            self.start()
        wait_until(self.drained, DRAIN_S, "everything is committed and has an owner")
        for life in self.living():
            self.leave(life)
            life.running.wait(START_S)
        self.living()
        self.refresh()
        for life in self.members:
            assert life.running.exit_code in {0, KILLED, FENCED}, life.running.told()

    def drained(self) -> bool:
        self.living()
        with AdminClient(self.house.endpoint) as client:
            rows = client.group("g").partitions
            stored = sum(client.describe_topic("orders").end_offsets)
        done = sum(row[8] for row in rows)
        return stored == self.fed == done and all(row[6] for row in rows)

    def check(self) -> None:
        """Each message was applied once, in the order of its key; the files prove it."""
        applied: dict[bytes | None, list[Any]] = defaultdict(list)
        total = 0
        for partition in range(PARTITIONS):
            for message in read_topic(self.house.endpoint, "applied", partition):
                applied[message.key].append(message.value)
                total += 1
        assert total == self.fed
        for key, count in self.numbers.items():
            assert applied[f"k{key}".encode()] == list(range(count)), f"key k{key}"
        with AdminClient(self.house.endpoint) as client:
            assert "wrong" not in {row[0] for row in client.topics().topics}
        report = self.command("verify", f"--data={self.house.data}", "--json")
        assert report["ok"], report["violations_shown"]
        row = report["topics"]["orders"]["groups"]["g"]
        assert (row["processed"], row["pending"]) == (self.fed, 0)
        state = self.command("state", "--group=g", "--json")
        assert state == {f"k{key}": count for key, count in self.numbers.items()}

    def command(self, *arguments: str) -> Any:
        running = self.house.start(
            "command", "-m", "oncemq", *arguments, f"--state={self.house.state}"
        )
        running.wait(DRAIN_S, 0)
        return json.loads(running.stdout())
