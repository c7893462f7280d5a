"""Topics with names of OnceMQ's own: their writers, and the grant under which they are read."""

from __future__ import annotations

import pytest

from oncemq.protocol import CreateTopic, Failure, Fetch, Fetched, Granted, Join, Produced
from tests.core.broker.help import World, batch_of, batch_with_ids


@pytest.fixture
def world() -> World:
    world = World()
    world.hello()
    for name in ("t", "t.dead", "t@g", "t@h"):
        world.topic(name)
    world.producer()
    ask = Join(world.n, "g", "t", 0, b"A" * 16, b"ledger", b"", b"", 0, 0, False, "h", "/s", "one")
    assert isinstance(world.ask(ask), Granted)
    return world


def test_a_private_topic_is_read_under_the_grant_of_its_topic(world: World) -> None:
    """The epoch of (g, t, 0) counts for t@g; no other epoch does, and no other group's topic."""
    fetched = world.ask(Fetch(world.n, "g", "t@g", 0, 1, 0, 1 << 20, 0))
    assert isinstance(fetched, Fetched)
    assert fetched.epoch == 1
    for topic, epoch in (("t@g", 2), ("t@h", 1)):
        refused = world.ask(Fetch(world.n, "g", topic, 0, epoch, 0, 1 << 20, 0))
        assert isinstance(refused, Failure)
        assert refused.code == "not_granted"


def test_a_private_topic_takes_explicit_ids_only(world: World) -> None:
    """A private topic takes no numbered messages and no named producer."""
    batch = batch_with_ids([("dead:0:0", "v")])
    stored = world.ask(world.explicit(0, batch, topic="t@g"), batch.raw)
    assert isinstance(stored, Produced)
    numbered = batch_of("v")
    named = batch_with_ids([("dead:0:1", "v")])
    for produce, body in (
        (world.numbered(0, numbered, topic="t@g"), numbered.raw),
        (
            world.explicit(0, named, topic="t@g", producer="p", epoch=1, session=b"z" * 16),
            named.raw,
        ),
    ):
        refused = world.ask(produce, body)
        assert isinstance(refused, Failure)
        assert refused.code == "invalid_name"


def test_dead_letters_come_from_consumers(world: World) -> None:
    """Nobody can forge a dead letter: only the output producer of a grant may write them."""
    batch = batch_of("v")
    forged = world.ask(world.numbered(0, batch, topic="t.dead"), batch.raw)
    assert isinstance(forged, Failure)
    assert forged.code == "invalid_name"
    output = world.numbered(0, batch, topic="t.dead", producer="@g/t/0", epoch=1)
    assert isinstance(world.ask(output, batch.raw), Produced)


def test_the_shapes_of_internal_names_are_checked(world: World) -> None:
    """T.dead and T@G of possible names, and nothing else."""
    for name in ("a.dead", "a@b"):
        assert not isinstance(world.ask(CreateTopic(world.n, name, 1)), Failure)
    for name in ("@g", "a@", "a@b@c", ".dead", "a/b.dead"):
        refused = world.ask(CreateTopic(world.n, name, 1))
        assert isinstance(refused, Failure), name
        assert refused.code == "invalid_name"
