"""`python main.py` as a real process: what the bench, a pipe or an impatient user does to it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INIT = (
    '{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1"]}}\n'
)
INIT_OK = '{"src":"n1","dest":"c0","body":{"type":"init_ok","in_reply_to":1,"msg_id":0}}\n'

pytestmark = pytest.mark.process


class Program:
    """main.py with pipes, and a client that counts its own numbers."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.number = 0

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def write(self, **body: Any) -> None:
        self.number += 1
        body["msg_id"] = self.number
        self.stdin.write(json.dumps({"src": "c1", "dest": "n1", "body": body}) + "\n")
        self.stdin.flush()

    def read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def ask(self, **body: Any) -> dict[str, Any]:
        self.write(**body)
        reply: dict[str, Any] = json.loads(self.read())["body"]
        assert reply["in_reply_to"] == self.number
        return reply

    def init(self) -> Program:
        self.stdin.write(INIT)
        self.stdin.flush()
        assert self.read() == INIT_OK
        return self

    def end(self) -> tuple[int, str]:
        """Close stdin; return the exit status and stderr."""
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors


@pytest.fixture
def start() -> Iterator[Any]:
    """A function that starts main.py; what it started ends with the test."""
    running: list[Program] = []

    def start_one(*arguments: str) -> Program:
        running.append(Program(*arguments))
        return running[-1]

    yield start_one
    for program in running:
        program.process.kill()
        program.process.communicate()


def test_init_and_a_clean_end(start: Any) -> None:
    """Init is answered byte for byte while stdin is open; the end of input is exit 0."""
    program = start().init()
    assert program.ask(type="send", key="k", msg=1)["offset"] == 0
    assert program.end() == (0, "")


def test_a_whole_conversation_through_a_pipe() -> None:
    """Lines that are all there at once are answered in order, a last one without newline too."""
    lines = [INIT]
    for number in range(1, 5_001):
        body = {"type": "send", "key": f"k{number % 7}", "msg": number, "msg_id": number}
        lines.append(json.dumps({"src": "c1", "dest": "n1", "body": body}) + "\n")
    body = {"type": "poll", "offsets": {"k0": 0}, "msg_id": 9_999}
    lines.append(json.dumps({"src": "c1", "dest": "n1", "body": body}))
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py")],
        input="".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=ROOT,
    )
    replies = [json.loads(line)["body"] for line in done.stdout.splitlines()]
    assert [reply["msg_id"] for reply in replies] == list(range(5_002))
    assert [reply["in_reply_to"] for reply in replies] == [1, *range(1, 5_001), 9_999]
    assert [msg for _, msg in replies[-1]["msgs"]["k0"]] == list(range(7, 5_001, 7))


def test_garbage_on_stdin_is_reported_on_stderr_only(start: Any) -> None:
    """stdout carries nothing but messages; the next request is served."""
    program = start().init()
    program.stdin.write("hello\n[1]\n\n")
    program.stdin.flush()
    assert program.ask(type="send", key="k", msg=1)["type"] == "send_ok"
    status, errors = program.end()
    assert status == 0
    assert errors.count("line passed over") == 2


def test_kill_minus_nine_loses_nothing_that_was_answered(start: Any, tmp_path: Path) -> None:
    """Whenever the process dies, what it answered is there afterwards, once and in order."""
    rng = random.Random(7)
    data = f"--data={tmp_path / 'node'}"
    acknowledged: dict[int, str] = {}
    committed = -1
    for life in range(6):
        program = start(data).init()
        asked: dict[int, str] = {}
        commits: dict[int, int] = {}
        for number in range(rng.randint(5, 60)):
            text = f"{life}:{number}"
            message_id = {"message_id": text} if number % 2 else {}
            program.write(type="send", key="k", msg=text, **message_id)
            asked[program.number] = text
            if rng.random() < 0.3:
                program.write(type="commit_offsets", offsets={"k": 100 * life + number})
                commits[program.number] = 100 * life + number
        for _ in range(rng.randint(1, len(asked))):  # read some answers, then kill among the rest
            reply = json.loads(program.read())["body"]
            if reply["type"] == "send_ok":
                acknowledged[reply["offset"]] = asked[reply["in_reply_to"]]
            else:
                committed = max(committed, commits[reply["in_reply_to"]])
        program.process.kill()
        program.process.communicate()
        check = start(data).init()
        found = check.ask(type="poll", offsets={"k": 0})["msgs"]["k"]
        assert [offset for offset, _ in found] == list(range(len(found)))
        assert len({value for _, value in found}) == len(found)
        assert acknowledged.items() <= dict(found).items()
        listed = check.ask(type="list_committed_offsets", keys=["k"])["offsets"]
        assert listed.get("k", -1) >= committed
        assert check.end() == (0, "")
    assert len(acknowledged) > 20
    assert committed > 0


def test_one_directory_has_one_owner(start: Any, tmp_path: Path) -> None:
    """A second process on a live directory is refused with the pid of the first."""
    data = f"--data={tmp_path / 'node'}"
    first = start(data).init()
    status, errors = start(data).end()
    assert status == 1
    assert str(first.process.pid) in errors
    assert first.ask(type="send", key="k", msg=1)["offset"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_end(start: Any, tmp_path: Path, number: int) -> None:
    """SIGTERM and Ctrl-C stop with exit 0 and no traceback; nothing answered is lost."""
    data = f"--data={tmp_path / 'node'}"
    program = start(data).init()
    program.ask(type="send", key="k", msg=1)
    program.process.send_signal(number)
    assert program.process.wait(120) == 0
    assert program.end() == (0, "")
    assert start(data).init().ask(type="poll", offsets={"k": 0})["msgs"]["k"] == [[0, 1]]


def test_a_reader_that_goes_away_ends_it_without_a_traceback(start: Any) -> None:
    """When nobody reads stdout any more, the process ends with 1 and one line at most."""
    program = start().init()
    assert program.process.stdout is not None
    program.process.stdout.close()
    for number in range(3):
        program.write(type="send", key="k", msg=number)
    assert program.process.wait(120) == 1
    assert program.process.stderr is not None
    assert "Traceback" not in program.process.stderr.read()


def test_events_go_to_a_directory_when_asked(start: Any, tmp_path: Path) -> None:
    """With --log-dir all events are kept; without it stderr stays quiet."""
    program = start(f"--log-dir={tmp_path / 'log'}", f"--data={tmp_path / 'node'}").init()
    program.ask(type="send", key="k", msg=1)
    assert program.end() == (0, "")
    (path,) = (tmp_path / "log").glob("node-*.jsonl")
    names = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert {"log.opened", "topic.created", "batch.appended"} <= set(names)
