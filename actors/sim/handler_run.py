"""One handler run of a simulated consumer, which may stop and go on while effects are under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.consumer_work import CRASHED, RAISED, FailedMessage, HandlerDone, RunHandler
from ..core.window import Piece
from ..ids import private_topic
from .effects import DIED, RunEffects
from .handler import (
    build_outputs,
    dead_letter,
    failures_of,
    fate_of,
    handle,
    identity_of,
    original_of,
)

if TYPE_CHECKING:
    from .consumer_shell import ConsumerShell


class HandlerRun:
    """Carries out one run. It is begun anew, and does the same, each time an effect has an answer."""

    def __init__(self, shell: ConsumerShell, run: RunHandler, *, cut: bool) -> None:
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

    def _carry_out(self) -> HandlerDone | None:
        shell, run = self._shell, self._run
        state = run.ledger.state
        changed: dict[str, bytes | None] = {}

        def look(name: str) -> bytes | None:
            return changed[name] if name in changed else state.get(name)

        partitions = self._world.oracle.partitions()
        outgoing = []
        handled, stop_after = 0, self._stop_after
        failure: FailedMessage | None = None
        for piece in run.window.pieces:
            batch = piece.stored.batch
            assert batch is not None
            for index, offset in zip(piece.indices, piece.offsets, strict=True):
                identity, body = self._identity(piece, index), batch.body(index)
                attempt = run.attempt if handled == 0 else 1
                fate = fate_of(identity, replayed=run.private)
                stuck, result = self.effects.of_message(identity, offset)
                if stuck == DIED or (not stuck and fate == CRASHED):
                    return None
                kind = stuck or fate
                if kind or attempt <= failures_of(identity):
                    failure = self._failure(identity, body, kind or RAISED, attempt)
                    break
                effects = handle(
                    shell.group, shell.partition, identity, body, look, partitions, result
                )
                changed.update(effects.state)
                outgoing += effects.outputs
                handled += 1
                if handled >= stop_after or result is not None:
                    stop_after = handled
                    break
            if failure is not None or handled >= stop_after:
                break
        changes = {name: value for name, value in changed.items() if value != state.get(name)}
        outputs = build_outputs(outgoing)
        size = 64 * handled + sum(len(output.raw) for output in outputs) + 64 * len(changes)
        return HandlerDone(
            run.epoch,
            run.first_offset,
            handled,
            changes,
            outputs,
            failure,
            0,
            size,
            run.private,
        )
