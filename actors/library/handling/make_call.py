"""Of what the call of a handler is composed: a runner for its shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ...core.consumer.work import RunHandler
from ...shells.tables.session import Session
from ..effects.desk import EffectDesk
from ..effects.effects import Effects
from .by_key import ByKey
from .call import Call, Consumer, Handled, Runner
from .carry import Carry
from .failures import Failures
from .in_order import AwaitTopic, InLists, InOrder, OneByOne, Strategy
from .incoming import Place, first_of
from .state import StateView, check_state_kind
from .threads import HandlerThreads
from .unit_of_work import FindTopic, UnitOfWork

if TYPE_CHECKING:
    from ..sinks.awaited import Statements

IN_LISTS = "a handler of lists cannot use effects: an effect belongs to one message"


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
    find_topic, await_topic = find.blocking, None
    if shape.is_async and find.at_once is not None:
        find_topic, await_topic = find.at_once, find.awaited
    why_not = IN_LISTS if shape.batch_size else ""
    known = list(run.ledger.effects)  # here and now: the ledger changes during the call
    begin_effects = partial(Effects, run, desk, why_not, known, awaited=shape.is_async, sink=sink)
    effects = begin_effects()
    failures = Failures(consumer, run, effects)
    if run.deaths:
        return Call(run, Condemned(run, failures), is_async=False)
    runner: Runner
    if shape.by_key:
        runner = ByKey(
            consumer,
            run,
            find_topic=find_topic,
            await_topic=await_topic,
            begin_effects=begin_effects,
            carry=carry,
            failures=failures,
            threads=threads,
        )
        return Call(run, runner, is_async=shape.is_async)
    limits = run.ledger.limits
    state = StateView(run.ledger, limits)
    unit = UnitOfWork(
        state, find_topic, sink, effects, of_lists=shape.batch_size > 0, serializer=shape.serializer
    )
    strategy: Strategy = OneByOne(consumer, unit, limits.commit_messages_max)
    if shape.is_async or shape.batch_size:
        statements = _statements(unit, sink) if shape.is_async and sink is not None else None
        strategy = InLists(
            consumer, unit, limits.commit_messages_max, carry, await_topic, statements
        )
    runner = InOrder(
        consumer,
        run,
        unit,
        strategy,
        effects=effects,
        carry=carry,
        failures=failures,
        sink=sink,
    )
    return Call(run, runner, is_async=shape.is_async)


def _statements(unit: UnitOfWork, sink: Session) -> Statements:
    from ..sinks.awaited import Statements  # asyncio, which plain handlers never load

    statements = Statements(sink)
    unit.await_sql(statements)
    return statements


class Condemned:
    """The runner for a message that has killed too many processes: its handler is not called."""

    def __init__(self, run: RunHandler, failures: Failures) -> None:
        self._run = run
        self._failures = failures

    def cut(self) -> None:
        """Nothing: there is one message."""

    async def work_through(self, place: Place) -> Handled:
        return Handled(failure=self._failures.crashed(first_of(self._run, place)))
