"""`producer.py` / `oncemq producer`: sends the lines or rows of a file, each exactly once."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Callable, Iterator

import click

from ..errors import InvalidName, OnceMQError
from ..ids import check_name
from ..library.files.producer import FileProducer, Progress
from ..library.files.rows import FileJob, default_name
from ..library.files.sources import FORMATS, STDIN, open_rows
from ..limits import MESSAGE_BYTES_MAX
from ..runtime.clock import SystemClock
from ..runtime.diagnostics import tell
from ..runtime.events import EventLog
from ..runtime.process import draw, own_label, stop_signals
from ..runtime.settings import Settings
from ..runtime.zmq_transport import DealerTransport
from ..shells.producer import ProducerShell
from .config import setting_options
from .output import ExitCode, print_summary, process_events, progress_line


@click.command()
@click.option(
    "--topic", required=True, metavar="T", help="The topic; it is created if it does not exist."
)
@setting_options("broker")
@click.option(
    "--name",
    metavar="N",
    help="Producer name; it has one live owner [default: from topic and path; with --id-field"
    " none is needed].",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="lines",
    show_default=True,
    help="A message is: a line as text, a csv row or a JSON object as a map.",
)
@click.option(
    "--id-field",
    "id_fields",
    metavar="F[,F..]",
    help="Fields that form the message id; without them rows are numbered.",
)
@click.option("--key-field", metavar="F", help="Field that is the message key.")
@click.option(
    "--time-field",
    metavar="F",
    help="Field that tells when a row was created, as ISO 8601 or milliseconds since 1970; a topic with"
    " a dedup horizon needs it beside --id-field.",
)
@click.option("--follow", is_flag=True, help="Wait for more lines at the end of the file.")
@setting_options("log_dir", "log_level")
@click.argument("file", metavar="FILE|-")
def producer(
    topic: str,
    broker: str | None,
    name: str | None,
    format_name: str,
    id_fields: str | None,
    key_field: str | None,
    time_field: str | None,
    follow: bool,
    log_dir: str | None,
    log_level: str | None,
    file: str,
) -> int:
    """Send each line or row of FILE (`-`: standard input; `.gz` is decompressed) exactly once.

    After a crash run it again with the same name or --id-field: stored rows are not stored twice.
    Rows that an earlier run of the same name sent are only compared. The last line of output is
    {"sent", "appended", "duplicates"}: rows of the file that are durable now, rows that this run
    stored, and rows that this run sent although they were stored already.
    """
    settings = Settings.load(
        flags={"broker": broker, "log_dir": log_dir, "log_level": log_level},
    )
    csv.field_size_limit(MESSAGE_BYTES_MAX)  # of this process; the default is an eighth of it
    job = _job(topic, file, format_name, id_fields, key_field, time_field, follow=follow)
    owner = _owner(job, name)
    with process_events("producer", settings) as events:
        engine = _engine(owner, settings, events)
        try:
            return _run(job, engine, follow=follow)
        finally:
            engine.close()


def _job(
    topic: str,
    file: str,
    format_name: str,
    id_fields: str | None,
    key_field: str | None,
    time_field: str | None,
    *,
    follow: bool,
) -> FileJob:
    check_name(topic, "topic")
    fields = tuple(id_fields.split(",")) if id_fields is not None else ()
    if "" in fields or len(set(fields)) != len(fields):
        raise click.UsageError("--id-field takes field names separated by commas, each once")
    if format_name == "lines" and (fields or key_field is not None or time_field is not None):
        raise click.UsageError("--format lines has no fields; use --format csv or jsonl")
    if follow and file.endswith(".gz"):
        raise click.UsageError("--follow does not work with a gzip file")
    if file != STDIN and not os.path.exists(file):
        raise click.UsageError(f"no such file: {file}")
    if os.path.isdir(file):
        raise click.UsageError(f"{file} is a directory")
    return FileJob(topic, file, format_name, fields, key_field, time_field)


def _owner(job: FileJob, name: str | None) -> str:
    """An anonymous producer has ""."""
    if name is None:
        return "" if job.id_fields else default_name(job.topic, job.path)
    try:
        return check_name(name, "--name")
    except InvalidName as error:
        raise click.UsageError(str(error)) from None


def _engine(name: str, settings: Settings, events: EventLog) -> ProducerShell:
    return ProducerShell(
        name,
        endpoint=settings.broker,
        transport=DealerTransport(settings.broker),
        clock=SystemClock(),
        events=events,
        entropy=draw,
        label=own_label(),
    )


def _run(job: FileJob, engine: ProducerShell, *, follow: bool) -> int:
    with _progress(job) as report:
        sender = FileProducer(
            job,
            engine,
            lambda: open_rows(job.path, job.format_name, follow=follow),
            report=report,
        )
        try:
            with stop_signals(lambda _: sender.stop()):
                progress = sender.run()
        except OnceMQError:
            _print_summary(sender.progress)
            raise
    _print_summary(progress)
    # A followed file has no end: being stopped is how such a run is done.
    return ExitCode.DONE if follow or not sender.stopped else ExitCode.INTERRUPTED


def _print_summary(progress: Progress) -> None:
    print_summary(
        {
            "sent": progress.sent,
            "appended": progress.appended,
            "duplicates": progress.duplicates,
        }
    )


@contextlib.contextmanager
def _progress(job: FileJob) -> Iterator[Callable[[Progress], None]]:
    """Show how far the file is, on a terminal; everywhere say what is waited for."""
    told = ""

    def report(progress: Progress) -> None:
        nonlocal told
        if progress.waiting_for != told:
            told = progress.waiting_for
            if told:
                tell(f"{told}; still retrying")
        share = f"{100 * progress.position // progress.total} %, " if progress.total else ""
        show(f"{share}{progress.sent:,} sent of {job.path}")

    with progress_line() as show:
        yield report
