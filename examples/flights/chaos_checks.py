"""What a run under fire must come to: each check returns what is wrong, in words, or nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from examples.flights import expected
from oncemq.chaos import Deeds, StoredMessage
from oncemq.chaos.cast import ROLES
from oncemq.ids import compound_id

KILLS_PER_ROLE_MIN = 10


def check_log(
    messages: Sequence[StoredMessage], rows: Sequence[expected.Row], cycles: int
) -> list[str]:
    """Topic `flights` holds every row of both files once, each producer's in the order sent."""
    wrong = []
    numbered = [message for message in messages if message.sequence >= 0]
    named = [message for message in messages if message.sequence < 0]
    if len(numbered) != cycles * len(rows) or len(named) != len(rows):
        wrong.append(
            f"{len(numbered)} + {len(named)} messages, not {cycles * len(rows)} + {len(rows)}"
        )
    for number, (message, row) in enumerate(zip(numbered, cycle(rows), strict=False)):
        if message.sequence != number or message.value != row:
            wrong.append(f"{message.message_id} at offset {message.offset}, not row {number}")
            break
    for message, row in zip(named, rows, strict=False):
        wanted = compound_id([row[name] for name in expected.ID_FIELDS])
        if message.message_id != wanted or message.value != row:
            wrong.append(f"{message.message_id!r} at offset {message.offset}, not {wanted!r}")
            break
    wrong += check_outputs(messages)
    return wrong


def check_outputs(messages: Iterable[StoredMessage]) -> list[str]:
    """For each producer sequence numbers are dense and epochs never go back."""
    wrong = []
    last: dict[str, StoredMessage] = {}
    seen: Counter[str] = Counter()
    for message in messages:
        before = last.get(message.producer)
        if before is not None and message.epoch < before.epoch:
            wrong.append(f"epoch {message.epoch} of {message.producer!r} after {before.epoch}")
        last[message.producer] = message
        if message.sequence >= 0:
            if message.sequence != seen[message.producer]:
                wrong.append(f"{message.message_id}, not number {seen[message.producer]}")
            seen[message.producer] += 1
    return wrong[:5]


def check_commits(commits: Iterable[tuple[str, str, int, int]]) -> list[str]:
    """No offset of (group, topic) was committed twice. Items: group, topic, first, next offset.

    Holes are no error here: a process can be killed after the commit, before it tells of it.
    """
    wrong = []
    end: dict[tuple[str, str], int] = {}
    told = sorted(commits)
    for group, topic, first, following in told:
        if first < end.get((group, topic), 0):
            wrong.append(f"group {group}: offset {first} of {topic} was committed twice")
        end[group, topic] = max(following, end.get((group, topic), 0))
    return wrong[:5] if told else ["no commit was told of"]


def check_states(
    rows: Sequence[expected.Row], januaries: int, states: dict[str, dict[str, Any]]
) -> list[str]:
    """Each group holds exactly what `januaries` times the file gives."""
    once = expected.totals_of(rows)
    totals = {
        carrier: {name: januaries * number for name, number in entry.items()}
        for carrier, entry in once.items()
    }
    from_jfk = Counter(row["carrier"] for row in rows if row["origin"] == "JFK")
    wanted: dict[str, dict[str, Any]] = {
        "totals": totals,
        "cancelled": expected.cancelled_of(totals),
        "jfk": {carrier: januaries * count for carrier, count in from_jfk.items()},
    }
    return [
        f"{group}, {line}"
        for group in wanted
        for line in expected.differences(wanted[group], states.get(group, {}))
    ]


def check_deeds(deeds: Deeds, events: Counter[str], duplicates: int, holes: int) -> list[str]:
    """Enough was hit, and the defences were needed."""
    wrong = [
        f"only {deeds.kills[role]} kills of the {role}, {KILLS_PER_ROLE_MIN} are the least"
        for role in ROLES
        if deeds.kills[role] < KILLS_PER_ROLE_MIN
    ]
    if 2 * deeds.at_work.total() < deeds.kills.total():
        wrong.append(f"only {deeds.at_work.total()} of the killed were at work")
    if deeds.crashes.total() < 1:
        wrong.append("no crash point was reached")
    if duplicates < 1:
        wrong.append("no duplicate was suppressed")
    wrong += [
        f"no zombie {role} was fenced"
        for role in ("producer", "consumer")
        if deeds.fenced[role] < 1
    ]
    if events["commit.synced"] < deeds.kills["consumer"]:
        wrong.append("fewer commits than kills of consumers")
    if holes:
        wrong.append(f"{holes} lines are missing in the event files")
    return wrong
