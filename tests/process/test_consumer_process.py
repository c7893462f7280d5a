"""The consumer command as a process: signals, exit codes, standby, crashes, state directories."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from oncemq.chaos import read_topic
from oncemq.chaos.programs import wait_until
from oncemq.library.consuming.process import LOOK_MS, ConsumerProcess
from oncemq.limits import LEASE_MS
from oncemq.runtime.events import EventLog
from tests.process.house import ROOT, START_S, House

pytestmark = pytest.mark.process

APP = """
import os, time
from pathlib import Path
from oncemq import App
app = App()
HERE = Path({directory!r})

@app.consumer("orders", group="g", retries=1, park=False)
def handler(message, tx):
    tx.state["count"] = tx.state.get("count", 0) + 1
    tx.state.setdefault("log", []).append(message.value)
    tx.send("out", message.value)
    with open(HERE / "calls", "a") as calls:
        calls.write(f"{{os.getpid()}} {{message.value}}\\n")
    if message.value == "boom":
        raise LookupError("no such thing")
    if message.value == "slow":
        deadline = time.monotonic() + 3600
        while not (HERE / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    if message.value == "stuck":
        time.sleep(3600)
"""


class Shop:
    """A house with an application and helpers."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.directory = house.directory
        (self.directory / "shopapp.py").write_text(APP.format(directory=str(self.directory)))

    def send(self, *values: str) -> None:
        """Send lines; numbered by one producer name over all calls."""
        path = self.directory / "lines.txt"
        with path.open("a") as file:
            file.writelines(f"{value}\n" for value in values)
        self.house.producer("--topic=orders", "--name=p", str(path)).wait(START_S, 0)

    def consumer(self, *more: str, **environ: str):
        return self.house.consumer("shopapp:app", *more, **environ)

    def calls(self) -> list[str]:
        path = self.directory / "calls"
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def state(self) -> dict:
        """What `oncemq state` prints."""
        command = self.house.start(
            "state", "-m", "oncemq", "state", f"--state={self.house.state}", "--group=g", "--json"
        )
        command.wait(START_S, 0)
        return dict(json.loads(command.stdout()))

    def out(self) -> list[str]:
        return [message.value for message in read_topic(self.house.endpoint, "out")]


@pytest.fixture
def shop(house: House) -> Shop:
    house.broker()
    return Shop(house)


def test_until_idle_ends_with_a_summary(shop: Shop) -> None:
    """Exit 0 when all is handled and acknowledged; the last line of stdout says what was done."""
    shop.send("a", "b", "c")
    first = shop.consumer("--until-idle=0.5")
    first.wait(START_S, 0)
    expected = {"processed": 3, "skipped": 0, "parked": 0, "offsets": {"orders/0": 3}}
    assert json.loads(first.stdout().splitlines()[-1]) == expected
    shop.send("d")
    second = shop.consumer("--until-idle=0.5")
    second.wait(START_S, 0)
    assert second.summary() == {**expected, "processed": 1, "offsets": {"orders/0": 4}}
    assert shop.state() == {"count": 4, "log": ["a", "b", "c", "d"]}
    assert shop.out() == ["a", "b", "c", "d"]


def test_a_second_member_stands_by_and_follows_a_kill_at_once(shop: Shop) -> None:
    """It says that it waits; when the first is killed it goes on, long before the lease is over."""
    shop.send("a")
    first = shop.consumer()
    shop.house.wait_for(first, "commit.synced")
    second = shop.consumer()
    shop.house.wait_for(second, "consumer.standby")
    wait_until(lambda: "standing by" in second.stderr(), START_S, "the standby's word")
    first.kill()
    shop.house.wait_for(second, "consumer.granted")
    assert shop.house.history.events["group.lease_expired"] == 0, "it went on before that"
    shop.send("b")
    shop.house.wait_for(second, "commit.synced")
    second.stop(START_S, 0)
    assert shop.state() == {"count": 2, "log": ["a", "b"]}
    assert shop.out() == ["a", "b"]


@pytest.mark.parametrize(
    "place",
    [
        "after_append_before_sync:2",
        "after_sync_before_reply:2",
        "after_commit_before_output:2",
        "during_generation_change:1",
    ],
)
def test_killed_at_any_place_it_counts_once(shop: Shop, place: str) -> None:
    """Killed around the sync, or with its outputs unsent: state and outputs are each once."""
    shop.send("a", "b", "c")
    doomed = shop.consumer("--until-idle=0.5", ONCEMQ_CRASH_AT=place)
    doomed.wait(START_S, 137)
    again = shop.consumer("--until-idle=0.5")
    again.wait(START_S, 0)
    assert shop.state() == {"count": 3, "log": ["a", "b", "c"]}
    assert shop.out() == ["a", "b", "c"]


def test_a_poisonous_message_ends_with_status_1(shop: Shop) -> None:
    """Where it may not be parked: the user's own traceback, the message's place, no commit of it."""
    shop.send("a", "boom", "c")
    consumer = shop.consumer("--until-idle=0.5")
    consumer.wait(START_S, 1)
    told = consumer.stderr()
    assert 'raise LookupError("no such thing")' in told
    assert "orders/p:0:1 of orders/0 at offset 1, attempt 2" in told
    assert consumer.summary() == {
        "processed": 1, "skipped": 0, "parked": 0, "offsets": {"orders/0": 1},
    }  # fmt: skip
    assert shop.state() == {"count": 1, "log": ["a"]}
    assert shop.calls() == ["a", "boom", "boom"]


def test_sigterm_commits_what_is_being_handled(shop: Shop) -> None:
    """The message at hand is finished and committed, the next one is not begun; exit 0."""
    shop.send("slow", "b")
    consumer = shop.consumer("--drain=120")
    wait_until(lambda: shop.calls() == ["slow"], START_S, "the first call")
    consumer.send_signal(signal.SIGTERM)
    (shop.directory / "go").touch()
    consumer.wait(START_S, 0)
    assert shop.calls() == ["slow"]
    assert shop.state() == {"count": 1, "log": ["slow"]}
    assert consumer.summary()["processed"] == 1


def test_a_handler_that_does_not_return_is_given_up_after_the_drain(shop: Shop) -> None:
    """After --drain seconds the process ends uncommitted, with status 1 and its summary."""
    shop.send("stuck")
    consumer = shop.consumer("--drain=0.3")
    wait_until(lambda: shop.calls() == ["stuck"], START_S, "the call")
    consumer.send_signal(signal.SIGTERM)
    consumer.wait(START_S, 1)
    assert consumer.summary()["processed"] == 0
    assert "within 0.3 s" in consumer.stderr()


def test_a_second_signal_ends_at_once(shop: Shop) -> None:
    """Ctrl-C twice: no waiting, nothing committed, no traceback."""
    shop.send("stuck")
    consumer = shop.consumer("--drain=3600")
    wait_until(lambda: shop.calls() == ["stuck"], START_S, "the call")
    # Two signals may arrive as one: whoever is impatient presses Ctrl-C until it helps.
    wait_until(lambda: not consumer.send_signal(signal.SIGINT), START_S, "the end")
    consumer.wait(START_S, 130)
    assert "Traceback" not in consumer.stderr()


def test_a_frozen_consumer_that_was_replaced_ends_with_status_3(shop: Shop) -> None:
    """SIGSTOP, takeover after the lease, SIGCONT: no double effect, exit 3."""
    shop.send("slow")
    frozen = shop.consumer()
    wait_until(lambda: shop.calls() == ["slow"], START_S, "the first call")
    assert frozen.freeze()
    (shop.directory / "go").touch()
    taker = shop.consumer("--until-idle=1")
    taker.wait(START_S, 0)
    frozen.thaw()
    frozen.wait(START_S, 3)
    assert shop.state() == {"count": 1, "log": ["slow"]}
    assert shop.out() == ["slow"]


@pytest.mark.parametrize("where", ["elsewhere", "in its place"])
def test_a_copy_of_a_ledger_does_not_prove_its_frozen_owner_dead(shop: Shop, where: str) -> None:
    """`cp -a` of the state while the owner stands still: the copy waits as long as the lease runs."""
    shop.send("slow")
    frozen = shop.consumer()
    wait_until(lambda: shop.calls() == ["slow"], START_S, "the first call")
    assert frozen.freeze()
    frozen_at_s = time.monotonic()
    state, copy = shop.house.state, shop.directory / "copy"
    subprocess.run(["cp", "-a", str(state), str(copy)], check=True)
    if where == "in its place":
        state.rename(shop.directory / "original")
        copy.rename(state)
        copy = state
    taker = shop.house.start(
        "consumer", str(ROOT / "consumer.py"), "shopapp:app", f"--state={copy}"
    )
    shop.house.wait_for(taker, "consumer.standby")
    time.sleep(2.5)  # it asks again each second
    shop.house.refresh()
    waited_s = time.monotonic() - frozen_at_s
    granted = shop.house.history.of(taker.pid)["consumer.granted"]
    assert granted == 0 or waited_s > LEASE_MS / 1000 - 2, "it waits for the lease"
    taker.kill()
    assert shop.calls() == ["slow"]


def test_another_state_directory_gives_no_handler_call(shop: Shop) -> None:
    """LedgerNotHere names the directory where the ledger is."""
    shop.send("a")
    shop.consumer("--until-idle=0.5").wait(START_S, 0)
    lost = shop.house.start(
        "consumer",
        str(ROOT / "consumer.py"),
        "shopapp:app",
        f"--state={shop.directory / 'elsewhere'}",
    )
    lost.wait(START_S, 1)
    assert str(shop.house.state) in lost.stderr()
    assert shop.calls() == ["a"]


@pytest.mark.parametrize(
    ("target", "more", "says"),
    [
        ("shopapp", (), "MODULE:APP"),
        ("shopapp:nothing", (), "it has app"),
        ("nomodule:app", (), "no module 'nomodule'"),
        ("shopapp:app", ("--group=other",), "no group 'other'"),
        ("broken:app", (), "cannot be imported"),
    ],
)
def test_wrong_usage_is_status_2(
    house: House, tmp_path: Path, target: str, more: tuple[str, ...], says: str
) -> None:
    """One clear sentence, and a status that the supervisor does not restart."""
    shop = Shop(house)
    (shop.directory / "broken.py").write_text("raise ValueError('from the module')")
    consumer = house.consumer(target, *more)
    consumer.wait(START_S, 2)
    assert says in consumer.stderr()


def test_without_a_broker_it_says_so_and_waits(house: House) -> None:
    """The endpoint is named after two seconds; the consumer goes on when the broker comes."""
    shop = Shop(house)
    consumer = shop.consumer()
    wait_until(lambda: house.endpoint in consumer.stderr(), START_S, "a word about the broker")
    house.broker()
    shop.send("a")
    house.wait_for(consumer, "commit.synced")
    consumer.stop(START_S, 0)
    assert shop.state() == {"count": 1, "log": ["a"]}


def test_a_broker_that_restarts_is_no_event_for_a_consumer(shop: Shop) -> None:
    """Killed and started again, the broker is met again; nothing is lost or doubled."""
    shop.send("a")
    consumer = shop.consumer()
    shop.house.wait_for(consumer, "commit.synced")
    broker = next(running for running in shop.house.running if "broker" in str(running))
    broker.kill()
    shop.house.broker()
    shop.send("b")
    shop.house.wait_for(consumer, "commit.synced", 2)
    consumer.stop(START_S, 0)
    assert shop.state() == {"count": 2, "log": ["a", "b"]}
    assert shop.out() == ["a", "b"]


def test_a_process_whose_consumers_are_all_away_waits(tmp_path: Path) -> None:
    """While a database is away no consumer has a turn; the process looks now and then, at rest."""
    process = ConsumerProcess(
        [], broker="tcp://127.0.0.1:9", state=str(tmp_path), events=EventLog("consumer")
    )
    try:
        assert process._time_left_ms() == LOOK_MS
    finally:
        process._transport.close()
