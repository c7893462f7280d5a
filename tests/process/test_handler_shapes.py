"""Async and concurrent handlers in a real process: loop, threads, signals, crashes."""

from __future__ import annotations

import json
import signal

import pytest

from oncemq.chaos import read_topic
from oncemq.chaos.programs import wait_until
from tests.process.house import START_S, House
from tests.process.test_consumer_process import Shop

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


SHAPES = """
import asyncio, threading
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})

def note(text):
    with open(HERE / "calls", "a") as calls:
        calls.write(f"0 {{text}}\\n")

async def work(message, tx):
    assert threading.current_thread() is threading.main_thread()
    note(message.value)
    tx.state["n"] = tx.state.get("n", 0) + 1
    tx.send("out-" + (message.key or "none"), message.value)
    while message.value == "slow" and not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    if message.value == "stuck":
        await asyncio.sleep(600)

@app.consumer("orders", group="g")
async def one(message, tx):
    await work(message, tx)

@app.consumer("orders", group="keyed", state_by="key", concurrency=4)
async def many(message, tx):
    await work(message, tx)

@app.consumer("orders", group="threads", state_by="key", concurrency=4)
def threads(message, tx):
    tx.state["n"] = tx.state.get("n", 0) + 1
    tx.send("threads-" + (message.key or "none"), message.value)

@app.consumer("orders", group="lists", batch=True, batch_size=2)
async def lists(messages, tx):
    tx.state["n"] = tx.state.get("n", 0) + len(messages)
"""


@pytest.fixture
def shapes(house: House) -> Shop:
    """A broker, and an application whose handlers are async, concurrent and of lists."""
    house.broker()
    shop = Shop(house)
    (shop.directory / "shopapp.py").write_text(SHAPES.format(directory=str(shop.directory)))
    return shop


def send_keyed(shop: Shop, *rows: tuple[str, str]) -> None:
    """Send (key, text) pairs; the text is the value."""
    path = shop.directory / "send.py"
    path.write_text(
        "import sys\nfrom oncemq import App\n"
        "with App().producer('keyed') as p:\n"
        f"    for key, text in {rows!r}:\n"
        "        p.send('orders', text, key=key)\n"
    )
    shop.house.start("send", str(path)).wait(START_S, 0)


def state_of(shop: Shop, group: str) -> dict:
    """What `oncemq state` prints for a group."""
    command = shop.house.start(
        "state",
        "-m",
        "actors",
        "state",
        f"--state={shop.house.state}",
        f"--group={group}",
        "--json",
    )
    command.wait(START_S, 0)
    return dict(json.loads(command.stdout()))


def test_async_and_concurrent_handlers_in_one_process(shapes: Shop) -> None:
    """Loop, threads and lists side by side; topics that handlers meet first are looked up."""
    rows = [(f"k{number % 5}", f"v{number}") for number in range(40)]
    send_keyed(shapes, *rows)
    consumer = shapes.consumer("--until-idle=0.5")
    consumer.wait(START_S, 0)
    by_key = {f"k{key}": {"n": 8} for key in range(5)}
    assert state_of(shapes, "g") == {"n": 40}
    assert state_of(shapes, "lists") == {"n": 40}
    assert state_of(shapes, "keyed") == by_key
    assert state_of(shapes, "threads") == by_key
    for key in range(5):
        expected = [text for its, text in rows if its == f"k{key}"]
        threads = read_topic(shapes.house.endpoint, f"threads-k{key}")
        both = read_topic(shapes.house.endpoint, f"out-k{key}")
        assert [m.value for m in threads] == expected
        assert sorted(m.value for m in both) == sorted(expected * 2)


@pytest.mark.parametrize("group", ["g", "keyed"])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_async_handlers_finish(
    shapes: Shop, group: str, signal_number: signal.Signals
) -> None:
    """What runs at the signal is waited for and committed, as with plain handlers; exit 0."""
    send_keyed(shapes, ("a", "slow"), ("b", "next"))
    consumer = shapes.consumer(f"--group={group}", "--drain=60")
    wait_until(lambda: "slow" in shapes.calls(), START_S, "the slow message")
    consumer.send_signal(signal_number)
    (shapes.directory / "go").touch()
    consumer.wait(START_S, 0)
    counted = state_of(shapes, group)
    done = sum(its["n"] for its in counted.values()) if group == "keyed" else counted["n"]
    assert done == consumer.summary()["processed"]
    assert done >= 1
    again = shapes.consumer(f"--group={group}", "--until-idle=0.5")
    again.wait(START_S, 0)
    expected = {"a": {"n": 1}, "b": {"n": 1}} if group == "keyed" else {"n": 2}
    assert state_of(shapes, group) == expected


def test_an_async_handler_that_does_not_return_is_given_up(shapes: Shop) -> None:
    """After --drain seconds the process ends with status 1; what was not committed comes again."""
    send_keyed(shapes, ("a", "stuck"))
    consumer = shapes.consumer("--group=keyed", "--drain=0.5")
    wait_until(lambda: "stuck" in shapes.calls(), START_S, "the stuck message")
    consumer.send_signal(signal.SIGTERM)
    consumer.wait(START_S, 1)
    assert consumer.summary()["processed"] == 0
