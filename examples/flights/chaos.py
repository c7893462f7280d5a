"""The flights under fire: `python -m examples.flights.chaos --seeds 5 --kills 200`.

Two producers follow growing files (one with sequence ids, one with ids made from the rows), two
chained consumers total the flights, and an engine kills, freezes and replaces all of them and the
broker. In the end the files are completed to whole Januaries and everything is compared with what
the rows themselves say: `check_log`, `check_commits`, `check_states`, and `check_deeds`, since a
run in which little was hit proves little.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from actors.ids import compound_id
from actors.library.chaos import (
    Chaos,
    Deeds,
    History,
    Program,
    ProgramFailed,
    Running,
    Slot,
    StoredMessage,
    free_endpoint,
    read_topic,
)

from . import expected

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "examples.flights.chaos_app:app"
GROUPS = ("totals", "jfk", "cancelled")
BACKLOG_MAX = 4_000  # flights fed but not yet committed; feeding waits above it
IDS_FED_MAX = 5_000  # while faults last: after each kill this producer sends all of it again
DRAIN_S = 120.0
KILLS_PER_ROLE_MIN = 10
ROLES = ("broker", "producer", "consumer")
TURN_POINTS = ("after_append_before_sync", "after_sync_before_reply")
START_POINTS = ("during_generation_change", "during_recovery")


# --- checks: each returns what is wrong, in words, or nothing -------------------------------------


def check_log(
    messages: Sequence[StoredMessage], rows: Sequence[expected.Row], cycles: int
) -> list[str]:
    """Topic `flights` holds every row of both files once, each producer's in the order sent."""
    wrong = []
    numbered = [message for message in messages if message.sequence >= 0]
    named = [message for message in messages if message.sequence < 0]
    if len(numbered) != cycles * len(rows) or len(named) != len(rows):
        wrong.append(
            f"{len(numbered)} + {len(named)} messages, not {cycles * len(rows)} + {len(rows)}"
        )
    for number, (message, row) in enumerate(zip(numbered, cycle(rows), strict=False)):
        if message.sequence != number or message.value != row:
            wrong.append(f"{message.message_id} at offset {message.offset}, not row {number}")
            break
    for message, row in zip(named, rows, strict=False):
        wanted = compound_id([row[name] for name in expected.ID_FIELDS])
        if message.message_id != wanted or message.value != row:
            wrong.append(f"{message.message_id!r} at offset {message.offset}, not {wanted!r}")
            break
    wrong += check_outputs(messages)
    return wrong


def check_outputs(messages: Iterable[StoredMessage]) -> list[str]:
    """For each producer sequence numbers are dense and epochs never go back."""
    wrong = []
    last: dict[str, StoredMessage] = {}
    seen: Counter[str] = Counter()
    for message in messages:
        before = last.get(message.producer)
        if before is not None and message.epoch < before.epoch:
            wrong.append(f"epoch {message.epoch} of {message.producer!r} after {before.epoch}")
        last[message.producer] = message
        if message.sequence >= 0:
            if message.sequence != seen[message.producer]:
                wrong.append(f"{message.message_id}, not number {seen[message.producer]}")
            seen[message.producer] += 1
    return wrong[:5]


def check_commits(commits: Iterable[tuple[str, str, int, int]]) -> list[str]:
    """No offset of (group, topic) was committed twice. Items: group, topic, first, next offset.

    Holes are no error here: a process can be killed after the commit, before it tells of it.
    """
    wrong = []
    end: dict[tuple[str, str], int] = {}
    told = sorted(commits)
    for group, topic, first, following in told:
        if first < end.get((group, topic), 0):
            wrong.append(f"group {group}: offset {first} of {topic} was committed twice")
        end[group, topic] = max(following, end.get((group, topic), 0))
    return wrong[:5] if told else ["no commit was told of"]


