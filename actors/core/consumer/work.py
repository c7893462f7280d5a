"""Work that a consumer core gives to its shell, and the answers and requests of the shell.

`step` puts each item of work into `work` or `work_after_sync`; the thread that drives the core does
them in order. Each answer goes back by `Driver.post`. Handlers run elsewhere: RunHandler and
HandlerDone are matched by epoch and first offset, and an answer that does not match the running call
is dropped with all that it holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...history import NO_PLACE, Place
from ...records import Output
from .ledger import Ledger
from .window import Window

# --- work for the shell --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeekLedger:
    """Read the facts of the ledger without changing it; answer with LedgerPeeked.

    The first time the shell creates a missing ledger. Each time it tries to take the lock of the
    ledger's highest generation.
    """


@dataclass(frozen=True, slots=True)
class TopicFound:
    """The input topic is known: start a consumer for each of its partitions."""

    topic: str
    partitions: int


@dataclass(frozen=True, slots=True)
class StandingBy:
    """Tell the user, once, that another member owns the partition."""

    owner: str


@dataclass(frozen=True, slots=True)
class OpenLedger:
    """Open generation `epoch` of the ledger for writing, and pass it to Driver.open_log."""

    epoch: int


@dataclass(frozen=True, slots=True)
class GaveBack:
    """All commits are synced, and the request to leave is sent.

    From here on there may be a successor: Fenced is no failure any more.
    """


@dataclass(frozen=True, slots=True)
class RunHandler:
    """Call the handler for each message of `window`, in order, in the thread of handlers.

    `attempt` is that of the first message; all others are at their first. Only read `ledger`: its
    state does not change before the answer, but the effects of the run's messages do. Answer with
    HandlerDone.

    With `deaths` above 0, the only message of the window has killed that many processes: do not call
    the handler, answer with a FailedMessage of kind CRASHED. `private` messages come from
    topic@group: the handler sees the message that each stands for.
    """

    epoch: int
    window: Window
    attempt: int
    ledger: Ledger
    at_ms: int = 0  # time of the decision
    private: bool = False
    deaths: int = 0

    @property
    def first_offset(self) -> int:
        """Identifies the run, together with epoch and `private`."""
        return self.window.first_offset


@dataclass(frozen=True, slots=True)
class CutHandler:
    """Ask the running handler to stop after its current message, and answer with the done ones."""


@dataclass(frozen=True, slots=True)
class AnswerDropped:
    """The last answer does not count: roll back the transaction that its call left open."""


@dataclass(frozen=True, slots=True)
class Repost:
    """Post this event again: it was held while the disk was full."""

    event: Any


@dataclass(frozen=True, slots=True)
class TopicResolved:
    """The facts of a topic for a waiting tx.send, or the error of the broker's refusal."""

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
    lock_held: bool  # this process holds the lock of that generation's owner, which is dead
    host: str
    path: str
    seen: Place = NO_PLACE  # in the broker's log: what the ledger relies on


# Why a message failed, in dead letters and in the commits that park them.
RAISED = "raised"  # the handler raised on every attempt
REJECTED = "rejected"  # the handler raised an error that no retry mends
CRASHED = "crashed"  # it killed its process again and again
UNKNOWN_EFFECT = "unknown effect"  # the outcome of an effect is unknown, and its policy is park
# No reason to park: the outcome of an effect is unknown, and its policy is to ask.
HELD_EFFECT = "held effect"
# No failure at all: the database wants the call run again, and no message is to blame.
AGAIN = "again"


@dataclass(frozen=True, slots=True)
class FailedMessage:
    """A handler raised. `jitter` is drawn from [0, 1) by the shell and stretches the pause.

    `letter` is the dead letter for the last attempt; None stops the consumer instead. The core sets
    the topic and partition of the letter. Of kind AGAIN nothing has failed: the call did nothing, and
    counts as none. Messages that are parked with one `error_type` make a row (`park_limit`).
    """

    message_id: str
    text: str  # of the error, bounded
    error: BaseException
    traceback: str
    jitter: float
    kind: str = RAISED
    letter: Output | None = None
    error_type: str = ""


@dataclass(frozen=True, slots=True)
class HandlerDone:
    """The first `handled` messages of the window were handled, with this state and these outputs.

    The message behind them raised if `failure` is set, else the run was complete or cut. Outputs
    have no numbers yet (first_sequence -1); they are in the order of the sends.
    """

    epoch: int
    first_offset: int
    handled: int
    state: dict[str, bytes | None] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    failure: FailedMessage | None = None
    took_us: int = 0
    size: int = 0  # estimated bytes of the commit: the driver reserves them
    private: bool = False  # of the run


@dataclass(frozen=True, slots=True)
class ResolveTopic:
    """A tx.send waits for the facts of this topic; create it where it does not exist."""

    topic: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End at once, on purpose: the running call is not committed, and counts as no death."""


@dataclass(frozen=True, slots=True)
class Drain:
    """End in good order: commit the running call, wait for outputs, give the grant back, stop."""
