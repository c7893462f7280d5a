"""What all commands share: exit codes, error lines, summaries, tables for people.

Machine output goes to stdout, one JSON object a line; events, errors and progress go to stderr.
An error that OnceMQ knows is one clear line; a traceback is a bug of ours, or asked for with
ONCEMQ_TRACEBACK=1.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from .. import __version__
from ..errors import Fenced, InvalidName, OnceMQError
from ..runtime.events import EventLog
from ..runtime.settings import BadSetting, Settings, without_password

_PROGRESS_EVERY_S = 0.2


class ExitCode(enum.IntEnum):
    """What the exit status of every command says."""

    DONE = 0  # all is durably done, outputs acknowledged too
    FAILED = 1
    USAGE = 2  # would fail the same way again: not restarted by the supervisor
    FENCED = 3  # a newer owner exists: not restarted by the supervisor
    WAITING = 4  # ended in good order, and something waits for a person: not restarted either
    INTERRUPTED = 130


def exit_code_of(error: BaseException) -> int:
    if isinstance(error, Fenced):
        return ExitCode.FENCED
    if isinstance(error, click.UsageError | BadSetting | InvalidName):
        return ExitCode.USAGE
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED


def explain(error: BaseException) -> str:
    """Return the one line that a person reads about `error`."""
    if isinstance(error, OnceMQError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror.lower()}{where}"
    return f"{type(error).__name__}: {error}"


def print_error(error: BaseException) -> int:
    """Print `error: reason (hint)` on stderr and return the exit status."""
    if os.environ.get("ONCEMQ_TRACEBACK"):
        traceback.print_exception(error)
    line = " ".join(explain(error).split())
    click.echo(f"error: {line}", err=True)
    return exit_code_of(error)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line of stdout, flushed: a summary, or `--json`."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: drawn on a terminal, else columns parted by tabs, as `cut` likes them."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *texts]:
            click.echo("\t".join(row))
        return
    from rich.console import Console  # only a terminal pays for loading it
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in texts:
        table.add_row(*map(Text, row))
    Console().print(table)


def open_events(role: str, settings: Settings) -> EventLog:
    """Return the event log of this process as --log-dir and --log-level ask for it."""
    return EventLog(role, log_dir=settings.log_dir, level=settings.log_level)


@contextlib.contextmanager
def process_events(role: str, settings: Settings) -> Iterator[EventLog]:
    """Open the event log of this process and write its first and last event, also on errors.

    The body's errors go on to `main`, which turns them into one line and an exit status. A body
    that ends with another status than 0 and no error raises `click.exceptions.Exit(status)`.
    """
    events = open_events(role, settings)
    values = {name: setting.shown for name, setting in settings.by_name.items()}
    argv = list(map(without_password, sys.argv))
    events.emit("process.start", version=__version__, argv=argv, settings=values)
    try:
        yield events
    except click.exceptions.Exit as ending:
        events.emit("process.stop", exit_code=ending.exit_code)
        raise
    except BaseException as error:
        code = error.code if isinstance(error, OnceMQError) else type(error).__name__
        events.emit("process.stop", exit_code=exit_code_of(error), code=code, reason=explain(error))
        raise
    else:
        events.emit("process.stop", exit_code=ExitCode.DONE)
    finally:
        events.close()


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield what shows how far long work is: one line on a terminal, rewritten, gone at the end."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    next_s, width = 0.0, 0

    def show(text: str) -> None:
        nonlocal next_s, width
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + _PROGRESS_EVERY_S
            width = max(width, len(text))
            click.echo("\r" + text.ljust(width), err=True, nl=False)

    try:
        yield show
    finally:
        if width:
            click.echo("\r" + " " * width + "\r", err=True, nl=False)
