"""Which kind of call a handler gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...core.consumer.work import RunHandler
from ...shells.tables.session import Session
from ..effects.calls import EffectDesk
from ..effects.desk import LendingDesk
from .call import Call, Consumer
from .call_async import AwaitedCall, AwaitTopic
from .call_keyed import KeyedCall
from .carry import Carry
from .keyed_state import check_state_kind
from .threads import HandlerThreads
from .unit_of_work import FindTopic


@dataclass(frozen=True, slots=True)
class TopicFinders:
    """How handlers learn partition counts: plain ones wait; in an event loop nothing may block.

    Without the last two, `blocking` never takes long and is used for all.
    """

    blocking: FindTopic
    at_once: FindTopic | None = None  # 0 for a topic that must be waited for ...
    awaited: AwaitTopic | None = None  # ... like this


def make_call(
    consumer: Consumer,
    run: RunHandler,
    find: TopicFinders,
    carry: Carry,
    threads: HandlerThreads,
    sink: Session | None = None,
    desk: EffectDesk | None = None,
) -> Call:
    """Return the call of a handler that carries out `run`; `desk` is where it asks for effects.

    Raises StateMismatch if the ledger holds another kind of state than the handler keeps.
    """
    shape = consumer.shape
    if run.private:  # its offsets are of another partition; what waits for the main one stays
        carry = replace(carry, alone_below=0, results={})
    if not carry.state_checked:
        check_state_kind(run.ledger, by_key=shape.by_key)
        carry.state_checked = True
    if desk is not None and sink is not None:
        desk = LendingDesk(desk, sink)
    find_topic, await_topic = find.blocking, None
    if shape.is_async and find.at_once is not None:
        find_topic, await_topic = find.at_once, find.awaited
    if shape.by_key:
        return KeyedCall(consumer, run, find_topic, carry, threads, await_topic, desk)
    if shape.is_async or shape.batch_size:
        return AwaitedCall(consumer, run, find_topic, carry, await_topic, sink, desk)
    return Call(consumer, run, find_topic, sink, desk)
