"""Real processes for the tests of this directory: each bounded in time, ended by its own pid.

`house` has everything below one temporary directory: `data/`, `consumers/`, `events/` and
`printed/` (stdout and stderr of every process, `NAME-0000.out` and so on).
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from oncemq.chaos.history import History
from oncemq.chaos.programs import Program, Running, free_endpoint, wait_until

ROOT = Path(__file__).resolve().parents[2]
FLIGHTS = ROOT / "examples" / "flights" / "flights-2013-01.csv.gz"
FLIGHT_ID = "year,month,day,carrier,flight,origin,sched_dep_time"
START_S = 120.0  # generous: a machine may be busy; a test ends as soon as the thing has happened


class House:
    """Starts broker, producers and consumers on a port and directories of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.endpoint = free_endpoint()
        self.data = directory / "data"
        self.state = directory / "consumers"
        self.events = directory / "events"
        self.printed = directory / "printed"
        for path in (self.events, self.printed):
            path.mkdir()
        self.history = History(self.events)
        self._appended = 0
        self._committed: Counter[tuple[str, str]] = Counter()  # (group, topic): next offset
        self.running: list[Running] = []
        self.environ = {
            **{name: value for name, value in os.environ.items() if "ONCEMQ" not in name},
            "ONCEMQ_BROKER": self.endpoint,
            "ONCEMQ_LOG_DIR": str(self.events),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(directory)]),
        }

    def start(self, name: str, *argv: str, **environ: str) -> Running:
        """Start any Python program: a script of the project by its path below the root, or -m."""
        program = Program(name, (sys.executable, *argv), environ)
        running = program.start(self.printed, self.environ)
        self.running.append(running)
        return running

    def broker(self, *more: str, ready: bool = True, **environ: str) -> Running:
        """Start the broker, by default until it answers requests."""
        running = self.start(
            "broker",
            str(ROOT / "broker.py"),
            f"--data={self.data}",
            f"--bind={self.endpoint}",
            *more,
            **environ,
        )
        if ready:
            self.wait_for(running, "broker.ready")
        return running

    def producer(self, *more: str, **environ: str) -> Running:
        """Start `producer.py` with these arguments."""
        return self.start("producer", str(ROOT / "producer.py"), *more, **environ)

    def flights(self, *more: str, **environ: str) -> Running:
        """Start a producer of January's flights to topic `flights`."""
        return self.producer("--topic=flights", "--format=csv", *more, str(FLIGHTS), **environ)

    def consumer(self, application: str, *more: str, **environ: str) -> Running:
        """Start `consumer.py MODULE:APP` on the shared state directory."""
        return self.start(
            "consumer",
            str(ROOT / "consumer.py"),
            application,
            f"--state={self.state}",
            *more,
            **environ,
        )

    def command(self, *argv: str, code: int = 0) -> dict[str, Any]:
        """Run a command of `oncemq` with --json; return what it prints, else {"error": stderr}."""
        command = self.start(argv[0], "-m", "oncemq", *argv, "--json")
        command.wait(START_S, code)
        lines = command.stdout().splitlines()
        return dict(json.loads(lines[-1])) if lines else {"error": command.stderr()}

    def wait_for(self, running: Running, event: str, times: int = 1) -> None:
        """Wait until a process has written `event`; fail at once if it ends before."""

        def seen() -> bool:
            ended = running.exit_code is not None
            self.refresh()
            found = self.history.of(running.pid)[event] >= times
            assert found or not ended, f"{running} ended before {event}\n{running.told()}"
            return found

        wait_until(seen, START_S, f"{event} of {running}\n{running.told()}")

    def refresh(self) -> None:
        """Read what the processes have told since the last time."""
        for line in self.history.refresh():
            match line["event"]:
                case "batch.appended":
                    self._appended += line["count"]
                case "commit.synced":
                    place = line["group"], line["topic"]
                    self._committed[place] = max(self._committed[place], line["next_offset"])

    def appended(self) -> int:
        """How many messages got an offset, as far as the broker has told."""
        self.refresh()
        return self._appended

    def wait_for_appended(self, count: int) -> None:
        """Wait until the broker has told of `count` messages."""
        wait_until(lambda: self.appended() >= count, START_S, f"{count} messages in the log")

    def committed(self, group: str, topic: str) -> int:
        """How far a group has told of commits in a topic of one partition."""
        self.refresh()
        return self._committed[group, topic]

    def wait_for_committed(self, group: str, topic: str, offset: int) -> None:
        """Wait until a group has told of commits up to `offset`."""

        reached = f"{group} at offset {offset} of {topic}"
        wait_until(lambda: self.committed(group, topic) >= offset, START_S, reached)

    def check_summary(
        self, producer: Running, *, sent: int, appended: int, duplicates: int = 0
    ) -> None:
        """Check what a producer says at its end, each figure exactly.

        Only if answers came so late that it sent rows again, these may count as duplicates.
        """
        told = producer.summary()
        self.refresh()
        late = appended - told["appended"]
        assert late == 0 or (late > 0 and self.history.of(producer.pid)["producer.resent"]), told
        assert told == {"sent": sent, "appended": appended - late, "duplicates": duplicates + late}

    def close(self) -> None:
        """End everything, frozen or not."""
        for running in self.running:
            running.end()
