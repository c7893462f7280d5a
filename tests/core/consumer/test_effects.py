"""Effects in the core: what is durable before a call, what a successor does with it, and that an order counts once."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

import pytest

from oncemq.core.consumer.effect_work import (
    CALL,
    HELD,
    NOTED,
    RECORDED,
    STALE,
    EffectAnswer,
    EffectOrder,
    EffectTold,
    EffectWanted,
)
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.open_effects import (
    AGAIN,
    ANSWERED,
    ASK,
    NOT_DONE,
    PARK,
    RETRY,
    RETURNED,
    UNKNOWN,
)
from oncemq.core.consumer.work import (
    HELD_EFFECT,
    RAISED,
    UNKNOWN_EFFECT,
    AnswerDropped,
    FailedMessage,
    GiveUp,
    HandlerDone,
    RunHandler,
)
from oncemq.ids import effect_id
from oncemq.library.handling.letters import dead_letter
from oncemq.limits import EFFECT_LOOK_MS, LEASE_MS
from oncemq.proof.verify.verify import verify
from oncemq.records import AttemptMarked, Committed, EffectEnded, EffectIntended, LedgerStarted
from oncemq.shells.ledger.files import ledger_directory
from oncemq.shells.ledger.orders import find_orders, give_order
from oncemq.sim.disk.cuts import KeepEverything, LoseEverything
from tests.core.consumer.letters_help import letters, records
from tests.core.consumer.world import GROUP, TOPIC, Member, World
from tests.proof.verify.test_parked import Both

NAME = "charge"


@pytest.fixture
def world() -> World:
    world = World()
    for name in ("a", "b", "c"):
        world.send(name, id=name)
    return world


def called(world: World, member: Member) -> RunHandler:
    world.run(lambda: bool(member.calls), member, handle=False)
    return member.calls.popleft()


def want(run: RunHandler, offset: int = 0, policy: str = ASK, name: str = NAME) -> EffectWanted:
    return EffectWanted(run.epoch, run.first_offset, run.private, offset, "key", name, policy)


def tell(run: RunHandler, how: str, value: bytes = b"", number: int = 1) -> EffectTold:
    return EffectTold(run.epoch, run.first_offset, run.private, 0, NAME, number, how, 0, value)


def asked(world: World, member: Member, wanted: EffectWanted) -> EffectAnswer:
    answer = member.actor.effect_answers.ask(wanted)
    member.actor.post(wanted)
    world.run(answer.done, member, handle=False)
    return answer.result(0)


def done(run: RunHandler, kind: str = "", handled: int = 0) -> HandlerDone:
    """The answer of a run: `handled` messages, and with a kind a failure behind them."""
    failure = None
    if kind:
        error = ValueError(kind)
        failure = FailedMessage("id", kind, error, "", 0.0, kind, None)
    return HandlerDone(run.epoch, run.first_offset, handled, failure=failure, private=run.private)


def successor(world: World, member: Member) -> Member:
    """Another process, once the lease of the killed one is over."""
    member.kill()
    world.clock.advance(LEASE_MS)
    return world.member()


def ended(world: World) -> list[tuple[int, str]]:
    return [(one.number, one.how) for one in records(world, EffectEnded)]


# --- before the call -----------------------------------------------------------------------------


def test_the_intent_is_on_disk_before_the_handler_may_call(world: World) -> None:
    """In the turn in which it is answered the disk has synced it; a power cut finds it."""
    member = world.member()
    run = called(world, member)
    answer = asked(world, member, want(run))
    assert (answer.verdict, answer.number) == (CALL, 1)
    world.power_cut(LoseEverything())
    [intent] = records(world, EffectIntended)
    assert (intent.offset, intent.key, intent.name, intent.number) == (0, "key", NAME, 1)
    assert (intent.policy, intent.at_ms) == (ASK, world.clock.now_ms())


def test_nothing_is_answered_before_the_sync(world: World) -> None:
    """The step that decides hands the answer to what follows the sync."""
    member = world.member()
    run = called(world, member)
    out = member.core.step(want(run), world.clock.now_ms())
    assert [type(one) for one in out.appends] == [Committed, EffectIntended]  # what it relies on
    assert out.work == []
    assert [type(one) for one in out.work_after_sync] == [EffectAnswer]


def test_a_question_of_another_run_is_answered_at_once(world: World) -> None:
    """Nobody waits for ever, and nothing is written."""
    member = world.member()
    run = called(world, member)
    other = EffectWanted(run.epoch, run.first_offset + 1, run.private, 1, "key", NAME, ASK)
    assert asked(world, member, other).verdict == STALE
    member.actor.post(done(run, handled=3))
    world.drain(member)
    assert asked(world, member, want(run)).verdict == STALE
    assert records(world, EffectIntended) == []


def test_a_record_that_is_waited_for_is_answered_after_its_sync(world: World) -> None:
    """A report without `waits` gets no answer; an event of another run is answered as stale."""
    member = world.member()
    run = called(world, member)
    asked(world, member, want(run))
    told = tell(run, RETURNED, b"r")
    out = member.core.step(replace(told, waits=True), world.clock.now_ms())
    assert (out.work, [type(one) for one in out.appends]) == ([], [EffectEnded])
    assert [one.verdict for one in out.work_after_sync] == [NOTED]
    assert member.core.step(told, world.clock.now_ms()).work_after_sync == []
    stale = replace(told, waits=True, epoch=run.epoch + 1)
    [answer] = member.core.step(stale, world.clock.now_ms()).work
    assert answer.verdict == STALE
    assert member.core.step(replace(stale, waits=False), world.clock.now_ms()).work == []


@pytest.mark.parametrize("commit_first", [False, True])
def test_a_handler_that_still_runs_when_its_consumer_has_ended(
    world: World, commit_first: bool
) -> None:
    """An ended consumer answers late events as stale; with a sink it rolls the call back."""
    member = world.member()
    run = called(world, member)
    now, core = world.clock.now_ms(), member.core
    core.member = replace(core.member, commit_first=commit_first)
    core.step(GiveUp(), now)
    for said in (want(run), replace(tell(run, RETURNED), waits=True)):
        [answer] = core.step(said, now).work
        assert answer.verdict == STALE
    assert core.step(tell(run, RETURNED), now).work == []
    dropped = [AnswerDropped()] if commit_first else []
    assert core.step(done(run, handled=1), now).work == dropped


def test_a_full_disk_keeps_the_handler_waiting(world: World) -> None:
    """Questions and outcomes wait for room, in order; so does the answer of the run."""
    member = world.member()
    run = called(world, member)
    machine = member.disk.machine

    def fill() -> Any:
        fault = machine.inject("reserve", errno.ENOSPC, times=1_000_000)
        # It asks for room, and is dropped.
        member.actor.post(HandlerDone(0, 0, 0, size=8 * 1024 * 1024))
        member.turn()
        return fault

    full = fill()
    answer = member.actor.effect_answers.ask(want(run))
    member.actor.post(want(run))
    for _ in range(5):
        world.step(member)
    assert not answer.done()
    machine.faults.remove(full)
    world.run(answer.done, member, handle=False)
    assert answer.result(0).verdict == CALL
    full = fill()
    member.actor.post(tell(run, RETURNED, b"receipt"))
    member.actor.post(done(run, handled=3))
    for _ in range(5):
        world.step(member)
    assert ended(world) == []
    machine.faults.remove(full)
    world.drain(member)
    assert ended(world) == [(1, RETURNED)]
    assert len(member.core.ledger.effects) == 0  # the commit has passed it


# --- a successor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [None, KeepEverything()])
def test_a_recorded_result_is_there_for_whoever_comes_next(world: World, cut: Any) -> None:
    """After a kill and after a power cut, through snapshots and generations."""
    member = world.member()
    run = called(world, member)
    asked(world, member, want(run))
    member.actor.post(tell(run, RETURNED, b"receipt"))
    world.step(member)
    if cut is not None:
        world.power_cut(cut)
    for _ in range(3):
        member = successor(world, member)
        run = called(world, member)
        answer = asked(world, member, want(run))
        assert (answer.verdict, answer.value, answer.number) == (RECORDED, b"receipt", 1)
        member.actor._driver.write_snapshot()
    assert len(records(world, EffectIntended)) <= 1


def test_what_was_not_told_is_unknown(world: World) -> None:
    """The successor writes that down, once, and does not call."""
    member = world.member()
    asked(world, member, want(called(world, member)))
    for count in (1, 2):
        member = successor(world, member)
        run = called(world, member)
        assert run.window.count == 1  # alone
        answer = asked(world, member, want(run))
        assert (answer.verdict, answer.effect_id) == (HELD, f"{GROUP}:{TOPIC}:0:0:{NAME}:1")
        assert b"ended between the call and the record" in answer.value
        assert ended(world) == [(1, UNKNOWN)], count


def test_the_policy_of_the_later_call_counts(world: World) -> None:
    """The handler may have been changed: what was to be asked about is parked, or called again."""
    member = world.member()
    asked(world, member, want(called(world, member)))
    member = successor(world, member)
    run = called(world, member)
    assert asked(world, member, want(run, policy=PARK)).verdict == HELD
    assert [(one.how, one.policy) for one in records(world, EffectEnded)] == [(UNKNOWN, PARK)]
    assert member.core.ledger.effects.barrier(member.core.ledger.started.topic_id) is None
    again = asked(world, member, want(run, policy=RETRY))
    assert (again.verdict, again.number) == (CALL, 2)


def test_what_did_not_happen_is_called_again(world: World) -> None:
    """Under the next number."""
    member = world.member()
    run = called(world, member)
    asked(world, member, want(run))
    member.actor.post(tell(run, NOT_DONE))
    again = asked(world, member, want(run))
    assert (again.verdict, again.number) == (CALL, 2)
    assert ended(world) == [(1, NOT_DONE)]


def test_an_outcome_of_an_older_call_is_dropped(world: World) -> None:
    """It says nothing of the present one."""
    member = world.member()
    run = called(world, member)
    asked(world, member, want(run, policy=RETRY))
    asked(world, member, want(run, policy=RETRY))
    member.actor.post(tell(run, RETURNED, b"late", number=1))
    world.step(member)
    assert ended(world) == []


# --- held ----------------------------------------------------------------------------------------


def held(world: World) -> Member:
    """A member that waits for an order about message "a", in which its predecessor died."""
    member = world.member()
    asked(world, member, want(called(world, member)))
    member = successor(world, member)
    run = called(world, member)
    asked(world, member, want(run))
    member.actor.post(done(run, HELD_EFFECT))
    world.step(member)
    assert member.held == [f"{GROUP}:{TOPIC}:0:0:{NAME}:1"]
    return member


def say(world: World, how: str, number: int = 1, value: bytes = b"") -> EffectOrder:
    name = effect_id(GROUP, TOPIC, 0, 0, NAME, number)
    directory = ledger_directory(world.state, GROUP, TOPIC, 0)
    disk = world.disk.process("operator")
    return give_order(disk, directory, EffectOrder(name, how, 0, value))


def test_a_held_message_waits_without_a_call_and_without_a_spin(world: World) -> None:
    """It looks for orders twice a second and does nothing else; it counts as idle."""
    member = held(world)
    for _ in range(20):
        world.step(member)
    assert not member.calls
    now = world.clock.now_ms()
    assert now < member.core.wake_at_ms <= now + EFFECT_LOOK_MS
    world.run(lambda: world.clock.now_ms() > now + 5_000, member, handle=False)
    assert not member.calls
    assert member.core.idle_since_ms is not None
    assert [one for one in records(world, Committed) if one.inputs] == []


def test_the_result_that_an_operator_gives_is_what_the_handler_gets(world: World) -> None:
    """And it goes on at once; the order is taken away when it is in the ledger."""
    member = held(world)
    say(world, ANSWERED, value=b"by hand")
    run = called(world, member)
    answer = asked(world, member, want(run))
    assert (answer.verdict, answer.value) == (RECORDED, b"by hand")
    assert ended(world) == [(1, UNKNOWN), (1, ANSWERED)]
    directory = ledger_directory(world.state, GROUP, TOPIC, 0)
    assert find_orders(world.disk.process("x"), directory, [member.held[0]]) == []
    member.actor.post(done(run, handled=1))
    world.drain(member)
    assert member.error is None
    assert verify(Both(world), "/broker", world.state).ok


def test_an_order_counts_for_one_call_only(world: World) -> None:
    """One about an earlier call of the same effect says nothing of the next."""
    member = held(world)
    say(world, AGAIN)
    run = called(world, member)
    assert asked(world, member, want(run)).number == 2
    member.actor.post(tell(run, UNKNOWN, b"TimeoutError: no answer", number=2))
    member.actor.post(done(run, HELD_EFFECT))
    say(world, AGAIN, number=1)
    world.run(lambda: len(member.held) == 2, member, handle=False)
    member.actor.post(EffectOrder(effect_id(GROUP, TOPIC, 0, 0, NAME, 1), AGAIN))
    until = world.clock.now_ms() + 3 * EFFECT_LOOK_MS
    world.run(lambda: world.clock.now_ms() > until, member, handle=False)
    assert not member.calls
    assert ended(world) == [(1, UNKNOWN), (1, AGAIN), (2, UNKNOWN)]
    say(world, ANSWERED, number=2)
    called(world, member)


def test_an_order_survives_what_happens_before_it_is_taken(world: World) -> None:
    """A power cut of the machine, and a process that is started a week later."""
    member = held(world)
    say(world, ANSWERED, value=b"by hand")
    member.kill()
    world.power_cut(LoseEverything())
    world.clock.advance(7 * 24 * 3_600_000)
    member = world.member()
    run = called(world, member)
    assert asked(world, member, want(run)).verdict == HELD
    member.actor.post(done(run, HELD_EFFECT))
    run = called(world, member)
    assert asked(world, member, want(run)).value == b"by hand"


def test_a_message_is_not_passed_whatever_its_handler_says(world: World) -> None:
    """Handled, raised on every attempt: the message waits all the same, and is not parked."""
    member = world.member()
    asked(world, member, want(called(world, member)))
    member = successor(world, member)
    run = called(world, member)
    member.actor.post(done(run, handled=1))
    world.step(member)
    assert len(member.held) == 1
    assert [one for one in records(world, Committed) if one.inputs] == []
    assert [one.returned for one in records(world, AttemptMarked)] == [False, True]

    member = successor(world, member)
    while not member.held:
        run = called(world, member)
        member.actor.post(done(run, RAISED))
        world.step(member)
    assert letters(world) == []
    assert [one for one in records(world, Committed) if one.inputs] == []


def test_a_message_that_kills_its_process_is_not_parked_while_nobody_knows(world: World) -> None:
    """The held effect stops its handler before the call, so the process lives."""
    options = {"crash_retries": 1}
    member = world.member(**options)
    asked(world, member, want(called(world, member)))
    for _ in range(4):  # it dies before it comes to the effect
        member.kill()
        world.clock.advance(LEASE_MS)
        member = world.member(**options)
        run = called(world, member)
    assert run.deaths == 0
    assert asked(world, member, want(run)).verdict == HELD


def test_messages_before_an_unknown_effect_are_committed(world: World) -> None:
    """The run that ends in it keeps what came before; then the message waits at the head."""
    member = world.member()
    run = called(world, member)
    asked(world, member, want(run, offset=1))
    told = EffectTold(run.epoch, run.first_offset, run.private, 1, NAME, 1, UNKNOWN, 0, b"why")
    member.actor.post(told)
    member.actor.post(done(run, HELD_EFFECT, handled=1))
    world.run(lambda: bool(member.held), member, handle=False)
    assert member.core.ledger.next_offset == 1
    member = successor(world, member)
    run = called(world, member)
    assert (run.first_offset, run.window.count) == (1, 1)


def test_a_clean_end_does_not_hide_an_unknown_effect(world: World) -> None:
    """The process was stopped while it waited: the next one holds the message again."""
    member = held(world)
    world.stop(member)
    assert member.error is None
    member = world.member()
    run = called(world, member)
    assert run.window.count == 1
    assert asked(world, member, want(run)).verdict == HELD


def test_a_parked_effect_is_told_by_its_letter(world: World) -> None:
    """The kind of failure goes into the commit that parks."""
    member = world.member()
    asked(world, member, want(called(world, member), policy=PARK))
    member = successor(world, member)
    run = called(world, member)
    asked(world, member, want(run, policy=PARK))
    message = world.stored(TOPIC)[0]
    letter = dead_letter(message, kind=UNKNOWN_EFFECT, attempts=1, error="x", at_ms=1)
    failure = FailedMessage("a", "x", ValueError("x"), "", 0.0, UNKNOWN_EFFECT, letter)
    member.actor.post(HandlerDone(run.epoch, run.first_offset, 0, failure=failure))
    world.drain(member)
    [parked] = [one.parked[0] for one in records(world, Committed) if one.parked]
    assert (parked.kind, parked.attempts) == (UNKNOWN_EFFECT, 1)
    assert len(member.core.ledger.effects) == 0


# --- the ledger ----------------------------------------------------------------------------------


def test_a_snapshot_carries_open_effects() -> None:
    """All fields, of all kinds; what a commit passes is gone."""
    ledger = Ledger()
    ledger.apply(LedgerStarted(GROUP, TOPIC, 0, b"topic", b"log", b"log", 0), 0)
    for offset, how in enumerate((RETURNED, UNKNOWN, NOT_DONE, ANSWERED, AGAIN, "")):
        place = (3, b"topic", offset)
        ledger.apply(EffectIntended(*place, f"k{offset}", NAME, 1, ASK, 70 + offset), 1)
        if how:
            ledger.apply(EffectEnded(*place, NAME, 1, how, ASK, 2, how.encode(), 99), 1)
    copy = Ledger()
    copy.restore(ledger.snapshot().parts)
    assert copy.effects.plain() == ledger.effects.plain()
    assert len(copy.effects) == 6
    assert copy.effects.first_unresolved(b"topic") == 1
    assert copy.effects.barrier(b"topic") == 1
    assert copy.effects.barrier(b"other") is None
    copy.apply(Committed(3, 1, [(b"topic", 5)], [], b"", {}), 2)
    assert [one.offset for one in copy.effects] == [5]


def test_an_intent_is_no_word_of_a_handler_that_came_back(world: World) -> None:
    """A process that dies in the call of a message that runs alone has died in that message."""
    member = world.member()
    called(world, member)
    for deaths in (0, 1, 2):
        member = successor(world, member)
        run = called(world, member)
        assert member.core.ledger.deaths_in(member.core.ledger.started.topic_id, 0) == deaths + 1
        asked(world, member, want(run, policy=RETRY))
        member.actor.post(tell(run, RETURNED, b"x", number=1))
        world.step(member)
        assert member.core.ledger.deaths_in(member.core.ledger.started.topic_id, 0) == deaths + 1
