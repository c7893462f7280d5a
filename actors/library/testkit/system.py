"""The system under a `Harness`: broker, producers and consumers in memory, turned in one thread.

The harness (harness.py) is what a test sees of it.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections import deque
from contextlib import nullcontext, suppress
from typing import Any

from ...core.consumer.effect_work import EffectAnswer, EffectHeld
from ...core.consumer.work import ResolveTopic, RunHandler, TopicResolved
from ...errors import BadSink, EffectUnknown, OnceMQError, SinkUnavailable
from ...runtime.process import draw
from ...shells.broker import BrokerShell
from ...shells.ledger.files import LedgerFiles, ledger_directory
from ...storage.log import FencedLog
from ...storage.memory import MemoryDisk
from ..app import App
from ..consuming.actor import ConsumerActor, Ledger
from ..consuming.topic_book import TopicBook
from ..handling.call import Call, Consumer
from ..handling.make_call import TopicFinders, make_call
from ..sinks.address import SQLITE
from ..sinks.opening import open_sink
from ..sinks.operators import open_office
from ..sinks.reading import address_of
from .actors import LocalProducer
from .calls import LocalCalls
from .crash_steps import (
    AFTER_HANDLER,
    BEFORE_HANDLER,
    Crash,
    CrashSteps,
    WatchedDesk,
    WatchedEndpoint,
    WatchedEvents,
    WatchedLedger,
    watched_sink,
)
from .network import LocalClock, LocalLoop, LocalNetwork
from .outside_effects import OutsideEffects

# In the row of a ledger's owner: a Harness made it, and perhaps the whole file with it.
MARK, OWN_FILE, OWN_LEDGER = "harness", "file", "ledger"
PRODUCER = "harness"  # who sends without an id
STATE = "state"
DATA = "data"
_OWNER: dict[str, str | int] = {"host": "memory", "pid": 0}


class LocalSystem:
    """Turns the actors of an App and calls its handlers between two turns."""

    def __init__(self, app: App, *, audit: bool) -> None:
        """Start a broker. With `audit` what handlers do outside of `tx` is noted."""
        self._app = app
        self.disk = MemoryDisk()
        self._clock = LocalClock()
        self.steps = CrashSteps()
        self._events = WatchedEvents(self.steps)
        self.audit = OutsideEffects() if audit else None
        self._calls: deque[tuple[ConsumerActor, Call]] = deque()
        self._handlers = LocalCalls()
        weakref.finalize(self, self._handlers.close)
        self._turning = threading.Lock()
        self._call: Call | None = None
        self._holds_calls = False
        self.actors: dict[tuple[str, str, int], ConsumerActor] = {}
        # By sink: how the rows of this system's ledgers are marked.
        self._marks = _cleared(app)
        _systems.add(self)
        # Effects that the test has spoken about; no id comes twice.
        self.resolved: set[str] = set()
        self._start()

    def _start(self) -> None:
        self._topics = TopicBook()
        self.network = LocalNetwork()
        self.loop = LocalLoop(self._clock)
        self.broker = BrokerShell(
            self.disk,
            DATA,
            owner=_OWNER,
            bind=lambda: self.network.broker,
            clock=self._clock,
            events=self._events,
            entropy=draw,
            snapshot_every_bytes=None,
        )
        self.loop.add(self.broker)
        self.named = LocalProducer(PRODUCER, self.network, self._clock, self._events)
        self.anonymous = LocalProducer("", self.network, self._clock, self._events)
        for member in (self.named, self.anonymous, _Calls(self)):
            self.loop.add(member)

    def drain(self) -> None:
        """Run the handlers until nothing is left to do; die and start again as `steps` says."""
        while True:
            for consumer in self._app.consumers:
                self._add(consumer, 0)
            self.steps.armed = True
            try:
                self.loop.run_until(lambda: self._failed() is not None or self._all_idle())
            except Crash:
                self.steps.armed = False
                self.crash()
                continue
            finally:
                self.steps.armed = False
                failed = self._failed()
                for place, actor in list(self.actors.items()):
                    if actor.ended:
                        self.loop.remove(actor)
                        del self.actors[place]
            if failed is not None:
                raise failed
            held = self.held()
            if held:
                raise EffectUnknown(
                    f"unknown whether effect {held[0]} happened",
                    hint="resolve it: harness.effects.done(ID, VALUE) or harness.effects.retry(ID)",
                )
            return

    def crash(self) -> None:
        """End all processes as a power cut would, and start them again."""
        self._handlers.close()
        for actor in self.actors.values():
            actor.kill()
        self.actors.clear()
        self._calls.clear()
        self.broker.close(clean=False)
        self._start()
        for consumer in self._app.consumers:
            self._add(consumer, 0)
        self._holds_calls = True  # a handler that ran now would run outside of any `drain`
        try:
            self.loop.run_until(
                lambda: all(actor.core.phase == "running" for actor in self.actors.values())
            )
        finally:
            self._holds_calls = False

    def close(self) -> None:
        """Also lets go of the databases of sinks."""
        self._handlers.close()
        for place, actor in list(self.actors.items()):
            if actor.sink is not None:
                self._let_go(place, actor)

    def make_way(self, shown: str, groups: set[str]) -> None:
        """A newer system has the same groups in a database: let go of it."""
        for place, actor in list(self.actors.items()):
            if actor.sink is not None and actor.sink.shown == shown and place[0] in groups:
                self._let_go(place, actor)

    def _let_go(self, place: tuple[str, str, int], actor: ConsumerActor) -> None:
        actor.kill()
        self.loop.remove(actor)
        del self.actors[place]

    def holding(self, actor: ConsumerActor) -> list[str]:
        return [one for one in actor.core.held_effects if one not in self.resolved]

    def held(self) -> list[str]:
        """In order of group, topic, partition."""
        return [one for _, actor in sorted(self.actors.items()) for one in self.holding(actor)]

    # --- Host ------------------------------------------------------------------------------------

    def start_call(self, actor: ConsumerActor, run: RunHandler) -> None:
        """The call is carried out between two turns."""
        find = TopicFinders(lambda topic: self._find_topic(actor, topic))
        desk = WatchedDesk(
            actor,
            self.loop.run_until,
            self._turning,
            lambda step: self.steps.visit(actor.place, step),
        )
        threads = self._handlers.threads
        call = make_call(actor.consumer, run, find, actor.carry, threads, actor.sink, desk)
        self._calls.append((actor, call))

    def cut_call(self, actor: ConsumerActor) -> None:
        """Time stands still while a handler runs."""

    def topic_found(self, actor: ConsumerActor, partitions: int) -> None:
        for partition in range(1, partitions):
            self._add(actor.consumer, partition)

    def topic_resolved(self, _: ConsumerActor, resolved: TopicResolved, /) -> None:
        self._topics.learn(resolved)

    def standing_by(self, actor: ConsumerActor, owner: str) -> None:
        """Nothing: after a crash the lease of the dead owner is waited for."""

    def effect_answered(self, actor: ConsumerActor, answer: EffectAnswer) -> None:
        actor.effect_answers.put(answer)

    def effect_held(self, actor: ConsumerActor, held: EffectHeld) -> None:
        """Nothing: `drain` says so at its end."""

    def sink_away(self, actor: ConsumerActor, error: SinkUnavailable) -> None:
        """End the drain: a test is not kept waiting for a database."""
        actor.end(error)

    # --- inside ----------------------------------------------------------------------------------

    def _add(self, consumer: Consumer, partition: int) -> None:
        place = (consumer.group, consumer.topic, partition)
        if place in self.actors:
            return

        def visit(step: str) -> None:
            self.steps.visit(place, step)

        def open_log(*arguments: Any, **options: Any) -> FencedLog:
            log = WatchedLedger.open(*arguments, **options)
            assert isinstance(log, WatchedLedger)
            log.visit = visit
            return log

        endpoint = WatchedEndpoint(self.network.connect(), visit)
        ledger: Ledger
        if consumer.sink is not None:
            marks = {MARK: self._marks[consumer.sink]}
            ledger = open_sink(consumer.sink, place, at=watched_sink(visit), marks=marks)
        else:
            directory = ledger_directory(STATE, *place)
            ledger = LedgerFiles(self.disk, directory, _OWNER, draw=draw, open_log=open_log)
        actor = ConsumerActor(
            consumer,
            partition,
            endpoint="memory",
            transport=endpoint,
            clock=self._clock,
            events=self._events,
            entropy=draw,
            ledger=ledger,
            host=self,
            label="harness",
        )
        self.actors[place] = actor
        self.loop.add(actor)

    def _failed(self) -> BaseException | None:
        for actor in self.actors.values():
            if actor.error is not None:
                return actor.error
        return None

    def _all_idle(self) -> bool:
        topics = self.broker.core.state.topics
        for (_, topic, partition), actor in self.actors.items():
            known = topics.by_name.get(topic)
            if known is None or actor.core.idle_since_ms is None:
                return False
            end = known.partition(partition).end_offset
            if actor.core.ledger.next_offset != end and not self.holding(actor):
                return False
        return True

    def carry_out_next(self) -> bool:
        """Carry out one waiting call; calls never nest."""
        if not self._calls or self._call is not None or self._holds_calls:
            return False
        actor, call = self._calls.popleft()
        self._call = call
        try:
            self.steps.visit(actor.place, BEFORE_HANDLER)
            with nullcontext() if self.audit is None else self.audit.watched():
                done = self._handlers.carry_out(call, actor.place)
            self.steps.visit(actor.place, AFTER_HANDLER)
        except OnceMQError as error:  # of the sink
            actor.end(error)
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

                self.loop.run_until(resolved)
                count = found[0]
            return count


# Those of this process. A test that does not close its Harness must not keep the next one from
# the database.
_systems: weakref.WeakSet[LocalSystem] = weakref.WeakSet()


def _cleared(app: App) -> dict[str, str]:
    """Forget what earlier systems have left in the sinks of an app; return its marks by sink."""
    groups: dict[str, set[str]] = {}
    for consumer in app.consumers:
        if consumer.sink is not None:
            groups.setdefault(consumer.sink, set()).add(consumer.group)
    return {sink: _clear(sink, names) for sink, names in groups.items()}


def _clear(sink: str, groups: set[str]) -> str:
    """Return how the ledgers of `groups` are marked from now on.

    A file that a Harness has made is removed; of a database that was there before, only the ledgers
    of a Harness are. Raises BadSink for a ledger of real consumers, and while a Harness of another
    process uses it.
    """
    address = address_of(sink)
    for other in list(_systems):
        other.make_way(address.shown, groups)
    if address.kind == SQLITE and not os.path.exists(address.target):
        return OWN_FILE
    with open_office(sink) as office:
        rows = {place: row for place, row in office.rows().items() if row.owner}
        whole = bool(rows) and all(row.owner.get(MARK) == OWN_FILE for row in rows.values())
        mine = {place: row for place, row in rows.items() if place[0] in groups}
        for place, row in mine.items():
            if MARK not in row.owner:
                raise BadSink(
                    f"{address.shown} holds the ledger of group {place[0]!r} of real consumers",
                    hint="give the tests a database of their own",
                )
            if not office.owner_is_dead(place):
                raise BadSink(
                    f"a Harness of process {row.owner.get('pid')} uses {address.shown}",
                    hint="give each process of tests a database of its own",
                )
        if not mine:
            return OWN_FILE if whole else OWN_LEDGER
        if not whole or not all(office.owner_is_dead(place) for place in rows):
            office.forget(mine.values())
            return OWN_LEDGER
    for name in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(address.target + name)
    shutil.rmtree(f"{address.target}-oncemq", ignore_errors=True)
    return OWN_FILE


class _Calls:
    """The handler calls of a system as a member of its loop."""

    def __init__(self, system: LocalSystem) -> None:
        self._system = system

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        del timeout_ms
        return self._system.carry_out_next()

    def time_left_ms(self) -> int:
        return 1_000
