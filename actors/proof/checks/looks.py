"""Two looks at the same files, one later than the other: what was durable stays so (I6, I8, I9)."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Violation
from ..verify.kept import Kept, KeptLedger, Place, name_of
from .evidence import Evidence
from .registry import check


def _looks(evidence: Evidence) -> list[Kept]:
    """Return the looks that kept their messages, oldest first."""
    assert evidence.messages is not None, "the table asks for it"
    earlier = [report.kept for report in evidence.earlier if report.kept is not None]
    return [*earlier, evidence.messages]


@check("I6-history-stays", "messages")
def history_stays(evidence: Evidence) -> Iterator[Violation]:
    """What an earlier look at the log showed durable is there at every later look, unchanged."""
    before: dict[tuple[str, int, int], tuple[str, int]] = {}
    for number, look in enumerate(_looks(evidence)):
        now = {(e.topic, e.partition, e.offset): (e.message_id, e.body_hash) for e in look.entries}
        for place, what in before.items():
            if now.get(place) != what:
                there = now[place][0] if place in now else "nothing"
                yield Violation(
                    "I6-history-stays",
                    f"{place[0]}/{place[1]} offset {place[2]}",
                    (what[0],),
                    f"look {number} shows {there} where an earlier one showed it",
                )
        before = now


@check("I8-never-back", "messages")
def never_back(evidence: Evidence) -> Iterator[Violation]:
    """A ledger has been at every offset at which an earlier look found it."""
    best: dict[Place, int] = {}
    for look in _looks(evidence):
        for ledger in look.ledgers:
            before = best.get(ledger.place, 0)
            if ledger.reached < before:
                reason = f"it has come to offset {ledger.reached}, and stood at {before} before"
                yield Violation("I8-never-back", ledger.where, (), reason)
            best[ledger.place] = max(before, ledger.reached)


@check("I9-never-forgets", "messages")
def never_forgets(evidence: Evidence) -> Iterator[Violation]:
    """An id that an earlier look found processed is processed at every later look."""
    known: dict[Place, KeptLedger] = {}
    for look in _looks(evidence):
        for ledger in look.ledgers:
            before = known.get(ledger.place)
            forgotten = before.processed - ledger.processed if before is not None else ()
            if forgotten and before is not None:
                names = look.names(before)
                ids = tuple(sorted(name_of(one, before, names) for one in forgotten))
                reason = "known before, and not now"
                yield Violation("I9-never-forgets", ledger.where, ids, reason)
            known[ledger.place] = ledger
