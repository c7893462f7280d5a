"""`oncemq chaos` with real processes: a good application passes, a bad one fails, Ctrl-C is clean."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from oncemq.chaos import Chaos, Program, Running, wait_until
from oncemq.chaos.feed import Feed, Input, read_input
from oncemq.chaos.judge import Run, judge
from oncemq.chaos.slots import Deeds
from oncemq.library.files.rows import FileJob
from tests.process.house import ROOT, START_S
from tests.process.test_chaos_engine import Stage

pytestmark = pytest.mark.process

SHOP = """
from oncemq import App

app = App()

@app.consumer("orders", group="billing", retries=0, park=False)
def bill(order, tx):
    if order.value["sku"] == "poison":
        raise ValueError("not for sale")
    tx.state[order.value["sku"]] = tx.state.get(order.value["sku"], 0) + 1
    if int(order.value["id"]) % 3 == 0:
        tx.send("invoices", order.value["id"])

@app.consumer("invoices", group="post")
def post(invoice, tx):
    tx.state["posted"] = tx.state.get("posted", 0) + 1
"""
ROWS = 300  # a round is over after a second: the run begins several


class Shop:
    """A user's directory: an application and its input."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kept = directory / "kept"
        (directory / "shop.py").write_text(SHOP, "utf-8")
        self.orders = directory / "orders.csv"
        self.write()
        (directory / "printed").mkdir()
        (directory / "tmp").mkdir()

    def write(self, poison: int = -1) -> None:
        """Write the input; the row `poison` cannot be handled."""
        rows = [f"{n},sku{n % 7}" for n in range(ROWS)]
        if poison >= 0:
            rows[poison] = f"{poison},poison"
        self.orders.write_text("\n".join(["id,sku", *rows]) + "\n", "utf-8")

    def chaos(self, *more: str, before: str = "") -> Running:
        """Start the command in the user's directory, in a process that runs `before` first."""
        code = f"{before}\nimport os, sys; os.chdir({str(self.directory)!r}); from oncemq.cli.main import main; sys.exit(main())"
        argv = ("chaos", "shop:app", "--topic=orders", "--input=orders.csv", "--seed=3", *more)
        program = Program("chaos", (sys.executable, "-c", code, *argv))
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.directory / "tmp")}
        return program.start(self.directory / "printed", environ)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def marks(page: str) -> Counter[str]:
    (picture,) = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    groups = ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}g")
    return Counter(its.get("class").split()[1] for its in groups if "mark " in its.get("class", ""))


def test_a_good_application_passes(shop: Shop) -> None:
    """Kills of all roles, input in several rounds, verdict, report; then the same files are judged
    by a judge who knows of one more row, and by one who knows of one less."""
    with shop.chaos(
        "--kills=8", "--id-field=id", f"--keep={shop.kept}", "--report=out.html", "--json"
    ) as running:
        running.wait(500, 0)
    told = running.summary()
    assert told["ok"], told
    assert sum(told["kills"].values()) >= 8
    assert all(told["kills"][role] >= 1 for role in ("broker", "producer", "consumer"))
    assert told["topics"]["orders"]["accepted"] == told["rows_fed"] > ROWS
    assert told["topics"]["orders"]["groups"]["billing"]["processed"] == told["rows_fed"]
    assert told["rounds"] >= 2
    assert told["suppressed"]["refused_by_broker"] >= 1
    assert told["topics"]["invoices"]["groups"]["post"]["pending"] == 0
    assert {"I1-answer-is-kept", "I4-was-sent", "I6-history-stays"} <= set(told["checks_run"])
    page = (shop.directory / "out.html").read_text("utf-8")
    assert page == (shop.kept / "report.html").read_text("utf-8")
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page), "it needs no network"
    verdict = json.loads((shop.kept / "verdict.json").read_text("utf-8"))
    assert marks(page) == Counter(fault["kind"] for fault in verdict["faults"])
    assert marks(page).total() >= 8
    judged_again(shop)


def judged_again(shop: Shop) -> None:
    """Let judges with a wrong idea of what was fed look at the files of the good run."""
    source = read_input(FileJob("orders", str(shop.orders), "csv", ("id",)))
    feed = portions_of(shop, source)
    good = judge(run_of(shop, feed), lambda *_: None)
    assert good.ok, good.anomalies
    first = feed.portions[0]
    text = first.path.read_text("utf-8")
    with first.path.open("a") as stream:
        stream.write("4711,sku1\n")
    feed.fed += 1
    lost = judge(run_of(shop, feed), lambda *_: None)
    assert {its.check for its in lost.anomalies} == {"I1-answer-is-kept", "fed-is-accepted"}
    (story,) = lost.stories
    assert story["id"] == "4711"
    assert story["accepted"] is None
    first.path.write_text(text.replace(text.splitlines()[1] + "\n", "", 1), "utf-8")
    feed.fed -= 2
    invented = judge(run_of(shop, feed), lambda *_: None)
    assert [its.check for its in invented.anomalies] == ["I4-was-sent"]
    (story,) = invented.stories
    assert story["accepted"]["offset"] >= 0
    assert story["groups"][0]["status"] == "processed"
    first.path.write_text(text.replace(",sku0", ",other", 1), "utf-8")
    feed.fed += 1
    (altered,) = judge(run_of(shop, feed), lambda *_: None).anomalies
    assert "another body" in altered.explanation


def portions_of(shop: Shop, source: Input) -> Feed:
    """Find the portions of a run that is over, from its files."""
    scratch = shop.directory / "scratch"
    scratch.mkdir()
    feed = Feed(source, scratch, 1, rate=1, rng=random.Random(1))
    model = feed.portions.pop()
    for path in sorted((shop.kept / "input").iterdir()):
        head, *rows = path.read_text("utf-8").splitlines()
        portion = type(model)(
            len(feed.portions) + 1, 1, 0, len(rows), path, path.stem, tuple(source.id_fields(1))
        )
        if "oncemq_round" in head:
            portion.id_fields = source.id_fields(2)
        portion.fed, portion.confirmed = len(rows), True
        feed.portions.append(portion)
        feed.fed += len(rows)
    return feed


