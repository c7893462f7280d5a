"""Text for people is harmless, and telling it neither waits nor fails."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import socket
import sys
import threading
import time

import pytest

from oncemq.cli import output
from oncemq.library.producing.acks import _call
from oncemq.runtime.diagnostics import (
    Outlet,
    TellingHandler,
    escaped,
    escaped_json,
    log,
    tell,
    text_of,
)
from oncemq.runtime.events import EventLog, NullEvents

HOSTILE = "a\nb\tc\rd\x1b[2Je\x9b1Af\x00g\x7fh\u2028i\u2029j\u202ek\u2066l\u200bm\ufeffn\udcffo\x85p\u200fq"


class Rude:
    """An object of a user whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_no_text_of_others_ends_a_line_or_moves_the_cursor() -> None:
    """C0, C1, escape sequences, directions, line separators: each is shown, none acts."""
    shown = escaped(HOSTILE)
    assert shown.isprintable()
    assert shown == (
        r"a\nb\tc\rd\x1b[2Je\x9b1Af\x00g\x7fh\u2028i\u2029j\u202ek\u2066l\u200bm\ufeffn\udcffo\x85p"
        r"\u200fq"
    )
    assert escaped("naïve → 漢字 😀") == "naïve → 漢字 😀"
    assert escaped("one\n\ttwo\x1b", block=True) == "one\n\ttwo\\x1b"


def test_json_for_machines_is_the_same_and_acts_on_no_terminal() -> None:
    """A reader of `--json` gets the text as it was; a terminal gets no control characters."""
    text = escaped_json(json.dumps({"id": HOSTILE}, ensure_ascii=False))
    assert text.isprintable()
    assert json.loads(text) == {"id": HOSTILE}


def test_objects_without_text_are_named() -> None:
    """A user's `__str__` that raises costs a text and nothing else."""
    assert text_of(Rude()) == "<Rude without text>"
    EventLog("broker", stream=io.StringIO()).emit("log.disk_full", need=Rude())
    NullEvents().emit("broker.ready", endpoint=Rude())


class Full:
    """A pipe that takes nothing more."""

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end, self.write_end = read_end, write_end
        os.set_blocking(write_end, False)
        while self._fill():
            time.sleep(
                0.05
            )  # a terminal moves on in the kernel what it has taken, and then has room
        os.set_blocking(write_end, True)  # as a process that shares the pipe expects it

    def _fill(self) -> int:
        """Return how many bytes fitted."""
        fitted = 0
        for size in (65536, 1):
            try:
                while True:
                    fitted += os.write(self.write_end, b"." * size)
            except BlockingIOError:
                continue
        return fitted

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.mark.timeout(30)  # the failure is to wait for ever
@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_a_reader_that_does_not_read_costs_lines_only(kind: str) -> None:
    """Whatever stderr is, a full one is passed over, and other writers keep their blocking stream."""
    if kind == "pipe":
        ends = os.pipe()
    elif kind == "terminal":
        ends = pty.openpty()
    else:
        one, other = socket.socketpair()
        ends = one.detach(), other.detach()
    full = Full(*ends)
    with open(full.write_end, "w", closefd=False) as stream:
        events = EventLog("broker", stream=stream)
        for _ in range(5):
            events.emit("log.disk_ok")
        assert events.lines_lost == 5
        assert os.get_blocking(full.write_end)
        events.close()
    full.close()


@pytest.mark.timeout(30)
def test_where_a_stream_cannot_be_opened_again_it_is_asked_first() -> None:
    """Without /proc a full pipe is still passed over, and one with room is written to."""
    read_end, write_end = os.pipe()
    outlet = Outlet(write_end)
    outlet.close()  # the descriptor that was opened again is gone: what is left asks
    assert outlet.write(b"x" * 1200) == 1200
    assert os.read(read_end, 4096) == b"x" * 1200
    full = Full(read_end, write_end)
    assert outlet.write(b"y") == 0
    full.close()
    assert outlet.write(b"z") == 0


@pytest.mark.timeout(30)
def test_a_line_for_people_does_not_wait_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tell`, progress and the log lines of handlers go the way of the events."""
    full = Full(*os.pipe())
    with open(full.write_end, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        tell("a broker is missing")
        tell("an error", patience_s=0.01)
        record = logging.LogRecord("shop", logging.INFO, "", 0, "%d orders", ("x",), None)
        TellingHandler().handle(record)
        assert os.get_blocking(full.write_end)
    full.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_closed_streams_are_no_error(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program without a console has None for stderr; a test runner may have closed its own."""
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    tell("nobody hears")
    output.ProgressLine().show("nobody sees")
    events = EventLog("broker")
    events.emit("log.disk_ok")
    assert events.lines_lost == 1


class Failing(logging.Handler):
    """Ships records to a server that is away."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError("away"), SystemExit(3)])
def test_handlers_of_the_user_may_raise(error: BaseException) -> None:
    """Logging is never the reason that a thread of OnceMQ ends."""
    handler = Failing(error)
    logger = logging.getLogger("oncemq")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        log(logging.ERROR, "parked")
        NullEvents().emit("log.disk_ok")
        _call(lambda: sys.exit(1))  # a done callback that ends what it believes to be its program
        assert logger.isEnabledFor(logging.DEBUG)
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def test_progress_and_lines_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line erases the progress line and stands above it; the progress is drawn again."""
    leader, follower = pty.openpty()
    with open(follower, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "20")
        line = output.ProgressLine()
        line.show("12 processed\x1b" + "." * 40)
        tell("a broker is missing")
        line.clear()
    erase = "\r\x1b[K"
    shown = ""
    while not shown.endswith(f"\n{erase}"):
        shown += os.read(leader, 4096).decode()
    os.close(leader)
    os.close(follower)
    assert shown == f"{erase}12 processed\\x1b...{erase}a broker is missing\r\n{erase}"


def test_threads_may_share_an_outlet() -> None:
    """Each line of two threads arrives whole."""
    read_end, write_end = os.pipe()
    outlet = Outlet(write_end)
    threads = [
        threading.Thread(target=lambda: [outlet.write(b"abcdefgh\n") for _ in range(100)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.read(read_end, 65536) == b"abcdefgh\n" * 200
    outlet.close()
    os.close(read_end)
    os.close(write_end)
