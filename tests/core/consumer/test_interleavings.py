"""The consumer in the interleavings that lose or double messages elsewhere."""

from __future__ import annotations

import errno
import itertools

import pytest

from oncemq.core.consumer.work import Drain
from oncemq.errors import (
    Fenced,
    HandlerFailed,
    IdConflict,
    LedgerNotHere,
    LogRegressed,
    StoreMismatch,
)
from oncemq.limits import LEASE_MS
from oncemq.sim.disk.cuts import KeepEverything, LoseEverything
from oncemq.sim.disk.disk import SimDisk
from tests.core.consumer.world import World


@pytest.fixture
def world() -> World:
    return World()


def test_every_message_has_its_effect_once(world: World) -> None:
    """State, offset, processed ids and outputs of all messages, explicit and sequence ids alike."""
    world.send(count=3)
    world.send(id="a")
    world.send(id="b")
    world.send(id="a")
    member = world.member()
    world.drain(member)
    world.check_whole(member)
    assert [one for one, _ in member.seen] == world.ids()


def test_a_restart_goes_on_where_the_ledger_ends(world: World) -> None:
    """A killed member's successor handles what was not committed and nothing else."""
    world.send(count=5)
    first = world.member()
    world.drain(first)
    world.send(id="later")
    first.kill()
    second = world.member()
    world.drain(second)
    assert [one for one, _ in second.seen] == ["later"]
    world.check_whole(second)


def test_a_commit_that_was_not_synced_has_not_happened(world: World) -> None:
    """After a power cut the messages of an unsynced commit are handled again, from the old state."""
    world.send(count=2)
    member = world.member()
    world.drain(member)
    world.send(count=3)
    world.run(lambda: bool(member.calls), member, handle=False)
    member.disk.machine.inject("sync", errno.EIO)
    member.answer()
    member.turn()
    assert isinstance(member.error, OSError)
    outputs = world.outputs()
    world.power_cut(LoseEverything())
    assert world.outputs() == outputs, "no output of a commit that is not durable leaves"
    second = world.member()
    world.drain(second)
    world.check_whole(second)


def test_takeover_between_commit_and_output(world: World) -> None:
    """What a dead owner has committed and not sent goes out under the taker, once."""
    world.send(count=4)
    first = world.member()
    world.run(lambda: bool(first.calls), first, handle=False)
    first.wire.cut = True
    first.answer()
    first.turn()  # the commit is synced, its outputs are lost on the way
    assert first.core.ledger.next_offset == 4
    assert world.outputs() == []
    first.kill()
    second = world.member()
    world.drain(second)
    assert second.seen == []
    world.check_whole(second)


def test_takeover_cut_before_the_output_epoch_moved(world: World) -> None:
    """A frozen owner that wakes up in front of its outputs sends nothing that counts."""
    world.send(count=3)
    frozen = world.member()
    world.run(lambda: bool(frozen.calls), frozen, handle=False)
    late = frozen.carry_out()
    world.clock.advance(LEASE_MS + 1)
    taker = world.member()
    world.drain(taker)
    before = world.outputs()
    frozen.actor.post(late)
    frozen.turn()
    world.run(lambda: frozen.actor.ended, frozen)
    assert isinstance(frozen.error, Fenced)
    assert world.outputs() == before
    world.check_whole(taker)


def test_a_zombie_that_only_polls_is_told(world: World) -> None:
    """A replaced owner without anything to commit learns it from its next fetch or renewal."""
    zombie = world.member()
    world.drain(zombie)
    world.clock.advance(LEASE_MS + 1)
    taker = world.member()
    world.drain(taker)
    world.send(count=2)
    world.run(lambda: zombie.actor.ended, zombie)
    assert isinstance(zombie.error, Fenced)
    assert zombie.seen == []
    assert "consumer.fenced" in world.events.names()


def test_an_answer_of_an_older_grant_is_dropped(world: World) -> None:
    """HandlerDone with another epoch or first offset changes nothing."""
    world.send(count=2)
    member = world.member()
    world.run(lambda: bool(member.calls), member, handle=False)
    done = member.carry_out()
    for epoch, first in ((done.epoch - 1, 0), (done.epoch, 1)):
        member.actor.post(type(done)(epoch, first, done.handled, done.state, done.outputs))
        member.turn()
    assert member.core.ledger.commit_no == 0
    member.actor.post(done)
    world.drain(member)
    world.check_whole(member)


def test_a_lost_fetch_reply_leaves_no_hole(world: World) -> None:
    """The reply after a lost one is not processed in its place: the offset is asked for again."""
    world.send(count=2)
    member = world.member()
    world.drain(member)
    member.wire.lose_in = 1
    world.send(id="lost on the way")
    world.send(id="next")
    world.drain(member)
    world.check_whole(member)


