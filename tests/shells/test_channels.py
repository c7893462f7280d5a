"""Many clients of a process on one connection: each meets only the broker that it said hello to."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from oncemq.codec import wire
from oncemq.core.client.connection import Reopened
from oncemq.errors import Busy
from oncemq.library.testkit.actors import create_topic
from oncemq.limits import LEASE_MS, SILENCE_MS
from oncemq.protocol import Failure, Hello, Ping, Pong, Welcome
from oncemq.shells.channels import Channel, Channels
from tests.core.consumer.world import TOPIC, BadWire, Member, Recorder, World

# --- the connection alone ------------------------------------------------------------------------


class Line:
    """A connection: what was sent into it, and what is to come out."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.coming: list[list[bytes]] = []
        self.reopened = 0

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        coming, self.coming = self.coming, []
        return [(b"", frames) for frames in coming]

    def send(self, peer: bytes, frames: Any) -> bool:
        assert peer == b""
        self.sent.append(wire.decode(b"x", [bytes(frame) for frame in frames]).message)
        return True

    def reopen(self) -> None:
        self.reopened += 1


class Desk:
    """Channels on a Line, with the clients played by the test."""

    def __init__(self, count: int = 2) -> None:
        self.line = Line()
        self.events = Recorder()
        self.channels = Channels(self.line, self.events)
        self.clients = [self.channels.open() for _ in range(count)]

    def hello(self, channel: Channel, number: int = 0) -> int:
        request = channel.first_request + number
        hello = Hello(request, 1, 2, "consumer", b"i" * 16, b"", 0)
        assert channel.send(b"", wire.encode(hello, None))
        return request

    def ping(self, channel: Channel, number: int = 1) -> bool:
        request = channel.first_request + number
        return channel.send(b"", wire.encode(Ping(request), None))

    def come(self, *messages: Any) -> list[Channel]:
        self.line.coming += [[bytes(f) for f in wire.encode(m, None)] for m in messages]
        return self.channels.poll(0)

    def welcome(self, channel: Channel, number: int = 0, epoch: int = 1, mark: bytes = b"") -> None:
        request = channel.first_request + number
        self.come(Welcome(request, 2, b"l" * 16, b"l" * 16, epoch, mark))

    def meet(self, channel: Channel, number: int = 0, epoch: int = 1, mark: bytes = b"") -> None:
        self.hello(channel, number)
        self.welcome(channel, number, epoch, mark)
        assert [type(m) for m in mail(channel)] == [Welcome]


def mail(channel: Channel) -> list[Any]:
    return [wire.decode(b"", frames).message for _, frames in channel.poll(0)]


def told(desk: Desk) -> list[int]:
    """Which clients must say hello again; they take note of it."""
    found = [place for place, channel in enumerate(desk.clients) if channel.reopened]
    for channel in desk.clients:
        channel.reopened = False
    return found


def test_an_answer_goes_to_the_client_that_asked() -> None:
    """Two clients, one connection: each gets its own answers, whatever their order."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    desk.meet(b)
    touched = desk.come(Pong(b.first_request + 1, 1), Pong(a.first_request + 1, 1))
    assert touched == [b, a]
    assert [m.request for m in mail(a)] == [a.first_request + 1]
    assert [m.request for m in mail(b)] == [b.first_request + 1]


def test_nothing_but_a_hello_leaves_before_the_welcome() -> None:
    """The hello of one client opens the connection for no other."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    assert desk.ping(a)
    assert not desk.ping(b)
    desk.hello(b)
    assert not desk.ping(b)
    desk.welcome(b)
    assert desk.ping(b)
    assert [type(m) for m in desk.line.sent] == [Hello, Ping, Hello, Ping]


def test_a_broker_that_forgot_the_connection_is_greeted_by_all() -> None:
    """HelloRequired to one: the others are told, send nothing and hear nothing before their hello."""
    desk = Desk(3)
    a, b, c = desk.clients
    desk.meet(a)
    desk.meet(b)
    touched = desk.come(
        Pong(b.first_request + 1, 1),  # of before: what it knew of the connection is void
        Failure(a.first_request + 1, "hello_required", "who", "", -1),
        Pong(b.first_request + 2, 1),
        Failure(b.first_request + 3, "hello_required", "who", "", -1),  # asked before it was told
    )
    assert b in touched
    assert [type(m) for m in mail(a)] == [Failure]
    assert mail(b) == []
    assert told(desk) == [1], "c has not begun, and a has the refusal itself"
    assert not desk.ping(a)
    assert not desk.ping(b)
    desk.meet(b, 4, epoch=2)
    assert desk.ping(b, 5)
    assert not desk.ping(a)
    desk.meet(a, 2, epoch=2)
    assert desk.ping(a, 3)
    assert told(desk) == []
    assert desk.line.reopened == 0
    desk.meet(c, epoch=2)


