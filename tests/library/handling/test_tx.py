"""What a handler does through `tx`: all of it or nothing, within limits, cheaply."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from oncemq.codec import batch as batch_codec
from oncemq.codec.values import decode_value
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.window import cut
from oncemq.core.consumer.work import HandlerDone, RunHandler
from oncemq.errors import (
    InvalidName,
    OnceMQError,
    StateTooLarge,
    TooLarge,
    UnknownTopic,
    ValueNotEncodable,
)
from oncemq.library.handling.call import Consumer, current
from oncemq.library.handling.carry import Carry
from oncemq.library.handling.make_call import TopicFinders, make_call
from oncemq.library.handling.state import StateView, decode_state, encode_state
from oncemq.library.handling.threads import HandlerThreads
from oncemq.library.handling.tx import Tx
from oncemq.library.handling.unit_of_work import build_outputs
from oncemq.limits import BATCH_MESSAGES_MAX, LIMITS, MESSAGE_BYTES_MAX, Limits
from oncemq.records import BatchStored

PARTITION = 1


def ledger_with(limits: Limits = LIMITS, **state: Any) -> Ledger:
    ledger = Ledger(limits)
    ledger._change_state({key: encode_state(value) for key, value in state.items()})
    return ledger


def call(
    handler: Any, values: list[Any], ledger: Ledger | None = None, **columns: Any
) -> HandlerDone:
    from oncemq.codec.values import encode_value

    encoded = [encode_value(value) for value in values]
    batch = batch_codec.build(
        [data for _, data in encoded], encodings=[kind for kind, _ in encoded], **columns
    )
    stored = BatchStored(
        0, PARTITION, 0, batch.count, 77, "p", 1, -1 if batch.ids else 40, b"", b"",
        batch.raw, batch.crc, batch.count, batch,
    )  # fmt: skip
    window = cut([stored], 0, batch.count)
    assert window is not None
    run = RunHandler(3, window, 1, ledger or Ledger())
    topics = {"invoices": 4, "one": 1}

    def find_topic(topic: str) -> int:
        if topic not in topics:
            raise UnknownTopic(topic)
        return topics[topic]

    consumer = Consumer("orders", "billing", handler, 5)
    call = make_call(consumer, run, TopicFinders(find_topic), Carry(), HandlerThreads())
    return call.carry_out(("billing", "orders", PARTITION))


def state_of(done: HandlerDone) -> dict[str, Any]:
    return {k: None if v is None else decode_state(v) for k, v in done.state.items()}


def sent(done: HandlerDone) -> list[tuple[str, int, Any]]:
    found = []
    for output in done.outputs:
        batch = batch_codec.parse(output.raw, output.crc, check=True)
        assert batch.count == output.count
        assert output.first_sequence == -1
        for index in range(batch.count):
            encoding, _, data = batch_codec.split_body(batch.body(index))
            found.append((output.topic, output.partition, decode_value(encoding, data)))
    return found


# --- messages ------------------------------------------------------------------------------------


def test_fields_of_a_message() -> None:
    """Every field tells what was sent and stored; unknown ones are None or empty."""
    seen = []

    def handler(message, tx):
        seen.append((message.id, message.key, message.value, message.topic, message.partition))
        seen.append((message.offset, message.attempt, message.appended_at_ms))
        seen.append((message.headers, message.created_at_ms, tx.key))

    call(handler, [{"a": [1, None]}])
    assert seen == [
        ("orders/p:1:40", None, {"a": [1, None]}, "orders", 1),
        (0, 1, 77),
        ({}, None, "billing@orders/p:1:40"),
    ]
    seen.clear()
    call(
        handler,
        ["text", b"\xff"],
        ids=[b"sid", b"b\x00\x01"],
        keys=[b"k", b"\xff"],
        headers=[b"\x81\xa1h\xc4\x01v", b""],
        created_at_ms=[5, 6],
    )
    assert seen[::3] == [("id", "k", "text", "orders", 1), (b"\0\1", b"\xff", b"\xff", "orders", 1)]
    assert seen[2::3] == [
        ({"h": b"v"}, 5, "billing@orders:s:id"),
        ({}, 6, "billing@orders:b:0001"),
    ]


def test_idempotency_keys_tell_text_and_bytes_apart() -> None:
    """Two ids never share a key, whatever they are made of."""
    keys = []
    call(lambda m, tx: keys.append(tx.key), [1] * 4, ids=[b"sa", b"ba", b"s61", b"sb:61"])
    assert len(set(keys)) == 4


# --- state ---------------------------------------------------------------------------------------


def test_append_then_raise_leaves_no_trace() -> None:
    """A value changed in place by a handler that raised is what it was, for all later messages."""
    lengths = []

    def handler(message, tx):
        log = tx.state["log"]
        lengths.append(len(log))
        log.append(message.value)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.send("one", message.value)
        if message.value == 2:
            raise RuntimeError("no")

    ledger = ledger_with(log=[])
    done = call(handler, [0, 1, 2, 3], ledger)
    assert done.handled == 2
    assert state_of(done) == {"log": [0, 1], "n": 2}
    assert sent(done) == [("one", 0, 0), ("one", 0, 1)]
    assert lengths == [0, 1, 2]
    assert decode_state(ledger.state["log"]) == []
    assert done.failure is not None
    assert isinstance(done.failure.error, RuntimeError)
    assert done.failure.message_id == "orders/p:1:42"


def test_reading_changes_nothing() -> None:
    """What was only looked at, or set to what it was, is not committed."""

    def handler(message, tx):
        assert tx.state["list"] == [1]
        assert "missing" not in tx.state
        assert tx.state.get("missing", 5) == 5
        tx.state["n"] = 7
        tx.state["copy"] = {"a": 1}

    ledger = ledger_with(list=[1], n=7, copy={"a": 1})
    assert call(handler, [1, 2], ledger).state == {}


def test_one_object_within_a_message_another_in_the_next() -> None:
    """`state[k]` is the same object for one handler call; the next call gets a copy of its own."""
    objects = []

    def handler(message, tx):
        first, second = tx.state["d"], tx.state["d"]
        assert first is second
        first["n"] = message.value
        objects.append(first)

    done = call(handler, [1, 2], ledger_with(d={}))
    assert objects[0] is not objects[1]
    assert objects[0] == {"n": 1}
    assert state_of(done) == {"d": {"n": 2}}


@pytest.mark.parametrize("value", [{1: 2}, object(), dt.datetime(2020, 1, 1), 2**64, "\ud800"])  # noqa: DTZ001
def test_what_cannot_be_kept_is_refused_where_it_is_set(value: Any) -> None:
    """ValueNotEncodable at the assignment, with the path; also when it got in later."""
    where = []

    def assign(message, tx):
        try:
            tx.state["k"] = value
        except ValueNotEncodable:
            where.append("assignment")
            raise

    done = call(assign, [1])
    assert where == ["assignment"]
    assert done.handled == 0

    def later(message, tx):
        tx.state["k"] = found = []
        found.append(value)

    done = call(later, [1])
    assert done.failure is not None
    assert isinstance(done.failure.error, ValueNotEncodable)
    assert done.state == {}


def test_a_refused_value_is_named_by_its_path_in_the_state() -> None:
    """The path begins with the key of the state; a time that could not be read is refused."""
    far = dt.datetime.max.replace(tzinfo=dt.timezone(-dt.timedelta(hours=5)))

    def assign(message, tx):
        tx.state["until"] = {"at": [far]}

    done = call(assign, [1])
    assert done.failure is not None
    assert "tx.state['until']['at'][0]: 9999-12-31" in str(done.failure.error)


def test_limits_of_the_state() -> None:
    """Above its limit the state refuses to grow, the message fails, and shrinking goes on."""
    limits = Limits(state_bytes_max=1000)

    def grow(message, tx):
        tx.state[f"k{message.value}"] = "x" * 100

    done = call(grow, list(range(20)), Ledger(limits))
    assert done.handled == 9
    assert isinstance(done.failure.error, StateTooLarge)
    assert len(done.state) == 9
    ledger = ledger_with(limits, **{f"k{n}": "x" * 100 for n in range(9)})

    def swap(message, tx):
        del tx.state[f"k{message.value}"]
        tx.state[f"new{message.value}"] = "y" * 100

    assert call(swap, list(range(9)), ledger).handled == 9
    for key, error in ((5, TypeError), ("k" * 1025, StateTooLarge), ("\ud800", TypeError)):
        done = call(lambda m, tx, key=key: tx.state.__setitem__(key, 1), [1])
        assert isinstance(done.failure.error, error)


class StateMachine(RuleBasedStateMachine):
    """`tx.state` against a plain dict that is copied before each message."""

    keys = st.sampled_from(["a", "b", "é"])
    values = st.one_of(
        st.integers(-(2**63), 2**64 - 1),
        st.none(),
        st.booleans(),
        st.floats(allow_nan=False),
        st.text("xyz", max_size=3),
        st.binary(max_size=3),
        st.lists(st.integers(0, 3), max_size=2),
        st.dictionaries(st.sampled_from(["p", "q"]), st.integers(0, 3)),
    )

    @initialize(start=st.dictionaries(keys, values))
    def begin(self, start: dict[str, Any]) -> None:
        import copy

        self.copy = copy.deepcopy
        self.ledger = ledger_with(**start)
        self.view = StateView(self.ledger, LIMITS)
        self.kept: dict[str, Any] = self.copy(start)
        self.now = self.copy(start)

    @rule(key=keys, value=values)
    def put(self, key: str, value: Any) -> None:
        self.view[key] = self.copy(value)
        self.now[key] = self.copy(value)

    @rule(key=keys)
    def change(self, key: str) -> None:
        for mapping in (self.view, self.now):
            found = mapping.get(key)
            if isinstance(found, list):
                found.append(9)
            elif isinstance(found, dict):
                found["z"] = found.get("z", 0) + 1

    @rule(key=keys)
    def remove(self, key: str) -> None:
        assert self.view.pop(key, None) == self.now.pop(key, None)

    @rule(key=keys)
    def count(self, key: str) -> None:
        if type(self.now.get(key, 0)) is int and self.now.get(key, 0) < 2**63:
            self.view[key] = self.view.get(key, 0) + 1
            self.now[key] = self.now.get(key, 0) + 1

    @rule()
    def accept(self) -> None:
        if self.view.touched:
            self.view.accept()
        self.kept = self.copy(self.now)

    @rule()
    def reject(self) -> None:
        self.view.reject()
        self.now = self.copy(self.kept)

    @rule()
    def commit(self) -> None:
        """The end of a batch: what is not accepted yet was the failing message."""
        self.view.reject()
        self.ledger._change_state(self.view.changes())
        assert {k: decode_state(v) for k, v in self.ledger.state.items()} == self.kept
        self.view = StateView(self.ledger, LIMITS)
        self.now = self.copy(self.kept)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "view"):
            assert dict(self.view) == self.now
            assert len(self.view) == len(self.now)


StateMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestStateMachine = StateMachine.TestCase


# --- sending -------------------------------------------------------------------------------------


def test_partitions_follow_the_key_or_the_input() -> None:
    """With a key its crc32, without the input's partition, both modulo the topic's count."""
    import zlib

    def handler(message, tx):
        tx.send("invoices", "keyed", key="alice")
        tx.send("invoices", "plain")
        tx.send("one", "single", key="alice")

    found = {(topic, value): partition for topic, partition, value in sent(call(handler, [1]))}
    assert found == {
        ("invoices", "keyed"): zlib.crc32(b"alice") % 4,
        ("invoices", "plain"): PARTITION % 4,
        ("one", "single"): 0,
    }


def test_traceparent_is_copied_unless_given() -> None:
    """Outputs carry on the trace of their input."""
    import msgpack

    from oncemq.codec.values import decode_headers

    def handler(message, tx):
        tx.send("one", 1)
        tx.send("one", 2, headers={"traceparent": b"mine"})
        tx.send("one", 3, headers={"other": b"x"})

    done = call(handler, [1], headers=[msgpack.packb({"traceparent": b"theirs", "h": b"1"})])
    (output,) = done.outputs
    batch = batch_codec.parse(output.raw, output.crc, check=True)
    assert [decode_headers(one) for one in batch.headers] == [
        {"traceparent": b"theirs"},
        {"traceparent": b"mine"},
        {"traceparent": b"theirs", "other": b"x"},
    ]


def test_what_cannot_be_sent_fails_inside_the_handler() -> None:
    """Values, sizes, names and topics are judged at send, before anything is committed."""
    for arguments, error in (
        (("one", object()), ValueNotEncodable),
        (("one", b"x" * (MESSAGE_BYTES_MAX + 1)), TooLarge),
        (("one", 1, "k" * 2000), TooLarge),
        (("nowhere", 1), UnknownTopic),
    ):
        done = call(lambda m, tx, arguments=arguments: tx.send(*arguments), [1])
        assert isinstance(done.failure.error, error)
        assert done.outputs == []


def test_outputs_are_cut_into_batches_within_all_limits() -> None:
    """Many or large messages become several batches, in order for each target."""
    many = [("t", n % 2, 0, b"%d" % n, None, b"") for n in range(2 * BATCH_MESSAGES_MAX + 10)]
    outputs = build_outputs(many)
    for partition in (0, 1):
        batches = [o for o in outputs if o.partition == partition]
        values = []
        for output in batches:
            batch = batch_codec.parse(output.raw, output.crc, check=True)
            values += [batch_codec.split_body(batch.body(i))[2] for i in range(batch.count)]
        assert values == [
            b"%d" % n for n in range(2 * BATCH_MESSAGES_MAX + 10) if n % 2 == partition
        ]
    large = build_outputs([("t", 0, 0, bytes(MESSAGE_BYTES_MAX - 3), b"k", b"")] * 9)
    assert sum(output.count for output in large) == 9
    assert len(large) == 3


def test_a_commit_is_cut_before_it_grows_too_large() -> None:
    """A batch whose effects reach `commit_bytes` is committed in parts."""
    size = LIMITS.commit_bytes // 4
    done = call(lambda m, tx: tx.send("one", bytes(size - 3)), list(range(10)))
    assert done.handled == 4
    assert done.size > LIMITS.commit_bytes
    done = call(lambda m, tx: tx.state.__setitem__(f"k{m.value}", bytes(size)), list(range(10)))
    assert done.handled == 4


def test_a_tx_is_over_when_its_handler_has_returned() -> None:
    """A Tx that was kept refuses to send; nobody would commit it."""
    kept = []
    call(lambda m, tx: kept.append(tx), [1])
    with pytest.raises(OnceMQError, match="this Tx is over"):
        kept[0].send("one", 1)
    with pytest.raises(OnceMQError, match="this Tx is over"):
        print(kept[0].key)
    assert isinstance(kept[0], Tx)


def test_names_are_checked_by_who_finds_topics() -> None:
    """A topic's name is refused before anybody is asked for it."""
    from oncemq.library.consuming.topic_book import TopicBook

    with pytest.raises(InvalidName):
        TopicBook().check_new("a/b")


def test_the_context_names_the_message_while_its_handler_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A log line made inside a handler gets topic, offset, id and attempt; one outside nothing."""
    import logging

    from oncemq.library.handling.call import MessageContext

    caplog.handler.addFilter(MessageContext())
    logger = logging.getLogger("users.shop")
    with caplog.at_level(logging.INFO):
        call(lambda m, tx: logger.info("billed"), [1, 2])
        logger.info("outside")
    assert [record.oncemq for record in caplog.records] == [
        "topic=orders partition=1 offset=0 id=orders/p:1:40 attempt=1",
        "topic=orders partition=1 offset=1 id=orders/p:1:41 attempt=1",
        "",
    ]
    assert current.get() is None


def test_an_error_whose_text_cannot_be_made_is_told_by_its_name() -> None:
    """A user's exception may be broken or huge; what is told of it is bounded and never raises."""

    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    def broken(message, tx):
        raise BrokenError

    def huge(message, tx):
        raise ValueError("x" * 100_000)

    assert call(broken, [1]).failure.text == "BrokenError: <BrokenError without text>"
    assert len(call(huge, [1]).failure.text) < 1100
