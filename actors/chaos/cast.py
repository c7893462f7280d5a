"""The cast for a user's own application: one broker, producers of its input, its consumers.

Every process is the real command (`oncemq broker`, `producer`, `consumer`), started as a user
would start it, in the user's working directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..library.handling.call import Consumer
from .feed import Feed, Lane
from .holdings import Owning
from .programs import Program, ProgramFailed, Running
from .slots import Slot

ROLES = ("broker", "producer", "consumer")
GROUPS_APART_MAX = 6  # above it one process runs all groups
TURN_POINTS = ("after_append_before_sync", "after_sync_before_reply")
CONSUMING = Owning("consumer.granted", ("group", "topic", "partition"), "consumer.rejoined")
START_POINTS = ("during_generation_change", "during_recovery")
ENDS_WITHOUT_ALL_MAX = 20  # in a row, of one producer that is asked to end


def environment(directory: Path, endpoint: str) -> dict[str, str]:
    """Fresh directories, no setting of the caller's shell."""
    package_home = str(Path(__file__).resolve().parents[2])
    paths = [package_home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("ONCEMQ_")},
        "ONCEMQ_BIND": endpoint,
        "ONCEMQ_BROKER": endpoint,
        "ONCEMQ_DATA": str(directory / "broker"),
        "ONCEMQ_STATE": str(directory / "consumers"),
        "ONCEMQ_LOG_DIR": str(directory / "events"),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def command(name: str, *arguments: str) -> Program:
    """Return an `oncemq` command as a program; `-P`: a user's own package `actors` is not ours."""
    return Program(name, (sys.executable, "-P", "-m", "oncemq", *arguments))


def cast(application: str, consumers: Sequence[Consumer], feed: Feed, topic: str) -> list[Slot]:
    broker = Slot(
        "broker",
        command("broker", "broker"),
        frozenset({"batch.appended", "batch.duplicate"}),
        TURN_POINTS,
        START_POINTS,
        owned=Owning("broker.ready"),
        takeover=("--takeover",),
    )
    producers = [producer_slot(lane, feed) for lane in feed.lanes]
    return [broker, *producers, *consumer_slots(application, consumers, topic)]


def producer_slot(lane: Lane, feed: Feed) -> Slot:
    incomplete = [0]

    def program() -> Program:
        job, portion = feed.source.job, lane.portion
        ids = ("--id-field", ",".join(portion.id_fields)) if portion.id_fields else ()
        key = ("--key-field", job.key_field) if job.key_field is not None else ()
        file = ("--follow", "--format", job.format_name, "--name", portion.producer)
        where = ("--topic", job.topic, *file, *ids, *key, str(portion.path))
        return command(lane.name, "producer", *where)

    def renew(running: Running) -> Program | None:
        """Take the end of a producer that was asked for: is all of its portion acknowledged?"""
        if running.exit_code not in {0, 1}:
            raise ProgramFailed(f"{running} ended with {running.exit_code}\n{running.told()}")
        if running.exit_code == 0 and running.summary().get("sent") == lane.portion.fed:
            incomplete[0] = 0
            return program() if lane.advance() else None
        incomplete[0] += 1
        if incomplete[0] > ENDS_WITHOUT_ALL_MAX:
            raise ProgramFailed(f"{running} never has all of its rows stored\n{running.told()}")
        return program()

    return Slot(
        "producer",
        program(),
        frozenset({"client.connected"}),
        owned=Owning("producer.opened", ("producer",)),
        renew=renew,
        talks=lane.talks,
    )


def consumer_slots(application: str, consumers: Sequence[Consumer], topic: str) -> list[Slot]:
    """Return a slot for each group; one for all if there are too many groups."""
    topics: dict[str, set[str]] = {}
    for consumer in consumers:
        topics.setdefault(consumer.group, set()).add(consumer.topic)
    if len(topics) > GROUPS_APART_MAX:
        return [_consumer_slot("consumers", (application,), fed=True)]
    return [
        _consumer_slot(
            f"consumer-{number}-{_plain(group)}",
            (application, "--group", group),
            fed=topic in its,
        )
        for number, (group, its) in enumerate(sorted(topics.items()), 1)
    ]


def _plain(group: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in group)[:40]


def _consumer_slot(name: str, arguments: tuple[str, ...], *, fed: bool) -> Slot:
    """`fed`: it reads the input itself; another one may have nothing to do for a while."""
    return Slot(
        "consumer",
        command(name, "consumer", *arguments),
        frozenset({"commit.synced"} if fed else {"client.connected"}),
        (*TURN_POINTS, "after_commit_before_output"),
        START_POINTS,
        owned=CONSUMING if fed else None,
        lease=True,
    )
