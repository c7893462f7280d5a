"""A broker, members of a group on a disk that loses what was not synced, and a bad network.

The broker is the real core on a memory disk; each member is the real core, driver and ledger. A
test decides when anybody takes a turn, when a handler returns and what gets lost.
"""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any

from oncemq.codec import batch as batch_codec
from oncemq.core.consumer.work import Drain, HandlerDone, RunHandler
from oncemq.library.consuming.actor import ConsumerActor
from oncemq.library.handling.call import Consumer
from oncemq.library.handling.make_call import TopicFinders, make_call
from oncemq.library.handling.state import decode_state
from oncemq.library.handling.threads import HandlerThreads
from oncemq.library.handling.tx import Tx
from oncemq.library.messages.message import Message, messages_in
from oncemq.library.testkit.actors import LocalProducer, create_topic, stored_batches
from oncemq.library.testkit.network import LocalClock, LocalEndpoint, LocalLoop, LocalNetwork
from oncemq.limits import SEGMENT_BYTES
from oncemq.shells.broker import BrokerShell
from oncemq.shells.ledger.files import LedgerFiles, ledger_directory
from oncemq.sim.disk.cuts import CutPolicy
from oncemq.sim.disk.disk import SimDisk, SimProcess, SimulatedCrash
from oncemq.storage.log import FencedLog

OWNER: dict[str, str | int] = {"host": "here", "pid": 1}
GROUP, TOPIC, OUT = "billing", "orders", "invoices"


class Recorder:
    """Events of all processes, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.seen.append((event, fields))

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.seen if event == name]


class BadWire:
    """A client's end that loses, doubles and delays messages on demand."""

    def __init__(self, endpoint: LocalEndpoint) -> None:
        self.endpoint = endpoint
        self.lose_in = 0  # so many messages to come are lost
        self.lose_out = 0
        self.double_in = 0
        self.cut = False  # nothing goes in or out
        self.old: list[tuple[bytes, list[bytes]]] = []  # what came before, to be brought back
        self._again: list[tuple[bytes, list[bytes]]] = []
        self.sent: list[list[bytes]] = []

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        found, self._again = self._again, []
        for envelope in self.endpoint.poll(timeout_ms):
            if self.cut or self.lose_in > 0:
                self.lose_in -= 1
                continue
            self.old = [*self.old[-40:], envelope]
            found.append(envelope)
            if self.double_in > 0:
                self.double_in -= 1
                found.append(envelope)
        return found

    def send(self, peer: bytes, frames: Any) -> bool:
        self.sent.append([bytes(frame) for frame in frames])
        if self.cut or self.lose_out > 0:
            self.lose_out -= 1
            return True
        return self.endpoint.send(peer, frames)

    def reopen(self) -> None:
        self.endpoint.reopen()

    def bring_back(self, index: int) -> None:
        if self.old:
            self._again.append(self.old[index % len(self.old)])


