"""`oncemq groups`: who has which partition, how far it is, and moving a group to another offset."""

from __future__ import annotations

import datetime as dt
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from ..errors import LedgerNotHere, OnceMQError
from ..ids import did_you_mean
from ..library.operating.client import AdminClient
from ..library.operating.group_state import GroupState, group_state
from ..library.operating.seek import EARLIEST, LATEST, LostLedger, Moved, Seeker
from ..runtime.diagnostics import is_terminal, tell
from ..runtime.settings import Settings
from .config import setting_options
from .output import confirm, operator_events, print_json, print_table, say, yes_or_no

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
        print_table(
            "groups", columns, [[yes_or_no(value) for value in row] for row in rows], whole=2
        )


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
            yes_or_no(p.live),
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
    "--partition", type=click.IntRange(0), metavar="P", help="Only this partition [default: all]."
)
@click.option(
    "--to", type=click.Choice([EARLIEST, LATEST]), required=True, help="The end to move to."
)
@click.option(
    "--new-ledger",
    is_flag=True,
    help="The group's ledger is lost: go on with the one in --state or --sink, which is new or a backup.",
)
@click.option("--yes", is_flag=True, help="Do not ask before a lost ledger is replaced.")
@_moving_options
def reset(
    group: str,
    topic: str,
    partition: int | None,
    to: str,
    new_ledger: bool,
    yes: bool,
    **options: Any,
) -> None:
    """Move GROUP's offset to an end of TOPIC, in all partitions. Otherwise like `seek`.

    With --new-ledger the group starts over without a ledger that is lost: its state, the ids of
    processed messages and unsent outputs are gone, and messages are handled again. The command says
    how many, and asks.
    """
    _move(group, topic, partition, to, lost=_Lost(new_ledger, yes), **options)


@dataclass(frozen=True, slots=True)
class _Lost:
    """What the operator says about ledgers that are lost."""

    replace: bool  # by what is in --state, wherever the lost one was
    yes: bool  # without being asked

    def agree(self, lost: list[LostLedger], group: str, offsets: Mapping[int, int]) -> None:
        """Tell what is lost and what follows, and ask. Raises UsageError, Exit."""
        for one in lost:
            tell(_told(one, offsets[one.partition]))
        tell(
            f"gone with it: tx.state of group {group}, the ids of messages that it has processed, "
            "outputs that were not sent, effects without a result"
        )
        if self.yes:
            return
        if self.replace or is_terminal(sys.stdin):
            confirm("start over?")


def _told(lost: LostLedger, offset: int) -> str:
    again = lost.handled_again(offset)
    more = f" and {lost.replayed:,} replayed dead letters" if lost.replayed else ""
    return (
        f"the ledger of {lost.topic}/{lost.partition} on {lost.host} in {lost.path}, at offset "
        f"{lost.committed} or above, is lost; the one at hand is at offset {lost.next_offset}. "
        f"From offset {offset} on {again:,} messages{more} may be handled again"
    )


def _move(
    group: str,
    topic: str,
    partition: int | None,
    to: str,
    *,
    sink: str | None,
    reason: str,
    as_json: bool,
    lost: _Lost | None = None,
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
        if lost is not None and lost.replace:
            moved = _start_over(seeker, group, topic, offsets, reason, lost)
        else:
            try:
                moved = seeker.seek(group, topic, offsets, reason)
            except LedgerNotHere:
                if lost is None or not all(
                    one.in_place for one in seeker.lost(group, topic, offsets)
                ):
                    raise
                moved = _start_over(seeker, group, topic, offsets, reason, lost)
    _print_moved(group, topic, moved, as_json=as_json)


def _start_over(
    seeker: Seeker,
    group: str,
    topic: str,
    offsets: Mapping[int, int],
    reason: str,
    said: _Lost,
) -> list[Moved]:
    """Replace the ledgers that are lost; move all partitions of `offsets`."""
    lost = seeker.lost(group, topic, offsets)
    if not lost:
        raise click.UsageError(
            f"no ledger of group {group} in {topic} is lost: leave out --new-ledger"
        )
    said.agree(lost, group, offsets)
    replaced = {one.partition for one in lost}
    return seeker.seek(group, topic, offsets, reason, replaces=replaced)


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
