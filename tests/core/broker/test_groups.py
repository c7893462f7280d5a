"""Grants: one owner, fenced by epoch, with the one ledger; leases only decide when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oncemq import limits
from oncemq.limits import Limits
from oncemq.protocol import (
    Fetch,
    Granted,
    InitProducer,
    Join,
    Leave,
    Left,
    ListGroups,
    Renew,
    Rewind,
    Standby,
)
from tests.core.broker.help import OTHER, World, batch_of, runs

OUTPUTS = "@g/t/0"


def opened(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello()
    world.hello(OTHER)
    world.topic()
    world.producer()
    world.send(0, *"abcdefghij")
    return world


@pytest.fixture
def world() -> World:
    return opened()


def join(world: World, who: bytes = b"A", **changes):
    """Ask for the grant as incarnation `who` and return the answer."""
    ask = Join(
        world.n, "g", "t", 0, who * 16, b"ledger", b"", b"", 0, 0, False, "host-1", "/state", "one"
    )
    return world.ask(replace(ask, **changes))


def fetch(world: World, epoch: int, offset: int = 0):
    return world.ask(Fetch(world.n, "g", "t", 0, epoch, offset, 1 << 20, 0))


def test_the_first_joiner_is_granted(world):
    """A free partition goes to the first joiner, with the facts that it must check."""
    granted = join(world)
    assert isinstance(granted, Granted)
    assert (granted.epoch, granted.end_offset, granted.lease_ms) == (1, 10, limits.LEASE_MS)
    assert (granted.log_id, granted.topic_id) == (world.core.log_id, b"\0" * 15 + b"\2")


def test_asking_again_gets_the_same_grant(world):
    """A lost answer costs nothing: one incarnation, one epoch, until it was used."""
    assert join(world).epoch == 1
    end = world.log.end
    assert join(world).epoch == 1
    assert world.log.end == end
    assert join(world, highest_generation=1).epoch == 2


def test_the_second_member_stands_by_and_takes_over_after_the_lease(world):
    """While the lease runs the other joiner waits and learns the owner; then it is granted."""
    join(world)
    standby = join(world, b"B", label="two")
    assert isinstance(standby, Standby)
    assert (standby.owner, standby.lease_left_ms) == ("one", limits.LEASE_MS)
    world.clock.ms += limits.LEASE_MS - 1
    assert isinstance(join(world, b"B"), Standby)
    world.clock.ms += 1
    assert join(world, b"B").epoch == 2
    assert [event["epoch"] for event in world.events.named("group.lease_expired")] == [1]


def test_renewing_keeps_the_others_waiting(world):
    """A slow handler keeps its partition as long as its process renews."""
    join(world)
    for _ in range(10):
        world.clock.ms += limits.LEASE_MS - 1
        assert world.ask(Renew(world.n, "g", "t", 0, 1)).epoch == 1
    assert isinstance(join(world, b"B"), Standby)


def test_leaving_frees_at_once(world):
    """A clean stop hands over without waiting, and the reported offset is remembered."""
    join(world)
    world.ask(Leave(world.n, "g", "t", 0, 1, 7))
    assert world.ask(Renew(world.n, "g", "t", 0, 1)).code == "not_granted"
    assert fetch(world, 1).code == "not_granted"
    assert join(world, b"B", next_offset=6).code == "ledger_not_here"
    assert join(world, b"B", next_offset=7).epoch == 2


def test_who_left_and_comes_back_gets_a_new_epoch(world):
    """A grant that was given back is not handed out again, not even to the same incarnation."""
    join(world)
    world.ask(Leave(world.n, "g", "t", 0, 1, 0))
    assert join(world).epoch == 2


def test_leaving_with_an_impossible_offset_is_refused(world):
    """A hostile goodbye cannot lock the group out of its own ledger."""
    join(world)
    assert world.ask(Leave(world.n, "g", "t", 0, 1, 11)).code == "log_regressed"
    assert world.ask(Leave(world.n, "g", "t", 0, 1, 10)).request > 0


def test_the_lock_of_the_granted_generation_proves_death(world):
    """Whoever holds it need not wait; a lock of an older generation proves nothing.

    Nor does a lock in another place than the grant names: there lies a copy of the ledger.
    """
    join(world)
    assert isinstance(join(world, b"B", lock_held=True, highest_generation=0), Standby)
    proof = {"lock_held": True, "highest_generation": 1}
    assert isinstance(join(world, b"B", **proof, path="/copy"), Standby)
    assert isinstance(join(world, b"B", **proof, host="host-2"), Standby)
    assert join(world, b"B", lock_held=True, highest_generation=1).epoch == 2


@pytest.mark.parametrize(
    ("known", "joins", "hint"),
    [
        ({}, {"path": "/other"}, "on host-1 with the --state directory"),
        ({}, {"host": "host-2"}, "on host-1 with the --state directory"),
        ({}, {}, "deleted or replaced there"),
        ({}, {"ledger_id": b"ledger", "next_offset": 3}, "a copy or an old backup"),
        ({"path": "sqlite:////srv/shop.db (oncemq_ledger)"}, {}, "sink='sqlite:////srv/shop.db'"),
    ],
)
def test_the_hint_of_another_ledger_follows_the_cause(world, known, joins, hint):
    """A state directory, a database, a lost ledger and an old one have ways back of their own."""
    join(world, **known, next_offset=7)
    refused = join(world, b"B", **{"ledger_id": b"other", **joins})
    assert refused.code == "ledger_not_here"
    assert hint in refused.hint


NEW = {"ledger_id": b"new ledger", "path": "/new"}


def test_an_operator_may_replace_a_lost_ledger(world):
    """It waits for a live owner; until the rewind no consumer goes on, whatever dies in between."""
    join(world, next_offset=7)
    world.topic("out")
    world.send(0, "sent", producer=OUTPUTS, topic="out", epoch=1)
    assert join(world, b"B", **NEW).code == "ledger_not_here"
    assert isinstance(join(world, b"B", **NEW, replaces=True), Standby)
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B", **NEW, replaces=True).epoch == 2
    [told] = world.events.named("group.ledger_replaced")
    assert (told["ledger_id"], told["next_offset"]) == (b"ledger".hex(), 7)
    started = {**NEW, "topic_id_seen": world.core.state.topics.get("t").topic_id}
    for restart in (False, True):
        if restart:
            world.crash()
            world.hello()
        world.clock.ms += limits.LEASE_MS
        assert join(world, b"C", **NEW).code == "ledger_not_here"
        assert join(world, b"C", **started).code == "ledger_not_here"
        assert join(world, b"C", next_offset=7).code == "ledger_not_here", "the lost one came back"
    again = join(world, b"D", **started, highest_generation=2, replaces=True)
    assert again.epoch == 3
    world.ask(Rewind(world.n, "g", "t", 0, 3, 0))
    assert isinstance(world.ask(Leave(world.n, "g", "t", 0, 3, 0)), Left)
    assert join(world, b"E", **NEW, highest_generation=3).code == "ledger_not_here", "empty"
    assert join(world, b"E", **started, highest_generation=3).epoch == 4
    assert join(world, b"A", next_offset=7).code == "ledger_not_here"


def test_an_empty_ledger_whose_outputs_are_stored_is_refused(world):
    """It has sent them after its first record: it was restored to the time before."""
    granted = join(world)
    assert join(world, highest_generation=1).epoch == 2, "nothing was sent: it may be new"
    world.topic("out")
    world.send(0, "sent", producer=OUTPUTS, topic="out", epoch=2)
    assert join(world, highest_generation=2).code == "ledger_not_here"
    assert join(world, highest_generation=2, topic_id_seen=granted.topic_id).epoch == 3


def test_a_zombie_that_only_polls_gets_nothing(world):
    """After a takeover the old epoch is refused everywhere, waiting fetches included."""
    join(world)
    waiting = Fetch(world.n, "g", "t", 0, 1, 10, 1000, 30_000)
    world.take()
    world.put(waiting)
    world.turn()
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B").epoch == 2
    assert fetch(world, 1).code == "not_granted"
    assert world.ask(Renew(world.n, "g", "t", 0, 1)).code == "not_granted"
    assert world.ask(Leave(world.n, "g", "t", 0, 1, 10)).code == "not_granted"
    world.take()
    batch = batch_of("k")
    world.put(world.numbered(10, batch), batch.raw, peer=OTHER)
    world.turn()
    world.turn()
    (answer,) = world.take()
    assert (answer.request, answer.code) == (waiting.request, "not_granted")
    assert fetch(world, 2, 10).next_offset == 11


def test_a_grant_fences_the_output_producer_with_it(world):
    """The epoch of the grant is the epoch of the outputs: a replaced owner cannot send any."""
    join(world)
    world.topic("out")
    ready = world.ask(InitProducer(world.n, OUTPUTS, b"A" * 16, "one"))
    assert (ready.epoch, ready.partitions) == (1, ())
    sent = {"producer": OUTPUTS, "topic": "out"}
    assert runs(world.send(0, "x", epoch=1, **sent)) == [(1, "stored", 0)]
    topic_id = world.core.state.topics.get("t").topic_id
    join(world, b"A", highest_generation=7, topic_id_seen=topic_id)
    assert world.send(1, "y", epoch=1, **sent).code == "fenced"
    ready = world.ask(InitProducer(world.n, OUTPUTS, b"A" * 16, "one"))
    assert (ready.epoch, ready.partitions) == (8, (("out", 0, 1, b""),))
    assert world.ask(InitProducer(world.n, OUTPUTS, b"B" * 16, "?")).code == "unknown_producer"
    assert runs(world.send(1, "y", epoch=8, **sent)) == [(1, "stored", 1)]


def test_epochs_rise_above_every_generation(world):
    """The epoch is the ledger's next generation, so it is above all that the ledger has."""
    assert join(world, highest_generation=41).epoch == 42
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B", highest_generation=3).epoch == 43
    assert join(world, b"B", highest_generation=2**50, partition=0).code == "protocol"


