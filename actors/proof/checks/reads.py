"""What readers saw: the anomalies of queue and log tests in the tradition of Jepsen.

Model: clients send values (ids here) to a key (topic and partition) and read them by offset. The
order of a key is the rank of its offsets that hold something. Transactions over several keys are
not offered to clients, so cycles between them (G0, G1c) and reads of their own uncommitted writes
cannot be asked for; what commits send is judged by I11.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from ..findings import Violation
from .evidence import FAIL, INFO, OK, Evidence, History, Read
from .registry import check

Key = tuple[str, int]


def _history(evidence: Evidence) -> History:
    assert evidence.history is not None, "the table asks for it"
    return evidence.history


def observed(evidence: Evidence) -> dict[Key, dict[int, set[str]]]:
    """Return what was seen at each offset: in reads, in answers to sends, and in the log itself."""
    history = _history(evidence)
    seen: dict[Key, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for read in history.reads:
        for offset, message_id in read.messages:
            seen[read.topic, read.partition][offset].add(message_id)
    for send in history.sends:
        if send.outcome == OK and send.offset is not None:
            seen[send.topic, send.partition][send.offset].add(send.message_id)
    for entry in evidence.messages.entries if evidence.messages else ():
        seen[entry.topic, entry.partition][entry.offset].add(entry.message_id)
    return seen


def ranks(offsets: dict[int, set[str]]) -> dict[str, tuple[int, int]]:
    """Return the first and the last rank of each value: gaps between offsets do not count."""
    found: dict[str, tuple[int, int]] = {}
    for rank, offset in enumerate(sorted(offsets)):
        for value in offsets[offset]:
            found[value] = (found.get(value, (rank, rank))[0], rank)
    return found


@check("inconsistent-offsets", "history")
def inconsistent_offsets(evidence: Evidence) -> Iterator[Violation]:
    """One offset shows one message, to each reader and for ever."""
    for (topic, partition), offsets in observed(evidence).items():
        for offset, values in sorted(offsets.items()):
            if len(values) > 1:
                yield Violation(
                    "inconsistent-offsets",
                    f"{topic}/{partition} offset {offset}",
                    tuple(sorted(values)),
                    "different messages were seen there",
                )


@check("duplicate", "history")
def duplicate(evidence: Evidence) -> Iterator[Violation]:
    """One message shows at one offset."""
    places: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    for (topic, partition), offsets in observed(evidence).items():
        for offset, values in offsets.items():
            for value in values:
                places[topic, value].add((partition, offset))
    for (topic, value), its in sorted(places.items()):
        if len(its) > 1:
            shown = ", ".join(f"{partition}:{offset}" for partition, offset in sorted(its))
            yield Violation("duplicate", topic, (value,), f"seen at {shown}")


@check("lost-write", "history")
def lost_write(evidence: Evidence) -> Iterator[Violation]:
    """A reader that got later messages got all committed ones before them: none goes missing."""
    history = _history(evidence)
    read: dict[Key, set[str]] = defaultdict(set)
    for its in history.reads:
        if its.outcome == OK:
            read[its.topic, its.partition] |= {value for _, value in its.messages}
    outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for send in history.sends:
        outcomes[send.topic, send.message_id].add(send.outcome)
    for (topic, partition), offsets in observed(evidence).items():
        rank = ranks(offsets)
        seen = read[topic, partition]
        bound = max((rank[value][0] for value in seen), default=-1)
        lowest = min((rank[value][0] for value in seen), default=0)
        for value, (_, last) in sorted(rank.items()):
            told = outcomes[topic, value]
            committed = OK in told or (INFO in told and value in seen)
            if last <= bound and committed and value not in seen:
                kind = "a prefix" if last < lowest else "the middle"
                reason = f"acknowledged, never read, though later ones were: lost from {kind}"
                yield Violation("lost-write", f"{topic}/{partition}", (value,), reason)


@check("unseen", "history")
def unseen(evidence: Evidence) -> Iterator[Violation]:
    """The last reads, from the first offset to the end, show every acknowledged message."""
    history = _history(evidence)
    if not history.read_to_the_end:
        return
    seen = {
        (read.topic, value)
        for read in history.reads
        if read.outcome == OK
        for _, value in read.messages
    }
    for send in history.sends:
        if send.outcome == OK and (send.topic, send.message_id) not in seen:
            reason = f"acknowledged at offset {send.offset} and never seen"
            where = f"{send.topic}/{send.partition}"
            yield Violation("unseen", where, (send.message_id,), reason)


@check("aborted-read", "history")
def aborted_read(evidence: Evidence) -> Iterator[Violation]:
    """No read shows a message whose send was refused for good (G1a)."""
    history = _history(evidence)
    outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for send in history.sends:
        outcomes[send.topic, send.message_id].add(send.outcome)
    for read in history.reads:
        for offset, value in read.messages:
            if read.outcome == OK and outcomes[read.topic, value] == {FAIL}:
                where = f"{read.topic}/{read.partition} offset {offset}"
                reason = f"{read.process} read what was refused"
                yield Violation("aborted-read", where, (value,), reason)


@check("read-order", "history")
def read_order(evidence: Evidence) -> Iterator[Violation]:
    """A reader goes on where it stood: no skip and no step back, within a read and between two."""
    history = _history(evidence)
    rank = {key: ranks(offsets) for key, offsets in observed(evidence).items()}
    last: dict[tuple[str, str, int], str] = {}
    for read in history.reads:
        if read.outcome != OK or not read.messages:
            continue
        key = (read.process, read.topic, read.partition)
        order = rank[read.topic, read.partition]
        values = [value for _, value in read.messages]
        before = None if read.sought else last.get(key)
        yield from _steps(read, values if before is None else [before, *values], order)
        last[key] = values[-1]


def _steps(read: Read, values: list[str], rank: dict[str, tuple[int, int]]) -> Iterator[Violation]:
    where = f"{read.topic}/{read.partition} by {read.process}"
    for value, following in pairwise(values):
        step = rank[following][0] - rank[value][1]
        if step > 1:
            reason = f"{step - 1} messages between them were skipped"
            yield Violation("read-order", where, (value, following), reason)
        elif step < 1:
            yield Violation("read-order", where, (value, following), "the second one came before")


@check("send-order", "history")
def send_order(evidence: Evidence) -> Iterator[Violation]:
    """What one client sent one after the other is stored in that order, unless it was there."""
    history = _history(evidence)
    rank = {key: ranks(offsets) for key, offsets in observed(evidence).items()}
    last: dict[tuple[str, str, int], str] = {}
    for send in history.sends:
        key = (send.process, send.topic, send.partition)
        order = rank.get(key[1:], {})
        if send.outcome != OK or send.duplicate or send.message_id not in order:
            continue
        before = last.get(key)
        if before is not None and order[send.message_id][0] < order[before][1]:
            reason = "sent later by the same client and stored before"
            where = f"{send.topic}/{send.partition} by {send.process}"
            yield Violation("send-order", where, (before, send.message_id), reason)
        last[key] = send.message_id


@check("I15-readers-agree", "history", "messages")
def readers_agree(evidence: Evidence) -> Iterator[Violation]:
    """What a read showed during the run is what the log holds at that offset in the end."""
    assert evidence.messages is not None
    entries = evidence.messages.entries
    stored = {(e.topic, e.partition, e.offset): e.message_id for e in entries}
    for read in _history(evidence).reads:
        for offset, value in read.messages:
            there = stored.get((read.topic, read.partition, offset))
            if there != value:
                where = f"{read.topic}/{read.partition} offset {offset}"
                reason = f"{read.process} read it, the log holds {there or 'nothing'}"
                yield Violation("I15-readers-agree", where, (value,), reason)
