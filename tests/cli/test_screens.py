"""The screens of the commands, as a person sees them on terminals of 80 and 120 columns.

tests/cli/screens.txt keeps them. After a change that is meant, write it anew and read the difference:

    python -m tests.cli.test_screens
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oncemq.cli import chaos, consumer, dlq, effects, explain, groups, producer, verify
from oncemq.cli.output import print_table
from oncemq.library.consuming.tally import Summary
from oncemq.library.files.producer import Progress
from oncemq.library.files.rows import FileJob
from oncemq.library.operating.dead_letters import Letter
from oncemq.library.operating.group_state import GroupState, MemberState, PartitionState
from oncemq.library.operating.open_effects import EffectState
from oncemq.proof.story.story import Story
from oncemq.runtime.events import EventLog

KEPT = Path(__file__).with_name("screens.txt")
WIDTHS = (80, 120)
LONG_ID = "flights-2013-01:0:12345678"
AWAY = "no broker answers at tcp://127.0.0.1:7400"
HOSTILE = "no \x1b[2J stock\nforged\u202e"


class Screen(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True

    def seen(self) -> str:
        """What stands on it at last: without colours and without what was erased."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())
        lines = [line.rpartition("\r\x1b[K")[2].rstrip() for line in plain.split("\n")]
        return re.sub(r"\b\d\d:\d\d:\d\d\.\d{3} ", "12:34:56.789 ", "\n".join(lines))


def events(role: str) -> None:
    log = EventLog(role)
    log.emit("process.start", version="0.1.0", argv=["oncemq"], settings={"data": "data/broker"})
    log.emit("client.connected", endpoint="tcp://127.0.0.1:7400", epoch=3, log_id="ab12")
    if role == "consumer":
        log.emit(
            "message.parked", group="billing", topic="orders", partition=0, epoch=2, offset=17,
            id=LONG_ID, kind="raised", attempts=3, error=HOSTILE,
        )  # fmt: skip
    if role == "supervise":
        log.emit("supervise.started", child_pid=4711, command=["python", "broker.py"], attempt=1)
        log.emit("supervise.exited", child_pid=4711, signal="SIGKILL", ran_s=1.25)
        log.emit("supervise.restarting", delay_s=0.1, failures=1)
    log.emit("process.stop", exit_code=0)


def producer_screen() -> None:
    with producer._progress(FileJob("orders", "orders.csv", "csv", (), None)) as report:
        report(Progress(sent=12_000, position=45, total=100, waiting_for=AWAY))
        events("producer")
    producer._print_summary(Progress(sent=12_345, appended=12_300))


def consumer_screen() -> None:
    console = consumer._Console(EventLog("consumer"), quiet=True)
    console.progress(Summary(processed=1_234, skipped=5, parked=1))
    events("consumer")
    console.standby("another member has orders/0 of group billing: stand by")
    console.clear()


def groups_screen() -> None:
    partition = PartitionState(
        "flights", 0, "worker@host-17", "host-17", "/srv/state", 3, True, "ab", 100, 120, "", [(5, 9, HOSTILE)]
    )  # fmt: skip
    away = PartitionState("flights", 1, "", "", "", 0, False, "", 0, 7, "worker-2")
    member = MemberState("flights", "ab", "worker@host-17", 1, 120)
    groups._print_state(GroupState("billing", [partition, away], [member]))


def letter(offset: int, kind: str, error: str) -> Letter:
    body, at_ms = b"", 1_700_000_000_000
    return Letter(
        "flights-2013-01", 0, offset, "billing", kind, 3, error, at_ms, None, body, b"", None
    )


def dlq_screen() -> None:
    letters = [
        letter(17, "raised", f"ValueError: {HOSTILE}"),
        letter(12345678, "rejected", "Reject: x"),
    ]
    columns = ("id", "group", "message", "kind", "attempts", "parked at", "status", "error")
    print_table("dead letters of flights-2013-01", columns, list(map(dlq._row, letters)), whole=3)
    dlq._print_counts("flights-2013-01", letters, as_json=False)


def effects_screen() -> None:
    effect = EffectState(
        f"billing:{LONG_ID}:charge:1", "billing", "flights", 0, 7, "charge", f"billing/{LONG_ID}", "unknown",
        "ask", 1, 1_700_000_000_000, f"TimeoutError: {HOSTILE}", "", "/srv/state",
    )  # fmt: skip
    columns = ("id", "key", "state", "policy", "calls", "since", "why")
    print_table("effects without a result", columns, [effects._row(effect)], whole=2)


