"""Tests that share a database: each `Harness` begins anew, and never touches what is not its own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oncemq import App, Harness
from oncemq.errors import BadSink
from oncemq.library.sinks.opening import open_sink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


def app_of(path: Path, group: str = "g") -> App:
    app = App()

    @app.consumer("t", group=group, sink=f"sqlite:///{path}")
    def take(message: Any, tx: Any) -> None:
        tx.sql("CREATE TABLE IF NOT EXISTS n (id TEXT PRIMARY KEY)")
        tx.sql("INSERT INTO n VALUES (?)", message.id)

    return app


def rows(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [id_ for (id_,) in connection.execute("SELECT id FROM n ORDER BY id")]
    finally:
        connection.close()


def one_test(harness: Harness, message: str = "x") -> None:
    harness.send("t", 1, id=message)
    harness.drain()
    assert harness.sent("t.dead") == []


@pytest.mark.parametrize("turn", range(2))
def test_the_fixture_twice_with_one_file(
    turn: int, tmp_path_factory: pytest.TempPathFactory, oncemq_harness: Callable[..., Harness]
) -> None:
    """The second test finds neither the ledger nor the rows of the first."""
    path = tmp_path_factory.getbasetemp() / "of-both-turns.db"
    one_test(oncemq_harness(app_of(path)))
    assert rows(path) == ["x"]


def test_harnesses_that_are_not_closed(path: Path) -> None:
    """The newest has the database; what the file held of the one before is gone."""
    app = app_of(path)
    kept = []
    for _ in range(3):
        kept.append(Harness(app))
        one_test(kept[-1])
    assert rows(path) == ["x"]
    kept[-1].close()


def test_the_file_stays_for_assertions_behind_the_harness(path: Path) -> None:
    """Only the next one removes it."""
    with Harness(app_of(path)) as harness:
        one_test(harness)
        harness.crash()
        one_test(harness, "y")
    assert rows(path) == ["x", "y"]


def test_a_file_that_was_there_before_stays(path: Path) -> None:
    """The schema and rows of a user's own fixture are no business of the next Harness."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (v)")
    connection.execute("INSERT INTO mine VALUES (7)")
    connection.commit()
    connection.close()
    for message in ("x", "y"):
        with Harness(app_of(path)) as harness:
            one_test(harness, message)
    assert rows(path) == ["x", "y"]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT v FROM mine").fetchall() == [(7,)]
    assert connection.execute("SELECT count(*) FROM oncemq_ledger").fetchone() == (1,)
    connection.close()


def test_the_ledger_of_real_consumers_is_never_touched(path: Path) -> None:
    """A test that was pointed at the wrong database says so, and changes nothing."""
    ledger = open_sink(f"sqlite:///{path}", ("g", "t", 0))
    made = ledger.peek()
    ledger.open(1)
    ledger.close()
    with pytest.raises(BadSink, match=r"shop\.db holds the ledger of group 'g' of real consumers"):
        Harness(app_of(path))
    assert ledger.directory
    again = open_sink(f"sqlite:///{path}", ("g", "t", 0))
    assert again.peek().ledger_id == made.ledger_id
    again.close()


def test_two_groups_side_by_side(path: Path) -> None:
    """Two apps of one test share a file: neither begins anew under the other."""
    with Harness(app_of(path, "one")) as one, Harness(app_of(path, "two")) as two:
        one_test(one)
        one_test(two, "y")
        one_test(one, "z")
        assert rows(path) == ["x", "y", "z"]
        with Harness(app_of(path, "two")) as third:  # the ledger of `two`, but not the file
            one_test(third, "w")
        one_test(one, "v")
    with Harness(app_of(path, "one")) as last:
        one_test(last, "u")


USES = """
import sys
from pathlib import Path
from oncemq import Harness
from tests.library.testkit.test_sinks_of_tests import app_of, one_test
harness = Harness(app_of(Path(sys.argv[1])))
one_test(harness)
print("there", flush=True)
sys.stdin.read()
"""


@pytest.mark.process
def test_a_harness_of_another_process(path: Path) -> None:
    """It is named; once it has ended, however, its file is begun anew."""
    with subprocess.Popen(
        [sys.executable, "-c", USES, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        with pytest.raises(BadSink, match=rf"a Harness of process {other.pid} uses"):
            Harness(app_of(path))
        other.kill()
    with Harness(app_of(path)) as harness:
        one_test(harness)
    assert rows(path) == ["x"]
