"""What one call of a consumer's handlers leaves for the next one. It may all be lost at any time."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..core.consumer_work import FailedMessage
from ..records import BatchStored
from .tx import Outgoing


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message that was handled apart from the others.

    It is right for as long as the message is the same (its stored batch and offset) and its key's
    state is what the handler found: then the handler would do it all again.
    """

    stored: BatchStored
    name: str  # of the entry that holds the state of its key
    found: bytes | None  # that entry as the handler found it ...
    left: bytes | None  # ... and as it left it; None: none
    outgoing: tuple[Outgoing, ...] = ()
    failure: FailedMessage | None = None
    size: int = 0  # bytes that a commit needs for it, about


@dataclass(slots=True)
class Carry:
    """Belongs to one consumer of one partition, and to the thread that carries its calls out."""

    # Messages below this offset were in a list whose handler raised: they are handed over alone.
    alone_below: int = 0
    # By offset: what became of messages that no commit holds yet, because one before them is not
    # done.
    results: dict[int, Result] = field(default_factory=dict)
    # Whether the ledger was found to hold state of the kind that the handler keeps.
    state_checked: bool = False