def test_a_refusal_of_what_was_before_the_last_hello_is_old_news() -> None:
    """The client has said hello since: the others are left alone."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(b)
    desk.meet(a, 5)
    desk.come(Failure(a.first_request + 3, "hello_required", "who", "", -1))
    assert mail(a) == []
    assert told(desk) == []
    assert desk.ping(a, 6)


@pytest.mark.parametrize(
    "found", [{"epoch": 2}, {"mark": b"m" * 16}], ids=["restarted", "restored"]
)
def test_a_newcomer_that_meets_another_broker_wakes_the_others(found: Any) -> None:
    """Its hello made the connection known to the new broker, to which the others have said none."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    desk.meet(b, **found)
    assert told(desk) == [0]
    assert not desk.ping(a)
    desk.come(Pong(a.first_request + 1, 2))
    assert mail(a) == []
    desk.meet(a, 2, **found)
    assert told(desk) == []
    assert desk.ping(a, 3)
    assert desk.ping(b, 1)


def test_one_that_hears_nothing_opens_the_connection_anew_for_all() -> None:
    """Once, not once for each; a Welcome of the connection before does not count."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    desk.meet(b)
    a.reopen()
    assert desk.line.reopened == 0, "b has heard something since"
    b.reopen()
    assert desk.line.reopened == 1
    assert told(desk) == [0]
    a.reopen()  # its silence was that of the connection before
    assert desk.line.reopened == 1
    desk.hello(b, 1)
    desk.welcome(a, 0)
    assert mail(a) == []
    assert not desk.ping(a)
    desk.hello(a, 2)
    desk.welcome(b, 1)
    desk.welcome(a, 2)
    assert desk.ping(a, 3)
    assert desk.ping(b, 3)


def test_one_silent_client_does_not_take_the_connection_from_the_others() -> None:
    """As long as another hears something, the silent one only says hello again."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    desk.meet(b)
    for number in range(1, 4):
        desk.come(Pong(b.first_request + number, 1))
        a.reopen()
        desk.hello(a, number)
    assert desk.line.reopened == 0
    assert told(desk) == []
    assert desk.ping(b, 5)


def test_late_answers_reach_no_successor() -> None:
    """A new client in the place of one that has ended counts on behind it."""
    desk = Desk()
    a, b = desk.clients
    desk.meet(a)
    desk.meet(b)
    desk.ping(a, 7)
    a.close()
    a.close()
    assert desk.come(Pong(a.first_request + 7, 1)) == []
    successor = desk.channels.open()
    assert successor.first_request == a.first_request + 8
    desk.meet(successor)
    assert desk.come(Pong(a.first_request + 7, 1)) == []
    assert mail(successor) == []
    assert desk.ping(b, 3)


def test_answers_that_cannot_be_read_are_dropped_and_counted() -> None:
    """A flood of them is told in few events."""
    desk = Desk()
    desk.meet(desk.clients[0])
    desk.line.coming += [[b""], [], [b"\x93"], [b"\xc0abc"], [b"\x92\x01\xcf\x00"], [b"\xff" * 9]]
    assert desk.channels.poll(0) == []
    assert [fields["count"] for fields in desk.events.of("wire.malformed")] == [1, 2, 4]
    assert desk.ping(desk.clients[0])


def test_a_welcome_that_cannot_be_read_opens_nothing() -> None:
    """Its client reports it; the channel stays closed."""
    desk = Desk(1)
    (a,) = desk.clients
    request = desk.hello(a)
    welcome = wire.encode(Welcome(request, 2, b"l" * 16, b"l" * 16, 1), None)
    desk.line.coming.append([bytes(welcome[0])[:-1]])
    desk.channels.poll(0)
    assert len(a.poll(0)) == 1
    assert not desk.ping(a)


# --- consumers on it -----------------------------------------------------------------------------


class Process:
    """A member for each partition, all on one connection."""

    def __init__(self, world: World, partitions: int) -> None:
        self.world = world
        self.wire = BadWire(world.network.connect())
        self.channels = Channels(self.wire, world.events)
        self.of: dict[Channel, Member] = {}
        for partition in range(partitions):
            world.partition = partition
            channel = self.channels.open()
            self.of[channel] = world.member(wire=channel, retries=0)

    @property
    def members(self) -> list[Member]:
        return list(self.of.values())

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        for channel in self.channels.poll(0):
            if channel.reopened:
                channel.reopened = False
                self.of[channel].actor.post(Reopened())
        happened = [member.turn() for member in self.members]
        return any(happened)

    def time_left_ms(self) -> int:
        return min(member.time_left_ms() for member in self.members)

    def kill(self) -> None:
        for member in self.members:
            member.kill()


