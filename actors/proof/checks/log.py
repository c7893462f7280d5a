"""The log by itself and against what clients were told: I1, I3, I4, I5, I6, I10."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..model import Violation
from .evidence import FAIL, OK, Entry, Evidence, LogView
from .table import check


def _log(evidence: Evidence) -> LogView:
    assert evidence.log is not None, "the table asks for it"
    return evidence.log


def _place(entry: Entry) -> str:
    return f"{entry.topic}/{entry.partition} offset {entry.offset}"


def entries_by_id(log: LogView) -> dict[tuple[str, str], list[Entry]]:
    """Return the messages of a log by (topic, id)."""
    found: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in log.entries:
        found[entry.topic, entry.message_id].append(entry)
    return found


@check("I1-acked-not-lost", "history", "log")
def acked_not_lost(evidence: Evidence) -> Iterator[Violation]:
    """An acknowledged message is in the log exactly once, at the offset told, as it was sent."""
    assert evidence.history is not None
    stored = entries_by_id(_log(evidence))
    for send in evidence.history.sends:
        if send.outcome != OK:
            continue
        entries = stored.get((send.topic, send.message_id), [])
        where = f"{send.topic}/{send.partition}"
        reason = ""
        if not entries:
            reason = f"acknowledged at offset {send.offset} and not in the log"
        elif send.offset is not None and send.offset not in {e.offset for e in entries}:
            reason = f"acknowledged at offset {send.offset}, stored at {entries[0].offset}"
        elif send.body_hash is not None and send.body_hash != entries[0].body_hash:
            reason = "acknowledged, and another body is stored"
        if reason:
            yield Violation("I1-acked-not-lost", where, (send.message_id,), reason)


@check("I3-no-duplicate", "log")
def no_duplicate(evidence: Evidence) -> Iterator[Violation]:
    """One id, one offset in its topic, over all partitions."""
    for (topic, message_id), entries in entries_by_id(_log(evidence)).items():
        if len(entries) > 1:
            places = ", ".join(map(_place, entries))
            yield Violation("I3-no-duplicate", topic, (message_id,), f"stored {places}")


@check("I3-same-answer", "history")
def same_answer(evidence: Evidence) -> Iterator[Violation]:
    """Whoever sends an id again is told the same offset."""
    assert evidence.history is not None
    told: dict[tuple[str, str], set[int]] = defaultdict(set)
    for send in evidence.history.sends:
        if send.outcome == OK and send.offset is not None:
            told[send.topic, send.message_id].add(send.offset)
    for (topic, message_id), offsets in told.items():
        if len(offsets) > 1:
            yield Violation(
                "I3-same-answer", topic, (message_id,), f"answered with offsets {sorted(offsets)}"
            )


@check("I4-no-invention", "history", "log")
def no_invention(evidence: Evidence) -> Iterator[Violation]:
    """What is stored was sent by somebody; outputs of commits are judged by I11."""
    history = evidence.history
    assert history is not None
    if not history.sends_complete:
        return
    sent = {(send.topic, send.message_id) for send in history.sends}
    for entry in _log(evidence).entries:
        if entry.producer[:1] != "@" and (entry.topic, entry.message_id) not in sent:
            yield Violation("I4-no-invention", _place(entry), (entry.message_id,), "nobody sent it")


@check("I4-failed-stays-out", "history")
def failed_stays_out(evidence: Evidence) -> Iterator[Violation]:
    """A send that definitely failed is not in the log, not in a read and has no effect (G1a)."""
    history = evidence.history
    assert history is not None
    outcomes: dict[tuple[str, str], set[str]] = defaultdict(set)
    for send in history.sends:
        outcomes[send.topic, send.message_id].add(send.outcome)
    failed = {key for key, its in outcomes.items() if its == {FAIL}}
    if not failed:
        return
    seen: dict[tuple[str, str], str] = {}
    for read in history.reads:
        seen.update(((read.topic, its), f"read by {read.process}") for _, its in read.messages)
    for effect in evidence.effects or ():
        seen[effect.topic, effect.message_id] = f"processed by group {effect.group}"
    for entry in evidence.log.entries if evidence.log else ():
        seen[entry.topic, entry.message_id] = f"stored at offset {entry.offset}"
    for key in sorted(failed & seen.keys()):
        reason = f"it was refused for good, and {seen[key]}"
        yield Violation("I4-failed-stays-out", key[0], (key[1],), reason)


@check("I5-producer-order", "log")
def producer_order(evidence: Evidence) -> Iterator[Violation]:
    """Numbers of a producer go up by one in a partition, from 0 on, over all its epochs."""
    expected: dict[tuple[str, str, int], int] = defaultdict(int)
    epochs: dict[tuple[str, str, int], int] = defaultdict(int)
    for entry in _log(evidence).entries:
        if entry.sequence < 0:
            continue
        key = (entry.producer, entry.topic, entry.partition)
        if entry.sequence != expected[key] or entry.epoch < epochs[key]:
            reason = (
                f"number {entry.sequence} of epoch {entry.epoch} came where {expected[key]} of "
                f"epoch {epochs[key]} or later was due"
            )
            yield Violation("I5-producer-order", _place(entry), (entry.message_id,), reason)
        expected[key] = entry.sequence + 1
        epochs[key] = entry.epoch


@check("I6-offsets", "log")
def offsets_are_dense(evidence: Evidence) -> Iterator[Violation]:
    """Offsets of a partition are 0, 1, 2 and so on in the order of the log."""
    expected: dict[tuple[str, int], int] = defaultdict(int)
    for entry in _log(evidence).entries:
        key = (entry.topic, entry.partition)
        if entry.offset != expected[key]:
            reason = f"offset {expected[key]} was due"
            yield Violation("I6-offsets", _place(entry), (entry.message_id,), reason)
        expected[key] = entry.offset + 1


@check("I6-history-stays", "log")
def history_stays(evidence: Evidence) -> Iterator[Violation]:
    """What an earlier look at the log showed durable is there at every later look, unchanged."""
    looks = [*evidence.earlier_logs, _log(evidence)]
    before: dict[tuple[str, int, int], tuple[str, int]] = {}
    for number, look in enumerate(looks):
        now = {(e.topic, e.partition, e.offset): (e.message_id, e.body_hash) for e in look.entries}
        for place, what in before.items():
            if now.get(place) != what:
                there = now[place][0] if place in now else "nothing"
                yield Violation(
                    "I6-history-stays",
                    f"{place[0]}/{place[1]} offset {place[2]}",
                    (what[0],),
                    f"look {number} shows {there} where an earlier one showed it",
                )
        before = now


@check("I10-zombie-log", "log")
def zombies_in_log(evidence: Evidence) -> Iterator[Violation]:
    """No message of a replaced producer or consumer entered the log after its successor."""
    for entry in _log(evidence).entries:
        if entry.producer and entry.epoch != entry.live_epoch:
            reason = f"written under epoch {entry.epoch}, epoch {entry.live_epoch} was live"
            yield Violation("I10-zombie-log", _place(entry), (entry.message_id,), reason)
