"""One seed, one run: what came out of it, and the smallest plan that still fails."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .plan import Plan
from .processes.relay import MakeRelay
from .trace import Violation
from .world import World


@dataclass(slots=True)
class Result:
    """What one run did."""

    plan: Plan
    events: int
    simulated_ms: int
    trace_hash: str
    counts: Counter[str]
    rule: str = ""  # the promise that was broken; "" for none
    failure: str = ""  # the error, with its traceback
    lines: list[str] = field(default_factory=list)  # the trace: of a failure its end


def run_plan(plan: Plan, make_relay: MakeRelay, *, trace: bool = False) -> Result:
    """Any exception in the run is a failure of that run."""
    world = World(plan, make_relay, trace=trace)
    rule = failure = ""
    try:
        world.run()
    except Violation as violation:
        rule, failure = violation.rule, "".join(traceback.format_exception(violation))
    except Exception as error:  # noqa: BLE001 - a bug of a core is what a run looks for
        rule, failure = type(error).__name__, "".join(traceback.format_exception(error))
    finally:
        world.close()
    outline = world.outline()
    lines = world.trace.lines() if trace or rule else []
    return Result(
        plan,
        outline.events,
        outline.simulated_ms,
        outline.trace_hash,
        outline.counts,
        rule,
        failure,
        lines,
    )


def shrink(result: Result, make_relay: MakeRelay, *, runs: int = 60) -> Result:
    """Return a failing run of the same rule that is as small as `runs` attempts can make it."""
    best = result
    left = runs
    smaller = True
    while smaller and left > 0:
        smaller = False
        for plan in _smaller(best.plan):
            if left == 0:
                break
            left -= 1
            attempt = run_plan(plan, make_relay)
            if attempt.rule == best.rule:
                best = attempt
                smaller = True
                break
    return best


def _smaller(plan: Plan) -> Iterator[Plan]:
    for name in plan.faults:
        yield plan.without(name)
    if plan.safety_ms > 4_000:
        yield replace(plan, safety_ms=plan.safety_ms // 2)
        yield replace(plan, safety_ms=plan.safety_ms * 3 // 4)
    if plan.tables:
        yield replace(plan, tables={})
    if len(plan.groups) > 1:
        yield replace(plan, groups=plan.groups[:-1])
    if plan.in_order() != plan:
        yield plan.in_order()
    if plan.standbys:
        yield replace(plan, standbys=0)
    users = (plan.files > 0) + (plan.rivals > 0) + (plan.webs > 0) + plan.named_web
    if users > 1:
        for name in ("files", "rivals", "webs", "named_web"):
            if getattr(plan, name):
                yield replace(plan, **{name: type(getattr(plan, name))(0)})
    if plan.quota > 5:
        yield replace(plan, quota=plan.quota // 2)
    if plan.partitions["orders"] > 1:
        yield replace(plan, partitions={**plan.partitions, "orders": 1})
