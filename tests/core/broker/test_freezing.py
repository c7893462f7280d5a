"""Snapshots that are frozen over many turns, while records change what they show."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncemq.core.broker.freezing import Freezing
from oncemq.core.broker.state import BrokerState
from oncemq.limits import Limits
from oncemq.outcome import Snapshot
from oncemq.records import (
    NO_PLACE,
    BatchStored,
    GroupGranted,
    GroupRewound,
    ProducerGranted,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    Trimmed,
)
from tests.core.broker.help import World

NAMES = ("a", "b", "c")


class Life:
    """A state, and records that are possible in it."""

    def __init__(self) -> None:
        self.state = BrokerState(b"S" * 32, Limits(offset_index_step_bytes=1, offset_part_bytes=9))
        self.position = 0

    def apply(self, record: Any) -> None:
        self.state.apply(record, self.position)
        self.position += 3

    def act(self, what: str, name: str, number: int) -> None:
        """Do `what`, unless it is impossible now."""
        state = self.state
        topic = state.topics.by_name.get(name)
        if what == "topic" and topic is None:
            self.apply(TopicCreated(name, b"i" * 16, 2, number))
        elif what == "producer":
            known = state.producers.by_name.get(name)
            epoch = known.epoch + 1 if known else 1
            self.apply(ProducerGranted(name, epoch, bytes([number]) * 16, "me", number))
        elif topic is not None:
            self.act_in(what, name, number, topic)

    def act_in(self, what: str, name: str, number: int, topic: Any) -> None:
        state, key = self.state, (name, name, 0)
        partition = topic.partition(0)
        if what == "send" and (known := state.producers.by_name.get(name)):
            first = known.next_sequence((topic.number, 0))
            self.apply(
                BatchStored(
                    topic.number, 0, partition.end_offset, 2, number, name, known.epoch, first, b"",
                    b"", b"raw", 0, 2,
                )
            )  # fmt: skip
        elif what == "grant":
            old = state.groups.grants.get(key)
            epoch = old.epoch + 1 if old else 1
            self.apply(GroupGranted(*key, epoch, b"A" * 16, b"l", 0, "h", "/", "m", 0, NO_PLACE))
        elif what == "rewind" and key in state.groups.grants:
            self.apply(GroupRewound(*key, state.groups.grants[key].epoch, 0, number))
        elif what == "trim" and partition.end_offset > partition.log_start_offset:
            self.apply(Trimmed(topic.number, 0, partition.end_offset, "age", number))
        elif what == "configure":
            self.apply(TopicConfigured(topic.number, None, number + 1, None, False, number))
        elif what == "delete":
            self.apply(TopicDeleted(topic.number, number))


acts = st.tuples(
    st.sampled_from(
        ("topic", "producer", "send", "send", "grant", "rewind", "trim", "configure", "delete")
    ),
    st.sampled_from(NAMES),
    st.integers(0, 9),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(acts, max_size=25), st.lists(st.tuples(acts, st.integers(0, 2)), max_size=15))
def test_a_snapshot_shows_the_moment_in_which_it_began(before, after):
    """Whatever is applied while its rows are frozen: it is what it would have been at once."""
    life = Life()
    for what in (("topic", "a", 0), ("producer", "a", 0), ("send", "a", 0), *before):
        life.act(*what)
    expected = life.state.snapshot().whole()
    snapshot = life.state.snapshot()
    rows = []
    for what, taken in after:
        life.act(*what)
        rows += islice(snapshot.rows, taken)
    rows += snapshot.rows
    lists = Snapshot({}, frozenset(), snapshot.lists, iter(rows)).whole()
    assert {**snapshot.parts, **lists} == expected


def test_a_snapshot_of_many_rows_takes_many_turns() -> None:
    """No turn freezes much more than its bound, the broker does not sleep meanwhile, and all is kept."""
    world = World(limits=Limits(turn_freeze_bytes=100), snapshot_every=1 << 40)
    world.hello()
    world.topic()
    for number in range(40):
        world.producer(f"p{number}", label="m" * 100)
    world.driver._snapshot_every = 1
    world.turn()
    turns = 1
    while world.driver.time_left_ms() == 0:
        world.turn()
        turns += 1
    assert turns > 20
    assert world.events.named("snapshot.written")
    world.crash()
    world.hello()
    assert len(world.core.state.producers) == 40


def test_an_unknown_record_freezes_all_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who adds a kind of record need not know of snapshots."""
    life = Life()
    for name in NAMES:
        life.act("producer", name, 1)
    snapshot = life.state.snapshot()
    monkeypatch.setattr(BrokerState, "_apply_deleted", lambda *_: None)
    life.apply(TopicDeleted(0, 0))
    assert isinstance(life.state._freezing, Freezing)
    assert not any(life.state._freezing._left.values())
    assert len(snapshot.whole()["producers"]) == len(NAMES)
