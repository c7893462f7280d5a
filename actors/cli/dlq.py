"""`oncemq dlq`: look at dead letters, have them handled again, or drop them."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import Counter
from dataclasses import dataclass
from typing import Any

import click

from ..core.consumer.work import CRASHED, RAISED, REJECTED, UNKNOWN_EFFECT
from ..errors import OnceMQError
from ..ids import check_name
from ..library.ledgers.reader import NoLedger, read_group
from ..library.operating.client import AdminClient
from ..library.operating.dead_letters import DROPPED, PENDING, DeadLetters, Letter
from ..runtime.diagnostics import tell
from ..runtime.os_disk import OsDisk
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table, say


class AlreadyAnswered(OnceMQError):
    """What was said about a dead letter before stands."""

    code = "already_answered"
    default_hint = "a letter is replayed or dropped once, not both"


@click.group()
def dlq() -> None:
    """Show, replay or drop dead letters.

    A message that its handler cannot process is parked in TOPIC.dead. Only the group that parked
    it handles the replay, exactly once, even if you ask for the replay several times.
    """


_topic = click.option(
    "--topic", metavar="T", required=True, help="The topic of the original message."
)
_kinds = click.option(
    "--kind",
    "kinds",
    type=click.Choice([RAISED, REJECTED, CRASHED, UNKNOWN_EFFECT]),
    multiple=True,
    help="Only letters of this kind; may be given several times.",
)
_error = click.option("--error", metavar="TEXT", help="Only letters whose error contains TEXT.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@dlq.command("list")
@_topic
@click.option("--group", metavar="G", help="Only letters of this group.")
@click.option("--pending", is_flag=True, help="Only letters not yet replayed or dropped.")
@_kinds
@_error
@click.option("--count", is_flag=True, help="Count the letters instead of listing them.")
@_json
@setting_options("broker", "state")
def list_letters(
    topic: str,
    group: str | None,
    pending: bool,
    kinds: tuple[str, ...],
    error: str | None,
    count: bool,
    as_json: bool,
    broker: str | None,
    state: str | None,
) -> None:
    """List the dead letters of topic T and their status.

    Whether the group has processed a replayed letter is known only if its ledgers are in --state.
    """
    settings = Settings.load(flags={"broker": broker, "state": state})
    with AdminClient(settings.broker) as client:
        desk = _open(client, topic, group)
        desk.load(group)
        _follow(desk, settings.state)
        found = [
            one
            for one in desk.letters.values()
            if (not pending or one.status == PENDING) and _is_chosen(one, kinds, error)
        ]
    if count:
        _print_counts(topic, found, as_json=as_json)
        return
    if as_json:
        print_json({"topic": topic, "letters": [letter.as_dict() for letter in found]})
        return
    print_table(
        f"dead letters of {topic}",
        ("id", "group", "message", "kind", "attempts", "parked at", "status", "error"),
        [_row(letter) for letter in found],
        whole=3,
    )


def _is_chosen(letter: Letter, kinds: tuple[str, ...], error: str | None) -> bool:
    return (not kinds or letter.kind in kinds) and (error is None or error in letter.error)


def _print_counts(topic: str, letters: list[Letter], *, as_json: bool) -> None:
    """Print how many letters have the same group, kind, type of error and status."""
    columns = ("group", "kind", "error", "status")
    counts = Counter(
        (one.group, one.kind, one.error.partition(":")[0], one.status) for one in letters
    )
    rows = [(*row, times) for row, times in sorted(counts.items())]
    if as_json:
        listed = [dict(zip((*columns, "letters"), row, strict=True)) for row in rows]
        print_json({"topic": topic, "counts": listed})
    else:
        print_table(f"dead letters of {topic}", (*columns, "letters"), rows)


@dlq.command("show")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_topic
@_json
@setting_options("broker", "state")
def show(
    ids: tuple[str, ...], topic: str, as_json: bool, broker: str | None, state: str | None
) -> None:
    """Show dead letters with key, value and headers."""
    settings = Settings.load(flags={"broker": broker, "state": state})
    with AdminClient(settings.broker) as client:
        desk = _open(client, topic, None)
        desk.load()
        _follow(desk, settings.state)
        found = desk.named(list(ids), None)
    shown = [{**letter.as_dict(), **letter.content()} for letter in found]
    if as_json:
        print_json({"topic": topic, "letters": shown})
        return
    for fields in shown:
        for name, value in fields.items():
            say(f"{name}: {value}")
        say("")


@dlq.command("replay")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="All pending letters of the group, except rejected ones: --kind rejected takes those.",
)
@_topic
@click.option(
    "--group", metavar="G", required=True, help="The group that handles the letters again."
)
@_kinds
@_error
@_json
@setting_options("broker")
def replay(
    ids: tuple[str, ...],
    everything: bool,
    topic: str,
    group: str,
    kinds: tuple[str, ...],
    error: str | None,
    as_json: bool,
    broker: str | None,
) -> None:
    """Send dead letters to group G alone, to be handled once more.

    A handler rejected a letter of kind "rejected" for good: --all leaves it alone.
    """
    chosen = _Choice(ids, kinds, error, everything=everything)
    _answer(chosen, topic, group, broker, drop=False, as_json=as_json)


@dlq.command("drop")
@click.argument("ids", metavar="[ID...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All pending letters of the group.")
@_topic
@click.option("--group", metavar="G", required=True, help="The group that parked the letters.")
@_kinds
@_error
@_json
@setting_options("broker")
def drop(
    ids: tuple[str, ...],
    everything: bool,
    topic: str,
    group: str,
    kinds: tuple[str, ...],
    error: str | None,
    as_json: bool,
    broker: str | None,
) -> None:
    """Drop dead letters of group G for good: nothing can replay them."""
    chosen = _Choice(ids, kinds, error, everything=everything)
    _answer(chosen, topic, group, broker, drop=True, as_json=as_json)


@dataclass(frozen=True)
class _Choice:
    """The letters that an operator means: named ones, or all pending ones of some kinds."""

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    error: str | None
    everything: bool

    def check(self) -> None:
        """Raise UsageError if it names none, or too much."""
        if bool(self.ids) == self.everything:
            raise click.UsageError("name the letters, or pass --all")
        if self.ids and (self.kinds or self.error is not None):
            raise click.UsageError("--kind and --error choose among --all letters")

    def of(self, desk: DeadLetters, group: str, *, drop: bool) -> tuple[list[Letter], int]:
        """Return the letters, and how many rejected ones are left alone."""
        if not self.everything:
            return desk.named(list(self.ids), group), 0
        found = [
            one
            for one in desk.letters.values()
            if one.status == PENDING and _is_chosen(one, self.kinds, self.error)
        ]
        if drop or self.kinds:
            return found, 0
        kept = [one for one in found if one.kind != REJECTED]
        return kept, len(found) - len(kept)


def _answer(
    choice: _Choice,
    topic: str,
    group: str,
    broker: str | None,
    *,
    drop: bool,
    as_json: bool,
) -> None:
    """Fails if the opposite was decided before, after all other letters are answered."""
    choice.check()
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        desk = _open(client, topic, group)
        desk.load(group)
        chosen, left = choice.of(desk, group, drop=drop)
        new = desk.answer(chosen, group, drop=drop) if chosen else 0
        desk.load(group)
        now = desk.named([letter.id for letter in chosen], group)
    rows = [{"id": letter.id, "status": letter.status} for letter in now]
    counts = {"sent": new, "duplicates": len(now) - new}
    if as_json:
        print_json({"topic": topic, "group": group, **counts, "letters": rows})
    else:
        word = "dropped" if drop else "replayed"
        say(f"{new} {word}; {len(now) - new} already replayed or dropped")
    if left:
        tell(f"{left} rejected letters are left alone; to replay them too pass --kind rejected")
    wrong = [letter for letter in now if (letter.status == DROPPED) != drop]
    if wrong:
        raise AlreadyAnswered(f"{wrong[0].id} is already {wrong[0].status}")


def _open(client: AdminClient, topic: str, group: str | None) -> DeadLetters:
    check_name(topic, "--topic")
    if group is not None:
        check_name(group, "--group")
    return DeadLetters(client, topic)


def _follow(desk: DeadLetters, state: str) -> None:
    """Take from the ledgers on this machine, if any, which replays are over."""
    for group in sorted({letter.group for letter in desk.letters.values()}):
        with contextlib.suppress(NoLedger):
            ledgers = read_group(OsDisk(), state, group)
            mine = {number: one for (topic, number), one in ledgers.items() if topic == desk.topic}
            desk.follow(group, mine)


def _row(letter: Letter) -> list[Any]:
    at = dt.datetime.fromtimestamp(letter.parked_at_ms / 1000, dt.UTC)
    message = letter.as_dict()["message_id"]
    error = letter.error if len(letter.error) <= 60 else f"{letter.error[:60]}..."
    when = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    return [
        letter.id,
        letter.group,
        message,
        letter.kind,
        letter.attempts,
        when,
        letter.status,
        " ".join(error.split()),
    ]
