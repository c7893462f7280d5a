"""`oncemq relay`: sends what is committed in the outbox of a user's database."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..errors import OnceMQError
from ..library.outbox.database import OutboxDatabase, Visit, open_database
from ..library.outbox.relay import Progress, Relay, shown_id
from ..limits import RELAY_POLL_S_DEFAULT
from ..runtime.clock import SystemClock
from ..runtime.crash_points import CrashPoint
from ..runtime.diagnostics import tell
from ..runtime.events import EventLog
from ..runtime.process import draw, own_label, stop_signals
from ..runtime.settings import Settings
from ..runtime.zmq_transport import DealerTransport
from ..shells.producer import ProducerShell
from .config import setting_options
from .output import ExitCode, print_json, print_summary, print_table, process_events, progress_line


@click.command()
@setting_options("sink", "broker")
@click.option("--once", is_flag=True, help="End when the outbox is empty.")
@click.option(
    "--until-idle",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="End after this time without a row [default: run until stopped].",
)
@click.option(
    "--poll",
    type=click.FloatRange(0.001, 3_600),
    default=RELAY_POLL_S_DEFAULT,
    show_default=True,
    metavar="SECONDS",
    help="How often to check an empty outbox.",
)
@click.option("--keep", is_flag=True, help="Mark rows as sent instead of deleting them.")
@click.option(
    "--show-failed", is_flag=True, help="List the rows that the broker refused for good, and end."
)
@click.option("--retry-failed", is_flag=True, help="First mark the refused rows to be sent again.")
@click.option("--json", "as_json", is_flag=True, help="With --show-failed: print one JSON object.")
@setting_options("log_dir", "log_level")
def relay(
    once: bool,
    until_idle: float | None,
    poll: float,
    keep: bool,
    show_failed: bool,
    retry_failed: bool,
    as_json: bool,
    **flags: str | None,
) -> int:
    """Send every message in the outbox of the database --sink, each exactly once.

    Your transaction adds rows with outbox.send(connection, ...); the relay deletes a row once the
    broker has stored it. You may kill, restart or run several relays: nothing is lost or stored
    twice. A row that the broker refuses for good stays in the table with the reason, and the relay
    continues; with --once or --until-idle it then exits with status 1. The last line of output is
    {"sent", "appended", "duplicates", "failed"}.
    """
    settings = Settings.load(flags=flags)
    if settings.sink is None:
        raise click.UsageError("no database given; pass --sink URL, or set ONCEMQ_SINK")
    if once and until_idle is not None:
        raise click.UsageError("--once and --until-idle exclude each other")
    if as_json and not show_failed:
        raise click.UsageError("--json needs --show-failed")
    point = CrashPoint.from_environment()
    visit: Visit = (lambda _: None) if point is None else point.visit
    with contextlib.closing(open_database(settings.sink, visit)) as database:
        if show_failed:
            _show_failed(database, as_json=as_json)
            return ExitCode.DONE
        if retry_failed:
            tell(f"{database.retry_failed()} refused rows will be sent again")
        with process_events("relay", settings) as events:
            until = 0.0 if once else until_idle
            options: dict[str, Any] = {"until_idle_s": until, "poll_s": poll, "keep": keep}
            return _run(database, settings.broker, events, options | {"visit": visit})


def _run(database: OutboxDatabase, endpoint: str, events: EventLog, options: dict[str, Any]) -> int:
    engine = ProducerShell(
        "",
        endpoint=endpoint,
        transport=DealerTransport(endpoint),
        clock=SystemClock(),
        events=events,
        entropy=draw,
        label=own_label(),
    )
    try:
        with _progress() as report:
            relay = Relay(database, engine, events, report=report, **options)
            try:
                with stop_signals(lambda _: relay.stop()):
                    progress = relay.run()
            except OnceMQError:
                _print_summary(relay.progress)
                raise
    finally:
        engine.close()
    _print_summary(progress)
    if options["until_idle_s"] is None:
        return ExitCode.DONE  # being stopped is how such a run is done
    if relay.stopped:
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED if progress.failed else ExitCode.DONE


def _print_summary(progress: Progress) -> None:
    print_summary(
        {
            "sent": progress.sent,
            "appended": progress.appended,
            "duplicates": progress.duplicates,
            "failed": progress.failed,
        }
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Tell who is waited for and what was refused; on a terminal also how much was sent."""
    told: str | None = None
    failed = 0

    def report(progress: Progress) -> None:
        nonlocal told, failed
        if progress.waiting_for != told:
            told = progress.waiting_for
            if told is not None:
                tell(f"{told}; still retrying")
        if progress.failed != failed:
            tell(
                f"{progress.failed - failed} rows were refused; list them: oncemq relay --show-failed"
            )
            failed = progress.failed
        show(f"{progress.sent:,} sent, {progress.duplicates:,} of them duplicates")

    with progress_line() as show:
        yield report


def _show_failed(database: OutboxDatabase, *, as_json: bool) -> None:
    rows = [
        {
            "place": row.place,
            "topic": row.topic,
            "id": shown_id(row.message_id),
            "error": row.error,
            "created_at": _time(row.created_at_ms),
            "refused_at": _time(row.done_at_ms),
        }
        for row in database.failed()
    ]
    if as_json:
        print_json({"failed": rows})
    else:
        columns = ("place", "topic", "id", "error", "created_at", "refused_at")
        print_table("refused", columns, [list(row.values()) for row in rows])


def _time(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="seconds")
