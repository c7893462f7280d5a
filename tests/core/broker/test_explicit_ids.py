"""Batches with explicit ids: exact dedup per topic, ordered by sessions."""

from __future__ import annotations

import zlib
from array import array

import pytest

from oncemq.codec import batch as batch_codec
from oncemq.ids import tagged_id
from oncemq.limits import LIMITS
from tests.core.broker.help import World, batch_of, batch_with_ids, refuse, runs


@pytest.fixture
def world() -> World:
    world = World()
    world.hello()
    world.topic(partitions=2)
    return world


def test_an_id_is_stored_once(world):
    """A resend is answered with the original offset, under any session."""
    assert runs(world.send_ids(0, {"x": "1", "y": "2"})) == [(2, "stored", 0)]
    assert runs(world.send_ids(1, {"y": "2", "x": "1"})) == [
        (1, "duplicate", 1),
        (1, "duplicate", 0),
    ]
    again = world.send_ids(0, {"x": "1", "y": "2"}, session=b"T" * 16)
    assert runs(again) == [(2, "duplicate", 0)]
    assert world.stored() == ["1", "2"]


def test_a_batch_of_one_duplicate_and_new_items(world):
    """Never all or nothing: the duplicate is reported, the new ones get dense offsets."""
    world.send_ids(0, {"x": "1"})
    assert runs(world.send_ids(1, {"a": "A", "x": "1", "b": "B"})) == [
        (1, "stored", 1),
        (1, "duplicate", 0),
        (1, "stored", 2),
    ]
    assert world.stored() == ["1", "A", "B"]
    world.crash()
    world.hello()
    assert world.stored() == ["1", "A", "B"]
    assert runs(world.send_ids(0, {"a": "A", "b": "B"})) == [(2, "duplicate", 1)]


def test_another_body_under_an_id_conflicts(world):
    """One id, one body, also after a restart."""
    world.send_ids(0, {"x": "1"})
    assert runs(world.send_ids(1, {"x": "2"})) == [(1, "conflict", 0)]
    world.crash()
    world.hello()
    assert runs(world.send_ids(0, {"x": "2", "z": "3"})) == [(1, "conflict", 0), (1, "stored", 1)]
    assert world.stored() == ["1", "3"]


def test_an_id_twice_in_one_batch_is_a_duplicate_of_its_first(world):
    """Inside a batch the first occurrence counts; another body under it is a conflict."""
    batch = batch_with_ids([("x", "1"), ("y", "2"), ("x", "1"), ("y", "9")])
    assert runs(world.ask(world.explicit(0, batch), batch.raw)) == [
        (2, "stored", 0),
        (1, "duplicate", 0),
        (1, "conflict", 1),
    ]
    assert world.stored() == ["1", "2"]


def test_text_and_bytes_ids_differ(world):
    """The type is part of the id."""
    world.send_ids(0, {"x": "1"})
    batch = batch_of("1", ids=[b"bx"])
    assert runs(world.ask(world.explicit(1, batch), batch.raw)) == [(1, "stored", 1)]


def test_ids_are_known_over_all_partitions(world):
    """Dedup is per topic: the same id for another partition is no new message."""
    world.send_ids(0, {"x": "1"})
    assert runs(world.send_ids(1, {"x": "1"}, partition=1)) == [(1, "duplicate", -1)]
    assert world.stored(partition=1) == []


def test_topics_do_not_share_ids(world):
    """An id belongs to its topic."""
    world.topic("u")
    world.send_ids(0, {"x": "1"})
    assert runs(world.send_ids(1, {"x": "1"}, topic="u")) == [(1, "stored", 0)]


def test_a_lost_batch_of_a_session_is_a_gap(world):
    """Nothing behind a lost batch is stored: order of a session holds."""
    world.send_ids(0, {"a": "1"})
    answer = world.send_ids(2, {"c": "3"})
    assert (answer.code, answer.expected) == ("gap", 1)
    world.send_ids(1, {"b": "2"})
    world.send_ids(2, {"c": "3"})
    assert world.stored() == ["1", "2", "3"]


def test_an_unknown_session_must_start_at_zero(world):
    """After a restart of the broker a session cannot go on; a new one can."""
    world.send_ids(0, {"a": "1"})
    world.crash()
    world.hello()
    assert world.send_ids(1, {"b": "2"}).code == "unknown_session"
    assert runs(world.send_ids(0, {"a": "1", "b": "2"}, session=b"T" * 16)) == [
        (1, "duplicate", 0),
        (1, "stored", 1),
    ]


def test_an_old_counter_stores_nothing_new(world):
    """A late copy is judged again; it cannot bring in messages behind the back of the order."""
    world.send_ids(0, {"a": "1"})
    world.send_ids(1, {"b": "2"})
    assert runs(world.send_ids(0, {"a": "1"})) == [(1, "duplicate", 0)]
    assert world.send_ids(0, {"a": "1", "new": "3"}).code == "unknown_session"
    assert world.stored() == ["1", "2"]


