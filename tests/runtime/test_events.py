"""Structured events: whole lines, no holes, one registry."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from oncemq.runtime.event_names import EVENTS, page
from oncemq.runtime.events import EventLog, NullEvents

ROOT = Path(__file__).resolve().parents[2]


def lines(log: EventLog) -> list[dict[str, Any]]:
    assert log.path is not None
    return [json.loads(line) for line in Path(log.path).read_text("utf-8").splitlines()]


def test_a_line_carries_the_common_fields_and_its_own(tmp_path: Path) -> None:
    """Whoever reads one line knows which process said it, when, and as which line."""
    log = EventLog("broker", log_dir=str(tmp_path))
    log.emit("batch.appended", topic="orders", partition=0, first_offset=7, count=3)
    log.close()
    (line,) = lines(log)
    assert log.path == str(tmp_path / f"broker-{os.getpid()}.jsonl")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", line.pop("ts"))
    assert isinstance(line.pop("mono_ns"), int)
    assert line == {
        "event": "batch.appended",
        "role": "broker",
        "pid": os.getpid(),
        "incarnation": log.incarnation,
        "n": 0,
        "topic": "orders",
        "partition": 0,
        "first_offset": 7,
        "count": 3,
    }


def test_level_decides_and_the_counter_has_no_holes(tmp_path: Path) -> None:
    """An event that the level hides does not count, so a hole always means a lost line."""
    log = EventLog("broker", log_dir=str(tmp_path))
    assert not log.wants("log.synced")
    for _ in range(3):
        log.debug("log.synced", durable_end=1)
        log.info("log.disk_ok")
    log.close()
    assert [line["n"] for line in lines(log)] == [0, 1, 2]
    log = EventLog("loud", log_dir=str(tmp_path), level="debug")
    log.emit("log.synced", durable_end=1)
    log.close()
    assert [line["event"] for line in lines(log)] == ["log.synced"]


def test_threads_share_one_counter(tmp_path: Path) -> None:
    """Lines of several threads are whole, and numbered in the order in which they stand."""
    log = EventLog("consumer", log_dir=str(tmp_path))
    threads = [
        threading.Thread(target=lambda: [log.emit("log.disk_ok") for _ in range(200)])
        for _ in range(4)
    ]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    log.close()
    assert [line["n"] for line in lines(log)] == list(range(800))


def test_any_value_can_be_written(tmp_path: Path) -> None:
    """Ids may be bytes, errors may hold line breaks: one event stays one line."""
    log = EventLog("broker", log_dir=str(tmp_path))
    log.emit("id.conflict", id=b"\xff\x00", topic=b"orders", partition=ValueError("a\nb"))
    log.emit("log.tail_cut", from_=10, to=4, reason="half \ud800")
    log.close()
    first, second = lines(log)
    assert (first["id"], first["topic"], first["partition"]) == ("0xff00", "orders", "a\nb")
    assert (second["from"], second["to"]) == (10, 4)


def test_an_unknown_event_is_a_bug(tmp_path: Path) -> None:
    """Names come from the registry, for every sink alike."""
    log = EventLog("broker", log_dir=str(tmp_path))
    with pytest.raises(AssertionError, match="unknown event"):
        log.emit("broker.redy")
    with pytest.raises(AssertionError, match="unknown event"):
        NullEvents().emit("broker.redy")
    with pytest.raises(AssertionError, match="not a debug event"):
        log.debug("broker.ready")
    log.close()


def test_a_failing_sink_never_fails_the_caller() -> None:
    """What cannot be written is counted; the number it had stays missing."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with os.fdopen(write_end, "w") as stream:
        log = EventLog("broker", stream=stream)
        while not log.lines_lost:  # longer than a pipe takes at once: the last one is cut
            log.emit("batch.refused", reason="x" * 5000)
        lost, sent = log.lines_lost, log._n
        data = b""
        while len(chunk := os.read(read_end, 65536)) == 65536:
            data += chunk
        data += chunk
        log.emit("log.disk_ok")
        data += os.read(read_end, 65536)
    os.close(read_end)
    whole = []
    for line in data.splitlines():
        try:
            whole.append(json.loads(line)["n"])
        except ValueError:
            continue
    assert lost == log.lines_lost
    assert whole[-2:] == [sent, sent + 1]
    assert len(whole) == sent + 2 - lost
    told = [json.loads(line) for line in data.splitlines()[-2:]]
    assert [line["event"] for line in told] == ["events.lost", "log.disk_ok"]
    assert told[0]["count"] == lost


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_person_sees_text() -> None:
    """On a terminal the same event is one readable line."""
    screen = Terminal()
    EventLog("broker", stream=screen).emit("broker.ready", endpoint="tcp://h:1", epoch=3)
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert re.fullmatch(
        r"\r\x1b\[K\d\d:\d\d:\d\d\.\d{3} broker\.ready  endpoint=tcp://h:1  epoch=3\n", text
    )


def test_a_person_is_spared_what_only_a_checker_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of a process fits on a screen, and a status is a number."""
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    log = EventLog("broker", stream=screen)
    log.emit("process.start", version="0.1", argv=["broker"], settings={"data": "x" * 500})
    log.emit("process.stop", exit_code=signal.Signals.SIGHUP, reason="a\x1b[2J\nforged line")
    first, last, _ = screen.getvalue().split("\n")
    assert first.endswith(" process.start  version=0.1")
    assert last.endswith(" process.stop  exit_code=1  reason=a\\x1b[2J\\nforged line")


def test_library_events_go_to_the_stdlib_logger(caplog: pytest.LogCaptureFixture) -> None:
    """A user's program decides; by default nothing is printed and nothing is configured."""
    events = NullEvents()
    with caplog.at_level(logging.INFO, logger="oncemq"):
        assert not events.wants("log.synced")
        events.emit("log.synced", durable_end=1)
        events.emit("client.waiting", endpoint="tcp://h:1", waited_ms=2000)
    (record,) = caplog.records
    assert record.getMessage() == "client.waiting endpoint=tcp://h:1 waited_ms=2000"
    assert record.__dict__["fields"] == {"endpoint": "tcp://h:1", "waited_ms": 2000}


def test_the_page_of_events_is_true() -> None:
    """docs/EVENTS.md lists exactly the events of the registry."""
    assert (ROOT / "docs" / "EVENTS.md").read_text("utf-8") == page()
    assert list(EVENTS) == re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", page(), re.MULTILINE)
