"""Idle producer names: listed, shrunk to their next numbers, and never stored twice when they return."""

from __future__ import annotations

import pytest

from oncemq.limits import Limits
from oncemq.protocol import InitProducer, ListProducers, ProducersListed, Retired, RetireProducer
from tests.core.broker.help import World, refuse, runs

HOUR = 3_600_000


def opened(**limits: int) -> World:
    world = World(limits=Limits(**limits))
    world.hello(version_max=4)
    world.topic(partitions=2)
    return world


@pytest.fixture
def world() -> World:
    """The producer `p` has stored three messages, an hour ago."""
    world = opened()
    world.producer()
    world.send(0, "a", "b", digest=b"d" * 16)
    world.send(0, "c", partition=1)
    world.clock.ms += HOUR
    return world


def retire(world: World, name: str = "p", idle_ms: int = HOUR):
    return world.ask(RetireProducer(world.n, name, idle_ms))


def test_producers_are_listed_with_what_they_hold(world):
    """Owner, last time, next numbers and memory; names come in order and in bounded answers."""
    world.producer("q", nonce=b"q" * 16, label="other")
    listed = world.ask(ListProducers(world.n, ""))
    assert isinstance(listed, ProducersListed)
    (name, epoch, owner, last_at_ms, size, retired, numbers, partitions), other = listed.producers
    assert (name, epoch, owner, retired, partitions) == ("p", 1, "me", False, 2)
    assert numbers == (("t", 0, 2), ("t", 1, 1))
    assert listed.at_ms - last_at_ms == HOUR
    assert size > other[4] > 0
    assert (other[0], listed.more) == ("q", False)
    assert [row[0] for row in world.ask(ListProducers(world.n, "p")).producers] == ["q"]


def test_a_list_has_a_bound(monkeypatch):
    """The next question begins behind the last name."""
    monkeypatch.setattr("oncemq.core.broker.producer_requests.PRODUCERS_LISTED_MAX", 2)
    world = opened()
    for number in range(5):
        world.producer(f"p{number}", nonce=bytes([number]) * 16)
    seen, after, more = [], "", True
    while more:
        listed = world.ask(ListProducers(world.n, after))
        assert len(listed.producers) <= 2
        seen += [row[0] for row in listed.producers]
        after, more = seen[-1], listed.more
    assert seen == [f"p{number}" for number in range(5)]


def test_one_that_comes_back_goes_on(world):
    """Its next incarnation gets numbers and digest, and nothing is stored a second time."""
    assert isinstance(retire(world), Retired)
    for crash in (False, True):
        if crash:
            world.settle()
            world.driver.write_snapshot()
            world.crash()
            world.hello(version_max=4)
        assert world.core.state.producers.retired == 1
        assert world.core.state.producers.by_name["p"].rows == {}
    ready = world.ask(InitProducer(world.n, "p", b"m" * 16, "back"))
    assert ready.epoch == 2
    assert ready.partitions == (("t", 0, 2, b"d" * 16), ("t", 1, 1, b""))
    assert world.send(3, "x", epoch=2).code == "gap"
    assert runs(world.send(1, "b", "new", epoch=2)) == [(1, "duplicate", -1), (1, "stored", 2)]
    assert runs(world.send(0, "a", epoch=2)) == [(1, "duplicate", -1)]
    assert runs(world.send(2, "new", epoch=2)) == [(1, "duplicate", 2)]
    assert runs(world.send(2, "other", epoch=2)) == [(1, "conflict", 2)]
    assert world.stored() == ["a", "b", "new"]
    assert world.core.state.producers.retired == 0


def test_the_incarnation_that_had_the_name_is_refused_and_told_what_to_do(world):
    """Also when it asks for its epoch again; a stale one is fenced as before."""
    world.producer(nonce=b"2" * 16)
    world.clock.ms += HOUR
    retire(world)
    refused = world.send(2, "late", epoch=2)
    assert refused.code == "retired_producer"
    assert "start the program again" in refused.hint
    assert world.producer(nonce=b"2" * 16).code == "retired_producer"
    assert world.producer(nonce=b"n" * 16).code == "fenced"
    assert world.send(2, "late", epoch=1).code == "fenced"
    assert world.stored() == ["a", "b"]


def test_a_name_in_use_is_not_retired_unasked(world):
    """The broker compares, at the moment of the record; --force asks for no idle time at all."""
    world.send(2, "d")
    world.clock.ms += HOUR - 1
    assert retire(world).code == "producer_in_use"
    end = world.log.end
    assert world.log.end == end
    assert isinstance(retire(world, idle_ms=0), Retired)
    again = world.log.end
    assert isinstance(retire(world), Retired)
    assert world.log.end == again


def test_what_cannot_be_retired(world):
    """Unknown names, names of groups, and nothing at all on a full disk."""
    assert retire(world, "nobody").code == "unknown_producer"
    state = world.core.state
    state.producers._get("@g/t/0")
    assert retire(world, "@g/t/0").code == "invalid_name"
    world.log.reserve = refuse
    assert retire(world).code == "disk_full"


def test_retired_names_make_room_and_have_a_bound_of_their_own():
    """A full table takes new names again; the retired ones do not fill memory for ever either."""
    world = opened(producers_max=1, producers_retired_max=1)
    world.producer()
    refused = world.producer("q", nonce=b"q" * 16)
    assert refused.code == "busy"
    assert "retire" in refused.hint
    retire(world, idle_ms=0)
    assert world.producer("q", nonce=b"q" * 16).epoch == 1
    full = retire(world, "q", idle_ms=0)
    assert full.code == "busy"
    assert "1 retired names" in full.reason
    assert world.producer(nonce=b"m" * 16).code == "busy"


def test_numbers_of_a_deleted_topic_go_with_it(world):
    """A later topic of that name begins at 0, for a retired name too."""
    retire(world)
    topic = world.core.state.topics.by_name["t"]
    world.core.state.producers.forget_topic(topic.number)
    assert world.core.state.producers.by_name["p"].kept == {}


def test_memory_of_a_retired_name_is_small():
    """What is left does not depend on how much it has stored."""
    world = opened()
    world.producer()
    for number in range(60):
        world.send(number, "x" * 200)
    before = world.ask(ListProducers(world.n, "")).producers[0][4]
    retire(world, idle_ms=0)
    after = world.ask(ListProducers(world.n, "")).producers[0][4]
    assert after < before / 5
