"""What ends a process elsewhere is a failure of its message in a handler."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from oncemq import App, Harness
from oncemq.library.consuming.main_thread import LoopThread
from oncemq.library.producing.acks import Verdicts
from oncemq.library.raised import raised_by_code
from oncemq.runtime.process import heeded, stop_signals

ENDINGS = [
    SystemExit(0),
    GeneratorExit(),
    asyncio.CancelledError("inner"),
    type("Own", (BaseException,), {})(),
]


def single(act: Callable[[Any], None], **options: Any) -> App:
    app = App()

    @app.consumer("t", group="g", retries=1, **options)
    def handle(message, tx):
        act(message)
        tx.state["n"] = tx.state.get("n", 0) + 1

    return app


def listed(act: Callable[[Any], None]) -> App:
    app = App()

    @app.consumer("t", group="g", retries=1, batch=True)
    def handle(messages, tx):
        for message in messages:
            act(message)
        tx.state["n"] = tx.state.get("n", 0) + len(messages)

    return app


def awaited(act: Callable[[Any], None], **options: Any) -> App:
    app = App()

    @app.consumer("t", group="g", retries=1, **options)
    async def handle(message, tx):
        await asyncio.sleep(0)
        act(message)
        tx.state["n"] = tx.state.get("n", 0) + 1

    return app


SHAPES = {
    "single": single,
    "list": listed,
    "async": awaited,
    "keyed": lambda act: single(act, state_by="key"),
    "keyed in threads": lambda act: single(act, state_by="key", concurrency=2),
    "keyed async": lambda act: awaited(act, state_by="key", concurrency=2),
}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_parked_as_any_failure(shape: str, ending: BaseException) -> None:
    """Tried again, then parked; its neighbours are handled."""
    tried = []

    def act(message: Any) -> None:
        if message.value == 1:
            tried.append(message.attempt)
            raise ending

    harness = Harness(SHAPES[shape](act))
    for number in range(3):
        harness.send("t", number, id=f"m-{number}", key="k")
    harness.drain()
    counted = harness.state("g")
    assert counted in ({"n": 2}, {"k": {"n": 2}}), counted
    assert [letter.value for letter in harness.sent("t.dead")] == [1]
    assert max(tried) == 2


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("policy", ["retry", "park"])
def test_it_is_a_failure_of_an_effect(policy: str, ending: BaseException) -> None:
    """The function of an effect: what became of the call is unknown; the message fails."""
    called = []

    def pay(key: str) -> None:
        called.append(key)
        raise ending

    app = App()

    @app.consumer("t", group="g", retries=1)
    def handle(message, tx):
        tx.effect("pay", pay, message.id, policy=policy)

    harness = Harness(app)
    harness.send("t", 1, id="a")
    harness.drain()
    assert len(harness.sent("t.dead")) == 1
    assert len(called) == (2 if policy == "retry" else 1)


def test_ctrl_c_of_the_user_goes_through() -> None:
    """In a test, Ctrl-C ends the test and parks nothing."""

    def act(_message: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    harness = Harness(single(act))
    harness.send("t", 1, id="a")
    with pytest.raises(KeyboardInterrupt):
        harness.drain()
    assert harness.sent("t.dead") == []


def test_where_oncemq_takes_signals_a_keyboard_interrupt_is_of_code() -> None:
    """No signal raises it there."""
    assert not raised_by_code(KeyboardInterrupt())
    with stop_signals(lambda _number: None):
        assert raised_by_code(KeyboardInterrupt())


def test_a_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    """nohup and background jobs: the one that started the process meant it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals(lambda _number: None):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            assert raised_by_code(KeyboardInterrupt())
        assert heeded([signal.SIGINT, signal.SIGTERM]) == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_cancellation_from_outside_goes_through() -> None:
    """Whoever cancels the task around a handler does not blame its message."""

    async def scenario() -> list[bool]:
        judged = []

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:
                judged.append(raised_by_code(error))

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await task
        return judged

    assert asyncio.run(scenario()) == [False]


class SpawningCall:
    """A call whose handler awaits a task of its own that calls sys.exit."""

    is_async = True

    async def carry_out_async(self, _place: object) -> object:
        async def inner() -> None:
            raise SystemExit(0)

        try:
            await asyncio.create_task(inner())
        except SystemExit as error:
            return error
        return None


class Seat:
    ended = False
    place = ("g", "t", 0)


def test_a_task_of_a_handler_does_not_stop_the_loop() -> None:
    """asyncio stops its loop for SystemExit in any task; the consumer goes on."""
    answers: list[Any] = []
    thread = LoopThread(lambda _actor, done: answers.append(done))
    for _ in range(2):
        thread.put(Seat(), SpawningCall())  # type: ignore[arg-type]
    thread.end()
    with stop_signals(lambda _number: None):
        thread.run()
    assert [type(answer) for answer in answers] == [SystemExit, SystemExit]


@pytest.mark.parametrize("settled_before", [True, False])
def test_a_done_callback_ends_nothing(
    settled_before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In the I/O thread, or at once in the caller's: reported, and all others are called."""
    verdicts, called = Verdicts("t"), []

    def leave() -> None:
        raise SystemExit(0)

    def settle() -> None:
        thread = threading.Thread(target=verdicts.give, args=([0], 0, ((1, 0, 0),), None))
        thread.start()
        thread.join()

    verdicts.expect(1)
    if settled_before:
        settle()
    verdicts.when_settled(leave)
    verdicts.when_settled(lambda: called.append(True))
    if not settled_before:
        settle()
    assert called == [True]
    assert "a done callback of a message raised" in caplog.text
