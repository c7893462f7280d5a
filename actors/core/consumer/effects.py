"""Effects under one grant: may a function be called, and what is known of the outcome.

Theory of operation. The record of an intent is synced before the handler learns that it may call
(write-ahead logging). So after a crash the ledger knows of every call that may have happened; a call
without an outcome is *unknown*. The policy of the handler's own call decides about it: `retry`
makes a new intent under the next number, `park` and `ask` answer that the effect is held. The
handler then fails, and its message is parked, or waits (handling.py) for an operator's order about
exactly that call.

An order of an operator becomes a record like any other, and its file is deleted only after the sync
of that record. The number of the call makes an order count once: it ends the call that it names.
"""

from __future__ import annotations

from typing import Any

from ...ids import effect_id
from ...limits import EFFECT_LOOK_MS
from ...outcome import Outcome
from ...records import EffectEnded, EffectIntended
from .effect_work import (
    CALL,
    HELD,
    NOTED,
    RECORDED,
    STALE,
    EffectAnswer,
    EffectHeld,
    EffectOrder,
    EffectTold,
    EffectWanted,
    KeepOrders,
    LookForOrders,
    belongs,
)
from .grant import Member
from .inputs import Input
from .ledger import Ledger
from .open_effects import AGAIN, ANSWERED, RETRY, RUNNING, UNKNOWN, OpenEffect
from .work import RunHandler

DIED = b"its process ended between the call and the record"


