"""Handlers of other shapes: lists, async ones, typed payloads."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import threading
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from oncemq import App, Harness, Message, Tx
from oncemq.errors import HandlerFailed, NotAHandler, NotSupported, OnceMQError, PayloadInvalid
from oncemq.library.messages import message as message_module


@dataclasses.dataclass
class Line:
    cents: int


@dataclasses.dataclass
class Order:
    customer: str
    lines: list[Line]


class StructOrder(msgspec.Struct):
    customer: str
    lines: list[Line]


class ModelLine(pydantic.BaseModel):
    cents: int


class ModelOrder(pydantic.BaseModel):
    customer: str
    lines: list[ModelLine]


class DictOrder(TypedDict):
    customer: str


def run(handler: Any, values: list[Any], **options: Any) -> Harness:
    """Send values to topic `t`, handle them, return the harness."""
    harness, drained = start(handler, values, **options)
    drained()
    return harness


def start(handler: Any, values: list[Any], **options: Any) -> tuple[Harness, Callable[[], None]]:
    app = App()
    app.consumer("t", group="g", **{"park": False, **options})(handler)
    harness = Harness(app)
    for number, value in enumerate(values):
        harness.send("t", value, id=f"m{number}")
    return harness, harness.drain


# --- lists ---------------------------------------------------------------------------------------


def test_a_list_holds_at_most_batch_size_messages_in_order() -> None:
    """`batch=True` hands over lists, bounded; all of it is one commit with the offset."""
    lists = []

    def handler(messages: list[Message], tx: Tx) -> None:
        lists.append([message.offset for message in messages])
        tx.state["n"] = tx.state.get("n", 0) + len(messages)
        tx.send("out", [message.value for message in messages])

    harness = run(handler, list(range(7)), batch=True, batch_size=3)
    assert [offset for one in lists for offset in one] == list(range(7))
    assert max(map(len, lists)) <= 3
    assert harness.state("g") == {"n": 7}
    assert [v for m in harness.sent("out") for v in m.value] == list(range(7))


def wide(values: int, handler: Any, *, attempt: int = 1, cut: bool = False, **options: Any) -> Any:
    """Hand one stored batch of numbers to a handler; return the call's answer and its carry."""
    return Wide(handler, values, **options).call(attempt=attempt, cut=cut)


class Wide:
    """One window of numbers, called as often as a test likes."""

    def __init__(self, handler: Any, values: int, **options: Any) -> None:
        from oncemq.codec import batch as batch_codec
        from oncemq.codec.values import encode_value
        from oncemq.core.consumer.ledger import Ledger
        from oncemq.core.consumer.window import cut
        from oncemq.library.handling.carry import Carry
        from oncemq.library.handling.threads import HandlerThreads
        from oncemq.records import BatchStored

        app = App()
        app.consumer("t", group="g", **options)(handler)
        (self.consumer,) = app.consumers
        encoded = [encode_value(value) for value in range(values)]
        batch = batch_codec.build([data for _, data in encoded], encodings=encoded[0][0])
        stored = BatchStored(
            0, 0, 0, values, 7, "p", 1, 0, b"", b"", batch.raw, batch.crc, values, batch
        )
        window = cut([stored], 0, values)
        assert window is not None
        self.window = window
        self.ledger = Ledger()
        self.carry = Carry()
        self.threads = HandlerThreads()

    def call(self, *, attempt: int = 1, cut: bool = False) -> Any:
        from oncemq.core.consumer.work import RunHandler
        from oncemq.library.handling.make_call import TopicFinders, make_call

        run = RunHandler(1, self.window, attempt, self.ledger)
        call = make_call(self.consumer, run, TopicFinders(lambda _: 1), self.carry, self.threads)
        if cut:
            call.cut()
        done = call.carry_out(("g", "t", 0))
        _, self.window = self.window.split(done.handled)
        self.ledger._change_state(done.state)
        return done


def test_a_bad_message_does_not_hold_up_its_neighbours(caplog: Any) -> None:
    """A list that raises is undone whole and handed over message by message; the log says why."""
    calls = []

    def handler(messages: list[Message], tx: Tx) -> None:
        calls.append([message.value for message in messages])
        for message in messages:
            tx.state[f"{message.value}"] = len(messages)
            tx.send("out", message.value)
            if message.value == 3:
                raise LookupError("three")

    window = Wide(handler, 6, batch=True)
    done = window.call()
    assert calls == [[0, 1, 2, 3, 4, 5], [0], [1], [2], [3]]
    assert (done.handled, sorted(done.state)) == (3, ["0", "1", "2"])
    assert [output.count for output in done.outputs] == [3]
    assert isinstance(done.failure.error, LookupError)
    assert "p:0:3" in done.failure.message_id
    assert "LookupError for 6 messages of t/0 from offset 0" in caplog.text
    # The ordinary rule of retries has the failed one alone in front; the others may go on after it.
    calls.clear()
    assert window.call(attempt=2).handled == 0
    assert calls == [[3]]


