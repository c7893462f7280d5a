"""The verdict on a run: what its proofs found, and what all checks say that its evidence allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..findings import Findings
from . import effects, looks, processes, reads, run, sends  # each one registers its checks
from .evidence import Evidence
from .registry import CHECKS, Check

FAMILIES = (effects, looks, processes, reads, run, sends)


def all_checks() -> list[Check]:
    """Return the whole table, by name."""
    return [CHECKS[name] for name in sorted(CHECKS)]


@dataclass(slots=True)
class Verdict:
    """What the checks said."""

    found: Findings = field(default_factory=Findings)
    ran: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # name -> what was missing

    @property
    def ok(self) -> bool:
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
