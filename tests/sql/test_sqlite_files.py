"""A SQLite file that is deleted, replaced or opened by others while consumers commit to it."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncemq import App
from oncemq.chaos.programs import Running, wait_until
from oncemq.errors import SinkUnavailable, StorageError
from oncemq.library.sinks import sqlite
from oncemq.library.sinks.opening import open_sink
from oncemq.shells.tables.ledger import SqlLedger
from tests.process.house import START_S, House

CLOSES = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA journal_mode=WAL")
c.execute("SELECT count(*) FROM sqlite_master").fetchone()
c.close()
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """A ledger in shop.db that an owner has opened."""
    ledger = open_sink(f"sqlite:///{tmp_path}/shop.db", ("g", "t", 0))
    ledger.peek()
    yield ledger
    ledger.close()


def write(ledger: SqlLedger, text: str = "CREATE TABLE t (n)") -> None:
    """Commit as the I/O thread does."""
    session = ledger.session
    session.join(None)
    try:
        session.change(text)
        session.commit()
    except BaseException:
        session.give_up()
        raise


def deleted(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)  # before the first look at it: this process is not SQLite's only user
    copy.rename(path)


@pytest.mark.parametrize("act", [deleted, moved, replaced])
@pytest.mark.parametrize("name", ["shop.db", "shop.db-wal", "shop.db-shm"])
def test_a_commit_to_a_file_that_is_not_in_place_is_never_told(
    tmp_path: Path, ledger: SqlLedger, name: str, act: Callable[[Path], None]
) -> None:
    """Whichever of its three files it is: the commit, the look at the fence and the join stop."""
    log = ledger.open(1)
    act(tmp_path / name)
    with pytest.raises(StorageError, match=rf"{name} was deleted or replaced"):
        write(ledger)
    with pytest.raises(StorageError, match="deleted or replaced"):
        log.check_fence()
    with pytest.raises(StorageError, match="deleted or replaced"):
        ledger.peek()


def test_a_file_that_vanishes_during_the_commit_is_noticed_before_it_is_told(
    tmp_path: Path, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names are looked at after the COMMIT too, which itself succeeds on a deleted file."""
    session = ledger.session
    run = session._run

    def vanishing(statement: str, values: Any = ()) -> sqlite3.Cursor:
        if statement == "COMMIT":
            (tmp_path / "shop.db").unlink()
        return run(statement, values)

    monkeypatch.setattr(session, "_run", vanishing)
    with pytest.raises(StorageError, match=r"shop\.db was deleted or replaced"):
        write(ledger)


