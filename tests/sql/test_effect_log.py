"""Records of effects in a database: whose transaction they join, who may write them, and orders."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from oncemq.codec import records as record_codec
from oncemq.core.consumer.effect_work import EffectOrder
from oncemq.core.consumer.open_effects import AGAIN, ANSWERED, ASK, RETURNED
from oncemq.errors import CorruptLog, Fenced, OnceMQError, SinkLocked
from oncemq.library.sinks.operators import open_office
from oncemq.records import AttemptMarked, EffectEnded, EffectIntended
from oncemq.shells.tables.log import SqlLog
from tests.sql.client import outside, rows, run
from tests.sql.test_log import PLACE, STARTED, Owners, commit, handle, kinds, put

TOPIC_ID = STARTED.topic_id
ID = "g:orders:3:0:x:1"


@pytest.fixture
def owners(sink: str) -> Iterator[Owners]:
    run(sink, "CREATE TABLE paid (n INTEGER)")
    owners = Owners(sink)
    yield owners
    owners.close()


def intent(epoch: int = 1) -> EffectIntended:
    return EffectIntended(epoch, TOPIC_ID, 0, "key", "x", 1, ASK, 5)


def ended(how: str = RETURNED, epoch: int = 1) -> EffectEnded:
    return EffectEnded(epoch, TOPIC_ID, 0, "x", 1, how, ASK, 0, b"", 5)


def lent(log: SqlLog, *, private: bool = False) -> None:
    log._session.start_call((log.generation, private, 0))
    log._session.use().execute("INSERT INTO paid VALUES (1)")


def orders(sink: str) -> list[tuple[str, str]]:
    return [(one, how) for one, how in rows(sink, "SELECT effect_id, how FROM oncemq_effect_order")]


def said(sink: str, order: EffectOrder) -> EffectOrder:
    """What `oncemq effects resolve` does."""
    with open_office(sink) as office:
        return office.give(PLACE, order)


# --- transactions --------------------------------------------------------------------------------


def test_records_of_an_effect_are_transactions_of_their_own(owners: Owners) -> None:
    """What the call had written is rolled back; the connection comes back, with nothing open."""
    log = owners.log(1)
    put(log, STARTED)
    session = log._session
    lent(log)
    session.hand_in()
    put(log, intent())
    session.lend_again()
    assert not session.open
    run(owners.sink, "INSERT INTO paid VALUES (7)")
    session.hand_in()
    put(log, ended())
    session.lend_again()
    session.use().execute("INSERT INTO paid VALUES (2)")
    session.accept()
    session.end_call(keep=True)
    put(log, commit(1, 1, 1))
    assert rows(owners.sink, "SELECT n FROM paid ORDER BY n") == [(2,), (7,)]
    assert kinds(log) == [10, 14, 15, 11]


def test_a_question_without_a_record_gives_the_connection_back(owners: Owners) -> None:
    """Nothing is left open by it."""
    log = owners.log(1)
    put(log, STARTED)
    lent(log)
    log._session.hand_in()
    log._session.lend_again()
    assert not log._session.open
    run(owners.sink, "INSERT INTO paid VALUES (7)")
    assert rows(owners.sink, "SELECT n FROM paid") == [(7,)]
    log._session.end_call(keep=False)


def test_what_is_not_of_the_open_call_waits_for_its_end(owners: Owners) -> None:
    """An order or a mark does not take the transaction of another call, nor ends the log."""
    log = owners.log(1)
    put(log, STARTED, intent())
    handle(log, 0, 4, private=True)
    for record in (ended(ANSWERED), AttemptMarked(1, TOPIC_ID, 0, 0, returned=True)):
        kind, meta, body, crc = record_codec.encode(record)
        log.append(kind, meta, body, crc)
    assert log.must_wait()
    log._session.drop()  # the answer of the call did not count
    assert not log.must_wait()
    log.sync()
    assert rows(owners.sink, "SELECT n FROM paid") == []


@pytest.mark.parametrize("record", [intent(), ended()])
def test_a_replaced_owner_records_nothing_of_an_effect(
    owners: Owners, record: EffectIntended | EffectEnded
) -> None:
    """So it never hears that it may call, and a result of its own is not in the ledger."""
    log = owners.log(1)
    put(log, STARTED, *([intent()] if isinstance(record, EffectEnded) else []))
    log._session.start_call((1, False, 0))
    before = rows(owners.sink, "SELECT count(*) FROM oncemq_record")
    run(owners.sink, "UPDATE oncemq_ledger SET epoch = 2")
    log._session.hand_in()
    with pytest.raises(Fenced):
        put(log, record)
    assert rows(owners.sink, "SELECT count(*) FROM oncemq_record") == before


def test_a_result_waits_for_a_lock_as_long_as_it_takes(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call was made: it is not lost because somebody writes. An intent may give up."""
    if not owners.sink.startswith("sqlite"):
        pytest.skip("a transaction of PostgreSQL begins without a lock")
    monkeypatch.setattr("oncemq.library.sinks.sqlite.BUSY_MS", 20)
    log = owners.log(1)
    put(log, STARTED, intent())
    log._session.start_call((1, False, 0))
    with outside(owners.sink) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SinkLocked):
            log._session.hand_in()
        thread = threading.Thread(target=log._session.hand_in, kwargs={"patient": True})
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        other.execute("COMMIT")
        thread.join(10)
    put(log, ended())
    assert kinds(log) == [10, 14, 15]


