"""The relay in this process: SQLite on one side, the simple broker on the other."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncemq import outbox
from oncemq.cli.output import exit_code_of
from oncemq.errors import DatabaseAway, DatabaseRefused, IdConflict
from oncemq.library.outbox.database import SqliteOutbox, open_database, sync_files
from oncemq.library.outbox.relay import Progress, Relay, checked_row
from oncemq.library.outbox.table import Row
from oncemq.limits import RELAY_ROUND_BYTES, RELAY_ROUND_MESSAGES
from oncemq.runtime.crash_points import NAMES
from oncemq.runtime.settings import BadSetting
from tests.library.outbox.users import User, ids_of, rows_of, sqlite_url, use_sqlite3
from tests.library.wired import Wire


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    users = use_sqlite3(sqlite_url(tmp_path))
    user = next(users)
    outbox.create(user.connection)
    yield user
    assert next(users, None) is None


def send(user: User, *ids: str, topic: str = "t", value: str | None = None) -> None:
    """Commit messages, each with its id as value, in one transaction."""
    for message_id in ids:
        outbox.send(user.connection, topic, value or message_id, id=message_id)
    user.commit()


def relay(user: User, wire: Wire, **options: Any) -> Progress:
    visit = options.pop("visit", lambda _: None)
    database = SqliteOutbox(user.url.removeprefix("sqlite:///"), visit)
    options = {"until_idle_s": 0, "poll_s": 0.01, **options}
    made = Relay(database, wire.engine(""), wire, visit=visit, **options)
    try:
        return made.run()
    finally:
        database.close()


def stored(wire: Wire, topic: str = "t") -> list[str]:
    return [value.decode() for value in wire.values(topic)]


def states(user: User) -> list[tuple[str, str]]:
    """What is in the table: (id, state)."""
    found = user.execute("SELECT message_id, state FROM oncemq_outbox ORDER BY place")
    return [(row["of"][0][1:].decode(), row["of"][1]) for row in found]


def test_rows_are_sent_in_order_and_deleted(user: User) -> None:
    """What is committed arrives once, in the order of send; the outbox is empty then."""
    ids = [f"o-{number}" for number in range(100)]
    send(user, *ids)
    send(user, "a", "b", topic="other")
    wire = Wire()
    told: list[int] = []
    progress = relay(user, wire, report=lambda now: told.append(now.sent))

    assert (progress.sent, progress.appended, progress.duplicates) == (102, 102, 0)
    assert stored(wire) == ids
    assert stored(wire, "other") == ["a", "b"]
    assert states(user) == []
    assert told[-1] == 102
    assert [fields["count"] for name, fields in wire.events if name == "relay.settled"] == [102]


def test_headers_keys_and_bytes_arrive_as_they_were(user: User) -> None:
    """The relay changes nothing: its message is a duplicate of the producer's own."""
    headers = {"traceparent": b"00"}
    outbox.send(user.connection, "t", {"b": [1, None]}, id=b"\xff", key=b"k", headers=headers)
    user.commit()
    wire = Wire(partitions=3)
    relay(user, wire)
    with wire.producer() as producer:
        pending = producer.send("t", {"b": [1, None]}, id=b"\xff", key=b"k")
        assert pending.result(10).duplicate


def test_what_is_not_committed_is_not_sent(user: User) -> None:
    """An open transaction and one rolled back send nothing; others are sent beside it."""
    user.execute("PRAGMA journal_mode = WAL")  # else a writer and a reader wait for each other
    send(user, "committed")
    outbox.send(user.connection, "t", "x", id="open")
    database = open_database(user.url)
    assert [row.message_id for row in database.read()] == [b"scommitted"]
    database.close()
    user.rollback()
    wire = Wire()
    assert relay(user, wire).sent == 1
    assert stored(wire) == ["committed"]


class Died(Exception):
    """The relay's process is gone."""


