"""Golden transcripts: whole turns as text, so that a change of behaviour shows as a change of lines.

Rewrite them with REWRITE_TRANSCRIPTS=1 and read the difference before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import DiskFull
from oncemq.limits import LEASE_MS
from oncemq.protocol import (
    CreateTopic,
    DescribeTopic,
    Fetch,
    Hello,
    InitProducer,
    Join,
    Leave,
    ListGroups,
    ListTopics,
    Ping,
    Renew,
)
from tests.core.broker.help import OTHER, PEER, World, batch_of, batch_with_ids

FOLDER = Path(__file__).resolve().parents[2] / "golden" / "transcripts"

REWRITE = bool(os.environ.get("REWRITE_TRANSCRIPTS"))
NAMES = {PEER: "A", OTHER: "B"}


class Recorder(World):
    """A world that writes down what goes in and out of each turn."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__()

    def say(self, message: Any, body: Any = None, peer: bytes = PEER) -> None:
        self.put(message, body.raw if body is not None else None, peer)
        size = f" + batch of {body.count}" if body is not None else ""
        self.lines.append(f"  {NAMES[peer]} -> {message}{size}")

    def step(self, title: str) -> None:
        events, end = len(self.events.seen), self.log.end
        self.wire.sent.clear()
        self.turn()
        self.lines.append(
            f"  -- {title}: log {end} -> {self.log.end}, durable {self.log.durable_end}"
        )
        for peer, received in self.wire.sent:
            stored = received.stored
            body = f" + {len(stored)} stored batches" if stored else ""
            self.lines.append(f"  {NAMES[peer]} <- {received.message}{body}")
        for name, fields in self.events.seen[events:]:
            self.lines.append(f"  event {name} {fields}")
        self.lines.append("")

    def both_say_hello(self) -> None:
        for peer in (PEER, OTHER):
            self.say(Hello(1, 1, 1, "test", b"i" * 16, b"", 0), peer=peer)


def numbered_batches(world: Recorder) -> None:
    """A named producer: fresh, resend and conflict in one turn, overlap, gap, takeover."""
    world.both_say_hello()
    world.say(CreateTopic(2, "t", 1))
    world.say(InitProducer(3, "p", b"n" * 16, "one"))
    world.step("hello, topic, epoch")
    batch = batch_of("a", "b")
    world.say(world.numbered(0, batch, request=4), batch)
    world.say(world.numbered(0, batch, request=5), batch)
    other = batch_of("a", "X", "c")
    world.say(world.numbered(0, other, request=6), other)
    world.step("fresh, resend, conflict and new rest before the sync")
    world.say(world.numbered(7, batch, request=7), batch)
    world.say(InitProducer(8, "p", b"m" * 16, "two"), peer=OTHER)
    world.say(world.numbered(3, batch, request=9), batch)
    world.step("gap, takeover, fenced")


def explicit_ids(world: Recorder) -> None:
    """Ids: new, a mixed batch, a lost batch, a restart that forgets the session."""
    world.both_say_hello()
    world.say(DescribeTopic(2, "t", create=True))
    first = batch_with_ids([("x", "1"), ("y", "2"), ("x", "1")])
    world.say(world.explicit(0, first, request=3), first)
    world.step("an id twice in one batch")
    mixed = batch_with_ids([("y", "2"), ("z", "3"), ("x", "9")])
    world.say(world.explicit(1, mixed, request=4), mixed)
    world.say(world.explicit(3, first, request=5), first)
    world.step("duplicate, new, conflict; then a gap")
    world.crash()
    world.lines.append("  restart")
    world.both_say_hello()
    world.say(world.explicit(2, mixed, request=6), mixed)
    world.say(world.explicit(0, mixed, request=7, session=b"T" * 16), mixed)
    world.step("unknown session; all known under a new one")


def reading(world: Recorder) -> None:
    """Fetches: nothing before the sync, a long poll, the end of a wait."""
    world.both_say_hello()
    world.say(CreateTopic(2, "t", 1))
    world.say(InitProducer(3, "p", b"n" * 16, "one"))
    world.step("hello, topic, epoch")
    world.say(Fetch(2, "", "t", 0, 0, 0, 1000, 500), peer=OTHER)
    batch = batch_of("a", "b", "c")
    world.say(world.numbered(0, batch, request=4), batch)
    world.say(Fetch(5, "", "t", 0, 0, 0, 1000, 0))
    world.step("a fetch waits, a batch comes, an impatient fetch sees nothing yet")
    world.step("synced: the one that waited gets it")
    world.say(Fetch(3, "", "t", 0, 0, 2, 1000, 0), peer=OTHER)
    world.say(Fetch(4, "", "t", 0, 0, 3, 1000, 500), peer=OTHER)
    world.say(Fetch(5, "", "t", 0, 0, 9, 1000, 500), peer=OTHER)
    world.step("inside a batch, at the end, above the end")
    world.clock.ms += 500
    world.step("time is over")


def groups(world: Recorder) -> None:
    """Grants: first, standby, renew, leave, takeover, zombie."""

    def join(request: int, who: bytes, label: str, **changes: Any) -> Join:
        fields = {"next_offset": 0, "highest_generation": 0, "lock_held": False, **changes}
        return Join(
            request, "g", "t", 0, who * 16, b"ledger", b"", b"", **fields, host="h", path="/s",
            label=label,
        )  # fmt: skip

    world.both_say_hello()
    world.say(CreateTopic(2, "t", 1))
    world.say(join(3, b"1", "one"))
    world.say(join(2, b"2", "two"), peer=OTHER)
    world.step("granted; standby")
    world.clock.ms += LEASE_MS - 1
    world.say(Renew(4, "g", "t", 0, 1))
    world.say(join(3, b"2", "two", lock_held=True, highest_generation=1), peer=OTHER)
    world.say(Renew(5, "g", "t", 0, 1))
    world.say(Fetch(6, "g", "t", 0, 1, 0, 1000, 0))
    world.step("renewed; taken over by lock; the zombie is refused")
    world.say(Leave(4, "g", "t", 0, 2, 0), peer=OTHER)
    world.say(ListGroups(7))
    world.say(ListTopics(8))
    world.step("left")


def disk_full(world: Recorder) -> None:
    """No room: writes are refused, reads and signs of life go on, then it resumes."""
    world.both_say_hello()
    world.say(CreateTopic(2, "t", 1))
    world.say(InitProducer(3, "p", b"n" * 16, "one"))
    world.step("hello, topic, epoch")

    def refuse(nbytes: int) -> None:
        raise DiskFull("no room")

    world.log.reserve = refuse
    batch = batch_of("a")
    world.say(world.numbered(0, batch, request=4), batch)
    world.say(Fetch(5, "", "t", 0, 0, 0, 1000, 0))
    world.say(Ping(6))
    world.step("full")
    del world.log.reserve
    world.say(world.numbered(0, batch, request=7), batch)
    world.step("room again")


@pytest.mark.parametrize(
    "scene", [numbered_batches, explicit_ids, reading, groups, disk_full], ids=lambda f: f.__name__
)
def test_turns_read_as_before(scene: Callable[[Recorder], None]) -> None:
    """Every answer, record and event of these turns is what the transcript says."""
    world = Recorder()
    scene(world)
    text = f"# {scene.__doc__}\n" + "\n".join(line.rstrip() for line in world.lines) + "\n"
    path = FOLDER / f"{scene.__name__}.txt"
    if REWRITE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert path.read_text("utf-8") == text
