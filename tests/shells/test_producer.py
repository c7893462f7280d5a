"""The producer's shell: what it says of topics, verdicts, room and its end."""

from __future__ import annotations

import pytest

from oncemq.codec import batch as batch_codec
from oncemq.core.client.connection import Reconnect
from oncemq.core.client.producer import Submit
from oncemq.errors import Fenced
from oncemq.library.testkit.network import LocalClock, LocalEndpoint, LocalLoop, LocalNetwork
from oncemq.limits import LIMITS, Limits
from oncemq.shells.broker import BrokerShell
from oncemq.shells.producer import ProducerShell
from oncemq.storage.memory import MemoryDisk
from tests.core.broker.help import Events, entropy

DRAW = entropy()


class House:
    """A broker in memory and its producers."""

    def __init__(self) -> None:
        self.clock = LocalClock()
        self.network = LocalNetwork()
        self.loop = LocalLoop(self.clock)
        self.events = Events()
        broker = BrokerShell(
            MemoryDisk(),
            "data",
            owner={"pid": 1},
            bind=lambda: self.network.broker,
            clock=self.clock,
            events=self.events,
            entropy=lambda: next(DRAW),
            snapshot_every_bytes=None,
        )
        self.loop.add(broker)

    def producer(
        self, name: str = "", transport: LocalEndpoint | None = None, limits: Limits = LIMITS
    ) -> ProducerShell:
        producer = ProducerShell(
            name,
            endpoint="memory",
            transport=transport or self.network.connect(),
            clock=self.clock,
            events=self.events,
            entropy=lambda: next(DRAW),
            label="test",
            limits=limits,
        )
        self.loop.add(producer)
        return producer


def submit(producer: ProducerShell, number: int) -> None:
    batch = batch_codec.build([b"x"], encodings=0, ids=[b"s%d" % number])
    producer.submit(Submit("t", 0, batch, number))


@pytest.fixture
def house() -> House:
    return House()


def test_verdicts_come_once_and_in_order(house: House) -> None:
    """What is taken is gone; what is in flight takes room, also before the next turn."""
    producer = house.producer(limits=Limits(in_flight_batches_max=2))
    assert producer.room == 0
    producer.ask("t")
    house.loop.run_until(lambda: producer.opened is not None and "t" in producer.topics)
    full = producer.room
    for number in range(full):
        submit(producer, number)
    assert (producer.room, producer.in_flight, full) == (0, True, 4)
    house.loop.run_until(lambda: not producer.in_flight)
    assert [settled.token for settled in producer.take_settled()] == [0, 1, 2, 3]
    assert producer.take_settled() == []
    assert producer.room == full


def test_a_refused_topic_may_be_asked_for_again(house: House) -> None:
    """The refusal stays until then; no question is asked twice while it is open."""
    producer = house.producer()
    producer.ask("no/topic")
    house.loop.run_until(lambda: bool(producer.refused))
    assert producer.refused["no/topic"].code == "invalid_name"
    producer.ask("no/topic")
    assert producer.refused == {}
    house.loop.run_until(lambda: bool(producer.refused))


def test_a_socket_that_is_of_no_use_is_reopened(house: House) -> None:
    """The core asks for it when the broker is silent; the name under which it comes back is new."""
    endpoint = house.network.connect()
    producer = house.producer(transport=endpoint)
    house.loop.run_until(lambda: producer.opened is not None)
    before = endpoint.routing_id
    producer._perform(Reconnect())
    assert endpoint.routing_id != before
    producer.ask("t")
    house.loop.run_until(lambda: "t" in producer.topics)


def test_the_end_of_an_incarnation_is_its_error(house: House) -> None:
    """A second owner of the name fences the first: no room any more, and nothing is sent."""
    first = house.producer("importer")
    house.loop.run_until(lambda: first.opened is not None)
    second = house.producer("importer")
    house.loop.run_until(lambda: second.opened is not None)
    first.ask("t")
    house.loop.run_until(lambda: "t" in first.topics)
    batch = batch_codec.build([b"x"], encodings=0)
    first.submit(Submit("t", 0, batch, None))
    house.loop.run_until(lambda: first.error is not None)
    assert isinstance(first.error, Fenced)
    assert (first.room, second.error) == (0, None)
