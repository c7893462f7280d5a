"""Real processes after a restore: the log must be the same log, or somebody says so.

A cell is (ledger in files, in SQLite) x (backup of the broker's data at rest, live) x (grown less than,
exactly to, past what was lost) x (consumer restarted, living, frozen) x (producer with a name, with ids).
A few cells run with the other processes, `make chaos` runs all of them, and `make restores` runs each
of them twenty times, which takes an hour.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
from pathlib import Path
from typing import NamedTuple

import pytest

from oncemq.chaos.programs import Running
from oncemq.errors import LogRegressed
from oncemq.library.operating.client import AdminClient
from tests.process.house import START_S, House

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

ROUNDS = int(os.environ.get("ONCEMQ_TEST_ROUNDS", "1"))  # of each cell, among the chaos tests
KEPT, LOST = 20, 10  # messages before the backup, and after it
GROWN = {"less": LOST - 5, "exactly": LOST, "past": LOST + 5}

APP = """
import os
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})
SINK = os.environ.get("SHOP_DB")

@app.consumer("orders", group="g", **({{"sink": SINK}} if SINK else {{}}))
def handler(message, tx):
    tx.state.setdefault("log", []).append(message.value)
    tx.send("out", message.value)
    if SINK:
        tx.sql("INSERT INTO paid VALUES (?)", message.value)
    with (HERE / "calls").open("a") as calls:
        calls.write(message.value + "\\n")
"""

SENDER = """
import sys
from oncemq import App
name, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with App().producer(*([name] if name != "-" else [])) as producer:
    for number in range(first, first + count):
        producer.send("orders", f"m{number}", **({"id": f"id-{number}"} if name == "-" else {}))
