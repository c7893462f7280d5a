"""`oncemq dump DIR`: look into a log directory without touching it, also when it is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..codec.records import type_name
from ..runtime.os_disk import OsDisk
from ..storage import layout
from ..storage.inspection import inspect
from .output import ExitCode, print_json, say

_SHOWN_FIRST = ("kind", "number", "position", "path")


@click.command("dump")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--records/--no-records", default=True, help="List every record and commit frame.")
def command(directory: str, as_json: bool, records: bool) -> None:
    """Print generations, segments, records and snapshots of a log DIRECTORY, and the verdict.

    DIRECTORY holds gen-... directories; data/broker is one. The command writes nothing. Exit status
    1 means that a broker or consumer would refuse to open this log.
    """
    disk = OsDisk()
    if not layout.generations(disk, directory):
        raise click.UsageError(f"{directory} holds no log: there is no gen-... directory in it")
    good = False
    for item in _selected(map(_named, inspect(disk, directory)), records):
        if as_json:
            print_json(item)
        else:
            say(_line(item))
        good = bool(item.get("ok"))
    if not good:
        raise click.exceptions.Exit(ExitCode.FAILED)


dump = command


def _named(item: dict[str, Any]) -> dict[str, Any]:
    """Name the record: storage knows numbers only."""
    if item["kind"] != "record":
        return item
    named = {}
    for key, value in item.items():
        named[key] = value
        if key == "type":
            named["name"] = type_name(value)
    return named


def _selected(items: Iterator[dict[str, Any]], records: bool) -> Iterator[dict[str, Any]]:
    for item in items:
        frame = item["kind"] in {"record", "commit"}
        if records or not frame or item["verdict"] != "ok":
            yield item


def _line(item: dict[str, Any]) -> str:
    indent = {"generation": "", "verdict": ""}.get(item["kind"], "  ")
    if item["kind"] in {"record", "commit", "reserved", "bad"}:
        indent = "    "
    head = " ".join(str(item[name]) for name in _SHOWN_FIRST if name in item)
    rest = (f"{name}={value}" for name, value in item.items() if name not in _SHOWN_FIRST)
    return f"{indent}{head}  {' '.join(rest)}".rstrip()