def check_states(
    rows: Sequence[expected.Row], januaries: int, states: dict[str, dict[str, Any]]
) -> list[str]:
    """Each group holds exactly what `januaries` times the file gives."""
    once = expected.totals_of(rows)
    totals = {
        carrier: {name: januaries * number for name, number in entry.items()}
        for carrier, entry in once.items()
    }
    from_jfk = Counter(row["carrier"] for row in rows if row["origin"] == "JFK")
    wanted: dict[str, dict[str, Any]] = {
        "totals": totals,
        "cancelled": expected.cancelled_of(totals),
        "jfk": {carrier: januaries * count for carrier, count in from_jfk.items()},
    }
    return [
        f"{group}, {line}"
        for group in wanted
        for line in expected.differences(wanted[group], states.get(group, {}))
    ]


def check_deeds(deeds: Deeds, events: Counter[str], duplicates: int, holes: int) -> list[str]:
    """Enough was hit, and the defences were needed."""
    wrong = [
        f"only {deeds.kills[role]} kills of the {role}, {KILLS_PER_ROLE_MIN} are the least"
        for role in ROLES
        if deeds.kills[role] < KILLS_PER_ROLE_MIN
    ]
    if 2 * deeds.at_work.total() < deeds.kills.total():
        wrong.append(f"only {deeds.at_work.total()} of the killed were at work")
    if deeds.crashes.total() < 1:
        wrong.append("no crash point was reached")
    if duplicates < 1:
        wrong.append("no duplicate was suppressed")
    wrong += [
        f"no zombie {role} was fenced"
        for role in ("producer", "consumer")
        if deeds.fenced[role] < 1
    ]
    if events["commit.synced"] < deeds.kills["consumer"]:
        wrong.append("fewer commits than kills of consumers")
    if holes:
        wrong.append(f"{holes} lines are missing in the event files")
    return wrong


