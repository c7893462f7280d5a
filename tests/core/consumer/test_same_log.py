"""The log must be the same log: one that was restored or copied is never followed in silence.

Every pair of (how the broker's data came back) x (grown less than, exactly to, past what was lost) x
(consumer restarted, living, frozen in a call) x (producer with numbers, with ids), with outputs: the
consumer says LogRegressed, or all is handled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from oncemq.codec import wire
from oncemq.core.broker.core import BrokerCore
from oncemq.core.client import connection
from oncemq.core.consumer.effect_work import EffectWanted
from oncemq.core.consumer.grant import join_with
from oncemq.errors import LedgerNotHere, LogRegressed, StoreMismatch
from oncemq.library.testkit.actors import LocalProducer
from oncemq.proof.verify.verify import verify
from oncemq.protocol import VERSION_MAX, Fetch, Granted, Hello, InitProducer, Leave, Rewind
from oncemq.shells.ledger.files import LedgerFiles, ledger_directory
from oncemq.shells.seeker import SeekerShell
from oncemq.sim.disk.cuts import KeepEverything
from tests.core.consumer.world import GROUP, OWNER, TOPIC, Member, World
from tests.proof.verify.test_parked import Both

KEPT, LOST = 4, 3  # messages before the backup, and after it

BACKUPS = ("at rest", "live", "copy and back")
GROWN = {"less": LOST - 1, "exactly": LOST, "past": LOST + 2}
CONSUMERS = ("restarted", "living", "frozen")
PRODUCERS = ("numbers", "ids")


@pytest.fixture
def world() -> World:
    return World()


class Story:
    """A world whose producers are new processes whenever the broker's data changes."""

    def __init__(self, world: World, producer: str) -> None:
        self.world = world
        self.explicit = producer == "ids"
        self.count = 0
        self.new_producers()

    def new_producers(self) -> None:
        self.producer = LocalProducer(
            "" if self.explicit else "importer",
            self.world.network,
            self.world.clock,
            self.world.events,
        )
        self.world.loop.add(self.producer)

    def send(self, count: int) -> None:
        for _ in range(count):
            self.count += 1
            name = f"id-{self.count}" if self.explicit else None
            self.producer.send(self.world.loop, TOPIC, self.count, id=name)

    def back_up(self, how: str) -> Any:
        """Return a copy of the broker's disk, taken as `how` says."""
        world = self.world
        if how == "at rest":
            world.broker.close(clean=True)
            world.loop.remove(world.broker)
            copy = world.broker_disk.after_power_cut(KeepEverything())
            world.network.restart_broker()
            world.broker = world._broker()
            world.loop.add(world.broker)
            return copy
        return world.broker_disk.after_power_cut(KeepEverything())

    def switch_to(self, disk: Any) -> None:
        """The broker of another disk answers from here on; producers are started anew."""
        self.world.loop.remove(self.producer)
        self.world.restart_broker(disk)
        self.new_producers()


def handled_before(story: Story, how: str, *, lost_too: bool) -> tuple[Any, Member]:
    """A member handles what the backup holds, and what is lost with it if `lost_too`.

    Returns the disk with the data that comes back, and the member, which is still alive.
    """
    world = story.world
    member = world.member()
    story.send(KEPT)
    world.drain(member)
    back = story.back_up(how)
    if how == "copy and back":
        original = world.broker_disk
        story.switch_to(back)
        back = original
    if not lost_too:
        world.run(lambda: member.core.connection.ready, member)
        world.stop(member)
    story.send(LOST)
    if lost_too:
        world.drain(member)
        assert len(member.seen) == KEPT + LOST
    return back, member


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("grown", GROWN)
@pytest.mark.parametrize("how", BACKUPS)
def test_who_relied_on_what_is_lost_says_so(
    world: World, how: str, grown: str, consumer: str, producer: str
) -> None:
    """LogRegressed names both histories and what to do; nothing of the other log is handled."""
    story = Story(world, producer)
    back, member = handled_before(story, how, lost_too=True)
    if consumer == "restarted":
        world.stop(member)
    elif consumer == "frozen":
        story.send(1)
        world.run(lambda: bool(member.calls), member, handle=False)
    story.switch_to(back)
    story.send(GROWN[grown])
    if consumer == "restarted":
        member = world.member()
    before = len(member.seen)
    world.run(lambda: member.actor.ended, member)
    error = member.error
    assert isinstance(error, LogRegressed)
    assert "history" in error.reason
    assert "oncemq groups seek" in error.hint
    assert len(member.seen) - before == (consumer == "frozen")  # the call that was out
    again = world.member()
    world.run(lambda: again.actor.ended, again)
    assert isinstance(again.error, LogRegressed)
    assert again.seen == []


