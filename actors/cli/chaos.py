"""`oncemq chaos`: a user's own application under kills and freezes, and the proof afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from ..chaos.cast import ROLES
from ..chaos.feed import Input, read_input
from ..chaos.judge import Sink
from ..chaos.play import RATE_PER_S, Outcome, Plan, Play
from ..chaos.report import render
from ..errors import BadSink
from ..ids import check_name
from ..library.files.rows import FileJob
from ..library.files.sources import FORMATS
from ..library.handling.call import Consumer
from ..library.sinks.reading import look_into
from ..proof.parse.tables import table_ledgers
from ..runtime.diagnostics import tell
from ..runtime.process import stop_check
from .consumer import choose, load_app
from .output import ExitCode, print_json, say

MINUTES_DEFAULT = 1.0
_SHOWN_MAX = 10  # anomalies on a terminal; --json and the report hold more


@click.command("chaos")
@click.argument("app", metavar="MODULE:APP")
@click.option("--topic", required=True, metavar="T", help="The topic that the rows are sent to.")
@click.option(
    "--input",
    "file",
    required=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, readable=True),
    help="File with real input; `.gz` is decompressed.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    help="[default: from the file name, else lines]",
)
@click.option(
    "--id-field",
    "id_fields",
    metavar="F[,F..]",
    help="Fields that form the message id; without them rows are numbered.",
)
@click.option("--key-field", metavar="F", help="Field that is the message key.")
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 24 * 60),
    metavar="M",
    help=f"How long faults strike [default: {MINUTES_DEFAULT:g}].",
)
@click.option(
    "--kills",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Alternative to --minutes: how many kills.",
)
@click.option(
    "--kill",
    "roles",
    default=",".join(ROLES),
    show_default=True,
    metavar="ROLE[,ROLE..]",
    help="Roles that faults may hit.",
)
@click.option(
    "--pause", "pauses", is_flag=True, help="Also freeze processes, and replace frozen ones."
)
@click.option(
    "--seed", type=click.IntRange(0), help="Seed that draws the faults [default: a new one]."
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 100_000),
    default=RATE_PER_S,
    show_default=True,
    metavar="N",
    help="Rows sent per second, if consumers keep up.",
)
@click.option(
    "--producers", type=click.IntRange(1, 8), default=2, show_default=True, help="How many at once."
)
@click.option(
    "--report",
    "report_path",
    metavar="HTML",
    type=click.Path(dir_okay=False),
    help="Write a report.",
)
@click.option("--keep", metavar="DIR", help="Work in DIR (new or empty) and keep it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def chaos(
    app: str,
    topic: str,
    file: str,
    format_name: str | None,
    id_fields: str | None,
    key_field: str | None,
    minutes: float | None,
    kills: int | None,
    roles: str,
    pauses: bool,
    seed: int | None,
    rate: float,
    producers: int,
    report_path: str | None,
    keep: str | None,
    as_json: bool,
) -> int:
    """Run MODULE:APP on real input, kill its processes, and prove the result.

    Broker, producers and consumers run in fresh directories and on a port of their own; no other
    process is touched. The rows of FILE are sent round after round. At the end faults stop, the
    consumers process the rest, and files and events are checked. Exit status 0: every promise was
    tested and kept. Handlers that call other services or write files really do so, more than once.
    A sink needs a database of its own for the run, with the tables that the handlers use.
    """
    if minutes is not None and kills is not None:
        raise click.UsageError("give --minutes or --kills")
    consumers = tuple(choose(load_app(app), app, None))
    check_name(topic, "topic")
    if topic not in {its.topic for its in consumers}:
        raise click.UsageError(f"{app} has no consumer of topic {topic!r}")
    plan = Plan(
        application=app,
        consumers=consumers,
        source=_input(topic, file, format_name, id_fields, key_field),
        seed=random.SystemRandom().randrange(2**32) if seed is None else seed,
        seconds=None if kills is not None else 60 * (minutes or MINUTES_DEFAULT),
        kills=kills,
        roles=_roles(roles),
        pauses=pauses,
        producers=producers,
        rate_per_s=rate,
        sink=_sink(consumers),
    )
    if report_path is not None and not os.path.isdir(os.path.dirname(report_path) or "."):
        raise click.UsageError(f"--report {report_path}: there is no such directory")
    with stop_check() as check, _directory(keep) as (directory, retain):
        outcome = _play(plan, directory, check)
        if not outcome.verdict.ok:
            retain()
        page = render(outcome)
        for path in (str(directory / "report.html"), report_path):
            if path is not None:
                Path(path).write_text(page, encoding="utf-8")
        faults = [fault.as_dict() for fault in outcome.faults]
        verdict = json.dumps({**outcome.as_dict(), "faults": faults}, indent=1, default=str)
        (directory / "verdict.json").write_text(verdict + "\n", encoding="utf-8")
    if as_json:
        kept = keep is not None or not outcome.verdict.ok
        print_json({**outcome.as_dict(), "directory": str(directory) if kept else None})
    else:
        _tell(outcome, report_path)
    return ExitCode.DONE if outcome.verdict.ok else ExitCode.FAILED


def _input(
    topic: str, file: str, format_name: str | None, id_fields: str | None, key_field: str | None
) -> Input:
    """Raises UsageError, and what reading the file raises."""
    if format_name is None:
        ending = file.removesuffix(".gz").rpartition(".")[2]
        format_name = ending if ending in FORMATS else "lines"
    fields = tuple(id_fields.split(",")) if id_fields is not None else ()
    if "" in fields or len(set(fields)) != len(fields):
        raise click.UsageError("--id-field takes field names separated by commas, each once")
    if format_name == "lines" and (fields or key_field is not None):
        raise click.UsageError("--format lines has no fields; use --format csv or jsonl")
    source = read_input(FileJob(topic, file, format_name, fields, key_field))
    if source.repeated:
        tell(f"note: {source.repeated} rows occur twice in {file}; each is sent once")
    if source.cut:
        tell(f"note: only the first {len(source.rows)} rows of {file} are sent")
    return source


def _sink(consumers: Sequence[Consumer]) -> Sink | None:
    """Raises UsageError for several databases, or one that holds a ledger of these consumers."""
    named = {its.sink for its in consumers if its.sink is not None}
    if not named:
        return None
    if len(named) > 1:
        raise click.UsageError("the consumers use several databases; chaos supports one")
    shown, opened = sink = look_into(named.pop())
    with contextlib.suppress(BadSink):  # nobody has made tables there: as fresh as it can be
        mine = {(its.group, its.topic) for its in consumers}
        used = [place for place in table_ledgers(opened) if place[:2] in mine]
        if used:
            raise click.UsageError(
                f"{shown} already holds the ledger of group {used[0][0]}; give chaos a database of its own, "
                "named by an environment variable: sink='env:NAME'"
            )
    return sink


def _roles(text: str) -> tuple[str, ...]:
    named = set(text.split(","))
    if not named <= set(ROLES):
        raise click.UsageError(f"--kill: some of {','.join(ROLES)}, with commas between")
    return tuple(role for role in ROLES if role in named)


@contextlib.contextmanager
def _directory(keep: str | None) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield where to work, and a function that keeps a temporary directory."""
    kept = keep is not None
    if keep is not None:
        directory = Path(keep).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.UsageError(f"--keep {keep}: the directory is not empty")
    else:
        directory = Path(tempfile.mkdtemp(prefix="oncemq-chaos-"))

    def retain() -> None:
        nonlocal kept
        kept = True

    try:
        yield directory, retain
    finally:
        if kept:
            tell(f"all files are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _play(plan: Plan, directory: Path, check: Callable[[], None]) -> Outcome:
    """Run the plan; `check` raises KeyboardInterrupt when the user wants no more of it."""
    length = f"{plan.kills} kills" if plan.kills else f"{plan.seconds:g} s"
    with (
        (directory / "chaos.log").open("w", encoding="utf-8") as log,
        _console() as (write, show),
    ):

        def report(line: str) -> None:
            print(line, file=log, flush=True)
            write(line)

        def progress(share: float, text: str) -> None:
            check()
            show(share, text)

        report(f"seed {plan.seed}: {length} of faults for {plan.application} in {directory}")
        try:
            return Play(plan, directory, say=report, progress=progress).run()
        except KeyboardInterrupt:
            report("interrupted: all processes were stopped; there is no verdict")
            raise


@contextlib.contextmanager
def _console() -> Iterator[tuple[Callable[[str], None], Callable[[float, str], None]]]:
    """Yield two functions that write to stderr: one for lines, one for progress."""
    if not sys.stderr.isatty():
        yield tell, lambda share, text: None  # noqa: ARG005
        return
    from rich.console import Console  # only a terminal pays for loading it
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(bar_width=16), TaskProgressColumn(), TimeElapsedColumn())
    # No thread that draws by itself: processes are forked here all the time.
    with Bar(
        *columns,
        TextColumn("{task.description}"),
        console=console,
        auto_refresh=False,
        transient=True,
    ) as bar:
        task = bar.add_task("starting", total=1.0)

        def progress(share: float, text: str) -> None:
            bar.update(task, completed=share, description=text, refresh=True)

        yield lambda line: console.print(line, markup=False, soft_wrap=True), progress


