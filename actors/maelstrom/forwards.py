"""Parts of requests that other nodes must answer: resent until answered or given up.

A forward is one line, resent unchanged, so that the owner can tell it from a new one. After the last
attempt the outcome of a request that writes is `unknown`: the owner may have executed it, or may
still. A request that only reads has written nothing in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..limits import (
    NODE_FORWARD_RESEND_MS,
    NODE_FORWARD_TIMEOUT_MS,
    Limits,
)
from .messages import CRASH, TIMEOUT, UNAVAILABLE, Refusal


@dataclass(slots=True)
class Part:
    """What one owner contributes to an answer."""

    result: Any = None
    refusal: Refusal | None = None  # definite: nothing was written for this part
    unknown: bool = False  # the owner may or may not have executed it
    settled: bool = False


@dataclass(slots=True)
class Gather:
    """A request that waits for all of its parts."""

    writes: bool
    done: Callable[[Gather], None]
    parts: list[Part] = field(default_factory=list)
    held_bytes: int = 0  # of results of other nodes among the parts

    def part(self) -> Part:
        self.parts.append(Part())
        return self.parts[-1]

    def settle(self, part: Part, result: Any = None, refusal: Refusal | None = None) -> None:
        """Record the outcome of a part; the last part completes the request."""
        self._settle(part, result, refusal, unknown=False)

    def give_up(self, part: Part, why: str) -> None:
        """Settle a part whose answer will not come, or does not count any more."""
        refusal = None if self.writes else Refusal(UNAVAILABLE, why)
        self._settle(part, None, refusal, unknown=self.writes)

    def _settle(self, part: Part, result: Any, refusal: Refusal | None, *, unknown: bool) -> None:
        assert not part.settled
        part.result, part.refusal, part.unknown, part.settled = result, refusal, unknown, True
        if all(p.settled for p in self.parts):
            self.done(self)

    def refusal(self) -> Refusal | None:
        """Return the error reply that is true for all parts; None if all succeeded.

        A definite code promises that nothing was written: with any part unknown, or one part
        written and another refused, only CRASH or TIMEOUT is true.
        """
        refusals = [part.refusal for part in self.parts if part.refusal is not None]
        if any(part.unknown for part in self.parts):
            if len(self.parts) == 1:
                return Refusal(TIMEOUT, "the owner of the key did not answer in time")
            return Refusal(CRASH, "an owner did not answer in time: outcome unknown")
        if not refusals:
            return None
        if self.writes and len(refusals) < len(self.parts):
            return Refusal(CRASH, f"done in part: {refusals[0].text}")
        return refusals[0]


@dataclass(slots=True)
class Forward:
    """One part under way."""

    line: bytes
    gather: Gather
    part: Part
    resend_at_ms: int
    deadline_ms: int
    sent: int = 1  # times that the line was written


class Forwards:
    """All parts under way, by the msg_id of their line.

    Invariant: at most `node_forwards_max` of them, of `node_forwards_bytes_max` bytes together.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_number: dict[int, Forward] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_number)

    def has_room(self, count: int, size: int) -> bool:
        return (
            len(self._by_number) + count <= self._limits.node_forwards_max
            and self._bytes + size <= self._limits.node_forwards_bytes_max
        )

    def start(self, number: int, line: bytes, gather: Gather, part: Part, now_ms: int) -> None:
        forward = Forward(
            line,
            gather,
            part,
            now_ms + NODE_FORWARD_RESEND_MS,
            now_ms + NODE_FORWARD_TIMEOUT_MS,
        )
        self._by_number[number] = forward
        self._bytes += len(line)

    def take(self, number: int) -> Forward | None:
        """None for a late answer."""
        forward = self._by_number.pop(number, None)
        if forward is not None:
            self._bytes -= len(forward.line)
        return forward

    def wake_at_ms(self) -> int | None:
        times = [min(f.resend_at_ms, f.deadline_ms) for f in self._by_number.values()]
        return min(times, default=None)

    def due(self, now_ms: int) -> list[bytes]:
        """Give up overdue forwards and return the lines to resend."""
        lines = []
        for number, forward in list(self._by_number.items()):
            if forward.deadline_ms <= now_ms:
                self.take(number)
                forward.gather.give_up(forward.part, "the owner of a key did not answer in time")
            elif forward.resend_at_ms <= now_ms:
                forward.sent += 1
                forward.resend_at_ms = now_ms + NODE_FORWARD_RESEND_MS
                lines.append(forward.line)
        return lines

    def give_up_all(self) -> None:
        """Settle all parts: the input ended, so no answer can come."""
        for number in list(self._by_number):
            forward = self.take(number)
            if forward is not None:
                forward.gather.give_up(forward.part, "the input ended")

    def clear(self) -> None:
        """Forget all forwards: after an init no client waits for them."""
        self._by_number.clear()
        self._bytes = 0
