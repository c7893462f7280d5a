"""`oncemq broker`: the process that owns the log."""

from __future__ import annotations

import click

from ..library.broker_process import BrokerProcess, UnsafeBind, serve
from ..limits import SNAPSHOT_EVERY_BYTES
from ..runtime.diagnostics import tell
from ..runtime.process import stop_signals
from ..runtime.settings import SPECS, Settings
from .config import setting_options
from .output import process_events


@click.command()
@setting_options("data", "bind")
@click.option(
    "--takeover",
    is_flag=True,
    help="Kill a frozen broker that owns the data directory (on this host only) and take over.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Allow a --bind that other machines can reach: each of them may read and write.",
)
@click.option(
    "--create-topics/--no-create-topics",
    default=None,
    help="Whether a send to a topic that does not exist, or a consumer of it, creates it"
    f" [{SPECS['create_topics'].variable}; default: {SPECS['create_topics'].default}].",
)
@click.option(
    "--snapshot-every",
    type=click.IntRange(min=4096),
    default=SNAPSHOT_EVERY_BYTES,
    show_default=True,
    metavar="BYTES",
    help="Write a snapshot after this much new log; a restart replays at most as much.",
)
@setting_options("log_dir", "log_level")
def broker(
    data: str | None,
    bind: str | None,
    takeover: bool,
    insecure: bool,
    create_topics: bool | None,
    snapshot_every: int,
    log_dir: str | None,
    log_level: str | None,
) -> None:
    """Run the broker that owns the log in --data.

    SIGTERM ends the broker with status 0. Status 3 means that another broker took over its log.
    The broker may be killed at any time: everything that it acknowledged is on disk.
    """
    flags = {"data": data, "bind": bind, "log_dir": log_dir, "log_level": log_level}
    if create_topics is not None:
        flags["create_topics"] = "yes" if create_topics else "no"
    settings = Settings.load(flags=flags)
    with process_events("broker", settings) as events:
        try:
            process = BrokerProcess(
                settings.data,
                settings.bind,
                events,
                takeover=takeover,
                insecure=insecure,
                create_topics=settings.create_topics,
                snapshot_every_bytes=snapshot_every,
            )
        except UnsafeBind as error:
            raise click.UsageError(str(error)) from None

        def on_ready(endpoint: str) -> None:
            if settings.log_dir is not None:  # else the events on stderr name it
                tell(f"listening at {endpoint}")

        with stop_signals(lambda _number: process.stop()):
            serve(process, on_ready)
