"""Sends that meet themselves, and refusals that no caller asked for."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import signal
import threading
from typing import Any

import pytest

from oncemq import Producer
from oncemq.errors import BufferFull, IdConflict
from oncemq.library.producing.guard import Guard
from tests.library.wired import Wire

SOON = 30.0


def test_a_send_inside_of_the_lock_is_handed_over() -> None:
    """As a signal handler that interrupts a send: it neither waits nor is lost, and close knows it."""
    wire = Wire()
    with wire.producer() as producer:
        with producer._lock:
            one = producer.send("t", b"1", id="1")
            many = producer.send_many("t", [b"2", b"3"], ids=["2", "3"])
        assert one.result(SOON).offset == 0
        assert [ack.offset for ack in many.result(SOON)] == [1, 2]
        with producer._lock:
            producer.send("t", b"4", id="4")
    assert wire.values("t") == [b"1", b"2", b"3", b"4"]


def test_a_signal_handler_sends_while_the_program_sends() -> None:
    """Every message of both is stored once."""
    wire = Wire()
    count = 0
    with wire.producer() as producer:

        def send(_number: int, _frame: object) -> None:
            nonlocal count
            count += 1
            producer.send("t", b"s", id=f"s{count}")

        before = signal.signal(signal.SIGALRM, send)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            for number in range(3000):
                producer.send("t", b"p", id=f"p{number}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert wire.values("t").count(b"p") == 3000
    assert wire.values("t").count(b"s") == count > 0


def test_a_send_inside_of_the_lock_cannot_wait_for_room() -> None:
    """It is refused at once."""
    wire = Wire()
    wire.cut = True
    producer = wire.producer(in_flight_bytes=100, close_timeout=0.0)
    producer.send("t", b"x" * 90, id="a")
    with producer._lock, pytest.raises(BufferFull):
        producer.send("t", b"y", id="b")
    wire.cut = False
    producer.close(SOON)


def test_waiting_lets_go_of_the_whole_guard() -> None:
    """Another thread that takes it meanwhile is not nested."""
    guard, seen = Guard(lambda _: None), []

    def other() -> None:
        with guard:
            seen.append(guard.nested)
            guard.notify_all()

    thread = threading.Thread(target=other)
    with guard:
        thread.start()
        guard.wait(SOON)
        assert not guard.nested
        with guard:
            assert guard.nested
    thread.join()
    assert seen == [False]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_refusal_that_was_never_read_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Single sends and lists; one line each, with the id."""
    with Wire().producer() as producer:
        producer.send("t", b"1", id="a").result(SOON)
        producer.send("t", b"2", id="a")
    [told] = warnings(caplog)
    assert told.startswith("a message was refused and no result() was asked for: id 'a' is stored")
    caplog.clear()
    with Wire().producer() as producer:
        producer.send_many("t", [b"1", b"2", b"3"], ids=["a", "a", "a"])
    [told] = warnings(caplog)
    assert told.startswith("2 messages were refused")


def test_what_was_read_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Also when it is read after the end of the producer, and when all was stored."""
    with Wire().producer() as producer:
        producer.send("t", b"1", id="a")
        late = producer.send("t", b"2", id="a")
        many = producer.send_many("t", [b"3", b"4"], ids=["a", "b"])
    with pytest.raises(IdConflict):
        late.result(SOON)
    assert many.acks(SOON).appended == 1
    del late, many
    assert warnings(caplog) == []


def child(producer: Any) -> None:
    producer.send("t", b"child", id="c")


class Closed:
    """Tells the parent that the producer of a child was closed in time."""

    def __init__(self) -> None:
        self.read, self.write = multiprocessing.Pipe(duplex=False)


def test_a_child_of_multiprocessing_closes_its_producers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such children end without atexit handlers."""
    closed = Closed()
    wire = Wire()
    producer = wire.producer()
    close = Producer.close

    def noted(self: Producer, timeout: float | None = None) -> None:
        close(self, timeout)
        closed.write.send("closed")

    monkeypatch.setattr(Producer, "close", noted)
    process = multiprocessing.get_context("fork").Process(target=child, args=(producer,))
    process.start()
    process.join(SOON)
    assert process.exitcode == 0
    assert closed.read.poll(0)
    monkeypatch.undo()
    producer.close()
