"""A broker's history has marks, and a place that its log does not hold is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from oncemq.core.broker.core import CheckFence
from oncemq.history import NO_PLACE, UNMARKED, History, Place, shown
from oncemq.protocol import (
    Fetch,
    Fetched,
    Granted,
    Join,
    Ping,
    Produced,
    Welcome,
    place_in,
)
from tests.core.broker.help import OTHER, World, refuse

V3: dict[str, Any] = {"version_min": 3, "version_max": 3}


@pytest.fixture
def world() -> World:
    world = World()
    world.hello(**V3)
    world.topic()
    world.producer()
    return world


def join(world: World, **changes: Any) -> Any:
    ask = Join(world.n, "g", "t", 0, b"i" * 16, b"ledger", b"", b"", 0, 0, False, "h", "/s", "one")
    return world.ask(replace(ask, **changes))


def hello_from(world: World, place: Place) -> Any:
    return world.hello(OTHER, **V3, mark=place.mark, position=place.position)


# --- marks ---------------------------------------------------------------------------------------


def test_a_place_is_held_as_far_as_its_history_reaches() -> None:
    """Up to where the next mark begins, or to the end; an unknown mark never."""
    history = History([(b"a", 0), (b"b", 100)])
    held = [history.holds(Place(b"a", at), 150) for at in (0, 100, 101)]
    held += [history.holds(Place(b"b", at), 150) for at in (100, 150, 151)]
    assert held == [True, True, False, True, True, False]
    assert not history.holds(Place(b"c", 0), 150)


def test_records_lie_in_the_history_that_began_last_before_them() -> None:
    """Records before the first mark are one history of their own."""
    history = History([(b"b", 100)])
    assert history.begins == [(UNMARKED, 0), (b"b", 100)]
    assert history.place_of(99) == Place(UNMARKED, 100)
    assert history.place_of(100) == Place(b"b", 101)
    assert history.covering([5, 60]) == ((UNMARKED, 0),)
    assert history.covering([5, 100]) == ((UNMARKED, 0), (b"b", 100))
    assert History().place_of(5) == NO_PLACE
    assert History().covering([5]) == ()


def test_each_start_begins_a_history_before_it_answers(world: World) -> None:
    """The mark is durable when the first answer leaves, and is there after a replay."""
    (first,) = world.core.state.history.begins
    assert first == (world.core.state.history.current, 0)
    world.crash()
    assert world.log.durable_end > world.core.state.history.begins[1][1]
    assert world.core.state.history.begins[0] == first
    assert len(world.core.state.history) == 2
    assert [one["generation"] for one in world.events.named("history.begun")] == [2, 3]


def test_marks_survive_in_snapshots() -> None:
    """A place of the first generation is still held after a restart from a snapshot."""
    world = World(snapshot_every=1)
    world.hello(**V3)
    place = place_in(world.topic() and world.producer())
    for _ in range(2):
        world.crash()
    assert world.log.snapshots()
    assert isinstance(hello_from(world, place), Welcome)


def test_a_full_disk_delays_the_mark_and_all_that_would_be_written() -> None:
    """The broker answers readers meanwhile; its first record is the mark."""
    world = World()
    world.hello(**V3)
    world.topic()
    world.producer()
    produced = world.send(0, "a")
    end = world.log.durable_end

    class Full(World):
        def turn(self) -> None:
            if self.log.generation == 3 and len(self.core.state.history) == 1:
                self.log.reserve = refuse  # type: ignore[method-assign]
            super().turn()

    world.driver.close(clean=False)
    world.disk.drop_locks()
    again = Full(disk=world.disk)
    assert isinstance(again.hello(**V3), Welcome)
    assert len(again.core.state.history) == 1
    fetched = again.fetch().message
    assert isinstance(fetched, Fetched)
    assert [mark for mark, _ in fetched.marks] == [produced.mark]
    assert again.producer("q").code == "disk_full"
    assert again.log.end == end
    del again.log.reserve
    again.driver.turn(0)
    again.settle()
    assert len(again.core.state.history) == 2
    assert again.core.state.history.begins[1][1] == end
    assert again.producer("q").epoch == 1


# --- what answers say ----------------------------------------------------------------------------


def test_answers_carry_the_place_of_who_relies_on_them(world: World) -> None:
    """It covers the record that the answer is about, and the broker holds it from then on."""
    mark = world.core.state.history.current
    answers = [
        world.send(0, "a"),
        world.send(0, "a"),  # a duplicate
        world.producer("q"),
        join(world),
    ]
    for answer in answers:
        assert answer.mark == mark
        assert isinstance(hello_from(world, place_in(answer)), Welcome)
    batch = world.fetch().message
    assert answers[0].durable > batch.positions[0]
    world.crash()
    for answer in answers:
        assert isinstance(hello_from(world, place_in(answer)), Welcome)


def test_a_place_from_after_an_idle_time_is_held(world: World) -> None:
    """The frame that attests the last group moves the end of the log, which no answer may tell."""
    world.send(0, "a")
    world.clock.ms += 1_000
    world.turn()
    assert world.log.attested == world.log.durable_end
    welcome = hello_from(world, NO_PLACE)
    assert isinstance(hello_from(world, place_in(welcome)), Welcome)
    duplicate = world.send(0, "a")
    assert isinstance(hello_from(world, place_in(duplicate)), Welcome)


def test_a_fetched_batch_says_where_it_lies(world: World) -> None:
    """One position for each batch, and the marks of just these."""
    first = world.core.state.history.current
    world.send(0, "a")
    world.crash()
    world.hello(**V3)
    world.send(1, "b")
    second = world.core.state.history.current
    received = world.fetch()
    fetched = received.message
    assert len(fetched.positions) == len(received.stored) == 2
    assert [mark for mark, _ in fetched.marks] == [first, second]
    places = [History(fetched.marks).place_of(at) for at in fetched.positions]
    assert [place.mark for place in places] == [first, second]
    assert [mark for mark, _ in world.fetch(1).message.marks] == [second]


@pytest.mark.parametrize("version", [1, 2])
def test_older_clients_get_messages_that_they_know(world: World, version: int) -> None:
    """Fields of version 3 stay at their defaults, which are not on the wire."""
    welcome = world.hello(version_min=1, version_max=version)
    answers = [welcome, world.send(0, "a"), world.producer("q"), join(world)]
    assert {type(one) for one in answers[1:2]} == {Produced}
    assert [(one.mark, one.durable) for one in answers] == [(b"", 0)] * 4
    fetched = world.fetch().message
    assert (fetched.positions, fetched.marks) == ((), ())


# --- what is refused -----------------------------------------------------------------------------


class Restored:
    """A broker that was started from a copy of its data, and grew anew."""

    def __init__(self, grown: int) -> None:
        """`kept` and `lost` are places of who relied on messages 0 and 1, and on 2 and 3."""
        world = self.world = World()
        world.hello(**V3)
        world.topic()
        world.producer()
        self.kept = place_in(world.send(0, "a", "b"))
        saved = copy.deepcopy(world.disk)
        self.lost = place_in(world.send(2, "c", "d"))
        world.driver.close(clean=False)
        world.disk = saved
        world.disk.drop_locks()
        world.start()
        world.hello(**V3)
        world.producer(nonce=b"m" * 16)
        for number in range(grown):
            world.send(2 + number, f"new {number}", epoch=2)


GROWN = [0, 1, 2, 5]


@pytest.mark.parametrize("grown", GROWN)
def test_a_hello_with_a_lost_place_is_refused(grown: int) -> None:
    """Both histories are named, and what to do."""
    restored = Restored(grown)
    refused = hello_from(restored.world, restored.lost)
    assert refused.code == "log_regressed"
    assert str(restored.lost) in refused.reason
    assert shown(restored.world.core.state.history.current) in refused.reason
    assert "send them again" in refused.hint
    assert restored.world.ask(Ping(restored.world.n), peer=OTHER).code == "hello_required"
    assert isinstance(hello_from(restored.world, restored.kept), Welcome)


@pytest.mark.parametrize("grown", GROWN)
def test_a_ledger_with_a_lost_place_is_not_granted(grown: int) -> None:
    """At the same offset as one that is; an operator who accepts the loss is granted."""
    restored = Restored(grown)
    world, lost, kept = restored.world, restored.lost, restored.kept
    asked: dict[str, Any] = {"next_offset": 2, "topic_id_seen": b""}
    refused = join(world, **asked, mark=lost.mark, position=lost.position)
    assert refused.code == "log_regressed"
    assert "oncemq groups seek" in refused.hint
    granted = join(world, **asked, mark=kept.mark, position=kept.position)
    assert isinstance(granted, Granted)
    accepted = join(
        world,
        **{**asked, "next_offset": 99},
        mark=lost.mark,
        position=lost.position,
        accepts=True,
        incarnation=b"o" * 16,
        highest_generation=granted.epoch,
        lock_held=True,
    )
    assert isinstance(accepted, Granted)


@pytest.mark.parametrize("grown", GROWN)
def test_a_fetch_behind_a_lost_place_is_not_answered(grown: int) -> None:
    """What was read before it is not of this log, whatever offset comes next."""
    restored = Restored(grown)
    world = restored.world
    fetch = Fetch(world.n, "", "t", 0, 0, 2, 1 << 20, 0, *restored.lost)
    assert world.ask(fetch).code == "log_regressed"
    fetch = Fetch(world.n, "", "t", 0, 0, 2, 1 << 20, 0, *restored.kept)
    assert isinstance(world.ask(fetch), Fetched)


def test_a_place_of_another_copy_is_unknown_here(world: World) -> None:
    """A mark that this log never had, at a position that it has."""
    refused = hello_from(world, Place(b"?" * 16, 1))
    assert refused.code == "log_regressed"
    assert "has no history" in refused.reason


@pytest.mark.parametrize("ask", ["hello", "join", "fetch"])
def test_a_broker_that_lacks_a_past_looks_for_a_successor(world: World, ask: str) -> None:
    """A zombie must not tell clients of its successor that the log has regressed."""
    unknown = Place(b"?" * 16, 1)
    refused = {
        "hello": lambda: hello_from(world, unknown),
        "join": lambda: join(world, mark=unknown.mark, position=1),
        "fetch": lambda: world.ask(Fetch(world.n, "", "t", 0, 0, 0, 1, 0, *unknown)),
    }[ask]()
    assert refused.code == "log_regressed"
    assert world.work == [CheckFence()]


@pytest.mark.parametrize("mark", [b"short", b"x" * 17])
def test_a_mark_of_another_length_is_refused(world: World, mark: bytes) -> None:
    """ProtocolError: it is no mark."""
    assert hello_from(world, Place(mark, 1)).code == "protocol"
    assert join(world, mark=mark).code == "protocol"


def test_who_joined_with_a_place_once_never_joins_without_one(world: World) -> None:
    """Also after a restart, from the records and from a snapshot."""
    place = place_in(world.send(0, "a"))
    granted = join(world, mark=place.mark, position=place.position)
    assert isinstance(granted, Granted)
    for start in range(3):
        again = join(world, incarnation=b"j" * 16, lock_held=True, highest_generation=1)
        assert again.code == "ledger_not_here", start
        if start:
            world.driver.write_snapshot()
        world.crash()
        world.hello(**V3)
