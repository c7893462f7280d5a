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
    help="Give up after this many crashes within the window.",
)
@click.option(
    "--within",
    type=click.FloatRange(0.1, 86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Length of the window.",
)
@click.option(
    "--backoff-max",
    type=click.FloatRange(0.1, 3600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest pause before a restart; the first is 0.1 s, each next one twice as long.",
)
@click.option(
    "--stay",
    is_flag=True,
    help="Keep running after the command is done, for runners that stop all when one ends.",
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

    The command is not restarted after exit 0 (done), 2 (wrong usage), 3 (fenced) or 4 (something waits for
    a person), nor after SIGTERM or SIGINT, which are passed on to it. The exit status is that of the command.
    """
    settings = Settings.load(flags={"log_dir": log_dir, "log_level": log_level})
    policy = RestartPolicy(limit=give_up_after, window_s=within, backoff_max_s=backoff_max)
    with process_events("supervise", settings) as events:
        try:
            status = Supervisor(command, events, policy, stay=stay).run()
        except OSError as error:
            raise click.UsageError(f"cannot start {command[0]}: {explain(error)}") from error
        raise click.exceptions.Exit(status)
