"""`oncemq topics`: make topics, configure them, list them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..library.operating.client import AdminClient
from ..limits import LIMITS
from ..protocol import TopicDescribed
from ..runtime.settings import Settings
from ..topic_settings import FOREVER
from .config import setting_options
from .output import print_json, print_table, say

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
    """List, create or configure topics."""


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
