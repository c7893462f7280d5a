"""Histories from the event files of processes (`--log-dir`): one JSON object a line.

A process that was killed may have left its last line half written; that one is counted and passed
over. A hole anywhere else, a line that is no event, or a file that cannot be read is a fault of
the history: what it does not show may be what went wrong.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from operator import attrgetter
from typing import Any

from .evidence import INFO, OK, Event, History, Read, Send

COMMON = frozenset({"event", "ts", "mono_ns", "role", "pid", "incarnation", "n"})
OPERATIONS = "operations"  # NAME.operations.jsonl: what clients of a test did

# How often something happened, as events tell: (counter, event, field to add up or "").
_COUNTED = (
    ("starts", "process.start", ""),
    ("restarts", "supervise.restarting", ""),
    ("torn-tails", "log.tail_cut", ""),
    ("duplicates-suppressed", "batch.appended", "duplicates"),
    ("duplicates-suppressed", "batch.duplicate", "count"),
    ("skipped-again", "consumer.skipped", "count"),
    ("conflicts", "id.conflict", "count"),
    ("resent", "producer.resent", "messages"),
    ("fenced", "producer.fenced", ""),
    ("fenced", "consumer.fenced", ""),
    ("leases-expired", "group.lease_expired", ""),
    ("grants", "group.granted", ""),
    ("commits", "commit.synced", ""),
    ("handlers-raised", "handler.raised", ""),
    ("snapshots", "snapshot.written", ""),
    ("snapshots-passed-over", "snapshot.fallback", ""),
    ("disk-full", "log.disk_full", ""),
    ("malformed", "wire.malformed", ""),
)


def read_history(directory: str) -> History:
    """Read all `*.jsonl` of `directory`. Raises OSError if it is missing."""
    history = History()
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".jsonl"):
            continue
        path = os.path.join(directory, name)
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
        if name.endswith(f".{OPERATIONS}.jsonl"):
            _operations(history, path, lines)
        else:
            _events(history, path, lines)
    if not history.events and not history.sends:
        history.faults.append((directory, "no event at all"))
    history.events.sort(key=attrgetter("mono_ns", "incarnation", "n"))
    history.sends.sort(key=attrgetter("began"))
    history.reads.sort(key=attrgetter("began"))
    return history


def _events(history: History, path: str, lines: list[bytes]) -> None:
    torn: list[int] = []
    started: set[int] = set()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        event = _event(line)
        if event is None:
            torn.append(number)
            continue
        if event.n == 0:
            started.add(number)
        history.events.append(event)
    history.torn_lines += len(torn)
    for number in torn:
        # A kill cuts the last line of an incarnation: behind it comes another one, or nothing.
        following = next((n for n in range(number + 1, len(lines) + 1) if lines[n - 1]), None)
        if following is not None and following not in started:
            history.faults.append((path, f"line {number} is no event"))


def _event(line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
        return Event(
            fields["event"],
            fields["role"],
            int(fields["pid"]),
            fields["incarnation"],
            int(fields["n"]),
            int(fields["mono_ns"]),
            {name: value for name, value in fields.items() if name not in COMMON},
        )
    except (ValueError, KeyError, TypeError):
        return None


def _operations(history: History, path: str, lines: list[bytes]) -> None:
    """What clients of a test wrote down: `{"send": {...}}`, `{"read": {...}}`, `{"end": {...}}`.

    The fields are those of Send and Read; `end` holds sends_complete and read_to_the_end.
    """
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            table = json.loads(line)
            if "send" in table:
                history.sends.append(Send(**table["send"]))
            elif "read" in table:
                fields = table["read"]
                messages = tuple(
                    (int(offset), str(name)) for offset, name in fields.pop("messages")
                )
                history.reads.append(Read(messages=messages, **fields))
            else:
                history.sends_complete = bool(table["end"]["sends_complete"])
                history.read_to_the_end = bool(table["end"]["read_to_the_end"])
        except (ValueError, KeyError, TypeError) as error:
            history.faults.append((path, f"line {number} is no operation: {error}"))


def count_events(history: History) -> Counter[str]:
    """Return how often what happened, for the requirements of a run (Evidence.required)."""
    fields: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for counter, event, amount in _COUNTED:
        fields[event].append((counter, amount))
    counts: Counter[str] = Counter()
    for its in history.events:
        for counter, amount in fields.get(its.name, ()):
            counts[counter] += _amount(its.fields, amount)
        if its.name == "supervise.exited" and its.fields.get("signal") in {9, "SIGKILL"}:
            counts["kills"] += 1
    counts["sends"] = len(history.sends)
    counts["acknowledged"] = sum(send.outcome == OK for send in history.sends)
    counts["unknown"] = sum(send.outcome == INFO for send in history.sends)
    counts["reads"] = len(history.reads)
    return counts


def _amount(fields: dict[str, Any], name: str) -> int:
    amount = fields.get(name, 1) if name else 1
    return amount if isinstance(amount, int) else 1
