"""`tx.effect` in a handler: what is called, what is returned, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncemq import (
    App,
    EffectMisused,
    EffectNotDone,
    EffectNotRecorded,
    EffectsNotSupported,
    EffectUnknown,
    HandlerFailed,
    Harness,
    InvalidName,
    Reject,
    TooLarge,
)
from oncemq.core.consumer.effect_work import CALL, EffectAnswer, EffectTold, EffectWanted
from oncemq.errors import NoSuchEffect
from oncemq.ids import dead_topic, private_topic
from oncemq.library.effects.effects import Effects
from oncemq.library.operating.dead_letters import letter_at
from oncemq.library.testkit.actors import create_topic, stored_batches
from oncemq.limits import (
    EFFECT_RESULT_BYTES_MAX,
    EFFECT_RESULTS_BYTES_MAX,
    EFFECTS_MAX,
    HEADERS_BYTES_MAX,
)


class Bank:
    """The world outside: it counts calls by key, and may fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.slow_s = 0.0  # what an async call waits for its answer
        self.fail: list[Any] = []  # what the next calls raise; None: nothing

    def charge(self, cents: int, key: str) -> dict[str, Any]:
        self.calls.append(key)
        error = self.fail.pop(0) if self.fail else None
        if error is not None:
            raise error
        return {"receipt": len(self.calls), "cents": cents}


def shop(
    bank: Bank, policy: str = "ask", after: Callable[[Any, Any], None] | None = None, **options: Any
) -> App:
    """An app whose handler charges each order; `after` may fail behind it."""
    app = App()

    @app.consumer("orders", group="billing", retries=2, **options)
    def bill(message: Any, tx: Any) -> None:
        key = tx.effect_key("charge")
        receipt = tx.effect("charge", bank.charge, message.value, key=key, policy=policy)
        if after is not None:
            after(message, tx)
        tx.state[message.id] = receipt

    return app


def sent(app: App, *ids: str) -> Harness:
    harness = Harness(app)
    for number, name in enumerate(ids):
        harness.send("orders", number, id=name)
    return harness


def _replay(harness: Harness) -> None:
    """What `oncemq dlq replay` sends."""
    known = harness._system.broker.core.state.topics.by_name[dead_topic("orders")]
    [stored] = stored_batches(harness._system.broker, known.number)
    letter = letter_at("orders", stored, 0, stored.first_offset)
    topic = private_topic("orders", "billing")
    create_topic(harness._system.network, harness._system.loop, topic, 1)
    harness._system.anonymous.store(harness._system.loop, topic, 0, letter.replay())
    harness._system.loop.run_until(lambda: _handled(harness, topic))


def _handled(harness: Harness, topic: str) -> bool:
    topic_id = harness._system.broker.core.state.topics.by_name[topic].topic_id
    [actor] = harness._system.actors.values()
    return actor.core.ledger.next_offset_of(topic_id) == 1


@pytest.fixture
def bank() -> Bank:
    return Bank()


# --- once ----------------------------------------------------------------------------------------


def test_each_message_makes_its_call_once(bank: Bank) -> None:
    """Whatever dies around the commit: the recorded result is what every later run gets."""
    harness = sent(shop(bank), "a", "b")
    harness.assert_exactly_once()
    assert bank.calls == ["billing@orders:s:a:charge", "billing@orders:s:b:charge"]
    receipts = {"a": {"receipt": 1, "cents": 0}, "b": {"receipt": 2, "cents": 1}}
    assert harness.state("billing") == receipts


def test_a_handler_that_fails_later_gets_the_result_again(bank: Bank) -> None:
    """The result comes back in the form that is recorded, also at the first time."""
    seen: list[Any] = []
    app = App()

    @app.consumer("orders", group="billing", retries=2)
    def bill(message: Any, tx: Any) -> None:
        seen.append(tx.effect("pair", lambda: bank.calls.append("x") or (1, 2)))
        if message.attempt < 3:
            raise ValueError("later")

    harness = sent(app, "a")
    harness.drain()
    assert seen == [[1, 2]] * 3
    assert bank.calls == ["x"]