"""


class Cell(NamedTuple):
    """One way in which a backup comes back."""

    ledger: str  # files | sqlite
    backup: str  # rest | live
    grown: str
    consumer: str  # restarted | living | frozen
    producer: str  # name | ids

    def __str__(self) -> str:
        return "-".join(self)


CELLS = [
    Cell(*fields)
    for fields in itertools.product(
        ("files", "sqlite"),
        ("rest", "live"),
        GROWN,
        ("restarted", "living", "frozen"),
        ("name", "ids"),
    )
]
# Each value of each dimension, and the case that was lost in silence before: all cells are chaos.
FAST = [
    Cell("files", "rest", "past", "restarted", "ids"),
    Cell("files", "live", "exactly", "living", "name"),
    Cell("sqlite", "live", "past", "frozen", "ids"),
    Cell("sqlite", "rest", "less", "restarted", "name"),
]


class Story:
    """The processes of one round."""

    def __init__(self, house: House, cell: Cell) -> None:
        self.house, self.cell = house, cell
        self.sent = 0
        self.database = house.directory / "shop.db"
        (house.directory / "backapp.py").write_text(APP.format(directory=str(house.directory)))
        (house.directory / "backsend.py").write_text(SENDER)
        if cell.ledger == "sqlite":
            house.environ["SHOP_DB"] = f"sqlite:///{self.database}"
            with sqlite3.connect(self.database) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("CREATE TABLE paid (value TEXT)")
            connection.close()
        self.broker = house.broker()
        self.saved = house.directory / "saved"

    def send(self, count: int) -> None:
        name = "p" if self.cell.producer == "name" else "-"
        arguments = [name, str(self.sent), str(count)]
        self.house.start("sender", str(self.house.directory / "backsend.py"), *arguments).wait(
            START_S, 0
        )
        self.sent += count

    def consume(self, *more: str) -> Running:
        return self.house.consumer("backapp:app", *more)

    def calls(self) -> list[str]:
        path = self.house.directory / "calls"
        return path.read_text().split() if path.exists() else []

    def back_up(self) -> None:
        """Copy the data of the broker, at rest or while it runs."""
        if self.cell.backup == "rest":
            self.broker.stop(START_S, 0)
        shutil.copytree(self.house.data, self.saved)
        if self.cell.backup == "rest":
            self.broker = self.house.broker()

    def put_back(self) -> None:
        """The broker dies; its data is what the backup holds."""
        self.broker.kill()
        shutil.rmtree(self.house.data)
        shutil.copytree(self.saved, self.house.data)
        self.broker = self.house.broker()

    def regressed(self, consumer: Running) -> None:
        """The consumer ends with one sentence that says which histories differ, and what to do."""
        consumer.wait(START_S, 1)
        told = consumer.stderr()
        assert "relies on position" in told, told
        assert "oncemq groups seek" in told, told


def round_of(house: House, cell: Cell) -> tuple[list[str], list[str]]:
    """Everything is handled, backed up, some more handled; then the backup comes back and grows.

    Returns what was handled until then, and what until the end.
    """
    story = Story(house, cell)
    consumer = story.consume()
    story.send(KEPT)
    house.wait_for_committed("g", "orders", KEPT)
    story.back_up()
    story.send(LOST)
    house.wait_for_committed("g", "orders", KEPT + LOST)
    if cell.consumer == "restarted":
        consumer.stop(START_S, 0)
    elif cell.consumer == "frozen":
        consumer.freeze()
    before = story.calls()
    assert len(before) == KEPT + LOST
    story.put_back()
    story.send(GROWN[cell.grown])
    if cell.consumer == "restarted":
        consumer = story.consume("--until-idle=0.5")
    elif cell.consumer == "frozen":
        consumer.thaw()
    story.regressed(consumer)
    story.regressed(story.consume("--until-idle=0.5"))
    return before, story.calls()


@pytest.mark.parametrize("cell", FAST, ids=str)
def test_a_restored_broker_is_not_followed_in_silence(house: House, cell: Cell) -> None:
    """The consumer ends with status 1 and LogRegressed; nothing of the other log is handled."""
    before, after = round_of(house, cell)
    assert before == after


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_no_restored_broker_is_ever_followed_in_silence(tmp_path: Path, cell: Cell) -> None:
    """Every cell, as often as ONCEMQ_TEST_ROUNDS says."""
    for number in range(ROUNDS):
        directory = tmp_path / str(number)
        directory.mkdir()
        house = House(directory)
        try:
            before, after = round_of(house, cell)
            assert before == after, number
        finally:
            house.close()


def ledger_alone(house: House, cell: Cell) -> tuple[list[str], list[str]]:
    """The ledger, or the sink, comes back from a backup; the broker has all that happened since.

    Returns what was handled until then, and what until the end.
    """
    story = Story(house, cell)
    consumer = story.consume()
    story.send(KEPT)
    house.wait_for_committed("g", "orders", KEPT)
    if cell.backup == "rest":
        consumer.stop(START_S, 0)
    saved = house.directory / "saved-ledger"
    if cell.ledger == "files":
        shutil.copytree(house.state, saved)
    else:
        copy_database(story.database, saved)
    if cell.backup == "rest":
        consumer = story.consume()
    story.send(LOST)
    house.wait_for_committed("g", "orders", KEPT + LOST)
    consumer.stop(START_S, 0)
    if cell.ledger == "files":
        shutil.rmtree(house.state)
    else:
        for end in ("", "-wal", "-shm"):
            Path(f"{story.database}{end}").unlink(missing_ok=True)
    saved.rename(house.state if cell.ledger == "files" else story.database)
    before = story.calls()
    story.send(GROWN[cell.grown])
    refused = story.consume("--until-idle=0.5")
    refused.wait(START_S, 1)
    assert "an older state of its ledger" in refused.stderr()
    return before, story.calls()


def copy_database(source: Path, target: Path) -> None:
    """As SQLite itself copies a database in use."""
    closing, connect = contextlib.closing, sqlite3.connect
    with closing(connect(source)) as database, closing(connect(target)) as copy:
        database.backup(copy)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("files", "live", "past", "restarted", "ids"),
        Cell("sqlite", "rest", "less", "restarted", "name"),
    ],
    ids=str,
)
def test_a_ledger_that_is_put_back_alone_is_refused(house: House, cell: Cell) -> None:
    """The broker knows what its group has reported: nothing is handled again."""
    before, after = ledger_alone(house, cell)
    assert before == after


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cell", [c for c in CELLS if c.consumer == "restarted"], ids=str)
def test_no_ledger_that_is_put_back_alone_goes_on(tmp_path: Path, cell: Cell) -> None:
    """Every cell, as often as ONCEMQ_TEST_ROUNDS says."""
    for number in range(ROUNDS):
        directory = tmp_path / str(number)
        directory.mkdir()
        house = House(directory)
        try:
            before, after = ledger_alone(house, cell)
            assert before == after, number
        finally:
            house.close()


@pytest.mark.parametrize("ledger", ["files", "sqlite"])
def test_what_was_restored_together_goes_on(house: House, ledger: str) -> None:
    """Broker and ledgers of one moment: every message of the log is handled, exit 0."""
    story = Story(house, Cell(ledger, "rest", "past", "restarted", "ids"))
    story.send(KEPT)
    story.consume("--until-idle=0.5").wait(START_S, 0)
    ledgers = [house.state] if ledger == "files" else sorted(house.directory.glob("shop.db*"))
    story.back_up()
    for path in ledgers:
        copy = house.directory / f"saved-{path.name}"
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)
    story.send(LOST)
    story.consume("--until-idle=0.5").wait(START_S, 0)
    story.put_back()
    for path in [house.state] if ledger == "files" else house.directory.glob("shop.db*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in ledgers:
        (house.directory / f"saved-{path.name}").rename(path)
    story.sent += 100
    story.send(GROWN["past"])
    last = story.consume("--until-idle=0.5")
    last.wait(START_S, 0)
    assert last.summary()["processed"] == GROWN["past"]
    assert story.calls()[-GROWN["past"] :] == [f"m{KEPT + LOST + 100 + n}" for n in range(15)]


def test_an_operator_decides(house: House) -> None:
    """`verify` names the difference; `groups seek` accepts the loss and says so; work goes on."""
    story = Story(house, Cell("files", "rest", "past", "restarted", "ids"))
    story.send(KEPT)
    story.consume("--until-idle=0.5").wait(START_S, 0)
    story.back_up()
    story.send(LOST)
    story.consume("--until-idle=0.5").wait(START_S, 0)
    story.put_back()
    story.send(GROWN["past"])
    story.regressed(story.consume("--until-idle=0.5"))
    state = f"--state={house.state}"
    verified = verify(house, state)
    assert "one-log" in verified
    assert "relies on position" in verified
    moved = house.command("groups", "seek", "g", "orders", "--to", str(KEPT), state)
    (row,) = moved["moved"]
    assert (row["from"], row["to"]) == (KEPT + LOST, KEPT)
    assert "history" in row["accepted"]
    last = story.consume("--until-idle=0.5")
    last.wait(START_S, 0)
    assert story.calls()[-GROWN["past"] :] == [f"m{KEPT + LOST + n}" for n in range(15)]
    assert last.summary()["offsets"] == {"orders/0": KEPT + GROWN["past"]}


def test_a_reader_of_what_is_lost_does_not_read_on(house: House) -> None:
    """The client of commands names what it has read, once the broker came back with other data."""
    story = Story(house, Cell("files", "live", "past", "restarted", "ids"))
    story.send(KEPT)
    story.back_up()
    story.send(LOST)
    with (
        AdminClient(house.endpoint, timeout_s=START_S) as early,
        AdminClient(house.endpoint, timeout_s=START_S) as late,
    ):
        early.fetch("orders", 0, 0, max_bytes=1)
        answer, _ = late.fetch("orders", 0, KEPT + LOST - 1)
        assert answer.next_offset == KEPT + LOST
        story.put_back()
        story.send(GROWN["past"])
        with pytest.raises(LogRegressed, match="history"):
            late.fetch("orders", 0, KEPT + LOST)
        answer, _ = early.fetch("orders", 0, KEPT + LOST)
        assert answer.end_offset == KEPT + GROWN["past"]


def verify(house: House, state: str) -> str:
    command = house.start("verify", "-m", "oncemq", "verify", f"--data={house.data}", state)
    command.wait(START_S, 1)
    return command.stdout() + command.stderr()