class Member:
    """One process of the group: it is its own Host; the test decides when handlers run."""

    def __init__(self, world: World, name: str, handler: Any = None, **options: Any) -> None:
        self.world = world
        self.name = name
        self.disk: SimProcess = world.disk.process(name)
        channel = options.pop("wire", None)  # of a connection that it shares; else it has its own
        self.wire = BadWire(world.network.connect()) if channel is None else channel
        self.calls: deque[RunHandler] = deque()
        self.cuts = 0
        self.standbys: list[str] = []
        self.held: list[str] = []  # what the user was told to say something about
        self.seen: list[tuple[Any, int]] = []  # (id, attempt) of each handler call
        self.fail_at: int | None = None  # the call of a run that raises
        outlived = options.pop("outlived", 0)
        directory = ledger_directory(world.state, GROUP, TOPIC, world.partition)
        self.actor = ConsumerActor(
            Consumer(TOPIC, GROUP, handler or self.handle, **options),
            world.partition,
            endpoint="memory",
            transport=self.wire,
            clock=world.clock,
            events=world.events,
            entropy=world.draw,
            ledger=LedgerFiles(
                self.disk,
                directory,
                {**OWNER, "pid": name},
                draw=world.draw,
                open_log=partial(FencedLog.open, segment_bytes=world.segment_bytes),
            ),
            host=self,
            label=name,
            outlived=outlived,
            first_request=1 if channel is None else channel.first_request,
        )

    def handle(self, message: Message, tx: Tx) -> None:
        """Note the message in the state, in a list that is changed in place, and send it on."""
        self.seen.append((message.id, message.attempt))
        tx.state["count"] = tx.state.get("count", 0) + 1
        tx.state.setdefault("log", []).append(message.id)
        tx.send(OUT, [message.id, message.offset])
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                self.fail_at = None
                raise ValueError("told to")

    # --- Host ---

    def start_call(self, actor: ConsumerActor, run: RunHandler) -> None:
        self.calls.append(run)

    def cut_call(self, actor: ConsumerActor) -> None:
        self.cuts += 1

    def topic_found(self, actor: ConsumerActor, partitions: int) -> None:
        """One partition only."""

    def topic_resolved(self, actor: ConsumerActor, resolved: Any) -> None:
        """The world's topics are known."""

    def standing_by(self, actor: ConsumerActor, owner: str) -> None:
        self.standbys.append(owner)

    def effect_answered(self, actor: ConsumerActor, answer: Any) -> None:
        actor.effect_answers.put(answer)

    def effect_held(self, actor: ConsumerActor, held: Any) -> None:
        self.held.append(held.effect_id)

    # --- what a test does ---

    @property
    def core(self) -> Any:
        return self.actor.core

    @property
    def error(self) -> BaseException | None:
        return self.actor.error

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """One turn; a crash of the simulated disk ends the member."""
        try:
            return self.actor.turn(0)
        except SimulatedCrash:
            self.actor.ended = True
            return True

    def time_left_ms(self) -> int:
        return 1_000 if self.actor.ended else self.actor.time_left_ms()

    def carry_out(self, *, cut: bool = False) -> HandlerDone:
        """Carry out the call that is out and return its answer without giving it back."""
        run = self.calls.popleft()
        find, actor = TopicFinders(lambda _topic: 1), self.actor
        call = make_call(actor.consumer, run, find, actor.carry, HandlerThreads())
        if cut:
            call.cut()
        return call.carry_out(self.actor.place)

    def answer(self, *, cut: bool = False) -> HandlerDone:
        """Carry out the call that is out and give the answer back."""
        done = self.carry_out(cut=cut)
        self.actor.post(done)
        return done

    def kill(self) -> None:
        """kill -9: locks are free, the page cache stays."""
        self.disk.kill()
        self.actor.ended = True

    def state(self) -> dict[str, Any]:
        return {k: decode_state(v) for k, v in self.core.ledger.state.items()}


