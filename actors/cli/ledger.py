"""`oncemq ledger`: one ledger as one portable file, and what such a file holds."""

from __future__ import annotations

import click

from ..library.ledger_export import About, check_export, export_ledger, find_directory
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table


@click.group()
def ledger() -> None:
    """Export a ledger to a file, and check such a file."""


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
    _print(export_ledger(disk, directory, file), as_json=as_json)


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
