"""One handler run of a simulated consumer, which may stop and go on while effects are under way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol

from ...codec.values import BYTES
from ...core.consumer.effect_work import (
    CALL,
    RECORDED,
    STALE,
    EffectAnswer,
    EffectTold,
    EffectWanted,
)
from ...core.consumer.open_effects import ASK, NOT_DONE, RETRY, RETURNED, UNKNOWN
from ...core.consumer.window import Piece
from ...core.consumer.work import (
    CRASHED,
    HELD_EFFECT,
    RAISED,
    UNKNOWN_EFFECT,
    FailedMessage,
    HandlerDone,
    RunHandler,
)
from ...ids import private_topic
from ..environment import Environment
from ..oracles.effects import CALL_MEAN_MS, DIED, NAME, EffectModel, Wish, wish_of
from ..oracles.ledger import LedgerOracle
from .handler import (
    Group,
    Target,
    build_outputs,
    dead_letter,
    failures_of,
    fate_of,
    handle,
    identity_of,
    original_of,
)


class Caller(Protocol):
    """The process that a run is one of, as the run sees it (consumer.py)."""

    world: Environment
    name: str
    rng: random.Random
    group: Group
    partition: int

    @property
    def model(self) -> LedgerOracle:
        """What its ledger has promised."""

    def post(self, event: EffectWanted | EffectTold) -> None:
        """Give the consumer what the handler says of an effect."""

    def go_on_in(self, pause_ms: int, *, work: bool = True) -> None:
        """The run has its next step then; `work`: the handlers need that time."""


class Blocked(Exception):
    """The handler waits for an answer or for the world outside: the run goes on later."""


class RunEffects:
    """The effects of one handler run."""

    def __init__(self, caller: Caller, run: RunHandler, topic: str) -> None:
        self._caller = caller
        self._run = run
        ids = {one.topic: one.topic_id for one in caller.world.oracle.topics}
        self._topic_id = ids[topic]
        self._model = caller.model.effects
        # By offset: the result, or the kind of failure that a message of the run ends in.
        self._results: dict[int, bytes] = {}
        self._failures: dict[int, str] = {}
        # What is waited for: the answer to the question, or the end of the call.
        self._asked: tuple[int, Wish] | None = None
        self._calling: int | None = None

    def of_message(self, identity: bytes, offset: int) -> tuple[str, bytes | None]:
        """Return how the effect of a message ended: DIED, a kind of failure, or "" and its result.

        The result is None where it has no effect. Raises Blocked.
        """
        wish = wish_of(identity, replayed=self._run.private)
        if self._model is None or wish is None:
            return "", None
        if self._calling is not None and self._end_call(self._model, identity, offset, wish):
            return DIED, None
        if offset in self._failures:
            return self._failures[offset], None
        if offset not in self._results:
            self._asked = (offset, wish)
            run, key = self._run, identity.decode(errors="replace")
            self._caller.post(
                EffectWanted(
                    run.epoch, run.first_offset, run.private, offset, key, NAME, wish.policy
                )
            )
            raise Blocked
        return "", self._results[offset]

    def answered(self, answer: EffectAnswer) -> int | None:
        """Take an answer; return in how many milliseconds the run goes on, None: not for this."""
        if self._asked is None or self._asked[0] != answer.offset or answer.verdict == STALE:
            return None
        (offset, wish), self._asked = self._asked, None
        if answer.verdict == CALL:
            assert self._model is not None, "somebody asked"
            self._model.call((self._topic_id, offset), answer.number)
            self._calling = answer.number
            return int(self._caller.rng.expovariate(1 / CALL_MEAN_MS))
        if answer.verdict == RECORDED:
            self._results[offset] = answer.value
        else:
            self._failures[offset] = HELD_EFFECT if wish.policy == ASK else UNKNOWN_EFFECT
        return 0

    def _end_call(self, model: EffectModel, identity: bytes, offset: int, wish: Wish) -> bool:
        """The time of the call is over; return whether its process died in it."""
        number, self._calling = self._calling, None
        assert number is not None, "a call has a number"
        how = wish.first if number == 1 else RETURNED
        if how == DIED:
            return True
        value = b""
        if how == RETURNED:
            value = b"result %d of %s" % (number, identity)
            model.made((self._topic_id, offset), number, value)
            self._results[offset] = value
        elif how == NOT_DONE or wish.policy == RETRY:
            self._failures[offset] = RAISED
        else:
            self._failures[offset] = HELD_EFFECT if wish.policy == ASK else UNKNOWN_EFFECT
        how = UNKNOWN if how == "raised" else how
        run = self._run
        where = (run.epoch, run.first_offset, run.private, offset)
        self._caller.post(EffectTold(*where, NAME, number, how, BYTES, value))
        return False


class HandlerRun:
    """Carries out one run. It is begun anew, and does the same, each time an effect has an answer."""

    def __init__(self, shell: Caller, run: RunHandler, *, cut: bool) -> None:
        """`cut`: the run was asked to come back before it began."""
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

    def __init__(self, shell: Caller, run: RunHandler) -> None:
        self._shell = shell
        self._run = run
        self._changed: dict[str, bytes | None] = {}
        self._outgoing: list[tuple[Target, bytes | None, bytes]] = []
        self.handled = 0

    @property
    def attempt(self) -> int:
        return 1 if self.handled else self._run.attempt

    def _look(self, name: str) -> bytes | None:
        return self._changed[name] if name in self._changed else self._run.ledger.state.get(name)

    def handle(self, identity: bytes, body: bytes, result: bytes | None = None) -> None:
        shell = self._shell
        partitions = shell.world.oracle.partitions()
        effects = handle(
            shell.group, shell.partition, identity, body, self._look, partitions, result
        )
        self._changed.update(effects.state)
        self._outgoing += effects.outputs
        self.handled += 1

    def done(self, failure: FailedMessage | None) -> HandlerDone:
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