def test_a_file_system_that_does_not_answer_is_an_outage(
    tmp_path: Path, ledger: SqlLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that was shut down says nothing of the files: the sink is away, not replaced."""
    ledger.open(1)

    def dead(path: object, **_: object) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(sqlite.os, "stat", dead)
    with pytest.raises(SinkUnavailable, match="Input/output error"):
        write(ledger)


def test_who_leaves_does_not_delete_the_log_of_the_file_that_came(
    tmp_path: Path, ledger: SqlLedger
) -> None:
    """SQLite deletes `-wal` by its name: after a replacement that is the log of other consumers."""
    write(ledger)
    for path in list(tmp_path.glob("shop.db*")):
        path.rename(tmp_path / f"old{path.name}")
    other = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    other.execute("PRAGMA journal_mode=WAL")
    other.execute("CREATE TABLE mine (n)")
    wal = os.stat(tmp_path / "shop.db-wal").st_ino
    ledger.close()
    assert os.stat(tmp_path / "shop.db-wal").st_ino == wal
    other.close()


@pytest.mark.slow
@pytest.mark.process
def test_who_reads_the_database_in_its_process_loses_nothing(
    tmp_path: Path, ledger: SqlLedger
) -> None:
    """Its POSIX locks are gone; the locks of the watch keep others from deleting its log."""
    write(ledger)
    (tmp_path / "shop.db").read_bytes()
    subprocess.run([sys.executable, "-c", CLOSES, str(tmp_path / "shop.db")], check=True)
    write(ledger, "INSERT INTO t VALUES (1)")
    shutil.copytree(tmp_path, tmp_path / "after")  # as after a kill
    with sqlite3.connect(tmp_path / "after" / "shop.db") as found:
        assert found.execute("SELECT n FROM t").fetchall() == [(1,)]
    found.close()


def test_the_last_that_leaves_tidies_up(tmp_path: Path) -> None:
    """The locks of the watch end with the last connection: the database is one file again."""
    ledgers = [open_sink(f"sqlite:///{tmp_path}/shop.db", ("g", "t", n)) for n in range(2)]
    for one in ledgers:
        one.peek()
    before = len(os.listdir("/dev/fd"))
    ledgers[0].close()
    assert (tmp_path / "shop.db-wal").exists()
    ledgers[1].close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop.db"]
    assert len(os.listdir("/dev/fd")) < before - 3


def test_a_lost_lock_of_the_writer_is_noticed(tmp_path: Path, ledger: SqlLedger) -> None:
    """Closing a descriptor of `-shm` lets other writers in: this one's commit is rolled back."""
    session = ledger.session
    session.join(None)
    if not session._shown_as_writer:
        pytest.skip("this system does not tell who holds locks")
    session.change("CREATE TABLE t (n)")
    (tmp_path / "shop.db-shm").read_bytes()
    with pytest.raises(StorageError, match="has lost its lock"):
        session.commit()
    session.give_up()
    assert not session.has_table("t")


def test_another_file_that_comes_while_it_is_opened_is_no_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has opened the old one, and the name already says the new one."""
    path = tmp_path / "shop.db"
    of = sqlite.FileWatch.of

    def late(name: str, shown: str) -> sqlite.FileWatch:
        path.unlink()
        path.touch()
        return of(name, shown)

    monkeypatch.setattr(sqlite.FileWatch, "of", late)
    with pytest.raises(StorageError, match="deleted or replaced"):
        open_sink(f"sqlite:///{path}", ("g", "t", 0)).peek()


# --- real consumers ------------------------------------------------------------------------------

APP = """
import os
from pathlib import Path
from oncemq import App
app = App()

@app.consumer(os.environ["TOPIC"], group="g", sink="env:SHOP_DB")
def take(message, tx):
    tx.sql("CREATE TABLE IF NOT EXISTS n (v INTEGER)")
    tx.sql("INSERT INTO n VALUES (?)", message.value)
    if message.value == int(os.environ.get("READ_AT", -1)):
        Path(os.environ["READ"]).read_bytes()
"""
MESSAGES = 120


class Round:
    """A consumer that commits each message, and what is done to its files meanwhile."""

    def __init__(self, house: House, number: int, seed: int) -> None:
        self.house, self.rng = house, random.Random(seed)
        self.topic = f"t{number}"
        self.home = house.directory / self.topic
        self.home.mkdir()
        self.kept = self.home / "kept"
        self.file = self.home / "shop.db"
        self.acted_at = 0
        (house.directory / "filesapp.py").write_text(APP)

    def start(self, *more: str, **environ: str) -> Running:
        return self.house.start(
            "consumer",
            str(Path(__file__).resolve().parents[2] / "consumer.py"),
            "filesapp:app",
            f"--state={self.home}/state",
            *more,
            TOPIC=self.topic,
            SHOP_DB=f"sqlite:///{self.file}",
            **environ,
        )

    def told(self, running: Running) -> list[tuple[int, int]]:
        """When a consumer told of commits, and up to which offset."""
        path = self.house.events / f"consumer-{running.pid}.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        return [
            (line["mono_ns"], line["next_offset"])
            for line in lines
            if line["event"] == "commit.synced"
        ]

    def send(self, running: Running, act: Callable[[], None]) -> None:
        """Send all, one by one, and act somewhere on the way, once a commit was told."""
        at = self.rng.randrange(20, MESSAGES - 40)
        with App(self.house.endpoint).producer(self.topic) as producer:
            for value in range(MESSAGES):
                producer.send(self.topic, value).result(START_S)
                if value == at:
                    wait_until(lambda: self.told(running), START_S, "a told commit")
                    time.sleep(self.rng.random() * 0.01)
                    self.keep()
                    act()
                    self.acted_at = time.monotonic_ns()

    def keep(self) -> None:
        """What is committed to the files of now is found again, whatever becomes of their names."""
        self.kept.mkdir()
        for name in ("shop.db", "shop.db-wal"):
            os.link(self.home / name, self.kept / name)

    def rows(self, path: Path) -> list[int]:
        with sqlite3.connect(path) as connection:
            found = [value for (value,) in connection.execute("SELECT v FROM n ORDER BY v")]
        connection.close()
        return found

    def stops(self, act: Callable[[], object]) -> int:
        """The consumer ends with one sentence; return how many it has told: none is missing."""
        running = self.start()
        self.house.wait_for(running, "consumer.granted")
        self.send(running, act)
        running.wait(START_S, 1)
        assert running.stderr().count("was deleted or replaced") == 1, running.told()
        told = self.told(running)
        rows = self.rows(self.kept / "shop.db")
        assert rows == list(range(len(rows)))
        # The one that was under way: its names had been compared before the act.
        assert len([when for when, _ in told if when > self.acted_at]) <= 1
        reached = max(offset for _, offset in told)
        return reached if reached <= len(rows) else 0

    def goes_on(self, act: Callable[[], None], **environ: str) -> int:
        """The group goes on after a kill; return how many it has told: none is missing."""
        running = self.start(**environ)
        self.house.wait_for(running, "consumer.granted")
        self.send(running, act)
        reached = f"all of {self.topic}"
        wait_until(lambda: self.told(running)[-1:][0][1] == MESSAGES, START_S, reached)
        running.kill()
        assert self.rows(self.file) == list(range(MESSAGES))
        self.start("--until-idle=0.2").wait(START_S, 0)
        return MESSAGES if self.rows(self.file) == list(range(MESSAGES)) else 0

    def member_passes(self) -> None:
        """Another member of the group joins and leaves: it closes the database."""
        other = self.start()
        self.house.wait_for(other, "consumer.standby")
        other.stop(START_S, 0)


def delete_database(one: Round) -> int:
    return one.stops(one.file.unlink)


def delete_log(one: Round) -> int:
    return one.stops((one.home / "shop.db-wal").unlink)


def delete_all(one: Round) -> int:
    return one.stops(
        lambda: [path.unlink() for path in one.home.glob("shop.db*") if path.is_file()]
    )


def move_database(one: Round) -> int:
    return one.stops(lambda: one.file.rename(one.home / "moved.db"))


def replace_database(one: Round) -> int:
    """By an older copy of itself, as a restore does."""

    def act() -> None:
        shutil.copy(one.file, one.home / "older.db")
        (one.home / "older.db").rename(one.file)

    return one.stops(act)


def copy_from_outside(one: Round) -> int:
    def act() -> None:
        for path in list(one.home.glob("shop.db*")):
            subprocess.run(["cp", "-r", str(path), str(one.home / f"copy-{path.name}")], check=True)

    return one.goes_on(act)


def copy_in_a_handler(one: Round) -> int:
    """It loses the POSIX locks of its process; then another member closes the database."""
    return one.goes_on(one.member_passes, READ=str(one.file), READ_AT="5")


KINDS = (
    delete_database,
    delete_log,
    delete_all,
    move_database,
    replace_database,
    copy_from_outside,
    copy_in_a_handler,
)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KINDS)
def test_no_told_commit_is_lost(house: House, kind: Callable[[Round], int]) -> None:
    """Under load: the process stops before it tells, or nothing is lost."""
    house.broker()
    assert kind(Round(house, 0, KINDS.index(kind))) > 0


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_fifty_rounds(house: House) -> None:
    """The same fifty times, each at another moment."""
    house.broker()
    for number in range(50):
        assert KINDS[number % len(KINDS)](Round(house, number, 100 + number)) > 0