def verify_screen() -> None:
    row = {"processed": 98, "pending": 1, "parked": 1, "skipped": 0}
    found = SimpleNamespace(notes=["1 ledger is elsewhere"], kept=[f"id {HOSTILE} twice"], total=1)
    report: Any = SimpleNamespace(
        topics={"flights": {"accepted": 100, "groups": {"billing": row}}, "idle": {"accepted": 0, "groups": {}}},
        outputs_pending=2, found=found, ok=False, elapsed_s=0.5,
    )  # fmt: skip
    verify._print(report)


def explain_screen() -> None:
    story = Story(HOSTILE, "flights", notes=["no event files were read"])
    story.accepted = {
        "appended_at_ms": 1_700_000_000_000, "offset": 7, "partition": 0, "batch_messages": 1,
        "position": 99, "key": HOSTILE, "value_bytes": 3, "encoding": "json", "value": "{}",
    }  # fmt: skip
    for line in explain._lines(story):
        explain.say(line)


def chaos_screen() -> None:
    verdict = SimpleNamespace(
        report=None,
        notes=["a pause was cut short"],
        anomalies=[HOSTILE],
        anomalies_total=1,
        ok=False,
    )
    deeds = SimpleNamespace(kills=Counter(broker=2), pauses=Counter(), takeovers=Counter())
    watch = SimpleNamespace(duplicates=4, skipped=5)
    outcome: Any = SimpleNamespace(
        verdict=verdict, deeds=deeds, watch=watch, fed=100, plan=SimpleNamespace(seed=7)
    )
    chaos._tell(outcome, "report.html")


def topics_screen() -> None:
    print_table(
        "topics", ("topic", "partitions", "messages"), [("flights", 4, 27_004), ("orders", 1, 0)]
    )


SCREENS: dict[str, Callable[[], None]] = {
    "producer": producer_screen,
    "consumer": consumer_screen,
    "supervise": lambda: events("supervise"),
    "topics": topics_screen,
    "groups": groups_screen,
    "dlq": dlq_screen,
    "effects": effects_screen,
    "verify": verify_screen,
    "explain": explain_screen,
    "chaos": chaos_screen,
}


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[Screen]:
    """Standard output and error are one terminal of this width."""
    screen = Screen()
    before = os.environ.copy()
    os.environ.update(COLUMNS=str(columns), LINES="50", TERM="xterm-256color")
    os.environ.pop("NO_COLOR", None)
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = screen
    try:
        yield screen
    finally:
        sys.stdout, sys.stderr = streams
        os.environ.clear()
        os.environ.update(before)


def shown(name: str, columns: int) -> str:
    with terminal(columns) as screen:
        SCREENS[name]()
    return screen.seen()


def drawn() -> str:
    """All screens, each under its name."""
    return "".join(
        f"=== {name}, {columns} columns\n{shown(name, columns)}"
        for name in SCREENS
        for columns in WIDTHS
    )


def test_the_screens_are_as_they_were_looked_at() -> None:
    """No screen changes by the way."""
    assert drawn() == KEPT.read_text("utf-8")


@pytest.mark.parametrize("columns", [20, 40, 80, 120])
def test_what_is_pasted_is_never_cut(columns: int) -> None:
    """The id of a letter, and the id and key of an effect, stand on one line at every width."""
    assert "flights-2013-01.dead:0:12345678" in shown("dlq", columns)
    effect = shown("effects", columns)
    assert f"billing:{LONG_ID}:charge:1" in effect
    assert f"billing/{LONG_ID}:charge" in effect


@pytest.mark.parametrize("name", SCREENS)
def test_text_of_others_acts_on_no_screen(name: str) -> None:
    """Whatever an id, key or error holds, a screen has the lines that the command gave it."""
    text = shown(name, 120)
    assert "\x1b" not in text
    assert not re.search("^forged", text, re.MULTILINE)
    assert "\u202e" not in text


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR is respected; elsewhere than on a terminal a table is plain."""
    with terminal(80) as screen:
        topics_screen()
        events("supervise")
    assert "\x1b[36m" in screen.getvalue()
    with terminal(80) as screen:
        os.environ["NO_COLOR"] = "1"
        topics_screen()
        events("supervise")
    assert "\x1b[36m" not in screen.getvalue()
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    topics_screen()
    assert plain.getvalue() == "TOPIC\tPARTITIONS\tMESSAGES\nflights\t4\t27004\norders\t1\t0\n"


if __name__ == "__main__":
    KEPT.write_text(drawn(), "utf-8")