def test_a_message_may_have_several_effects(bank: Bank) -> None:
    """Each under its own name; one that is missing is made, the others are not made again."""
    app = App()
    fail = [True]

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        one = tx.effect("one", bank.charge, 1, key="1")
        if fail and fail.pop():
            raise ValueError("between")
        tx.state["sum"] = one["receipt"] + tx.effect("two", bank.charge, 2, key="2")["receipt"]

    sent(app, "a").drain()
    assert bank.calls == ["1", "2"]


def test_a_replayed_dead_letter_brings_its_results(bank: Bank) -> None:
    """What was recorded before the message was parked is not called again when it comes back."""
    broken = [True]

    def after(message: Any, tx: Any) -> None:
        if broken[0]:
            raise Reject("a bug behind the call")

    harness = sent(shop(bank, after=after), "a")
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert b"receipt" in letter.headers["oncemq-effects"]
    broken[0] = False
    _replay(harness)
    harness.drain()
    assert bank.calls == ["billing@orders:s:a:charge"]
    assert harness.state("billing") == {"a": {"receipt": 1, "cents": 0}}


# --- nobody knows --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["after_intent_before_call", "after_call_before_record"])
def test_a_call_whose_process_died_is_not_repeated_unasked(bank: Bank, step: str) -> None:
    """Under "ask" it holds its partition, until somebody gives the result."""
    harness = sent(shop(bank), "a", "b")
    harness.crash_at(step)
    made = 1 if step == "after_call_before_record" else 0
    for _ in range(2):
        with pytest.raises(EffectUnknown, match="unknown whether effect"):
            harness.drain()
        assert len(bank.calls) == made
        harness.crash()
    with pytest.raises(EffectUnknown):
        harness.drain()
    [held] = harness.effects.held
    assert held == "billing:orders:0:0:charge:1"
    harness.effects.done(held, {"by": "hand"})
    harness.drain()
    assert harness.state("billing")["a"] == {"by": "hand"}
    assert len(bank.calls) == made + 1
    assert harness.effects.held == []
    with pytest.raises(NoSuchEffect):
        harness.effects.retry(held)


@pytest.mark.parametrize("step", ["after_intent_before_call", "after_call_before_record"])
def test_an_operator_may_have_it_called_again(bank: Bank, step: str) -> None:
    """Under the same key."""
    harness = sent(shop(bank), "a")
    harness.crash_at(step)
    with pytest.raises(EffectUnknown):
        harness.drain()
    made = len(bank.calls)
    harness.effects.retry(harness.effects.held[0])
    harness.drain()
    assert bank.calls == ["billing@orders:s:a:charge"] * (made + 1)
    assert harness.state("billing")["a"]["receipt"] == made + 1


def test_only_its_own_partition_is_held(bank: Bank) -> None:
    """Others go on meanwhile."""
    app = shop(bank)
    harness = Harness(app, partitions={"orders": 2})
    bank.fail = [TimeoutError("no answer")]
    for key in "aadd":  # two partitions
        harness.send("orders", 1, id=f"{key}{len(harness.sent('orders'))}", key=key)
    with pytest.raises(EffectUnknown):
        harness.drain()
    assert len(harness.state("billing")) == 2
    [held] = harness.effects.held
    harness.effects.done(held, None)
    harness.drain()
    assert len(harness.state("billing")) == 4


def test_what_the_function_raises_leaves_it_unknown(bank: Bank) -> None:
    """A timeout may have charged. The error names the cause, the handler's own retries do not count."""
    bank.fail = [TimeoutError("no answer")]
    harness = sent(shop(bank), "a")
    with pytest.raises(EffectUnknown):
        harness.drain()
    assert len(bank.calls) == 1
    [actor] = harness._system.actors.values()
    [one] = actor.core.ledger.effects
    assert (one.how, one.value) == ("unknown", b"TimeoutError: no answer")


