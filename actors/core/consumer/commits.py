"""The one commit record of a handler call: inputs, ids, state, numbered outputs, acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ...history import NO_PLACE, Place, highest
from ...records import Committed, Output, Parked, Skipped
from .ledger import Ledger
from .window import Window, identities
from .work import HandlerDone


@dataclass(slots=True)
class Acked:
    """Acknowledgements of outputs that the next commit carries."""

    ends: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # topic, partition, next sequence
    place: Place = NO_PLACE  # in the broker's log, of who relies on them

    def add(self, topic: str, partition: int, next_sequence: int, place: Place) -> None:
        self.ends.append((topic, partition, next_sequence))
        self.place = highest(self.place, place)

    def take(self) -> list[tuple[str, int, int]]:
        """The place stays: it is no further than that of the commit which carries them."""
        ends, self.ends = self.ends, []
        return ends


def committed(
    ledger: Ledger,
    epoch: int,
    topic_id: bytes,
    window: Window,
    answer: HandlerDone,
    acked: Acked,
    place: Place,
    parked: list[Parked] | None,
    skipped: list[Skipped] | None,
) -> Committed:
    """Return the commit that passes `window` of one input with the effects of its handlers.

    `place` is where the window ends in the broker's log.
    """
    assert ledger.started is not None, "a commit follows the first record"
    assert window.first_offset == ledger.next_offset_of(topic_id), "commits follow"
    ranges, fingerprints = identities(window)
    return Committed(
        epoch,
        ledger.commit_no + 1,
        [(topic_id, window.next_offset)],
        ranges,
        fingerprints,
        answer.state,
        _numbered(ledger, answer.outputs),
        acked.take(),
        parked or [],
        skipped or [],
        highest(ledger.seen, place, acked.place),
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
