"""What all commands share: exit codes, error lines, summaries, tables for people.

Machine output goes to stdout, one JSON object a line; events, errors and progress go to stderr.
An error that OnceMQ knows is one clear line; a traceback is a bug of ours, or asked for with
ONCEMQ_TRACEBACK=1.
"""

from __future__ import annotations

import contextlib
import enum
import io
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import BadSink, Fenced, InvalidName, OnceMQError
from ..ports import Events
from ..runtime.diagnostics import ERASE_LINE, escaped, escaped_json, is_terminal, put, tell, text_of
from ..runtime.events import EventLog, NullEvents
from ..runtime.settings import BadSetting, Settings, without_password

if TYPE_CHECKING:
    from rich.console import Console

_PROGRESS_EVERY_S = 0.2
_TEXT_MIN = 12  # columns of a terminal that the last cell of a row may be folded to
_WORD_STYLES = {
    "pending": "yellow", "unknown": "yellow", "held": "yellow", "no": "yellow",
    "rejected": "red", "crashed": "red", "raised": "red", "unknown effect": "red",
    "processed": "green", "replayed": "green", "yes": "green", "dropped": "dim",
}  # fmt: skip


class ExitCode(enum.IntEnum):
    """What the exit status of every command says."""

    DONE = 0  # all is durably done, outputs acknowledged too
    FAILED = 1
    USAGE = 2  # would fail the same way again: not restarted by the supervisor
    FENCED = Fenced.exit_status  # a newer owner exists: not restarted by the supervisor
    WAITING = 4  # ended in good order, and something waits for a person: not restarted either
    INTERRUPTED = 130


def confirm(question: str) -> None:
    """Ask before what cannot be undone. Raises Exit where the answer is no, UsageError without a terminal."""
    if not is_terminal(sys.stdin):
        raise click.UsageError("there is no terminal to ask at: add --yes")
    if not click.confirm(question, err=True):
        tell("nothing was changed")
        raise click.exceptions.Exit(ExitCode.FAILED)


def yes_or_no(value: Any) -> Any:
    """Return a cell of a table: a truth as a word, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else value


def exit_code_of(error: BaseException) -> int:
    if isinstance(error, Fenced):
        return ExitCode.FENCED
    if isinstance(error, click.UsageError | BadSetting | BadSink | InvalidName):
        return ExitCode.USAGE
    if isinstance(error, click.exceptions.Exit):
        return int(error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED


def explain(error: BaseException) -> str:
    """Return the one line that a person reads about `error`."""
    if isinstance(error, OnceMQError):
        return text_of(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror.lower()}{where}"
    return f"{type(error).__name__}: {text_of(error)}"


def print_error(error: BaseException) -> int:
    """Print `error: reason (hint)` on stderr and return the exit status."""
    if os.environ.get("ONCEMQ_TRACEBACK"):
        tell("".join(traceback.format_exception(error)), block=True, patience_s=1)
    line = " ".join(explain(error).split())
    tell(f"error: {line}", patience_s=1)
    return exit_code_of(error)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line of stdout, flushed. Raises OSError."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    encode = json.JSONEncoder(ensure_ascii=not utf8, default=text_of, allow_nan=False).encode
    try:
        line = encode(value)
    except ValueError:  # JSON has no such numbers; its readers would refuse the whole line
        line = encode(_finite(value))
    click.echo(escaped_json(line))
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    """Return `value` with NaN and infinities as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(float(value))]
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return value


def print_summary(value: Mapping[str, Any]) -> None:
    """Print what a run has done. If nobody reads it, the exit status tells the outcome alone."""
    with contextlib.suppress(OSError):
        print_json(value)


