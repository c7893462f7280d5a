"""A member of a group, seen from inside: asked for its partition it gives it back in good order."""

from __future__ import annotations

from typing import Any

from oncemq.core.consumer.work import (
    CutHandler,
    Drain,
    GaveBack,
    HandlerDone,
    OpenLedger,
    PeekLedger,
    RunHandler,
)
from oncemq.errors import Fenced
from oncemq.limits import LEASE_MS, LEASE_RENEW_MS, LEAVE_WAIT_MS
from oncemq.outcome import Outcome, Recovered, Stop, Synced, Tick
from oncemq.protocol import (
    Fetch,
    Hello,
    Join,
    Leave,
    Left,
    Produce,
    Produced,
    Renew,
    Renewed,
    Standby,
    Welcome,
)
from oncemq.records import Committed, LedgerEnded
from tests.core.consumer.test_core import LOG, TOPIC_ID, Scripted, batch, output
from tests.core.consumer.world import World

PROCESS = b"P" * 16


class Sharing(Scripted):
    """A core of a process with an id; `version` is that of the broker."""

    def __init__(self, version: int = 2) -> None:
        super().__init__()
        self.version = version
        member = self.core.member
        object.__setattr__(member, "process", PROCESS)

    def connect(self) -> None:
        self.step(Tick())
        self.take(PeekLedger)
        self.step(self.facts())
        self.hear(Welcome(self.number(Hello), self.version, LOG, LOG, 2))

    def renewed(self, **more: Any) -> Outcome:
        self.now += LEASE_RENEW_MS
        self.step(Tick())
        return self.hear(Renewed(self.number(Renew), 5, **more))

    def last(self, kind: type) -> Any:
        return [message for message in self.said if isinstance(message, kind)][-1]


def running(**granted: Any) -> Sharing:
    """A core that owns its partition and has a call out for three messages."""
    sharing = Sharing()
    sharing.run(**granted)
    sharing.fetched([batch(0, 3)], 3)
    return sharing


def leaves(outcome: Outcome) -> list[Leave]:
    return [s.message for s in outcome.sends_after_sync if isinstance(s.message, Leave)]


def test_a_revoked_partition_is_drained_committed_and_left() -> None:
    """No more fetches; the running call is cut, its commit made, its outputs acknowledged; then Leave."""
    sharing = running()
    sharing.take_all(RunHandler)
    outcome = sharing.renewed(revoke=True)
    assert ("consumer.revoked", sharing.core.member.fields(epoch=5)) in outcome.events
    assert sharing.core.revoked
    assert [type(item) for item in sharing.take_all(CutHandler)] == [CutHandler]
    fetches = sharing.fetches()
    outcome = sharing.step(HandlerDone(5, 0, 2, outputs=[output()]))
    assert outcome.appends[0].inputs == [(TOPIC_ID, 2)]
    assert leaves(outcome) == []
    sharing.step(Synced(1))
    outcome = sharing.hear(Produced(sharing.number(Produce), 1, ((1, 0, 0),)))
    (leave,) = leaves(outcome)
    assert leave.next_offset == 2
    assert [type(record) for record in outcome.appends] == [Committed, LedgerEnded]
    assert [type(item) for item in outcome.work_after_sync] == [GaveBack]
    sharing.take_all(GaveBack)
    sharing.hear(Left(leave.request))
    assert sharing.take(Stop).error is None
    assert sharing.fetches() == fetches
    assert sharing.core.revoked


def test_leave_waits_for_the_sync_of_the_last_commit() -> None:
    """What it reports is durable: a power cut behind it must not leave the ledger behind."""
    sharing = running()
    sharing.renewed(revoke=True)
    outcome = sharing.step(HandlerDone(5, 0, 3))
    assert outcome.appends
    assert [leave.next_offset for leave in leaves(outcome)] == [3]
    assert not any(isinstance(send.message, Leave) for send in outcome.sends)


def test_revoked_while_the_ledger_is_opened() -> None:
    """It opens, and leaves as soon as it is open."""
    sharing = Sharing()
    sharing.join()
    sharing.hear(sharing.grant())
    sharing.take(OpenLedger)
    sharing.renewed(revoke=True)
    sharing.step(Recovered(5, 0))
    assert sharing.last(Leave).next_offset == 0
    assert not any(isinstance(message, Fetch) for message in sharing.said)


