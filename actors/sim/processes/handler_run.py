"""One handler run of a simulated consumer, which may stop and go on while effects are under way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...core.consumer.window import Piece
from ...core.consumer.work import CRASHED, RAISED, FailedMessage, HandlerDone, RunHandler
from ...ids import private_topic
from ..oracles.effects import DIED, RunEffects
from .handler import (
    Target,
    build_outputs,
    dead_letter,
    failures_of,
    fate_of,
    handle,
    identity_of,
    original_of,
)

if TYPE_CHECKING:
    from .consumer import SimConsumer


class HandlerRun:
    """Carries out one run. It is begun anew, and does the same, each time an effect has an answer."""

    def __init__(self, shell: SimConsumer, run: RunHandler, *, cut: bool) -> None:
        """`cut`: it was asked to come back before it began."""
        self._shell = shell
        self._world = shell.world
        self._run = run
        group = shell.group
        topic = private_topic(group.topic, group.name) if run.private else group.topic
        self.effects = RunEffects(shell, run, topic)
        self._stop_after = 0
        if not run.deaths:
            self._stop_after = self._world.plan.commit_after(shell.rng, cut=cut)

    def cut(self) -> None:
        """Come back soon: a run that waits for an effect ends there, any other is over at once."""

    def answer(self) -> HandlerDone | None:
        """Return what handlers did; None if one killed the process. Raises Blocked."""
        return self._crashed() if self._run.deaths else self._carry_out()

    def _identity(self, piece: Piece, index: int) -> bytes:
        batch = piece.stored.batch
        assert batch is not None
        if self._run.private:
            return original_of(batch, index)
        return identity_of(self._shell.group.topic, piece.stored, batch, index)

    def _failure(self, identity: bytes, body: bytes, kind: str, attempt: int) -> FailedMessage:
        shell = self._shell
        error = ValueError(f"{kind} at attempt {attempt}")
        letter = dead_letter(shell.group.topic, shell.partition, identity, body, kind)
        jitter = shell.rng.random()
        return FailedMessage(str(identity), str(error), error, "", jitter, kind, letter)

    def _crashed(self) -> HandlerDone:
        """Answer for a message that has killed too many processes."""
        run = self._run
        piece = run.window.pieces[0]
        assert piece.stored.batch is not None
        index = piece.indices[0]
        body = piece.stored.batch.body(index)
        failure = self._failure(self._identity(piece, index), body, CRASHED, run.deaths)
        return HandlerDone(
            run.epoch, run.first_offset, 0, failure=failure, size=len(body), private=run.private
        )

    def _messages(self) -> Iterator[tuple[bytes, bytes, int]]:
        """Yield identity, body and offset of each message."""
        for piece in self._run.window.pieces:
            batch = piece.stored.batch
            assert batch is not None
            for index, offset in zip(piece.indices, piece.offsets, strict=True):
                yield self._identity(piece, index), batch.body(index), offset

    def _carry_out(self) -> HandlerDone | None:
        run, doing = self._run, Doing(self._shell, self._run)
        stop_after = self._stop_after
        failure: FailedMessage | None = None
        for identity, body, offset in self._messages():
            attempt = doing.attempt
            fate = fate_of(identity, replayed=run.private)
            stuck, result = self.effects.of_message(identity, offset)
            if stuck == DIED or (not stuck and fate == CRASHED):
                return None
            kind = stuck or fate
            if kind or attempt <= failures_of(identity):
                failure = self._failure(identity, body, kind or RAISED, attempt)
                break
            doing.handle(identity, body, result)
            if doing.handled >= stop_after or result is not None:
                break
        return doing.done(failure)


class Doing:
    """What the messages of one run have done so far."""

    def __init__(self, shell: SimConsumer, run: RunHandler) -> None:
        self._shell = shell
        self._run = run
        self._changed: dict[str, bytes | None] = {}
        self._outgoing: list[tuple[Target, bytes | None, bytes]] = []
        self.handled = 0

    @property
    def attempt(self) -> int:
        """Which attempt at the next message it is."""
        return 1 if self.handled else self._run.attempt

    def _look(self, name: str) -> bytes | None:
        return self._changed[name] if name in self._changed else self._run.ledger.state.get(name)

    def handle(self, identity: bytes, body: bytes, result: bytes | None = None) -> None:
        """Handle one more."""
        shell = self._shell
        partitions = shell.world.oracle.partitions()
        effects = handle(
            shell.group, shell.partition, identity, body, self._look, partitions, result
        )
        self._changed.update(effects.state)
        self._outgoing += effects.outputs
        self.handled += 1

    def done(self, failure: FailedMessage | None) -> HandlerDone:
        """Return the answer."""
        run, state = self._run, self._run.ledger.state
        changes = {n: value for n, value in self._changed.items() if value != state.get(n)}
        outputs = build_outputs(self._outgoing)
        size = 64 * self.handled + sum(len(output.raw) for output in outputs) + 64 * len(changes)
        return HandlerDone(
            run.epoch,
            run.first_offset,
            self.handled,
            changes,
            outputs,
            failure,
            0,
            size,
            run.private,
        )