def test_a_function_may_say_that_nothing_happened(bank: Bank) -> None:
    """Then the attempt has failed like any other, and the next one calls again."""
    bank.fail = [EffectNotDone("refused the connection"), EffectNotDone("again")]
    harness = sent(shop(bank), "a")
    harness.drain()
    assert len(bank.calls) == 3
    assert harness.state("billing")["a"]["receipt"] == 3
    bank.fail = [EffectNotDone("no")] * 3
    harness.send("orders", 5, id="b")
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["oncemq-kind"] == b"raised"
    assert "oncemq-effects" not in letter.headers


def test_the_policy_park_makes_a_dead_letter(bank: Bank) -> None:
    """At once, whatever retries the consumer has; its neighbours go on."""
    bank.fail = [TimeoutError("no answer")]
    harness = sent(shop(bank, "park"), "a", "b")
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["oncemq-kind"] == b"unknown effect"
    assert b"TimeoutError: no answer" in letter.headers["oncemq-error"]
    assert len(bank.calls) == 2
    assert set(harness.state("billing")) == {"b"}


def test_the_policy_park_stops_a_consumer_that_parks_nothing(bank: Bank) -> None:
    """park=False is stronger."""
    bank.fail = [TimeoutError("no answer")]
    with pytest.raises(HandlerFailed, match="no answer"):
        sent(shop(bank, "park", park=False), "a").drain()


def test_the_policy_retry_calls_again_under_the_same_key(bank: Bank) -> None:
    """An error of the function is an error of the handler then."""
    bank.fail = [TimeoutError("one"), TimeoutError("two")]
    harness = sent(shop(bank, "retry"), "a")
    harness.crash_at("after_call_before_record")
    harness.drain()
    assert set(bank.calls) == {"billing@orders:s:a:charge"}
    assert len(bank.calls) == 3
    bank.fail = [TimeoutError("x")] * 3
    harness.send("orders", 1, id="b")
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["oncemq-kind"] == b"raised"


@pytest.mark.parametrize("result", [object(), "x" * (EFFECT_RESULT_BYTES_MAX + 1)])
@pytest.mark.parametrize("policy", ["ask", "park"])
def test_a_result_that_cannot_be_recorded_is_unknown(result: object, policy: str) -> None:
    """The call was made: the error says so."""
    app, calls = App(), []

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        with pytest.raises(EffectNotRecorded, match="was called, but its result cannot be"):
            tx.effect("charge", lambda: calls.append(1) or result, policy=policy)

    harness = sent(app, "a")
    if policy == "ask":
        with pytest.raises(EffectUnknown):
            harness.drain()
    else:
        harness.drain()
        assert len(harness.sent("orders.dead")) == 1
    assert calls == [1]


def test_a_handler_that_swallows_the_error_is_not_committed(bank: Bank) -> None:
    """Whatever it makes of it, and however often it comes back."""
    app = App()

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        try:
            tx.effect("charge", bank.charge, 1, key="k")
        except Exception:
            tx.state["swallowed"] = True
        with pytest.raises(EffectUnknown):
            tx.effect("another", bank.charge, 1, key="k")

    bank.fail = [TimeoutError("no answer")]
    harness = sent(app, "a")
    for _ in range(2):
        with pytest.raises(EffectUnknown):
            harness.drain()
        harness.crash()
    assert harness.state("billing") == {}
    assert len(bank.calls) == 1


def test_a_handler_that_forgets_its_effect_is_not_committed(bank: Bank) -> None:
    """A re-run that does not come to the call does not pass it either; nor is it parked."""
    app, run = App(), []

    @app.consumer("orders", group="billing", retries=1)
    def bill(message: Any, tx: Any) -> None:
        run.append(message.attempt)
        if len(run) == 1:
            tx.effect("charge", bank.charge, 1, key="k")
        elif len(run) > 2:
            raise Reject("never comes to the call")

    bank.fail = [TimeoutError("no answer")]
    harness = sent(app, "a")
    for _ in range(3):
        with pytest.raises(EffectUnknown):
            harness.drain()
        harness.crash()
    assert len(run) >= 3
    assert harness.sent("orders.dead") == []