@pytest.mark.parametrize("producer", PRODUCERS)
@pytest.mark.parametrize("consumer", ["restarted", "living"])
@pytest.mark.parametrize("grown", GROWN)
@pytest.mark.parametrize("how", BACKUPS)
def test_who_did_not_rely_on_it_handles_all(
    world: World, how: str, grown: str, consumer: str, producer: str
) -> None:
    """A ledger that the backup has all of goes on: every message of the log is handled, once."""
    story = Story(world, producer)
    back, member = handled_before(story, how, lost_too=False)
    if consumer == "living":  # it starts on what comes back, and lives on over a restart of it
        story.switch_to(back)
        member = world.member()
        story.send(1)
        world.drain(member)
        world.restart_broker()
    else:
        story.switch_to(back)
        member = world.member()
    story.new_producers()
    story.send(GROWN[grown])
    world.drain(member)
    world.check_whole(member)


@pytest.mark.parametrize("producer", ["", "importer"])
@pytest.mark.parametrize("grown", GROWN)
def test_a_living_producer_whose_messages_are_lost_says_so(
    world: World, grown: str, producer: str
) -> None:
    """At its next hello, whatever others have stored meanwhile."""
    send = {"": lambda n: world.send(id=f"a{n}"), "importer": lambda _n: world.send()}[producer]
    send(0)
    saved = world.broker_disk.after_power_cut(KeepEverything())
    for n in range(1, LOST):
        send(n)
    world.restart_broker(saved)
    story = Story(world, "ids")
    story.send(GROWN[grown])
    with pytest.raises(LogRegressed, match="history"):
        send(LOST)


def test_a_living_producer_that_relied_on_nothing_lost_goes_on(world: World) -> None:
    """What it was promised is in the backup."""
    world.send(id="a")
    saved = world.broker_disk.after_power_cut(KeepEverything())
    world.restart_broker(saved)
    world.send(id="b")
    assert world.ids() == ["a", "b"]


def test_acknowledged_outputs_count_as_relied_on(world: World) -> None:
    """Input and backup match, the outputs are lost: the ledger would never send them again."""
    story = Story(world, "numbers")
    member = world.member()
    story.send(KEPT)
    world.run(lambda: len(member.calls) > 0, member, handle=False)
    saved = world.broker_disk.after_power_cut(KeepEverything())  # all inputs, no output
    world.drain(member)
    world.stop(member)
    assert len(world.outputs()) == KEPT
    story.switch_to(saved)
    again = world.member()
    world.run(lambda: again.actor.ended, again)
    assert isinstance(again.error, LogRegressed)


def test_an_output_whose_acknowledgement_was_not_recorded_is_sent_again(world: World) -> None:
    """The ledger does not rely on it, so all is handled and sent."""
    story = Story(world, "numbers")
    member = world.member()
    story.send(1)
    world.run(lambda: len(member.calls) > 0, member, handle=False)
    saved = world.broker_disk.after_power_cut(KeepEverything())
    world.run(lambda: bool(world.outputs()), member)
    member.kill()
    assert not member.core.ledger.seen.mark or member.core.ledger.unacked
    story.switch_to(saved)
    again = world.member()
    world.drain(again)
    assert world.outputs() == [[world.ids()[0], 0]]


def test_a_fetch_names_the_place_of_what_was_read(world: World) -> None:
    """Also of what no commit has passed yet."""
    world.send(count=2)
    member = world.member()
    world.run(lambda: bool(member.calls), member, handle=False)
    world.run(lambda: member.core._running.fetcher.owed, member, handle=False)
    fetches = [m for m in map(fetch_in, member.wire.sent) if m is not None]
    end = world.broker.core.state.topics.by_name[TOPIC].partition(0)
    assert fetches[0].mark == b""
    assert fetches[-1].offset == 2
    last = end.index.floor(1)
    assert last is not None
    assert fetches[-1].mark == world.broker.core.state.history.current
    assert fetches[-1].position > last
    assert not member.core.ledger.seen.mark


