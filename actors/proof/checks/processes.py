"""What processes reported by events: whole, in time, lawful, and still true (I2, I8, I12, I16, P10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..findings import Violation
from ..verify.effects import MAY_FOLLOW, RECORDED
from .evidence import Event, Evidence
from .registry import check

_Call = tuple[int, str]  # number, and how it ended: "" as long as no event says


@check("I2-acked-is-durable", "history")
def acked_is_durable(evidence: Evidence) -> Iterator[Violation]:
    """A process reports a stored batch or a commit only after a sync that covers it has returned.

    Judged for processes that report their syncs (`--log-level debug`).
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


@check("I8-told-is-kept", "history", "messages")
def told_is_kept(evidence: Evidence) -> Iterator[Violation]:
    """A commit that a process reported as synced is in the ledger, as it was reported."""
    assert evidence.history is not None
    assert evidence.messages is not None
    ledgers = {ledger.place: ledger for ledger in evidence.messages.ledgers}
    offsets = {
        place: {commit.commit_no: commit.next_offset for commit in ledger.commits}
        for place, ledger in ledgers.items()
    }
    for event in evidence.history.named("commit.synced"):
        fields = event.fields
        place = (fields["group"], fields["topic"], fields["partition"])
        ledger = ledgers.get(place)
        if ledger is None:
            continue
        number, offset = fields["commit_no"], fields["next_offset"]
        if number > ledger.base_commit_no:
            lost = offsets[place].get(number) != offset
        else:
            lost = offset > ledger.reached
        if lost:
            reason = f"process {event.pid} had commit {number} up to offset {offset}"
            yield Violation("I8-told-is-kept", ledger.where, (), reason)


@check("I12-delivery-order", "history")
def delivery_order(evidence: Evidence) -> Iterator[Violation]:
    """Under one epoch each commit starts where the last one ended: no skip, no repeat."""
    assert evidence.history is not None
    ends: dict[tuple[str, str, int, int], int] = {}
    for event in evidence.history.named("commit.synced"):
        fields = event.fields
        key = (fields["group"], fields["topic"], fields["partition"], fields["epoch"])
        first, following = fields["first_offset"], fields["next_offset"]
        if ends.setdefault(key, first) != first:
            reason = f"epoch {key[3]} goes on at offset {first}, it had ended at {ends[key]}"
            where = f"group {key[0]} {key[1]}/{key[2]}"
            yield Violation("I12-delivery-order", where, (), reason)
        ends[key] = following


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


@check("P10-told", "history")
def calls_as_told(evidence: Evidence) -> Iterator[Violation]:
    """No process reports a call that comes again though its result is known, or unasked."""
    assert evidence.history is not None
    last: dict[tuple[object, ...], _Call] = {}
    for event in evidence.history.named(
        "effect.intended", "effect.done", "effect.unknown", "effect.resolved"
    ):
        fields = event.fields
        names = ("group", "topic", "partition", "offset", "name")
        place = tuple(fields[name] for name in names)
        number = fields["number"]
        if event.name != "effect.intended":
            last[place] = (number, fields.get("how", "unknown"))
            continue
        reason = _why_wrong(event, last.get(place))
        if reason:
            where = f"group {place[0]} {place[1]}/{place[2]} offset {place[3]}"
            yield Violation("P10-told", where, (), f"effect {place[4]}: {reason}")
        last[place] = (number, "")


def _why_wrong(event: Event, before: _Call | None) -> str:
    number, policy = event.fields["number"], event.fields["policy"]
    if before is None or number == 1:  # the first, or read again after an operator went back
        return ""
    if number != before[0] + 1:
        return f"call {number} follows call {before[0]}"
    if before[1] in RECORDED:
        return f"call {number} is made though the result of the last was recorded"
    if before[1] in MAY_FOLLOW or policy == "retry":
        return ""
    return f"call {number} is made under {policy} though the outcome of the last is unknown"