@pytest.mark.parametrize("place", sorted(name for name in NAMES if name.startswith("relay")))
def test_a_relay_that_dies_anywhere_is_followed_by_another(user: User, place: str) -> None:
    """At each step: everything is stored once, whatever was repeated."""
    send(user, "a", "b", "c")
    wire = Wire()

    def die(name: str) -> None:
        if name == place:
            raise Died

    with pytest.raises(Died):
        relay(user, wire, visit=die)
    sent_before = {
        "relay_after_read": 0,
        "relay_after_ack": 3,
        "relay_before_commit": 3,
        "relay_after_commit": 3,
    }[place]
    assert len(stored(wire)) == sent_before
    left = 0 if place == "relay_after_commit" else 3
    assert len(rows_of(user.url)) == left
    progress = relay(user, wire)
    assert progress.sent == left
    assert progress.duplicates == (left if sent_before else 0)
    assert stored(wire) == ["a", "b", "c"]
    assert states(user) == []


def test_kept_rows_are_marked_and_not_sent_again(user: User) -> None:
    """With `keep` a row stays, as sent, and its id is known to `send` without the broker."""
    send(user, "a", "b")
    wire = Wire()
    assert relay(user, wire, keep=True).sent == 2
    assert states(user) == [("a", "sent"), ("b", "sent")]
    assert relay(user, wire, keep=True).sent == 0
    assert outbox.send(user.connection, "t", "a", id="a") is False
    with pytest.raises(IdConflict):
        outbox.send(user.connection, "t", "other", id="a")


def test_an_id_sent_again_after_it_left_is_a_duplicate(user: User) -> None:
    """The broker's memory has no end: the row is sent, answered and taken out."""
    wire = Wire()
    send(user, "a")
    relay(user, wire)
    send(user, "a")
    progress = relay(user, wire)
    assert (progress.sent, progress.duplicates) == (1, 1)
    assert stored(wire) == ["a"]


def test_a_conflict_is_kept_with_its_reason_and_blocks_nobody(user: User) -> None:
    """The broker has the id with another body: that row is marked, the others go on."""
    wire = Wire()
    send(user, "a")
    relay(user, wire)
    send(user, "a", value="other")
    send(user, "b", "c")
    progress = relay(user, wire)

    assert (progress.sent, progress.failed) == (2, 1)
    assert stored(wire) == ["a", "b", "c"]
    assert states(user) == [("a", "failed")]
    database = open_database(user.url)
    (failed,) = database.failed()
    assert failed.message_id == b"sa"
    assert failed.error.startswith("id_conflict: id 'a' is stored in 't' with another body")
    assert [fields["id"] for name, fields in wire.events if name == "relay.refused"] == ["a"]
    assert relay(user, wire).failed == 0, "a failed row is not tried again by itself"
    assert database.retry_failed() == 1
    database.close()
    assert relay(user, wire).failed == 1


def test_a_refused_batch_is_sent_message_by_message(user: User) -> None:
    """One message that makes a whole batch fail is found; its neighbours are stored."""
    send(user, "a", "b", "c")
    wire = Wire()
    refusals = ["too_large", "too_large"]  # of the batch, then of its first message

    def refuse(_progress: Progress) -> None:
        if wire.broker.topics and refusals:
            wire.broker.refusals, refusals[:] = refusals[:], []

    progress = relay(user, wire, report=refuse)
    assert (progress.sent, progress.failed) == (2, 1)
    assert stored(wire) == ["b", "c"]
    assert states(user) == [("a", "failed")]


@pytest.mark.parametrize("code", ["invalid_name", "busy"])
def test_a_refused_topic_is_told_by_its_rows(user: User, code: str) -> None:
    """Rows of a topic that the broker does not take are marked; other topics go on."""
    send(user, "a", "b", topic="first")
    send(user, "c")
    wire = Wire()
    wire.broker.refusals = [code]
    progress = relay(user, wire)
    assert (progress.sent, progress.failed) == (1, 2)
    assert stored(wire) == ["c"]
    assert states(user) == [("a", "failed"), ("b", "failed")]


def test_a_retriable_refusal_is_waited_out(user: User) -> None:
    """A full disk at the broker delays a row and marks nothing."""
    send(user, "a")
    wire = Wire()
    wire.broker.refusals = ["disk_full", "disk_full"]
    assert relay(user, wire).sent == 1
    assert stored(wire) == ["a"]


