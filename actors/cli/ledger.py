"""`oncemq ledger`: one ledger as one portable file, what such a file holds, and back again."""

from __future__ import annotations

import click

from ..library.ledgers.export import About, check_export, export_ledger, find_directory, is_owned
from ..library.ledgers.import_ import import_ledger
from ..runtime.diagnostics import tell
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table


@click.group()
def ledger() -> None:
    """Export a ledger to a file, check the file, and import it in another place.

    \b
    oncemq ledger export billing/orders/0 billing.ledger      # stop its consumer first
    oncemq ledger import billing.ledger --state /srv/consumers
    """


@ledger.command("export")
@click.argument("place", metavar="DIR|GROUP/TOPIC/PARTITION")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("state")
def export(place: str, file: str, as_json: bool, state: str | None) -> None:
    """Write one ledger to FILE: offsets, state, processed ids and outputs not yet acknowledged.

    The consumer may keep running: the file shows the ledger after one durable commit.
    """
    disk = OsDisk()
    directory = find_directory(disk, Settings.load(flags={"state": state}).state, place)
    about = export_ledger(disk, directory, file)
    if is_owned(disk, directory):
        tell("note: a consumer is running; to move its ledger, stop it and export again")
    _print(about, as_json=as_json)


@ledger.command("import")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("state")
def import_(file: str, as_json: bool, state: str | None) -> None:
    """Import FILE into --state, as the ledger of its group, topic and partition.

    A consumer started there continues exactly where the file ends. The command never replaces a
    ledger: it refuses if --state already has one, unless it is the same ledger at the same commit.
    The broker refuses a file older than the last commit that the group reported (LedgerNotHere).

    \b
    oncemq ledger import billing.ledger --state /srv/consumers
    """
    directory = Settings.load(flags={"state": state}).state
    _print(import_ledger(OsDisk(), file, directory), as_json=as_json)


@ledger.command("show")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: str, as_json: bool) -> None:
    """Check every byte of an exported FILE and print whose ledger it holds."""
    about, _ = check_export(OsDisk(), file)
    _print(about, as_json=as_json)


def _print(about: About, *, as_json: bool) -> None:
    if as_json:
        print_json(about.as_dict())
    else:
        print_table("ledger", ("field", "value"), list(about.as_dict().items()))
