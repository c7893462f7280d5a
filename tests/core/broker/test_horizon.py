"""Dedup horizons: what is older than the user asked for is refused, and never stored twice."""

from __future__ import annotations

import random

import pytest

from oncemq.protocol import CreateTopic
from tests.core.broker.help import OTHER, batch_with_ids, runs
from tests.core.broker.shop import AHEAD, HOUR, LIMITS, Shop, runs_of


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_within_the_horizon_a_resend_is_a_duplicate(shop):
    """The same id with the same time and body, in any partition, after a crash too."""
    then = shop.clock.ms
    assert shop.sell({"x": "1"}, then) == [(1, "stored", 0)]
    shop.clock.ms += HOUR - 1
    assert shop.sell({"x": "1"}, then) == [(1, "duplicate", 0)]
    shop.crash()
    shop.begin()
    assert shop.sell({"x": "1"}, then) == [(1, "duplicate", 0)]
    assert shop.sell({"x": "1"}, then, partition=1) == [(1, "duplicate", -1)]


def test_beyond_the_horizon_it_is_refused_and_never_stored_again(shop):
    """TooOld for that message alone; a new one beside it is stored."""
    then = shop.clock.ms
    shop.sell({"x": "1"}, then)
    shop.pass_time(3 * HOUR)
    end = len(shop.stored())
    batch = batch_with_ids([("x", "1"), ("new", "2")], created_at_ms=[then, shop.clock.ms])
    produce = shop.explicit(shop.counter, batch, session=shop.session)
    assert runs_of(shop.ask(produce, batch.raw)) == [(1, "too_old", -1), (1, "stored", end)]
    assert "1" not in shop.stored()[end:]
    told = shop.events.named("messages.too_old")
    assert told[-1]["count"] == 1
    shop.crash()
    shop.begin()
    assert shop.sell({"x": "1"}, then) == [(1, "too_old", -1)]


def test_what_was_never_stored_is_too_old_as_well(shop):
    """The broker cannot tell it from a resend."""
    shop.pass_time(3 * HOUR)
    assert shop.sell({"late": "1"}, shop.clock.ms - 2 * HOUR) == [(1, "too_old", -1)]


def test_the_time_belongs_to_the_body(shop):
    """A sender that stamps each attempt anew is told while the id is still known."""
    then = shop.clock.ms
    shop.sell({"x": "1"}, then)
    assert shop.sell({"x": "1"}, then + 5) == [(1, "conflict", 0)]
    assert shop.sell({"x": "2"}, then) == [(1, "conflict", 0)]
    assert shop.sell({"x": "1"}, then) == [(1, "duplicate", 0)]


def test_a_forgotten_id_with_a_new_time_is_another_message(shop):
    """It is stored, and from then on it is the one that is known, whatever lies in which file."""
    shop.sell({"x": "1"}, shop.clock.ms)
    shop.pass_time(4 * HOUR)
    now = shop.clock.ms
    [(_, verdict, offset)] = shop.sell({"x": "2"}, now)
    assert verdict == "stored"
    assert shop.sell({"x": "2"}, now) == [(1, "duplicate", offset)]
    shop.crash()
    shop.begin()
    assert shop.sell({"x": "2"}, now) == [(1, "duplicate", offset)]


def test_a_message_without_a_time_or_from_the_future_is_refused(shop):
    """It would be remembered for too short; the session goes on behind it."""
    end = shop.log.end
    assert shop.sell({"x": "1"}, None).code == "bad_created_at"
    assert shop.sell({"x": "1"}, shop.clock.ms + AHEAD + 1) == [(1, "ahead", -1)]
    assert shop.log.end == end
    assert len(shop.events.named("messages.ahead")) == 1
    assert shop.sell({"x": "1"}, shop.clock.ms + AHEAD) == [(1, "stored", 0)]


def test_an_id_twice_in_a_batch_is_refused_with_its_first(shop):
    """Its second time decides nothing: one id is one message."""
    shop.pass_time(3 * HOUR)
    now = shop.clock.ms
    items, times = [("x", "1"), ("x", "1"), ("y", "2"), ("y", "2")], [0, now, now, now]
    batch = batch_with_ids(items, created_at_ms=times)
    answer = shop.ask(shop.explicit(shop.counter, batch, session=shop.session), batch.raw)
    first = shop.core.state.topics.by_name["t"].partition(0).end_offset - 1
    assert runs_of(answer) == [(2, "too_old", -1), (1, "stored", first), (1, "duplicate", first)]


