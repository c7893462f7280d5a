"""`oncemq state`: what a group has in tx.state, read from its ledgers."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click

from ..core.consumer.ledger import Ledger
from ..errors import OnceMQError
from ..ids import check_name
from ..library.handling.state import shown_state
from ..library.ledgers.reader import read_group
from ..library.sinks.reading import read_sink_group
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table


class SameKey(OnceMQError):
    """Two partitions hold the same key; one JSON object cannot show both."""

    code = "same_key"
    default_hint = "use --by-partition; use --topic if they belong to two topics"


@click.command()
@setting_options("state")
@click.option("--sink", metavar="URL", help="The ledgers are in this database, not in --state.")
@click.option("--group", required=True, metavar="G", help="The group.")
@click.option("--topic", metavar="T", help="Only the state for this topic.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--by-partition", is_flag=True, help="One object for each topic/partition.")
def state(
    state: str | None,
    sink: str | None,
    group: str,
    topic: str | None,
    as_json: bool,
    by_partition: bool,
) -> None:
    """Print the committed state of a group: one object of all its partitions.

    It is read from the ledgers in --state, or in the database --sink; the consumer may run meanwhile. Bytes that are no text
    are shown in hexadecimal with a leading 0x, times in ISO 8601. Of a handler with
    state_by="key" each message key is one object; messages without a key show as (no key).
    """
    check_name(group, "--group")
    settings = Settings.load(flags={"state": state})
    if sink is not None:
        ledgers = read_sink_group(sink, group)
    else:
        ledgers = read_group(OsDisk(), settings.state, group)
    if topic is not None:
        ledgers = {place: one for place, one in ledgers.items() if place[0] == topic}
    shown: dict[str, Any] = _by_partition(ledgers) if by_partition else _merged(ledgers)
    if as_json:
        print_json(shown)
    elif by_partition:
        rows = [(place, k, v) for place, found in shown.items() for k, v in found.items()]
        print_table(f"state of {group}", ("partition", "key", "value"), rows)
    else:
        print_table(f"state of {group}", ("key", "value"), list(shown.items()))


def _decoded(ledger: Ledger) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in shown_state(ledger.state).items():
        name = _shown_key(key)
        found[name if name not in found else repr(key)] = _plain(value)
    return found


def _shown_key(key: str | bytes | None) -> str:
    """Return a key of the state as text: a message key may also be bytes, or not be there."""
    if key is None:
        return "(no key)"
    return "0x" + key.hex() if isinstance(key, bytes) else key


def _by_partition(ledgers: dict[tuple[str, int], Ledger]) -> dict[str, Any]:
    return {f"{topic}/{number}": _decoded(ledger) for (topic, number), ledger in ledgers.items()}


def _merged(ledgers: dict[tuple[str, int], Ledger]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    homes: dict[str, tuple[str, int]] = {}
    for place, ledger in ledgers.items():
        for key, value in _decoded(ledger).items():
            if key in homes:
                one, other = ("/".join(map(str, p)) for p in (homes[key], place))
                raise SameKey(f"{one} and {other} both hold the key {key!r}")
            homes[key] = place
            merged[key] = value
    return dict(sorted(merged.items()))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return "0x" + value.hex()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
