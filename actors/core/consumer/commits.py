"""The one commit record of a handler call: inputs, ids, state, numbered outputs, acknowledgements."""

from __future__ import annotations

from dataclasses import replace

from ...records import Committed, Output, Parked, Skipped
from .ledger import Ledger
from .window import Window, identities
from .work import HandlerDone

# Acknowledgements that a commit carries: (topic, partition, next sequence).
Acked = list[tuple[str, int, int]]


def committed(
    ledger: Ledger,
    epoch: int,
    topic_id: bytes,
    window: Window,
    answer: HandlerDone,
    acked: Acked,
    parked: list[Parked] | None,
    skipped: list[Skipped] | None,
) -> Committed:
    """Return the commit that passes `window` of one input with the effects of its handlers."""
    assert ledger.started is not None, "a commit follows the first record"
    assert window.first_offset == ledger.next_offset_of(topic_id), "commits follow"
    ranges, fingerprints = identities(window)
    return Committed(
        epoch,
        ledger.commit_no + 1,
        [(topic_id, window.next_offset)],
        ranges,
        b"".join(fingerprints),
        answer.state,
        _numbered(ledger, answer.outputs),
        list(acked),
        fingerprints,
        parked or [],
        skipped or [],
    )


def _numbered(ledger: Ledger, outputs: list[Output]) -> list[Output]:
    """Give outputs their numbers: contiguous for each target, in the order sent."""
    following = dict(ledger.next_sequence)
    numbered = []
    for output in outputs:
        target = (output.topic, output.partition)
        first = following.get(target, 0)
        following[target] = first + output.count
        numbered.append(replace(output, first_sequence=first))
    return numbered
