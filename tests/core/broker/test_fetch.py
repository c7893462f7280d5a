"""Fetches: durable messages in order, long polls, bounded bytes."""

from __future__ import annotations

import pytest

from oncemq.codec import wire
from oncemq.driver import _Decoded
from oncemq.limits import ATTEST_IDLE_MS, FETCH_WAIT_MS_MAX, LIMITS, Limits
from oncemq.protocol import Fetch, Fetched
from tests.core.broker.help import OTHER, World, batch_of, values_of


def opened(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello()
    world.hello(OTHER)
    world.topic(partitions=3)
    world.producer()
    return world


@pytest.fixture
def world() -> World:
    return opened()


def wait_for(world: World, offset: int, peer: bytes = OTHER, **changes: int) -> Fetch:
    """Ask for `offset` with a long wait and let the turn pass."""
    fields = {"partition": 0, "max_bytes": 1 << 20, "max_wait_ms": 500, **changes}
    fetch = Fetch(
        world.n,
        "",
        "t",
        fields["partition"],
        0,
        offset,
        fields["max_bytes"],
        fields["max_wait_ms"],
    )
    world.put(fetch, peer=peer)
    world.turn()
    return fetch


def test_what_is_not_durable_is_not_shown(world):
    """A fetch in the turn of an append sees the durable end from before it."""
    batch = batch_of("a")
    world.take()
    world.put(world.numbered(0, batch), batch.raw)
    world.put(Fetch(world.n, "", "t", 0, 0, 0, 1000, 0))
    world.turn()
    fetched = [answer for answer in world.take() if isinstance(answer, Fetched)]
    assert [(answer.next_offset, answer.end_offset) for answer in fetched] == [(0, 0)]


def test_a_fetch_for_what_is_being_synced_waits_for_it(world):
    """It is answered once, with the messages, as soon as they are durable."""
    batch = batch_of("a")
    world.put(world.numbered(0, batch), batch.raw)
    wait_for(world, 0)
    assert world.take(OTHER) == []
    world.turn()
    assert [answer.next_offset for answer in world.take(OTHER)] == [1]


def test_a_fetch_behind_what_is_being_synced_goes_on_waiting(world):
    """A sync that brings it nothing does not answer it."""
    batch = batch_of("a")
    world.put(world.numbered(0, batch), batch.raw)
    wait_for(world, 1)
    world.settle()
    assert world.take(OTHER) == []
    world.send(1, "b")
    assert [answer.next_offset for answer in world.take(OTHER)] == [2]


def test_a_read_that_brings_more_than_is_durable_shows_less(world):
    """Whatever the log returns, the durable end of the turn is the limit."""
    world.send(0, "a")
    world.send(1, "b")
    partition = world.core.state.topics.get("t").partition(0)
    partition.durable_end_offset = 1
    assert [values_of(record) for record in world.fetch(0).stored] == [["a"]]


def test_a_reader_at_the_end_goes_on_from_there(world, monkeypatch):
    """Who has read all does not read it again for the next message."""
    for number in range(20):
        world.send(number, f"v{number}")
    world.fetch(0)
    end = world.log.end
    world.send(20, "next")
    starts: list[int] = []
    plain = world.log.read
    monkeypatch.setattr(world.log, "read", lambda at, size: starts.append(at) or plain(at, size))
    assert world.fetch(20).message.next_offset == 21
    assert len(starts) == 1
    assert starts[0] > end - 300


def test_a_fetch_that_waits_is_woken_by_the_sync(world):
    """A long poll at the end gets the next messages as soon as they are durable."""
    fetch = wait_for(world, 0)
    assert world.take(OTHER) == []
    world.send(0, "a")
    (answer,) = world.take(OTHER)
    assert (answer.request, answer.next_offset) == (fetch.request, 1)


def test_a_fetch_that_waits_is_answered_empty_in_time(world):
    """Nothing came: the answer is empty and names the asked offset, at the deadline, not before."""
    wait_for(world, 0)
    assert world.core.wake_at_ms == world.clock.ms + 500
    world.clock.ms += 499
    world.turn()
    assert world.take(OTHER) == []
    world.clock.ms += 1
    world.turn()
    (answer,) = world.take(OTHER)
    assert (answer.next_offset, answer.end_offset) == (0, 0)
    assert world.core.wake_at_ms is None


def test_other_partitions_wake_nobody(world):
    """Only growth of the partition that was asked for counts."""
    wait_for(world, 0, partition=1)
    world.send(0, "a")
    assert world.take(OTHER) == []
    world.send(0, "b", partition=1)
    assert len(world.take(OTHER)) == 1


def test_idle(world):
    """Nothing asked, nothing owed: no wake-up is wanted, and once the log is attested all rests."""
    world.clock.ms += ATTEST_IDLE_MS
    world.turn()
    end = world.log.end
    assert world.core.wake_at_ms is None
    for _ in range(10):
        world.clock.ms += 1000
        world.turn()
    assert (world.log.end, world.wire.sent) == (end, [])


def test_an_answer_starts_with_the_batch_that_contains_the_offset(world):
    """Batches are kept as they arrived: an offset in the middle gets the whole batch."""
    world.send(0, "a", "b", "c")
    received = world.fetch(1)
    assert [values_of(record) for record in received.stored] == [["a", "b", "c"]]
    assert received.stored[0].first_offset == 0
    assert received.message.next_offset == 3


def test_answers_are_bounded_by_bytes_but_hold_one_batch(world):
    """The fetch is the credit: whole batches up to the bytes asked for, at least one."""
    for number in range(5):
        world.send(number, "x" * 1000)
    assert len(world.fetch(0, max_bytes=1).stored) == 1
    assert len(world.fetch(1, max_bytes=2500).stored) == 2
    assert len(world.fetch(0, max_bytes=1 << 20).stored) == 5


def test_a_fetch_above_the_end_is_a_regressed_log(world):
    """A reader that knows more than the log must stop loudly."""
    world.send(0, "a")
    failure = world.fetch(2).message
    assert failure.code == "log_regressed"
    assert isinstance(world.fetch(1).message, Fetched)


def test_sequential_fetches_do_not_walk_again(world, monkeypatch):
    """A fetch that goes on reads from where the last one stopped."""
    for number in range(50):
        world.send(number, f"v{number}")
    world.driver._decoded = _Decoded(0)  # nothing stays in memory
    starts: list[int] = []
    plain = world.log.read
    monkeypatch.setattr(world.log, "read", lambda at, size: starts.append(at) or plain(at, size))
    offset = 0
    while offset < 50:
        received = world.fetch(offset, max_bytes=300)
        offset = received.message.next_offset
    assert starts == sorted(set(starts))


def test_partitions_far_apart_are_found_by_jumps(world, monkeypatch):
    """What lies between two batches of a partition does not have to be read."""
    world.send(0, "first")
    world.producer("q", b"q" * 16)
    for number in range(40):
        world.send(number, "x" * 60_000, producer="q", partition=1)
    world.send(1, "second")
    read_bytes = 0
    plain = world.log.read

    def read(position: int, size: int):
        nonlocal read_bytes
        records = plain(position, size)
        read_bytes += sum(record.end - record.position for record in records)
        return records

    monkeypatch.setattr(world.log, "read", read)
    received = world.fetch(0, max_bytes=10_000)
    assert [values_of(record) for record in received.stored] == [["first"], ["second"]]
    assert read_bytes < 4 * LIMITS.offset_index_step_bytes


def test_readers_of_many_partitions_share_what_is_read(monkeypatch):
    """The log is read once for all of them, a bounded part of it in a turn, the others waiting."""
    size, rounds, most = 10_000, 40, 50_000
    world = opened(turn_read_bytes_max=most)
    for number in range(rounds):
        for partition in range(3):
            world.send(number, f"{partition}-{number}-" + "x" * size, partition=partition)
    read_in_turns: list[int] = []
    plain = world.log.read

    def read(position: int, size: int):
        records = plain(position, size)
        read_in_turns[-1] += sum(record.end - record.position for record in records)
        return records

    monkeypatch.setattr(world.log, "read", read)
    world.take(OTHER)
    wanted = {
        world.put(Fetch(world.n, "", "t", partition, 0, 0, 1 << 22, 500), peer=OTHER): partition
        for partition in range(3)
    }
    got: dict[int, list[str]] = {partition: [] for partition in range(3)}
    while any(len(values) < rounds for values in got.values()):
        assert len(read_in_turns) < 500, got
        read_in_turns.append(0)
        world.clock.ms += 1
        world.turn()
        answers = [received for to, received in world.wire.sent if to == OTHER]
        world.take(OTHER)
        for received in answers:
            partition = wanted.pop(received.message.request)
            got[partition] += [value for r in received.stored for value in values_of(r)]
            again = Fetch(
                world.n, "", "t", partition, 0, received.message.next_offset, 1 << 22, 500
            )
            wanted[world.put(again, peer=OTHER)] = partition
    for partition, values in got.items():
        assert [value.split("-")[:2] for value in values] == [
            [str(partition), str(number)] for number in range(rounds)
        ]
    assert max(read_in_turns) < most + 2 * size
    assert sum(read_in_turns) < 1.5 * 3 * rounds * size, "not once for each partition"


def test_a_fetch_that_found_nothing_yet_waits_for_its_turn():
    """Many batches of others lie before its own: it is not answered empty, and nothing overtakes."""
    world = opened(turn_read_bytes_max=10_000)
    world.send(0, "first", partition=1)
    for number in range(5):  # within one step of the index
        world.send(number, "x" * 8_000)
    world.send(1, "second", partition=1)
    world.take(OTHER)
    wait_for(world, 1, partition=1)
    assert world.take(OTHER) == []
    for _ in range(30):
        world.clock.ms += 1
        world.turn()
    (answer,) = world.take(OTHER)
    assert (answer.next_offset, answer.end_offset) == (2, 2)


def test_new_fetches_do_not_starve_one_that_waits_for_its_turn():
    """Others ask in every turn, for as much as a turn may read: the one that waits comes first."""
    world = opened(turn_read_bytes_max=10_000)
    world.driver._decoded = _Decoded(0)
    world.send(0, "first", partition=1)
    for number in range(5):
        world.send(number, "x" * 10_500)
    world.send(1, "second", partition=1)
    world.take(OTHER)
    waits = wait_for(world, 1, partition=1)
    for _ in range(30):
        world.clock.ms += 1
        world.put(Fetch(world.n, "", "t", 0, 0, 0, 16_000, 500))
        world.turn()
    (answer,) = world.take(OTHER)
    assert (answer.request, answer.next_offset) == (waits.request, 2)


def test_one_turn_serves_a_bounded_number_of_bytes():
    """However many ask at once, a turn holds so many bytes; the others come next, in order."""
    world = opened(turn_bytes_max=5000)
    for number in range(10):
        world.send(number, "x" * 1000)
    peers = [b"%016d" % number for number in range(6)]
    for peer in peers:
        world.hello(peer)
    world.wire.sent.clear()
    for peer in peers:
        world.put(Fetch(world.n, "", "t", 0, 0, 0, 3000, 500), peer=peer)
    world.turn()
    assert [to for to, _ in world.wire.sent] == peers[:3]
    world.clock.ms += 1
    world.turn()
    assert [to for to, _ in world.wire.sent] == peers
    world.clock.ms += 1000
    world.settle()
    assert [to for to, _ in world.wire.sent] == peers


def test_a_newer_fetch_replaces_the_one_that_waits(world):
    """One peer holds one place at the end of a partition: the earlier fetch is answered empty."""
    first = wait_for(world, 0)
    second = wait_for(world, 0)
    (answer,) = world.take(OTHER)
    assert (answer.request, answer.next_offset) == (first.request, 0)
    world.put(second, peer=OTHER)  # the network doubles it
    world.turn()
    world.send(0, "a")
    assert [answer.request for answer in world.take(OTHER)] == [second.request]
    assert world.core.wake_at_ms is None or world.core.wake_at_ms >= world.clock.ms


def test_waiting_fetches_are_bounded():
    """One fetch too many gets Busy."""
    world = opened(waiting_fetches_max=2)
    for partition in range(2):
        wait_for(world, 0, partition=partition)
    world.take(OTHER)
    wait_for(world, 0, partition=2)
    (refused,) = world.take(OTHER)
    assert refused.code == "busy"
    assert "2 fetches wait" in refused.reason
    assert "asks again" in refused.hint


def test_deadlines_of_replaced_fetches_are_forgotten(world):
    """Replacing the fetch that waits again and again does not grow the broker."""
    for _ in range(500):
        wait_for(world, 0, max_wait_ms=30_000)
    assert len(world.core._fetches.deadlines) < 100
    assert len(world.core._fetches.waiting) == 1


def test_waits_are_bounded(world):
    """No fetch waits longer than the limit."""
    wait_for(world, 0, max_wait_ms=2**40)
    assert world.core.wake_at_ms == world.clock.ms + FETCH_WAIT_MS_MAX


def test_many_small_batches_fit_one_frame(world):
    """What the answer holds besides the batches counts towards its bytes."""
    name = "é" * 64
    world.producer(name)
    for number in range(100):
        world.send(number, "x", producer=name, digest=b"d" * 64)
    received = world.fetch(0, max_bytes=8000)
    size = len(wire.pack_stored(received.stored))
    assert 4000 < size <= 8000


def test_after_a_restart_all_is_readable(world):
    """What was durable is shown at once, found through the rebuilt index."""
    for number in range(20):
        world.send(number, "x" * 20_000)
    world.crash()
    world.hello()
    assert world.stored() == ["x" * 20_000] * 20
    assert len(world.core.state.topics.get("t").partition(0).index) >= 2