class World:
    """Broker, producers and members."""

    def __init__(self, *, state: str = "/state", seed: int = 1, partitions: int = 1) -> None:
        self.state = state
        self.partition = 0
        self.segment_bytes = SEGMENT_BYTES  # of ledgers
        self.clock = LocalClock()
        self.events = Recorder()
        self.disk = SimDisk()
        self.broker_disk = SimDisk()
        self._random = random.Random(seed)
        random.seed(seed)  # the jitter of retries is drawn from there
        self.network = LocalNetwork()
        self.loop = LocalLoop(self.clock)
        self.members: list[Member] = []
        self._count = 0
        self.broker = self._broker()
        self.loop.add(self.broker)
        create_topic(self.network, self.loop, TOPIC, partitions)
        create_topic(self.network, self.loop, OUT, 1)
        self.producers = {name: self._producer(name) for name in ("", "importer")}

    def draw(self) -> bytes:
        return self._random.randbytes(16)

    def _broker(self) -> BrokerShell:
        return BrokerShell(
            self.broker_disk,
            "/broker",
            owner=OWNER,
            bind=lambda: self.network.broker,
            clock=self.clock,
            events=self.events,
            entropy=self.draw,
            snapshot_every_bytes=None,
        )

    def _producer(self, name: str) -> LocalProducer:
        producer = LocalProducer(name, self.network, self.clock, self.events)
        self.loop.add(producer)
        return producer

    def restart_broker(self, disk: SimDisk | None = None) -> None:
        """Kill the broker and start it again on its files, or on those of `disk`."""
        self.broker.close(clean=False)
        self.loop.remove(self.broker)
        self.network.restart_broker()
        self.broker_disk = self.broker_disk if disk is None else disk
        self.broker = self._broker()
        self.loop.add(self.broker)

    def member(self, handler: Any = None, **options: Any) -> Member:
        """Start one more member of the group; only the loop's `run` turns it.

        `options` are those of a consumer: retries, crash_retries, no_retry, park.
        """
        self._count += 1
        member = Member(self, f"m{self._count}", handler, **options)
        self.members.append(member)
        return member

    def send(self, value: Any = None, *, id: str | None = None, count: int = 1) -> None:  # noqa: A002
        """Send messages to the topic; with an id one message under it."""
        producer = self.producers["" if id is not None else "importer"]
        for _ in range(count):
            producer.send(self.loop, TOPIC, value, id=id)

    def send_batch(self, count: int) -> None:
        batch = batch_codec.build([b"x"] * count, encodings=0)
        self.producers["importer"].store(self.loop, TOPIC, 0, batch)

    def power_cut(self, policy: CutPolicy | None = None) -> None:
        """Cut the power of the machine of the members; all of them are gone."""
        self.disk = self.disk.power_cut(policy)
        for member in self.members:
            member.actor.ended = True
        self.members.clear()

    def step(self, member: Member) -> None:
        """Turn the broker and one member, so that each sees what the other said."""
        member.turn()
        self.broker.turn(0)
        member.turn()

    def run(self, done: Any, *members: Member, handle: bool = True, limit_ms: int = 60_000) -> None:
        """Turn all members until `done()`; with `handle` calls are answered at once."""
        for member in members:
            self.loop.add(member)
        answers = Answers(list(members) if handle else [])
        self.loop.add(answers)
        try:
            self.loop.run_until(done, limit_ms=limit_ms)
        finally:
            for one in (*members, answers):
                self.loop.remove(one)

    def run_process(self, process: Any, done: Any, *, limit_ms: int = 60_000) -> None:
        """Turn a process of several members until `done()`; their calls are answered at once."""
        answers = Answers(process.members)
        self.loop.add(process)
        self.loop.add(answers)
        try:
            self.loop.run_until(done, limit_ms=limit_ms)
        finally:
            self.loop.remove(process)
            self.loop.remove(answers)

    def run_for(self, process: Any, milliseconds: int) -> None:
        until = self.clock.now_ms() + milliseconds
        self.run_process(process, lambda: self.clock.now_ms() >= until)

    def drain(self, member: Member) -> None:
        """Run a member until all that is stored is handled and its outputs are acknowledged."""
        self.run(lambda: member.actor.ended or self.drained(member), member)

    def drained(self, member: Member) -> bool:
        end = self.broker.core.state.topics.by_name[TOPIC].partition(0).end_offset
        return member.core.idle_since_ms is not None and member.core.ledger.next_offset == end

    def stop(self, member: Member) -> None:
        member.actor.post(Drain())
        self.run(lambda: member.actor.ended, member)

    def stored(self, topic: str) -> list[Message]:
        number = self.broker.core.state.topics.by_name[topic].number
        return [
            m for stored in stored_batches(self.broker, number) for m in messages_in(topic, stored)
        ]

    def ids(self) -> list[Any]:
        return [message.id for message in self.stored(TOPIC)]

    def outputs(self) -> list[Any]:
        return [message.value for message in self.stored(OUT)]

    def check_whole(self, member: Member) -> None:
        """After a drain: every message had its effect once, in order; so had its output."""
        ids = self.ids()
        assert member.error is None, member.error
        assert member.core.ledger.next_offset == len(ids)
        self.check_prefix(member)
        assert self.outputs() == [[one, offset] for offset, one in enumerate(ids)]

    def check_prefix(self, member: Member) -> None:
        """At any time: state, offset and processed set are those of one prefix of the log."""
        ids = self.ids()
        ledger = member.core.ledger
        state = member.state()
        done = ids[: ledger.next_offset]
        assert state.get("log", []) == done
        assert state.get("count", 0) == len(done)
        processed = ledger.processed
        numbers = sum(end - start for r in processed.numbers.values() for start, end in r)
        assert numbers + processed.explicit_count == len(done)
        assert (
            self.outputs()
            == [[one, offset] for offset, one in enumerate(ids)][: len(self.outputs())]
        )
        generation = member.actor._driver.log.generation
        newest = self.broker.core.state.groups.grants[GROUP, TOPIC, 0].epoch
        if generation == newest:  # an older owner does not know what its successor has sent
            assert len(self.outputs()) <= len(done)


class Answers:
    """Answers the handler calls of members within a loop."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        answered = False
        for member in self.members:
            if member.calls and not member.actor.ended:
                member.answer()
                answered = True
        return answered

    def time_left_ms(self) -> int:
        return 1_000
