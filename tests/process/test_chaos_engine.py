"""The fault engine itself: it hits, it counts, and it does not overlook a bad end."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncemq.chaos import Chaos, History, Program, ProgramFailed, Slot
from oncemq.chaos import engine as engine_module
from oncemq.chaos.holdings import Holdings, Owning

pytestmark = pytest.mark.process

BUSY_S = 300.0  # generous: the machine may be busy

# A program that works for ever, crashes at a point, and ends as fenced when a newer one owns the
# file `owner` - unless it is told to be deaf to that. No OnceMQ in it.
TOY = textwrap.dedent(
    """
    import json, os, secrets, signal, sys, time

    directory, role, manner = sys.argv[1:4]
    incarnation, n = secrets.token_hex(4), 0
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    path = os.path.join(directory, f"{role}-{os.getpid()}.jsonl")
    events = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def emit(event):
        global n
        line = dict(event=event, role=role, pid=os.getpid(), incarnation=incarnation, n=n)
        os.write(events, json.dumps(line).encode() + b"\\n")
        n += 1

    owner = os.path.join(directory, role + ".owner")
    doomed = manner == "doomed" and not os.path.exists(owner)
    if manner != "slow":
        open(owner, "a").write(incarnation + "\\n")
        emit("toy.owner")
    point, _, times = os.environ.get("ONCEMQ_CRASH_AT", ":0").partition(":")
    for turn in range(10_000):
        emit("toy.work")
        if manner == "slow" and turn == 40:
            open(owner, "a").write(incarnation + "\\n")
            emit("toy.owner")
            manner = "works"
        if manner == "ends" and turn == 3:
            sys.exit(1)
        if point and turn == int(times):
            os._exit(137)
        if doomed and open(owner).read().split()[-1] != incarnation:
            os._exit(137)
        if manner not in {"deaf", "slow"} and open(owner).read().split()[-1] != incarnation:
            if manner != "member":
                sys.exit(3)
            emit("toy.gave_up")
        time.sleep(0.005)
    """
)


OWNING = Owning("toy.owner", given_up="toy.gave_up")


class Stage:
    """Makes engines over toys in one directory."""

    def __init__(self, directory: Path) -> None:
        self.events, self.printed = directory / "events", directory / "printed"
        self.events.mkdir()
        self.printed.mkdir()
        self.toy = directory / "toy.py"
        self.toy.write_text(TOY, "utf-8")
        self.lines: list[str] = []
        self.engines: list[Chaos] = []

    def slot(self, role: str, manner: str = "works", points: tuple[str, ...] = ()) -> Slot:
        argv = (sys.executable, "-SE", str(self.toy), str(self.events), role, manner)
        planned = {"ONCEMQ_CRASH_AT": "point:99999"} if manner == "doomed" else {}
        program = Program(role, argv, planned)
        return Slot(role, program, frozenset({"toy.work"}), points, owned=OWNING)

    def engine(self, *slots: Slot, seed: int = 1, **options: Any) -> Chaos:
        """A started engine; `options` are those of Chaos."""
        engine = Chaos(
            slots,
            seed=seed,
            directory=self.printed,
            environ=dict(os.environ),
            history=History(self.events),
            **{"say": self.lines.append, **options},
        )
        self.engines.append(engine)
        engine.start()
        return engine


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Toys, with an engine that waits shorter between faults than for real programs."""
    monkeypatch.setattr(engine_module, "DELAY_S", 0.03)
    monkeypatch.setattr(engine_module, "PAUSE_S", 0.15)
    stage = Stage(tmp_path)
    yield stage
    for engine in stage.engines:
        engine.close()


def test_every_role_is_killed_at_work_and_started_again(stage: Stage) -> None:
    """The kills asked for are done, spread over the roles, most of them at work, all logged."""
    engine = stage.engine(stage.slot("broker", points=("point",)), stage.slot("consumer"))
    engine.run(24, takeovers=["consumer"], timeout_s=BUSY_S)
    engine.calm()
    engine.leave("broker")
    engine.leave("consumer")
    deeds = engine.deeds
    assert deeds.kills.total() >= 24
    assert min(deeds.kills["broker"], deeds.kills["consumer"]) >= 8
    assert deeds.at_work.total() >= 12
    assert deeds.crashes["point"] >= 1
    assert deeds.fenced["consumer"] == deeds.takeovers["consumer"] == 1
    logged = [line for line in stage.lines if " killed " in line or " crashed at " in line]
    assert len(logged) == deeds.kills.total()
    assert engine.history.holes == 0


def test_an_end_that_nobody_caused_fails_the_run(stage: Stage) -> None:
    """A program that ends by itself is a finding, also between two faults."""
    engine = stage.engine(stage.slot("broker", "ends"))
    with pytest.raises(ProgramFailed, match="ended with 1"):
        engine.breathe(BUSY_S)