def drain(world: World, process: Process, limit_ms: int = 120_000) -> None:
    """Run until all that is stored is handled and its outputs are there."""
    ends = world.broker.core.state.topics.by_name[TOPIC].end_offsets

    def done() -> bool:
        for member in process.members:
            if member.error is not None:
                raise member.error
        return all(
            member.core.idle_since_ms is not None and member.core.ledger.next_offset == end
            for member, end in zip(process.members, ends(), strict=True)
        )

    world.run_process(process, done, limit_ms=limit_ms)


def check_once(world: World, process: Process, sent: int) -> None:
    """Every message had its effect once, in the order of its partition; so had its output."""
    logs = [member.state().get("log", []) for member in process.members]
    stored = world.stored(TOPIC)
    assert len(stored) == sent
    for partition, log in enumerate(logs):
        assert log == [message.id for message in stored if message.partition == partition]
    outputs = Counter(value[0] for value in world.outputs())
    assert outputs == Counter(message.id for message in stored)


def test_the_partitions_of_a_process_share_one_connection() -> None:
    """Three partitions, thirty messages: the broker knows one connection."""
    world = World(partitions=3)
    before = len(world.network._clients)
    process = Process(world, 3)
    world.send(count=30)
    drain(world, process)
    assert len(world.network._clients) == before + 1
    assert all(member.core.ledger.next_offset == 10 for member in process.members)
    check_once(world, process, 30)


def test_a_broker_restarted_under_all_of_them() -> None:
    """Each says hello, resends what was in flight, and the work goes on."""
    world = World(partitions=3)
    process = Process(world, 3)
    world.send(count=9)
    drain(world, process)
    hellos = Counter(kind_of(frames) for frames in process.wire.sent)[Hello]
    world.restart_broker()
    world.send(count=9)
    drain(world, process)
    assert Counter(kind_of(frames) for frames in process.wire.sent)[Hello] == hellos + 3
    check_once(world, process, 18)


def kind_of(frames: list[bytes]) -> Any:
    head = wire.peek(frames)
    assert head is not None
    return head[0]


def test_a_cut_connection_is_opened_anew_once() -> None:
    """All three hear nothing; one socket is made, not three."""
    world = World(partitions=3)
    process = Process(world, 3)
    world.send(count=3)
    drain(world, process)
    ids = {process.wire.endpoint.routing_id}
    process.wire.cut = True
    world.run_for(process, SILENCE_MS + 500)
    ids.add(process.wire.endpoint.routing_id)
    assert len(ids) == 2
    process.wire.cut = False
    world.send(count=3)
    drain(world, process)
    check_once(world, process, 6)


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_restarts_losses_and_deaths(seed: int) -> None:
    """Whatever happens to broker, connection and process: every message once, in order."""
    chance = random.Random(seed)
    world = World(seed=seed, partitions=3)
    process = Process(world, 3)
    sent = 0
    for _ in range(14):
        match chance.randrange(7):
            case 0:
                world.restart_broker()
            case 1:
                process.wire.lose_in = chance.randrange(8)
            case 2:
                process.wire.lose_out = chance.randrange(8)
            case 3:
                process.wire.cut = not process.wire.cut
            case 4:
                process.kill()
                process = Process(world, 3)
            case 5:
                process.wire.bring_back(chance.randrange(40))
            case 6:
                count = chance.randrange(1, 8)
                world.send(count=count)
                sent += count
        world.run_for(process, chance.choice([1, 50, 700, 4_000]))
    process.wire.cut = False
    process.wire.lose_in = process.wire.lose_out = 0
    world.send(count=3)
    drain(world, process, limit_ms=10 * LEASE_MS)
    check_once(world, process, sent + 3)


def test_a_full_table_ends_a_consumer_with_its_sentence() -> None:
    """The grant that the broker has no room for: Busy names the limit; nothing waits for ever."""
    world = World(partitions=3)
    world.broker.core._membership._groups_max = 2
    process = Process(world, 3)
    world.run_process(process, lambda: any(member.error for member in process.members))
    (error,) = (member.error for member in process.members if member.error)
    assert isinstance(error, Busy)
    assert "2 grants" in str(error)
    assert "oncemq groups" in str(error)
    create_topic(world.network, world.loop, "after", 1)