def test_what_was_in_a_failed_list_stays_alone_after_a_cut() -> None:
    """A commit in the middle of the single calls does not hand over the failed list once more."""
    calls = []

    def handler(messages: list[Message], tx: Tx) -> None:
        calls.append(len(messages))
        if len(messages) > 1:
            raise LookupError

    window = Wide(handler, 5, batch=True, batch_size=4)
    for _ in range(5):
        assert window.call(cut=True).handled == 1
    assert calls == [4, 1, 1, 1, 1, 1]


def test_a_list_ends_at_the_cut() -> None:
    """A commit that is due comes after the list at hand."""
    handled = []

    def handler(messages: list[Message], tx: Tx) -> None:
        handled.append(len(messages))

    assert wide(10, handler, batch=True, batch_size=4, cut=True).handled == 4
    assert handled == [4]


def test_a_failing_message_of_a_list_stops_the_consumer_after_its_retries() -> None:
    """Neighbours before it are committed, those behind it wait, the error names the one."""
    broken = [True]
    alone = []

    def handler(messages: list[Message], tx: Tx) -> None:
        if len(messages) == 1:
            alone.append((messages[0].value, messages[0].attempt))
        tx.state["n"] = tx.state.get("n", 0) + len(messages)
        if broken[0] and any(message.value == 2 for message in messages):
            raise LookupError("two")

    harness, drain = start(handler, list(range(5)), batch=True, retries=2)
    with pytest.raises(HandlerFailed, match="offset 2"):
        drain()
    assert [attempt for value, attempt in alone if value == 2][-3:] == [1, 2, 3]
    broken[0] = False
    drain()
    assert harness.state("g") == {"n": 5}


def test_keys_of_a_list_are_asked_for_by_message() -> None:
    """`tx.key` has no meaning for many messages and says so; `tx.key_of` gives each its own."""
    keys = []

    def handler(messages: list[Message], tx: Tx) -> None:
        keys.extend(tx.key_of(message) for message in messages)
        with pytest.raises(OnceMQError, match="key_of"):
            print(tx.key)

    run(handler, [1, 2], batch=True)
    assert keys == ["g@t:s:m0", "g@t:s:m1"]
    singles = []
    run(lambda m, tx: singles.append((tx.key, tx.key_of(m))), [1])
    assert singles == [("g@t:s:m0", "g@t:s:m0")]


def test_a_list_and_its_annotation_must_agree() -> None:
    """batch=True decides; an annotation that says otherwise is a TypeError at decoration."""

    def of_list(messages: list[Message], tx: Tx) -> None: ...

    def of_one(message: Message, tx: Tx) -> None: ...

    app = App()
    with pytest.raises(NotAHandler, match="add batch=True"):
        app.consumer("t", group="g")(of_list)
    with pytest.raises(NotAHandler, match="takes one message"):
        app.consumer("t", group="g", batch=True)(of_one)
    with pytest.raises(NotAHandler, match="batch_size"):
        app.consumer("t", group="g", batch_size=5)(of_one)
    with pytest.raises(NotAHandler, match="True or False"):
        app.consumer("t", group="g", batch=10)(of_list)  # type: ignore[arg-type]
    for size in (0, True, 1.5, 1 << 20):
        with pytest.raises(ValueError, match="batch_size"):
            app.consumer("t", group="g", batch=True, batch_size=size)(of_list)  # type: ignore[arg-type]
    app.consumer("t", group="g", batch=True)(lambda messages, tx: None)
    assert [one.shape.batch_size for one in app.consumers] == [1000]


# --- async ---------------------------------------------------------------------------------------


def test_async_handlers_run_in_order_in_one_loop() -> None:
    """One after the other, in the loop of the thread that drives them; their effects are as any."""
    seen = []
    loops = set()

    async def handler(message: Message, tx: Tx) -> None:
        loops.add((asyncio.get_running_loop(), threading.current_thread()))
        seen.append(message.value)
        await asyncio.sleep(0)
        seen.append(message.value)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.send("out", message.value)

    harness, drain = start(handler, [0, 1, 2])
    drain()
    harness.send("t", 3)
    drain()
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(loops) == 1
    assert harness.state("g") == {"n": 4}
    assert [m.value for m in harness.sent("out")] == [0, 1, 2, 3]


