"""Effects under one grant: whether a function may be called, and who says what became of a call.

Theory of operation. The record of an intent is synced before the handler hears that it may call.
So after a crash the ledger knows of every call that may have been made; one without an outcome is
*unknown*. What then happens is the policy of the handler's own call: `retry` makes a new intent
under the next number, `park` and `ask` answer that the effect is held. The handler then fails, and
its message is parked, or waits (handling.py) until an operator has spoken about exactly that call.

An order of an operator becomes a record like any other, and is forgotten where it lay only when
that record is synced. Numbers make it count once: it names one call, and that call is over then.
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
    """Decides about effects. What it decides is in the ledger; here is only when to look again."""

    def __init__(self, ledger: Ledger, member: Member, epoch: int) -> None:
        self._ledger = ledger
        self._member = member
        self._epoch = epoch
        # What the running handler has said while the disk was full.
        self._waiting: list[EffectWanted | EffectTold] = []
        # When orders are looked for next.
        self._look_at_ms = 0

    # --- what handlers say -----------------------------------------------------------------------

    def said(
        self,
        event: EffectWanted | EffectTold,
        run: RunHandler | None,
        topic_id: bytes,
        now_ms: int,
        out: Outcome,
        *,
        full: bool,
    ) -> None:
        """Take what a handler says of a message of an input; while the disk is `full` it waits."""
        if run is None or not belongs(event, run):
            if isinstance(event, EffectWanted) or event.waits:  # nobody waits for ever
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
        """Return what waited for room on the disk, in order."""
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
        """Write down that the call is about to be made; it may be made after the sync."""
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
        """Write down what is known of a call."""
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

    # --- what operators say ----------------------------------------------------------------------

    def tell_held(self, topic_id: bytes, offset: int, out: Outcome) -> None:
        """A message is held: tell the user for which effects."""
        for one in self._ledger.effects.of_message(topic_id, offset):
            if one.unresolved:
                why = (one.value or DIED).decode(errors="replace")
                out.work_after_sync.append(EffectHeld(self.id_of(one), one.key, why))
        self._look_at_ms = 0

    @property
    def look_at_ms(self) -> int:
        """When `look` has something to do, while something is held."""
        return self._look_at_ms

    def look(self, now_ms: int, out: Outcome) -> None:
        """Something is held: ask for orders when it is time."""
        if now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + EFFECT_LOOK_MS
            out.work.append(LookForOrders(self._unresolved_ids()))

    def holding(self, inputs: list[Input]) -> list[str]:
        """Return the calls that the first messages of held inputs wait for a word about."""
        heads = {its.topic_id: its.windows[0].offset_of(0) for its in inputs if its.held}
        return [
            self.id_of(one)
            for one in self._ledger.effects
            if one.unresolved and heads.get(one.topic_id) == one.offset
        ]

    def ordered(self, order: EffectOrder, now_ms: int, out: Outcome) -> OpenEffect | None:
        """Take an operator's word; return the effect that it settles, None if it names none."""
        for one in self._ledger.effects:
            if one.unresolved and self.id_of(one) == order.effect_id:
                self._end(one, order.how, order.encoding, order.value, now_ms, out)
                left = tuple(i for i in self._unresolved_ids() if i != order.effect_id)
                out.work_after_sync.append(KeepOrders(left))
                return one
        return None

    def forget_orders(self, out: Outcome) -> None:
        """At the start: what lies there about calls that are over counts no more."""
        if self._ledger.started is not None:
            out.work.append(KeepOrders(self._unresolved_ids()))

    def _unresolved_ids(self) -> tuple[str, ...]:
        return tuple(self.id_of(one) for one in self._ledger.effects if one.unresolved)

    def id_of(self, one: OpenEffect) -> str:
        """Return the name of a call for people."""
        return id_in(self._ledger, self._member.place, self._member.private_topic, one)

    def _fields(self, topic_id: bytes, offset: int, name: str, number: int) -> dict[str, Any]:
        fields = self._member.fields(epoch=self._epoch, offset=offset, name=name, number=number)
        started = self._ledger.started
        if started is None or topic_id != started.topic_id:
            fields["topic"] = self._member.private_topic
        return fields


def id_in(ledger: Ledger, place: tuple[str, str, int], private: str, one: OpenEffect) -> str:
    """Return the name of a call: `place` is the ledger's, `private` the group's private topic."""
    group, topic, partition = place
    started = ledger.started
    mine = started is not None and one.topic_id == started.topic_id
    where = topic if mine else private
    return effect_id(group, where, partition, one.offset, one.name, one.number)