def say(text: object = "", *, block: bool = False) -> None:
    """Print one line for people on stdout, or several as a `block`, escaped. Raises OSError."""
    click.echo(escaped(text, block=block))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, whole: int = 1
) -> None:
    """Print a table: drawn on a terminal, else columns parted by tabs, as `cut` likes them.

    Headings in a pipe are in capitals, so that no search for a row finds them. The cells of the first `whole` columns, which people paste into the next command, are never cut
    or folded, and of the others only the last. A table that is still too wide for the terminal
    prints each row as lines of its own.
    """
    texts = [["" if cell is None else escaped(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        for row in [[name.upper() for name in columns], *texts]:
            click.echo("\t".join(row))  # each cell is escaped
        return
    from rich.console import Console  # only a terminal pays for loading it

    draw_table(Console(highlight=False), title, columns, texts, whole=whole)


def draw_table(
    console: Console, title: str, columns: Sequence[str], rows: list[list[str]], *, whole: int
) -> None:
    """Draw rows of escaped cells as wide as the console is."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    widths = [max(cell_len(one[at]) for one in [columns, *rows]) for at in range(len(columns))]
    least = [*widths[:-1], min(widths[-1], _TEXT_MIN)]  # only the last one may be folded: a text
    least[:whole] = widths[:whole]
    if sum(least) + 2 * (len(least) - 1) > console.width:
        _draw_rows(console, title, columns, rows)
        return
    console.print(Text(title, style="bold"), soft_wrap=True)  # a title of a table would be folded
    table = Table(box=None, pad_edge=False)
    table.padding = (0, 2, 0, 0)
    for at, column in enumerate(columns):
        table.add_column(
            Text(column),
            min_width=least[at],
            no_wrap=least[at] == widths[at],
            overflow="fold",
            style="cyan" if at == 0 else "",
        )
    for row in rows:
        table.add_row(*(Text(cell, style=_WORD_STYLES.get(cell, "")) for cell in row))
    console.print(table)


def _draw_rows(console: Console, title: str, columns: Sequence[str], rows: list[list[str]]) -> None:
    """Draw each row as lines `column  cell`; a cell that is too long is wrapped by the terminal."""
    from rich.text import Text

    console.print(Text(title, style="bold"), soft_wrap=True)
    indent = max(map(len, columns))
    for row in rows:
        for at, (column, cell) in enumerate(zip(columns, row, strict=True)):
            style = "cyan" if at == 0 else _WORD_STYLES.get(cell, "")
            line = Text.assemble((column.ljust(indent + 2), "bold"), (cell, style))
            console.print(line, soft_wrap=True)
        console.print()


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
        events.emit(
            "process.stop", exit_code=int(exit_code_of(error)), code=code, reason=explain(error)
        )
        raise
    else:
        events.emit("process.stop", exit_code=int(ExitCode.DONE))
    finally:
        events.close()


@contextlib.contextmanager
def operator_events(role: str, settings: Settings) -> Iterator[Events]:
    """Write the events of a command for operators to --log-dir; a screen is for its result."""
    if settings.log_dir is None:
        yield NullEvents()
    else:
        with process_events(role, settings) as events:
            yield events


class ProgressLine:
    """How far long work is: one line on a terminal, drawn over; elsewhere nothing.

    Lines of `tell` and of events erase it and stand above it; it is drawn again with the next text.
    """

    def __init__(self) -> None:
        self._on = is_terminal(sys.stderr)
        self._drawn = False
        self._next_s = 0.0

    def show(self, text: str) -> None:
        """Draw `text`, as much of it as the terminal is wide, a few times a second at most."""
        if self._on and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PROGRESS_EVERY_S
            width = shutil.get_terminal_size().columns - 1
            put(ERASE_LINE + escaped(text)[:width])
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            put(ERASE_LINE)
            self._drawn = False


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield what shows a text as a ProgressLine, which is gone at the end."""
    line = ProgressLine()
    try:
        yield line.show
    finally:
        line.clear()


def keep_standard_streams() -> None:
    """Make stdin, stdout and stderr usable: closed ones, and encodings that carry little.

    A closed descriptor would be given to the next file that is opened, such as a log, and what any
    library prints would land there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_stdout(status: int) -> int:
    """Return the status of a command after its output left: FAILED if it was done but could not."""
    try:
        sys.stdout.flush()
    except OSError:
        # Keep the interpreter from tripping over it again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or ExitCode.FAILED
    return status
