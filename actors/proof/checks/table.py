"""The table of all checks. A family of checks is a file beside this one.

    @check("I1-answer-is-kept", "history", "messages")
    def answer_is_kept(evidence: Evidence) -> Iterator[Violation]:
        '''An acknowledged message is in the log at the offset of the answer, as it was sent.'''

A check is pure, yields violations and says in its docstring what it promises. What files alone can
prove is no check here: `verify` has proved it, and what it found is part of the verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..model import Findings, Violation
from .evidence import Evidence

Judge = Callable[[Evidence], Iterable[Violation]]


class Check(NamedTuple):
    """One check: it runs when the evidence has all that it needs."""

    name: str
    promise: str
    needs: tuple[str, ...]  # fields of Evidence
    judge: Judge


CHECKS: dict[str, Check] = {}


def check(name: str, *needs: str) -> Callable[[Judge], Judge]:
    """Put a function into the table; a name stands for one check."""

    def register(judge: Judge) -> Judge:
        assert name not in CHECKS or CHECKS[name].judge is judge, f"two checks called {name}"
        promise = " ".join((judge.__doc__ or "").split())
        assert promise, f"{name} does not say what it promises"
        CHECKS[name] = Check(name, promise, needs, judge)
        return judge

    return register


def all_checks() -> list[Check]:
    """Return the whole table."""
    from . import effects, looks, processes, reads, run, sends  # each one registers its checks

    assert all((effects, looks, processes, reads, run, sends))
    return [CHECKS[name] for name in sorted(CHECKS)]


@dataclass(slots=True)
class Verdict:
    """What the checks said."""

    found: Findings = field(default_factory=Findings)
    ran: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # name -> what was missing

    @property
    def ok(self) -> bool:
        """Whether nothing was found and something was looked at."""
        return self.found.total == 0 and bool(self.ran)


def run_checks(
    evidence: Evidence,
    *,
    tell: Callable[[int, int], None] = lambda done, whole: None,  # noqa: ARG005
) -> Verdict:
    """Run every check that the evidence allows; the verdict holds what its reports found as well.

    Before each one `tell` gets its number and how many there are. A check that cannot run is
    listed with what it lacks, so that silence is never taken for proof.
    """
    verdict = Verdict()
    for report in [*evidence.earlier, evidence.report]:
        if report is not None:
            verdict.found.merge(report.found)
    entries = all_checks()
    for number, entry in enumerate(entries):
        tell(number, len(entries))
        missing = [need for need in entry.needs if getattr(evidence, need) is None]
        if missing:
            verdict.not_run[entry.name] = ", ".join(missing)
            continue
        verdict.ran.append(entry.name)
        for violation in entry.judge(evidence):
            verdict.found.add(
                violation.check, violation.where, violation.explanation, violation.ids
            )
    return verdict
