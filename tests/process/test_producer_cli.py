"""`producer.py` and the library's producer as real processes against a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oncemq.chaos import read_topic
from oncemq.cli.main import run
from oncemq.library.producing.producer import Producer
from tests.process.house import FLIGHT_ID, FLIGHTS, ROOT, START_S, House


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["FILE"], "--topic"),
        (["--topic", "t"], "FILE"),
        (["--topic", "a/b", "FILE"], "topic"),
        (["--topic", "t", "--name", "@x", "FILE"], "--name"),
        (["--topic", "t", "--format", "xml", "FILE"], "--format"),
        (["--topic", "t", "--id-field", "a", "FILE"], "--format lines"),
        (["--topic", "t", "--format", "csv", "--id-field", "a,,b", "FILE"], "--id-field"),
        (["--topic", "t", "--follow", "x.gz"], "gzip"),
        (["--topic", "t", "absent.txt"], "no such file"),
        (["--topic", "t", "."], "directory"),
        (["--topic", "t", "--broker", "nowhere", "FILE"], "broker"),
    ],
)
def test_wrong_usage_is_told_at_once(
    arguments: list[str], reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Wrong arguments exit 2 with the reason, before any socket is opened."""
    path = tmp_path / "FILE"
    path.write_text("x\n")
    given = [str(path) if argument == "FILE" else argument for argument in arguments]
    assert run("producer", given) == 2
    printed = capfd.readouterr()
    assert reason in printed.err
    assert printed.out == ""


@pytest.mark.process
def test_flights_by_id_are_stored_once(house: House) -> None:
    """All flights go in once; under another name all are duplicates; numbers need no name."""
    house.broker()
    for name, appended in (("a", 27_004), ("b", 0)):
        producer = house.flights(f"--name={name}", f"--id-field={FLIGHT_ID}")
        producer.wait(START_S, 0)
        duplicates = 27_004 - appended
        house.check_summary(producer, sent=27_004, appended=appended, duplicates=duplicates)
    for appended in (27_004, 0):
        numbered = house.producer("--topic=numbered", "--format=csv", str(FLIGHTS))
        numbered.wait(START_S, 0)
        house.check_summary(numbered, sent=27_004, appended=appended)


@pytest.mark.process
def test_an_absent_broker_is_waited_for(house: House, tmp_path: Path) -> None:
    """Without a broker the producer says so, waits, and sends when it comes."""
    path = tmp_path / "lines.txt"
    path.write_text("a\nb\n")
    producer = house.producer("--topic=t", str(path))
    house.wait_for(producer, "client.waiting")
    assert f"no broker answers at {house.endpoint}" in producer.stderr()
    house.broker()
    producer.wait(START_S, 0)
    house.check_summary(producer, sent=2, appended=2)


@pytest.mark.process
def test_a_bad_line_ends_with_one(house: House, tmp_path: Path) -> None:
    """An undecodable line exits 1 with its number; the summary counts the lines before it."""
    house.broker()
    path = tmp_path / "lines.txt"
    path.write_bytes(b"a\nb\n\xff\nc\n")
    producer = house.producer("--topic=t", str(path))
    producer.wait(START_S, 1)
    assert "line 3" in producer.stderr()
    house.check_summary(producer, sent=2, appended=2)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_follower_is_ended_by_a_signal(
    house: House, tmp_path: Path, number: signal.Signals
) -> None:
    """A follower that is told to stop ends with 0 and its summary: it is done."""
    house.broker()
    path = tmp_path / "lines.txt"
    path.write_text("a\nb\nunfinished")
    producer = house.producer("--topic=t", "--follow", str(path))
    house.wait_for_appended(2)
    producer.send_signal(number)
    producer.wait(START_S, 0)
    house.check_summary(producer, sent=2, appended=2)


@pytest.mark.process
def test_an_interrupted_run_says_so(house: House, tmp_path: Path) -> None:
    """Ctrl-C before the end of the file is not success: exit 130, with a summary, no traceback."""
    path = tmp_path / "lines.txt"
    path.write_text("a\n")
    producer = house.producer("--topic=t", str(path))
    house.wait_for(producer, "client.waiting")
    producer.send_signal(signal.SIGINT)
    producer.wait(START_S, 130)
    assert producer.summary() == {"sent": 0, "appended": 0, "duplicates": 0}
    assert "Traceback" not in producer.stderr()


