"""Parking, solitary attempts and replays by name: each way in which a message or a process ends."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from oncemq.codec import batch as batch_codec
from oncemq.codec.values import decode_headers, encode_letter_headers
from oncemq.core.consumer.inputs import DROPPED_HEADERS
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.work import FailedMessage, GiveUp, HandlerDone
from oncemq.errors import Busy, HandlerFailed, Reject, SinkConflict
from oncemq.ids import output_producer, sequence_id
from oncemq.library.handling.failures import Failures
from oncemq.library.handling.letters import (
    ATTEMPTS,
    ERROR,
    KIND,
    PARKED_AT,
    SEQUENCE,
    Origin,
    bounded_error,
)
from oncemq.library.handling.letters import GROUP as GROUP_HEADER
from oncemq.library.testkit.actors import create_topic
from oncemq.limits import (
    CONFLICT_FIRST_MS,
    HEADERS_BYTES_MAX,
    LEASE_MS,
    LIMITS,
    PARKED_ERROR_BYTES_MAX,
    PRIVATE_LOOK_MS,
    SYSTEM_HEADERS_BYTES_MAX,
)
from oncemq.records import AttemptMarked, Committed, LedgerEnded
from oncemq.sim.disk.cuts import KeepEverything, LoseEverything
from tests.core.consumer.letters_help import (
    DEAD,
    letters,
    private_done,
    records,
    send_private,
    with_poison,
)
from tests.core.consumer.world import GROUP, OUT, TOPIC, Member, World


@pytest.fixture
def world() -> World:
    return World()


# --- parking -------------------------------------------------------------------------------------


def test_a_message_that_always_raises_is_parked(world: World) -> None:
    """After its retries: offset, id and letter in one commit; its neighbours are handled once."""
    for name in ("a", "poison", "b"):
        world.send(name, id=name)
    member = with_poison(world, KeyError("no such customer"), "poison", retries=2)
    world.drain(member)

    attempts = [("a", 1), ("poison", 1), ("poison", 2), ("poison", 3), ("b", 1)]
    assert member.seen == attempts
    assert member.state()["log"] == ["a", "b"]
    assert (member.core.processed, member.core.parked) == (2, 1)
    assert member.core.ledger.processed.explicit_count == 3
    [letter] = letters(world)
    assert letter.kind == "raised"
    assert (letter.group, letter.attempts, letter.error) == (
        GROUP,
        3,
        "KeyError: 'no such customer'",
    )
    assert letter.origin is not None
    assert (letter.origin.id, letter.origin.topic, letter.origin.offset) == ("poison", TOPIC, 1)
    [parking] = [one for one in records(world, Committed) if one.parked]
    assert [(o.topic, o.count) for o in parking.outputs] == [(DEAD, 1)]
    assert parking.inputs[0][1] == 2
    assert (parking.parked[0].offset, parking.parked[0].attempts) == (1, 3)
    [told] = world.events.of("message.parked")
    assert (told["id"], told["kind"], told["attempts"]) == ("poison", "raised", 3)


def test_what_no_retry_mends_is_parked_at_once(world: World) -> None:
    """Reject, and the exceptions of `no_retry`, cost one attempt; others all of them."""
    for name in ("rejected", "hopeless", "good"):
        world.send(name, id=name)
    seen: list[Any] = []

    def handler(message: Any, tx: Any) -> None:
        seen.append((message.id, message.attempt))
        if message.id == "rejected":
            raise Reject("not for us")
        if message.id == "hopeless":
            raise UnicodeError("a kind of ValueError")

    member = world.member(handler, no_retry=(ValueError,))
    world.drain(member)
    assert seen == [("rejected", 1), ("hopeless", 1), ("good", 1)]
    assert [(one.kind, one.attempts) for one in letters(world)] == [("rejected", 1)] * 2
    assert letters(world)[0].error == "Reject: not for us"


def test_a_letter_keeps_key_value_headers_and_order(world: World) -> None:
    """Headers of the sender stay, those of OnceMQ join them; a batch of one producer is no matter."""
    producer = world.producers["importer"]
    headers = {"traceparent": b"00-1", "big": b"x" * 8000}
    producer.send(world.loop, TOPIC, {"n": 1}, key="k", headers=headers)
    member = world.member(lambda m, tx: (_ for _ in ()).throw(Reject("x" * 5000)))
    world.drain(member)
    [letter] = letters(world)
    shown = letter.content()
    assert (shown["key"], shown["value"]) == ("k", {"n": 1})
    kept = decode_headers(letter.headers)
    assert {name: kept[name] for name in headers} == headers
    assert letter.origin is not None
    assert (letter.origin.id, letter.origin.id_type) == (f"{TOPIC}/importer:0:0", "sequence")
    assert len(letter.error) == 1003  # bounded
    world.stop(member)


def test_nothing_is_committed_before_the_dead_topic_is_there(world: World) -> None:
    """The commit waits for the broker's word that the topic exists: a letter can always go out."""
    world.send("x", id="poison")
    member = with_poison(world, Reject("no"), "poison")
    world.run(lambda: bool(member.calls), member, handle=False)
    member.wire.cut = True
    member.answer()
    for _ in range(3):
        member.turn()
    assert member.core.ledger.next_offset == 0
    assert not records(world, Committed)
    member.wire.cut = False
    world.drain(member)
    assert member.core.ledger.next_offset == 1
    assert len(letters(world)) == 1


