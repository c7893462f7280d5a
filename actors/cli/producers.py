"""`oncemq producers`: the names that senders of numbered messages have, and retiring idle ones."""

from __future__ import annotations

import click

from ..ids import utc_text
from ..library.operating.client import AdminClient
from ..runtime.diagnostics import tell
from ..runtime.settings import Settings
from ..topic_settings import duration_text, parse_duration
from .config import setting_options
from .output import confirm, print_json, print_table, say, yes_or_no

FIELDS = (
    "producer", "epoch", "owner", "last_at_ms", "bytes", "retired", "numbers", "partitions",
)  # fmt: skip
LATELY = "1h"  # a name that was in use since then is retired with --force only

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def producers() -> None:
    """List producer names, and retire idle ones."""


@producers.command("list")
@json_option
@setting_options("broker")
def list_producers(as_json: bool, broker: str | None) -> None:
    """List all producer names: the owner, when it stored something, its next numbers, its memory."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        rows, _ = client.producers()
    if as_json:
        told = [dict(zip(FIELDS, row, strict=True)) for row in rows]
        for row in told:
            row["numbers"] = [
                {"topic": topic, "partition": partition, "next": number}
                for topic, partition, number in row["numbers"]
            ]
        print_json({"producers": told})
        return
    shown = []
    for name, epoch, owner, last_at_ms, size, retired, numbers, partitions in rows:
        first = " ".join(f"{topic}/{partition}:{number}" for topic, partition, number in numbers)
        rest = f" +{partitions - len(numbers)}" if partitions > len(numbers) else ""
        when = utc_text(last_at_ms) if last_at_ms else ""
        shown.append([name, epoch, owner, when, size, yes_or_no(retired), first + rest])
    columns = ("producer", "epoch", "owner", "last stored", "bytes", "retired", "next numbers")
    print_table("producers", columns, shown)


@producers.command("retire")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--idle", metavar="DURATION", help="All names that stored nothing for so long (30d).")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force", is_flag=True, help=f"Also a name that stored something in the last {LATELY}."
)
@json_option
@setting_options("broker")
def retire(
    names: tuple[str, ...],
    idle: str | None,
    yes: bool,
    force: bool,
    as_json: bool,
    broker: str | None,
) -> None:
    """Keep only the epoch and the next numbers of idle producers, and nothing of their history.

    A program that comes back under the name goes on with its numbers; nothing is stored twice. One that
    still runs is refused with RetiredProducer, and must be started again. A number from before is
    answered as a duplicate without its offset, and its body is not compared any more.
    """
    if bool(names) == (idle is not None):
        raise click.UsageError("give names or --idle DURATION")
    idle_ms = parse_duration(LATELY) if idle is None else parse_duration(idle)
    if idle is not None and idle_ms < parse_duration(LATELY) and not force:
        raise click.UsageError(f"--idle below {LATELY} takes producers at work: add --force")
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        if idle is not None:
            rows, now_ms = client.producers()
            names = tuple(
                row[0]
                for row in rows
                if not row[5] and not row[0].startswith("@") and now_ms - row[3] >= idle_ms
            )
        elif force:
            idle_ms = 0
        if names and not yes:
            tell(", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else ""))
            confirm(f"retire {len(names)} producer name(s)?")
        for name in names:
            client.retire_producer(name, idle_ms)
    if as_json:
        print_json({"retired": list(names)})
    else:
        after = "" if idle is None else f" that stored nothing for {duration_text(idle_ms)}"
        say(f"{len(names)} producer name(s){after} are retired")
