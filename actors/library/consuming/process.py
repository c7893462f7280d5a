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

import os
import sys
import threading
import time
from collections import deque
from dataclasses import replace

from ...core.client.connection import Reopened
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
from ...limits import DRAIN_S_DEFAULT, HANDLER_DESCRIPTORS, TOPIC_LOOKUP_MS
from ...outcome import Event
from ...ports import Events
from ...runtime.background import BackgroundThreads, background_pool
from ...runtime.clock import SystemClock
from ...runtime.descriptors import allow_descriptors, descriptors_in_use
from ...runtime.process import draw, own_label, stop_signals
from ...runtime.zmq_transport import DealerTransport
from ...shells.channels import Channel, Channels
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
OPENING_MS = 50  # how long partitions without an open ledger may keep the others waiting
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
        self._transport = DealerTransport(broker)
        self._descriptors = descriptors_in_use()  # besides those of ledgers
        # Of the I/O thread alone from here on, unless said otherwise.
        self._channels = Channels(self._transport, events)
        self._pool = background_pool()  # for the work beside the turns of all actors
        self._actors: dict[tuple[str, str, int], ConsumerActor] = {}
        # Each actor that has not ended: its channel, and when its next turn is due.
        self._channel_of: dict[ConsumerActor, Channel] = {}
        self._owner_of: dict[Channel, ConsumerActor] = {}
        self._due_ms: dict[ConsumerActor, int] = {}
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
        self._transport.wake()

    # --- the I/O thread --------------------------------------------------------------------------

    def _io_main(self) -> None:
        try:
            while not self._quit and (self._open_calls or self._due_ms or self._away):
                for channel in self._channels.poll(self._time_left_ms()):
                    self._note_mail(channel)
                while self._inbox:
                    self._post(*self._inbox.popleft())
                self._turn_due()
                self._look()
        except BaseException as error:  # noqa: BLE001 - told by `run`, in the main thread
            self._error = self._error or error
        finally:
            for actor in self._actors.values():
                actor.close()
                self._note_end(actor)
            self._pool.shutdown()
            self._transport.close()
            self._main.end()

    def _live(self) -> list[ConsumerActor]:
        return [actor for actor in self._actors.values() if not actor.ended]

    def _post(self, actor: ConsumerActor, event: Answer | Question) -> None:
        """Take what the main thread has for an actor; None: its call was not carried out."""
        if event is None or isinstance(event, HandlerDone | OnceMQError):
            self._open_calls.pop(actor, None)
        if isinstance(event, OnceMQError):
            actor.end(event)
            self._due_ms.pop(actor, None)
        elif event is not None:
            self._tell(actor, event)

    def _tell(self, actor: ConsumerActor, event: Event) -> None:
        """Post an event; the turn in which the actor meets it is the next one of the loop."""
        actor.post(event)
        if not actor.ended:
            self._due_ms[actor] = 0

    def _note_mail(self, channel: Channel) -> None:
        actor = self._owner_of[channel]
        if channel.reopened:
            channel.reopened = False
            actor.post(Reopened())
        if not actor.ended:
            self._due_ms[actor] = 0

    def _time_left_ms(self) -> int:
        if self._inbox:
            return 0
        now_ms = self._clock.now_ms()
        left = min([LOOK_MS, *(due_ms - now_ms for due_ms in self._due_ms.values())])
        if self._away:
            left = min(left, max(1, self._away.time_left_ms(now_ms)))
        return max(0, left)

    def _turn_due(self) -> None:
        """Turn the actors that have something to do; with many partitions most have not.

        Making and opening a ledger takes long. Those that have theirs open come first, and the
        others get a bounded time before messages are looked for again.
        """
        now_ms = self._clock.now_ms()
        due = [
            actor
            for actor, due_ms in self._due_ms.items()
            if due_ms <= now_ms or (actor.sink is not None and actor.waits_for_writer)
        ]
        due.sort(key=lambda actor: not actor.serving)
        for actor in due:
            if not actor.serving and self._clock.now_ms() - now_ms >= OPENING_MS:
                return
            actor.turn()
            if actor.ended:
                self._due_ms.pop(actor, None)
            else:
                self._due_ms[actor] = self._clock.now_ms() + actor.time_left_ms()

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
            late = time.monotonic() >= self._drain_until
            if late and any(actor.core.unfinished for actor in self._live()):
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
        """Stand by for a partition that another member has, with fresh facts and a fresh channel."""
        self.cut_call(actor)
        self._tally.retire(actor)
        del self._actors[actor.place]
        channel = self._channel_of.pop(actor)
        del self._owner_of[channel]
        channel.close()
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
            self._tell(actor, Drain())

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
        """Raises TooFewDescriptors."""
        if actor.partition == 0 and partitions > 1:
            self._allow_descriptors(actor.consumer, partitions)
        for partition in range(1, partitions):
            if (*actor.place[:2], partition) not in self._actors:
                self._add(actor.consumer, partition)

    def _allow_descriptors(self, consumer: Consumer, partitions: int) -> None:
        """Make sure that this process can own all its partitions: another member may end."""
        mine = (consumer.group, consumer.topic)
        others = (a.consumer for a in self._actors.values() if a.place[:2] != mine)
        ledgers = sum(self._ledgers.descriptors(other) for other in others)
        ledgers += partitions * self._ledgers.descriptors(consumer)
        needed = self._descriptors + ledgers + HANDLER_DESCRIPTORS
        what = f"the {partitions} partitions of topic {consumer.topic}"
        before, now = allow_descriptors(needed, what)
        if now != before:
            self._events.emit("process.descriptors", needed=needed, before=before, limit=now)

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
        channel = self._channels.open()
        actor = ConsumerActor(
            consumer,
            partition,
            endpoint=self._endpoint,
            transport=channel,
            clock=self._clock,
            events=self._events,
            entropy=draw,
            ledger=self._ledgers.make(consumer, place),
            host=self,
            label=own_label(),
            process=self._member,
            outlived=outlived,
            first_request=channel.first_request,
            background=BackgroundThreads(self._pool),
        )
        self._actors[place] = actor
        self._channel_of[actor], self._owner_of[channel] = channel, actor
        self._due_ms[actor] = 0
