"""What one call of a consumer's handlers leaves for the next one. It may all be lost at any time."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...core.consumer.keyed_schedule import Result


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