def _tell(outcome: Outcome, report_path: str | None) -> None:
    verdict, deeds, watch = outcome.verdict, outcome.deeds, outcome.watch
    by_role = ", ".join(f"{count} {role}" for role, count in sorted(deeds.kills.items())) or "none"
    say(f"kills: {by_role}; pauses {deeds.pauses.total()}, takeovers {deeds.takeovers.total()}")
    report = verdict.report
    for name, topic in report.topics.items() if report is not None else ():
        say(f"topic {name}: {topic['accepted']} accepted")
        for group, row in topic["groups"].items():
            counts = ", ".join(
                f"{row[key]} {key}" for key in ("processed", "pending", "parked", "skipped")
            )
            say(f"  group {group}: {counts}")
    say(f"duplicates suppressed: {watch.duplicates} by the broker, {watch.skipped} by consumers")
    for note in verdict.notes:
        say(f"note: {note}")
    for anomaly in verdict.anomalies[:_SHOWN_MAX]:
        say(f"ANOMALY {anomaly}")
    if verdict.anomalies_total > _SHOWN_MAX:
        say(f"... {verdict.anomalies_total} in all (--json and the report show more)")
    if report_path is not None:
        say(f"report: {report_path}")
    say(sentence(outcome))


def sentence(outcome: Outcome) -> str:
    if outcome.verdict.ok:
        return (
            f"PASSED: nothing lost, nothing duplicated: {outcome.fed} rows, "
            f"{outcome.deeds.kills.total()} kills, {len(outcome.verdict.checks_run)} checks and "
            f"verify (seed {outcome.plan.seed})"
        )
    total = outcome.verdict.anomalies_total
    what = "1 anomaly" if total == 1 else f"{total} anomalies"
    return f"FAILED: {what} (seed {outcome.plan.seed})"
