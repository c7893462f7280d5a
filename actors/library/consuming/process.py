"""The consumers of one process: one I/O thread for sockets, ledgers and leases, handlers in main.

    main thread                          I/O thread
    ----------                           ----------
    call.carry_out  <---- queue <------- RunHandler (out of a turn)
    HandlerDone     ----> inbox -------> posted before the next turn
    tx.effect       ----> inbox -------> EffectWanted; the handler waits for its answer

Handlers run in the main thread, so Ctrl-C reaches them, SQLite connections stay in one thread and
a handler that takes ten minutes keeps its lease, because the other thread renews it. One call is
carried out at a time in the process; the partitions take turns. Async handlers run in an event loop
of the main thread. How several messages of one call run at the same time: handling/by_key.py.

The process is one member of each group. A partition that the broker wants back, or that went to
another member while this one did not answer, ends its actor alone; a fresh one stands by for it,
and the other partitions do not notice. A process that owned the topic alone and was superseded has
been replaced as a whole: it ends Fenced (docs/GROUPS.md).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from dataclasses import replace

import zmq

from ...core.consumer.effect_work import EffectAnswer, EffectHeld, EffectTold, EffectWanted
from ...core.consumer.work import (
    Drain,
    GiveUp,
    HandlerDone,
    ResolveTopic,
    RunHandler,
    TopicResolved,
)
from ...errors import OnceMQError, SinkConflict, SinkUnavailable
from ...limits import DRAIN_S_DEFAULT, TOPIC_LOOKUP_MS
from ...ports import Events
from ...runtime.clock import SystemClock
from ...runtime.process import draw, own_label, stop_signals
from ...runtime.zmq_transport import DealerTransport
from ..effects.calls import command_about
from ..handling.call import Call, Consumer
from ..handling.make_call import TopicFinders, make_call
from ..handling.threads import HandlerThreads
from ..sinks.address import absolute_sink
from .actor import ConsumerActor
from .ledgers import ConsumerLedgers
from .main_thread import Answer, CallThread, LoopThread, PlainThread, WaitingDesk
from .sink_outages import SinkOutages
from .tally import Summary, Tally
from .topic_book import TopicBook
from .watcher import NotDrained, Watcher

LOOK_MS = 200  # how often deadlines of the process are looked at
SWITCH_INTERVAL_S = 0.0005

Question = ResolveTopic | EffectWanted | EffectTold  # of a handler that runs


class ConsumerProcess:
    """Runs consumers until told to stop. `run` belongs to the main thread."""

    def __init__(
        self,
        consumers: list[Consumer],
        *,
        broker: str,
        state: str,
        events: Events,
        until_idle_s: float | None = None,
        drain_s: float = DRAIN_S_DEFAULT,
        watcher: Watcher | None = None,
    ) -> None:
        """Keep ledgers in directory `state`; with `until_idle_s` end after so long without work."""
        self._endpoint = broker
        self._events = events
        self._until_idle_s = until_idle_s
        self._drain_s = drain_s
        self._watcher = watcher or Watcher()
        self._clock = SystemClock()
        self._topics = TopicBook()
        self._ledgers = ConsumerLedgers(os.path.abspath(state))
        self._member = draw()
        self._tally = Tally()
        self._told_standby: set[tuple[str, str, int]] = set()
        in_loop = any(consumer.shape.is_async for consumer in consumers)
        self._main: CallThread = (LoopThread if in_loop else PlainThread)(self._deliver)
        self._threads = HandlerThreads()
        # What the main thread has for actors. A deque: append and popleft are atomic.
        self._inbox: deque[tuple[ConsumerActor, Answer | Question]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # Of the I/O thread alone from here on, unless said otherwise.
        self._actors: dict[tuple[str, str, int], ConsumerActor] = {}
        self._transports: dict[ConsumerActor, DealerTransport] = {}
        self._open_calls: dict[ConsumerActor, Call] = {}
        self._away = SinkOutages()
        self._look_at_ms = 0
        self._told_silence = False
        self._drain_until: float | None = None
        # Set by signal handlers and by the main thread.
        self._stop_asked = False
        self._quit = False
        # Read by the main thread after the I/O thread has ended.
        self._error: BaseException | None = None
        for consumer in consumers:  # handlers may change the working directory
            sink = None if consumer.sink is None else absolute_sink(consumer.sink)
            self._add(replace(consumer, sink=sink), 0)

    # --- the main thread -------------------------------------------------------------------------

    def run(self) -> Summary:
        """Run until idle, stopped or failed; return the summary. Call it once.

        The first SIGTERM or SIGINT ends it in good order, a second one at once. Raises the error
        that ended a consumer (HandlerFailed, Fenced, LedgerNotHere, ...); `summary` is true then
        too. What was not committed has not happened.
        """
        # A handler that computes must not keep sockets and leases waiting for the default 5 ms.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        thread = threading.Thread(target=self._io_main, name="oncemq-consumer", daemon=True)
        with stop_signals(self._on_signal):
            thread.start()
            try:
                self._main.run()
            finally:
                self._threads.close()
                self._quit = True
                self._wake()
                thread.join()
                os.close(self._wake_read)
                os.close(self._wake_write)
        if self._error is not None:
            raise self._error
        return self.summary()

    def _deliver(self, actor: ConsumerActor, done: Answer | Question) -> None:
        self._inbox.append((actor, done))
        self._wake()

    def _on_signal(self, number: int) -> None:
        del number
        self._stop_asked = True
        self._wake()

    def _finders(self, actor: ConsumerActor) -> TopicFinders:
        def at_once(topic: str) -> int:
            count = self._topics.known(topic)
            if count is None:
                self._topics.check_new(topic)
            return count or 0

        def blocking(topic: str) -> int:
            count = at_once(topic)
            if not count:
                self._deliver(actor, ResolveTopic(topic))
                count = self._topics.wait(topic, TOPIC_LOOKUP_MS)
            return count

        async def awaited(topic: str) -> int:
            import asyncio

            return at_once(topic) or await asyncio.to_thread(blocking, topic)

        return TopicFinders(blocking, at_once, awaited)

    def summary(self) -> Summary:
        return self._tally.summary(list(self._actors.values()))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake_write, b"w")

    # --- the I/O thread --------------------------------------------------------------------------

    def _io_main(self) -> None:
        try:
            while not self._quit and (self._open_calls or self._live() or self._away):
                self._wait()
                while self._inbox:
                    self._post(*self._inbox.popleft())
                for actor in list(self._actors.values()):
                    actor.turn()
                self._look()
        except BaseException as error:  # noqa: BLE001 - told by `run`, in the main thread
            self._error = self._error or error
        finally:
            for actor in self._actors.values():
                actor.close()
                self._note_end(actor)
            for transport in self._transports.values():
                transport.close()
            self._main.end()

    def _live(self) -> list[ConsumerActor]:
        return [actor for actor in self._actors.values() if not actor.ended]

    def _post(self, actor: ConsumerActor, event: Answer | Question) -> None:
        """Take what the main thread has for an actor; None: its call was not carried out."""
        if event is None or isinstance(event, HandlerDone | OnceMQError):
            self._open_calls.pop(actor, None)
        if isinstance(event, OnceMQError):
            actor.end(event)
        elif event is not None:
            actor.post(event)

    def _wait(self) -> None:
        live = self._live()
        timeout = min([LOOK_MS, *(actor.time_left_ms() for actor in live)])
        if self._away:
            timeout = min(timeout, max(1, self._away.time_left_ms(self._clock.now_ms())))
        if self._inbox or timeout <= 0:
            timeout = 0
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        for actor in live:
            poller.register(self._transports[actor].socket, zmq.POLLIN)
        for what, _ in poller.poll(timeout):
            if what == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def _look(self) -> None:
        for actor in [actor for actor in self._actors.values() if actor.ended]:
            reason = actor.why_rejoin
            if not reason:
                self._note_end(actor)
            elif not self._stop_asked and self._drain_until is None:
                self._rejoin(actor, reason)
        if self._stop_asked and self._drain_until is None:
            self._begin_drain()
        now_ms = self._clock.now_ms()
        self._rejoin_after_outages(now_ms)
        if now_ms < self._look_at_ms:
            return
        self._look_at_ms = now_ms + LOOK_MS
        self._watcher.progress(self.summary())
        self._tell_silence()
        if self._drain_until is not None:
            if time.monotonic() >= self._drain_until:
                self._abandon()
        elif self._until_idle_s is not None and self._idle_for_s(now_ms) >= self._until_idle_s:
            self._begin_drain()

    def _tell_silence(self) -> None:
        silent = any(actor.core.connection.silent for actor in self._live())
        if silent and not self._told_silence:
            self._watcher.silence(self._endpoint)
        self._told_silence = silent

    def _note_end(self, actor: ConsumerActor) -> None:
        """An actor that failed ends the process: the others in good order."""
        if actor.error is None or actor in self._away:
            return
        if isinstance(actor.error, SinkUnavailable) and self._drain_until is None:
            self._away.note(actor, self._clock.now_ms())
            self.sink_away(actor, actor.error)
            return
        self._error = self._error or actor.error
        self._stop_asked = True
        self.cut_call(actor)

    def _rejoin(self, actor: ConsumerActor, reason: str, *, outlived: int = 0) -> None:
        """Stand by for a partition that another member has, with fresh facts and a fresh socket."""
        self.cut_call(actor)
        self._tally.retire(actor)
        del self._actors[actor.place]
        self._transports.pop(actor).close()
        fields = dict(zip(("group", "topic", "partition"), actor.place, strict=True))
        self._events.emit("consumer.rejoined", reason=reason, **fields)
        self._add(actor.consumer, actor.partition, outlived=outlived)

    def _rejoin_after_outages(self, now_ms: int) -> None:
        """A consumer whose database failed is followed by one that reads what became of it all."""
        for actor in self._away.take_due(now_ms, self._open_calls):
            if not actor.core.shared:  # else another member of the group may have it by right
                self._ledgers.follow(actor.place)
            self._rejoin(actor, "sink", outlived=actor.last_epoch)
            follower = self._actors[actor.place]
            if isinstance(actor.error, SinkConflict) and follower.sink is not None:
                follower.sink.keep_short()

    def _begin_drain(self) -> None:
        self._drain_until = time.monotonic() + self._drain_s
        for actor in self._away.take_all():  # what it had under way is not known to be committed
            self._note_end(actor)
        for actor in self._actors.values():
            actor.post(Drain())

    def _abandon(self) -> None:
        """Give up: the drain has taken too long. No message is to blame for that."""
        for actor in self._live():
            actor.post(GiveUp())
            actor.turn()
        error = NotDrained(
            f"some work was not committed or acknowledged within {self._drain_s:g} s"
        )
        self._error = self._error or error
        self._quit = True
        if self._open_calls:
            self._watcher.abandon(self.summary(), self._error)

    def _idle_for_s(self, now_ms: int) -> float:
        since = [actor.core.idle_since_ms for actor in self._live()]
        if not since or None in since or self._away:
            return -1.0
        return (now_ms - max(at for at in since if at is not None)) / 1000

    # --- Host ------------------------------------------------------------------------------------

    def start_call(self, actor: ConsumerActor, run: RunHandler) -> None:
        find = self._finders(actor)
        desk = WaitingDesk(actor, self._deliver)
        call = make_call(actor.consumer, run, find, actor.carry, self._threads, actor.sink, desk)
        self._open_calls[actor] = call
        self._main.put(actor, call)

    def cut_call(self, actor: ConsumerActor) -> None:
        call = self._open_calls.get(actor)
        if call is not None:
            call.cut()

    def topic_found(self, actor: ConsumerActor, partitions: int) -> None:
        for partition in range(1, partitions):
            if (*actor.place[:2], partition) not in self._actors:
                self._add(actor.consumer, partition)

    def topic_resolved(self, _: ConsumerActor, resolved: TopicResolved, /) -> None:
        self._topics.learn(resolved)

    def standing_by(self, actor: ConsumerActor, owner: str) -> None:
        if actor.place in self._told_standby:
            return
        self._told_standby.add(actor.place)
        group, topic, partition = actor.place
        self._watcher.standby(
            f"{topic}/{partition} of group {group} is owned by {owner}; standing by"
        )

    def effect_answered(self, actor: ConsumerActor, answer: EffectAnswer) -> None:
        actor.effect_answers.put(answer)

    def effect_held(self, actor: ConsumerActor, held: EffectHeld) -> None:
        group, topic, partition = actor.place
        self._watcher.effect_held(
            f"{topic}/{partition} of group {group} waits: it is unknown whether an effect of "
            f"message {held.message_key} happened ({held.why}); check, then run: "
            f"{command_about(held.effect_id, actor.sink)}"
        )

    def sink_away(self, actor: ConsumerActor, error: SinkUnavailable) -> None:
        """The process goes on."""
        fields = actor.core.member.fields(code=error.code, reason=error.reason)
        self._events.emit("sink.unavailable", **fields)
        if isinstance(error, SinkConflict):
            return  # everyday business of a database
        group, topic, partition = actor.place
        self._watcher.sink_away(f"{topic}/{partition} of group {group}: {error}")

    def _add(self, consumer: Consumer, partition: int, *, outlived: int = 0) -> None:
        place = (consumer.group, consumer.topic, partition)
        transport = DealerTransport(self._endpoint)
        actor = ConsumerActor(
            consumer,
            partition,
            endpoint=self._endpoint,
            transport=transport,
            clock=self._clock,
            events=self._events,
            entropy=draw,
            ledger=self._ledgers.make(consumer, place),
            host=self,
            label=own_label(),
            process=self._member,
            outlived=outlived,
        )
        self._actors[place] = actor
        self._transports[actor] = transport
