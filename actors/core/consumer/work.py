"""What a consumer core asks of the shell around it, and what the shell answers.

Each item of work comes out of `step` in `work` or `work_after_sync` and is done in order by the
thread that drives the core; each answer goes back with `Driver.post`. Handlers run elsewhere: the
pair RunHandler / HandlerDone is matched by epoch and first offset, and an answer that does not
match what runs now is dropped with all that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...records import Output
from .ledger import Ledger
from .window import Window

# --- work for the shell --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeekLedger:
    """Read the facts of the ledger without changing it; answer with LedgerPeeked.

    The first time the shell makes the ledger where there is none, and each time it tries to take
    the lock of the ledger's highest generation.
    """


@dataclass(frozen=True, slots=True)
class TopicFound:
    """The input topic has so many partitions: a consumer is wanted for each."""

    topic: str
    partitions: int


@dataclass(frozen=True, slots=True)
class StandingBy:
    """Another member has the partition. Say so to the user, once."""

    owner: str


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """Open generation `epoch` of the ledger for writing and give it to the driver (open_log)."""

    epoch: int


@dataclass(frozen=True, slots=True)
class GaveBack:
    """All that was committed is synced, and the grant is on its way back to the broker.

    From here on a successor may be there: being fenced by it is no failure.
    """


@dataclass(frozen=True, slots=True)
class RunHandler:
    """Call the handler for each message of `window`, in order, in the thread of handlers.

    The first message is at attempt `attempt`, all others at their first. `ledger` is to be read
    only; its state does not change before the answer, while the effects of the run's messages do.
    Answer with HandlerDone.

    With `deaths` the one message of the window killed so many processes: do not call the handler,
    answer with a FailedMessage of kind CRASHED. `private` messages come from topic@group: the
    handler sees the message that they stand for.
    """

    epoch: int
    window: Window
    attempt: int
    ledger: Ledger
    at_ms: int = 0  # when it was decided
    private: bool = False
    deaths: int = 0

    @property
    def first_offset(self) -> int:
        """What identifies the run, together with the epoch."""
        return self.window.first_offset


@dataclass(frozen=True, slots=True)
class CutHandler:
    """Ask the running handler to stop after the message it is at and to answer with that much."""


@dataclass(frozen=True, slots=True)
class AnswerDropped:
    """Nothing of the last answer counts: what its call left open in a database is rolled back."""


@dataclass(frozen=True, slots=True)
class Repost:
    """Give this event back at the next turn: it was held while the disk was full."""

    event: Any


@dataclass(frozen=True, slots=True)
class TopicResolved:
    """The facts of a topic that tx.send wants to use; `error` instead when there are none."""

    topic: str
    partitions: int
    error: Exception | None = None


# --- answers and requests of the shell -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerPeeked:
    """The facts of the ledger that the join reports."""

    ledger_id: bytes
    topic_id_seen: bytes  # b"" before the first record
    log_id_seen: bytes
    next_offset: int
    highest_generation: int
    lock_held: bool  # the lock of that generation is ours: its owner is dead
    host: str
    path: str


# Why a message failed, in dead letters and in the commits that park them.
RAISED = "raised"  # the handler raised on every attempt
REJECTED = "rejected"  # it raised what no retry mends
CRASHED = "crashed"  # it killed its process again and again
UNKNOWN_EFFECT = "unknown effect"  # nobody knows the outcome of an effect, and its policy is park
# No reason to park it: nobody knows the outcome of an effect, and its policy is to ask.
HELD_EFFECT = "held effect"


@dataclass(frozen=True, slots=True)
class FailedMessage:
    """A handler raised. `jitter` is drawn from [0, 1) by the shell and stretches the pause.

    `letter` is the dead letter for its last attempt; None: the consumer stops instead. Its
    partition is that of the input; the core sees to it that the topic has it.
    """

    message_id: str
    text: str  # of the error, bounded
    error: BaseException
    traceback: str
    jitter: float
    kind: str = RAISED
    letter: Output | None = None


@dataclass(frozen=True, slots=True)
class HandlerDone:
    """The first `handled` messages of the window were handled; these are their effects.

    The message behind them raised if `failure` is there, else the run was cut. Outputs have no
    numbers yet (first_sequence -1); they stand in the order in which they were sent.
    """

    epoch: int
    first_offset: int
    handled: int
    state: dict[str, bytes | None] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    failure: FailedMessage | None = None
    took_us: int = 0
    size: int = 0  # bytes that the commit will need, about: the driver reserves them
    private: bool = False  # as of the run


@dataclass(frozen=True, slots=True)
class ResolveTopic:
    """tx.send waits for the facts of this topic; it is made where it does not exist."""

    topic: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End at once: what is being handled is not committed, and nobody is to blame for it."""


@dataclass(frozen=True, slots=True)
class Drain:
    """End: commit what is being handled, wait for the outputs, give the grant back, stop."""
