"""Batches with sequence ids: contiguous, compared with their originals, fenced by epochs."""

from __future__ import annotations

import pytest

from oncemq.limits import LIMITS, Limits
from oncemq.protocol import Failure, InitProducer, Produced
from tests.core.broker.help import OTHER, World, batch_of, runs


def opened(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello()
    world.topic()
    world.producer()
    return world


@pytest.fixture
def world() -> World:
    return opened()


def test_numbers_are_stored_in_order_and_read_back(world):
    """What is acknowledged is read back at its offset with its content."""
    assert runs(world.send(0, "a", "b")) == [(2, "stored", 0)]
    assert runs(world.send(2, "c")) == [(1, "stored", 2)]
    assert world.stored() == ["a", "b", "c"]


def test_a_gap_is_refused_and_names_the_expected_number(world):
    """Numbers above the next one would hide lost messages: nothing is stored."""
    world.send(0, "a")
    answer = world.send(2, "c")
    assert (answer.code, answer.expected) == ("gap", 1)
    assert world.stored() == ["a"]


def test_a_resend_gets_the_original_offsets(world):
    """One number, one offset: a resend is a duplicate at the place of its original."""
    world.send(0, "a", "b")
    world.send(2, "c", "d")
    assert runs(world.send(0, "a", "b")) == [(2, "duplicate", 0)]
    assert runs(world.send(2, "c", "d")) == [(2, "duplicate", 2)]
    assert runs(world.send(1, "b", "c", "d")) == [(3, "duplicate", 1)]
    assert world.stored() == ["a", "b", "c", "d"]


def test_a_resend_with_other_headers_is_a_duplicate(world):
    """A retry may carry new trace headers: they do not make it another message."""
    world.send(0, "a")
    retry = batch_of("a", headers=[b"\x81\xa1x\xc4\x01y"])
    assert runs(world.ask(world.numbered(0, retry), retry.raw)) == [(1, "duplicate", 0)]


def test_two_contents_under_one_number_conflict(world):
    """One number, one body: another body under a stored number is a conflict and not stored."""
    world.send(0, "a", "b", "c")
    assert runs(world.send(0, "a", "X", "c")) == [
        (1, "duplicate", 0),
        (1, "conflict", 1),
        (1, "duplicate", 2),
    ]
    assert world.stored() == ["a", "b", "c"]
    assert [event["id"] for event in world.events.named("id.conflict")] == ["t/p:0:1"]


def test_a_key_or_encoding_is_part_of_the_body(world):
    """The same value under another key is another message."""
    world.send(0, "a")
    other = batch_of("a", keys=[b"k"])
    assert runs(world.ask(world.numbered(0, other), other.raw)) == [(1, "conflict", 0)]


def test_an_overlap_stores_only_its_new_rest(world):
    """A batch is judged message by message: known ones are duplicates, new ones are stored."""
    world.send(0, "a", "b")
    assert runs(world.send(1, "b", "c", "d")) == [(1, "duplicate", 1), (2, "stored", 2)]
    assert world.stored() == ["a", "b", "c", "d"]
    assert runs(world.send(2, "c", "d", "e")) == [(2, "duplicate", 2), (1, "stored", 4)]
    assert world.stored() == ["a", "b", "c", "d", "e"]


def test_a_resend_is_answered_only_after_its_original_was_synced(world):
    """Original and resend in one turn: both answers wait for the one sync, with equal offsets."""
    batch = batch_of("a", "b")
    synced_at_send: list[bool] = []
    plain_send = world.wire.send

    def send(peer, frames):
        synced_at_send.append(world.log.durable_end == world.log.end > 0)
        return plain_send(peer, frames)

    world.wire.send = send
    before = world.log.end
    world.take()
    world.put(world.numbered(0, batch), batch.raw)
    world.put(world.numbered(0, batch), batch.raw)
    world.turn()
    first, second = world.take()
    assert world.log.end > before
    assert (runs(first), runs(second)) == ([(2, "stored", 0)], [(2, "duplicate", 0)])
    assert synced_at_send == [True, True]


def test_a_conflict_in_the_turn_of_the_original_is_seen(world):
    """What is not readable from the log yet is compared all the same."""
    batch, other = batch_of("a", "b"), batch_of("a", "X")
    world.take()
    world.put(world.numbered(0, batch), batch.raw)
    world.put(world.numbered(0, other), other.raw)
    world.turn()
    _, second = world.take()
    assert runs(second) == [(1, "duplicate", 0), (1, "conflict", 1)]


def test_numbers_go_on_over_epochs_and_restarts(world):
    """A new owner continues behind the last stored number."""
    world.send(0, "a", "b")
    world.crash()
    world.hello()
    ready = world.producer(nonce=b"m" * 16)
    assert (ready.epoch, ready.partitions) == (2, (("t", 0, 2, b""),))
    assert runs(world.send(2, "c", epoch=2)) == [(1, "stored", 2)]


def test_a_resend_after_a_restart_finds_its_original(world):
    """Dedup comes from the log: it survives a crash."""
    world.send(0, "a", "b")
    world.crash()
    world.hello()
    assert runs(world.send(0, "a", "X")) == [(1, "duplicate", 0), (1, "conflict", 1)]


def test_init_producer_sent_twice_grants_once(world):
    """The same nonce gets the same epoch, also twice in one turn and after a restart."""
    ask = InitProducer(1, "q", b"x" * 16, "me")
    world.take()
    world.put(ask)
    world.put(ask)
    world.turn()
    assert [answer.epoch for answer in world.take()] == [1, 1]
    world.crash()
    world.hello()
    assert world.producer("q", b"x" * 16).epoch == 1


def test_a_superseded_owner_is_fenced_and_told_by_whom(world):
    """Two threads or processes share one name: the first ends, the message names the second."""
    world.send(0, "a")
    second = world.producer(nonce=b"m" * 16, label="host-2, pid 7")
    assert second.epoch == 2
    refused = world.send(1, "b", epoch=1)
    assert (refused.code, "host-2, pid 7" in refused.reason) == ("fenced", True)
    assert world.producer(nonce=b"n" * 16).code == "fenced"
    assert runs(world.send(1, "b", epoch=2)) == [(1, "stored", 1)]
    assert world.stored() == ["a", "b"]
    assert world.events.named("producer.fenced")[0]["current_epoch"] == 2


def test_a_zombies_resend_gets_no_verdict(world):
    """Also what is a duplicate is refused to a replaced owner."""
    world.send(0, "a")
    world.producer(nonce=b"m" * 16)
    assert world.send(0, "a", epoch=1).code == "fenced"


def test_an_epoch_never_granted_changes_nothing(world):
    """A claim of a far epoch must not fence the real owner out."""
    before = world.log.end
    assert world.send(0, "a", epoch=99).code == "unknown_producer"
    assert world.send(0, "a", producer="nobody").code == "unknown_producer"
    assert world.log.end == before
    assert runs(world.send(0, "a")) == [(1, "stored", 0)]


def test_nonces_are_bounded(world):
    """Of many owners of one name the last sixteen nonces are known."""
    for number in range(40):
        world.producer("r", number.to_bytes(16, "big"))
    nonces = world.core.state.producers.by_name["r"].nonces
    assert len(nonces) == LIMITS.producer_nonces_kept
    assert world.producer("r", (39).to_bytes(16, "big")).epoch == 40
    assert world.producer("r", (38).to_bytes(16, "big")).code == "fenced"


def test_old_numbers_are_found_although_places_are_thinned(world):
    """Many batches leave few places; each number is still found with its offset."""
    for number in range(3 * LIMITS.producer_index_entries_max):
        world.send(number, f"v{number}")
    row = world.core.state.producers.by_name["p"].rows[0, 0]
    assert len(row.sequences) <= LIMITS.producer_index_entries_max
    for number in (0, 1, 7, 100, 200, 300, 383):
        assert runs(world.send(number, f"v{number}")) == [(1, "duplicate", number)]
    assert runs(world.send(5, "X")) == [(1, "conflict", 5)]


def test_a_lookup_passes_over_what_is_not_its_own(world):
    """Other producers, partitions and kinds of ids in between do not answer for a number."""
    world.topic("u", partitions=2)
    world.producer("q", b"q" * 16)
    place = {"topic": "u"}
    world.send(0, "p0", **place)
    world.send(0, "q0", producer="q", **place)
    world.send(1, "q1", producer="q", **place)
    world.send(0, "other0", partition=1, **place)
    world.send(1, "other1", partition=1, **place)
    world.send(0, "t0")
    world.send(1, "t1")
    world.send_ids(0, dict.fromkeys("wxyz", "1"), producer="p", epoch=1, **place)
    world.send(1, "p1", **place)
    for row in world.core.state.producers.by_name["p"].rows.values():
        row.sequences[1:], row.positions[1:] = [], []
    assert runs(world.send(1, "p1", **place)) == [(1, "duplicate", 7)]
    assert runs(world.send(1, "q1", **place)) == [(1, "conflict", 7)]


def test_a_long_lookup_goes_on_over_turns():
    """A resend whose original lies far back is answered later, and other requests do not wait for it."""
    world = opened(read_bytes=1, first_read_extra_bytes=0, reads_per_request_max=2)
    for number in range(30):
        world.send(number, f"v{number}")
    row = world.core.state.producers.by_name["p"].rows[0, 0]
    row.sequences[1:], row.positions[1:] = [], []  # as if all but the first were thinned away
    batch = batch_of("v25")
    world.take()
    request = world.put(world.numbered(25, batch), batch.raw)
    world.turn()
    assert world.take() == []
    assert runs(world.send(30, "v30")) == [(1, "stored", 30)]
    for _ in range(100):
        world.clock.ms += 1
        world.turn()
    (answer,) = world.take()
    assert (answer.request, runs(answer)) == (request, [(1, "duplicate", 25)])
    assert world.core.wake_at_ms is None


def test_too_many_long_lookups_are_refused_with_busy():
    """Lookups that wait are bounded: one more is refused, retriable, and nothing of it stored."""
    world = opened(read_bytes=1, first_read_extra_bytes=0, reads_per_request_max=1)
    for number in range(30):
        world.send(number, f"v{number}")
    row = world.core.state.producers.by_name["p"].rows[0, 0]
    row.sequences[1:], row.positions[1:] = [], []
    batch = batch_of("v29", "new")
    world.take()
    for _ in range(LIMITS.lookups_max + 1):
        resend = batch_of("v29")
        world.put(world.numbered(29, resend), resend.raw)
    world.put(world.numbered(29, batch), batch.raw)
    world.turn()
    assert [answer.code for answer in world.take()] == ["busy", "busy"]
    assert world.core.state.topics.get("t").partition(0).end_offset == 30
    for _ in range(100):
        world.clock.ms += 1
        world.turn()
    assert {tuple(runs(answer)) for answer in world.take()} == {((1, "duplicate", 29),)}


def test_producers_do_not_share_numbers(world):
    """Numbers belong to (producer, topic, partition)."""
    world.producer("q", b"q" * 16)
    world.send(0, "a")
    assert runs(world.send(0, "b", producer="q")) == [(1, "stored", 1)]
    assert runs(world.send(0, "a")) == [(1, "duplicate", 0)]
    assert runs(world.send(0, "b", producer="q")) == [(1, "duplicate", 1)]


def test_the_digest_of_the_last_batch_is_kept(world):
    """A file producer finds the running digest where it stopped."""
    world.send(0, "a", digest=b"1")
    world.send(1, "b", digest=b"22")
    world.crash()
    world.hello()
    assert world.producer().partitions == (("t", 0, 2, b"22"),)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"topic": "none"}, "unknown_topic"),
        ({"partition": 1}, "unknown_topic"),
        ({"first_sequence": -1}, "protocol"),
        ({"session": b"S" * 16}, "protocol"),
        ({"producer": ""}, "unknown_producer"),
        ({"first_sequence": 2**62}, "gap"),
    ],
)
def test_impossible_requests_are_refused_and_change_nothing(world, changes, code):
    """A well-formed request with impossible content gets a typed error; the state stays."""
    before = (world.log.end, world.core.snapshot().whole())
    first = changes.pop("first_sequence", 0)
    assert world.send(first, "a", **changes).code == code
    assert (world.log.end, world.core.snapshot().whole()) == before


def test_who_did_not_say_hello_is_refused(world):
    """A restarted broker knows no connection: it answers every request with HelloRequired."""
    batch = batch_of("a")
    answer = world.ask(world.numbered(0, batch), batch.raw, peer=OTHER)
    assert isinstance(answer, Failure)
    assert answer.code == "hello_required"
    world.hello(OTHER)
    assert isinstance(world.ask(world.numbered(0, batch), batch.raw, peer=OTHER), Produced)
