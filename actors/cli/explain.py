"""`oncemq explain`: tell the story of one message."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

import click

from ..errors import OnceMQError
from ..library.sinks.reading import look_into
from ..proof.checks.history import read_history
from ..proof.parse.files import OsFiles
from ..proof.story.effects import line_of
from ..proof.story.explain import explain as story_of
from ..proof.story.story import Story
from ..runtime.settings import Settings
from .config import setting_options
from .output import ExitCode, print_json, say


class UnknownMessage(OnceMQError):
    """No file and no event tells of the message."""

    code = "unknown_message"
    default_hint = "sequence ids are written topic/producer:partition:number"


@click.command("explain")
@click.argument("message_id", metavar="ID")
@click.option("--topic", metavar="TOPIC", required=True, help="The topic it was sent to.")
@setting_options("data", "state", "log_dir")
@click.option("--sink", metavar="URL", help="Also the ledgers in this database.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    message_id: str, topic: str, sink: str | None, as_json: bool, **flags: str | None
) -> None:
    """Trace the message ID: its offset, the commit that processed it and the outputs of that commit.

    With event files (--log-dir) also its attempts, and why a duplicate was refused. ID is the id
    passed to send, or topic/producer:partition:number. Exit status 1: no file mentions it.
    """
    settings = Settings.load(flags=flags)
    state = settings.state if os.path.isdir(settings.state) else None
    history = None if settings.log_dir is None else read_history(settings.log_dir)
    story = story_of(
        OsFiles(),
        message_id,
        topic=topic,
        data=settings.data,
        state=state,
        sink=None if sink is None else look_into(sink),
        history=history,
    )
    if as_json:
        print_json(story.as_dict())
    else:
        for line in _lines(story):
            say(line)
    if story.accepted is None and not story.groups and not story.events:
        if as_json:
            raise click.exceptions.Exit(ExitCode.FAILED)
        raise UnknownMessage(f"no file mentions message {message_id} in topic {topic}")


def _lines(story: Story) -> list[str]:
    lines = [f"message {story.message_id} of topic {story.topic}"]
    if story.accepted is not None:
        lines += _accepted(story.accepted)
    for group in story.groups:
        lines += _group(group)
        lines += [f"  {line_of(call)}" for call in group.get("effects", ())]
    lines += [f"  {_event(event)}" for event in story.events]
    return lines + [f"note: {note}" for note in story.notes]


def _accepted(accepted: dict[str, Any]) -> list[str]:
    at = dt.datetime.fromtimestamp(accepted["appended_at_ms"] / 1000, dt.UTC)
    lines = [
        (
            f"accepted at offset {accepted['offset']} of partition {accepted['partition']}, "
            f"{at.isoformat(timespec='milliseconds')}"
        ),
        f"  in a batch of {accepted['batch_messages']} at position {accepted['position']} of the log",
    ]
    if "producer" in accepted:
        who = f" ({accepted['owner']})" if accepted["owner"] else ""
        lines.append(f"  from producer {accepted['producer']}{who}, epoch {accepted['epoch']}")
    if "key" in accepted:
        lines.append(f"  key {accepted['key']}")
    lines.append(
        f"  value, {accepted['value_bytes']} bytes of {accepted['encoding']}: {accepted['value']}"
    )
    return lines


def _group(group: dict[str, Any]) -> list[str]:
    head = f"group {group['group']}: {group['status']}"
    if group["status"] == "parked":
        head = f"{head}, {group['kind']} after {group['attempts']} attempt(s),"
    elif group["status"] != "processed":
        why = f": {group['reason']}" if "reason" in group else ""
        return [f"{head}{why} (committed up to offset {group['committed_offset']})"]
    if group["commit_no"] is None:
        return [f"{head} by a commit up to number {group['up_to_commit']}, compacted since"]
    lines = [
        (
            f"{head} by commit {group['commit_no']} under epoch {group['epoch']}, "
            f"with offsets {group['first_offset']} to {group['next_offset'] - 1}"
        )
    ]
    if group["state_keys"]:
        lines.append(f"  the commit changed the state of: {', '.join(group['state_keys'])}")
    for output in group["outputs"]:
        stored = f"at offset {output['offset']}" if "offset" in output else "not sent yet"
        lines.append(
            f"  the commit sent {output['count']} to {output['topic']}/{output['partition']}, "
            f"{stored}: {', '.join(output['ids'])}"
        )
    return lines


def _event(event: dict[str, Any]) -> str:
    fields = " ".join(f"{name}={value}" for name, value in event["fields"].items())
    return f"{event['process']}: {event['meaning']} [{event['event']} {fields}]"
