"""Effects where exactly-once is promised: I7, and that all is done in the end (I14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..model import Violation
from .evidence import Evidence
from .table import check


@check("I7-effect-once", "effects")
def effect_once(evidence: Evidence) -> Iterator[Violation]:
    """No message has two effects in one group, at any time."""
    assert evidence.effects is not None
    counts = Counter((effect.group, effect.topic, effect.message_id) for effect in evidence.effects)
    for (group, topic, message_id), count in counts.items():
        if count > 1:
            reason = f"{count} effects"
            yield Violation("I7-effect-once", f"group {group} {topic}", (message_id,), reason)


@check("I7-effect-right", "effects")
def effect_right(evidence: Evidence) -> Iterator[Violation]:
    """An effect is what the handler makes of this message."""
    assert evidence.effects is not None
    if evidence.expected_values is None:
        return
    for effect in evidence.effects:
        key = (effect.group, effect.topic, effect.message_id)
        expected = evidence.expected_values.get(key)
        if effect.value != expected:
            reason = f"the effect is {effect.value!r}, not {expected!r}"
            where = f"group {effect.group} {effect.topic}"
            yield Violation("I7-effect-right", where, (effect.message_id,), reason)


@check("I7-effect-committed", "effects", "ledgers")
def effect_committed(evidence: Evidence) -> Iterator[Violation]:
    """Effects and commits are the same messages: no effect without a commit, none missing."""
    assert evidence.effects is not None
    assert evidence.ledgers is not None
    committed = {
        (ledger.group, ledger.topic, message_id)
        for ledger in evidence.ledgers
        for commit in ledger.commits
        for message_id in commit.ids
        if not commit.parked
    }
    groups = {(ledger.group, ledger.topic) for ledger in evidence.ledgers}
    done = {(its.group, its.topic, its.message_id) for its in evidence.effects}
    told = {(group, topic) for group, topic, _ in done}
    for group, topic, message_id in sorted(done - committed):
        if (group, topic) in groups:
            where = f"group {group} {topic}"
            reason = "it has an effect and no commit"
            yield Violation("I7-effect-committed", where, (message_id,), reason)
    for group, topic, message_id in sorted(committed - done):
        if (group, topic) in told:
            where = f"group {group} {topic}"
            reason = "it is committed and has no effect"
            yield Violation("I7-effect-committed", where, (message_id,), reason)


@check("I4-effect-of-nothing", "effects", "log")
def effect_of_nothing(evidence: Evidence) -> Iterator[Violation]:
    """Every effect is of a message that the log holds."""
    assert evidence.effects is not None
    assert evidence.log is not None
    stored = {(entry.topic, entry.message_id) for entry in evidence.log.entries}
    for effect in evidence.effects:
        if (effect.topic, effect.message_id) not in stored:
            where = f"group {effect.group} {effect.topic}"
            reason = "an effect of a message that the log does not hold"
            yield Violation("I4-effect-of-nothing", where, (effect.message_id,), reason)


@check("I14-all-done", "ledgers", "log")
def all_done(evidence: Evidence) -> Iterator[Violation]:
    """Once faults are over and time was given, every group has processed every message."""
    assert evidence.ledgers is not None
    assert evidence.log is not None
    if not evidence.drained:
        return
    ends = Counter((entry.topic, entry.partition) for entry in evidence.log.entries)
    for ledger in evidence.ledgers:
        end = ends[ledger.topic, ledger.partition]
        if ledger.next_offset < end:
            reason = f"{end - ledger.next_offset} messages are still to be processed"
            yield Violation("I14-all-done", ledger.where, (), reason)
