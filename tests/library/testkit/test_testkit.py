"""The test kit: it dies where it is told, finds effects outside of `tx`, and passes right handlers."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oncemq import App, Harness, Message, Tx
from oncemq.errors import HandlerFailed
from oncemq.library.testkit.crash_steps import STEPS

CALLS = {
    # How often each handler has been called for the one message when everything died once there.
    "before_handler": 1,
    "after_handler_before_commit": 2,
    "after_append_before_sync": 2,
    "after_sync_before_outputs": 1,
    "after_outputs_before_ack": 1,
    "after_ack": 1,
}


def shop(calls: list[str]) -> App:
    app = App()

    @app.consumer("orders", group="billing")
    def bill(order: Message, tx: Tx) -> None:
        calls.append(f"bill {order.id}")
        tx.state[order.key] = tx.state.get(order.key, 0) + order.value["cents"]
        tx.send("invoices", {"cents": order.value["cents"]}, key=order.key)

    @app.consumer("invoices", group="book")
    async def book(invoice: Message, tx: Tx) -> None:
        calls.append("book")
        tx.state["total"] = tx.state.get("total", 0) + invoice.value["cents"]

    return app


@pytest.mark.parametrize("step", STEPS)
def test_it_dies_at_each_step_and_all_counts_once(step: str) -> None:
    """Handlers are called again only where the commit was not durable; effects count once."""
    calls: list[str] = []
    harness = Harness(shop(calls))
    harness.crash_at(step)
    harness.send("orders", {"cents": 250}, id="o-1", key="alice")
    assert harness.crashes == []
    harness.drain()
    assert ("billing", "orders", step) in harness.crashes
    assert harness.state("billing") == {"alice": 250}
    assert harness.state("book") == {"total": 250}
    assert len(harness.sent("invoices")) == 1
    assert calls.count("bill o-1") == CALLS[step]
    harness.send("orders", {"cents": 5}, id="o-2", key="alice")
    harness.drain()
    assert len(set(harness.crashes)) == len(harness.crashes)
    assert harness.state("book") == {"total": 255}
    harness.close()


def test_assert_exactly_once_dies_everywhere() -> None:
    """Each consumer meets every step it can: those that send all six, the others four."""
    calls: list[str] = []
    harness = Harness(shop(calls), partitions={"orders": 2})
    for number in range(6):
        harness.send("orders", {"cents": 1}, id=f"o-{number}", key=f"k{number}")
    harness.assert_exactly_once()
    billing = [step for group, _, step in harness.crashes if group == "billing"]
    book = [step for group, _, step in harness.crashes if group == "book"]
    assert sorted(billing) == sorted(STEPS)
    assert set(book) >= set(STEPS[:4])
    assert harness.state("book") == {"total": 6}
    before = len(harness.crashes)
    harness.assert_exactly_once()
    assert len(harness.crashes) == before
    harness.close()


def test_unknown_steps_and_kinds_are_refused() -> None:
    """A word that means nothing would look as if it had been tried."""
    harness = Harness(App())
    with pytest.raises(ValueError, match="after_ack"):
        harness.crash_at("after_lunch")
    with pytest.raises(ValueError, match="program"):
        harness.assert_exactly_once(allow=["mail"])


def test_an_effect_outside_of_tx_is_seen_twice() -> None:
    """The user's own assertion finds what happened in memory; no hook could."""
    mails: list[Any] = []
    app = App()

    @app.consumer("orders", group="mailer")
    def mail(order: Message, tx: Tx) -> None:
        mails.append(order.id)

    harness = Harness(app)
    harness.send("orders", 1, id="o-1")
    harness.assert_exactly_once()
    with pytest.raises(AssertionError):
        assert mails == ["o-1"]


def test_except_exception_in_a_handler_does_not_survive_a_crash() -> None:
    """A lookup of a topic turns the world inside a handler: a crash there goes through it."""
    survived: list[BaseException] = []
    app = App()

    @app.consumer("t", group="g")
    def handler(message: Message, tx: Tx) -> None:
        try:
            tx.send(f"out-{message.value}", message.value)
        except Exception as error:
            survived.append(error)

    harness = Harness(app, partitions={"t": 3})
    for number in range(9):
        harness.send("t", number, id=f"m{number}", key=f"k{number}")
    harness.assert_exactly_once()
    assert survived == []
    assert [len(harness.sent(f"out-{number}")) for number in range(9)] == [1] * 9


def writes_a_file(message: Message, tx: Tx) -> None:
    with open("effects.txt", "a") as file:
        file.write("x")


def opens_a_descriptor(message: Message, tx: Tx) -> None:
    os.close(os.open("effects.bin", os.O_WRONLY | os.O_CREAT))


def renames(message: Message, tx: Tx) -> None:
    Path("there").touch()
    os.rename("there", "here")


def keeps_a_database(message: Message, tx: Tx) -> None:
    sqlite3.connect("effects.db").close()


def connects(message: Message, tx: Tx) -> None:
    with socket.socket() as sock:
        sock.connect_ex(("127.0.0.1", 9))


def starts_a_program(message: Message, tx: Tx) -> None:
    subprocess.run([sys.executable, "-c", "pass"], check=True)


async def writes_in_a_thread(message: Message, tx: Tx) -> None:
    await asyncio.to_thread(writes_a_file, message, tx)


