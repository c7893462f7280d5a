"""A ledger in tables against what the driver expects of a log, and at every step of a commit."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oncemq.chaos import wait_until
from oncemq.codec import records as record_codec
from oncemq.errors import (
    CorruptLog,
    Fenced,
    OnceMQError,
    SinkUnavailable,
    StorageError,
    UnsupportedFormat,
)
from oncemq.history import NO_PLACE, Place
from oncemq.library.sinks.opening import open_sink
from oncemq.records import Committed, LedgerStarted
from oncemq.shells.tables.ledger import SqlLedger
from oncemq.shells.tables.log import SqlLog
from oncemq.shells.tables.statements import FORMAT
from oncemq.storage.log import Mapped
from tests.sql.client import mark, rows, run

PLACE = ("g", "orders", 3)
STARTED = LedgerStarted(*PLACE, b"t" * 16, b"l" * 16, b"l" * 16, 0)
STEPS = ("begun", "advanced", "recorded", "committed")


class Stop(BaseException):
    """The process ends here."""


class Owners:
    """Makes owners of one ledger; every one of them is closed at the end."""

    def __init__(self, sink: str) -> None:
        self.sink = sink
        self.made: list[SqlLedger] = []
        self.at: Callable[[str], None] = lambda _step: None

    def ledger(self, *, lost: str = "") -> SqlLedger:
        ledger = open_sink(self.sink, PLACE, lost=lost, at=lambda step: self.at(step))
        self.made.append(ledger)
        return ledger

    def log(self, epoch: int) -> SqlLog:
        ledger = self.ledger()
        ledger.peek()
        return ledger.open(epoch)

    def close(self) -> None:
        for ledger in self.made:
            ledger.close()


@pytest.fixture
def owners(sink: str) -> Iterator[Owners]:
    """Owners in an empty database, where the user has a table."""
    run(sink, "CREATE TABLE paid (n INTEGER)")
    owners = Owners(sink)
    yield owners
    owners.close()


def commit(number: int, epoch: int, following: int) -> Committed:
    """A commit up to offset `following`."""
    return Committed(epoch, number, [(b"t" * 16, following)], [("p", following - 1, 1)], b"", {})


def put(log: SqlLog, *records: object) -> int:
    for record in records:
        kind, meta, body, crc = record_codec.encode(record)
        log.append(kind, meta, body, crc)
    return log.sync()


def handle(log: SqlLog, first_offset: int, *values: int, private: bool = False) -> None:
    """What a call does: it uses the connection and leaves its transaction open."""
    session = log._session
    session.start_call((log.generation, private, first_offset))
    for value in values:
        session.sql(f"INSERT INTO paid VALUES ({mark(log._session.shown)})", (value,))
        session.accept()
    session.end_call(keep=True)


def kinds(log: SqlLog, position: int = 0) -> list[int]:
    return [record.type for record in log.replay(position)]


def paid(owners: Owners) -> list[int]:
    return [n for (n,) in rows(owners.sink, "SELECT n FROM paid ORDER BY n")]


def test_records_come_back_to_the_next_owner(owners: Owners) -> None:
    """Positions follow each other; what one owner committed the next one reads."""
    log = owners.log(1)
    assert (log.end, log.durable_end, log.attested, log.generation) == (0, 0, 0, 1)
    first = put(log, STARTED)
    end = put(log, commit(1, 1, 5), commit(2, 1, 9))
    assert 0 < first < end == log.end == log.durable_end == log.attested
    again = owners.log(2)
    assert kinds(again) == [10, 11, 11]
    assert again.durable_end == end
    records = list(again.replay(0))
    assert [r.position for r in records] == [0, first, records[2].position]
    assert records[-1].end == end
    assert [r.type for r in again.read(first, 1)] == [11]
    with pytest.raises((Fenced, SinkUnavailable)):  # PostgreSQL: its session was ended
        log.check_fence()


def test_a_join_reports_the_row(owners: Owners) -> None:
    """Ledger id, log, topic, offset and epoch are what was committed; the id stays."""
    ledger = owners.ledger()
    before = ledger.peek()
    assert (before.next_offset, before.highest_generation, before.log_id_seen) == (0, 0, b"")
    assert before.lock_held
    put(ledger.open(4), STARTED, commit(1, 4, 7))
    after = owners.ledger().peek()
    assert after.ledger_id == before.ledger_id
    assert (after.next_offset, after.highest_generation) == (7, 4)
    assert (after.log_id_seen, after.topic_id_seen) == (b"l" * 16, b"t" * 16)
    assert "s3cret" not in after.path


def test_the_lock_of_an_owner_proves_it_alive_or_dead(owners: Owners) -> None:
    """lock_held is true exactly when nothing can be committed under the last epoch any more."""
    log = owners.log(1)
    other = owners.ledger()
    assert not other.peek().lock_held
    log.close()
    # A server ends the session, and lets its locks go, when it reads that the client has gone.
    wait_until(lambda: other.peek().lock_held, 5.0, "the proof that the owner is dead")
    assert not owners.ledger().peek().lock_held, "one joiner holds the proof at a time"
    other.release()
    assert owners.ledger().peek().lock_held


def test_the_lock_of_a_copied_database_proves_nothing(owners: Owners, sink: str) -> None:
    """The copy has the row of an owner that lives where the copy was taken.

    A file: the copy, with its lock files, was put in the place of the original. A server: the same
    row in another run of a server, which knows no session of the owner.
    """
    log = owners.log(1)
    if sink.startswith("sqlite"):
        path = Path(sink.removeprefix("sqlite:///"))
        home, away = path.parent, path.parent.with_name("away")
        home.rename(away)
        shutil.copytree(away, home)
        assert not owners.ledger().peek().lock_held
        return
    log.close()
    other = owners.ledger()
    wait_until(lambda: other.peek().lock_held, 5.0, "the proof that the owner is dead")
    other.release()
    run(sink, "UPDATE oncemq_ledger SET owner = replace(owner, ' since ', ' since 1')")
    assert not other.peek().lock_held


def test_an_older_or_equal_epoch_is_fenced(owners: Owners) -> None:
    """The first act of an owner needs a higher epoch than the row has."""
    owners.log(5)
    for epoch in (4, 5):
        with pytest.raises(Fenced):
            owners.log(epoch)


def test_user_rows_and_record_are_one_transaction(owners: Owners) -> None:
    """Before the sync nobody sees either, after it both are there."""
    log = owners.log(1)
    put(log, STARTED)
    handle(log, 0, 1, 2)
    assert paid(owners) == []
    put(log, commit(1, 1, 2))
    assert paid(owners) == [1, 2]
    assert kinds(log) == [10, 11]


def test_the_open_transaction_of_another_call_is_never_joined(owners: Owners) -> None:
    """A commit that does not begin where the call began fails, and nothing of either stays."""
    log = owners.log(1)
    put(log, STARTED)
    handle(log, 40, 1)
    with pytest.raises(StorageError, match="open transaction"):
        put(log, commit(1, 1, 2))
    log.close()
    assert paid(owners) == []
    assert kinds(owners.log(2)) == [10]


def test_what_a_dropped_call_left_open_is_rolled_back_by_the_next(owners: Owners) -> None:
    """Its rows are never mixed with those of the call after it."""
    log = owners.log(1)
    put(log, STARTED)
    handle(log, 0, 1)
    handle(log, 0, 2)
    put(log, commit(1, 1, 2))
    assert paid(owners) == [2]


def test_the_private_topic_is_an_input_of_its_own(owners: Owners) -> None:
    """A call of it is joined by its own commit, and the join still reports the partition itself."""
    log = owners.log(1)
    put(log, STARTED, commit(1, 1, 4))
    handle(log, 0, 1, private=True)
    put(log, Committed(1, 2, [(b"@" * 16, 1)], [], b"f" * 16, {}))
    handle(log, 4, 2)
    put(log, commit(3, 1, 5))
    assert paid(owners) == [1, 2]
    assert owners.ledger().peek().next_offset == 5
    handle(log, 5, 3)
    with pytest.raises(StorageError, match="open transaction"):
        put(log, Committed(1, 4, [(b"@" * 16, 2)], [], b"g" * 16, {}))


def test_a_zombie_commits_nothing(owners: Owners) -> None:
    """With rows written before the takeover, or after it, its commit is refused: Fenced."""
    zombie = owners.log(1)
    put(zombie, STARTED)
    taker = owners.log(2)
    with pytest.raises(OnceMQError) as caught:
        handle(zombie, 0, 1)
        put(zombie, commit(1, 1, 2))
    if owners.sink.startswith("sqlite"):
        assert isinstance(caught.value, Fenced)
    assert paid(owners) == []
    handle(taker, 0, 7)
    put(taker, commit(1, 2, 2))
    assert paid(owners) == [7]
    assert [r.type for r in taker.replay(0)] == [10, 11]


def test_a_replaced_owner_learns_it_when_it_comes_back(owners: Owners) -> None:
    """An owner that lost its session and was replaced while it was alive is Fenced, not a standby."""
    ledger = owners.ledger()
    ledger.peek()
    log = ledger.open(1)
    put(log, STARTED)
    owners.log(2)
    with pytest.raises(Fenced, match="took over"):
        owners.ledger(lost=ledger.name).peek()
    assert owners.ledger(lost="somebody else").peek().highest_generation == 2


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step_of_the_commit(owners: Owners, step: str) -> None:
    """User rows and record are both there or both not; the next owner goes on from there."""
    log = owners.log(1)
    put(log, STARTED)
    put(log, commit(1, 1, 1))
    handle(log, 1, 5)

    def at(name: str) -> None:
        if name == step:
            log.close()  # as at the end of a process: the database sees the connection go
            raise Stop

    owners.at = at
    with pytest.raises(Stop):
        put(log, commit(2, 1, 2))
    owners.at = lambda _step: None
    again = owners.log(2)
    done = step == "committed"
    assert paid(owners) == [5] * done
    assert kinds(again) == [10, 11] + [11] * done
    handle(again, 1 + done, 6)
    put(again, commit(2 + done, 2, 2 + done))
    assert paid(owners) == [5] * done + [6]


def test_a_snapshot_takes_the_place_of_the_records_below(owners: Owners) -> None:
    """It comes back whole, the one before is gone with its records, and the next owner has it."""
    log = owners.log(1)
    end = put(log, STARTED, commit(1, 1, 1))
    big = bytes(range(256)) * 40_000
    log.write_snapshot(end, {"ledger": b"one", "old": b"o"}, frozenset())
    end = put(log, commit(2, 1, 2))
    log.write_snapshot(end, {"ledger": b"two", "state": big, "empty": b""}, frozenset())
    after = put(log, commit(3, 1, 3))
    again = owners.log(2)
    (info,) = again.snapshots()
    assert info.position == end
    assert again.read_snapshot(info) == {"ledger": b"two", "state": big, "empty": b""}
    assert kinds(again, end) == [11]
    assert again.durable_end == after
    assert rows(owners.sink, "SELECT count(*) FROM oncemq_record") == [(1,)]
    with pytest.raises(ValueError, match="no part named"):
        again.write_snapshot(after, {}, frozenset({"missing"}))


def whole_part(log: SqlLog, name: str, content: bytes) -> tuple[Mapped, int]:
    """Write a part ahead, as the driver does: a piece in each turn. Return it and the turns."""
    writer = log.part_writer(name)
    writer.write([content[at : at + 70_001] for at in range(0, len(content), 70_001)])
    for turns in itertools.count(1):
        made = writer.finish()
        if not writer.unfinished:
            assert made is not None
            return made, turns
    raise AssertionError


def rows_of_parts(owners: Owners) -> dict[str, int]:
    query = "SELECT part, count(*) FROM oncemq_snapshot GROUP BY part ORDER BY part"
    return dict(rows(owners.sink, query))


def test_a_large_part_is_written_a_piece_a_turn_and_read_by_rows(owners: Owners) -> None:
    """Each turn writes at most 1 MB; the next owner reads any bytes of it; no snapshot reads all."""
    log = owners.log(1)
    end = put(log, STARTED, commit(1, 1, 1))
    content = random.Random(7).randbytes(3_000_001)
    made, turns = whole_part(log, "run-0", content)
    assert turns >= len(content) // 2**20
    assert rows_of_parts(owners) == {"run-0.map": -(-len(content) // 2**16)}
    log.write_snapshot(end, {"ledger": b"l"}, {"run-0"})

    def check(part: object) -> None:
        assert isinstance(part, Mapped)
        assert len(part.buffer) == len(content)
        for start, end in ((0, 1), (65_530, 65_540), (3_000_000, 3_000_001), (5, 200_000)):
            assert part.buffer.read(start, end) == content[start:end]

    check(made)
    again = owners.log(2)
    (info,) = again.snapshots()
    parts = again.read_snapshot(info)
    assert (parts.keys(), parts["ledger"]) == ({"ledger", "run-0"}, b"l")
    check(parts["run-0"])


def test_parts_that_no_snapshot_names_are_deleted_in_later_turns(owners: Owners) -> None:
    """Merged ones, and what a killed owner left; one in the making stays, and a name is used again."""
    log = owners.log(1)
    end = put(log, STARTED, commit(1, 1, 1))
    whole_part(log, "run-0", b"a" * 2_000_000)
    log.write_snapshot(end, {"ledger": b"1"}, {"run-0"})
    dying = log.part_writer("run-1")
    dying.write([b"x" * 1_500_000])
    dying.finish()
    log = owners.log(2)
    assert set(rows_of_parts(owners)) == {"ledger", "run-0.map", "run-1.map"}
    made, _ = whole_part(log, "run-1", b"b" * 100)
    assert made.buffer.read(0, 100) == b"b" * 100
    running = log.part_writer("run-2")
    running.write([b"c" * 1_500_000])
    running.finish()
    end = put(log, commit(2, 2, 2))
    log.write_snapshot(end, {"ledger": b"2"}, {"run-1"})
    while running.unfinished:
        running.finish()
    end = put(log, commit(3, 2, 3))
    log.write_snapshot(end, {"ledger": b"3"}, {"run-1", "run-2"})
    whole_part(log, "run-3", b"d" * 100)
    assert rows_of_parts(owners) == {"ledger": 1, "run-1.map": 1, "run-2.map": 23, "run-3.map": 1}


def test_a_replaced_owner_writes_no_more_of_a_part(owners: Owners) -> None:
    """Else it could write into a part of the same name that its successor makes."""
    log = owners.log(1)
    put(log, STARTED, commit(1, 1, 1))
    writer = log.part_writer("run-0")
    writer.write([b"x" * 3_000_000])
    writer.finish()
    before = rows_of_parts(owners)
    owners.log(2)
    with pytest.raises(OnceMQError) as caught:
        writer.finish()
    if owners.sink.startswith("sqlite"):
        assert isinstance(caught.value, Fenced)
    assert rows_of_parts(owners) == before


def test_a_part_waits_while_a_handler_has_the_connection(owners: Owners) -> None:
    """Its rows are never in the transaction of a call."""
    log = owners.log(1)
    put(log, STARTED, commit(1, 1, 1))
    session = owners.made[-1].session
    writer = log.part_writer("run-0")
    writer.write([b"x" * 100])
    session.expect_call()
    assert (writer.finish(), writer.unfinished) == (None, True)
    session.start_call((1, False, 1))
    assert (writer.finish(), writer.unfinished) == (None, True)
    session.end_call(keep=False)
    session.answered()
    writer.finish()
    assert writer.finish() is not None


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM oncemq_snapshot WHERE part = 'run-0.map' AND chunk = 1",
        "DELETE FROM oncemq_snapshot WHERE part = 'run-0.map'",
        "UPDATE oncemq_snapshot SET crc = 7 WHERE part = 'run-0.map' AND chunk = 1",
    ],
)
def test_a_lost_or_changed_row_of_a_part_is_damage(owners: Owners, harm: str) -> None:
    """It never reads as fewer bytes."""
    log = owners.log(1)
    put(log, STARTED, commit(1, 1, 1))
    made, _ = whole_part(log, "run-0", b"x" * 200_000)
    run(owners.sink, harm)
    with pytest.raises(CorruptLog, match="missing or damaged"):
        made.buffer.read(100_000, 100_001)


def test_a_crash_inside_a_snapshot_leaves_the_old_one(owners: Owners) -> None:
    """Its last statement before COMMIT, and nothing has changed."""
    log = owners.log(1)
    end = put(log, STARTED, commit(1, 1, 1))
    log.write_snapshot(end, {"ledger": b"one"}, frozenset())
    end2 = put(log, commit(2, 1, 2))

    def at(name: str) -> None:
        if name == "snapshot":
            raise Stop

    owners.at = at
    with pytest.raises(Stop):
        log.write_snapshot(end2, {"ledger": b"two"}, frozenset())
    log.close()
    again = owners.log(2)
    (info,) = again.snapshots()
    assert (info.position, again.read_snapshot(info)) == (end, {"ledger": b"one"})
    assert kinds(again, end) == [11]


@pytest.mark.parametrize(
    "harm",
    [
        "DELETE FROM oncemq_record WHERE kind = 11 AND position < 200",
        "DELETE FROM oncemq_record WHERE position = (SELECT max(position) FROM oncemq_record)",
        "UPDATE oncemq_record SET crc = crc + 1 WHERE kind = 11",
    ],
    ids=["a hole", "the end", "a damaged record"],
)
def test_what_was_changed_by_hand_is_damage(owners: Owners, harm: str) -> None:
    """Missing or changed records are never passed over."""
    log = owners.log(1)
    put(log, STARTED, commit(1, 1, 1), commit(2, 1, 2))
    log.close()
    run(owners.sink, harm)
    with pytest.raises(CorruptLog):
        kinds(owners.log(2))


def test_a_newer_format_is_refused(owners: Owners) -> None:
    """Tables of a newer OnceMQ are not guessed at."""
    owners.log(1).close()
    run(owners.sink, f"UPDATE oncemq_ledger SET format = {FORMAT + 1}")
    with pytest.raises(UnsupportedFormat):
        owners.ledger().peek()


def test_a_snapshot_tells_earlier_versions_that_they_cannot_read_it(owners: Owners) -> None:
    """They would not see the ids in its runs, and handle those messages again."""
    log = owners.log(1)
    run(owners.sink, "UPDATE oncemq_ledger SET format = 1")
    end = put(log, STARTED, commit(1, 1, 1))
    assert rows(owners.sink, "SELECT format FROM oncemq_ledger") == [(1,)]
    log.write_snapshot(end, {"ledger": b"l"}, frozenset())
    assert rows(owners.sink, "SELECT format FROM oncemq_ledger") == [(FORMAT,)]


def test_a_closed_log_refuses_every_call(owners: Owners) -> None:
    """Using it after its end is told."""
    log = owners.log(1)
    log.close()
    log.close()
    for call in (log.sync, log.check_fence, log.snapshots, lambda: log.append(1, b"", b"x")):
        with pytest.raises(StorageError, match="closed"):
            call()


def test_while_a_handler_has_the_connection_the_log_leaves_it_alone(owners: Owners) -> None:
    """No snapshot, no look at the fence; closing waits for the call, which then cannot go on."""
    log = owners.log(1)
    put(log, STARTED)
    session = log._session
    session.start_call((1, False, 0))
    insert = f"INSERT INTO paid VALUES ({mark(session.shown)})"
    session.sql(insert, (1,))
    assert log.must_wait()
    log.check_fence()
    log.close()
    with pytest.raises(Fenced):
        session.sql(insert, (2,))
    session.abandon()
    assert not session.connected
    assert paid(owners) == []


def test_a_call_that_is_on_its_way_has_the_connection(owners: Owners) -> None:
    """From the moment in which it was decided, though another thread has not begun it yet."""
    log = owners.log(1)
    session, ledger = log._session, owners.ledger()
    put(log, STARTED)
    assert not log.must_wait()
    session.expect_call()
    assert log.must_wait()
    run(owners.sink, "UPDATE oncemq_ledger SET epoch = 9")
    log.check_fence()
    session.answered()  # by a call that began nothing
    with pytest.raises(Fenced):
        log.check_fence()
    session.expect_call()
    session.start_call((1, False, 0))
    session.end_call(keep=False)
    assert session.idle
    ledger.close()


def test_a_call_that_waits_for_its_commit_keeps_snapshots_away(owners: Owners) -> None:
    """Between a call and its commit only that commit may use the connection."""
    log = owners.log(1)
    end = put(log, STARTED)
    handle(log, 0, 1)
    assert log.must_wait()
    with pytest.raises(StorageError, match="open transaction"):
        log.write_snapshot(end, {"ledger": b""}, frozenset())


# --- what the ledger relies on in the broker's log -----------------------------------------------

SEEN = Place(b"m" * 16, 4711)


def relying(number: int, epoch: int, following: int, seen: Place) -> Committed:
    record = commit(number, epoch, following)
    record.seen = seen
    return record


def test_the_row_says_what_the_ledger_relies_on(owners: Owners) -> None:
    """In the same transaction as the commit; a commit that says nothing leaves it as it is."""
    log = owners.log(1)
    put(log, STARTED)
    assert owners.ledger().peek().seen == NO_PLACE
    put(log, relying(1, 1, 5, SEEN))
    assert owners.ledger().peek().seen == SEEN
    put(log, commit(2, 1, 6))
    assert owners.ledger().peek().seen == SEEN
    again = owners.log(2)
    put(again, relying(3, 2, 7, Place(b"n" * 16, 9)))
    assert owners.ledger().peek().seen == Place(b"n" * 16, 9)


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_commit_that_did_not_happen_says_nothing(owners: Owners, step: str) -> None:
    """Offset and place are one row."""
    log = owners.log(1)
    put(log, STARTED)

    def stop(at: str) -> None:
        if at == step:
            raise Stop

    owners.at = stop
    with pytest.raises(Stop):
        put(log, relying(1, 1, 5, SEEN))
    owners.at = lambda _step: None
    facts = owners.ledger().peek()
    assert (facts.next_offset, facts.seen) == (0, NO_PLACE)


def test_tables_without_the_column_are_taken_as_they_are(owners: Owners) -> None:
    """A look leaves them alone; the next owner adds the column, and all records stay."""
    log = owners.log(1)
    put(log, STARTED)
    put(log, commit(1, 1, 5))
    log.close()
    run(owners.sink, "ALTER TABLE oncemq_ledger DROP COLUMN seen")
    facts = owners.ledger().peek()
    assert (facts.next_offset, facts.seen) == (5, NO_PLACE)
    again = owners.log(2)
    assert kinds(again) == [10, 11]
    put(again, relying(2, 2, 6, SEEN))
    facts = owners.ledger().peek()
    assert (facts.next_offset, facts.seen) == (6, SEEN)
