"""Real processes whose stderr nobody reads, and commands whose output is closed, cut or latin-1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oncemq import App
from oncemq.chaos.programs import free_endpoint
from tests.process.house import ROOT, START_S

pytestmark = pytest.mark.process

SHOP = """
import logging
from oncemq import App, Reject
app = App()
@app.consumer("orders", group="g")
def handle(message, tx):
    logging.getLogger("shop").warning("no stock for %s", message.value)
    raise Reject("no \\x1b[2J stock\\nforged\\ud800")
"""


def full_pipe() -> tuple[int, int]:
    """A pipe that takes nothing more; its write end blocks, as a process expects it."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(write_end, b"." * size)
        except BlockingIOError:
            continue
    os.set_blocking(write_end, True)
    return read_end, write_end


class Shop:
    """A broker on a port of its own; its stderr is full from the start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.endpoint = free_endpoint()
        self.environ = {
            **{name: value for name, value in os.environ.items() if "ONCEMQ" not in name},
            "ONCEMQ_BROKER": self.endpoint,
            "PYTHONPATH": str(ROOT),
        }
        (directory / "shop.py").write_text(SHOP)
        self.unread, write_end = full_pipe()
        self.broker = subprocess.Popen(
            self.argv("broker", f"--bind={self.endpoint}"),
            cwd=directory,
            env=self.environ,
            stderr=write_end,
        )
        self.pipe = write_end

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "oncemq", *arguments]

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end; stdout and stderr are read."""
        return subprocess.run(
            self.argv(*arguments),
            check=False,
            cwd=self.directory,
            env=self.environ | environ,
            capture_output=True,
            timeout=START_S,
        )

    def shell(self, script: str) -> subprocess.CompletedProcess[bytes]:
        """Run a line of the shell; `$oncemq` is the command."""
        environ = self.environ | {"oncemq": " ".join(self.argv())}
        return subprocess.run(
            ["bash", "-c", script],
            check=False,
            cwd=self.directory,
            env=environ,
            capture_output=True,
            timeout=START_S,
        )

    def close(self) -> None:
        if self.broker.poll() is None:
            self.broker.kill()
        self.broker.wait()
        os.close(self.unread)
        os.close(self.pipe)


@pytest.mark.timeout(300)
def test_nobody_reads_what_the_processes_tell(tmp_path: Path) -> None:
    """Broker, producer, consumer and supervise work and end behind a full pipe; holes are told."""
    shop = Shop(tmp_path)
    try:
        (tmp_path / "rows").write_text("a\nb\n")
        for command in (
            ["producer", "--topic=orders", "rows"],
            ["consumer", "shop:app", "--until-idle=0.5"],
            ["supervise", "--", *shop.argv("topics", "list")],
        ):
            ended = subprocess.run(
                shop.argv(*command),
                check=False,
                cwd=tmp_path,
                env=shop.environ,
                stdout=subprocess.PIPE,
                stderr=shop.pipe,
                timeout=START_S,
            )
            assert ended.stdout, command
            assert ended.returncode in {0, 4}, command
        os.read(shop.unread, 1 << 20)
        with App(broker=shop.endpoint).producer("late") as producer:
            producer.send("orders", 1).result(START_S)
        shop.broker.send_signal(signal.SIGTERM)
        assert shop.broker.wait(START_S) == 0
        lines = os.read(shop.unread, 1 << 20).lstrip(b".").splitlines()
        events = [json.loads(line) for line in lines if line.startswith(b"{")]
        (told,) = [event for event in events if event["event"] == "events.lost"]
        assert told["count"] == told["n"] > 5  # all lines until then
        assert [event["n"] for event in events] == list(range(told["n"], told["n"] + len(events)))
        assert events[-1]["event"] == "process.stop"
    finally:
        shop.close()


@pytest.mark.timeout(300)
def test_output_that_is_closed_cut_or_poor(tmp_path: Path) -> None:
    """Ids of others forge no row; latin-1 is no error; closed and cut streams bring no traceback."""
    shop = Shop(tmp_path)
    try:
        forged = "a→b\nt.dead:0:9\tg\tinvented\traised\x9b\u202e"
        with App(broker=shop.endpoint).producer() as producer:
            producer.send("orders", 1, id=forged).result(START_S)
        ended = shop.shell("$oncemq consumer shop:app --until-idle 0.5 >&- 2>&-")
        assert ended.returncode in {0, 4}
        listed = shop.run("dlq", "list", "--topic=orders", PYTHONIOENCODING="latin-1")
        assert (listed.returncode, listed.stderr) == (0, b"")
        head, row = listed.stdout.decode("latin-1").splitlines()
        assert row.isprintable() or "\t" in row
        assert len(row.split("\t")) == len(head.split("\t"))  # no id forges a column
        assert r"a\u2192b\nt.dead:0:9\tg\tinvented\traised\x9b\u202e" in row
        as_json = shop.run("dlq", "list", "--topic=orders", "--json", PYTHONIOENCODING="ascii")
        assert json.loads(as_json.stdout)["letters"][0]["message_id"] == forged
        for script, status in (
            ("$oncemq topics list 2>&1 >&- | cat; exit ${PIPESTATUS[0]}", 0),
            ("$oncemq topics list 2>&1 >/dev/full; exit $?", 1),
            ("$oncemq config 2>&1 | true; exit 0", 0),
            ("$oncemq explain $'\\xff' --topic orders 2>&1; exit $?", 2),
            ("$oncemq topics lis$'\\xff\\x1b' 2>&1; exit $?", 2),
            ("echo hi > $'f\\xff'; $oncemq producer --topic o --name p $'f\\xff' 2>&1; exit $?", 0),
        ):
            ended = shop.shell(script)
            told = ended.stdout + ended.stderr
            assert ended.returncode == status, (script, told)
            assert b"Traceback" not in told, (script, told)
            assert b"Exception ignored" not in told, (script, told)
            assert b"\x1b" not in told, (script, told)
    finally:
        shop.close()
