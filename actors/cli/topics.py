"""`oncemq topics`: make topics, configure them, look at them, delete them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from ..ids import utc_text
from ..library.operating.client import AdminClient
from ..limits import LIMITS
from ..protocol import TopicDescribed, TopicShown
from ..runtime.diagnostics import tell
from ..runtime.settings import Settings
from ..topic_settings import FOREVER
from .config import setting_options
from .output import confirm, print_json, print_table, say, yes_or_no

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def setting_of_topic_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for what may be set for a topic."""
    for option in (
        click.option(
            "--retain",
            default="",
            metavar="AGE,SIZE,processed|forever",
            help="How long messages are kept: an age (7d), a size (1GB), until every group has "
            "processed them, or several of these.",
        ),
        click.option(
            "--dedup",
            default="",
            metavar="DURATION|forever",
            help="How long ids are remembered; then a message with such an age is refused.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def topics() -> None:
    """List, show, create, configure or delete topics."""


@topics.command("create")
@click.argument("name")
@click.option(
    "--partitions",
    type=click.IntRange(1, LIMITS.partitions_max),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of partitions; it never changes.",
)
@setting_of_topic_options
@json_option
@setting_options("broker")
def create(
    name: str, partitions: int, dedup: str, retain: str, as_json: bool, broker: str | None
) -> None:
    """Create topic NAME. If it exists with the same partition count and settings, nothing happens."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        _tell(client.create_topic(name, partitions, dedup, retain), as_json=as_json)


@topics.command("set")
@click.argument("name")
@setting_of_topic_options
@json_option
@setting_options("broker")
def set_topic(name: str, dedup: str, retain: str, as_json: bool, broker: str | None) -> None:
    """Change how long topic NAME remembers ids and keeps messages; what is not given stays."""
    if not dedup and not retain:
        raise click.UsageError("give --dedup or --retain")
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        _tell(client.configure_topic(name, dedup, retain), as_json=as_json)


def _tell(topic: TopicDescribed, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "topic": topic.topic,
                "topic_id": topic.topic_id.hex(),
                "partitions": topic.partitions,
                "end_offsets": list(topic.end_offsets),
                "dedup": topic.dedup,
                "retain": topic.retain,
            }
        )
    else:
        say(
            f"topic {topic.topic} has {topic.partitions} partition(s), "
            f"dedup {topic.dedup}, retain {topic.retain}"
        )


@topics.command("show")
@click.argument("name")
@json_option
@setting_options("broker")
def show(name: str, as_json: bool, broker: str | None) -> None:
    """Show what topic NAME holds: messages, bytes, ids, times, and how far its groups are."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        topic = client.show_topic(name)
    if as_json:
        print_json(_as_dict(topic))
        return
    held = sum(row[2] - row[1] for row in topic.rows)
    say(
        f"topic {topic.topic}: {held} message(s), {sum(row[3] for row in topic.rows)} bytes, "
        f"{topic.ids} explicit id(s), dedup {topic.dedup}, retain {topic.retain}, "
        f"{topic.partitions} partition(s)"
    )
    rows = [[*row[:4], *(utc_text(at) if at else "" for at in row[4:])] for row in topic.rows]
    print_table("partitions", _PARTITION_FIELDS, rows)
    print_table("groups", _GROUP_FIELDS, [[*row[:4], yes_or_no(row[4])] for row in _groups(topic)])


@topics.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@setting_options("broker")
def delete(name: str, yes: bool, as_json: bool, broker: str | None) -> None:
    """Delete topic NAME with its messages, ids and dead letters. This cannot be undone.

    A later topic of that name is a new one: a message that comes again is stored again, and a ledger of
    the deleted topic is refused.
    """
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        topic = client.show_topic(name)
        for line in _lost_with(topic):
            tell(line)
        if not yes:
            confirm(f"delete topic {name}?")
        client.delete_topic(name, topic.topic_id)
    if as_json:
        print_json({"topic": name, "topic_id": topic.topic_id.hex(), "deleted": True})
    else:
        say(f"topic {name} is deleted")


def _as_dict(topic: TopicShown) -> dict[str, Any]:
    return {
        "topic": topic.topic,
        "topic_id": topic.topic_id.hex(),
        "dedup": topic.dedup,
        "retain": topic.retain,
        "created_at_ms": topic.at_ms,
        "messages": sum(row[2] - row[1] for row in topic.rows),
        "bytes": sum(row[3] for row in topic.rows),
        "ids": topic.ids,
        "oldest_at_ms": min((row[4] for row in topic.rows if row[4]), default=None),
        "newest_at_ms": max((row[5] for row in topic.rows if row[5]), default=None),
        "dead_letters": topic.letters,
        "partitions": [dict(zip(_PARTITION_FIELDS, row, strict=True)) for row in topic.rows],
        "groups": [dict(zip(_GROUP_FIELDS, row, strict=True)) for row in _groups(topic)],
    }


_PARTITION_FIELDS = ("partition", "start", "end", "bytes", "oldest_at_ms", "newest_at_ms")
_GROUP_FIELDS = ("group", "partition", "committed", "lag", "live")


def _groups(topic: TopicShown) -> list[tuple[str, int, int, int, bool]]:
    """Return each group in each partition, also where it never came."""
    ends = {row[0]: row[2] for row in topic.rows}
    known = {(row[0], row[1]): row for row in topic.groups}
    rows = []
    for group in sorted({row[0] for row in topic.groups}):
        for partition in sorted({*ends, *(row[1] for row in topic.groups if row[0] == group)}):
            _, _, committed, live = known.get((group, partition), (group, partition, 0, False))
            lag = ends.get(partition, 0) - committed
            rows.append((group, partition, committed, lag, live))
    return rows


def _lost_with(topic: TopicShown) -> Iterator[str]:
    """Yield what goes with a topic, for the user to confirm."""
    held = sum(row[2] - row[1] for row in topic.rows)
    yield f"topic {topic.topic} holds {held} message(s) and remembers {topic.ids} explicit id(s)"
    if topic.letters:
        yield f"its {topic.letters} dead letter(s) go with it"
    groups = _groups(topic)
    for group in sorted({row[0] for row in groups}):
        lag = sum(row[3] for row in groups if row[0] == group)
        members = sum(row[4] for row in groups if row[0] == group)
        if lag or members:
            owned = f"owns {members} partition(s) now and " if members else ""
            yield f"group {group} {owned}has not processed {lag} message(s)"


@topics.command("list")
@json_option
@setting_options("broker")
def list_topics(as_json: bool, broker: str | None) -> None:
    """List all topics with their messages and settings."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        listed = client.topics()
    # A broker of an earlier version has no settings to tell.
    texts = listed.settings or ((FOREVER, FOREVER),) * len(listed.topics)
    rows = [
        (name, topic_id.hex(), count, messages, dedup, retain)
        for (name, topic_id, count, messages), (dedup, retain) in zip(
            listed.topics, texts, strict=True
        )
    ]
    columns = ("topic", "topic_id", "partitions", "messages", "dedup", "retain")
    if as_json:
        print_json({"topics": [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        shown = [(name, *rest) for name, _, *rest in rows]
        print_table("topics", (columns[0], *columns[2:]), shown)
