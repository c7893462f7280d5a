"""What a running handler, the core and an operator say to each other about effects.

A handler wants an effect (EffectWanted) and waits for the answer; after a call it tells how that
ended (EffectTold) and waits only if it says so. Both are matched with the run by epoch, input and
first offset, as HandlerDone is. Orders of operators (EffectOrder) lie outside of the core until it
looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .work import HandlerDone, RunHandler

# What a handler is answered.
CALL = "call"  # call the function; the intent is durable
RECORDED = "recorded"  # do not call it: this was its result
HELD = "held"  # do not call it: nobody knows what became of the last call
STALE = "stale"  # the run is over: whatever the handler does has no effect
NOTED = "noted"  # what it told is durable


@dataclass(frozen=True, slots=True)
class EffectWanted:
    """A handler is at an effect of the message at `offset`."""

    epoch: int
    first_offset: int  # of the run
    private: bool
    offset: int
    key: str  # idempotency key of the message
    name: str
    policy: str


@dataclass(frozen=True, slots=True)
class EffectAnswer:
    """The answer to EffectWanted, and to an EffectTold that waits."""

    offset: int
    name: str
    verdict: str
    number: int = 0  # of the call
    effect_id: str = ""
    encoding: int = 0  # of what was recorded
    value: bytes = b""  # that; of a held effect why its outcome is unknown


@dataclass(frozen=True, slots=True)
class EffectTold:
    """How the call ended: returned, not_done or unknown."""

    epoch: int
    first_offset: int
    private: bool
    offset: int
    name: str
    number: int
    how: str
    encoding: int = 0
    value: bytes = b""
    waits: bool = False  # the handler goes on when the record is durable, and is answered then

    @property
    def size(self) -> int:
        """Bytes that the record will need, about."""
        return len(self.value)


@dataclass(frozen=True, slots=True)
class EffectHeld:
    """A message waits for an operator's word about an effect. Say so to the user."""

    effect_id: str
    message_key: str
    why: str


@dataclass(frozen=True, slots=True)
class LookForOrders:
    """See whether an operator has said anything about one of these; post it as EffectOrder."""

    effect_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EffectOrder:
    """An operator's word about one call: `answered` with a result, or `again`."""

    effect_id: str
    how: str
    encoding: int = 0
    value: bytes = b""

    @property
    def size(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True)
class KeepOrders:
    """What was said about other effects than these is done with, or came too late: forget it."""

    effect_ids: tuple[str, ...]


def belongs(event: HandlerDone | EffectWanted | EffectTold, run: RunHandler) -> bool:
    said = (event.epoch, event.private, event.first_offset)
    return said == (run.epoch, run.private, run.first_offset)
