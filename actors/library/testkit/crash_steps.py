"""The steps of a commit at which a test can have everything die, and how that is brought about.

    before_handler                the handlers were about to be called
    after_handler_before_commit   they have returned, nothing of it is written
    after_append_before_sync      the commit is in the log's memory, not on the disk
    after_sync_before_outputs     the commit is durable, its outputs were not sent
    after_outputs_before_ack      the broker has stored the outputs, the consumer has not heard it
    after_ack                     it has heard it, and no later commit says so

The last two come only where handlers send. Two more have to be named, since nobody knows after them
what became of a call:

    after_intent_before_call      a handler may call the function of an effect, and has not
    after_call_before_record      the function has returned, its result is not written

Each consumer (group and topic) dies once at each step
that was asked for, and only while the harness drains.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ...codec import records as record_codec
from ...codec import wire
from ...core.consumer.effect_work import CALL, EffectAnswer, EffectTold
from ...core.consumer.open_effects import RUNNING
from ...errors import ProcessGone
from ...protocol import Produced
from ...storage.log import FencedLog
from ..consuming.actor import ConsumerActor
from ..effects.desk import Said
from ..library_events import LibraryEvents
from .network import LocalEndpoint

BEFORE_HANDLER = "before_handler"
AFTER_HANDLER = "after_handler_before_commit"
AFTER_APPEND = "after_append_before_sync"
AFTER_SYNC = "after_sync_before_outputs"
AFTER_OUTPUTS = "after_outputs_before_ack"
AFTER_ACK = "after_ack"
AFTER_INTENT = "after_intent_before_call"
AFTER_CALL = "after_call_before_record"
STEPS = (BEFORE_HANDLER, AFTER_HANDLER, AFTER_APPEND, AFTER_SYNC, AFTER_OUTPUTS, AFTER_ACK)
EFFECT_STEPS = (AFTER_INTENT, AFTER_CALL)

_COMMITS = frozenset({record_codec.COMMITTED, record_codec.COMMITTED_MORE})

_SINK_STEPS = {"recorded": AFTER_APPEND, "committed": AFTER_SYNC}

Place = tuple[str, str, int]  # group, topic, partition


class Crash(ProcessGone):
    """Everything dies here. No Exception: a handler's own `except` must not survive it."""


class CrashSteps:
    """Which steps are asked for and which consumers have died where."""

    def __init__(self) -> None:
        self._asked: set[str] = set()
        # (group, topic, step) in the order of the crashes.
        self.met: list[tuple[str, str, str]] = []
        # Whether the harness drains: only then anybody dies.
        self.armed = False

    def ask(self, steps: tuple[str, ...]) -> None:
        """Let every consumer die once more at each of `steps`. Raises ValueError for others."""
        unknown = [step for step in steps if step not in STEPS + EFFECT_STEPS]
        if unknown:
            there = ", ".join(STEPS + EFFECT_STEPS)
            raise ValueError(f"unknown step {unknown[0]!r}; known: {there}")
        self._asked.update(steps)
        self.met = [one for one in self.met if one[2] not in steps]

    def ask_for_rest(self) -> None:
        """Let every consumer die at each step at which it has not died yet."""
        self._asked.update(STEPS)

    def visit(self, place: Place, step: str) -> None:
        """Raises Crash if the consumer shall die there."""
        here = (*place[:2], step)
        if self.armed and step in self._asked and here not in self.met:
            self.met.append(here)
            raise Crash(step)


class WatchedLedger(FencedLog):
    """A ledger that tells of the steps around the sync of a commit. Set `visit` after opening."""

    visit: Callable[[str], None]
    _holds_commit = False

    def append(
        self,
        type: int,  # noqa: A002 - as in FencedLog
        meta: bytes,
        body: bytes | memoryview,
        body_crc: int | None = None,
    ) -> int:
        self._holds_commit = self._holds_commit or type in _COMMITS
        return super().append(type, meta, body, body_crc)

    def sync(self) -> int:
        holds, self._holds_commit = self._holds_commit, False
        if holds:
            self.visit(AFTER_APPEND)
        end = super().sync()
        if holds:
            self.visit(AFTER_SYNC)
        return end


class WatchedDesk:
    """How handlers ask about effects: their thread turns the consumer until it has answered.

    For a world in one thread, or whose threads turn it one at a time. Tells of the steps around the
    call of an effect.
    """

    def __init__(
        self,
        actor: ConsumerActor,
        wait: Callable[[Callable[[], bool]], None],
        turning: threading.Lock,
        visit: Callable[[str], None],
    ) -> None:
        """`wait` turns everything until something is true; the thread that does it has `turning`."""
        self._actor = actor
        self._wait = wait
        self._turning = turning
        self._visit = visit

    def ask(self, said: Said) -> Future[EffectAnswer]:
        """Ask, and turn until there is an answer, or the consumer has ended."""
        if isinstance(said, EffectTold):
            self._visit(AFTER_CALL)
        actor = self._actor
        with self._turning:
            answer = actor.effect_answers.ask(said)
            actor.post(said)
            self._wait(answer.done)
            if answer.exception() is None and actor.sink is not None:
                # Others may wait for the file that was just let go.
                turns = iter((False, True))
                self._wait(lambda: next(turns))
        if answer.exception() is None and answer.result().verdict == CALL:
            self._visit(AFTER_INTENT)
        return answer

    def tell(self, told: EffectTold) -> None:
        """Say how a call ended, and turn until that is on disk."""
        self._visit(AFTER_CALL)
        actor, place = self._actor, (told.offset, told.name)
        with self._turning:
            actor.post(told)
            self._wait(
                lambda: (
                    actor.ended
                    or not any(
                        effect.how == RUNNING
                        for effect in actor.core.ledger.effects
                        if (effect.offset, effect.name) == place
                    )
                )
            )


def watched_sink(visit: Callable[[str], None]) -> Callable[[str], None]:
    """Return what a ledger in a database calls at the steps of its commit."""

    def at(step: str) -> None:
        if step in _SINK_STEPS:
            visit(_SINK_STEPS[step])

    return at


class WatchedEndpoint:
    """A consumer's end of the wire that tells when the broker's word on outputs has come."""

    def __init__(self, endpoint: LocalEndpoint, visit: Callable[[str], None]) -> None:
        self._endpoint = endpoint
        self._visit = visit
        self.send = endpoint.send
        self.wake = endpoint.wake
        self.reopen = endpoint.reopen
        self.close = endpoint.close

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        waiting = self._endpoint.poll(timeout_ms)
        if any(isinstance(wire.decode(*one).message, Produced) for one in waiting):
            self._visit(AFTER_OUTPUTS)
        return waiting


class WatchedEvents(LibraryEvents):
    """Events that tell when a consumer has taken an acknowledgement."""

    def __init__(self, steps: CrashSteps) -> None:
        super().__init__()
        self._steps = steps

    def emit(self, event: str, **fields: Any) -> None:
        super().emit(event, **fields)
        if event == "output.acked":
            place = (fields["group"], fields["topic"], fields["partition"])
            self._steps.visit(place, AFTER_ACK)