def run_of(shop: Shop, feed: Feed) -> Run:
    return Run(
        directory=shop.kept,
        topic="orders",
        feed=feed,
        consumes=(("billing", "orders"), ("post", "invoices")),
        roles=("broker",),
        deeds=Deeds(kills=Counter(broker=1), at_work=Counter(broker=1)),
        counters=Counter(refused=1),
        drained=True,
    )


def test_a_bad_application_fails(shop: Shop) -> None:
    """A handler that raises ends its consumer: the run is broken off, told, kept, and fails."""
    shop.write(poison=150)
    with shop.chaos("--minutes=1", "--json") as running:
        running.wait(500, 1)
    told = running.summary()
    assert not told["ok"]
    (ended,) = [its for its in told["anomalies_shown"] if its["check"] == "ended-unasked"]
    assert "not for sale" in ended["explanation"]
    kept = Path(told["directory"])
    assert kept.parent == shop.directory / "tmp"
    assert "not for sale" in (kept / "report.html").read_text("utf-8")
    assert alive(shop) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(shop: Shop, number: signal.Signals) -> None:
    """Ctrl-C ends every process of the cast, removes the directory and gives no verdict."""
    with shop.chaos("--minutes=5") as running:
        wait_until(lambda: "killed" in running.stderr(), START_S, "the first kill")
        assert len(alive(shop)) >= 5, "the cast and the command"
        running.send_signal(number)
        running.wait(START_S)
    check_interrupted(shop, running)


# Sends itself a signal in a hook that runs around the n-th fork, where Python drops exceptions.
AT_FORK = """
import itertools, os, signal
forks = itertools.count(1)
os.register_at_fork(
    after_in_parent=lambda: next(forks) == {n} and signal.raise_signal(signal.SIGINT)
)
"""


@pytest.mark.parametrize("fork", [1, 3, 7], ids=["first", "cast", "restart"])
def test_a_signal_while_a_process_is_started_is_not_lost(shop: Shop, fork: int) -> None:
    """Ctrl-C in the middle of a fork ends the run as at any other moment."""
    with shop.chaos("--minutes=0.5", before=AT_FORK.format(n=fork)) as running:
        running.wait(START_S)
    check_interrupted(shop, running)


def check_interrupted(shop: Shop, running: Running) -> None:
    """The command has ended by Ctrl-C: no verdict, no process, no file, nothing to worry about."""
    assert running.exit_code == 130, running.told()
    assert "no verdict" in running.stderr()
    assert "PASSED" not in running.stdout()
    for word in ("Traceback", "Exception ignored"):
        assert word not in running.stderr()
    assert list((shop.directory / "tmp").iterdir()) == []
    assert alive(shop) == []


def test_only_who_may_be_hit_is_hit(tmp_path: Path) -> None:
    """For a time, only the named roles, without pauses; every fault is kept with its time."""
    stage = Stage(tmp_path)
    slots = [stage.slot("broker"), stage.slot("consumer", points=("point",))]
    engine = stage.engine(*slots, roles={"consumer"}, pauses=False, gap_s=0.05)
    try:
        began_s = engine.now_s
        engine.run_for(3.0, takeovers=["consumer"])
        assert engine.now_s >= began_s + 3.0
        while not engine.deeds.takeovers:  # a busy machine may not have come to what was due
            engine.run_for(1.0, takeovers=["consumer"])
        while engine.deeds.kills["consumer"] < 3:
            engine.run_for(1.0, takeovers=[])
        engine.calm()
        assert engine.deeds.kills["broker"] == engine.deeds.pauses.total() == 0
        assert engine.deeds.fenced == {"consumer": 1}
        kinds = Counter(fault.kind for fault in engine.faults)
        assert kinds["kill"] + kinds["crash"] == engine.deeds.kills.total()
        assert (kinds["takeover"], kinds["fenced"], kinds["pause"]) == (1, 1, 0)
        times = [fault.at_s for fault in engine.faults]
        assert times == sorted(times)
        (takeover,) = [fault for fault in engine.faults if fault.kind == "takeover"]
        assert takeover.until_s is not None
        assert takeover.until_s > takeover.at_s
    finally:
        engine.close()


def test_a_slot_that_is_asked_to_end_is_renewed(tmp_path: Path) -> None:
    """Its end is no finding; what comes next is what the slot says, and nothing after the last."""
    stage = Stage(tmp_path)
    slot = stage.slot("producer")
    following = [replace(slot.program, name="second"), None]
    ended: list[Running] = []

    def renew(running: Running) -> Program | None:
        ended.append(running)
        return following.pop(0)

    engine = stage.engine(replace(slot, renew=renew))
    try:
        for count in (1, 2):
            wait_until(lambda: breathe(engine) and engine.ask_to_end("producer"), START_S, "asked")
            assert not engine.ask_to_end("producer"), "it was asked already"
            wait_until(lambda: breathe(engine) and len(following) == 2 - count, START_S, "ended")  # noqa: B023
        assert [its.program.name for its in ended] == ["producer", "second"]
        assert [its.exit_code for its in ended] == [0, 0]
        assert engine.present == []
    finally:
        engine.close()


def breathe(engine: Chaos) -> bool:
    engine.breathe(0.01)
    return True


def alive(shop: Shop) -> list[str]:
    """Return the command lines of processes that work in the user's directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == shop.directory.resolve():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended meanwhile, or is not ours
    return found