def test_a_final_refusal_advances_the_session(world):
    """The batch behind one that can never be stored is not held up."""
    assert world.send_ids(0, {"a": "1"}, topic="none").code == "unknown_topic"
    assert runs(world.send_ids(1, {"b": "2"})) == [(1, "stored", 0)]


def test_a_retriable_refusal_does_not_advance_the_session(world):
    """A batch refused for a full disk keeps its place: those behind it wait for its resend."""
    world.log.reserve = refuse
    assert world.send_ids(0, {"a": "1"}).code == "disk_full"
    del world.log.reserve
    world.settle()
    assert world.send_ids(1, {"b": "2"}).code == "unknown_session"
    world.send_ids(0, {"a": "1"})
    world.send_ids(1, {"b": "2"})
    assert world.stored() == ["1", "2"]


def test_the_session_table_is_bounded(world):
    """The least recently used session is forgotten; its client gets UnknownSession."""
    for number in range(LIMITS.sessions_max + 1):
        world.core._judge.sessions.advance(number.to_bytes(16, "big"), 0)
    assert len(world.core._judge.sessions) == LIMITS.sessions_max
    oldest, newest = (0).to_bytes(16, "big"), LIMITS.sessions_max.to_bytes(16, "big")
    assert world.send_ids(1, {"a": "1"}, session=oldest).code == "unknown_session"
    assert runs(world.send_ids(1, {"a": "1"}, session=newest)) == [(1, "stored", 0)]


def test_a_named_producer_may_give_ids_and_is_fenced_too(world):
    """Explicit ids under a name obey its epoch."""
    world.producer()
    assert runs(world.send_ids(0, {"a": "1"}, producer="p", epoch=1)) == [(1, "stored", 0)]
    world.producer(nonce=b"m" * 16)
    assert world.send_ids(1, {"b": "2"}, producer="p", epoch=1).code == "fenced"
    assert world.stored() == ["1"]


def test_a_batch_with_nothing_new_writes_no_record(world):
    """Duplicates cost the log nothing."""
    world.send_ids(0, {"a": "1"})
    end = world.log.end
    world.send_ids(1, {"a": "1"})
    world.send_ids(2, {"a": "2"})
    assert world.log.end == end


def test_a_batch_of_new_ids_makes_no_object_an_id(world):
    """Ids stay bytes in one block, at any size: the list of them is never made."""
    items = {f"id{n}": str(n) for n in range(5000)}
    batch = batch_of(*items.values(), ids=[tagged_id(name) for name in items])
    parsed = batch_codec.parse(batch.raw, batch.crc, check=True)
    topic = world.core.state.topics.by_name["t"]
    assert world.core.state.ids.judge(parsed, topic, 0, 0, 0).kept == 5000
    assert parsed._ids is None


def test_message_events_name_each_message():
    """With message events on, each id appears with its offset."""
    world = World(message_events=True)
    world.hello()
    world.topic()
    world.producer()
    world.send_ids(0, {"a": "1", "b": "2"})
    world.send_ids(1, {"b": "2", "c": "3"})
    world.send(0, "z")
    named = [(event["id"], event["offset"]) for event in world.events.named("message.appended")]
    assert named == [("a", 0), ("b", 1), ("c", 2), ("t/p:0:0", 3)]
    known = [(event["id"], event["offset"]) for event in world.events.named("message.duplicate")]
    assert known == [("b", 1)]


def lying(*items: tuple[str, str], hashes: list[int]):
    """A batch whose body hashes are those that the client claims."""
    batch = batch_with_ids(list(items))
    assert batch.hashes is not None
    true, claimed = batch.hashes.tobytes(), array("Q", hashes).tobytes()
    raw = bytes(batch.raw).replace(true, claimed)
    assert raw != batch.raw
    return batch_codec.parse(raw, zlib.crc32(raw), check=True)


def test_a_client_that_lies_about_hashes_deceives_nobody(world):
    """Another hash makes no conflict of the same body, and the same hash no duplicate of another."""
    honest = batch_with_ids([("x", "1")])
    world.ask(world.explicit(0, honest), honest.raw)
    liar = lying(("x", "1"), hashes=[7])
    assert runs(world.ask(world.explicit(1, liar), liar.raw)) == [(1, "duplicate", 0)]
    collides = lying(("x", "2"), hashes=list(honest.hashes))
    assert runs(world.ask(world.explicit(2, collides), collides.raw)) == [(1, "conflict", 0)]
    first = lying(("y", "1"), hashes=[5])
    assert runs(world.ask(world.explicit(3, first), first.raw)) == [(1, "stored", 1)]
    world.crash()
    world.hello()
    again = batch_with_ids([("y", "1")])
    assert runs(world.ask(world.explicit(0, again), again.raw)) == [(1, "duplicate", 1)]


def test_bodies_that_collide_for_the_client_differ_for_the_broker(world):
    """Who knows how clients hash can make two bodies alike; the broker's own hash is secret."""
    bodies = [f"body-{number}" for number in range(300)]
    for counter, body in enumerate(bodies):
        batch = lying(("x", body), hashes=[1])
        [(_, verdict, _)] = runs(world.ask(world.explicit(counter, batch), batch.raw))
        assert verdict == ("conflict" if counter else "stored")
