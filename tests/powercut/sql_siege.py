"""A consumer with a SQLite sink through power cuts: no acknowledged row is lost, none is doubled.

    unshare --mount python -m tests.powercut.sql_siege --on xfs [--every N --first I] [--live N] [--followed N]

The database lies on the file system that loses power; the broker lies elsewhere, so that it goes on
with what it knows, as the broker of another machine would. Cut points are the storage system calls
that SQLite makes while a fresh group handles a short topic, from the first byte of the database to
the checkpoint of a clean stop. At each: the consumer is killed there (SIGKILL), the power goes, the
database is read; the power goes again, and it must read the same; a second consumer goes on, and
when the broker has its last output the power goes a third time. With `--live` the power goes while
the consumer works: it must not call anything committed after that. With `--followed` the consumer is
killed at a sync, a second one reads what was written and joins its group, and then the power goes:
what the broker was told of the ledger must not be lost. Such a follower holds a lease that has to
run out before a third goes on; `--patient` waits for that.

What a consumer called committed (`commit.synced`) stands in its event file, which loses no power.
`--weakened normal|journal` makes commits less durable (sql_app.py): the siege must see it. The last
line of stdout is a JSON object with the counts. Exit 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from oncemq.chaos import read_topic
from oncemq.chaos.programs import KILLED, Running, wait_until
from oncemq.errors import OnceMQError, UnknownTopic
from oncemq.library.handling.state import decode_state
from oncemq.library.sinks.reading import read_sink_group
from tests.powercut.filesystems import KINDS, Mounted, file_system
from tests.powercut.strace import Strace
from tests.process.house import House

CALLS = ("fdatasync", "pwrite64", "fsync", "unlink", "ftruncate")
MESSAGES = 12
LIVE_SYNC_US = 40_000  # each sync of a life whose power goes at any moment
POINTS_MAX = 100_000  # calls of one kind in one life; the story has far fewer
BROKEN_SHOWN_MAX = 5
END_S = 120.0


class Told(NamedTuple):
    """What a consumer has called committed."""

    commits: int = 0
    next_offset: int = 0


class Seen(NamedTuple):
    """What the database holds: the ledger by its own reader, the rows by plain SQL."""

    commit_no: int
    next_offset: int
    state: dict[str, bytes]
    rows: list[tuple[int, int]]


@dataclass
class Report:
    """What a siege did and found."""

    points: dict[str, int] = field(default_factory=dict)  # storage calls of one life
    kills: dict[str, int] = field(default_factory=dict)  # of them, at how many it was killed
    live: int = 0  # cuts while the consumer worked
    followed: int = 0  # cuts after a follower had read what was not synced
    power_cuts: int = 0
    acknowledged: int = 0  # commits that were acknowledged before their cut
    lost_unsynced: int = 0  # cuts that took away something that had been written
    unsaid: int = 0  # commits that were found and had not been acknowledged
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Siege:
    """All cuts on one file system; each has a group and a database of its own."""

    def __init__(self, mounted: Mounted, house: House, weakened: str, *, patient: bool) -> None:
        self.mounted = mounted
        self.house = house
        self.weakened = weakened
        self.patient = patient
        self.report = Report()
        self._go = house.directory / "go"

    def run(self, calls: tuple[str, ...], first: int, every: int, broken_max: int) -> None:
        """Cut at every `every`-th call of each kind."""
        points = self._points(calls)
        for call in calls:
            self.report.points[call] = len(points[call])
            self.report.kills[call] = 0
            assert points[call], f"the story has no call of {call}"
            for k in points[call][first % min(every, len(points[call])) :: every]:
                self._cut(f"{call}-{k}", call, f"{call}:signal=SIGKILL:when={k}")
                self.report.kills[call] += 1
                if len(self.report.broken) >= broken_max:
                    return

    def run_live(self, count: int, source: random.Random) -> None:
        """Take the power away from a consumer at work, `count` times."""
        for number in range(count):
            self._cut(
                f"live-{number}",
                "fdatasync",
                f"fdatasync:delay_enter={LIVE_SYNC_US}",
                after=source.randint(1, MESSAGES // 3),
            )
            self.report.live += 1

    def run_followed(self, first: int, every: int) -> None:
        """Kill at syncs; a follower reads what is written, and dies at its own first sync."""
        points = self._points(("fdatasync", "fsync"))["fdatasync"]
        for k in points[first % min(every, len(points)) :: every]:
            inject = f"fdatasync:signal=SIGKILL:when={k}"
            self._cut(f"followed-{k}", "fdatasync", inject, followed=True)
            self.report.followed += 1

    def _points(self, calls: tuple[str, ...]) -> dict[str, list[int]]:
        """Live the story to its end; return for each kind the numbers of calls that matter."""
        group, traced = f"all-{'-'.join(calls)}", ",".join(calls)
        directory = self.mounted.fresh_directory(group)
        idle, inject = "--until-idle=0", f"{calls[0]}:delay_enter=0"
        with self._consumer(group, directory, traced, inject, idle) as (life, seen):
            life.wait(END_S, 0)
            seen.wait()
            lines = seen.lines()
        assert self._told(group).next_offset == MESSAGES
        shutil.rmtree(directory)
        return {call: list(_that_matter(lines, call, directory)) for call in calls}

    def _cut(
        self, group: str, call: str, inject: str, *, after: int = 0, followed: bool = False
    ) -> None:
        """Live, lose power and look; `after`: so many commits are told while there is power.

        `followed`: before the power goes, somebody relies on what was written and not synced.
        """
        directory = self.mounted.fresh_directory(group)
        with self._consumer(group, directory, call, inject, "--until-idle=0") as (life, _):
            if after:
                wait_until(lambda: self._told(group).commits >= after, END_S, f"commit {after}")
                self.mounted.lose_power()
                # A commit whose sync had returned may be told a moment later; it counts as well.
                self.house.wait_for(life, "sink.unavailable")
                life.kill()
            else:
                life.wait(END_S, KILLED)
                if followed:
                    at_once = f"{call}:signal=SIGKILL:when=1"
                    with self._consumer(group, directory, call, at_once) as (follower, _):
                        follower.wait(END_S, KILLED)
                written = _files(directory)
                self.mounted.lose_power()
        self.mounted.unmount()
        self.mounted.mount()
        told = self._told(group)
        self.report.acknowledged += told.commits
        self.report.lost_unsynced += not after and written != _files(directory)
        try:
            self._check(group, directory, told, goes_on=self.patient or not followed)
        except (AssertionError, OnceMQError, sqlite3.Error) as error:
            self.report.broken.append(f"{group}: {type(error).__name__}: {error}")
        shutil.rmtree(directory)

    def _check(self, group: str, directory: Path, told: Told, *, goes_on: bool) -> None:
        """All that was told is there, and stays; a second consumer does the rest, once."""
        seen = look(directory, group)
        check_seen(seen, told)
        reported = self._reported(group)
        assert seen.next_offset >= reported, f"the broker was told of offset {reported}: {seen}"
        assert seen.commit_no <= told.commits + 1, f"more than one commit was not told: {told}"
        self.report.unsaid += seen.commit_no - told.commits
        self.mounted.cut_power()
        assert look(directory, group) == seen, "a second power cut shows something else"
        if not goes_on:
            return
        with self._consumer(group, directory) as (life, _):
            wait_until(lambda: self._done(group, life), END_S, "the last output")
            told = self._told(group)
            self.mounted.lose_power()
            life.kill()
        self.mounted.unmount()
        self.mounted.mount()
        seen = look(directory, group)
        check_seen(seen, told)
        assert seen.next_offset == MESSAGES, seen
        assert self._outputs(group) == list(range(MESSAGES)), "an output is missing or double"

    @contextmanager
    def _consumer(
        self, group: str, directory: Path, calls: str = "", inject: str = "", *more: str
    ) -> Iterator[tuple[Running, Any]]:
        """A consumer that strace watches from its first storage call on, if there is `inject`."""
        waits = self._go.with_suffix(".waits")
        for path in (self._go, waits):
            path.unlink(missing_ok=True)
        life = self.house.consumer(
            "tests.powercut.sql_app:app",
            *more,
            POWER_GROUP=group,
            POWER_DB=f"sqlite:///{directory}/shop.db",
            POWER_GO=str(self._go),
            POWER_WEAKENED=self.weakened,
        )
        try:
            if not inject:
                self._go.touch()
                yield life, None
                return
            wait_until(waits.exists, END_S, "the application")
            with Strace(life.pid, calls, inject, self.house.directory / "calls") as strace:
                self._go.touch()
                yield life, strace
        finally:
            life.end()

    def _told(self, group: str) -> Told:
        found = self._events("consumer", group, "commit.synced")
        return max((Told(one["commit_no"], one["next_offset"]) for one in found), default=Told())

    def _reported(self, group: str) -> int:
        """Return the highest offset at which a consumer of a group has said that its ledger is."""
        joins = self._events("broker", group, "group.join")
        return max((event["next_offset"] for event in joins), default=0)

    def _events(self, role: str, group: str, name: str) -> Iterator[dict[str, Any]]:
        """Yield events of a group in order; half a line at the end was told to nobody."""
        for path in self.house.events.glob(f"{role}-*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                if f'"{group}"'.encode() not in line:
                    continue
                event = json.loads(line)
                if event["event"] == name and event["group"] == group:
                    yield event

    def _done(self, group: str, life: Running) -> bool:
        outputs = self._outputs(group)
        assert life.exit_code is None or len(outputs) >= MESSAGES, life.told()
        return len(outputs) >= MESSAGES

    def _outputs(self, group: str) -> list[int]:
        time.sleep(0.01)
        try:
            messages = list(read_topic(self.house.endpoint, f"out-{group}"))
        except UnknownTopic:
            return []
        assert [message.sequence for message in messages] == list(range(len(messages)))
        return [int(message.value) for message in messages]


def _that_matter(lines: list[str], call: str, directory: Path) -> Iterator[int]:
    """Yield the numbers of calls that change what lies on the disk: the -shm file is no such thing."""
    numbered = enumerate((line for line in lines if re.search(rf"\b{call}\(", line)), 1)
    for number, line in numbered:
        assert str(directory) in line, f"not of the database: {line}"
        if "shop.db-shm" not in line:
            yield number


def _files(directory: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name in {"shop.db", "shop.db-wal", "shop.db-journal"}
    }


def look(directory: Path, group: str) -> Seen:
    """Open the database as after a power cut and read all of it."""
    path = directory / "shop.db"
    nothing = Seen(0, 0, {}, [])
    if not path.exists():
        return nothing
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        rows = (
            connection.execute("SELECT place, cents FROM paid ORDER BY rowid").fetchall()
            if "paid" in tables
            else []
        )
        begun = "oncemq_record" in tables and connection.execute(
            "SELECT count(*) FROM oncemq_record"
        ).fetchone() != (0,)
        if not begun:
            return nothing._replace(rows=rows)
        # While this connection is open, a reader beside it finds the write-ahead log in place.
        ledger = read_sink_group(f"sqlite:///{path}", group)["orders", 0]
    return Seen(ledger.commit_no, ledger.next_offset, ledger.state, rows)


def check_seen(seen: Seen, told: Told) -> None:
    """What was acknowledged is there; rows, state and commit record are of the same commits."""
    assert seen.commit_no >= told.commits, f"commit {told.commits} was acknowledged: {seen}"
    assert seen.next_offset >= told.next_offset, f"{told} was acknowledged: {seen}"
    assert seen.rows == [(place, place) for place in range(seen.next_offset)], seen
    total = sum(range(seen.next_offset))
    assert sorted(seen.state) == (["sum"] if seen.next_offset else []), seen
    assert not seen.state or decode_state(seen.state["sum"]) == total, seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=sorted(KINDS), required=True)
    parser.add_argument("--calls", default=",".join(CALLS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--live", type=int, default=0)
    parser.add_argument("--followed", type=int, default=0, help="at one in so many syncs")
    parser.add_argument("--patient", action="store_true", help="wait for leases of followers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--weakened", choices=["", "normal", "journal"], default="")
    parser.add_argument("--broken-max", type=int, default=BROKEN_SHOWN_MAX)
    asked = parser.parse_args()
    started = time.monotonic()
    with file_system(asked.on) as mounted:
        outside = mounted.path.parent / "house"
        outside.mkdir()
        house = House(outside)
        try:
            house.broker()
            lines = outside / "orders.txt"
            lines.write_text("".join(f"{number}\n" for number in range(MESSAGES)), "utf-8")
            house.producer("--topic=orders", "--name=p", str(lines)).wait(END_S, 0)
            siege = Siege(mounted, house, asked.weakened, patient=asked.patient)
            siege.run(tuple(asked.calls.split(",")), asked.first, asked.every, asked.broken_max)
            siege.run_live(asked.live, random.Random(asked.seed))
            if asked.followed:
                siege.run_followed(asked.first, asked.followed)
        finally:
            house.close()
    report = siege.report
    report.power_cuts = mounted.power_cuts
    report.seconds = round(time.monotonic() - started, 1)
    print(json.dumps(vars(report)))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
