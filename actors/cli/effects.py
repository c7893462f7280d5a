"""`oncemq effects`: calls of the outside world whose outcome nobody knows, and saying what it was."""

from __future__ import annotations

import datetime as dt
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import click

from ..codec.values import encode_value
from ..core.consumer.open_effects import AGAIN, ANSWERED
from ..errors import OnceMQError
from ..ids import check_name
from ..library.operating.client import AdminClient, NoAnswer
from ..library.operating.open_effects import EffectState, OpenEffectsView
from ..library.sinks.operators import open_office
from ..runtime.diagnostics import tell
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_error, print_json, print_table, say

sink_option = click.option("--sink", metavar="URL", help="The ledgers are in this database.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one a line."
)


@click.group()
def effects() -> None:
    """List and resolve unknown effects.

    An effect is a call that a handler makes through tx.effect. If the process dies mid-call, only
    the remote service knows whether it happened. With policy "ask" the partition then waits until
    you resolve the effect.
    """


@effects.command("list")
@click.option("--group", metavar="G", help="Only effects of this group.")
@sink_option
@json_option
@setting_options("broker")
def list_effects(group: str | None, sink: str | None, as_json: bool, broker: str | None) -> None:
    """List every effect without a result: running, unknown, or resolved but not yet applied.

    Ledgers on other machines and in databases are named, not read. With --sink the command reads
    the ledgers of that database.
    """
    if group is not None:
        check_name(group, "--group")
    with _view(sink, broker) as view:
        found = view.load(group)
    if as_json:
        elsewhere = [
            dict(zip(("group", "topic", "partition", "host"), row, strict=True))
            for row in view.elsewhere
        ]
        rows = [one.as_dict() for one in found]
        print_json({"effects": rows, "elsewhere": elsewhere, "databases": view.databases})
        return
    columns = ("id", "key", "state", "policy", "calls", "since", "why")
    print_table("effects without a result", columns, [_row(one) for one in found], whole=2)
    for of, topic, partition, host in view.elsewhere:
        tell(f"{topic}/{partition} of group {of} is on {host}: run this command there")
    for shown in view.databases:
        tell(f"ledgers are in {shown}: pass --sink to read them")


@contextmanager
def _view(sink: str | None, broker: str | None) -> Iterator[OpenEffectsView]:
    settings = Settings.load(flags={"broker": broker})
    office = nullcontext() if sink is None else open_office(sink)
    with AdminClient(settings.broker) as client, office as opened:
        yield OpenEffectsView(client, host=socket.gethostname(), office=opened)


def _row(one: EffectState) -> list[Any]:
    since = dt.datetime.fromtimestamp(one.since_ms / 1000, dt.UTC).isoformat(timespec="seconds")
    state = f"{one.state}: {one.order}" if one.order else one.state
    why = one.why if len(one.why) <= 60 else f"{one.why[:60]}..."
    return [
        one.id,
        one.key,
        state,
        one.policy,
        one.calls,
        since,
        " ".join(why.split()),
    ]


@effects.command("resolve")
@click.argument("effect_ids", metavar="ID...", nargs=-1, required=True)
@click.option(
    "--done",
    metavar="VALUE",
    help="The call happened and returned VALUE (JSON, otherwise text).",
)
@click.option(
    "--retry", is_flag=True, help="The call did not happen, or may happen twice: call again."
)
@sink_option
@json_option
@setting_options("broker")
def resolve(
    effect_ids: tuple[str, ...],
    done: str | None,
    retry: bool,
    sink: str | None,
    as_json: bool,
    broker: str | None,
) -> None:
    """Resolve the unknown effects ID, each once. First check at the remote service what happened.

    Each ID is resolved by itself; if one cannot be, the others are, and the exit status is 1.
    A running consumer continues within a second; a stopped one continues at its next start.
    """
    if (done is None) != retry:
        raise click.UsageError("pass --done VALUE if the call happened, or --retry to call again")
    how = AGAIN if retry else ANSWERED
    result = (0, b"") if done is None else encode_value(_value(done))
    errors = []
    with _view(sink, broker) as view:
        for effect_id in dict.fromkeys(effect_ids):
            try:
                before = view.resolve(effect_id, how, result)
            except NoAnswer:
                raise
            except OnceMQError as error:
                errors.append(print_error(error))
                continue
            if as_json:
                print_json({"id": effect_id, "how": how, "duplicate": before})
            else:
                say(f"{effect_id}: {how}" + (" (already resolved so)" if before else ""))
    if errors:
        raise click.exceptions.Exit(errors[0])


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
