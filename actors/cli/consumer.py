"""`consumer.py` / `oncemq consumer`: runs the handlers of MODULE:APP."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import NoReturn

import click

from ..errors import HandlerFailed
from ..ids import check_name, rerun_group
from ..library.app import RETRIES_MAX, App
from ..library.consuming.process import ConsumerProcess
from ..library.consuming.tally import Summary
from ..library.consuming.watcher import Watcher
from ..library.handling.call import Consumer, MessageContext
from ..library.raised import raised_by_code
from ..runtime.diagnostics import TellingHandler, tell, text_of
from ..runtime.events import EventLog
from ..runtime.settings import Settings, working_directory
from .config import setting_options
from .output import ExitCode, ProgressLine, print_error, print_summary, process_events

THREADS_S = 2.0  # for threads that the application leaves behind


def _park_limit(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Return 0 for `none`."""
    if value is None or value == "none":
        return None if value is None else 0
    if value.isdecimal() and 1 <= int(value) <= RETRIES_MAX:
        return int(value)
    raise click.BadParameter(f"{value!r} is no number from 1 to {RETRIES_MAX}, and not `none`")


@click.command()
@click.argument("app", metavar="MODULE:APP")
@setting_options("broker")
@click.option("--group", metavar="G", help="Run only this group [default: all groups of the app].")
@setting_options("state")
@click.option(
    "--until-idle",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="End after this time without work [default: run until stopped].",
)
@click.option(
    "--rerun",
    metavar="NAME",
    help="Handle the whole history again as group G~NAME; group G stays as it is.",
)
@click.option(
    "--park-limit",
    callback=_park_limit,
    metavar="N",
    help="Stop when N messages in a row were parked with the same type of error, and one more fails"
    " with it; `none` for never [default: what each consumer of the app says].",
)
@setting_options("drain", "log_dir", "log_level")
def consumer(
    app: str,
    broker: str | None,
    group: str | None,
    rerun: str | None,
    park_limit: int | None,
    state: str | None,
    until_idle: float | None,
    drain: str | None,
    log_dir: str | None,
    log_level: str | None,
) -> None:
    """Handle the messages of every topic that MODULE:APP consumes, each exactly once.

    MODULE is imported from the current directory. Processed ids, offsets, state and outputs live
    in --state; a restarted consumer continues from there. The last line of output is
    {"processed", "skipped", "parked", "offsets"}. Status 4: it ended in good order, but messages were
    parked in this run, or effects are held.

    With --rerun the handlers see every message from the earliest on, with a new state, a new
    processed set and a new output producer: their messages are sent again, under new ids.

    Threads that the application leaves behind get two seconds; then the process ends without them.
    """
    with _threads_end():
        flags = {
            "broker": broker,
            "state": state,
            "drain": drain,
            "log_dir": log_dir,
            "log_level": log_level,
        }
        _consume(app, group, rerun, park_limit, until_idle, flags)


def _consume(
    app: str,
    group: str | None,
    rerun: str | None,
    park_limit: int | None,
    until_idle: float | None,
    flags: dict[str, str | None],
) -> None:
    environ, directory = dict(os.environ), working_directory()  # before the module may change them
    loaded = load_app(app)
    settings = Settings.load(
        flags=flags,
        arguments={"broker": loaded.broker},
        environ=environ,
        directory=directory,
    )
    chosen = choose(loaded, app, group)
    if rerun is not None:
        chosen = [replace(one, group=rerun_group(one.group, rerun)) for one in chosen]
    if park_limit is not None:
        chosen = [replace(one, park_limit=park_limit or None) for one in chosen]
    _log_lines_of_handlers(settings.log_level)
    with process_events("consumer", settings) as events:
        _run(chosen, settings, until_idle, events)


def load_app(target: str) -> App:
    """Import MODULE:APP. Raises UsageError that says what is missing."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise click.UsageError(f"{target!r}: expected MODULE:APP, such as shop:app")
    here = os.getcwd()
    if here not in sys.path[:1]:  # before all else: a module of the user's is never found elsewhere
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            _refuse_module(module_name)
        raise click.UsageError(f"there is no module {error.name!r} in {here}") from None
    except BaseException as error:
        if not raised_by_code(error):
            raise
        _refuse_module(module_name)
    app = getattr(module, name, None)
    if not isinstance(app, App):
        found = sorted(n for n, value in vars(module).items() if isinstance(value, App))
        hint = f"; it has {', '.join(found)}" if found else ""
        raise click.UsageError(f"{module_name} has no App called {name!r}{hint}")
    return app


def _refuse_module(module_name: str) -> NoReturn:
    """Show the user's own traceback and end with wrong usage: trying again would not help."""
    tell(traceback.format_exc().rstrip(), block=True, patience_s=1)
    raise click.UsageError(f"{module_name} cannot be imported, see above") from None