def test_doubled_and_late_fetch_replies_are_dropped(world: World) -> None:
    """A reply that answers no request in flight does nothing, however often it comes."""
    world.send(count=3)
    member = world.member()
    member.wire.double_in = 1000
    world.drain(member)
    for index in range(len(member.wire.old)):
        member.wire.bring_back(index)
    world.send(id="more")
    world.drain(member)
    world.check_whole(member)
    assert len(member.seen) == 4


def test_a_commit_may_end_inside_a_stored_batch(world: World) -> None:
    """A cut run commits its first messages; the next one starts inside the batch, also after a crash."""
    world.send(count=1)
    world.send_batch(5)
    member = world.member()
    world.run(lambda: bool(member.calls), member, handle=False)
    member.answer(cut=True)
    world.run(lambda: bool(member.calls), member, handle=False)
    member.answer(cut=True)
    member.turn()
    assert member.core.ledger.next_offset == 2
    world.check_prefix(member)
    member.kill()
    second = world.member()
    world.drain(second)
    assert [one for one, _ in second.seen] == world.ids()[2:]
    world.check_whole(second)


def test_another_state_directory_is_refused(world: World) -> None:
    """A member started elsewhere calls no handler and learns where the ledger is."""
    world.send(count=2)
    first = world.member()
    world.drain(first)
    first.kill()
    world.state = "/elsewhere"
    world.clock.advance(LEASE_MS + 1)
    second = world.member()
    world.run(lambda: second.actor.ended, second)
    assert isinstance(second.error, LedgerNotHere)
    assert "/state/billing/orders/0" in str(second.error)
    assert second.seen == []


def test_yesterdays_copy_of_a_ledger_is_refused(world: World) -> None:
    """A ledger directory that was copied back is behind what it reported: no handler is called."""
    world.send(count=2)
    first = world.member()
    world.drain(first)
    world.stop(first)
    yesterday = world.disk.after_power_cut(KeepEverything())
    world.send(count=2)
    second = world.member()
    world.drain(second)
    world.stop(second)
    outputs = world.outputs()
    world.disk.power_cut()
    world.disk = yesterday
    third = world.member()
    world.run(lambda: third.actor.ended, third)
    assert isinstance(third.error, LedgerNotHere)
    assert third.seen == []
    assert world.outputs() == outputs


def test_a_wiped_log_is_noticed_at_the_start(world: World) -> None:
    """A ledger meets another log: StoreMismatch, and no handler runs."""
    world.send(count=2)
    first = world.member()
    world.drain(first)
    first.kill()
    world.restart_broker(SimDisk())
    second = world.member()
    world.run(lambda: second.actor.ended, second)
    assert isinstance(second.error, StoreMismatch)
    assert second.seen == []


def test_a_log_that_is_wiped_under_a_running_member_ends_it(world: World) -> None:
    """The next hello shows another log id: StoreMismatch."""
    world.send(count=2)
    member = world.member()
    world.drain(member)
    world.restart_broker(SimDisk())
    world.run(lambda: member.actor.ended, member)
    assert isinstance(member.error, StoreMismatch)


def test_a_log_that_was_put_back_is_noticed(world: World) -> None:
    """The same log, shorter than what was read from it: LogRegressed, nothing is handled."""
    world.send(count=2)
    first = world.member()
    world.drain(first)
    world.stop(first)
    saved = world.broker_disk.after_power_cut(KeepEverything())
    world.send(count=3)
    second = world.member()
    world.drain(second)
    second.kill()
    world.restart_broker(saved)
    third = world.member()
    world.run(lambda: third.actor.ended, third)
    assert isinstance(third.error, LogRegressed)
    assert third.seen == []


def test_append_to_state_then_raise_leaves_no_trace(world: World) -> None:
    """`tx.state[...].append` of a handler that raised is gone at its retry; earlier ones stand."""
    world.send(count=4)
    member = world.member()
    member.fail_at = 2
    world.drain(member)
    world.check_whole(member)
    assert member.seen == [
        *[(one, 1) for one in world.ids()[:3]],
        (world.ids()[2], 2),
        (world.ids()[3], 1),
    ]
    assert [e["next_offset"] for e in world.events.of("commit.synced")] == [2, 4]


def test_a_message_that_always_fails_stops_the_consumer(world: World) -> None:
    """Where it may not be parked, after `retries` more attempts: HandlerFailed with id, place and traceback; no commit of it."""
    world.send(count=1)
    world.send(id="poison")
    calls: list[int] = []

    def handler(message, tx):
        if message.id == "poison":
            calls.append(world.clock.now_ms())
            raise KeyError("no such customer")

    member = world.member(handler, retries=3, park=False)
    world.run(lambda: member.actor.ended, member)
    error = member.error
    assert isinstance(error, HandlerFailed)
    assert isinstance(error.__cause__, KeyError)
    assert "poison" in str(error)
    assert "orders/0 at offset 1, attempt 4" in str(error)
    assert 'raise KeyError("no such customer")' in error.__notes__[0]
    assert "handlers.py" not in error.__notes__[0]
    assert member.core.ledger.next_offset == 1
    pauses = [after - before for before, after in itertools.pairwise(calls)]
    assert len(pauses) == 3
    for pause, most in zip(pauses, (100, 200, 400), strict=True):
        assert most / 2 <= pause <= most + 1
    second = world.member(lambda message, tx: None)
    world.drain(second)
    assert second.core.ledger.next_offset == 2


