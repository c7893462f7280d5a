"""Events and work about effects, between a running handler, the core and an operator.

A handler asks for an effect (EffectWanted) and waits for the answer. After the call it reports the
outcome (EffectTold), and waits only if `waits` is set. Both are matched with the run by epoch, input
and first offset, as HandlerDone is. Orders of operators (EffectOrder) lie outside of the core until
the core looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .work import HandlerDone, RunHandler

# Verdicts of an EffectAnswer.
CALL = "call"  # call the function; the intent is durable
RECORDED = "recorded"  # do not call it: the answer holds the recorded result
HELD = "held"  # do not call it: the outcome of the last call is unknown
STALE = "stale"  # the run is over: nothing that the handler does counts
NOTED = "noted"  # the reported outcome is durable


@dataclass(frozen=True, slots=True)
class EffectWanted:
    """A handler has reached an effect of the message at `offset`."""

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
    encoding: int = 0  # of the recorded result
    value: bytes = b""  # the recorded result; for a held effect why its outcome is unknown


@dataclass(frozen=True, slots=True)
class EffectTold:
    """A handler reports how its call ended: returned, not_done or unknown."""

    epoch: int
    first_offset: int
    private: bool
    offset: int
    name: str
    number: int
    how: str
    encoding: int = 0
    value: bytes = b""
    waits: bool = False  # the handler wants an EffectAnswer when the record is durable

    @property
    def size(self) -> int:
        """Estimated bytes of the record, for the reserve of the log."""
        return len(self.value)


@dataclass(frozen=True, slots=True)
class EffectHeld:
    """Work: tell the user that a message waits for an operator's order about an effect."""

    effect_id: str
    message_key: str
    why: str


@dataclass(frozen=True, slots=True)
class LookForOrders:
    """Work: look for orders about these calls; post each as EffectOrder."""

    effect_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EffectOrder:
    """An operator's order about one call: `answered` with a result, or `again`."""

    effect_id: str
    how: str
    encoding: int = 0
    value: bytes = b""

    @property
    def size(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True)
class KeepOrders:
    """Work: delete orders about all other calls: they are recorded, or came too late."""

    effect_ids: tuple[str, ...]


def belongs(event: HandlerDone | EffectWanted | EffectTold, run: RunHandler) -> bool:
    identity = (event.epoch, event.private, event.first_offset)
    return identity == (run.epoch, run.private, run.first_offset)