def fetch_in(frames: list[bytes]) -> Fetch | None:
    message = wire.decode(b"x" * 16, frames).message
    return message if isinstance(message, Fetch) else None


@pytest.mark.parametrize("what", ["effect", "mark"])
@pytest.mark.parametrize("grown", GROWN)
def test_what_is_recorded_of_a_lost_message_does_not_count_for_another(
    world: World, grown: str, what: str
) -> None:
    """The ledger names a message by its offset before a commit has passed it, and relies on it."""
    story = Story(world, "ids")
    story.send(KEPT)
    member = world.member()
    world.drain(member)
    saved = story.back_up("live")
    if what == "mark":
        member.kill()  # an unclean end: the next message runs alone, behind a mark
        member = world.member()
    story.send(1)
    world.run(lambda: bool(member.calls), member, handle=False)
    run = member.calls.popleft()
    if what == "effect":
        wanted = EffectWanted(run.epoch, run.first_offset, False, KEPT, "key", "charge", "retry")
        answer = member.actor.effect_answers.ask(wanted)
        member.actor.post(wanted)
        world.run(answer.done, member, handle=False)
    assert member.core.ledger.next_offset == KEPT
    member.kill()
    story.switch_to(saved)
    story.send(GROWN[grown])
    again = world.member()
    world.run(lambda: again.actor.ended, again)
    assert isinstance(again.error, LogRegressed)
    assert again.seen == []


@pytest.mark.parametrize("grown", GROWN)
def test_the_proof_names_a_ledger_of_another_past(world: World, grown: str) -> None:
    """`verify` reads it from the files alone; what belongs together is proved."""
    story = Story(world, "ids")
    back, member = handled_before(story, "live", lost_too=True)
    world.stop(member)
    assert verify(Both(world), "/broker", world.state).ok
    story.switch_to(back)
    story.send(GROWN[grown])
    found = verify(Both(world), "/broker", world.state).found.kept
    assert any(one.check == "one-log" and "relies on position" in str(one) for one in found)


# --- the operator's decision ---------------------------------------------------------------------


def ask(world: World, message: Any) -> Any:
    """Ask the broker as a command does, over a connection of its own."""
    endpoint = world.network.connect()
    for one in (Hello(1, 1, VERSION_MAX, "admin", b"o" * 16, b"", 0), message):
        endpoint.send(b"", wire.encode(one, None))
    answers: list[Any] = []

    def answered() -> bool:
        answers.extend(wire.decode(*envelope).message for envelope in endpoint.poll(0))
        return len(answers) >= 2

    world.loop.run_until(answered)
    endpoint.close()
    return answers[1]


def door(world: World, process: str = "operator") -> LedgerFiles:
    directory = ledger_directory(world.state, GROUP, TOPIC, 0)
    return LedgerFiles(world.disk.process(process), directory, OWNER, draw=world.draw)


def seek(world: World, offset: int) -> SeekerShell:
    """What `oncemq groups seek` does: join, accept, move, leave."""
    place, ledger = (GROUP, TOPIC, 0), door(world)
    join = join_with(ledger.peek(), 1, place, b"o" * 16, "operator", marked=True)
    assert ask(world, join).code == "log_regressed"
    granted = ask(world, replace(join, accepts=True))
    assert isinstance(granted, Granted)
    seeker = SeekerShell(
        place, granted, ledger=ledger, accepts=True, clock=world.clock, events=world.events
    )
    seeker.open()
    if offset < seeker.core.ledger.next_offset:
        ask(world, Rewind(2, *place, granted.epoch, offset))
    ready = ask(world, InitProducer(4, "@billing/orders/0", b"o" * 16, "operator"))
    seeker.move(offset, "accepted", {(t, p): n for t, p, n, _ in ready.partitions})
    seeker.close(clean=True)
    ask(world, Leave(3, *place, granted.epoch, offset))
    return seeker


