"""`oncemq groups`: who has which partition, how far it is, and moving a group to another offset."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Callable
from typing import Any

import click

from ..errors import OnceMQError
from ..ids import did_you_mean
from ..library.operating.client import AdminClient
from ..library.operating.group_state import GroupState, group_state
from ..library.operating.seek import EARLIEST, LATEST, Moved, Seeker
from ..runtime.settings import Settings
from .config import setting_options
from .output import operator_events, print_json, print_table, say

FIELDS = ("group", "topic", "partition", "epoch", "consumer", "host", "path", "live")
_REASON_CHARS_MAX = 500
_LAG_VERSION = 2  # of the protocol: brokers before it do not tell the lag

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class UnknownGroup(OnceMQError):
    """No consumer of the group has ever joined at this broker."""

    code = "unknown_group"
    default_hint = "list groups: oncemq groups list"


@click.group()
def groups() -> None:
    """Show groups, the owners of their partitions and their lag; move a group's offset."""


@groups.command("list")
@json_option
@setting_options("broker")
def list_groups(as_json: bool, broker: str | None) -> None:
    """List every grant: its consumer, the place of its ledger, whether its lease runs, its lag."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        listed = client.groups().groups
        told = client.welcome().version >= _LAG_VERSION
        lags = {
            (group, row[0], row[1]): row[9] - row[8]
            for group in sorted({row[0] for row in listed if told})
            for row in client.group(group).partitions
        }
    columns = (*FIELDS, "lag")
    rows = [(*row, lags.get(row[:3])) for row in listed]
    if as_json:
        print_json({"groups": [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        print_table("groups", columns, [[_shown(value) for value in row] for row in rows], whole=2)


@groups.command("show")
@click.argument("group")
@json_option
@setting_options("broker")
def show_group(group: str, as_json: bool, broker: str | None) -> None:
    """Show the members of GROUP, their partitions, the lag, and what operators skipped.

    An owner reports its offset about every two seconds. For a partition without a live owner the
    offset is read from its ledger, if the ledger is on this machine.
    """
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        state = group_state(client, group, host=socket.gethostname())
        if not state.partitions and not state.members:
            known = {row[0] for row in client.groups().groups}
            raise UnknownGroup(f"there is no group {group!r}{did_you_mean(group, known)}")
    if as_json:
        print_json(state.as_dict())
    else:
        _print_state(state)


def _print_state(state: GroupState) -> None:
    columns = ("topic", "partition", "consumer", "live", "epoch", "committed", "end", "lag", "to")
    rows = [
        [
            p.topic,
            p.partition,
            p.consumer,
            _shown(p.live),
            p.epoch,
            p.committed,
            p.end,
            p.lag,
            p.moving_to,
        ]
        for p in state.partitions
    ]
    print_table(f"partitions of group {state.group}", columns, rows)
    members = [[m.topic, m.consumer, m.partitions, m.heard_ms_ago] for m in state.members]
    print_table("members", ("topic", "consumer", "partitions", "heard ms ago"), members)
    skips = [
        [p.topic, p.partition, low, high, why]
        for p in state.partitions
        for low, high, why in p.skipped
    ]
    if skips:
        print_table("skipped by operators", ("topic", "partition", "from", "to", "reason"), skips)


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else value


# --- moving --------------------------------------------------------------------------------------


def _moving_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--sink", metavar="URL", help="The ledgers are in this database."),
        click.option(
            "--reason", default="", metavar="TEXT", help="Reason, recorded in the ledger."
        ),
        json_option,
        setting_options("broker", "state", "log_dir", "log_level"),
    ):
        command = option(command)
    return command


@groups.command("seek")
@click.argument("group")
@click.argument("topic")
@click.option(
    "--partition", type=click.IntRange(0), metavar="P", help="Only this partition [default: all]."
)
@click.option(
    "--to",
    required=True,
    metavar="OFFSET|TIME|earliest|latest",
    help="The new offset. TIME is ISO 8601, such as 2026-01-31T12:00:00+01:00.",
)
@_moving_options
def seek(group: str, topic: str, partition: int | None, to: str, **options: Any) -> None:
    """Move GROUP's offset in TOPIC. Stop the consumers of GROUP first.

    A move forward skips messages; the ledger records them as skipped. A move back reads messages
    again: skipped ones are handled, processed ones are not handled twice (use `consumer --rerun`
    for that).
    """
    _move(group, topic, partition, to, **options)


@groups.command("reset")
@click.argument("group")
@click.argument("topic")
@click.option(
    "--to", type=click.Choice([EARLIEST, LATEST]), required=True, help="The end to move to."
)
@_moving_options
def reset(group: str, topic: str, to: str, **options: Any) -> None:
    """Move GROUP's offset to an end of TOPIC, in all partitions. Otherwise like `seek`."""
    _move(group, topic, None, to, **options)


def _move(
    group: str,
    topic: str,
    partition: int | None,
    to: str,
    *,
    sink: str | None,
    reason: str,
    as_json: bool,
    **flags: str | None,
) -> None:
    settings = Settings.load(flags=flags)
    place = _place(to)
    reason = f"{reason or 'operator'} (to {to})"[:_REASON_CHARS_MAX]
    with (
        operator_events("seek", settings) as events,
        Seeker(settings.broker, settings.state, events, sink=sink) as seeker,
    ):
        if isinstance(place, dt.datetime):
            offsets = seeker.at_time(topic, int(place.timestamp() * 1000), partition)
        else:
            offsets = seeker.targets(topic, place, partition)
        moved = seeker.seek(group, topic, offsets, reason)
    _print_moved(group, topic, moved, as_json=as_json)


def _place(to: str) -> str | int | dt.datetime:
    """Raises UsageError."""
    if to in {EARLIEST, LATEST}:
        return to
    if to.isascii() and to.isdigit():
        return int(to)
    try:
        return dt.datetime.fromisoformat(to)  # without a zone it is local time
    except ValueError:
        raise click.UsageError(
            f"--to {to!r} is not an offset, an ISO 8601 time, earliest or latest"
        ) from None


def _print_moved(group: str, topic: str, moved: list[Moved], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "partition": m.partition,
                "from": m.first_offset,
                "to": m.next_offset,
                **({"accepted": m.accepted} if m.accepted else {}),
            }
            for m in moved
        ]
        print_json({"group": group, "topic": topic, "moved": rows})
        return
    rows_shown = [[m.partition, m.first_offset, m.next_offset] for m in moved]
    print_table(f"group {group} in {topic}", ("partition", "from", "to"), rows_shown)
    for m in moved:
        if m.accepted:
            say(f"partition {m.partition}: accepted that {m.accepted}")