GOOD = Row(1, "t", b"sid", b"key", 1, b"value", b"")


@pytest.mark.parametrize(
    "bad",
    [
        {"topic": "a/b"},
        {"topic": b"t"},
        {"message_id": b"s"},
        {"message_id": b"no tag"},
        {"message_id": "sid"},
        {"message_id": b"s\xff"},
        {"message_id": b"s" + b"x" * 129},
        {"key": 7},
        {"key": b"x" * 1025},
        {"encoding": 3},
        {"encoding": 2, "value": b"\xc1"},
        {"value": "text"},
        {"value": b"\xff"},
        {"value": b"x" * (1024 * 1024)},
        {"headers": b"no map"},
        {"headers": b"x" * 9000},
        {"created_at_ms": "soon"},
    ],
)
def test_a_row_written_by_hand_cannot_hurt(user: User, bad: dict[str, Any]) -> None:
    """Whatever is in a row that `send` has not written, it is marked and the next one is sent."""
    assert checked_row(GOOD).value == b"value"
    row = GOOD._replace(**bad)
    user.connection.execute(
        "INSERT INTO oncemq_outbox (place, topic, message_id, message_key, encoding, value,"
        " headers, created_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        row,
    )
    send(user, "good")
    wire = Wire()
    progress = relay(user, wire)
    assert (progress.sent, progress.failed) == (1, 1)
    assert stored(wire) == ["good"]


def test_a_long_outbox_is_read_in_bounded_rounds(user: User) -> None:
    """One read stops at its bounds of rows and of bytes, and the next goes on there."""
    value = b"x" * (1024 * 1024)
    for number in range(10):
        outbox.send(user.connection, "t", value, id=f"big-{number}")
    send(user, *(f"small-{number}" for number in range(RELAY_ROUND_MESSAGES + 1)))
    database = open_database(user.url)
    rows = database.read()
    assert len(rows) == RELAY_ROUND_BYTES // len(value)
    assert database.settle(rows, (), keep=False) == len(rows)
    assert len(database.read()) == RELAY_ROUND_MESSAGES
    database.close()
    wire = Wire()
    assert relay(user, wire).sent == 2 + RELAY_ROUND_MESSAGES + 1


def test_places_are_never_given_twice(user: User) -> None:
    """A relay that is slow to delete cannot delete another message in the same place."""
    send(user, "a")
    (before,) = rows_of(user.url)
    relay(user, Wire())
    send(user, "b")
    (after,) = rows_of(user.url)
    assert after.place > before.place


def test_a_stopped_relay_takes_out_what_was_answered(user: User) -> None:
    """A stop before the broker answers leaves the rows; nothing is lost by it."""
    send(user, "a")
    wire = Wire()
    wire.cut = True
    database = open_database(user.url)
    made = Relay(database, wire.engine(""), wire, report=lambda _: made.stop())
    assert made.run().sent == 0
    assert ids_of(user.url) == ["a"]
    wire.cut = False
    database.close()
    assert relay(user, wire).sent == 1


def test_a_missing_database_is_waited_for_and_told(tmp_path: Path) -> None:
    """No file, then no table, then rows: the relay says what it waits for and goes on."""
    url = sqlite_url(tmp_path)
    wire = Wire()
    told: list[str | None] = []
    steps: list[Callable[[], Any]] = []

    def report(progress: Progress) -> None:
        if progress.waiting_for is not None and progress.waiting_for not in told:
            told.append(progress.waiting_for)
            assert not (len(told) == 1 and os.path.exists(tmp_path / "shop.db")), "it made a file"
            steps.pop(0)()

    users = use_sqlite3(url)
    user: list[User] = []
    steps.append(lambda: (user.append(next(users)), user[0].execute("CREATE TABLE x (y)")))
    steps.append(lambda: (outbox.create(user[0].connection), send(user[0], "a")))
    database = open_database(url)
    progress = Relay(database, wire.engine(""), wire, until_idle_s=0, report=report).run()
    database.close()
    assert progress.sent == 1
    assert "no such file" in str(told[0])
    assert "create the table: outbox.create(connection)" in str(told[1])
    assert [name for name, _ in wire.events if name.startswith("relay.database")] == [
        "relay.database_away",
        "relay.database_back",
    ]
    assert next(users, None) is None


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """What waiting cannot mend ends the relay."""
    (tmp_path / "shop.db").write_bytes(b"no database" * 100)
    database = open_database(sqlite_url(tmp_path))
    with pytest.raises(BadSetting, match="no SQLite database"):
        database.read()