def choose(app: App, target: str, group: str | None) -> list[Consumer]:
    """Return the consumers to be run. Raises UsageError if there are none."""
    if group is not None:
        check_name(group, "--group")
    chosen = [one for one in app.consumers if group in {None, one.group}]
    if not chosen:
        groups = sorted({one.group for one in app.consumers})
        what = f"no group {group!r}; it has {', '.join(groups)}" if groups else "no consumers"
        raise click.UsageError(f"{target} has {what}")
    return chosen


@contextlib.contextmanager
def _threads_end() -> Iterator[None]:
    """Wait a moment for threads that the application began and has not ended; then end without them.

    Python itself would wait for ever, with nothing to show for it: all is committed by now.
    """
    before = set(threading.enumerate())
    status: int = ExitCode.DONE
    try:
        yield
    except Exception as error:
        if not _left_behind(before):
            raise
        if isinstance(error, click.exceptions.Exit):
            status = error.exit_code
        else:
            status = print_error(error)
    if left := _left_behind(before):
        names = ", ".join(repr(thread.name) for thread in left)
        tell(f"waiting {THREADS_S:g} s for threads of the application: {names}")
        until = time.monotonic() + THREADS_S
        for thread in left:
            thread.join(max(0.0, until - time.monotonic()))
        if not _left_behind(before):
            raise click.exceptions.Exit(status)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
                stream.flush()
        os._exit(status)


def _left_behind(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that the end of Python would wait for."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and not thread.daemon and thread.is_alive()
    ]


def _run(
    consumers: list[Consumer], settings: Settings, until_idle: float | None, events: EventLog
) -> None:
    console = _Console(events, quiet=settings.log_dir is None)
    process = ConsumerProcess(
        consumers,
        broker=settings.broker,
        state=settings.state,
        events=events,
        until_idle_s=until_idle,
        drain_s=settings.drain_s,
        watcher=console,
    )
    try:
        process.run()
    except HandlerFailed as error:
        for note in getattr(error, "__notes__", ()):
            tell(note, block=True, patience_s=1)
        raise
    finally:
        console.clear()
        summary = process.summary()
        print_summary(summary.as_dict())
    waiting = summary.waiting()
    if waiting:
        tell(f"waiting for you: {waiting}", patience_s=1)
        raise click.exceptions.Exit(ExitCode.WAITING)


class _Console(Watcher):
    """Tells a person: one line that is drawn over on a terminal, else only what matters."""

    def __init__(self, events: EventLog, *, quiet: bool) -> None:
        """`quiet`: the events on stderr tell already what is not told twice."""
        self._events = events
        self._quiet = quiet
        self._line = ProgressLine()
        self._away = ""

    def standby(self, text: str) -> None:
        tell(text)

    def silence(self, endpoint: str) -> None:
        if not self._quiet:
            tell(f"no broker answers at {endpoint}; still retrying")

    def sink_away(self, text: str) -> None:
        """Say why nothing is committed, unless the events go to stderr too."""
        if not self._quiet and text != self._away:
            self._away = text
            tell(text)

    def effect_held(self, text: str) -> None:
        tell(text)

    def progress(self, summary: Summary) -> None:
        text = f"{summary.processed:,} processed, {summary.skipped:,} skipped"
        text += f", {summary.parked:,} parked" if summary.parked else ""
        text += f", {len(summary.held):,} held" if summary.held else ""
        self._line.show(text)

    def clear(self) -> None:
        self._line.clear()

    def abandon(self, summary: Summary, error: BaseException) -> None:
        """End the process: a handler that does not return holds the main thread."""
        self.clear()
        code = print_error(error)
        print_summary(summary.as_dict())
        self._events.emit("process.stop", exit_code=int(code), reason=text_of(error))
        os._exit(code)


def _log_lines_of_handlers(level: str) -> None:
    """Show what handlers log, with the message at hand, unless the app has configured logging."""
    root = logging.getLogger()
    if root.handlers:
        return
    handler = TellingHandler()
    handler.addFilter(MessageContext())
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s %(oncemq)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if level == "debug" else logging.INFO)
