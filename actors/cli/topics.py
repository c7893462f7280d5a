"""`oncemq topics`: make and list topics."""

from __future__ import annotations

import click

from ..library.operating.client import AdminClient
from ..limits import LIMITS
from ..runtime.settings import Settings
from .config import setting_options
from .output import print_json, print_table, say


@click.group()
def topics() -> None:
    """List or create topics."""


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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("broker")
def create(name: str, partitions: int, as_json: bool, broker: str | None) -> None:
    """Create topic NAME. If it exists with the same partition count, nothing happens."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        topic = client.create_topic(name, partitions)
    if as_json:
        print_json(
            {
                "topic": topic.topic,
                "topic_id": topic.topic_id.hex(),
                "partitions": topic.partitions,
                "end_offsets": list(topic.end_offsets),
            }
        )
    else:
        say(f"topic {topic.topic} has {topic.partitions} partition(s)")


@topics.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@setting_options("broker")
def list_topics(as_json: bool, broker: str | None) -> None:
    """List all topics with their messages."""
    settings = Settings.load(flags={"broker": broker})
    with AdminClient(settings.broker) as client:
        listed = client.topics()
    if as_json:
        rows = [
            {"topic": name, "topic_id": topic_id.hex(), "partitions": count, "messages": messages}
            for name, topic_id, count, messages in listed.topics
        ]
        print_json({"topics": rows})
    else:
        print_table(
            "topics",
            ("topic", "partitions", "messages"),
            [(name, count, messages) for name, _, count, messages in listed.topics],
        )