@pytest.mark.process
def test_standard_input_is_sent_as_it_comes(house: House) -> None:
    """Lines on a pipe are stored when they come, not at its end, and over a broker's death."""
    broker = house.broker()
    with subprocess.Popen(
        [sys.executable, str(ROOT / "producer.py"), "--topic=t", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=house.environ,
    ) as producer:
        assert producer.stdin is not None
        assert producer.stdout is not None
        try:
            producer.stdin.write(b"a\n")
            producer.stdin.flush()
            house.wait_for_appended(1)
            broker.kill()
            producer.stdin.write(b"b\n")
            producer.stdin.flush()
            house.broker()
            house.wait_for_appended(2)
            producer.stdin.write(b"c")
            producer.stdin.close()
            summary = json.loads(producer.stdout.read().splitlines()[-1])
            assert producer.wait(START_S) == 0
        finally:
            producer.kill()
    stored = read_topic(house.endpoint, "t")
    # The broker may have died before it could answer what it had stored: a duplicate then.
    assert summary["sent"] == summary["appended"] + summary["duplicates"] == 3
    assert [message.value for message in stored] == ["a", "b", "c"]


@pytest.mark.process
def test_the_library_outlives_its_broker(house: House) -> None:
    """A broker killed and started again answers what was on its way: each message once."""
    broker = house.broker()
    with Producer("importer", broker=house.endpoint) as producer:
        pending = []
        for number in range(2_000):
            if number == 1_000:
                pending[0].result(START_S)
                broker.kill()
                house.broker(ready=False)
            pending.append(producer.send("t", b"%d" % number))
        offsets = [each.result(START_S).offset for each in pending]
    assert offsets == list(range(2_000))


@pytest.mark.process
def test_a_forked_worker_has_a_socket_of_its_own(house: House) -> None:
    """After a fork parent and child both go on sending with ids, each over its own socket."""
    house.broker()
    with Producer(broker=house.endpoint) as producer:
        assert producer.send("t", "before", id="before").result(START_S).offset == 0
        child = os.fork()
        if child == 0:
            code = 1
            try:
                ack = producer.send("t", "child", id="child").result(START_S)
                producer.close()
                code = 0 if not ack.duplicate else 2
            finally:
                os._exit(code)
        acks = [producer.send("t", "x", id=f"p-{n}").result(START_S) for n in range(10)]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert producer.send("t", "child", id="child").result(START_S).duplicate
    assert len({ack.offset for ack in acks}) == 10


RIVALS = """
import asyncio, sys
from oncemq import App, Fenced
open("runs", "a").write("run\\n")
app = App()
first, second = app.producer("one"), app.producer("one")
first.send("t", 1).result(60)
second.send("t", 2).result(60)

async def awaits():
    await first.send("t", 3)

async def awaits_in_a_group():
    async with asyncio.TaskGroup() as group:
        group.create_task(awaits())
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ('first.send("t", 3).result(60)', 3),
        ('with first:\n    first.send("t", 3)', 3),
        ("asyncio.run(awaits())", 3),
        ("asyncio.run(awaits_in_a_group())", 3),
        ('try:\n    first.send("t", 3).result(60)\nexcept Fenced:\n    sys.exit(7)', 7),
        ('first.send("t", 3).exception', 1),
    ],
)
def test_a_program_whose_producer_is_fenced_ends_as_a_command_does(
    house: House, monkeypatch: pytest.MonkeyPatch, ending: str, status: int
) -> None:
    """Uncaught, status 3 and no other start under the supervisor; caught, its own."""
    monkeypatch.chdir(house.directory)
    (house.directory / "rivals.py").write_text(f"{RIVALS}\n{ending}\n")
    house.broker()
    more = ("--backoff-max=0.1", "--give-up-after=2")
    supervised = house.start(
        "supervise", "-m", "oncemq", "supervise", *more, "--", sys.executable, "rivals.py"
    )
    supervised.wait(START_S, status)
    runs = (house.directory / "runs").read_text().count("run")
    assert runs == 1 if status == 3 else runs > 1
    if status == 3:
        assert "Traceback" in supervised.stderr()
        assert "fenced" in supervised.stderr().lower() or "took over" in supervised.stderr()