def test_a_failed_async_handler_has_done_nothing() -> None:
    """It is tried again by the same rules, and its traceback begins in the user's file."""
    attempts = []

    async def handler(message: Message, tx: Tx) -> None:
        attempts.append(message.attempt)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.send("out", message.value)
        await asyncio.sleep(0)
        if message.value == 1 and message.attempt < 3:
            raise LookupError("not yet")

    harness = run(handler, [0, 1, 2], retries=3)
    assert attempts == [1, 1, 2, 3, 1]
    assert harness.state("g") == {"n": 3}
    assert [m.value for m in harness.sent("out")] == [0, 1, 2]
    with pytest.raises(HandlerFailed) as caught:
        run(handler, [0, 1], retries=1)
    (note,) = caught.value.__notes__
    assert note.splitlines()[1].endswith("in handler")
    assert "test_shapes.py" in note.splitlines()[1]


def test_a_cancellation_inside_of_a_handler_is_an_error_like_any_other() -> None:
    """A cancelled inner task does not end the consumer as if somebody had stopped it."""

    async def handler(message: Message, tx: Tx) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    with pytest.raises(HandlerFailed, match="cancelled its own task"):
        run(handler, [0], retries=0)


def test_a_harness_inside_of_a_loop_says_what_to_do() -> None:
    """Two loops cannot run in one thread: a clear refusal, and no coroutine that nobody awaits."""

    async def handler(message: Message, tx: Tx) -> None: ...

    async def scenario() -> None:
        with pytest.raises(NotSupported, match="plain test function"):
            run(handler, [1])

    asyncio.run(scenario())


def test_a_harness_may_be_forgotten_inside_of_a_loop() -> None:
    """Its own loop is closed wherever the last reference goes, without a word."""

    async def handler(message: Message, tx: Tx) -> None:
        await asyncio.sleep(0)

    harnesses = [run(handler, [1])]

    async def scenario() -> int:
        harnesses.clear()
        gc.collect()  # what a finalizer raises here fails the test: warnings are errors
        return len(harnesses)

    assert asyncio.run(scenario()) == 0


def test_async_lists() -> None:
    """batch=True and async go together, also when a list is split."""

    async def handler(messages: list[Message], tx: Tx) -> None:
        await asyncio.sleep(0)
        tx.state["n"] = tx.state.get("n", 0) + len(messages)
        if len(messages) > 1:
            raise LookupError

    logging.getLogger("oncemq").setLevel(logging.CRITICAL)
    try:
        harness = run(handler, list(range(5)), batch=True)
    finally:
        logging.getLogger("oncemq").setLevel(logging.NOTSET)
    assert harness.state("g") == {"n": 5}


# --- typed payloads ------------------------------------------------------------------------------

GOOD = {"customer": "alice", "lines": [{"cents": 5}, {"cents": 7}]}
BAD = {"customer": "bob", "lines": [{"cents": 5}, {"cents": "7x"}]}


@pytest.mark.parametrize("kind", [Order, StructOrder, ModelOrder])
@pytest.mark.parametrize("batch", [False, True])
def test_a_payload_is_made_an_object_once(kind: Any, batch: bool) -> None:
    """Dataclass, msgspec.Struct and pydantic model: `value` is one, the same object every time."""
    seen = []

    def handler(given: Any, tx: Tx) -> None:
        for message in given if batch else [given]:
            assert message.value is message.value
            seen.append((type(message.value), sum(line.cents for line in message.value.lines)))

    run(handler, [GOOD, GOOD], typed=kind, batch=batch)
    assert seen == [(kind, 12)] * 2


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Order, "Expected `int`, got `str`"),
        (StructOrder, "Expected `int`, got `str`"),
        (ModelOrder, "unable to parse string"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"batch": True}, {"state_by": "key"}])
