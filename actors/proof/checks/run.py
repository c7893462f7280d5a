"""The run as a whole: everything was done in the end (I14), and something was tried."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Violation
from .evidence import Evidence
from .registry import check


@check("I14-all-done", "report")
def all_done(evidence: Evidence) -> Iterator[Violation]:
    """Once faults are over and time was given, no message waits for a group, and no output."""
    report = evidence.report
    assert report is not None
    if not evidence.drained:
        return
    for topic, its in report.topics.items():
        for group, row in its["groups"].items():
            if row["pending"]:
                reason = f"{row['pending']} messages were not processed when all was over"
                yield Violation("I14-all-done", f"group {group} {topic}", (), reason)
    if report.outputs_pending:
        reason = f"{report.outputs_pending} outputs are committed and were never sent"
        yield Violation("I14-all-done", "outputs", (), reason)


@check("not-vacuous")
def not_vacuous(evidence: Evidence) -> Iterator[Violation]:
    """What the run was asked to try has happened: a run that killed nothing proves nothing."""
    for name, least in sorted(evidence.required.items()):
        count = evidence.counters[name]
        if count < least:
            reason = f"{count} times, at least {least} were asked for"
            yield Violation("not-vacuous", name, (), reason)