def test_a_patient_one_gives_up_when_nobody_can_commit(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer has ended: its successor takes the effect for unknown."""
    if not owners.sink.startswith("sqlite"):
        pytest.skip("a transaction of PostgreSQL begins without a lock")
    monkeypatch.setattr("oncemq.library.sinks.sqlite.BUSY_MS", 20)
    log = owners.log(1)
    put(log, STARTED, intent())
    log._session.start_call((1, False, 0))
    found: list[OnceMQError] = []

    def hand_in() -> None:
        try:
            log._session.hand_in(patient=True)
        except OnceMQError as error:
            found.append(error)

    with outside(owners.sink) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=hand_in)
        thread.start()
        log.close()
        thread.join(10)
    assert not thread.is_alive()
    assert isinstance(found[0], Fenced | SinkLocked)
    log._session.abandon()


# --- orders --------------------------------------------------------------------------------------


def test_the_first_word_about_a_call_stands(owners: Owners) -> None:
    """Saying it again changes nothing, and neither does the opposite."""
    put(owners.log(1), STARTED, intent())
    first = EffectOrder(ID, ANSWERED, 2, b"r")
    assert said(owners.sink, first) == first
    assert said(owners.sink, first) == first
    assert said(owners.sink, EffectOrder(ID, AGAIN)) == first
    assert said(owners.sink, EffectOrder("other", AGAIN)) == EffectOrder("other", AGAIN)


def test_an_order_is_taken_in_the_transaction_of_its_record(owners: Owners) -> None:
    """Both or neither, whatever dies in between."""
    ledger = owners.ledger()
    ledger.peek()
    log = ledger.open(1)
    put(log, STARTED, intent())
    order = EffectOrder(ID, AGAIN)
    said(owners.sink, order)
    said(owners.sink, EffectOrder("other", AGAIN))
    assert ledger.find_orders([ID]) == [order]
    assert ledger.find_orders(["what"]) == []
    log._session.start_call((1, False, 0))
    assert ledger.find_orders([ID]) == [], "the handler has the connection"
    log._session.end_call(keep=False)
    put(log, ended(AGAIN))
    assert ledger.find_orders([ID]) == []
    assert orders(owners.sink) == [("other", AGAIN)]
    ledger.keep_orders(["other"])
    assert orders(owners.sink) == [("other", AGAIN)]
    ledger.keep_orders([ID])
    assert orders(owners.sink) == []


def test_an_order_of_a_private_topic_is_taken_by_its_name(owners: Owners) -> None:
    """Replays lie in a topic of the group's own."""
    log = owners.log(1)
    put(log, STARTED)
    record = EffectIntended(1, b"p" * 16, 0, "key", "x", 1, ASK, 5)
    put(log, record)
    name = "g:orders@g:3:0:x:1"
    said(owners.sink, EffectOrder(name, AGAIN))
    put(log, EffectEnded(1, b"p" * 16, 0, "x", 1, AGAIN, ASK, 0, b"", 5))
    assert orders(owners.sink) == []


def test_a_database_from_before_there_were_effects(owners: Owners) -> None:
    """The owner makes the table; until then there are no orders."""
    owners.log(1).close()
    run(owners.sink, "DROP TABLE oncemq_effect_order")
    with open_office(owners.sink) as office:
        assert office.orders(PLACE) == []
    owners.log(2)
    assert orders(owners.sink) == []


def test_an_order_that_makes_no_sense_is_told(owners: Owners) -> None:
    """It is never taken for a word."""
    ledger = owners.ledger()
    ledger.peek()
    put(ledger.open(1), STARTED, intent())
    said(owners.sink, EffectOrder(ID, AGAIN))
    run(owners.sink, "UPDATE oncemq_effect_order SET how = 'perhaps'")
    with pytest.raises(CorruptLog, match="perhaps"):
        ledger.find_orders([ID])
