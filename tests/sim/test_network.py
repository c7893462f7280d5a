"""The simulated network: every fault on request, none by accident, all from the seed."""

from __future__ import annotations

from oncemq.sim.clock import SimClock
from oncemq.sim.network import POLL_MESSAGES_MAX, QUEUE_MESSAGES_MAX, Endpoint, Faults, SimNetwork


def pair(faults: Faults | None = None, seed: int = 1) -> tuple[SimNetwork, Endpoint, Endpoint]:
    network = SimNetwork(SimClock(), seed, faults)
    broker = network.listen(b"broker")
    return network, broker, network.connect(b"c1", b"broker")


def numbers(side: Endpoint) -> list[int]:
    """Return the first byte of each message that arrived."""
    return [frames[0][0] for _, frames in side.poll()]


def test_a_healthy_network_delivers_in_order() -> None:
    """Requests arrive under the routing id, answers under the broker's name."""
    _, broker, client = pair()
    assert client.send(b"", [b"one", memoryview(b"two")])
    assert broker.poll() == [(b"c1", [b"one", b"two"])]
    assert broker.send(b"c1", [b"back"])
    assert client.poll(100) == [(b"broker", [b"back"])]
    assert client.poll() == []


def test_an_unknown_peer_is_refused() -> None:
    """As with ROUTER_MANDATORY: the sender learns that nobody is there."""
    network, broker, client = pair()
    assert not broker.send(b"c9", [b"x"])
    client.close()
    assert not broker.send(b"c1", [b"x"])
    assert not client.send(b"", [b"x"])
    assert client.poll() == []
    assert network.counts.refused == 2


def test_messages_take_their_time() -> None:
    """A delayed message is not there early, and `next_due_ms` says when it will be."""
    network, broker, client = pair(Faults(delay_min_ms=20, delay_max_ms=20))
    assert network.next_due_ms() is None
    client.send(b"", [b"x"])
    assert broker.poll() == []
    due = network.next_due_ms()
    assert due == network.clock.now_ms() + 20
    network.clock.advance_to(due)
    assert len(broker.poll()) == 1


def test_delays_alone_never_reorder() -> None:
    """Without the fault asked for, a link keeps its order."""
    network, broker, client = pair(Faults(delay_max_ms=50))
    for number in range(100):
        client.send(b"", [bytes([number])])
    network.clock.advance(1000)
    assert numbers(broker) == list(range(100))


def test_reordering_lets_later_messages_overtake() -> None:
    """All arrive, not in the order sent, and the count says how often it struck."""
    network, broker, client = pair(Faults(reorder=0.3, delay_max_ms=5))
    for number in range(100):
        client.send(b"", [bytes([number])])
        network.clock.advance(1)
    network.clock.advance(1000)
    arrived = numbers(broker)
    assert arrived != sorted(arrived)
    assert sorted(arrived) == list(range(100))
    assert network.counts.reordered > 0


def test_drops_and_duplicates_are_counted() -> None:
    """What arrives is what was sent, less the dropped, plus the doubled."""
    network, broker, client = pair(Faults(drop=0.2, duplicate=0.2))
    for number in range(200):
        assert client.send(b"", [bytes([number])])
    counts = network.counts
    assert len(numbers(broker)) == 200 - counts.dropped + counts.duplicated
    assert counts.dropped > 0
    assert counts.duplicated > 0


def test_a_partition_cuts_both_ways_until_healed() -> None:
    """Both sides live on and hear nothing; also what was on its way is lost."""
    network, broker, client = pair(Faults(delay_min_ms=5, delay_max_ms=5))
    client.send(b"", [b"on its way"])
    network.partition(b"c1", b"broker")
    client.send(b"", [b"x"])
    broker.send(b"c1", [b"y"])
    network.clock.advance(10)
    assert (broker.poll(), client.poll()) == ([], [])
    network.heal()
    client.send(b"", [b"again"])
    network.clock.advance(10)
    assert broker.poll() == [(b"c1", [b"again"])]


def test_a_partition_can_be_one_way() -> None:
    """Requests are lost while answers come through."""
    network, broker, client = pair()
    network.partition(b"c1", b"broker", one_way=True)
    client.send(b"", [b"x"])
    broker.send(b"c1", [b"y"])
    assert broker.poll() == []
    assert len(client.poll()) == 1


def test_a_restarted_broker_gets_nothing_that_was_sent_to_the_old_one() -> None:
    """Queues die with their process; the client's next message reaches the new one."""
    network, old, client = pair()
    client.send(b"", [b"lost"])
    new = network.listen(b"broker")
    client.send(b"", [b"found"])
    assert old.poll() == []
    assert new.poll() == [(b"c1", [b"found"])]
    assert not old.send(b"c1", [b"zombie"])


def test_one_poll_is_bounded() -> None:
    """A flood is taken in bites."""
    _, broker, client = pair()
    for _ in range(POLL_MESSAGES_MAX + 1):
        client.send(b"", [b"x"])
    assert len(broker.poll()) == POLL_MESSAGES_MAX
    assert len(broker.poll()) == 1


def test_queues_are_bounded() -> None:
    """Beyond its bound the network refuses, and a receiver that never polls loses the rest."""
    network, broker, client = pair()
    sent = sum(client.send(b"", [b"x"]) for _ in range(QUEUE_MESSAGES_MAX + 1))
    assert sent == QUEUE_MESSAGES_MAX
    network.deliver()
    client.send(b"", [b"x"])
    network.deliver()
    assert len(broker.waiting) == QUEUE_MESSAGES_MAX
    assert network.counts.dropped == 1


def test_the_seed_decides_everything() -> None:
    """Two runs with one seed are the same run; another seed is another one."""

    def run(seed: int) -> list[int]:
        network, broker, client = pair(Faults(0.1, 0.1, 0.3, 0, 9), seed)
        arrived: list[int] = []
        for number in range(100):
            client.send(b"", [bytes([number])])
            network.clock.advance(2)
            arrived += numbers(broker)
        return arrived

    assert run(7) == run(7)
    assert run(7) != run(8)
