"""`oncemq sim`: whole systems in one thread, with everything that can go wrong, from a seed."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import count
from pathlib import Path

import click

from ..runtime.diagnostics import tell
from ..runtime.workers import worker_pool
from ..sim.plan import Plan
from ..sim.run import Result, run_plan, shrink
from .output import ExitCode, print_json, progress_line, say
from .sim_relay import make_relay

CORPUS = Path("tests/sim/seeds.txt")
TRACE_LINES = 60


@click.command()
@click.option("--seed", type=click.IntRange(0), help="Run this one seed.")
@click.option("--seeds", type=click.IntRange(1), metavar="N", help="Run N seeds.")
@click.option("--minutes", type=click.FloatRange(0.01), metavar="M", help="Run for M minutes.")
@click.option("--first", type=click.IntRange(0), default=1, show_default=True, help="First seed.")
@click.option("--jobs", type=click.IntRange(1), help="Processes [default: one for each core].")
@click.option("--trace", is_flag=True, help="With --seed: print the whole trace.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def sim(
    seed: int | None,
    seeds: int | None,
    minutes: float | None,
    first: int,
    jobs: int | None,
    trace: bool,
    as_json: bool,
) -> int:
    """Run simulated systems and check every promise at every event.

    A seed decides everything: actors, sizes, faults, the order of all events. A failing run prints
    its seed, the smallest plan that still fails and the end of its trace. In a checkout the seed is
    added to tests/sim/seeds.txt. Exit status 1: a run failed.
    """
    if seed is not None:
        return _one(seed, trace=trace, as_json=as_json)
    if seeds is None and minutes is None:
        raise click.UsageError("give --seed, --seeds or --minutes")
    tell(f"commit {_commit()}, seeds from {first}")
    started = time.monotonic()
    deadline = None if minutes is None else started + 60 * minutes
    numbers = iter(range(first, first + seeds)) if seeds is not None else count(first)
    results = []
    with progress_line() as show:
        for result in _swarm(numbers, deadline, jobs or os.cpu_count() or 1):
            results.append(result)
            show(f"sim: {len(results)} seeds" + (f" of {seeds}" if seeds is not None else ""))
    failed = sorted((r for r in results if r.rule), key=lambda result: result.plan.seed)
    for result in failed:
        _remember(result.plan.seed)
    _sum_up(results, time.monotonic() - started, as_json=as_json)
    if failed:
        _tell(failed[0], shrinking=True)
    return ExitCode.FAILED if failed else ExitCode.DONE


def run_seed(seed: int) -> Result:
    return run_plan(Plan.of(seed), make_relay)


def _one(seed: int, *, trace: bool, as_json: bool) -> int:
    result = run_plan(Plan.of(seed), make_relay, trace=trace)
    if trace:
        say("\n".join(result.lines), block=True)
    if as_json:
        print_json(_as_dict(result))
    else:
        say(
            f"seed {seed}, commit {_commit()}: {result.events} events in "
            f"{result.simulated_ms / 1000:.1f} simulated seconds, trace {result.trace_hash}, "
            f"faults: {_faults(result.counts)}"
        )
    if not result.rule:
        return ExitCode.DONE
    _remember(seed)
    _tell(result, shrinking=not trace)
    return ExitCode.FAILED


def _swarm(numbers: Iterator[int], deadline: float | None, jobs: int) -> Iterator[Result]:
    with worker_pool(jobs) as pool:
        running: set[Future[Result]] = set()
        while True:
            while len(running) < 4 * jobs and (deadline is None or time.monotonic() < deadline):
                number = next(numbers, None)
                if number is None:
                    break
                running.add(pool.submit(run_seed, number))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                if result.rule:
                    tell(f"seed {result.plan.seed} FAILED: {result.rule}")
                yield result


def _sum_up(results: list[Result], seconds: float, *, as_json: bool) -> None:
    fired: Counter[str] = Counter()
    for result in results:
        fired.update(name for name, times in result.counts.items() if times)
    failed = [result.plan.seed for result in results if result.rule]
    median = statistics.median(result.events for result in results) if results else 0
    faults = {n.removeprefix("fault."): c for n, c in sorted(fired.items()) if "fault." in n}
    if as_json:
        print_json(
            {
                "seeds": len(results),
                "failed": failed,
                "median_events": median,
                "seconds": round(seconds, 1),
                "seeds_with_fault": faults,
                "seeds_with_event": dict(sorted(fired.items())),
            }
        )
        return
    say(f"{len(results)} seeds in {seconds:.0f} s, median {median:.0f} events a seed")
    say("number of seeds in which each fault struck:")
    for name, times in faults.items():
        say(f"  {times:6}  {name}")
    say("and what followed from them, among the rest:")
    for name, times in sorted(fired.items()):
        if "fault." not in name and name != "turn":
            say(f"  {times:6}  {name}")
    say(f"violations: {len(failed)} {failed[:20] or ''}".rstrip())


def _tell(result: Result, *, shrinking: bool) -> None:
    tell(f"seed {result.plan.seed} at commit {_commit()}: {result.rule}")
    tell(f"again: oncemq sim --seed {result.plan.seed} --trace")
    if shrinking:
        result = shrink(result, make_relay)
        tell(f"shrunk to: {result.plan}")
    quiet = [line for line in result.lines if not line.endswith(" turn")]
    tell("\n".join(quiet[-TRACE_LINES:]), block=True, patience_s=1)
    tell(result.failure, block=True, patience_s=1)


def _remember(seed: int) -> None:
    """Add a failing seed to the corpus, which a test runs from then on."""
    if CORPUS.exists():
        known = {line.partition("#")[0].strip() for line in CORPUS.read_text().splitlines()}
        if str(seed) not in known:
            with CORPUS.open("a") as corpus:
                corpus.write(f"{seed}  # found at {_commit()}\n")


def _commit() -> str:
    """Outside of a checkout "unknown"."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()


def _faults(counts: Counter[str]) -> str:
    fired = {n.removeprefix("fault."): c for n, c in sorted(counts.items()) if "fault." in n}
    return ", ".join(f"{name} {times}" for name, times in fired.items()) or "none"


def _as_dict(result: Result) -> dict[str, object]:
    return {
        "seed": result.plan.seed,
        "events": result.events,
        "simulated_ms": result.simulated_ms,
        "trace_hash": result.trace_hash,
        "violation": result.rule,
        "counts": dict(sorted(result.counts.items())),
    }