def test_no_room_for_the_dead_topic_ends_the_consumer(world: World) -> None:
    """It says which table is full and what to do; it does not hold the partition for ever."""
    world.send("x", id="poison")
    topics = len(world.broker.core.state.topics)
    world.broker.core._topics._limits = replace(LIMITS, topics_max=topics)
    member = with_poison(world, Reject("no"), "poison")
    world.run(lambda: member.actor.ended, member)
    assert isinstance(member.error, Busy)
    assert f"holds {topics} topics" in str(member.error)
    assert "oncemq topics" in str(member.error)
    assert not records(world, Committed)


def test_the_dead_topic_has_the_partitions_of_its_topic(world: World) -> None:
    """It is created with the same partition count; an existing one is used as it is."""
    world.send("x", id="poison")
    world.drain(with_poison(world, Reject("no"), "poison"))
    assert world.broker.core.state.topics.by_name[DEAD].partitions == 1
    other = World()
    create_topic(other.network, other.loop, DEAD, 3)
    other.send("x", id="poison")
    other.drain(with_poison(other, Reject("no"), "poison"))
    assert len(letters(other)) == 1


def test_a_full_disk_holds_a_parking_back(world: World) -> None:
    """While there is no room nothing is parked and the partition waits; then it goes on."""
    world.send("x", id="poison")
    world.send("y", id="good")
    member = with_poison(world, Reject("no"), "poison")
    world.run(lambda: bool(member.calls), member, handle=False)
    member.wire.cut = True  # nobody answers for the dead topic yet
    member.answer()
    member.turn()
    machine = member.disk.machine
    full = machine.inject("reserve", errno.ENOSPC, times=1_000_000)
    member.actor.post(HandlerDone(0, 0, 0, size=8 * 1024 * 1024))  # asks for room, and is dropped
    member.turn()
    member.wire.cut = False
    until_ms = world.clock.now_ms() + 2 * LEASE_MS
    world.run(lambda: world.clock.now_ms() >= until_ms, member)
    assert "log.disk_full" in world.events.names()
    assert DEAD in world.broker.core.state.topics.by_name
    assert (member.core.ledger.commit_no, letters(world)) == (0, [])
    machine.faults.remove(full)
    world.drain(member)
    assert member.core.parked == 1
    assert member.state()["log"] == ["good"]


@pytest.mark.parametrize("policy", [LoseEverything(), KeepEverything()])
def test_parked_and_passed_are_one(policy: Any) -> None:
    """Power fails at any disk call: the letter is there if and only if the offset has passed it."""
    for call in range(1, 40):
        world = World()
        world.send("x", id="poison")
        member = with_poison(world, Reject("no"), "poison")
        world.run(lambda m=member: bool(m.calls), member, handle=False)
        world.disk.fail_at = world.disk.calls + call
        member.answer()
        for _ in range(6):
            world.step(member)
        world.disk.fail_at = None
        sent = len(letters(world))
        finished = not world.disk.down
        world.power_cut(policy)
        second = with_poison(world, Reject("no"), "poison")
        world.drain(second)
        assert second.core.ledger.next_offset == 1
        assert len(letters(world)) == 1, f"call {call}: {sent} before"
        assert len([one for one in records(world, Committed) if one.parked]) == 1
        if finished:
            return
    raise AssertionError("the parking never came to its end")