def test_what_an_effect_does_outside_is_no_complaint(tmp_path: Path) -> None:
    """That is its purpose; the same beside it is found."""
    app = App()
    path = tmp_path / "mails"
    beside: list[bool] = []

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        tx.effect("mail", lambda: path.write_text("one"))
        if beside:
            path.write_text("two")

    harness = sent(app, "a")
    harness.assert_exactly_once()
    assert harness.outside_effects == []
    beside.append(True)
    harness.send("orders", 1, id="b")
    with pytest.raises(AssertionError, match="for writing"):
        harness.assert_exactly_once()


# --- what is refused -----------------------------------------------------------------------------


def check_refused(app: App, error: type[Exception], text: str) -> None:
    """The message is parked with this error, or the consumer stops."""
    harness = sent(app, "a")
    if error is EffectsNotSupported:  # a bug of the program, not of a message
        with pytest.raises(HandlerFailed, match=text):
            harness.drain()
        harness.close()
        return
    harness.drain()
    [letter] = harness.sent("orders.dead")
    told = letter.headers["oncemq-error"].decode()
    assert told.startswith(error.__name__), told
    assert text in told
    harness.close()


NO_RETRY = {"retries": 0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch": True}, "a handler of lists cannot use effects"),
    ],
)
def test_handlers_of_other_shapes_have_none(bank: Bank, options: Any, text: str) -> None:
    """They could promise nothing."""
    app = App()

    @app.consumer("orders", group="billing", **NO_RETRY, **options)
    def bill(message: Any, tx: Any) -> None:
        tx.effect("charge", bank.charge, 1, key="k")

    check_refused(app, EffectsNotSupported, text)
    assert bank.calls == []