def test_a_missing_directory_is_wrong_usage(tmp_path: Path) -> None:
    """The application may make the file later, but not its directory: status 2, no waiting."""
    with pytest.raises(BadSetting, match="there is no directory") as caught:
        open_database(sqlite_url(tmp_path / "nowhere")).read()
    assert exit_code_of(caught.value) == 2
    with pytest.raises(DatabaseAway, match="no such file"):
        open_database(sqlite_url(tmp_path)).read()


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg the relay says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BadSetting, match="pip install 'oncemq"):
        open_database("postgresql://host/shop")


def test_a_database_put_in_place_of_another_is_read(user: User, tmp_path: Path) -> None:
    """A backup that is moved over the file is seen; the old file is not read for ever."""
    database = open_database(user.url)
    assert database.read() == []
    other = next(use_sqlite3(f"sqlite:///{tmp_path / 'other.db'}"))
    outbox.create(other.connection)
    send(other, "a")
    other.connection.close()
    os.replace(tmp_path / "other.db", tmp_path / "shop.db")
    assert [row.message_id for row in database.read()] == [b"sa"]
    database.close()


@pytest.mark.parametrize("keep", [False, True])
def test_a_restored_database_loses_no_row_to_an_old_answer(
    user: User, tmp_path: Path, keep: bool
) -> None:
    """Rows that were read before a restore are not taken out of what has their places now."""
    send(user, "a", "b")
    database = open_database(user.url)
    sent, refused = database.read()
    other = next(use_sqlite3(f"sqlite:///{tmp_path / 'other.db'}"))
    outbox.create(other.connection)
    send(other, "c", "d")
    other.connection.close()
    os.replace(tmp_path / "other.db", tmp_path / "shop.db")
    assert database.settle([sent], [(refused, "why")], keep=keep) == 0
    database.close()
    assert ids_of(user.url) == ["c", "d"]


def test_rows_are_durable_before_they_are_sent(user: User, tmp_path: Path) -> None:
    """A read syncs the WAL, or in a rollback journal's mode the directory, before it returns."""
    path = user.url.removeprefix("sqlite:///")
    synced: list[str] = []
    note = lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: E731
    database = SqliteOutbox(path, lambda _: None, note)
    assert database.read() == []
    assert synced == [], "nothing is paid for an empty outbox"
    send(user, "a")
    assert len(database.read()) == 1
    assert synced == [str(tmp_path)]
    user.execute("PRAGMA journal_mode = WAL")
    user.execute("PRAGMA synchronous = OFF")
    send(user, "b")
    assert len(database.read()) == 2
    assert synced[1:] == [f"{path}-wal"]
    database.close()


def test_a_failed_sync_ends_the_relay(tmp_path: Path) -> None:
    """An fsync is never tried again: the second one could say yes to pages that are lost."""

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(DatabaseRefused, match="cannot be synced"):
        sync_files(str(tmp_path / "shop.db"), fail)


def test_a_locked_database_is_away_for_a_while(user: User) -> None:
    """Somebody else's long transaction delays the relay and does not end it."""
    send(user, "a")
    user.execute("BEGIN EXCLUSIVE")
    database = SqliteOutbox(user.url.removeprefix("sqlite:///"), lambda _: None)
    with pytest.raises(DatabaseAway, match="locked"):
        database.read()
    user.rollback()
    assert len(database.read()) == 1
    database.close()


def test_an_outbox_of_kept_rows_is_not_searched(user: User) -> None:
    """What waits is found by an index of its own, however many rows were kept."""
    plan = user.execute(
        "EXPLAIN QUERY PLAN SELECT place FROM oncemq_outbox WHERE state = 'waiting'"
        " ORDER BY place LIMIT 10"
    )
    assert "oncemq_outbox_waiting" in str(list(plan))