def test_only_the_answer_to_the_last_renewal_counts() -> None:
    """A late Renewed of an earlier time asks for nothing."""
    sharing = running()
    sharing.renewed()
    earlier = sharing.number(Renew)
    sharing.renewed()
    sharing.hear(Renewed(earlier, 5, revoke=True))
    assert not sharing.core.revoked
    sharing.renewed(revoke=True)
    assert sharing.core.revoked


def test_a_revocation_is_told_once() -> None:
    """The broker repeats it with every renewal; the event comes once."""
    sharing = running()
    events = [*sharing.renewed(revoke=True).events, *sharing.renewed(revoke=True).events]
    assert [name for name, _ in events].count("consumer.revoked") == 1


def test_renewals_say_who_and_what_is_durable() -> None:
    """An offset that is committed and not synced yet is not reported."""
    sharing = running()
    sharing.step(HandlerDone(5, 0, 3))
    sharing.renewed()
    assert sharing.last(Renew) == Renew(sharing.number(Renew), "g", "t", 0, 5, PROCESS, 0)
    sharing.step(Synced(2))
    sharing.renewed()
    assert sharing.last(Renew).committed == 3


def test_an_older_broker_is_not_told_of_members() -> None:
    """Joins and renewals of version 1 are as they were."""
    sharing = Sharing(version=1)
    sharing.run()
    sharing.renewed()
    assert sharing.last(Join).member == b""
    assert sharing.last(Renew) == Renew(sharing.number(Renew), "g", "t", 0, 5)
    modern = Sharing()
    modern.run()
    assert modern.last(Join).member == PROCESS


def test_whether_the_topic_is_shared_is_remembered() -> None:
    """Grant and every renewal carry it: it decides how a fenced actor ends."""
    sharing = running(shared=True)
    assert sharing.core.shared
    sharing.renewed(shared=False)
    assert not sharing.core.shared


def test_a_standby_is_idle_while_its_owner_is() -> None:
    """So a process that waits for others ends by itself, but not while there is work to take over."""
    sharing = Sharing()
    sharing.join()
    sharing.hear(Standby(sharing.number(Join), "other", 5_000, idle=True))
    since = sharing.core.idle_since_ms
    assert since == sharing.now
    sharing.now += 2_000
    sharing.step(Tick())
    sharing.step(sharing.facts())
    assert sharing.core.idle_since_ms == since
    sharing.hear(Standby(sharing.number(Join), "other", 5_000))
    assert sharing.core.idle_since_ms is None
    sharing.step(Tick())
    sharing.hear(sharing.grant())
    assert sharing.core.idle_since_ms is None


def test_a_successor_that_is_quicker_than_the_goodbye_is_no_failure() -> None:
    """Leave is out, its answer lost: the next owner opens the ledger before this one lets it go."""
    world = World()
    world.send(count=3)
    first = world.member()
    world.drain(first)
    first.actor.post(Drain())
    first.turn()
    assert first.actor.gave_back
    first.wire.cut = True
    second = world.member()
    world.run(lambda: second.core.phase == "running", second)
    assert not first.actor.ended
    world.clock.advance(LEAVE_WAIT_MS + 2_000)
    world.run(lambda: first.actor.ended, first)
    assert first.error is None
    assert second.error is None


def test_a_replaced_owner_notices_without_anybody_telling_it() -> None:
    """Cut off from the broker it still commits nothing that it could act on: the ledger is fenced."""
    world = World()
    world.send(count=3)
    frozen = world.member()
    world.run(lambda: bool(frozen.calls), frozen, handle=False)
    late = frozen.carry_out()
    world.clock.advance(LEASE_MS + 1)
    taker = world.member()
    world.drain(taker)
    told = world.events.names().count("commit.synced")
    frozen.wire.cut = True
    frozen.actor.post(late)
    frozen.turn()
    assert isinstance(frozen.error, Fenced)
    assert world.events.names().count("commit.synced") == told
    world.check_whole(taker)