async def _coroutine() -> None:
    """Nobody would await it."""


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda tx: tx.effect("x", _coroutine), EffectsNotSupported, "coroutine function"),
        (lambda tx: tx.effect("x", int, policy="never"), EffectMisused, "policy is one of"),
        (lambda tx: tx.effect("a/b", int), InvalidName, "the name of an effect"),
        (lambda tx: [tx.effect("x", int), tx.effect("x", int)], EffectMisused, "already"),
        (
            lambda tx: tx.effect("x", lambda: tx.effect("y", int), policy="retry"),
            EffectMisused,
            "inside another effect",
        ),
        (
            lambda tx: [tx.effect(f"x{n}", int) for n in range(EFFECTS_MAX + 1)],
            TooLarge,
            "exceeds that",
        ),
        (
            lambda tx: [tx.effect(f"x{n}", bytes, 10_000) for n in range(5)],
            TooLarge,
            "bytes of results",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_call(
    call: Any, error: type[Exception], text: str
) -> None:
    """By a typed error that says what to do."""
    app = App()

    @app.consumer("orders", group="billing", **NO_RETRY)
    def bill(message: Any, tx: Any) -> None:
        call(tx)

    check_refused(app, error, text)


def test_another_thread_is_refused(bank: Bank) -> None:
    """The handler's own thread waits for the answer."""
    app = App()
    found: list[BaseException] = []

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        def work() -> None:
            try:
                tx.effect("charge", bank.charge, 1, key="k")
            except EffectMisused as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    sent(app, "a").drain()
    assert "another thread" in str(found[0])
    assert bank.calls == []


def test_the_largest_results_fit_into_a_letter() -> None:
    """Results at their bounds, with headers of the sender at theirs."""
    app = App()
    sizes = [EFFECT_RESULT_BYTES_MAX, EFFECT_RESULTS_BYTES_MAX - EFFECT_RESULT_BYTES_MAX]

    @app.consumer("orders", group="billing")
    def bill(message: Any, tx: Any) -> None:
        for number in range(EFFECTS_MAX):
            name = f"{number}".rjust(128, "x")
            tx.effect(name, bytes, sizes[number] if number < len(sizes) else 0)
        raise Reject("no")

    harness = Harness(app)
    headers = {"own": b"x" * (HEADERS_BYTES_MAX - 10)}
    harness.send("orders", 1, id="y" * 128, headers=headers)
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["own"] == headers["own"]
    assert len(letter.headers["oncemq-effects"]) > EFFECT_RESULTS_BYTES_MAX


# --- async ---------------------------------------------------------------------------------------


def awaited(bank: Bank, policy: str = "ask", within_s: float = 60.0) -> App:
    """As `shop`, with an async handler and an async function."""
    app = App()

    async def charge(cents: int, key: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        receipt = bank.charge(cents, key)
        await asyncio.sleep(bank.slow_s)
        return receipt

    @app.consumer("orders", group="billing", retries=0)
    async def bill(message: Any, tx: Any) -> None:
        key = tx.effect_key("charge")
        async with asyncio.timeout(within_s):
            receipt = await tx.effect("charge", charge, message.value, key=key, policy=policy)
        tx.state[message.id] = receipt

    return app


def test_an_async_handler_awaits_its_effect(bank: Bank) -> None:
    """Once, and the recorded result at every later run."""
    with sent(awaited(bank), "a", "b") as harness:
        harness.assert_exactly_once()
        assert len(bank.calls) == 2
        assert harness.state("billing")["b"] == {"receipt": 2, "cents": 1}


def test_an_async_effect_whose_process_died_is_held(bank: Bank) -> None:
    """As one of a plain handler."""
    with sent(awaited(bank), "a") as harness:
        harness.crash_at("after_call_before_record")
        with pytest.raises(EffectUnknown):
            harness.drain()
        harness.effects.done(harness.effects.held[0], "r")
        harness.drain()
        assert harness.state("billing") == {"a": "r"}
        assert len(bank.calls) == 1


def test_a_call_that_is_cancelled_is_unknown(bank: Bank) -> None:
    """A time limit of the handler's own ends it under way: it may have happened."""
    bank.slow_s = 30.0
    with sent(awaited(bank, within_s=0.05), "a") as harness:
        with pytest.raises(EffectUnknown):
            harness.drain()
        [actor] = harness._system.actors.values()
        [one] = actor.core.ledger.effects
        assert (one.how, one.value) == ("unknown", b"the call was cancelled")
        assert harness.effects.held == ["billing:orders:0:0:charge:1"]


def test_what_an_async_function_raises_is_unknown_too(bank: Bank) -> None:
    """And is parked where the policy says so."""
    bank.fail = [TimeoutError("no answer")]
    with sent(awaited(bank, "park"), "a", "b") as harness:
        harness.drain()
        [letter] = harness.sent("orders.dead")
        assert letter.headers["oncemq-kind"] == b"unknown effect"
        assert set(harness.state("billing")) == {"b"}


async def _forgets(tx: Any) -> None:
    tx.effect("x", int)


async def _both(tx: Any) -> None:
    await asyncio.gather(tx.effect("x", int), tx.effect("y", int))


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(
    ("handle", "text"), [(_forgets, "'x' was not awaited"), (_both, "'x' still runs")]
)
def test_async_effects_come_one_after_the_other(handle: Any, text: str) -> None:
    """One that is not awaited is no effect; two at the same time are refused."""
    app = App()

    @app.consumer("orders", group="billing", **NO_RETRY)
    async def bill(message: Any, tx: Any) -> None:
        await handle(tx)

    check_refused(app, EffectMisused, text)


class SlowDesk:
    """A desk whose answer takes a while."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def ask(self, said: EffectWanted) -> Future[EffectAnswer]:
        future: Future[EffectAnswer] = Future()
        answer = EffectAnswer(said.offset, said.name, CALL, 1)
        asyncio.get_running_loop().call_later(0.05, future.set_result, answer)
        return future

    def tell(self, told: EffectTold) -> None:
        self.told.append(told.how)


def test_a_handler_that_is_cancelled_before_the_call_has_called_nothing(bank: Bank) -> None:
    """It waits for the answer all the same, and says that nothing happened."""
    desk = SlowDesk()
    harness = sent(App(), "a")
    [message] = harness.sent("orders")
    run = SimpleNamespace(epoch=1, first_offset=0, private=False)
    effects = Effects(run, desk, "", [], awaited=True)  # type: ignore[arg-type]

    async def handle() -> None:
        async with asyncio.timeout(0.01):
            await effects.call(message, "x", "ask", bank.charge, (1, "k"), {})

    with pytest.raises(TimeoutError):
        asyncio.run(handle())
    assert desk.told == ["not_done"]
    assert bank.calls == []
    effects.accept()