def test_another_ledger_is_refused_and_told_where_the_right_one_is(world):
    """A wrong working directory gives no grant, not a replay."""
    join(world, next_offset=0)
    refused = join(world, b"B", ledger_id=b"other", path="/elsewhere", host="host-2")
    assert refused.code == "ledger_not_here"
    assert "host-1" in refused.reason
    assert "/state" in refused.reason
    world.crash()
    world.hello()
    assert join(world, b"B", ledger_id=b"other").code == "ledger_not_here"


def test_yesterdays_copy_of_the_ledger_is_refused(world):
    """The same ledger at an older offset than it once reported is a copy or a restored backup."""
    join(world, next_offset=5)
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B", next_offset=4).code == "ledger_not_here"
    assert join(world, b"B", next_offset=5).epoch == 2


def test_a_ledger_below_what_its_owner_has_committed_is_refused(world):
    """Renewals tell what is durable: an older copy is known as one, and for good with a grant."""
    epoch = join(world, next_offset=2).epoch
    world.ask(Renew(world.n, "g", "t", 0, epoch, b"m" * 16, 7))
    world.clock.ms += limits.LEASE_MS
    refused = join(world, b"B", next_offset=6)
    assert refused.code == "ledger_not_here"
    assert "at offset 7 or above; this is an older state" in refused.reason
    assert join(world, b"B", next_offset=7).epoch == 2
    world.crash()
    world.hello()
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"C", next_offset=6).code == "ledger_not_here"
    assert join(world, b"C", next_offset=7).epoch == 3


