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
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from examples.flights import expected
from examples.flights.chaos_checks import (
    KILLS_PER_ROLE_MIN,
    check_commits,
    check_deeds,
    check_log,
    check_outputs,
    check_states,
)
from oncemq.chaos import (
    Chaos,
    Deeds,
    Program,
    ProgramFailed,
    Slot,
    StoredMessage,
    free_endpoint,
    read_topic,
)
from oncemq.chaos.cast import CONSUMING, START_POINTS, TURN_POINTS, environment
from oncemq.chaos.holdings import Owning
from oncemq.chaos.timeline import Watch
from oncemq.runtime.process import stop_check

ROOT = Path(__file__).resolve().parents[2]
APPLICATION = "examples.flights.chaos_app:app"
GROUPS = ("totals", "jfk", "cancelled")
BACKLOG_MAX = 4_000  # flights fed but not yet committed; feeding waits above it
IDS_FED_MAX = 5_000  # while faults last: after each kill this producer sends all of it again
UP = frozenset({"client.connected"})  # by this event producers and consumers show that they are
DRAIN_S = 300.0


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

    def __init__(
        self,
        directory: Path,
        seed: int,
        say: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        """`check` is called often, where the run can be broken off; what it raises comes out."""
        self.say = say
        self.check = check
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
        self.environ = environment(directory, self.endpoint)
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
            seen = self._read("flights")
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
                owned=Owning("broker.ready"),
                takeover=("--takeover",),
            ),
            *(
                Slot(
                    "producer",
                    _python(feed.path.stem, *flights, *more, str(feed.path)),
                    frozenset({"client.connected"}),
                    owned=Owning("producer.opened", ("producer",)),
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
                    owned=CONSUMING,
                    lease=True,
                )
                for group in ("totals", "jfk")
            ),
        ]

    def _feed(self) -> None:
        """Let some flights arrive: mostly few, now and then a crowd; wait for slow consumers."""
        self.check()
        now = time.monotonic()
        fed = self.numbered.fed + self.named.fed
        behind = fed - self.history.processed_of("totals", "flights")
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
            self.chaos.leave(name, UP)
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
                self.chaos.leave(group, UP)
            last = _python(f"{group}-rest", "consumer.py", APPLICATION, "--group", group)
            self._finish(last, "--until-idle", "1")
        messages = self._read("flights")
        outputs = {topic: self._read(topic) for topic in GROUPS if topic != "totals"}
        self.chaos.leave("broker", frozenset({"broker.ready"}))
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
        duplicates = self.history.duplicates + self.history.skipped
        wrong += check_deeds(self.chaos.deeds, self.history.events, duplicates, self.history.holes)
        facts = {
            "messages": len(messages) + sum(map(len, outputs.values())),
            "commits": self.history.events["commit.synced"],
            "duplicates": duplicates,
            "processes": len(self.history.by_process),
        }
        return Result(wrong, self.chaos.deeds, facts)

    def _read(self, topic: str) -> list[StoredMessage]:
        """Read a topic from its first message to its last."""
        messages = []
        for message in read_topic(self.endpoint, topic):
            self.check()
            messages.append(message)
        return messages

    def _finish(self, program: Program, *more: str) -> None:
        """Run a program to its good end while the cast is looked after."""
        running = program.start(self.printed, self.environ, *more)
        try:
            self.chaos.await_end(running, DRAIN_S)
        finally:
            running.end()

    def _state(self, group: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "oncemq", "state", "--group", group, "--json"]
        done = subprocess.run(
            command, env=self.environ, cwd=ROOT, capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise ProgramFailed(f"{' '.join(command)}\n{done.stderr.decode()}")
        state: dict[str, Any] = json.loads(done.stdout)
        return state


class _Watched(Watch):
    """A watch that also keeps who committed what."""

    def __init__(self, log_dir: Path) -> None:
        super().__init__(log_dir)
        self.commits: list[tuple[str, str, int, int]] = []

    def refresh(self) -> list[dict[str, Any]]:
        """Take in what was written since the last time."""
        found = super().refresh()
        for line in found:
            if line["event"] == "commit.synced":
                offsets = line["first_offset"], line["next_offset"]
                self.commits.append((line["group"], line["topic"], *offsets))
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
    directory: Path,
    seed: int,
    kills: int,
    timeout_s: float,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Result:
    """Run one seed and tell what it came to. Raises ProgramFailed, and what `check` raises."""
    say(f"seed {seed}: {kills} kills in {directory}")
    began_s = time.monotonic()
    result = Fire(directory, seed, say, check).run(kills, takeovers_of(kills), timeout_s)
    deeds = result.deeds
    for name in ("kills", "at_work", "crashes", "pauses", "takeovers", "fenced"):
        say(f"{name}: {dict(sorted(getattr(deeds, name).items()))}")
    say(f"facts: {result.facts}, {time.monotonic() - began_s:.1f} s")
    for line in result.wrong:
        say(f"WRONG {line}")
    say(f"seed {seed}: {'FAILED' if result.wrong else 'nothing lost, nothing duplicated'}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds one after another; exit 1 at the first that finds something, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m examples.flights.chaos")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs (default 1)")
    parser.add_argument("--first-seed", type=int, default=1, help="seed of the first (default 1)")
    parser.add_argument("--kills", type=int, default=40, help="kills a run (default 40)")
    parser.add_argument("--timeout", type=float, default=1200.0, help="seconds a run may take")
    options = parser.parse_args(arguments)
    with stop_check() as check:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            status = _burn_apart(seed, options.kills, options.timeout, check)
            if status:
                return status
    return 0


def _burn_apart(seed: int, kills: int, timeout_s: float, check: Callable[[], None]) -> int:
    """Run a seed in a directory of its own, kept if something is wrong; return the exit status."""
    directory = Path(tempfile.mkdtemp(prefix=f"oncemq-chaos-{seed}-"))
    try:
        status = int(bool(burn(directory, seed, kills, timeout_s, _print, check).wrong))
    except ProgramFailed as error:
        _print(f"seed {seed}: FAILED\n{error}")
        status = 1
    except KeyboardInterrupt:
        _print("interrupted: all processes were stopped")
        status = 130
    if status == 1:
        _print(f"kept for a look: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return status


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