def test_a_payload_that_does_not_fit_is_not_tried_again(
    kind: Any, complaint: str, options: dict[str, Any]
) -> None:
    """PayloadInvalid names topic, id and field; the handler is never called with it."""
    called = []

    def handler(given: Any, tx: Tx) -> None:
        called.extend(m.id for m in (given if options.get("batch") else [given]))

    _, drain = start(handler, [GOOD, GOOD, BAD, GOOD], typed=kind, **options)
    with pytest.raises(HandlerFailed, match="attempt 1") as caught:
        drain()
    error = caught.value.__cause__
    assert isinstance(error, PayloadInvalid)
    assert not error.retriable
    assert error.path in {"$.lines[1].cents", "$.lines[...].cents"}
    assert complaint in str(error)
    assert f"message m2 of t/0 at offset 2 is no {kind.__qualname__}" in str(error)
    assert called == ["m0", "m1"]
    called.clear()
    with pytest.raises(HandlerFailed, match="offset 2"):
        drain()
    assert called == []


@pytest.mark.parametrize("options", [{}, {"batch": True}, {"state_by": "key", "concurrency": 2}])
def test_a_payload_that_does_not_fit_is_parked_at_once(options: dict[str, Any]) -> None:
    """Its neighbours are handled, and the dead letter holds what was sent and why it is there."""
    called = []

    def handler(given: Any, tx: Tx) -> None:
        called.extend(m.id for m in (given if options.get("batch") else [given]))

    harness = run(handler, [GOOD, BAD, GOOD], typed=Order, park=True, **options)
    assert called == ["m0", "m2"]
    (letter,) = harness.sent("t.dead")
    assert letter.value == BAD
    assert letter.headers["oncemq-kind"] == b"rejected"
    assert letter.headers["oncemq-attempts"] == b"1"
    assert b"is no Order" in letter.headers["oncemq-error"]
    harness.assert_exactly_once()
    harness.close()


def annotated(message: Message[Order], tx: Tx) -> None: ...


def annotated_list(messages: list[Message[StructOrder]], tx: Tx) -> None: ...


async def annotated_async(message: message_module.Message[ModelOrder], tx: Tx) -> None: ...


def not_annotated(message: Message, tx: Tx) -> None: ...


def of_anything(message: Message[Any], tx: Tx) -> None: ...


@pytest.mark.parametrize(
    ("function", "payload", "options"),
    [
        (annotated, "Order", {}),
        (annotated_list, "StructOrder", {"batch": True}),
        (annotated_async, "ModelOrder", {}),
        (not_annotated, "", {}),
        (of_anything, "", {}),
        (annotated, "StructOrder", {"typed": StructOrder}),
    ],
)
def test_the_annotation_names_the_type(
    function: Any, payload: str, options: dict[str, Any]
) -> None:
    """Message[Order] and list[Message[Order]] work, as text too; `typed=` goes before them."""
    app = App()
    app.consumer("t", group="g", **options)(function)
    (consumer,) = app.consumers
    assert consumer.shape.payload == payload
    assert (consumer.shape.decode is None) == (payload == "")


def test_a_type_that_is_not_known_at_the_top_is_refused_with_the_way_out() -> None:
    """A handler whose Message[...] cannot be found out must not run untyped."""

    class Local: ...

    def handler(message: Message[Local], tx: Tx) -> None: ...

    with pytest.raises(NotAHandler, match="typed=") as caught:
        App().consumer("t", group="g")(handler)
    assert "Local" in str(caught.value)


def test_other_types_and_encodings() -> None:
    """Whatever msgspec can make: maps, texts, bytes; a text is no number, and damage is told."""
    seen = []
    run(lambda m, tx: seen.append(m.value), [{"customer": "x", "more": 1}], typed=DictOrder)
    run(lambda m, tx: seen.append(m.value), ["a"], typed=str)
    run(lambda m, tx: seen.append(m.value), [b"\xff"], typed=bytes)
    assert seen == [{"customer": "x"}, "a", b"\xff"]
    for value, kind in (("5", int), (5, str), ([], Order), (b"\xff", Order), ("x", ModelOrder)):
        with pytest.raises(HandlerFailed, match="PayloadInvalid"):
            run(lambda m, tx: None, [value], typed=kind)


def test_a_type_that_nobody_can_make_is_refused_at_decoration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where msgspec is not installed: the error says what to install."""
    with pytest.raises(NotSupported, match="cannot be of type"):
        App().consumer("t", group="g", typed=Order | StructOrder)(lambda m, tx: None)
    monkeypatch.setitem(__import__("sys").modules, "msgspec", None)
    with pytest.raises(NotSupported, match=r"oncemq\[typed\]"):
        App().consumer("t", group="g", typed=Order)(lambda m, tx: None)
    App().consumer("t", group="g", typed=ModelOrder)(lambda m, tx: None)
