"""`oncemq ledger`: one ledger as one portable file, what such a file holds, and back again."""

from __future__ import annotations

import click

from ..library.ledgers.export import About, check_export, export_ledger, find_directory, is_owned
from ..library.ledgers.import_ import import_ledger
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table


@click.group()
def ledger() -> None:
    """Export a ledger to a file, check such a file, and import it elsewhere.

    \b
    oncemq ledger export billing/orders/0 billing.ledger      # its consumer has been stopped
    oncemq ledger import billing.ledger --state /srv/consumers
    """


@ledger.command("export")
@click.argument("place", metavar="DIR|GROUP/TOPIC/PARTITION")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("state")
def export(place: str, file: str, as_json: bool, state: str | None) -> None:
    """Write one ledger to FILE: offsets, state, processed ids and outputs that wait.

    The consumer may run meanwhile: the file is as of one commit, and that is on disk.
    """
    disk = OsDisk()
    directory = find_directory(disk, Settings.load(flags={"state": state}).state, place)
    about = export_ledger(disk, directory, file)
    if is_owned(disk, directory):
        click.echo(
            "note: a consumer is at work; to move its ledger, stop it and export anew", err=True
        )
    _print(about, as_json=as_json)


@ledger.command("import")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("state")
def import_(file: str, as_json: bool, state: str | None) -> None:
    """Bring an exported FILE into --state, as the ledger of its group, topic and partition.

    A consumer that is started there goes on exactly where the file ends. No ledger is replaced: one
    that is there already is refused, unless it is this one at the same commit. The broker refuses
    a file that is older than what the group has reported (LedgerNotHere).

    \b
    oncemq ledger import billing.ledger --state /srv/consumers
    """
    directory = Settings.load(flags={"state": state}).state
    _print(import_ledger(OsDisk(), file, directory), as_json=as_json)


@ledger.command("show")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: str, as_json: bool) -> None:
    """Check all of an exported FILE and say whose ledger it is."""
    about, _ = check_export(OsDisk(), file)
    _print(about, as_json=as_json)


def _print(about: About, *, as_json: bool) -> None:
    if as_json:
        print_json(about.as_dict())
    else:
        print_table("ledger", ("field", "value"), list(about.as_dict().items()))
