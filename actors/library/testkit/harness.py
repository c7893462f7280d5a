"""`Harness`: a user's handlers in a test, with a real broker and real ledgers in memory.

    harness = Harness(app)
    harness.send("orders", {"cents": 250}, id="o-1", key="alice")
    harness.drain()
    assert harness.state("billing") == {"alice": 250}
    assert [m.value for m in harness.sent("invoices")] == [{"order": "o-1", "cents": 250}]

Broker, producer and consumers are the cores of production on an in-memory disk; only sockets,
threads and waiting are left out, so a test takes milliseconds and does the same every time.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from typing import Any

from ...core.consumer.effect_work import EffectHeld
from ...core.consumer.work import ResolveTopic, RunHandler, TopicResolved
from ...errors import OnceMQError, SinkUnavailable
from ...storage.log import FencedLog
from ...storage.memory import MemoryDisk
from ..app import App
from ..consuming.actor import ConsumerActor, LedgerDoor
from ..consuming.topic_book import TopicBook
from ..handling.call import Call, Consumer
from ..handling.call_kinds import TopicFinders, make_call
from ..handling.state import shown_state
from ..ledgers.files import LedgerFiles, ledger_directory
from ..messages.message import Message, messages_in
from ..producing.acks import Ack
from ..sinks.opening import open_sink
from .actors import LocalBroker, LocalProducer, create_topic
from .calls import LocalCalls
from .checks import check_kinds, complaints
from .crash_steps import (
    AFTER_HANDLER,
    BEFORE_HANDLER,
    STEPS,
    Crash,
    CrashSteps,
    WatchedDesk,
    WatchedEndpoint,
    WatchedEvents,
    WatchedLedger,
    watched_sink,
)
from .effects import HarnessEffects
from .network import LocalClock, LocalLoop, LocalNetwork, draw
from .outside_effects import OutsideEffect, OutsideEffects

PRODUCER = "harness"  # who sends without an id
STATE = "state"
DATA = "data"
_OWNER: dict[str, str | int] = {"host": "memory", "pid": 0}


class Harness:
    """Runs the consumers of an App in memory. Belongs to one thread."""

    def __init__(
        self, app: App, *, partitions: Mapping[str, int] | None = None, audit: bool = True
    ) -> None:
        """Start a broker and make the topics in `partitions`; others get one partition.

        With `audit` it is noted what handlers do outside of `tx` (outside_effects.py).
        """
        self._app = app
        self._disk = MemoryDisk()
        self._clock = LocalClock()
        self._steps = CrashSteps()
        self._events = WatchedEvents(self._steps)
        self._audit = OutsideEffects() if audit else None
        self._calls: deque[tuple[ConsumerActor, Call]] = deque()
        self._handlers = LocalCalls()
        weakref.finalize(self, self._handlers.close)
        self._turning = threading.Lock()
        self._call: Call | None = None
        self._holds_calls = False
        self._actors: dict[tuple[str, str, int], ConsumerActor] = {}
        #: Effects of unknown outcome, and an operator's word about them.
        self.effects = HarnessEffects(self._disk, STATE, self._actors)
        self._start()
        for topic, count in (partitions or {}).items():
            create_topic(self._network, self._loop, topic, count)

    def _start(self) -> None:
        self._topics = TopicBook()
        self._network = LocalNetwork()
        self._loop = LocalLoop(self._clock)
        self._broker = LocalBroker(
            self._disk, DATA, self._network.broker, self._clock, self._events, owner=_OWNER
        )
        self._loop.add(self._broker)
        self._named = LocalProducer(PRODUCER, self._network, self._clock, self._events)
        self._anonymous = LocalProducer("", self._network, self._clock, self._events)
        for member in (self._named, self._anonymous, _Calls(self)):
            self._loop.add(member)

    # --- what a test calls -----------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any,
        *,
        id: str | bytes | None = None,  # noqa: A002 - the name that users know
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Ack:
        """Send one message and return its acknowledgement. No handler runs before `drain`.

        Raises what a producer's send and its result raise: ValueNotEncodable, IdConflict, ...
        """
        producer = self._named if id is None else self._anonymous
        return producer.send(self._loop, topic, value, id=id, key=key, headers=headers)

    def drain(self) -> None:
        """Run the handlers until every message is handled, committed and its outputs are stored.

        Dies and starts again wherever `crash_at` says. A message that fails at every attempt is
        parked, as in production: look at `sent("TOPIC.dead")`. For a consumer with `park=False` it
        raises HandlerFailed, with the handler's own error as cause; the offset has not moved, and
        the next `drain` tries again. While an effect of unknown outcome holds a partition it raises
        EffectUnknown, after all others are done.
        """
        while True:
            for consumer in self._app.consumers:
                self._add(consumer, 0)
            self._steps.armed = True
            try:
                self._loop.run_until(lambda: self._failed() is not None or self._all_idle())
            except Crash:
                self._steps.armed = False
                self.crash()
                continue
            finally:
                self._steps.armed = False
                failed = self._failed()
                for place, actor in list(self._actors.items()):
                    if actor.ended:
                        self._loop.remove(actor)
                        del self._actors[place]
            if failed is not None:
                raise failed
            self.effects.check()
            return

    def crash_at(self, *steps: str) -> None:
        """Let everything die when a consumer next comes to one of `steps`, without any: to each.

        That is the next `drain` or `assert_exactly_once`; each consumer dies once at each step, is
        started again and goes on. The steps are, in order: before_handler,
        after_handler_before_commit, after_append_before_sync, after_sync_before_outputs,
        after_outputs_before_ack, after_ack. Two are met only when named: after_intent_before_call and
        after_call_before_record, of effects. Raises ValueError for other names.
        """
        self._steps.ask(steps or STEPS)

    @property
    def crashes(self) -> list[tuple[str, str, str]]:
        """Where everything has died because `crash_at` said so: (group, topic, step), in order."""
        return list(self._steps.met)

    @property
    def outside_effects(self) -> list[OutsideEffect]:
        """What handlers did outside of `tx` so far: files, connections, programs."""
        return [] if self._audit is None else list(self._audit.found)

    def assert_exactly_once(self, *, allow: Collection[str] = ()) -> None:
        """Drain, dying at every step at which a consumer has not died yet; then look at it all.

        Send first and call this instead of `drain`; assertions of yours come after it: they see an
        effect outside of `tx` twice. Raises AssertionError if a message is not processed, an output
        not stored exactly once, or a handler did something outside of `tx` of a kind ("file",
        "connection", "program") that is not in `allow`; and what `drain` raises.
        """
        check_kinds(allow)
        self._steps.ask_for_rest()
        self.drain()
        found = list(complaints(self._broker, self._actors, self.outside_effects, allow))
        if found:
            raise AssertionError("\n".join(["not exactly once:", *found]))

    def close(self) -> None:
        """End what handlers have left running, and let go of the databases of sinks."""
        self._handlers.close()
        for place, actor in list(self._actors.items()):
            if actor.sink is not None:
                actor.kill()
                self._loop.remove(actor)
                del self._actors[place]

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self, group: str, topic: str | None = None) -> dict[Any, Any]:
        """Return what the group has in tx.state, of one topic or of all that it consumes.

        With state_by="key" it is one dict for each message key; the key is None for messages
        without one.

        Raises OnceMQError if two partitions hold the same key.
        """
        merged: dict[Any, Any] = {}
        for (of_group, of_topic, partition), actor in self._actors.items():
            if of_group != group or topic not in {None, of_topic}:
                continue
            for key, value in shown_state(actor.core.ledger.state).items():
                if key in merged:
                    raise OnceMQError(
                        f"{key!r} is in the state of several partitions; one is "
                        f"{of_topic}/{partition}",
                        hint="ask for one topic, or give the messages keys",
                    )
                merged[key] = value
        return merged

    def sent(self, topic: str) -> list[Message]:
        """Return all messages of a topic, in order of partition and offset."""
        known = self._broker.core.state.topics.by_name.get(topic)
        if known is None:
            return []
        found: dict[int, list[Message]] = {}
        for stored in self._broker.stored(known.number):
            found.setdefault(stored.partition, []).extend(messages_in(topic, stored))
        return [message for partition in sorted(found) for message in found[partition]]

    def crash(self) -> None:
        """End broker, producers and consumers as a power cut would, and start them again.

        Consumers come back at the next `drain` or `state`. Nothing acknowledged is lost.
        """
        self._handlers.close()
        for actor in self._actors.values():
            actor.kill()
        self._actors.clear()
        self._calls.clear()
        self._broker.kill()
        self._start()
        for consumer in self._app.consumers:
            self._add(consumer, 0)
        self._holds_calls = True  # a handler that ran now would run outside of any `drain`
        try:
            self._loop.run_until(
                lambda: all(actor.core.phase == "running" for actor in self._actors.values())
            )
        finally:
            self._holds_calls = False

    # --- Host ------------------------------------------------------------------------------------

    def start_call(self, actor: ConsumerActor, run: RunHandler) -> None:
        """Queue a call: it is carried out between two turns."""
        find = TopicFinders(lambda topic: self._find_topic(actor, topic))
        desk = WatchedDesk(
            actor,
            self._loop.run_until,
            self._turning,
            lambda step: self._steps.visit(actor.place, step),
        )
        threads = self._handlers.threads
        call = make_call(actor.consumer, run, find, actor.carry, threads, actor.sink, desk)
        self._calls.append((actor, call))

    def cut_call(self, actor: ConsumerActor) -> None:
        """Nothing: time stands still while a handler runs."""

    def topic_found(self, actor: ConsumerActor, partitions: int) -> None:
        """Start the consumers of the other partitions."""
        for partition in range(1, partitions):
            self._add(actor.consumer, partition)

    def topic_resolved(self, resolved: TopicResolved) -> None:
        """Note a topic that a handler waits for."""
        self._topics.learn(resolved)

    def standing_by(self, actor: ConsumerActor, owner: str) -> None:
        """Nothing: after a crash the lease of the dead owner is waited for."""

    def effect_held(self, actor: ConsumerActor, held: EffectHeld) -> None:
        """Nothing: `drain` says so at its end."""

    def sink_away(self, actor: ConsumerActor, error: SinkUnavailable) -> None:
        """End the drain: a test is not kept waiting for a database."""
        actor.fail(error)

    # --- inside ----------------------------------------------------------------------------------

    def _add(self, consumer: Consumer, partition: int) -> None:
        place = (consumer.group, consumer.topic, partition)
        if place in self._actors:
            return

        def visit(step: str) -> None:
            self._steps.visit(place, step)

        def open_log(*arguments: Any, **options: Any) -> FencedLog:
            log = WatchedLedger.open(*arguments, **options)
            assert isinstance(log, WatchedLedger)
            log.visit = visit
            return log

        endpoint = WatchedEndpoint(self._network.connect(), visit)
        ledger: LedgerDoor
        if consumer.sink is not None:
            ledger = open_sink(consumer.sink, place, at=watched_sink(visit))
        else:
            directory = ledger_directory(STATE, *place)
            ledger = LedgerFiles(self._disk, directory, _OWNER, draw=draw, open_log=open_log)
        actor = ConsumerActor(
            consumer,
            partition,
            "memory",
            transport=endpoint,
            clock=self._clock,
            events=self._events,
            ledger=ledger,
            host=self,
            label="harness",
            reopen=endpoint.reopen,
        )
        self._actors[place] = actor
        self._loop.add(actor)

    def _failed(self) -> BaseException | None:
        for actor in self._actors.values():
            if actor.error is not None:
                return actor.error
        return None

    def _all_idle(self) -> bool:
        """Whether every consumer has handled all that is stored."""
        topics = self._broker.core.state.topics
        for (_, topic, partition), actor in self._actors.items():
            known = topics.by_name.get(topic)
            if known is None or actor.core.idle_since_ms is None:
                return False
            end = known.partition(partition).end_offset
            if actor.core.ledger.next_offset != end and not self.effects.holding(actor):
                return False
        return True

    def carry_out_next(self) -> bool:
        """Carry out one waiting call; calls never nest."""
        if not self._calls or self._call is not None or self._holds_calls:
            return False
        actor, call = self._calls.popleft()
        self._call = call
        try:
            self._steps.visit(actor.place, BEFORE_HANDLER)
            with nullcontext() if self._audit is None else self._audit.watched():
                done = self._handlers.carry_out(call, actor.place)
            self._steps.visit(actor.place, AFTER_HANDLER)
        except OnceMQError as error:  # of the sink
            actor.fail(error)
            return True
        finally:
            self._call = None
        actor.post(done)
        return True

    def _find_topic(self, actor: ConsumerActor, topic: str) -> int:
        with self._turning:  # handlers may run in several threads, the world turns in one
            count = self._topics.known(topic)
            if count is None:
                self._topics.check_new(topic)
                actor.post(ResolveTopic(topic))
                found: list[int] = []

                def resolved() -> bool:
                    found.extend(filter(None, [self._topics.known(topic)]))
                    return bool(found)

                self._loop.run_until(resolved)
                count = found[0]
            return count


class _Calls:
    """The handler calls of a harness as a member of its loop."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """Carry out one call."""
        del timeout_ms
        return self._harness.carry_out_next()

    def time_left_ms(self) -> int:
        """Never the first to be waited for."""
        return 1_000
