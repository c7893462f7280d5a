"""Whole simulated systems: every promise holds, one seed is one run, and faults really happen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.core.consumer.fetch import Fetcher
from oncemq.core.consumer.work import LedgerPeeked
from oncemq.proof.parse.records import STORED
from oncemq.shells.ledger.files import LedgerFiles
from oncemq.sim import end_of_run
from oncemq.sim.disk.cuts import LoseEverything
from oncemq.sim.faults.catalog import FAULTS
from oncemq.sim.faults.kinds import FAULT_KINDS
from oncemq.sim.plan import FILE, SERVER, Plan
from oncemq.sim.processes.broker import DATA
from oncemq.sim.run import Result, run_plan, shrink
from oncemq.sim.trace import Violation
from oncemq.sim.world import World
from oncemq.storage.log import FencedLog
from tests.sim.mutants import MUTANTS, applied

ROOT = Path(__file__).resolve().parents[2]
SMOKE_SEEDS = 12


def corpus() -> list[int]:
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    return [int(text) for line in lines if (text := line.partition("#")[0].strip())]


def run(seed: int) -> Result:
    return run_plan(Plan.of(seed), make_relay)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", corpus())
def test_seeds_that_once_failed(seed: int) -> None:
    """What was found once stays mended, also as it was found before there was state by key."""
    plan = Plan.of(seed)
    plans = [plan] if plan.in_order() == plan else [plan, plan.in_order()]
    for one in plans:
        result = run_plan(one, make_relay)
        assert result.rule == "", result.failure


@pytest.mark.slow
def test_no_promise_is_broken_and_faults_happen() -> None:
    """A few seeds: zero violations, and in sum every part of the system was in trouble."""
    seen: Counter[str] = Counter()
    for seed in range(100, 100 + SMOKE_SEEDS):
        result = run(seed)
        assert result.rule == "", f"seed {seed}: {result.failure}"
        seen += result.counts
    wanted = (
        *("killed", "power off", "commit.synced", "output.acked", "batch.duplicate"),
        *("killed by a message", "attempt.marked", "message.parked", "fault.replays"),
    )
    assert [name for name in wanted if not seen[name]] == []


def test_a_quiet_world_does_its_work() -> None:
    """Without any fault all is sent, handled and acknowledged, and nothing is refused or fenced."""
    plan = replace(Plan.of(1), faults={}, rivals=0, webs=1, files=1, quota=20, safety_ms=2_000)
    result = run_plan(plan, make_relay)
    assert result.rule == "", result.failure
    assert result.counts["commit.synced"] > 0
    trouble = ("power off", "producer.fenced", "consumer.fenced", "message dropped")
    assert [name for name in trouble if result.counts[name]] == []
    assert result.counts["killed"] == result.counts["killed by a message"]


def test_the_end_of_a_world_is_proved_as_verify_proves_files() -> None:
    """A record that was stored a second time behind the oracles' back ends the run."""
    plan = replace(Plan.of(1), faults={}, retain={}, rivals=0, webs=1, files=1)
    plan = replace(plan, quota=5, safety_ms=500)
    world = World(plan, make_relay)
    try:
        world.run()
    finally:
        world.close()
    disks = {host.name: host.disk.power_cut(LoseEverything()) for host in world.hosts}
    end_of_run.prove_files(world.people, disks)
    disk = disks[world.people.broker.host.name].process("forger")
    log = FencedLog.open(disk, DATA, generation=None, owner={"pid": 1})
    stored = next(its for its in log.replay(0) if its.type == STORED)
    meta, body = bytes(stored.meta), bytes(stored.body)
    log.reserve(len(meta) + len(body))
    log.append(stored.type, meta, body, stored.body_crc)
    log.sync()
    log.close()
    with pytest.raises(Violation, match="proof: I"):
        end_of_run.prove_files(world.people, disks)


def unhurried(handler_mean_ms: int) -> Plan:
    """A plan without faults in which one producer sends a little at once and one group handles it."""
    plan = replace(Plan.of(1), faults={}, rivals=0, webs=0, files=1, named_web=False, standbys=0)
    return replace(
        plan,
        quota=20,
        safety_ms=1_000,
        submit_mean_ms=50,
        partial_commits=1.0,
        handler_mean_ms=handler_mean_ms,
    )


@pytest.mark.slow
def test_long_work_is_not_taken_for_waiting() -> None:
    """Handlers that have more to do than the liveness budget are waited for while they work."""
    result = run_plan(unhurried(10_000), make_relay)
    assert result.rule == "", result.failure
    assert result.simulated_ms > end_of_run.WAITING_MS + 1_000


def test_waiting_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that takes no reply is found out at the end of the budget."""
    monkeypatch.setattr(Fetcher, "received", lambda *_: None)
    result = run_plan(unhurried(10_000), make_relay)
    assert result.rule == "not live", result.failure
    assert result.simulated_ms < end_of_run.WAITING_MS + 10_000


def test_a_consumer_that_waits_for_a_timer_is_found() -> None:
    """Half a second between two handler runs, with messages at hand, is a failure."""
    with applied(MUTANTS["the next call waits for a timer"]):
        result = run_plan(unhurried(10_000), make_relay)
    assert result.rule == "idle", result.failure


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_fault_strikes_alone(name: str) -> None:
    """Each kind of fault finds something to happen to, and the system survives it by itself."""
    plan = replace(Plan.of(3), faults={name: 300.0}, safety_ms=5_000, quota=20)
    kind = FILE if name == "unsynced commit" else SERVER
    tables = {plan.groups[0].name: kind} if FAULT_KINDS[name].of_tables else {}
    result = run_plan(replace(plan, groups=plan.groups[:1], tables=tables), make_relay)
    assert result.rule == "", f"{name}: {result.failure}"
    assert result.counts[f"fault.{name}"] > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 2])  # in order, with state by key
def test_one_seed_is_one_run(seed: int) -> None:
    """The same seed does the same in another process, whatever the hashes of its strings."""
    hashes = set()
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "oncemq", "sim", "--seed", str(seed), "--json"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        hashes.add(json.loads(done.stdout)["trace_hash"])
    assert any(group.concurrency for group in Plan.of(2).groups)
    hashes.add(run(seed).trace_hash)
    assert len(hashes) == 1
    assert run(6).trace_hash not in hashes


def test_a_failing_run_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest plan that still breaks the same promise has no fault that it does not need."""
    plan = replace(Plan.of(2), quota=10, safety_ms=3_000)
    peek = LedgerFiles.peek

    def forgetful(door: LedgerFiles) -> LedgerPeeked:
        facts = peek(door)
        return replace(facts, next_offset=facts.next_offset + 1_000_000)

    monkeypatch.setattr(LedgerFiles, "peek", forgetful)  # a door that lies about the offset
    result = run_plan(plan, make_relay)
    small = shrink(result, make_relay, runs=25)
    assert result.rule == "unexpected end"
    assert small.rule == result.rule
    assert len(small.plan.faults) < len(plan.faults)
    assert small.plan.safety_ms <= plan.safety_ms
