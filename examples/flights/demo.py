"""`make demo`: January's flights through broker, producer and two consumers, each killed once.

The flights arrive in a file that grows, as they would in life; the producer follows it. While
they are on the way, producer, consumer and broker are ended with SIGKILL, once each; `oncemq
supervise` starts them again. The totals by carrier that the consumers committed are compared with
totals computed from the file alone. Exit 0: exact. Exit 1: a difference, or not done in time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.flights import expected
from oncemq.chaos import History, end_with_parent, free_endpoint, read_topic
from oncemq.runtime.process import stop_check

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 600.0  # generous: it takes a few seconds where a machine has time
END_S = 60.0  # how long the runner and its processes may take to end
CHUNK_LINES = 250
TURN_S = 0.03
# When this share of all flights is committed, that process is killed. The file grows only a
# little further until then, so each of them is at work when it is hit.
KILLS = ((0.25, "producer"), (0.5, "consumer"), (0.75, "broker"))
MARGIN = 0.1


class DemoFailed(Exception):
    """The demo did not get to its end. The text says how far it came."""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to look does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Scene:
    """What the processes told by their events: who they are and how far they came."""

    def __init__(self, log_dir: Path) -> None:
        self._history = History(log_dir)
        self.committed = {"totals": 0, "cancelled": 0}  # next offset of each group
        self.pids: dict[str, int] = {}  # the latest process of each role
        self.duplicates = 0  # messages that were recognised and not stored again
        self.restarts = 0

    def refresh(self) -> None:
        """Take in what was written since the last time."""
        for line in self._history.refresh():
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        match line["event"]:
            case "process.start" if line["role"] in {"broker", "producer"}:
                self.pids[line["role"]] = line["pid"]
            case "consumer.granted" if line["group"] == "totals":
                self.pids["consumer"] = line["pid"]
            case "commit.synced":
                group = line["group"]
                self.committed[group] = max(self.committed[group], line["next_offset"])
            case "batch.appended":
                self.duplicates += line.get("duplicates", 0)
            case "batch.duplicate":
                self.duplicates += line["count"]
            case "supervise.restarting":
                self.restarts += 1
            case "supervise.gave_up":
                raise DemoFailed(f"a supervisor gave up: {line}")


class Demo:
    """One run in a fresh directory."""

    def __init__(self, directory: Path, console: Console) -> None:
        self.directory = directory
        self.console = console
        self.lines = expected.lines()
        self.totals = expected.totals_of(expected.rows())
        self.cancelled = expected.cancelled_of(self.totals)
        self.flights = len(self.lines) - 1
        self.feed = directory / "flights.csv"
        self.fed = 0  # flights in the file so far
        self.kills: list[str] = []
        (directory / "events").mkdir()
        self.scene = Scene(directory / "events")
        self.endpoint = endpoint = free_endpoint()
        self.stored = {"flights": 0, "cancelled": 0}  # what the broker's log holds in the end
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "ONCEMQ_BIND": endpoint,
            "ONCEMQ_BROKER": endpoint,
            "ONCEMQ_DATA": str(directory / "broker"),
            "ONCEMQ_STATE": str(directory / "consumers"),
            "ONCEMQ_LOG_DIR": str(directory / "events"),
            "DEMO_FEED": str(self.feed),
        }

    def run(self, check: Callable[[], None]) -> bool:
        """Do it all; return whether the result is exact. Raises DemoFailed, and what `check` raises.

        `check` is called often, where the demo can be broken off.
        """
        self.feed.write_text(self.lines[0], encoding="utf-8")
        procfile = Path(__file__).with_name("Procfile")
        command = [sys.executable, "-m", "honcho", "start", "-f", str(procfile), "-d", str(ROOT)]
        with (self.directory / "honcho.txt").open("wb") as printed:
            honcho = subprocess.Popen(
                command,
                env=self.environ,
                stdout=printed,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C reaches this process, which then ends the others
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509
            )
        try:
            self._watch(honcho, check)
        finally:
            honcho.send_signal(signal.SIGTERM)
            try:
                honcho.wait(END_S)
            except subprocess.TimeoutExpired:
                honcho.kill()
                honcho.wait()
            self._await_ends()
        return self._report()

    def _await_ends(self) -> None:
        """Wait until nobody writes here any more: the runner does not wait for slow ones."""
        deadline = time.monotonic() + END_S
        events = self.directory / "events"
        for pid in {int(path.stem.rpartition("-")[2]) for path in events.glob("*.jsonl")}:
            while is_alive(pid) and time.monotonic() < deadline:
                time.sleep(TURN_S)

    # --- while it runs ---------------------------------------------------------------------------

    def _watch(self, honcho: subprocess.Popen[bytes], check: Callable[[], None]) -> None:
        """Feed, kill and show progress until every message is committed."""
        deadline = time.monotonic() + TIMEOUT_S
        waiting = list(KILLS)
        passed = sum(self.cancelled.values())
        with Display(self.console, self.flights, passed) as display:
            while not self._is_done():
                check()
                self.scene.refresh()
                display.show(self.scene.committed)
                share = self.scene.committed["totals"] / self.flights
                if waiting and share >= waiting[0][0] and self._kill(waiting[0][1], display):
                    waiting.pop(0)
                self._grow(waiting[0][0] + MARGIN if waiting else 1.0)
                if honcho.poll() is not None:
                    raise DemoFailed(f"the runner ended with {honcho.returncode}")
                if time.monotonic() > deadline:
                    raise DemoFailed(f"not done in {TIMEOUT_S:g} s: {self.scene.committed}")
                time.sleep(TURN_S)
            display.show(self.scene.committed)
        for topic in self.stored:
            self.stored[topic] = sum(1 for _ in read_topic(self.endpoint, topic))

    def _is_done(self) -> bool:
        wanted = {"totals": self.flights, "cancelled": sum(self.cancelled.values())}
        return self.scene.committed == wanted and len(self.kills) == len(KILLS)

    def _grow(self, share: float) -> None:
        """Append some flights to the file, but no more than `share` of all."""
        end = min(self.fed + CHUNK_LINES, int(share * self.flights), self.flights)
        if end > self.fed:
            with self.feed.open("a", encoding="utf-8") as stream:
                stream.writelines(self.lines[self.fed + 1 : end + 1])
            self.fed = end

    def _kill(self, role: str, display: Display) -> bool:
        pid = self.scene.pids.get(role)
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        done = self.scene.committed["totals"]
        self.kills.append(f"{role} (pid {pid}) after {done:,} of {self.flights:,} flights")
        display.tell(f"killed {self.kills[-1]}")
        return True

    # --- afterwards ------------------------------------------------------------------------------

    def _state(self, group: str) -> dict[str, Any]:
        """Return what a group has committed, read from its files."""
        command = [sys.executable, "-m", "oncemq", "state", "--group", group, "--json"]
        done = subprocess.run(
            command, env=self.environ, cwd=ROOT, capture_output=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise DemoFailed(f"{' '.join(command)}: {done.stderr.decode()}")
        state: dict[str, Any] = json.loads(done.stdout)
        return state

    def _report(self) -> bool:
        self.scene.refresh()
        totals, cancelled = self._state("totals"), self._state("cancelled")
        self._print_table(totals, cancelled)
        wrong = expected.differences(self.totals, totals)
        wrong += expected.differences(self.cancelled, cancelled)
        wanted = {"flights": self.flights, "cancelled": sum(self.cancelled.values())}
        wrong += [
            f"topic {topic} holds {count} messages, not {wanted[topic]}"
            for topic, count in self.stored.items()
            if count != wanted[topic]
        ]
        for line in wrong:
            self.console.print(f"WRONG {line}", markup=False, highlight=False)
        for kill in self.kills:
            self.console.print(f"Ended by SIGKILL: {kill}", highlight=False)
        self.console.print(
            f"Duplicates suppressed: {self.scene.duplicates:,}, sent again after the kills.",
            highlight=False,
        )
        if not wrong:
            self.console.print(
                f"All {self.flights:,} flights counted exactly once: "
                "nothing was lost, nothing was doubled.",
                highlight=False,
            )
        return not wrong

    def _print_table(self, totals: dict[str, Any], cancelled: dict[str, Any]) -> None:
        names = expected.airlines()
        table = Table(title="Flights from New York, January 2013", title_justify="left")
        table.add_column("carrier", no_wrap=True)
        for name in ("flights", "delay, min", "cancelled", "by csv"):
            table.add_column(name, justify="right")
        none = {"flights": 0, "delay_minutes": 0, "cancelled": 0}
        summed: Counter[str] = Counter()
        for carrier in sorted(self.totals.keys() | totals.keys()):
            row = totals.get(carrier, none)
            summed.update(row)
            right = row == self.totals.get(carrier)
            right = right and cancelled.get(carrier, 0) == row["cancelled"]
            table.add_row(
                f"{carrier} {names.get(carrier, '')}",
                f"{row['flights']:,}",
                f"{row['delay_minutes']:,}",
                f"{cancelled.get(carrier, 0):,}",
                "same" if right else "DIFFERS",
            )
        table.add_section()
        sums = (summed["flights"], summed["delay_minutes"], sum(cancelled.values()))
        table.add_row("all", *(f"{value:,}" for value in sums), "")
        self.console.print(table)


class Display:
    """Progress: bars on a terminal, otherwise a line for each tenth and for each kill."""

    def __init__(self, console: Console, flights: int, cancelled: int) -> None:
        self._console = console
        self._flights = flights
        self._shown = 0
        self._bars: Progress | None = None
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:22}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
            )
            self._totals = self._bars.add_task("flights totalled", total=flights)
            self._cancelled = self._bars.add_task("cancellations counted", total=cancelled)

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, committed: dict[str, int]) -> None:
        """Show how many messages each group has committed."""
        if self._bars is not None:
            self._bars.update(self._totals, completed=committed["totals"])
            self._bars.update(self._cancelled, completed=committed["cancelled"])
            return
        tenth = 10 * committed["totals"] // self._flights
        if tenth > self._shown:
            self._shown = tenth
            self.tell(f"{committed['totals']:,} of {self._flights:,} flights totalled")

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, highlight=False)


def play(console: Console, directory: Path, check: Callable[[], None]) -> int:
    """Run the demo; keep its directory only if something went wrong. Returns the exit status."""
    began_s = time.monotonic()
    keep = exact = False
    try:
        exact = Demo(directory, console).run(check)
        keep = not exact
        console.print(f"{time.monotonic() - began_s:.1f} s", highlight=False)
    except DemoFailed as error:
        keep = True
        console.print(f"error: {error}", markup=False, highlight=False)
        with suppress(OSError):
            printed = (directory / "honcho.txt").read_text("utf-8", "replace").splitlines()
            console.print("\n".join(printed[-30:]), markup=False, highlight=False)
    except KeyboardInterrupt:
        console.print("interrupted")
    if keep:
        console.print(f"kept for a look: {directory}", highlight=False)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 0 if exact else 1


def main() -> int:
    """Run the demo in a fresh directory; Ctrl-C and SIGTERM end all of it."""
    with stop_check() as check:
        return play(Console(), Path(tempfile.mkdtemp(prefix="oncemq-demo-")), check)


if __name__ == "__main__":
    sys.exit(main())