def test_a_zombie_that_is_not_fenced_fails_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced process that goes on as if nothing had happened is a finding."""

    def time_is_over(line: str) -> None:
        if "thaw" in line:
            monkeypatch.setattr(engine_module, "ZOMBIE_S", 0.0)

    engine = stage.engine(stage.slot("consumer", "deaf"), say=time_is_over)
    with pytest.raises(ProgramFailed, match="is not fenced"):
        engine.run(0, takeovers=["consumer"], timeout_s=BUSY_S)


def test_nobody_is_replaced_who_owns_nothing_yet(stage: Stage) -> None:
    """A process at work that waits for its place cannot be taken over, and is asked again later.

    If it were frozen all the same, it would become the owner after its successor, by right.
    """
    engine = stage.engine(stage.slot("consumer", "slow"))
    engine.run(0, takeovers=["consumer"], timeout_s=BUSY_S)
    assert engine.deeds.fenced["consumer"] == engine.deeds.takeovers["consumer"] == 1
    zombie = next(line.split("pid ")[1].split(")")[0] for line in stage.lines if "freeze" in line)
    assert engine.history.of(int(zombie))["toy.owner"] == 1


def test_a_zombie_may_say_that_it_gave_up_its_place(stage: Stage) -> None:
    """A member of a group lets go of what its successor has, and may own other places."""
    engine = stage.engine(stage.slot("consumer", "member"))
    engine.run(0, takeovers=["consumer"], timeout_s=BUSY_S)
    assert engine.deeds.fenced["consumer"] == 1
    assert any("gave up what its successor has" in line for line in stage.lines)


def test_a_zombie_may_come_to_its_crash_point_before_it_is_fenced(stage: Stage) -> None:
    """A crash that the engine has planned for it is no finding, but it does not count as fenced."""
    engine = stage.engine(stage.slot("consumer", "doomed"))
    engine.run(0, takeovers=["consumer"], timeout_s=BUSY_S)
    assert (engine.deeds.takeovers["consumer"], engine.deeds.fenced["consumer"]) == (1, 0)
    assert any("it crashed at point:99999" in line for line in stage.lines)


def test_places_are_known_by_their_fields() -> None:
    """Each partition is a place of its own, and a new process with an old pid owns nothing."""
    holdings = Holdings([Owning("granted", ("topic", "partition"), "rejoined")])
    for event, partition in (("granted", 0), ("granted", 1), ("other", 2), ("rejoined", 0)):
        holdings.take({"event": event, "pid": 7, "topic": "t", "partition": partition})
    assert holdings.of(7) == {("t", 1)}
    assert holdings.of(8) == set()
    holdings.begin(7)
    assert holdings.of(7) == set()


def test_a_zombie_that_ends_well_fails_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zombie that reports success would hide from its user that it was replaced."""
    monkeypatch.setattr(engine_module, "FENCED", 4)
    engine = stage.engine(stage.slot("consumer"))
    with pytest.raises(ProgramFailed, match=r"zombie .* ended with 3"):
        engine.run(0, takeovers=["consumer"], timeout_s=BUSY_S)


def test_a_run_without_its_kills_in_time_fails(stage: Stage) -> None:
    """Time that runs out is not success."""
    engine = stage.engine(stage.slot("broker"))
    with pytest.raises(ProgramFailed, match="of 1000 kills"):
        engine.run(1000, takeovers=[], timeout_s=0.5)


def test_the_same_seed_draws_the_same_faults(stage: Stage) -> None:
    """The choices come from the seed alone."""
    drawn: list[list[float]] = []
    for seed in (5, 5, 6):
        engine = stage.engine(seed=seed)
        drawn.append([engine.rng.random() for _ in range(5)])
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write event lines of process 7."""

    def lines(*numbers: int, end: str = "\n", incarnation: str = "a") -> None:
        made = [
            json.dumps({"event": "e", "role": "r", "pid": 7, "incarnation": incarnation, "n": n})
            for n in numbers
        ]
        with (tmp_path / "r-7.jsonl").open("a") as stream:
            stream.write("\n".join(made) + end)

    return lines


def test_history_reads_on_where_it_was(tmp_path: Path, write: Callable[..., None]) -> None:
    """Each line is counted once, also one that was written in two halves."""
    history = History(tmp_path)
    write(0, 1)
    assert [line["n"] for line in history.refresh()] == [0, 1]
    assert history.refresh() == []
    write(2, end="")
    assert history.refresh() == []
    write(end="\n")
    assert [line["n"] for line in history.refresh()] == [2]
    assert history.of(7) == history.events == {"e": 3}
    assert (history.torn, history.holes) == (0, 0)


def test_history_shows_a_lost_line_and_a_torn_one(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    """A missing number and half a line are counted; a new process begins at any number."""
    history = History(tmp_path)
    write(0, 1, 4)
    with (tmp_path / "r-7.jsonl").open("a") as stream:
        stream.write('{"event": "e", "ro\n')
    write(0, incarnation="b")
    history.refresh()
    assert (history.torn, history.holes) == (1, 2)
