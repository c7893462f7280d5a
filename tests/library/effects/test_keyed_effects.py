"""`tx.effect` of handlers with a state for each key: several calls of one partition at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from oncemq import App, EffectUnknown, Harness, Reject
from oncemq.core.consumer.effect_work import CALL, NOTED, EffectAnswer, EffectTold, EffectWanted
from oncemq.core.consumer.keyed_schedule import Result, Schedule
from oncemq.core.consumer.work import HELD_EFFECT, RAISED, UNKNOWN_EFFECT, FailedMessage
from oncemq.errors import OnceMQError
from oncemq.library.effects.desk import EffectAnswers
from oncemq.library.handling.carry import Carry
from oncemq.library.testkit.crash_steps import WatchedDesk
from oncemq.limits import LIMITS

KEYS = "abcdef"


class Bank:
    """The world outside: it counts calls, knows how many were under way together, and may fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.most = 0
        self.now = 0
        self.together: threading.Barrier | None = None
        self.lock = threading.Lock()

    def charge(self, name: str) -> str:
        with self.lock:
            self.calls.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            if self.together is not None:
                self.together.wait(10)
            if name in self.fail:
                raise self.fail.pop(name)
            return f"receipt of {name}"
        finally:
            with self.lock:
                self.now -= 1

    async def charge_later(self, name: str) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1
        self.calls.append(name)
        if name in self.fail:
            raise self.fail.pop(name)
        return f"receipt of {name}"


@pytest.fixture
def bank() -> Bank:
    return Bank()


def shop(
    bank: Bank,
    *,
    is_async: bool = False,
    concurrency: int = 3,
    policy: str = "ask",
    after: Callable[[Any], None] = lambda _message: None,
) -> App:
    """Each order is charged; what its key has paid is in its state."""
    app = App()
    options = {"group": "g", "state_by": "key", "concurrency": concurrency, "retries": 1}

    def keep(message: Any, tx: Any, receipt: str) -> None:
        after(message)
        tx.state["paid"] = [*tx.state.get("paid", []), receipt]
        tx.send("out", message.id)

    def bill(message: Any, tx: Any) -> None:
        keep(message, tx, tx.effect("charge", bank.charge, message.id, policy=policy))

    async def bill_later(message: Any, tx: Any) -> None:
        keep(message, tx, await tx.effect("charge", bank.charge_later, message.id, policy=policy))

    app.consumer("orders", **options)(bill_later if is_async else bill)
    return app


def sent(app: App, *ids: str) -> Harness:
    """Orders whose key is the first letter of the id."""
    harness = Harness(app)
    for name in ids:
        harness.send("orders", 1, id=name, key=name[0])
    return harness


def paid(harness: Harness) -> dict[str, list[str]]:
    return {key: entry["paid"] for key, entry in harness.state("g").items()}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_call_is_made_once(bank: Bank, is_async: bool, concurrency: int) -> None:
    """Whatever dies around the commit; those of one key come in order."""
    ids = [f"{key}{number}" for number in range(3) for key in KEYS]
    with sent(shop(bank, is_async=is_async, concurrency=concurrency), *ids) as harness:
        harness.assert_exactly_once()
        assert Counter(bank.calls) == Counter(ids)
        assert paid(harness) == {
            key: [f"receipt of {key}{number}" for number in range(3)] for key in KEYS
        }
        assert sorted(m.value for m in harness.sent("out")) == sorted(ids)


@pytest.mark.parametrize("is_async", [False, True])
def test_calls_are_under_way_at_the_same_time(bank: Bank, is_async: bool) -> None:
    """As many as handlers may run: none waits for the answer of another."""
    bank.together = threading.Barrier(3)
    with sent(shop(bank, is_async=is_async), *KEYS) as harness:
        harness.drain()
        assert len(paid(harness)) == len(KEYS)
    assert bank.most == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_one_that_is_unknown_holds_what_lies_behind_it(bank: Bank, is_async: bool) -> None:
    """Those before it are committed, those behind were called and are not called again."""
    bank.fail = {"b": TimeoutError("no answer")}
    with sent(shop(bank, is_async=is_async), *KEYS) as harness:
        with pytest.raises(EffectUnknown):
            harness.drain()
        assert set(paid(harness)) == {"a"}
        assert harness.effects.held == ["g:orders:0:1:charge:1"]
        harness.crash()
        with pytest.raises(EffectUnknown):
            harness.drain()
        harness.effects.done(harness.effects.held[0], "by hand")
        harness.drain()
        assert paid(harness) == {
            key: ["by hand" if key == "b" else f"receipt of {key}"] for key in KEYS
        }
        assert harness.sent("orders.dead") == []
    assert Counter(bank.calls) == Counter(KEYS)


@pytest.mark.parametrize("step", ["after_intent_before_call", "after_call_before_record"])
def test_several_calls_that_died_together_wait_one_by_one(bank: Bank, step: str) -> None:
    """Each of them is known, none is repeated unasked, and each word counts for its own."""
    with sent(shop(bank, is_async=True), *KEYS) as harness:
        harness.crash_at(step)
        words = 0
        for _ in KEYS:
            try:
                harness.drain()
            except EffectUnknown:
                words += 1
                harness.effects.done(harness.effects.held[0], "by hand")
            else:
                break
        assert 1 <= words <= 3
        assert len(paid(harness)) == len(KEYS)
        assert sum(receipt == ["by hand"] for receipt in paid(harness).values()) == words
    assert max(Counter(bank.calls).values()) == 1


