"""Simulated groups with state by key: several messages at the same time, one ledger as in order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from oncemq.cli.sim_relay import make_relay
from oncemq.codec import batch as batch_codec
from oncemq.codec.entries import change_entry, entry_name, unpack_entry
from oncemq.codec.values import BYTES
from oncemq.sim import plan as plan_module
from oncemq.sim.oracles.keyed_model import KeyedModel, handle_by_key
from oncemq.sim.plan import Plan
from oncemq.sim.processes.handler import Group
from oncemq.sim.processes.keyed import KeyedRun
from oncemq.sim.run import Result, run_plan
from tests.sim.mutants import MUTANTS, applied

SEEDS = 24


def all_keyed(seed: int, concurrency: int) -> Plan:
    """The plan of a seed made short, every group of it with state by key."""
    plan = Plan.of(seed)
    groups = tuple(replace(group, concurrency=concurrency) for group in plan.groups)
    return replace(plan, groups=groups, safety_ms=4_000, quota=20, solitary_max=2)


def quiet(seed: int = 1) -> Plan:
    """A plan without faults: two producers, one group that sends on, six messages at the same time."""
    plan = replace(Plan.of(seed), faults={}, rivals=0, webs=1, files=1, named_web=False, quota=25)
    group = Group("bill", "orders", "invoices", concurrency=6)
    topics = {"orders": 1, "invoices": 1}
    plan = replace(plan, groups=(group,), partitions=topics, standbys=0, safety_ms=500)
    return replace(plan, submit_mean_ms=5, handler_mean_ms=200, solitary_max=1)


def test_the_plans_of_other_seeds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a seed has a group with state by key moves nothing else that it draws."""
    plans = [Plan.of(seed) for seed in range(60)]
    monkeypatch.setattr(plan_module, "KEYED_ODDS", 0.0)
    plain = [Plan.of(seed) for seed in range(60)]
    changed = [one for one, other in zip(plans, plain, strict=True) if one != other]
    assert 10 <= len(changed) <= 30
    assert [one.in_order() for one in plans] == plain


def body_of(key: bytes | None) -> bytes:
    return batch_codec.build([b"v"], encodings=BYTES, keys=[key]).body(0)


def test_the_model_keeps_entries_as_the_ledger_does() -> None:
    """Names and bytes made without the codec are those of the codec, also of a key that is emptied."""
    group = Group("g", "orders", "", concurrency=2)
    model: dict[str, bytes] = {}
    ledger: dict[str, bytes] = {}
    emptied = 0
    for number in range(200):
        key = (None, b"k1", b"k2")[number % 3]
        identity, body = b"id %d" % number, body_of(key)
        KeyedModel(model, body).handle(group, 0, identity, {})
        name = entry_name(None if key is None else key.decode())
        found = ledger.get(name)
        effects = handle_by_key(group, 0, identity, body, unpack_entry(found), {})
        left = change_entry(found, effects.state)
        emptied += left is None
        ledger.pop(name, None)
        if left is not None:
            ledger[name] = left
        assert model == ledger
    assert emptied >= 5


def test_messages_run_at_the_same_time_and_wait_for_those_in_front(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without faults all is done; jobs really overlap, and some end before one in front of them."""
    together: Counter[int] = Counter()
    original = KeyedRun._start_more

    def watched(self: KeyedRun, now_ms: int) -> None:
        original(self, now_ms)
        together[len(self._running)] += 1

    monkeypatch.setattr(KeyedRun, "_start_more", watched)
    result = run_plan(quiet(), make_relay)
    assert result.rule == "", result.failure
    assert together[3] > 10
    assert max(together) == 6
    assert result.counts["keyed.kept"] > 0


def test_a_message_that_is_handled_twice_in_one_process_is_found() -> None:
    """No commit shows it, so it is looked for where jobs begin."""
    with applied(MUTANTS["nothing is carried to the next call"]):
        assert run_plan(quiet(), make_relay).rule == "handled twice"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("offset committed over a hole", "hole"),
        ("two messages of one key at the same time", "key twice"),
        ("messages of one key out of order", "key order"),
        ("state of another key seen", "wrong effects"),
        ("an empty state of a key is kept", "wrong effects"),
    ],
)
def test_each_rule_finds_who_breaks_it(name: str, rule: str) -> None:
    """A world without any fault is enough."""
    with applied(MUTANTS[name]):
        assert run_plan(quiet(), make_relay).rule == rule


@pytest.mark.parametrize(
    "name",
    [
        "offset committed over a hole",
        "a failed message of a key is passed",
        "two messages of one key at the same time",
        "messages of one key out of order",
        "carried result applied twice",
        "carried result dropped but offset moved",
    ],
)
def test_the_ledgers_oracle_alone_finds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a look at jobs and prefixes, a commit that is not that of the model shows.

    The order of two messages shows only where their handlers do not commute: one of a few seeds.
    """
    monkeypatch.setattr(KeyedRun, "_look_at", lambda *_: None)
    monkeypatch.setattr(KeyedRun, "_check_prefix", lambda *_: None)
    with applied(MUTANTS[name]):
        rules = (run_plan(quiet(seed), make_relay).rule for seed in range(1, 5))
        assert any(rule in {"wrong effects", "poison handled"} for rule in rules)


@pytest.mark.slow
def test_no_promise_is_broken_and_processes_die_with_work_half_done() -> None:
    """Short runs with all faults: what no commit held is lost with its process, and handled again."""
    seen: Counter[str] = Counter()
    for seed in range(500, 500 + SEEDS):
        result: Result = run_plan(all_keyed(seed, 2 + seed % 5), make_relay)
        assert result.rule == "", f"seed {seed}: {result.failure}"
        seen += result.counts
    assert seen["power off"] > 0
    wanted = ("keyed.kept", "keyed.lost", "killed", "message.parked", "commit.synced")
    assert [name for name in wanted if seen[name] < SEEDS] == []