class Effects:
    """Decides about effects. Decisions live in the ledger; only timers and waiting events here."""

    def __init__(self, ledger: Ledger, member: Member, epoch: int) -> None:
        self._ledger = ledger
        self._member = member
        self._epoch = epoch
        # Events of the running handler that came while the disk was full.
        self._waiting: list[EffectWanted | EffectTold] = []
        self.look_at_ms = 0  # of the next look for orders

    # --- events of handlers ----------------------------------------------------------------------

    def reported(
        self,
        event: EffectWanted | EffectTold,
        run: RunHandler | None,
        topic_id: bytes,
        now_ms: int,
        out: Outcome,
        *,
        full: bool,
    ) -> None:
        """Take a handler's event about a message of an input; hold it while the disk is `full`."""
        if run is None or not belongs(event, run):
            if isinstance(event, EffectWanted) or event.waits:  # else its handler waits for ever
                out.work.append(EffectAnswer(event.offset, event.name, STALE))
            return
        if full:
            self._waiting.append(event)
            return
        if isinstance(event, EffectWanted):
            self._wanted(event, topic_id, now_ms, out)
            return
        known = self._ledger.effects.find(topic_id, event.offset, event.name)
        if known is not None and known.number == event.number and known.how == RUNNING:
            self._end(known, event.how, event.encoding, event.value, now_ms, out)
        if event.waits:
            out.work_after_sync.append(EffectAnswer(event.offset, event.name, NOTED, event.number))

    def take_waiting(self) -> list[EffectWanted | EffectTold]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _wanted(self, wanted: EffectWanted, topic_id: bytes, now_ms: int, out: Outcome) -> None:
        known = self._ledger.effects.find(topic_id, wanted.offset, wanted.name)
        if known is not None and known.recorded:
            answer = EffectAnswer(
                wanted.offset,
                wanted.name,
                RECORDED,
                known.number,
                encoding=known.encoding,
                value=known.value,
            )
            out.work.append(answer)
        elif known is None or not known.unresolved or wanted.policy == RETRY:
            self._intend(wanted, topic_id, known.number + 1 if known else 1, now_ms, out)
        else:
            why = known.value if known.how == UNKNOWN else DIED
            if known.how != UNKNOWN or known.policy != wanted.policy:
                self._end(known, UNKNOWN, 0, why, now_ms, out, policy=wanted.policy)
            answer = EffectAnswer(
                wanted.offset, wanted.name, HELD, known.number, self.id_of(known), value=why
            )
            out.work_after_sync.append(answer)

    def _intend(
        self, wanted: EffectWanted, topic_id: bytes, number: int, now_ms: int, out: Outcome
    ) -> None:
        """Record that the call is about to happen; the handler may make it after the sync."""
        offset, name = wanted.offset, wanted.name
        out.appends.append(
            EffectIntended(
                self._epoch, topic_id, offset, wanted.key, name, number, wanted.policy, now_ms
            )
        )
        out.work_after_sync.append(EffectAnswer(offset, name, CALL, number))
        fields = self._fields(topic_id, offset, name, number)
        out.events.append(("effect.intended", {**fields, "policy": wanted.policy}))

    def _end(
        self,
        known: OpenEffect,
        how: str,
        encoding: int,
        value: bytes,
        now_ms: int,
        out: Outcome,
        *,
        policy: str = "",
    ) -> None:
        offset, name, number = known.offset, known.name, known.number
        policy = policy or known.policy
        out.appends.append(
            EffectEnded(
                self._epoch,
                known.topic_id,
                offset,
                name,
                number,
                how,
                policy,
                encoding,
                value,
                now_ms,
            )
        )
        fields = self._fields(known.topic_id, offset, name, number)
        if how == UNKNOWN:
            error = value.decode(errors="replace")
            out.events.append(("effect.unknown", {**fields, "policy": policy, "error": error}))
        elif how in {ANSWERED, AGAIN}:
            out.events.append(("effect.resolved", {**fields, "how": how}))
        else:
            out.events.append(("effect.done", {**fields, "how": how, "bytes": len(value)}))

    # --- orders of operators ---------------------------------------------------------------------

    def report_held(self, topic_id: bytes, offset: int, out: Outcome) -> None:
        for effect in self._ledger.effects.of_message(topic_id, offset):
            if effect.unresolved:
                why = (effect.value or DIED).decode(errors="replace")
                out.work_after_sync.append(EffectHeld(self.id_of(effect), effect.key, why))
        self.look_at_ms = 0

    def look(self, now_ms: int, out: Outcome) -> None:
        """Call it while a message is held."""
        if now_ms >= self.look_at_ms:
            self.look_at_ms = now_ms + EFFECT_LOOK_MS
            out.work.append(LookForOrders(self._unresolved_ids()))

    def holding(self, inputs: list[Input]) -> list[str]:
        heads = {s.topic_id: s.windows[0].offset_of(0) for s in inputs if s.held}
        return [
            self.id_of(effect)
            for effect in self._ledger.effects
            if effect.unresolved and heads.get(effect.topic_id) == effect.offset
        ]

    def ordered(self, order: EffectOrder, now_ms: int, out: Outcome) -> OpenEffect | None:
        """Take an operator's order; return the effect that it settles, None if it names none."""
        for effect in self._ledger.effects:
            if effect.unresolved and self.id_of(effect) == order.effect_id:
                self._end(effect, order.how, order.encoding, order.value, now_ms, out)
                left = tuple(i for i in self._unresolved_ids() if i != order.effect_id)
                out.work_after_sync.append(KeepOrders(left))
                return effect
        return None

    def forget_orders(self, out: Outcome) -> None:
        """Call it when the ledger opens."""
        if self._ledger.started is not None:
            out.work.append(KeepOrders(self._unresolved_ids()))

    def _unresolved_ids(self) -> tuple[str, ...]:
        return tuple(self.id_of(effect) for effect in self._ledger.effects if effect.unresolved)

    def id_of(self, effect: OpenEffect) -> str:
        return id_in(self._ledger, self._member.place, self._member.private_topic, effect)

    def _fields(self, topic_id: bytes, offset: int, name: str, number: int) -> dict[str, Any]:
        fields = self._member.fields(epoch=self._epoch, offset=offset, name=name, number=number)
        started = self._ledger.started
        if started is None or topic_id != started.topic_id:
            fields["topic"] = self._member.private_topic
        return fields


def id_in(ledger: Ledger, place: tuple[str, str, int], private: str, effect: OpenEffect) -> str:
    """Return the name of a call: `place` is the ledger's, `private` the group's private topic."""
    group, topic, partition = place
    started = ledger.started
    mine = started is not None and effect.topic_id == started.topic_id
    where = topic if mine else private
    return effect_id(group, where, partition, effect.offset, effect.name, effect.number)