def test_a_ledger_ahead_of_the_log_is_refused(world):
    """The log was wiped or restored: nothing is granted."""
    assert join(world, next_offset=11).code == "log_regressed"
    assert isinstance(join(world, next_offset=10), Granted)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"log_id_seen": b"another"}, "store_mismatch"),
        ({"topic_id_seen": b"another"}, "store_mismatch"),
        ({"topic": "none"}, "unknown_topic"),
        ({"partition": 1}, "unknown_topic"),
        ({"group": "a/b"}, "invalid_name"),
        ({"ledger_id": b""}, "protocol"),
        ({"incarnation": b"short"}, "protocol"),
    ],
)
def test_joins_that_do_not_fit_are_refused(world, changes, code):
    """Another log, another topic, no such place: a typed refusal, no grant, an event."""
    assert join(world, **changes).code == code
    assert len(world.core.state.groups) == 0
    assert world.events.named("group.refused")[0]["code"] == code


def test_after_a_restart_every_grant_has_a_full_lease(world):
    """A broker that was away for long takes no partition from anybody at once."""
    join(world)
    world.clock.ms += 10 * limits.LEASE_MS
    world.crash()
    world.hello()
    assert isinstance(join(world, b"B"), Standby)
    assert fetch(world, 1).next_offset == 10
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B").epoch == 2


def test_grants_are_bounded():
    """One group too many is refused with Busy; known groups go on."""
    world = opened(groups_max=1)
    join(world)
    assert join(world, group="h").code == "busy"
    world.clock.ms += limits.LEASE_MS
    assert join(world, b"B").epoch == 2


def test_the_list_of_groups_shows_owners(world):
    """Who has what, where its ledger lies, and whether its lease runs."""
    join(world)
    assert world.ask(ListGroups(world.n)).groups == (
        ("g", "t", 0, 1, "one", "host-1", "/state", True),
    )
    world.clock.ms += limits.LEASE_MS
    assert world.ask(ListGroups(world.n)).groups[0][-1] is False


def test_a_list_that_fits_no_frame_is_refused(world):
    """The answer is an error, not a frame that breaks the connection."""
    path = "/" * 4000
    too_many = limits.FRAME_BYTES_MAX // (4 * len(path)) + 1
    for number in range(too_many - 10):
        join(world, group=f"g{number}", path=path)
    assert len(world.ask(ListGroups(world.n)).groups) == too_many - 10
    for number in range(too_many - 10, too_many):
        join(world, group=f"g{number}", path=path)
    assert world.ask(ListGroups(world.n)).code == "too_large"


def test_groups_do_not_share_grants(world):
    """Each group has its own owner of a partition."""
    assert join(world).epoch == 1
    assert join(world, b"B", group="h", ledger_id=b"other").epoch == 1
    assert fetch(world, 1).next_offset == 10