@pytest.mark.parametrize("to", ["backup", "end", "as it stands"])
@pytest.mark.parametrize("grown", GROWN)
def test_an_operator_accepts_what_is_lost(world: World, grown: str, to: str) -> None:
    """The move is a commit that relies on the log as it is now: the group goes on from there."""
    story = Story(world, "ids")
    back, member = handled_before(story, "live", lost_too=True)
    world.stop(member)
    story.switch_to(back)
    story.send(GROWN[grown])
    end = KEPT + GROWN[grown]
    offset = {"backup": KEPT, "end": end, "as it stands": min(end, KEPT + LOST)}[to]
    seek(world, offset)
    (accepted,) = world.events.of("history.accepted")
    assert accepted["mark"] == world.broker.core.state.history.current.hex()
    after = world.member()
    world.drain(after)
    assert after.error is None
    assert [one for one, _ in after.seen] == world.ids()[offset:]
    assert world.outputs()[KEPT:] == [[one, at] for at, one in enumerate(world.ids())][offset:]
    world.stop(after)
    last = world.member()
    world.drain(last)
    assert (last.error, last.seen) == (None, [])


# --- files and peers of versions without marks ---------------------------------------------------


@pytest.fixture
def unmarked(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Broker and clients as they were before there were marks."""
    with monkeypatch.context() as old:
        old.setattr(BrokerCore, "_begin_history", lambda _self, _out: None)
        old.setattr(connection, "VERSION_MAX", 2)
        yield old


def old_world(unmarked: pytest.MonkeyPatch) -> World:
    """A world whose files an older version wrote; it is new from here on."""
    world = World()
    world.send(count=KEPT)
    member = world.member()
    world.drain(member)
    world.stop(member)
    assert not member.core.ledger.seen.mark
    unmarked.undo()
    return world


def test_files_without_marks_are_taken_up_once_and_said_so(unmarked: pytest.MonkeyPatch) -> None:
    """From then on the ledger relies on the broker's history; a log put back is noticed."""
    world = old_world(unmarked)
    saved = world.broker_disk.after_power_cut(KeepEverything())
    world.restart_broker()
    member = world.member()
    world.drain(member)
    (said,) = world.events.of("history.taken_up")
    assert said["next_offset"] == KEPT
    assert member.core.ledger.seen.mark == world.broker.core.state.history.current
    world.stop(member)
    again = world.member()
    world.drain(again)
    assert len(world.events.of("history.taken_up")) == 1
    world.stop(again)
    world.restart_broker(saved)
    last = world.member()
    world.run(lambda: last.actor.ended, last)
    assert isinstance(last.error, LogRegressed)


def test_an_older_peer_is_served_by_numbers_as_before(unmarked: pytest.MonkeyPatch) -> None:
    """A new broker tells it no places, and takes its ledger."""
    world = old_world(unmarked)
    world.restart_broker()
    with pytest.MonkeyPatch.context() as old:
        old.setattr(connection, "VERSION_MAX", 2)
        member = world.member()
        world.drain(member)
        story = Story(world, "ids")
        story.send(2)
        world.drain(member)
    assert member.error is None
    assert not member.core.ledger.seen.mark
    assert len(member.seen) == 2


def test_a_ledger_without_a_place_does_not_follow_one_with(world: World) -> None:
    """A copy from before the marks stands at the same numbers and is refused all the same."""
    world.send(count=KEPT)
    for _ in range(2):  # the second join shows a place
        member = world.member()
        world.drain(member)
        world.stop(member)
    facts = door(world).peek()
    assert facts.seen.mark
    join = join_with(facts, 1, (GROUP, TOPIC, 0), b"x" * 16, "copy", marked=False)
    assert ask(world, join).code == "ledger_not_here"
    assert isinstance(ask(world, replace(join, mark=facts.seen.mark)), Granted)


def test_a_ledger_with_a_place_wants_a_broker_that_compares(world: World) -> None:
    """A broker of an older version cannot say whether the log is the same."""
    world.send(count=1)
    member = world.member()
    world.drain(member)
    world.stop(member)
    with pytest.MonkeyPatch.context() as old:
        old.setattr(connection, "VERSION_MAX", 2)
        other = world.member()
        world.run(lambda: other.actor.ended, other)
    assert isinstance(other.error, LedgerNotHere | StoreMismatch)
