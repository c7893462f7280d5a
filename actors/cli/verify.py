"""`oncemq verify`: prove from the files what became of every id."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from ..library.sinks.reading import look_into
from ..proof.parse.files import OsFiles
from ..proof.verify.verify import OPERATOR, UNKNOWN, Report, Tell
from ..proof.verify.verify import verify as prove
from ..runtime.settings import Settings
from .config import setting_options
from .output import ExitCode, print_json, print_table, progress_line, say

_SHOWN_MAX = 20  # violations on a terminal; --json holds more


@click.command("verify")
@setting_options("data", "state")
@click.option("--sink", metavar="URL", help="Also the ledgers in this database.")
@click.option("--topic", metavar="TOPIC", help="Only this topic and its ledgers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(as_json: bool, sink: str | None, topic: str | None, **flags: str | None) -> None:
    """Prove from the broker's log and the ledgers what happened to every message.

    Each id is accepted once and, for each group, processed once, pending, parked or skipped. A
    broken promise is listed and gives exit status 1. Processes may keep running; nothing is
    written to their files. Ids are sorted in temporary files (TMPDIR), so memory stays flat.
    """
    settings = Settings.load(flags=flags)
    state: str | None = settings.state
    if not os.path.isdir(settings.state):
        if flags["state"] is not None and sink is None:
            raise click.UsageError(f"--state {state}: there is no such directory")
        state = None
    tables = None if sink is None else look_into(sink)
    with progress_line() as show:
        report = prove(OsFiles(), settings.data, state, sink=tables, topic=topic, tell=_told(show))
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    if not report.ok:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _told(show: Callable[[str], None]) -> Tell:
    def tell(phase: str, done: int, whole: int) -> None:
        share = f"{100 * done // whole} %" if whole else ""
        show(f"verify: {phase} {share}")

    return tell


def _print(report: Report) -> None:
    rows: list[tuple[Any, ...]] = []
    for name, topic in report.topics.items():
        groups = topic["groups"] or {"": {}}
        for group, row in groups.items():
            counts = [row.get(key) for key in ("processed", "pending", "parked", "skipped")]
            by_operator = row.get(OPERATOR, 0) if row else None
            rows.append((name, topic["accepted"], group, *counts, by_operator))
    head = ("topic", "accepted", "group", "processed", "pending", "parked", "skipped")
    columns = (*head, "by operator")
    print_table("messages", columns, rows)
    for name, topic in report.topics.items():
        for group, row in topic["groups"].items():
            if row.get(UNKNOWN):
                told = f"{row[UNKNOWN]} unknown effects of group {group} in {name}"
                say(f"{told}; list them: oncemq effects list")
    if report.outputs_pending:
        say(f"{report.outputs_pending} committed outputs are not sent yet")
    for note in report.found.notes[:_SHOWN_MAX]:
        say(f"note: {note}")
    for violation in report.found.kept[:_SHOWN_MAX]:
        say(f"VIOLATION {violation}")
    total = report.found.total
    if total > _SHOWN_MAX:
        say(f"... and {total - _SHOWN_MAX} more (--json lists them)")
    verdict = "every promise was kept" if report.ok else f"{total} violations"
    say(f"{verdict} ({report.elapsed_s:.1f} s)")