def test_clients_of_earlier_versions_cannot_send_ids_there(shop):
    """They know no verdict TooOld; numbers have no horizon, so those go on."""
    shop.hello(OTHER, version_max=3)
    batch = batch_with_ids([("x", "1")], created_at_ms=[shop.clock.ms])
    produce = shop.explicit(0, batch, session=b"o" * 16)
    assert shop.ask(produce, batch.raw, peer=OTHER).code == "not_supported"
    shop.producer()
    assert runs(shop.send(0, "numbered")) == [(1, "stored", 0)]


def test_a_shorter_horizon_forgets_nothing_at_once(shop):
    """Who sets it too short by mistake has its length of time to set it back."""
    shop = Shop("30d")
    then = shop.clock.ms
    shop.sell({"x": "1"}, then)
    shop.pass_time(5 * HOUR)
    shop.set("2h")
    shop.pass_time(HOUR)
    assert shop.sell({"x": "1"}, then) == [(1, "duplicate", 0)]
    shop.set("30d")
    shop.pass_time(10 * HOUR)
    assert shop.sell({"x": "1"}, then) == [(1, "duplicate", 0)]
    shop.set("2h")
    shop.pass_time(5 * HOUR)
    assert shop.sell({"x": "1"}, then) == [(1, "too_old", -1)]


@pytest.mark.parametrize("longer", ["30d", "forever"])
def test_a_longer_horizon_brings_nothing_back(shop, longer):
    """What was forgotten stays refused, with `forever` too; the floor never moves back."""
    then = shop.clock.ms
    shop.sell({"x": "1"}, then)
    shop.pass_time(3 * HOUR)
    floor = shop.core.state.topics.by_name["t"].horizon.floor_ms
    shop.set(longer)
    shop.pass_time(3 * HOUR)
    assert shop.sell({"x": "1"}, None).code == "bad_created_at"
    assert shop.core.state.topics.by_name["t"].horizon.floor_ms == floor
    assert shop.sell({"x": "1"}, then) == [(1, "too_old", -1)]


def test_ids_of_a_time_without_horizon_keep_their_bodies(shop):
    """Setting a horizon, or taking it away, makes no resend a conflict."""
    shop.set("forever")
    shop.sell({"plain": "1", "timed": "2"}, None)
    now = shop.clock.ms
    shop.set("1h")
    assert shop.sell({"plain": "1"}, now) == [(1, "duplicate", 0)]
    shop.sell({"dated": "3"}, now)
    shop.set("forever")
    assert shop.sell({"dated": "3"}, now) == [(1, "duplicate", 2)]
    assert shop.sell({"plain": "1"}, now + 7) == [(1, "duplicate", 0)]


def test_files_go_when_all_that_they_hold_is_forgotten(shop):
    """The index of a topic in use for many horizons stays as large as that of two or three."""
    sizes = []
    for _ in range(12):
        shop.pass_time(4 * HOUR)
        shop.settle()
        sizes.append(len(shop.core.state.ids))
    assert max(sizes[4:]) <= 6 * 8 + 2 * LIMITS.id_table_ids < 12 * 32
    shop.ask(CreateTopic(shop.n, "other", 1))
    batch = batch_with_ids([(f"o-{n}", "o") for n in range(20)])
    shop.ask(shop.explicit(0, batch, topic="other", session=b"o" * 16), batch.raw)
    shop.pass_time(8 * HOUR)
    again = shop.ask(shop.explicit(0, batch, topic="other", session=b"p" * 16), batch.raw)
    assert runs_of(again) == [(20, "duplicate", 0)]


@pytest.mark.parametrize("seed", range(12))
def test_restarts_forget_what_the_live_broker_forgot(seed):
    """Any mixture of sends, resends, settings, time, snapshots and crashes against a simple model."""
    chance, shop = random.Random(seed), Shop("2h")
    stored: dict[tuple[str, int], int] = {}  # (id, time) to offset: each is stored once
    for step in range(150):
        shop.clock.ms += chance.randrange(HOUR // 2)
        if chance.random() < 0.1:
            shop.set(chance.choice(["1h", "2h", "4h", "forever"]))
        if chance.random() < 0.1:
            shop.settle()
            shop.driver.write_snapshot()
        if chance.random() < 0.1:
            shop.crash()
            shop.begin()
        name = f"id-{chance.randrange(30)}"
        known = [key for key in stored if key[0] == name]
        fresh = (name, shop.clock.ms - chance.randrange(3 * HOUR))
        key = chance.choice(known) if known and chance.random() < 0.6 else fresh
        floor = shop.core.state.topics.by_name["t"].horizon.floor_ms
        [(_, verdict, offset)] = shop.sell({name: name}, key[1])
        if verdict == "stored":
            assert key not in stored, f"step {step}: {key} is stored a second time"
            assert key[1] >= floor
            stored[key] = offset
        elif verdict == "duplicate":
            assert any(offset == stored[one] for one in known)
        elif verdict == "too_old":
            assert key[1] < floor
    assert len(stored) > 40