@pytest.mark.parametrize(
    ("handler", "kind", "what"),
    [
        (writes_a_file, "file", "open 'effects.txt' for writing"),
        (opens_a_descriptor, "file", "open 'effects.bin' for writing"),
        (renames, "file", "os.rename 'there'"),
        (keeps_a_database, "file", "sqlite3.connect 'effects.db'"),
        (connects, "connection", "socket.connect ('127.0.0.1', 9)"),
        (starts_a_program, "program", "subprocess.Popen"),
        (writes_in_a_thread, "file", "open 'effects.txt' for writing"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"state_by": "key", "concurrency": 2}])
def test_what_a_handler_does_outside_is_reported(
    handler: Any, kind: str, what: str, options: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """File, connection or program: named with place and message; allowed or switched off, not."""
    monkeypatch.chdir(tmp_path)
    app = App()
    app.consumer("t", group="g", **options)(handler)
    harness = Harness(app)
    harness.send("t", 1, id="m-1", key="k")
    with pytest.raises(AssertionError, match="acted outside tx") as caught:
        harness.assert_exactly_once()
    assert f"{kind}: {what}" in str(caught.value)
    assert "test_testkit.py:" in str(caught.value)
    assert "message m-1" in str(caught.value)
    assert {effect.kind for effect in harness.outside_effects} == {kind}
    harness.assert_exactly_once(allow=[kind])
    harness.close()
    silent = Harness(app, audit=False)
    silent.send("t", 1, id="m-1")
    silent.assert_exactly_once()
    assert silent.outside_effects == []
    silent.close()


def test_reading_is_no_effect_and_the_test_itself_may_do_what_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what handlers do counts, and reading counts for nothing."""
    path = tmp_path / "prices.txt"
    app = App()

    @app.consumer("t", group="g")
    def handler(message: Message, tx: Tx) -> None:
        importlib.import_module("nobody_has_imported_me")  # writes a .pyc
        tx.state["price"] = int(path.read_text())
        Path(os.devnull).write_text("nothing")

    path.write_text("5")
    (tmp_path / "nobody_has_imported_me.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    harness = Harness(app)
    harness.send("t", 1)
    harness.assert_exactly_once()
    (tmp_path / "result.txt").write_text("fine")
    assert harness.outside_effects == []
    assert list((tmp_path / "__pycache__").iterdir())


def test_a_failing_handler_still_fails_after_the_crashes() -> None:
    """drain raises what it always raises; the next one goes on."""
    broken = [True]
    app = App()

    @app.consumer("t", group="g", retries=1, park=False)
    def handler(message: Message, tx: Tx) -> None:
        tx.state["n"] = tx.state.get("n", 0) + 1
        if broken[0] and message.value == 1:
            raise LookupError("one")

    harness = Harness(app)
    for value in range(3):
        harness.send("t", value)
    with pytest.raises(HandlerFailed):
        harness.assert_exactly_once()
    broken[0] = False
    harness.assert_exactly_once()
    assert harness.state("g") == {"n": 3}


def test_the_fixture_comes_by_entry_point(oncemq_harness: Any) -> None:
    """Nobody imports it; its harnesses die at every step unless told otherwise."""
    calls: list[str] = []
    harness = oncemq_harness(shop(calls), partitions={"orders": 2})
    harness.send("orders", {"cents": 7}, id="o-1", key="alice")
    harness.drain()
    assert len([one for one in harness.crashes if one[0] == "billing"]) == len(STEPS)
    calm = oncemq_harness(shop(calls), crash_at=())
    calm.send("orders", {"cents": 7}, id="o-1", key="alice")
    calm.drain()
    assert calm.crashes == []


SUITE = """
import pytest
from oncemq import App, Message, Tx

def app_that(remembers):
    app = App()

    @app.consumer("orders", group="points")
    def give_points(order: Message, tx: Tx) -> None:
        remembers(order, tx)
    return app

def check(oncemq_harness, remembers, points):
    harness = oncemq_harness(app_that(remembers))
    for number in range(3):
        harness.send("orders", 10, id=f"o-{number}", key="alice")
    harness.assert_exactly_once()
    assert points(harness) == {"alice": 30}

def test_broken(oncemq_harness):
    points = {}
    def remembers(order, tx):
        points[order.key] = points.get(order.key, 0) + order.value
    check(oncemq_harness, remembers, lambda harness: points)

def test_writes_a_file(oncemq_harness, tmp_path):
    def remembers(order, tx):
        with open(tmp_path / "points", "a") as file:
            file.write("10\\n")
    check(oncemq_harness, remembers, lambda harness: {"alice": 30})

def test_right(oncemq_harness):
    def remembers(order, tx):
        tx.state[order.key] = tx.state.get(order.key, 0) + order.value
    check(oncemq_harness, remembers, lambda harness: harness.state("points"))
"""


@pytest.mark.slow
def test_it_finds_the_bug_in_a_broken_handler_and_passes_the_right_one(tmp_path: Path) -> None:
    """A user's own test file in a pytest of its own: two bugs found, the right handler passes."""
    (tmp_path / "test_shop.py").write_text(SUITE)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert "FAILED test_shop.py::test_broken" in done.stdout
    assert "== {'alice': 30}" in done.stdout
    assert "FAILED test_shop.py::test_writes_a_file" in done.stdout
    assert "for writing" in done.stdout
    assert "2 failed, 1 passed" in done.stdout, done.stdout