def test_a_call_that_its_database_wants_again_counts_as_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same messages at the same attempt after short pauses that grow; then retries as ever."""
    again = [True] * 4
    failed = Failures.failed

    def conflicting(self: Failures, *arguments: Any) -> FailedMessage:
        if again and world.clock.now_ms():
            again.pop()
            return Failures.again(SinkConflict("run it again"))
        return failed(self, *arguments)

    monkeypatch.setattr(Failures, "failed", conflicting)
    for name in ("poison", "a"):
        world.send(name, id=name)
    member = with_poison(world, ValueError("x"), "poison", retries=1)
    world.drain(member)
    assert member.seen == [("poison", 1)] * 5 + [("poison", 2), ("a", 1)]
    told = world.events.of("handler.again")
    assert len(told) == 4
    pauses = [one["delay_ms"] for one in told]
    assert CONFLICT_FIRST_MS / 2 <= pauses[0] <= CONFLICT_FIRST_MS < pauses[-1] <= 80
    assert len(world.events.of("handler.raised")) == 2
    assert [one.attempts for one in letters(world)] == [2]
    world.stop(member)


def test_after_an_outage_nothing_runs_alone(world: World) -> None:
    """The process that wrote the last record lives, so none has died in a handler."""
    world.send("a", id="a")
    member = world.member()
    world.drain(member)
    epoch = member.actor.last_epoch
    member.kill()
    world.send("b", id="b")
    follower = world.member(outlived=epoch)
    world.drain(follower)
    assert follower.state()["log"] == ["a", "b"]
    assert records(world, AttemptMarked) == []
    follower.kill()
    world.send("c", id="c")
    other = world.member()
    world.drain(other)
    assert len(records(world, AttemptMarked)) > 0  # of another process it is not known
    world.stop(other)


# --- processes that die --------------------------------------------------------------------------


def die_in_call(world: World, member: Member) -> Any:
    """Run until a call is out, then kill the process; return that call."""
    world.run(lambda: bool(member.calls) or member.actor.ended, member, handle=False)
    run = member.calls[-1]
    member.kill()
    return run


def test_only_the_message_that_kills_is_parked(world: World) -> None:
    """The first crash is not attributed to a message; alone, it kills crash_retries + 1 times, then it is parked."""
    for name in ("a", "killer", "b"):
        world.send(name, id=name)
    assert die_in_call(world, world.member(crash_retries=2)).window.count >= 1
    deaths = 0
    while True:
        member = world.member(crash_retries=2)

        while True:
            world.run(lambda m=member: bool(m.calls) or world.drained(m), member, handle=False)
            if not member.calls or (
                member.calls[0].first_offset == 1 and not member.calls[0].deaths
            ):
                break
            member.answer()
        if not member.calls:
            break
        assert member.calls[0].window.count == 1
        deaths += 1
        member.kill()
    assert deaths == 3
    assert member.state()["log"] == ["a", "b"]
    [letter] = letters(world)
    assert (letter.kind, letter.attempts) == ("crashed", 3)
    assert letter.origin is not None
    assert letter.origin.id == "killer"
    marks = [one for one in records(world, AttemptMarked) if one.offset == 1]
    assert [one.deaths for one in marks] == [0, 1, 2]


def test_six_kills_in_a_row_park_no_healthy_message(world: World) -> None:
    """A slow handler whose process is killed six times in a row is not to blame."""
    world.send("slow", id="slow")
    for _ in range(6):
        die_in_call(world, world.member())
    last = world.member()
    world.drain(last)
    world.check_whole(last)
    assert letters(world) == []


def test_a_death_between_mark_and_handler_counts_once(world: World) -> None:
    """The mark is synced before the call: a kill in between is a death of that message, one."""
    world.send("x", id="x")
    die_in_call(world, world.member())
    second = world.member()

    def marked() -> bool:
        second.calls.clear()  # the handler has not even started
        return bool(records(world, AttemptMarked)) if second.core.phase == "running" else False

    world.run(marked, second, handle=False)
    second.kill()
    third = world.member()
    world.run(lambda: bool(third.calls), third, handle=False)
    assert [mark.deaths for mark in records(world, AttemptMarked)] == [0, 1]
    third.answer()
    world.drain(third)
    assert third.core.ledger.deaths == {}
    world.check_whole(third)


def test_the_mark_is_synced_before_the_handler_starts() -> None:
    """Power fails at any disk call: if the handler was called, its mark is on the disk."""
    for call in range(1, 40):
        world = World()
        world.send("x", id="x")
        die_in_call(world, world.member())
        member = world.member()
        world.run(lambda m=member: m.core.phase == "running", member, handle=False)
        world.disk.fail_at = world.disk.calls + call
        while not member.calls and not member.actor.ended:
            world.step(member)
            world.clock.advance(max(0, min(member.time_left_ms(), world.broker.time_left_ms())))
        called, failed = bool(member.calls), world.disk.down
        world.disk.fail_at = None
        world.power_cut(LoseEverything())
        if called:
            assert [mark.offset for mark in records(world, AttemptMarked)] == [0], f"call {call}"
        if not failed:
            assert called
            return
    raise AssertionError("the handler was never called")


def test_a_healthy_neighbour_is_not_blamed(world: World) -> None:
    """A message handled alone before the killer has its commit behind its mark: no death of it."""
    for name in ("healthy", "killer"):
        world.send(name, id=name)
    die_in_call(world, world.member())
    for _ in range(4):
        member = world.member()
        world.run(lambda m=member: bool(m.calls), member, handle=False)
        if member.calls[0].first_offset == 0:
            member.answer()
            world.run(lambda m=member: bool(m.calls), member, handle=False)
        member.kill()
    assert member.core.ledger.deaths_in(member.core.ledger.started.topic_id, 0) == 0
    marks = records(world, AttemptMarked)
    assert [(mark.offset, mark.deaths) for mark in marks] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
    ]


def test_a_mark_of_an_older_epoch_is_over_with_its_message(world: World) -> None:
    """Once a commit passes the message, what was marked under older epochs says nothing more."""
    world.send("x", id="x")
    die_in_call(world, world.member())
    die_in_call(world, world.member())
    third = world.member()
    world.drain(third)
    assert third.core.ledger.deaths == {}
    world.stop(third)
    world.send("y", id="y")
    fourth = world.member()
    world.drain(fourth)
    assert len(records(world, AttemptMarked)) == 2
    world.check_whole(fourth)


def test_an_attempt_that_came_back_is_no_death(world: World) -> None:
    """A handler that raises alone, and whose process is killed in the pause, counts as no death."""
    world.send("x", id="x")
    die_in_call(world, world.member())
    for _ in range(5):
        member = with_poison(world, KeyError("later"), "x", crash_retries=1)
        world.run(lambda m=member: bool(m.calls), member, handle=False)
        member.answer()
        member.turn()
        member.kill()
    last = world.member(crash_retries=1)
    world.drain(last)
    assert letters(world) == []
    world.check_whole(last)


def test_who_lived_on_says_that_nobody_died(world: World) -> None:
    """A process that lost its ledger under it, and has it again, was not killed by its message."""
    world.send("x", id="x")
    epoch = 0
    for _ in range(5):
        member = world.member(crash_retries=1, outlived=epoch)
        die_in_call(world, member)
        epoch = member.actor.last_epoch
    assert [one.deaths for one in records(world, AttemptMarked)] == [0] * 7
    last = world.member(crash_retries=1)
    world.drain(last)
    assert letters(world) == []
    world.check_whole(last)


def test_who_lived_on_speaks_for_its_own_epoch_alone(world: World) -> None:
    """A death under another owner in between counts."""
    world.send("x", id="x")
    first = world.member()
    die_in_call(world, first)
    die_in_call(world, world.member())
    die_in_call(world, world.member(outlived=first.actor.last_epoch))
    assert [one.deaths for one in records(world, AttemptMarked)] == [0, 1]


def test_after_a_clean_end_nothing_runs_alone(world: World) -> None:
    """A drained generation records its end, and the next one calls handlers for whole batches."""
    world.send("x", id="x")
    first = world.member()
    world.drain(first)
    world.stop(first)
    assert isinstance(records(world, object)[-1], LedgerEnded)
    world.send_batch(5)
    second = world.member()
    world.drain(second)
    assert records(world, AttemptMarked) == []
    assert world.events.of("consumer.handled")[-1]["count"] == 5


def test_a_good_end_counts_for_one_generation_only(world: World) -> None:
    """A successor that dies in its first call, before its first commit, did not end well."""
    world.send("x", id="x")
    first = world.member()
    world.drain(first)
    world.stop(first)
    world.send_batch(3)
    die_in_call(world, world.member())
    third = world.member()
    world.drain(third)
    assert [mark.offset for mark in records(world, AttemptMarked)] == [1, 2, 3]
    world.check_whole(third)


def test_no_time_left_is_nobodys_fault(world: World) -> None:
    """A consumer that must end while a handler is busy says that it ended well."""
    world.send("slow", id="slow")
    for _ in range(9):
        member = world.member(crash_retries=1)
        world.run(lambda m=member: bool(m.calls), member, handle=False)
        member.actor.post(GiveUp())
        member.turn()
        assert member.actor.ended
        member.kill()
    last = world.member(crash_retries=1)
    world.drain(last)
    assert letters(world) == []
    world.check_whole(last)


def test_without_parking_a_killer_stops_the_consumer(world: World) -> None:
    """`park=False`: no call more, an error that names the message; the offset stays."""
    world.send("x", id="killer")
    for _ in range(3):
        die_in_call(world, world.member(crash_retries=1))
    member = world.member(crash_retries=1, park=False)
    world.run(lambda: member.actor.ended, member)
    assert isinstance(member.error, HandlerFailed)
    assert "2 processes died" in str(member.error)
    assert member.seen == []
    assert member.core.ledger.next_offset == 0


# --- replays -------------------------------------------------------------------------------------


def test_a_replay_is_handled_once_as_the_original(world: World) -> None:
    """Id, place, headers and key are those of the original; sent twice it is handled once."""
    world.producers[""].send(world.loop, TOPIC, "v", id="poison", headers={"h": b"1"})
    member = with_poison(world, Reject("no"), "poison")
    world.drain(member)
    world.stop(member)
    world.send("after", id="after")
    got: list[Any] = []

    def mended(message: Any, tx: Any) -> None:
        got.append((message.id, message.topic, message.partition, message.offset, message.attempt))
        got.append((message.value, message.headers, tx.key))

    second = world.member(mended)
    world.drain(second)
    got.clear()
    [letter] = letters(world)
    send_private(world, letter.replay())
    send_private(world, letter.replay())
    world.clock.advance(PRIVATE_LOOK_MS)
    world.run(lambda: private_done(world, second), second)
    assert got == [("poison", TOPIC, 0, 0, 1), ("v", {"h": b"1"}, f"{GROUP}@{TOPIC}:s:poison")]
    world.stop(second)
    third = world.member(mended)
    world.drain(third)
    world.run(lambda: private_done(world, third), third)
    assert len(got) == 2


def test_a_replay_that_fails_is_parked_again(world: World) -> None:
    """As a new letter, with the lineage of the original; replaying that one works."""
    world.send("v", id="poison")
    member = with_poison(world, Reject("no"), "poison")
    world.drain(member)
    send_private(world, letters(world)[0].replay())
    world.clock.advance(PRIVATE_LOOK_MS)
    world.run(lambda: private_done(world, member) and len(letters(world)) == 2, member)
    first, second = letters(world)
    assert first.origin == second.origin
    member.kill()
    mended = world.member()
    send_private(world, second.replay())
    world.run(lambda: mended.core.phase == "running" and private_done(world, mended), mended)
    assert [one for one, _ in mended.seen] == ["poison"]
    assert mended.core.ledger.parked == 2


def test_dropped_excludes_replayed(world: World) -> None:
    """The first answer to a letter stands; a dropped one is passed over and counted."""
    world.send("v", id="poison")
    world.drain(with_poison(world, Reject("no"), "poison"))
    [letter] = letters(world)
    send_private(world, letter.drop())
    send_private(world, letter.replay())
    world.clock.advance(LEASE_MS + 1)
    member = world.member()
    world.run(lambda: member.core.phase == "running" and private_done(world, member), member)
    assert member.seen == []
    assert member.core.ledger.dropped == 1
    [dropped] = [one for one in records(world, Committed) if one.skipped]
    assert (dropped.skipped[0].first_offset, dropped.skipped[0].reason) == (0, "dropped")


def test_a_replay_survives_kills_and_happens_once(world: World) -> None:
    """Killed before the commit: handled again. Killed after it: never again."""
    world.send("v", id="poison")
    first = with_poison(world, Reject("no"), "poison")
    world.drain(first)
    send_private(world, letters(world)[0].replay())
    first.kill()
    die_in_call(world, world.member())
    third = world.member()
    world.run(lambda: bool(third.calls), third, handle=False)
    third.answer()
    third.turn()
    third.turn()
    third.kill()
    last = world.member()
    world.run(lambda: last.core.phase == "running" and private_done(world, last), last)
    world.drain(last)
    assert last.seen == []
    assert last.state()["log"] == ["poison"]
    assert world.outputs() == [["poison", 0]]


def test_a_private_id_is_never_one_of_the_topic(world: World) -> None:
    """A user may give a message the very id under which a replay is sent: both are handled."""
    world.send("v", id="poison")
    world.drain(with_poison(world, Reject("no"), "poison"))
    world.send("mine", id="dead:0:0")
    world.clock.advance(LEASE_MS + 1)
    member = world.member()
    world.drain(member)
    send_private(world, letters(world)[0].replay())
    world.clock.advance(PRIVATE_LOOK_MS)
    world.run(lambda: private_done(world, member), member)
    assert [one for one, _ in member.seen] == ["dead:0:0", "poison"]


def test_snapshots_carry_both_inputs_and_the_counts(world: World) -> None:
    """Next offsets, counts and deaths are in a snapshot; a restored ledger is the same."""
    world.send("v", id="poison")
    member = with_poison(world, Reject("no"), "poison")
    world.drain(member)
    send_private(world, letters(world)[0].replay())
    world.clock.advance(PRIVATE_LOOK_MS)
    world.run(lambda: private_done(world, member), member)
    ledger = member.core.ledger
    again = Ledger()
    again.restore(ledger.snapshot().parts)
    assert again.private_offsets == ledger.private_offsets != {}
    assert (again.parked, again.next_offset) == (2, 1)
    assert again.snapshot().parts["ledger"] == ledger.snapshot().parts["ledger"]


def test_the_mark_of_a_dropped_letter_is_what_the_codec_makes() -> None:
    """Cores decode no headers: the bytes they compare with are those of the codec."""
    assert msgpack.packb({"oncemq-dropped": b"1"}) == DROPPED_HEADERS


def test_outputs_of_a_replay_go_out(world: World) -> None:
    """A replayed message commits state and outputs as any other."""
    world.send("v", id="poison")
    world.drain(with_poison(world, Reject("no"), "poison"))
    send_private(world, letters(world)[0].replay())
    world.clock.advance(LEASE_MS + 1)
    member = world.member()
    world.run(lambda: member.core.phase == "running" and private_done(world, member), member)
    assert [message.value for message in world.stored(OUT)] == [["poison", 0]]


def test_headers_of_a_letter_are_within_their_room() -> None:
    """The longest names, id and error that there can be, and headers of a sender at the limit."""
    longest = "x" * 128
    producer = output_producer(longest, longest, 999)
    sequence = sequence_id(longest, producer, 999, 10**18)
    origin = Origin(longest, 999, 10**18, 10**15, sequence, SEQUENCE)
    system = {
        GROUP_HEADER: longest.encode(),
        KIND: b"rejected",
        ERROR: bounded_error("\N{SNOWMAN}" * 5000),
        ATTEMPTS: b"1000001",
        PARKED_AT: b"%d" % 10**15,
        **origin.headers(),
    }
    assert len(system[ERROR]) <= PARKED_ERROR_BYTES_MAX
    assert len(msgpack.packb(system)) <= SYSTEM_HEADERS_BYTES_MAX
    own = {"h": b"x" * (HEADERS_BYTES_MAX - 10)}
    packed = encode_letter_headers(own, system)
    assert decode_headers(packed) == {**own, **system}
    built = batch_codec.build([b"v"], encodings=0, headers=[packed])
    assert batch_codec.parse(built.raw, built.crc, check=True).headers == [packed]
    beyond = encode_letter_headers({"h": b"x" * 60_000}, system)
    assert decode_headers(beyond) == system
