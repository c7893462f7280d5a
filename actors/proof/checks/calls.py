"""Calls of the outside world: what ledgers and processes tell of them (P10)."""

from __future__ import annotations

from collections.abc import Iterator

from ..model import Violation
from ..verify.effects import MAY_FOLLOW, RECORDED
from .evidence import Event, Evidence
from .table import check

_Call = tuple[int, str]  # number, and how it ended: "" while nobody has told


@check("P10-effects", "ledgers")
def calls_are_lawful(evidence: Evidence) -> Iterator[Violation]:
    """A call is intended first, not repeated unasked, and not passed while unknown."""
    assert evidence.ledgers is not None
    for ledger in evidence.ledgers:
        for reason in ledger.wrong_effects:
            yield Violation("P10-effects", ledger.where, (), reason)


@check("P10-told", "history")
def calls_as_told(evidence: Evidence) -> Iterator[Violation]:
    """No process tells of a call that comes again though its result was told, or unasked."""
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
    return f"call {number} is made under {policy} though nobody knows of the last"
