"""`oncemq supervise -- CMD...`: the runner of the Procfile, and of whoever has no other."""

from __future__ import annotations

import click

from ..runtime.settings import Settings
from ..runtime.supervisor import RestartPolicy, Supervisor
from .config import setting_options
from .output import explain, process_events


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--give-up-after",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    metavar="N",
    help="Crashes within the window that are too many.",
)
@click.option(
    "--within",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="The window.",
)
@click.option(
    "--backoff-max",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="The longest pause before a restart; the first is 0.1 s, then it doubles.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="Outlast a child that is done, for runners that end all when one process ends.",
)
@setting_options("log_dir", "log_level")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def supervise(
    give_up_after: int,
    within: float,
    backoff_max: float,
    stay: bool,
    log_dir: str | None,
    log_level: str | None,
    command: tuple[str, ...],
) -> None:
    """Keep COMMAND running: `oncemq supervise -- python broker.py`.

    A child that exits 0 (done), 2 (wrong usage) or 3 (fenced) is not restarted, nor is one that
    was told to stop: SIGTERM and SIGINT are passed on. The exit status is the child's.
    """
    settings = Settings.load(flags={"log_dir": log_dir, "log_level": log_level})
    policy = RestartPolicy(limit=give_up_after, window_s=within, backoff_max_s=backoff_max)
    with process_events("supervise", settings) as events:
        try:
            status = Supervisor(command, events, policy, stay=stay).run()
        except OSError as error:
            raise click.UsageError(f"cannot start {command[0]}: {explain(error)}") from error
        raise click.exceptions.Exit(status)
