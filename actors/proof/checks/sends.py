"""What clients were answered, against the log and against each other: I1, I3, I4, I16."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..findings import Violation
from ..verify.kept import Entry
from .evidence import FAIL, OK, Evidence
from .registry import check


@check("I1-answer-is-kept", "history", "messages")
def answer_is_kept(evidence: Evidence) -> Iterator[Violation]:
    """An acknowledged message is in the log at the offset of the answer, as it was sent."""
    assert evidence.history is not None
    assert evidence.messages is not None
    stored: dict[tuple[str, str], Entry] = {
        (entry.topic, entry.message_id): entry for entry in evidence.messages.entries
    }
    for send in evidence.history.sends:
        if send.outcome != OK:
            continue
        entry = stored.get((send.topic, send.message_id))
        where = f"{send.topic}/{send.partition}"
        reason = ""
        if entry is None:
            reason = f"acknowledged at offset {send.offset} and not in the log"
        elif send.offset not in {None, entry.offset}:
            reason = f"acknowledged at offset {send.offset}, stored at {entry.offset}"
        elif send.body_hash not in {None, entry.body_hash}:
            reason = "acknowledged, and another body is stored"
        if reason:
            yield Violation("I1-answer-is-kept", where, (send.message_id,), reason)


@check("I3-same-answer", "history")
def same_answer(evidence: Evidence) -> Iterator[Violation]:
    """Every send of one id is answered with the same offset."""
    assert evidence.history is not None
    answers: dict[tuple[str, str], set[int]] = defaultdict(set)
    for send in evidence.history.sends:
        if send.outcome == OK and send.offset is not None:
            answers[send.topic, send.message_id].add(send.offset)
    for (topic, message_id), offsets in answers.items():
        if len(offsets) > 1:
            yield Violation(
                "I3-same-answer", topic, (message_id,), f"answered with offsets {sorted(offsets)}"
            )


@check("I4-was-sent", "history", "messages")
def was_sent(evidence: Evidence) -> Iterator[Violation]:
    """Every stored message was sent by a client of the run, or is an output of a commit."""
    history = evidence.history
    assert history is not None
    assert evidence.messages is not None
    if not history.sends_complete:
        return
    sent = {(send.topic, send.message_id) for send in history.sends}
    for entry in evidence.messages.entries:
        if entry.producer[:1] != "@" and (entry.topic, entry.message_id) not in sent:
            where = f"{entry.topic}/{entry.partition} offset {entry.offset}"
            yield Violation("I4-was-sent", where, (entry.message_id,), "no client sent it")


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
    for entry in evidence.messages.entries if evidence.messages else ():
        seen[entry.topic, entry.message_id] = f"stored at offset {entry.offset}"
    for key in sorted(failed & seen.keys()):
        reason = f"it was refused for good, and {seen[key]}"
        yield Violation("I4-failed-stays-out", key[0], (key[1],), reason)


@check("I16-sends-whole", "history")
def sends_whole(evidence: Evidence) -> Iterator[Violation]:
    """A run that reports its sends has some, and none ended before it began."""
    assert evidence.history is not None
    if not evidence.history.sends and evidence.history.sends_complete:
        yield Violation("I16-sends-whole", "the run", (), "nothing was sent")
    for send in evidence.history.sends:
        if send.ended and send.ended < send.began:
            where = f"{send.topic}/{send.partition} by {send.process}"
            yield Violation(
                "I16-sends-whole", where, (send.message_id,), "it ended before it began"
            )
