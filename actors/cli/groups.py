"""`oncemq groups`: who has which partition."""

from __future__ import annotations

import click

from ..library.admin import AdminClient
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table

FIELDS = ("group", "topic", "partition", "epoch", "consumer", "host", "path", "live")


@click.group()
def groups() -> None:
    """Show groups and who owns their partitions."""


@groups.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("broker")
def list_groups(as_json: bool, broker: str | None) -> None:
    """List every grant: its consumer, where its ledger lies, and whether its lease runs."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        listed = client.groups()
    if as_json:
        rows = [dict(zip(FIELDS, row, strict=True)) for row in listed.groups]
        print_json({"groups": rows})
    else:
        shown = [[*row[:-1], "yes" if row[-1] else "no"] for row in listed.groups]
        print_table("groups", FIELDS, shown)
