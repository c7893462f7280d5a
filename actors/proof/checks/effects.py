"""Effects where handlers leave them and exactly-once is promised: I4, I7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..findings import Violation
from ..verify.kept import KeptLedger, ProcessedId, ids_of, name_of
from .evidence import Evidence
from .registry import check


@check("I7-one-effect", "effects")
def one_effect(evidence: Evidence) -> Iterator[Violation]:
    """No message has two effects in one group, at any time."""
    assert evidence.effects is not None
    counts = Counter((effect.group, effect.topic, effect.message_id) for effect in evidence.effects)
    for (group, topic, message_id), count in counts.items():
        if count > 1:
            reason = f"{count} effects"
            yield Violation("I7-one-effect", f"group {group} {topic}", (message_id,), reason)


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


@check("I7-effect-committed", "effects", "messages")
def effect_committed(evidence: Evidence) -> Iterator[Violation]:
    """Effects and commits are the same messages: no effect without a commit, none missing."""
    assert evidence.effects is not None
    assert evidence.messages is not None
    committed = {
        (*ledger.place[:2], message_id)
        for ledger in evidence.messages.ledgers
        for message_id in _handled(ledger, evidence.messages.names(ledger))
    }
    groups = {ledger.place[:2] for ledger in evidence.messages.ledgers}
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


def _handled(ledger: KeptLedger, names: dict[ProcessedId, str]) -> Iterator[str]:
    """Yield the messages of the partition that have an effect."""
    for commit in ledger.commits:
        if not commit.parked:
            for one in ids_of(commit):
                if isinstance(one, tuple) or one in names:  # else it is of the private topic
                    yield name_of(one, ledger, names)


@check("I4-effect-of-nothing", "effects", "messages")
def effect_of_nothing(evidence: Evidence) -> Iterator[Violation]:
    """Every effect is of a message that the log holds."""
    assert evidence.effects is not None
    assert evidence.messages is not None
    stored = {(entry.topic, entry.message_id) for entry in evidence.messages.entries}
    for effect in evidence.effects:
        if (effect.topic, effect.message_id) not in stored:
            where = f"group {effect.group} {effect.topic}"
            reason = "an effect of a message that the log does not hold"
            yield Violation("I4-effect-of-nothing", where, (effect.message_id,), reason)