def test_a_full_disk_holds_the_result_and_the_lease(world: World) -> None:
    """The same answer is committed once there is room; the handler is not called again."""
    world.send(count=3)
    member = world.member()
    world.run(lambda: bool(member.calls), member, handle=False)
    machine = member.disk.machine
    full = machine.inject("reserve", errno.ENOSPC, times=1_000_000)
    done = member.carry_out()
    member.actor.post(type(done)(**{**_fields(done), "size": 8 * 1024 * 1024}))
    epoch = world.broker.core.state.groups.grants["billing", "orders", 0].epoch
    deadline = world.clock.now_ms() + 2 * LEASE_MS
    world.run(lambda: world.clock.now_ms() >= deadline, member)
    assert "log.disk_full" in world.events.names()
    assert member.core.ledger.commit_no == 0
    assert world.broker.core.state.groups.live(("billing", "orders", 0), world.clock.now_ms())
    machine.faults.remove(full)
    world.drain(member)
    world.check_whole(member)
    assert len(member.seen) == 3
    assert world.broker.core.state.groups.grants["billing", "orders", 0].epoch == epoch


def _fields(done):
    return {name: getattr(done, name) for name in type(done).__dataclass_fields__}


def test_a_long_handler_keeps_its_lease(world: World) -> None:
    """While a handler runs for minutes no other member is granted the partition."""
    world.send(count=2)
    busy = world.member()
    world.run(lambda: bool(busy.calls), busy, handle=False)
    waiting = world.member()
    deadline = world.clock.now_ms() + 5 * LEASE_MS
    world.run(lambda: world.clock.now_ms() >= deadline, busy, waiting, handle=False)
    assert waiting.core.phase == "joining"
    assert busy.cuts == 1, "after a while it is asked to commit what it has"
    busy.answer()
    world.drain(busy)
    world.check_whole(busy)


def test_a_standby_says_so_once_and_goes_on_within_a_second(world: World) -> None:
    """The second member waits; when the first is killed it proves that and is granted at once."""
    world.send(count=2)
    first = world.member()
    world.drain(first)
    second = world.member()
    until = world.clock.now_ms() + 5_000
    world.run(lambda: world.clock.now_ms() >= until, first, second)
    assert len(second.standbys) == 1
    assert world.events.names().count("consumer.standby") == 1
    assert second.core.idle_since_ms is None
    world.send(id="after")
    first.kill()
    killed_at = world.clock.now_ms()
    world.drain(second)
    assert world.clock.now_ms() - killed_at <= 1_500
    world.check_whole(second)


def test_a_drained_consumer_gives_its_grant_back(world: World) -> None:
    """Drain commits what is handled, waits for the outputs and leaves: the next one need not wait."""
    world.send(count=3)
    first = world.member()
    world.run(lambda: bool(first.calls), first, handle=False)
    first.actor.post(Drain())
    first.turn()
    assert first.cuts == 1
    first.answer(cut=True)
    world.run(lambda: first.actor.ended, first)
    assert first.error is None
    assert first.core.ledger.next_offset == 1
    assert first.core.ledger.unacked == {}
    assert world.outputs() == [[world.ids()[0], 0]]
    granted_at = world.clock.now_ms()
    second = world.member()
    world.drain(second)
    assert world.clock.now_ms() - granted_at < 1_000
    world.check_whole(second)


def test_a_drain_before_the_grant_ends_at_once(world: World) -> None:
    """A member that waits for the broker or as standby just ends."""
    first = world.member()
    world.drain(first)
    second = world.member()
    world.run(lambda: bool(second.standbys), first, second)
    second.actor.post(Drain())
    second.turn()
    assert second.actor.ended
    assert second.error is None


def test_outputs_of_a_copied_ledger_are_noticed(world: World) -> None:
    """Other messages under numbers that the broker has stored: the consumer stops, loudly."""
    world.send(count=1)
    first = world.member(lambda message, tx: tx.send("invoices", "one"))
    world.run(lambda: bool(first.calls), first, handle=False)
    before = world.disk.after_power_cut(KeepEverything())
    world.drain(first)
    first.kill()
    world.disk.power_cut()
    world.disk = before  # as if never written; the broker knows no offset but 0 of this ledger
    world.clock.advance(LEASE_MS + 1)
    second = world.member(lambda message, tx: tx.send("invoices", "two"))
    world.run(lambda: second.actor.ended or world.drained(second), second)
    assert world.outputs() == ["one"]
    assert isinstance(second.error, IdConflict | LedgerNotHere)
