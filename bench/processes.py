"""Real processes for the bench: start, read their events, add up their CPU time, end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 120.0


class Failed(Exception):
    """A process of the bench ended early or never got to where it should."""


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used; 0 where /proc is missing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Running:
    """One child process. Its events are read from the file it writes them to."""

    def __init__(self, name: str, command: list[str], logs: Path | None = None) -> None:
        self.name = name
        self._logs = logs
        self._events_at = 0
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ONCEMQ_")}
        if logs is not None:
            command = [*command, f"--log-dir={logs}"]
        self.started_ns = time.monotonic_ns()
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if logs is None else subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._cpu_at_start = 0.0

    def line(self) -> str:
        """Return the next line of stdout. Raises Failed at its end."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        if not text:
            raise Failed(f"{self.name} ended early with status {self.process.wait()}")
        return text.strip()

    def tell(self, text: str) -> None:
        """Write a line to stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def start_clock(self) -> None:
        """Count CPU time from here on."""
        self._cpu_at_start = cpu_s(self.process.pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds since `start_clock`."""
        return cpu_s(self.process.pid) - self._cpu_at_start

    def new_events(self) -> list[dict[str, Any]]:
        """Return the whole lines that were written since the last call."""
        assert self._logs is not None
        found = []
        for path in self._logs.glob(f"*-{self.process.pid}.jsonl"):
            with path.open("rb") as file:
                file.seek(self._events_at)
                data = file.read()
            end = data.rfind(b"\n") + 1
            self._events_at += end
            found += [json.loads(line) for line in data[:end].splitlines()]
        return found

    def wait_event(self, name: str, **wanted: Any) -> dict[str, Any]:
        """Return the first new event of that name and fields. Raises Failed."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for event in self.new_events():
                if event["event"] == name and wanted.items() <= event.items():
                    return event
            if ended:
                raise Failed(f"{self.name} ended with status {self.process.returncode}")
            time.sleep(0.01)
        raise Failed(f"{self.name} did not write {name} {wanted} within {PATIENCE_S:.0f} s")

    def stop(self, timeout: float = 20.0) -> str:
        """Ask the process to end (SIGTERM) and return the rest of its stdout."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not end within {timeout:.0f} s") from None
        if self.process.returncode != 0:
            raise Failed(f"{self.name} ended with status {self.process.returncode}")
        return output

    def kill(self) -> None:
        """End the process at once, whatever state it is in."""
        self.process.kill()
        self.process.communicate()


class Cast:
    """All processes of one run; leaving the block ends whatever still runs."""

    def __init__(self) -> None:
        self._running: list[Running] = []

    def start(self, name: str, command: list[str], logs: Path | None = None) -> Running:
        """Start one."""
        self._running.append(Running(name, command, logs))
        return self._running[-1]

    def broker(self, directory: Path) -> tuple[Running, str]:
        """Start a broker on `directory` and return it with its endpoint once it is ready."""
        broker = self.start(
            "broker",
            ["broker.py", f"--data={directory / 'broker'}", "--bind=tcp://127.0.0.1:0"],
            directory / "logs",
        )
        return broker, broker.wait_event("broker.ready")["endpoint"]

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_error: object) -> None:
        for running in self._running:
            running.kill()
