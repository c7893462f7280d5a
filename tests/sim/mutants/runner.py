"""Run every mutant until something catches it; print who did. Exit 1 if one survives.

    python -m tests.sim.mutants [NAME-PART ...]

A mutant is caught if within SEEDS_MAX seeds or SECONDS_MAX a simulated run fails, or a fast test
named for it does. The control runs the same seeds, and the same tests, without any mutant.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from dataclasses import replace

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.runtime.workers import worker_pool
from oncemq.sim.faults.kinds import FAULT_KINDS
from oncemq.sim.plan import Plan
from oncemq.sim.run import run_plan
from tests.sim.mutants import MUTANTS, applied

SEEDS_MAX = 200
SECONDS_MAX = 60.0  # of the processor: a busy machine finds what a quiet one finds
FIRST_SEED = 1


def plan_of(seed: int, faults: tuple[str, ...], database: str = "") -> Plan:
    """Return the plan of a seed; with `faults` only those strike, as often as they may.

    With `database` the first group has its ledgers in one of that kind. What happens to outboxes
    needs one, and relays.
    """
    plan = Plan.of(seed)
    if any(FAULT_KINDS[name].of_outbox for name in faults):
        plan = replace(plan, relays=2)
    if database:
        plan = replace(plan, tables={plan.groups[0].name: database})
    if not faults:
        return plan
    return replace(plan, faults={name: float(FAULT_KINDS[name].mean_ms[0]) for name in faults})


def hunt(
    name: str | None, seeds: int, faults: tuple[str, ...] = (), database: str = ""
) -> tuple[str | None, str, int, float]:
    """Look for a failing seed; return (name, who caught it, seeds run, seconds)."""
    started = time.process_time()
    mutant = MUTANTS[name] if name else None
    if mutant is not None:
        faults, database = mutant.faults, mutant.database
    with applied(mutant):
        if mutant is not None and mutant.tests:
            caught = run_tests(mutant.tests)
            return name, caught, 0, time.process_time() - started
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            result = run_plan(plan_of(seed, faults, database), make_relay)
            if result.rule:
                who = f"simulator: {result.rule} (seed {seed})"
                return name, who, seed - FIRST_SEED + 1, time.process_time() - started
            if mutant is not None and time.process_time() - started > SECONDS_MAX:
                break
    return name, "", seed - FIRST_SEED + 1, time.process_time() - started


class Failures:
    """A pytest plugin that remembers the first failing test."""

    def __init__(self) -> None:
        self.first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid


def run_tests(tests: tuple[str, ...]) -> str:
    """Run fast tests in this process, where the mutant is; return the first that fails."""
    failures = Failures()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # The package is imported already, so the fixture of our own plugin cannot be rewritten.
        imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *imported]
        pytest.main([*options, *tests], plugins=[failures])
    return f"test: {failures.first.rpartition('/')[2]}" if failures.first else ""


def main(parts: list[str]) -> int:
    """Run all that match, the control last; print the table."""
    names = [name for name in MUTANTS if not parts or any(part in name for part in parts)]
    rows = []
    with worker_pool(os.cpu_count() or 1) as pool:
        for row in pool.map(hunt, names, [SEEDS_MAX] * len(names)):
            name, who, seeds, seconds = row
            rows.append(row)
            verdict = who or "SURVIVED"
            print(f"{name:<48} {verdict:<72} {seeds:>4} seeds {seconds:6.1f} s", flush=True)
    survivors = [name for name, who, _, _ in rows if not who]
    needed: dict[tuple[tuple[str, ...], str], int] = {}
    for name, who, seeds, _ in rows:
        kind = (MUTANTS[name].faults, MUTANTS[name].database)
        needed[kind] = max(needed.get(kind, 1), seeds if who else 1)
    wrong = ""
    for (faults, database), most in sorted(needed.items()):
        _, who, seeds, _ = hunt(None, most, faults, database)
        wrong = wrong or who
        which = ", ".join([*faults, *filter(None, (database,))]) or "all faults"
        print(f"control: {seeds} seeds ({which}) {who or 'pass'}")
    tests = sorted({test for name in names for test in MUTANTS[name].tests})
    failed = run_tests(tuple(tests)) if tests else ""
    print(f"control: {len(tests)} test files {failed or 'pass'}")
    print(f"{len(rows) - len(survivors)} of {len(rows)} mutants killed; survivors: {survivors}")
    return 1 if survivors or wrong or failed else 0