# --- the play -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Feed:
    """A file that grows by whole lines, cycling through the flights."""

    path: Path
    lines: Sequence[str]
    fed: int = 0

    def grow(self, count: int) -> None:
        """Append the next `count` flights."""
        with self.path.open("a", encoding="utf-8") as stream:
            start = self.fed % len(self.lines)
            stream.writelines(islice(cycle(self.lines), start, start + count))
        self.fed += count

    def complete(self) -> int:
        """Append what is missing to whole Januaries and return how many there are."""
        cycles = max(1, -(-self.fed // len(self.lines)))
        self.grow(cycles * len(self.lines) - self.fed)
        return cycles


@dataclass(slots=True)
class Result:
    """What a run came to. It is good if nothing is wrong."""

    wrong: list[str]
    deeds: Deeds
    facts: dict[str, int] = field(default_factory=dict)


class Fire:
    """One run with one seed in one directory."""

    def __init__(self, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self.directory = directory
        self.say = say
        self.rng = random.Random(f"feed {seed}")
        self.endpoint = free_endpoint()
        self.printed, events = directory / "printed", directory / "events"
        self.printed.mkdir()
        events.mkdir()
        header, *lines = expected.lines()
        self.rows = list(expected.rows())
        self.numbered = Feed(directory / "numbered.csv", lines)
        self.named = Feed(directory / "named.csv", lines)
        for feed in (self.numbered, self.named):
            feed.path.write_text(header, encoding="utf-8")
        self.environ = {
            **{name: value for name, value in os.environ.items() if "ONCEMQ" not in name},
            "ONCEMQ_BIND": self.endpoint,
            "ONCEMQ_BROKER": self.endpoint,
            "ONCEMQ_DATA": str(directory / "broker"),
            "ONCEMQ_STATE": str(directory / "consumers"),
            "ONCEMQ_LOG_DIR": str(events),
            "PYTHONPATH": str(ROOT),
        }
        self.history = _Watched(events)
        self.next_feed_s = 0.0
        self.chaos = Chaos(
            self._slots(),
            seed=seed,
            directory=self.printed,
            environ=self.environ,
            history=self.history,
            say=say,
            feed=self._feed,
        )

    def run(self, kills: int, takeovers: Sequence[str], timeout_s: float) -> Result:
        """Play, drain, check. Raises ProgramFailed if something ended that nobody ended."""
        try:
            self.chaos.start()
            self.chaos.run(kills // 2, takeovers=takeovers[::2], timeout_s=timeout_s / 2)
            self.chaos.calm()  # nobody would start the broker again while the observer reads
            seen = list(read_topic(self.endpoint, "flights"))
            self.chaos.run(
                kills,
                takeovers=takeovers[1::2],
                timeout_s=timeout_s / 2,
                each_role=KILLS_PER_ROLE_MIN,
            )
            self.chaos.calm()
            return self._drain(seen)
        finally:
            self.chaos.close()

    def _slots(self) -> list[Slot]:
        flights = ("producer.py", "--topic", "flights", "--format", "csv", "--follow")
        ids = ("--name", "named", "--id-field", ",".join(expected.ID_FIELDS))
        return [
            Slot(
                "broker",
                _python("broker", "broker.py"),
                frozenset({"batch.appended", "batch.duplicate"}),
                TURN_POINTS,
                START_POINTS,
                owned="broker.ready",
                takeover=("--takeover",),
            ),
            *(
                Slot(
                    "producer",
                    _python(feed.path.stem, *flights, *more, str(feed.path)),
                    frozenset({"client.connected"}),
                    owned="client.connected",
                )
                for feed, more in ((self.numbered, ("--name", "numbered")), (self.named, ids))
            ),
            *(
                Slot(
                    "consumer",
                    _python(group, "consumer.py", APPLICATION, "--group", group),
                    frozenset({"commit.synced"}),
                    (*TURN_POINTS, "after_commit_before_output"),
                    START_POINTS,
                    owned="consumer.granted",
                    lease=True,
                )
                for group in ("totals", "jfk")
            ),
        ]

    def _feed(self) -> None:
        """Let some flights arrive: mostly few, now and then a crowd; wait for slow consumers."""
        now = time.monotonic()
        behind = self.numbered.fed + self.named.fed - self.history.committed["totals"]
        if now < self.next_feed_s or behind > BACKLOG_MAX:
            return
        self.next_feed_s = now + self.rng.uniform(0.01, 0.1)
        count = self.rng.randint(1, 60) if self.rng.random() < 0.9 else self.rng.randint(500, 1500)
        feed = self.rng.choice((self.numbered, self.named))
        if feed is self.named:
            count = min(count, IDS_FED_MAX - feed.fed)
        feed.grow(max(count, 0))

    # --- the end ---------------------------------------------------------------------------------

    def _drain(self, seen: list[StoredMessage]) -> Result:
        """Send the rest, let the consumers finish, stop everything, and look."""
        self.next_feed_s = float("inf")
        for name in ("numbered", "named"):
            self.chaos.leave(name)
        cycles = self.numbered.complete()
        if self.named.complete() != 1:
            raise ProgramFailed("the file for explicit ids grew beyond one January")
        self.say(f"{cycles} Januaries with numbers, one with ids; draining")
        producers = [slot for slot in self._slots() if slot.role == "producer"]
        for slot in producers:
            argv = tuple(word for word in slot.program.argv if word != "--follow")
            self._finish(Program(f"{slot.program.name}-rest", argv))
        for group in GROUPS:
            if group != "cancelled":  # that group begins only now
                self.chaos.leave(group)
            last = _python(f"{group}-rest", "consumer.py", APPLICATION, "--group", group)
            self._finish(last, "--until-idle", "1")
        messages = list(read_topic(self.endpoint, "flights"))
        outputs = {
            topic: list(read_topic(self.endpoint, topic)) for topic in GROUPS if topic != "totals"
        }
        self.chaos.leave("broker")
        self.history.refresh()
        wrong = check_log(messages, self.rows, cycles)
        if messages[: len(seen)] != seen:
            wrong.append("what was read in the middle is not how the log begins")
        states = {group: self._state(group) for group in GROUPS}
        wrong += check_states(self.rows, cycles + 1, states)
        for topic, held in outputs.items():
            wrong += check_outputs(held)
            if len(held) != sum(states[topic].values()):
                wrong.append(
                    f"{len(held)} messages in {topic}, {sum(states[topic].values())} counted"
                )
        wrong += check_commits(self.history.commits)
        duplicates = self.history.duplicates
        wrong += check_deeds(self.chaos.deeds, self.history.events, duplicates, self.history.holes)
        facts = {
            "messages": len(messages) + sum(map(len, outputs.values())),
            "commits": self.history.events["commit.synced"],
            "duplicates": duplicates,
            "processes": len(self.history.by_process),
        }
        return Result(wrong, self.chaos.deeds, facts)

    def _finish(self, program: Program, *more: str) -> Running:
        """Run a program to its good end while the cast is looked after."""
        running = program.start(self.printed, self.environ, *more)
        try:
            self.chaos.await_end(running, DRAIN_S)
        finally:
            running.end()
        return running

    def _state(self, group: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "actors", "state", "--group", group, "--json"]
        done = subprocess.run(
            command, env=self.environ, cwd=ROOT, capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise ProgramFailed(f"{' '.join(command)}\n{done.stderr.decode()}")
        state: dict[str, Any] = json.loads(done.stdout)
        return state


class _Watched(History):
    """A history that also keeps who committed what, and what was recognised."""

    def __init__(self, log_dir: Path) -> None:
        super().__init__(log_dir)
        self.committed: Counter[str] = Counter()  # group -> next offset
        self.commits: list[tuple[str, str, int, int]] = []
        self.duplicates = 0

    def refresh(self) -> list[dict[str, Any]]:
        """Take in what was written since the last time."""
        found = super().refresh()
        for line in found:
            match line["event"]:
                case "commit.synced":
                    first, following = line["first_offset"], line["next_offset"]
                    self.commits.append((line["group"], line["topic"], first, following))
                    self.committed[line["group"]] = max(self.committed[line["group"]], following)
                case "batch.duplicate" | "consumer.skipped":
                    self.duplicates += line["count"]
                case "batch.appended":
                    self.duplicates += line.get("duplicates", 0)
        return found


def _python(name: str, script: str, *more: str) -> Program:
    return Program(name, (sys.executable, str(ROOT / script), *more))


def takeovers_of(kills: int) -> list[str]:
    """Return which slots are frozen and replaced in a run of `kills` kills.

    Few consumers, since each costs a lease of ten seconds. The producer with explicit ids may have
    nothing to send for a while, and a zombie is noticed when it speaks.
    """
    share = max(1, kills // 50)
    consumers = ["totals", "jfk"] * (share // 4) or ["totals"]
    return [*consumers, *["numbered", "broker"] * share]


def burn(
    directory: Path, seed: int, kills: int, timeout_s: float, say: Callable[[str], None]
) -> Result:
    """Run one seed and tell what it came to. Raises ProgramFailed."""
    say(f"seed {seed}: {kills} kills in {directory}")
    began_s = time.monotonic()
    result = Fire(directory, seed, say).run(kills, takeovers_of(kills), timeout_s)
    deeds = result.deeds
    for name in ("kills", "at_work", "crashes", "pauses", "takeovers", "fenced"):
        say(f"{name}: {dict(sorted(getattr(deeds, name).items()))}")
    say(f"facts: {result.facts}, {time.monotonic() - began_s:.1f} s")
    for line in result.wrong:
        say(f"WRONG {line}")
    say(f"seed {seed}: {'FAILED' if result.wrong else 'nothing lost, nothing doubled'}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds one after another; exit 1 at the first that finds something."""
    parser = argparse.ArgumentParser(prog="python -m examples.flights.chaos")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs (default 1)")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first (default 1)")
    parser.add_argument("--kills", type=int, default=40, help="kills a run (default 40)")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds a run may take")
    options = parser.parse_args(arguments)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        directory = Path(tempfile.mkdtemp(prefix=f"oncemq-chaos-{seed}-"))
        try:
            wrong = bool(burn(directory, seed, options.kills, options.timeout, _print).wrong)
        except ProgramFailed as error:
            _print(f"seed {seed}: FAILED\n{error}")
            wrong = True
        if wrong:
            _print(f"kept for a look: {directory}")
            return 1
        shutil.rmtree(directory, ignore_errors=True)
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
