"""Whole simulated systems whose consumers write to a database: each kind, under its own faults."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.sim.faults.kinds import FAULT_KINDS
from oncemq.sim.plan import DATABASE_KINDS, FILE, GUARDED, SERVER, Plan
from oncemq.sim.run import Result, run_plan

# A run meets one of these: all at once nobody gets as far as a takeover.
FAULT_SETS = (
    ("stuck at work",),
    ("stuck at work", "connection lost"),
    ("connection lost", "database stop", "kill"),
    ("unsynced commit", "database full", "clean stop"),
    ("copied ledger", "wrong directory", "kill"),
)
# What must have happened in some runs of a kind, or they prove nothing.
WANTED = {
    FILE: ("killed in its transaction", "fault.unsynced commit", "answer dropped"),
    SERVER: ("sql.terminated", "fault.database stop", "answer dropped"),
    GUARDED: ("sql.fenced", "fault.database stop", "answer dropped"),
}
ALWAYS = ("sql.lost before commit", "sql.lost after commit", "commit.synced", "output.acked")


def plan_of(seed: int, kind: str) -> Plan:
    """A plan in which a group with outputs writes to a database, and only a few faults strike."""
    faults = FAULT_SETS[seed % len(FAULT_SETS)]
    plan = replace(Plan.of(seed), tables={"bill": kind}, safety_ms=20_000, standbys=1)
    group = replace(plan.groups[0], output="invoices")
    mean_ms = {name: float(FAULT_KINDS[name].mean_ms[0]) for name in faults}
    topics = {"orders": plan.partitions["orders"], "invoices": 1}
    return replace(plan, groups=(group,), partitions=topics, faults=mean_ms)


def run_all(kind: str, seeds: range, quota: int) -> Counter[str]:
    """Run seeds; return in how many each thing happened."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        result = run_plan(replace(plan_of(seed, kind), quota=quota), make_relay)
        assert result.rule == "", f"seed {seed}: {result.failure}"
        seen.update(name for name, times in result.counts.items() if times)
    return seen


def same(one: Result, other: Result) -> bool:
    return (one.trace_hash, one.events) == (other.trace_hash, other.events)


@pytest.mark.parametrize("kind", DATABASE_KINDS)
def test_a_few_runs_of_each_kind(kind: str) -> None:
    """No promise is broken where connections break, processes die, and servers and files stop."""
    seen = run_all(kind, range(5), 15)
    assert seen["commit.synced"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATABASE_KINDS)
def test_runs_of_each_kind(kind: str) -> None:
    """A dozen more; in sum all has happened that they are to survive."""
    seen = run_all(kind, range(100, 115), 40)
    assert [name for name in (*WANTED[kind], *ALWAYS) if not seen[name]] == []


@pytest.mark.slow
def test_plans_that_draw_a_database() -> None:
    """Among the first seeds there are some of each kind, with all other faults of their draw."""
    kinds: Counter[str] = Counter()
    for seed in range(200, 260):
        plan = Plan.of(seed)
        if plan.tables:
            kinds.update(plan.tables.values())
            result = run_plan(plan, make_relay)
            assert result.rule == "", f"seed {seed}: {result.failure}"
    assert set(kinds) == set(DATABASE_KINDS)


def test_a_quiet_world_with_a_database_does_its_work() -> None:
    """Without any fault nobody is fenced, ended or kept waiting, and each commit is made once."""
    for kind in DATABASE_KINDS:
        plan = replace(plan_of(1, kind), faults={}, safety_ms=2_000, standbys=0)
        plan = replace(plan, rivals=0, files=1, webs=1, quota=20)
        result = run_plan(plan, make_relay)
        assert result.rule == "", result.failure
        assert result.counts["commit.synced"] > 0
        trouble = ("end", "consumer.fenced", "sql.terminated", "power off")
        assert [name for name in trouble if result.counts[name]] == []
        assert result.counts["killed"] == result.counts["killed by a message"]


@pytest.mark.parametrize("kind", DATABASE_KINDS)
def test_one_plan_is_one_run(kind: str) -> None:
    """Names of owners and numbers of sessions decide nothing."""
    plan = replace(plan_of(3, kind), quota=15)
    assert same(run_plan(plan, make_relay), run_plan(plan, make_relay))


def test_a_plan_without_a_database_has_none_of_its_faults() -> None:
    """And each with one draws them from sources of their own."""
    for seed in range(1, 60):
        plan = Plan.of(seed)
        of_tables = [name for name in plan.faults if FAULT_KINDS[name].of_tables]
        assert plan.tables or not of_tables
