"""The run itself: what was told must be whole (I16), in time (I2), and must have tried something."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..model import Violation
from .evidence import Evidence
from .table import check


@check("I2-acked-is-durable", "history")
def acked_is_durable(evidence: Evidence) -> Iterator[Violation]:
    """A process tells of a stored batch or a commit only after a sync that covers it has returned.

    Judged for processes that tell of their syncs (`--log-level debug`).
    """
    assert evidence.history is not None
    ends: dict[str, int] = {}
    for event in evidence.history.events:
        if event.name in {"log.synced", "log.opened"} and "durable_end" in event.fields:
            end = event.fields["durable_end"]
            ends[event.incarnation] = max(end, ends.get(event.incarnation, 0))
        elif event.name in {"batch.appended", "commit.synced"} and "position" in event.fields:
            end = ends.get(event.incarnation, 0)
            if event.incarnation in ends and event.fields["position"] >= end:
                where = f"{event.role} {event.pid}"
                reason = f"{event.name} at {event.fields['position']}, synced up to {end}"
                yield Violation("I2-acked-is-durable", where, (), reason)


@check("I16-history-whole", "history")
def history_whole(evidence: Evidence) -> Iterator[Violation]:
    """Every process numbers its events without holes, and time does not go back in one."""
    history = evidence.history
    assert history is not None
    for where, reason in history.faults:
        yield Violation("I16-history-whole", where, (), reason)
    expected: dict[str, int] = defaultdict(int)
    latest: dict[str, int] = {}
    for event in history.events:
        where = f"{event.role} {event.pid} ({event.incarnation})"
        if event.n != expected[event.incarnation]:
            reason = f"event {expected[event.incarnation]} is missing, {event.n} follows"
            yield Violation("I16-history-whole", where, (), reason)
        if event.mono_ns < latest.get(event.incarnation, event.mono_ns):
            yield Violation("I16-history-whole", where, (), f"time goes back at event {event.n}")
        expected[event.incarnation] = event.n + 1
        latest[event.incarnation] = event.mono_ns


@check("I16-sends-whole", "history")
def sends_whole(evidence: Evidence) -> Iterator[Violation]:
    """A run that tells of its sends has some, and none ended before it began."""
    assert evidence.history is not None
    if not evidence.history.sends and evidence.history.sends_complete:
        yield Violation("I16-sends-whole", "the run", (), "nothing was sent")
    for send in evidence.history.sends:
        if send.ended and send.ended < send.began:
            where = f"{send.topic}/{send.partition} by {send.process}"
            yield Violation(
                "I16-sends-whole", where, (send.message_id,), "it ended before it began"
            )


@check("not-vacuous")
def not_vacuous(evidence: Evidence) -> Iterator[Violation]:
    """What the run was asked to try has happened: a run that killed nothing proves nothing."""
    for name, least in sorted(evidence.required.items()):
        count = evidence.counters[name]
        if count < least:
            reason = f"{count} times, at least {least} were asked for"
            yield Violation("not-vacuous", name, (), reason)