def test_a_message_that_fails_later_gets_its_result_again(bank: Bank) -> None:
    """Beside others; and what is parked takes its own result along, not that of others."""
    failed: list[str] = []

    def after(message: Any) -> None:
        if message.id == "c" and message.attempt == 1:
            failed.append(message.id)
            raise ValueError("later")
        if message.id == "d":
            raise Reject("no")

    with sent(shop(bank, after=after), *KEYS) as harness:
        harness.drain()
        assert set(paid(harness)) == set(KEYS) - {"d"}
        [letter] = harness.sent("orders.dead")
        assert b"receipt of d" in letter.headers["oncemq-effects"]
        assert letter.headers["oncemq-effects"].count(b"receipt of") == 1
    assert failed == ["c"]
    assert Counter(bank.calls) == Counter(KEYS)


def test_the_policies_park_and_retry(bank: Bank) -> None:
    """Only the message whose call is unknown is parked, or called again."""
    bank.fail = {"b": TimeoutError("no answer")}
    with sent(shop(bank, policy="park"), *KEYS) as harness:
        harness.drain()
        [letter] = harness.sent("orders.dead")
        assert letter.headers["oncemq-kind"] == b"unknown effect"
        assert set(paid(harness)) == set(KEYS) - {"b"}
    bank.calls.clear()
    bank.fail = {"b": TimeoutError("no answer")}
    with sent(shop(bank, policy="retry"), *KEYS) as harness:
        harness.drain()
        assert set(paid(harness)) == set(KEYS)
    assert Counter(bank.calls) == Counter(KEYS) + Counter("b")


@pytest.mark.parametrize(
    ("kind", "kept"), [(RAISED, True), (HELD_EFFECT, False), (UNKNOWN_EFFECT, False)]
)
def test_what_is_known_of_an_effect_is_asked_anew_in_the_next_call(kind: str, kept: bool) -> None:
    """A failure that is kept behind another one could be older than an operator's word."""
    ledger = SimpleNamespace(state={}, state_bytes=0, limits=LIMITS)
    window = SimpleNamespace(pieces=[])
    run: Any = SimpleNamespace(window=window, first_offset=0, ledger=ledger)
    carry = Carry()

    def failed(kind: str) -> FailedMessage:
        return FailedMessage("id", kind, ValueError(kind), "", 0.0, kind)

    stored: Any = object()
    schedule = Schedule(run, [], carry.results, lambda _message, error: failed(str(error)))
    for offset, its in enumerate((RAISED, kind)):
        schedule._order.append(offset)
        carry.results[offset] = Result(stored, "name", None, None, failure=failed(its))
    done, failure = schedule.prefix()
    assert (done, failure and failure.kind) == ([], RAISED)
    assert (1 in carry.results) == kept


# --- who waits for what --------------------------------------------------------------------------


def wanted(name: str) -> EffectWanted:
    return EffectWanted(1, 0, False, 0, "key", name, "ask")


def test_each_handler_that_waits_gets_its_own_answer() -> None:
    """In threads and in an event loop, whatever the order of the answers is."""
    answers = EffectAnswers()
    names = [f"{number}" for number in range(8)]
    asked = [answers.ask(wanted(name)) for name in names]
    later = [answers.ask(wanted(f"later {name}")) for name in names]
    found: list[EffectAnswer] = []

    async def wait_all() -> list[EffectAnswer]:
        return await asyncio.gather(*map(asyncio.wrap_future, later))

    def in_loop() -> None:
        found.extend(asyncio.run(wait_all()))

    loop = threading.Thread(target=in_loop)
    loop.start()
    for name in reversed(names):
        answers.put(EffectAnswer(0, name, CALL))
        answers.put(EffectAnswer(0, f"later {name}", CALL))
    loop.join(10)
    assert [future.result(10).name for future in asked] == names
    assert [answer.name for answer in found] == [f"later {name}" for name in names]


def test_an_answer_to_something_else_is_none() -> None:
    """A question and what is told have answers of their own; nothing is kept for later questions."""
    answers = EffectAnswers()
    answers.put(EffectAnswer(0, "x", CALL))
    asked = answers.ask(wanted("x"))
    answers.put(EffectAnswer(0, "x", NOTED))
    assert not asked.done()
    answers.put(EffectAnswer(0, "x", CALL))
    assert asked.result(0).verdict == CALL
    told = answers.ask(EffectTold(1, 0, False, 0, "x", 1, "returned"))
    answers.put(EffectAnswer(0, "x", CALL))
    assert not told.done()
    answers.put(EffectAnswer(0, "x", NOTED))
    assert told.result(0).verdict == NOTED


def test_no_handler_waits_for_a_consumer_that_has_ended() -> None:
    """Neither those that wait already, nor those that ask later; an answer that is late is dropped."""
    answers = EffectAnswers()
    asked = answers.ask(wanted("x"))
    told = answers.ask(EffectTold(1, 0, False, 0, "y", 1, "returned"))
    answers.end()
    answers.put(EffectAnswer(0, "x", CALL))
    for future in (asked, answers.ask(wanted("z"))):
        with pytest.raises(OnceMQError, match="was not called"):
            future.result(0)
    with pytest.raises(OnceMQError, match="before recording it"):
        told.result(0)


def test_a_world_is_turned_by_one_thread_at_a_time() -> None:
    """Handlers that ask in several threads take turns."""
    answers, turning, most = EffectAnswers(), [0], [0]

    def wait(done: Callable[[], bool]) -> None:
        turning[0] += 1
        most[0] = max(most[0], turning[0])
        time.sleep(0.01)
        turning[0] -= 1
        assert done()

    def post(said: EffectWanted) -> None:
        answers.put(EffectAnswer(0, said.name, CALL))

    actor: Any = SimpleNamespace(effect_answers=answers, ended=False, sink=None, post=post)
    desk = WatchedDesk(actor, wait, threading.Lock(), lambda _step: None)
    threads = [threading.Thread(target=desk.ask, args=(wanted(name),)) for name in KEYS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1]
