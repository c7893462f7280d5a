"""The verdict on a run: from the files alone, from what processes told, and from what was tried.

`oncemq verify` is the first part of it. The checks of a run stand on its report, with every row that
was fed as a send that must be in the log as it was sent; they want the messages in memory, and are
left out where these are too many. And a run that killed nothing, or in which nothing had to be
suppressed, does not pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import OnceMQError
from ..ids import sequence_id, untagged_id
from ..proof.checks.evidence import INFO, OK, Evidence, Send
from ..proof.checks.history import count_events, read_history
from ..proof.checks.verdict import run_checks
from ..proof.findings import Violation
from ..proof.parse.batch import body_hash
from ..proof.parse.files import OsFiles
from ..proof.parse.tables import Look as TableLook
from ..proof.story.explain import explain
from ..proof.verify.verify import Report, Tell, silent, verify
from .feed import Feed
from .slots import Deeds

Sink = tuple[str, TableLook]  # how a database is called, and what opens a look into it
IN_MEMORY_MAX = 1_000_000  # messages; above it only what needs no memory is checked
STORIES_MAX = 20  # lives of messages that are told
ANOMALIES_MAX = 1000
PARTITION = 0  # the topic of the input is fresh and has one


@dataclass(slots=True)
class Verdict:
    """What a run came to."""

    anomalies: list[Violation] = field(default_factory=list)
    anomalies_total: int = 0
    report: Report | None = None  # of `verify`; None if the files could not be read
    checks_run: list[str] = field(default_factory=list)
    checks_not_run: dict[str, str] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    stories: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.anomalies_total and self.report is not None

    def add(self, violations: Iterable[Violation], total: int | None = None) -> None:
        """Take anomalies; `total` counts those that are not among them as well."""
        found = list(violations)
        self.anomalies_total += len(found) if total is None else total
        self.anomalies += found[: ANOMALIES_MAX - len(self.anomalies)]


@dataclass(frozen=True, slots=True)
class Run:
    """What the judge gets to know of a run."""

    directory: Path
    topic: str
    feed: Feed
    consumes: tuple[tuple[str, str], ...]  # (group, topic) of every handler
    roles: tuple[str, ...]  # that were to be hit
    deeds: Deeds
    counters: Counter[str]  # what only the watcher knows
    drained: bool  # faults were over, and everything had time to be processed
    failure: str = ""  # why the play was broken off
    earlier: tuple[Report, ...] = ()  # looks at the files during the run
    damage: tuple[Violation, ...] = ()  # what such looks could not read
    sink: Sink | None = None  # the database that ledgers are in


def look(directory: Path, sink: Sink | None, tell: Tell = silent) -> Report:
    """The system may be running. Raises what `verify` raises."""
    data, state = str(directory / "broker"), _state(directory)
    return verify(OsFiles(), data, state, sink=sink, tell=tell, keep_max=IN_MEMORY_MAX)


def _state(directory: Path) -> str | None:
    state = directory / "consumers"
    return str(state) if state.is_dir() else None


def judge(run: Run, tell: Tell) -> Verdict:
    verdict = Verdict(counters=Counter(run.counters))
    verdict.counters["suppressed"] = run.counters["refused"] + run.counters["skipped"]
    if run.failure:
        verdict.add([Violation("ended-unasked", "the cast", (), run.failure)])
    verdict.add(run.damage)
    try:
        _check(run, verdict, tell)
    except OnceMQError as error:
        verdict.add(
            [Violation("files", str(run.directory), (), f"{type(error).__name__}: {error}")]
        )
    if not run.failure:  # one that was broken off does not pass anyway
        verdict.add(vacuous(run, verdict.counters))
    verdict.stories = list(_stories(run, verdict))
    return verdict


def _check(run: Run, verdict: Verdict, tell: Tell) -> None:
    """Prove the files, and run the checks that want more than files."""
    tell("history", 0, 0)
    history = read_history(str(run.directory / "events"))
    if history.torn_lines:
        verdict.notes.append(f"{history.torn_lines} lines of events were cut by kills")
    verdict.counters.update(count_events(history))
    history.sends = list(_sends(run))
    history.sends_complete = not run.failure
    verdict.report = report = look(run.directory, run.sink, tell)
    verdict.notes += report.found.notes
    _count(run, report, verdict)
    if report.kept is None:
        verdict.notes.append(
            f"{verdict.counters['accepted']} messages are too many for the checks in memory: those "
            "of verify were made, and those that want every message were not"
        )
    evidence = Evidence(
        history, report, list(run.earlier), drained=run.drained, counters=verdict.counters
    )
    checked = run_checks(evidence, tell=lambda done, whole: tell("checks", done, whole))
    verdict.add(checked.found.kept, checked.found.total)
    verdict.checks_run, verdict.checks_not_run = checked.ran, checked.not_run


def _count(run: Run, report: Report, verdict: Verdict) -> None:
    """Count what became of the messages; everything fed was accepted, and each group was at work."""
    topic = report.topics.get(run.topic, {"accepted": 0, "groups": {}})
    for its in report.topics.values():
        verdict.counters["accepted"] += its["accepted"]
        verdict.counters["processed"] += sum(row["processed"] for row in its["groups"].values())
    if not run.drained:
        return
    if topic["accepted"] < run.feed.fed:
        reason = f"{run.feed.fed} rows were fed, the log holds {topic['accepted']} messages"
        verdict.add([Violation("fed-is-accepted", run.topic, (), reason)])
    for group, name in run.consumes:
        if name in report.topics and group not in report.topics[name]["groups"]:
            reason = "it has processed nothing: there is no ledger"
            verdict.add([Violation("drained", f"group {group} {name}", (), reason)])


def vacuous(run: Run, counters: Counter[str]) -> list[Violation]:
    """Return what was to be tried and was not: such a run proves nothing."""
    reasons = []
    kills = run.deeds.kills
    if not kills.total():
        reasons.append("no process was killed: nothing was put to the test")
    else:
        reasons += [f"no {role} was killed" for role in run.roles if not kills[role]]
        if not run.deeds.at_work.total():
            reasons.append("no process was at work when it was killed")
    for name, what in (("accepted", "accepted"), ("processed", "processed")):
        if not counters[name]:
            reasons.append(f"no message was {what}")
    resent = not {"broker", "producer"}.isdisjoint(run.roles)  # consumers alone send nothing again
    if resent and not counters["suppressed"]:
        reasons.append(
            "no duplicate had to be suppressed: run longer, or hit more (broker and producers; "
            "those with id fields send most again)"
        )
    return [Violation("not-vacuous", "the run", (), reason) for reason in reasons]


def _sends(run: Run) -> Iterable[Send]:
    """Every row that was fed, as the send of its producer; its end was waited for."""
    for portion in run.feed.portions:
        outcome = OK if portion.confirmed else INFO
        for number, tagged, body in run.feed.sent_rows(portion):
            name = (
                sequence_id(run.topic, portion.producer, PARTITION, number)
                if tagged is None
                else untagged_id(tagged)
            )
            shown = name if isinstance(name, str) else "0x" + name.hex()
            yield Send(
                portion.producer,
                run.topic,
                PARTITION,
                shown,
                outcome,
                body_hash=body_hash(body),
            )


def _stories(run: Run, verdict: Verdict) -> Iterable[dict[str, Any]]:
    wanted: dict[tuple[str, str], None] = {}
    topics = list(verdict.report.topics) if verdict.report is not None else [run.topic]
    for anomaly in verdict.anomalies:
        for message_id in anomaly.ids:
            named = [topic for topic in topics if message_id.startswith(topic + "/")]
            told = [topic for topic in topics if topic in anomaly.where.replace("/", " ").split()]
            wanted[(named or told or [run.topic])[0], message_id] = None
    if not wanted:
        return
    history = read_history(str(run.directory / "events"))
    for topic, message_id in list(wanted)[:STORIES_MAX]:
        try:
            story = explain(
                OsFiles(),
                message_id,
                topic=topic,
                data=str(run.directory / "broker"),
                state=_state(run.directory),
                sink=run.sink,
                history=history,
            )
        except OnceMQError as error:
            yield {"id": message_id, "topic": topic, "notes": [str(error)]}
            continue
        yield story.as_dict()
