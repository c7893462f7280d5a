"""The consumer's shell: what it does with the core's work, and how it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from oncemq.core.client.connection import Reconnect
from oncemq.core.consumer.effect_work import CALL, EffectAnswer, EffectOrder, LookForOrders
from oncemq.core.consumer.work import (
    AnswerDropped,
    GaveBack,
    HandlerDone,
    LedgerPeeked,
    OpenLedger,
    PeekLedger,
    Repost,
    RunHandler,
)
from oncemq.driver import DISK_FULL_RETRY_MS, Silence
from oncemq.errors import DiskFull, Fenced, LogInUse, LogRegressed, OnceMQError, SinkUnavailable
from oncemq.limits import BACKOFF_FIRST_MS, BACKOFF_MAX_MS, STANDBY_RETRY_MS
from oncemq.outcome import Stop
from oncemq.shells.consumer import ConsumerShell

FACTS = LedgerPeeked(b"l" * 16, b"", b"", 0, 0, False, "here", "/ledger")
DONE = HandlerDone(1, 0, 1)
NOTHING: Any = None  # a window or a ledger that is not looked at


class Clock:
    """Time stands still unless a test moves it."""

    ms = 1_000

    def now_ms(self) -> int:
        return self.ms


class Diary:
    """Notes each call in order, under its name; the errors to come are raised first."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.errors: list[BaseException] = []

    def note(self, what: str) -> None:
        self.notes.append(what)
        if self.errors:
            raise self.errors.pop(0)


class Wire(Silence):
    """A socket on which the broker is silent."""

    def __init__(self, diary: Diary) -> None:
        self.reopen = lambda: diary.note("reopen")


class Connection:
    """What is lent to handlers."""

    def __init__(self, diary: Diary) -> None:
        self.broken = False
        self.expect_call = lambda: diary.note("expect_call")
        self.answered = lambda: diary.note("answered")
        self.drop = lambda: diary.note("drop")
        self.lend_again = lambda: diary.note("lend_again")


class Door:
    """A ledger that is never there."""

    directory = "/ledger"

    def __init__(self, diary: Diary, session: Connection | None) -> None:
        self.session = session
        self._diary = diary

    def peek(self) -> LedgerPeeked:
        self._diary.note("peek")
        return FACTS

    def open(self, epoch: int) -> Any:
        self._diary.note(f"open {epoch}")
        raise AssertionError("no test has a ledger to open")

    def find_orders(self, effect_ids: Iterable[str]) -> list[EffectOrder]:
        self._diary.note("find_orders")
        return [EffectOrder(one, "again") for one in effect_ids]

    def keep_orders(self, effect_ids: Iterable[str]) -> None:
        self._diary.note(f"keep_orders {sorted(effect_ids)}")

    def release(self) -> None:
        self._diary.notes.append("release")

    def close(self) -> None:
        self._diary.notes.append("close")


class Host:
    """Notes what the shell has for its embedder."""

    def __init__(self, diary: Diary) -> None:
        self._diary = diary

    def __getattr__(self, name: str) -> Any:
        return lambda _shell, *_rest: self._diary.note(name)


class World:
    """A shell, its doors, and what went through them."""

    def __init__(self, *, sink: bool = False) -> None:
        self.diary = Diary()
        self.clock = Clock()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.session = Connection(self.diary) if sink else None
        self.shell = ConsumerShell(
            ("billing", "orders", 0),
            endpoint="nowhere",
            transport=Wire(self.diary),
            clock=self.clock,
            events=self,
            entropy=lambda: bytes(16),
            ledger=Door(self.diary, self.session),
            host=Host(self.diary),
            label="test",
        )

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def do(self, *work: Any) -> list[str]:
        """Have the shell do work as its core asks for it; return what it did."""
        self.diary.notes.clear()
        for item in work:
            self.shell._perform(item)
        return list(self.diary.notes)


@pytest.mark.parametrize(
    ("item", "did"),
    [
        (RunHandler(1, NOTHING, 1, NOTHING), ["expect_call", "start_call"]),
        (AnswerDropped(), ["drop"]),
        (EffectAnswer(0, "pay", CALL), ["lend_again", "effect_answered"]),
        (Repost(DONE), ["answered"]),
    ],
)
def test_the_connection_is_lent_before_the_handler_knows(item: Any, did: list[str]) -> None:
    """A handler must never find a connection that is not its own yet."""
    assert World(sink=True).do(item) == did
    assert World().do(item) == [one for one in did if one in {"start_call", "effect_answered"}]


def test_a_fresh_socket_is_asked_of_the_transport() -> None:
    """What the core says of a connection that is of no use."""
    assert World().do(Reconnect()) == ["reopen"]


def test_orders_are_given_to_the_core() -> None:
    """Each order that is found is an event of the next turn."""
    world = World()
    world.do(LookForOrders(["a", "b"]))
    posted = world.shell._driver._posted
    assert [one.effect_id for one in posted if isinstance(one, EffectOrder)] == ["a", "b"]


@pytest.mark.parametrize(
    ("item", "error", "pause_ms"),
    [
        (PeekLedger(), LogInUse("being made"), STANDBY_RETRY_MS),
        (OpenLedger(3), DiskFull("no room"), DISK_FULL_RETRY_MS),
        (PeekLedger(), SinkUnavailable("away"), BACKOFF_FIRST_MS // 2),
        (OpenLedger(3), SinkUnavailable("away"), BACKOFF_FIRST_MS // 2),
    ],
)
def test_what_cannot_be_done_now_is_tried_again(
    item: Any, error: OnceMQError, pause_ms: int
) -> None:
    """Not earlier than the pause says, and the very same work."""
    world = World(sink=True)
    world.shell.turn()  # the core has asked for the facts of the ledger by itself
    world.shell.turn()
    world.diary.errors = [error]
    world.do(item)
    assert world.shell.time_left_ms() <= pause_ms
    tried = f"open {item.epoch}" if isinstance(item, OpenLedger) else "peek"
    for later_ms, wanted in ((pause_ms - 1, []), (1, [tried])):
        world.clock.ms += later_ms
        world.diary.notes.clear()
        world.diary.errors = [OnceMQError("seen")]
        world.shell.turn()
        assert world.diary.notes[:1] == wanted


def test_a_sink_that_stays_away_is_asked_less_and_less_often() -> None:
    """The pause doubles to its bound; a database that answers starts it anew."""
    world = World(sink=True)
    pauses = []
    for _ in range(9):
        world.diary.errors = [SinkUnavailable("away")]
        world.do(PeekLedger())
        pauses.append(world.shell._again_at_ms - world.clock.ms)
    assert pauses[:4] == [BACKOFF_FIRST_MS // 2 << doubled for doubled in range(4)]
    assert pauses[-1] == BACKOFF_MAX_MS // 2
    assert world.do(PeekLedger()) == ["peek"]
    world.diary.errors = [SinkUnavailable("away")]
    assert world.do(PeekLedger()) == ["peek", "sink_away"]
    assert world.shell._again_at_ms - world.clock.ms == BACKOFF_FIRST_MS // 2


def test_a_broken_connection_is_not_tried_again() -> None:
    """The consumer ends with the error: the one that follows it has a connection of its own."""
    world = World(sink=True)
    assert world.session is not None
    world.session.broken = True
    world.shell.turn()  # the core asks for the facts of the ledger
    world.shell._again, world.shell._again_at_ms = PeekLedger(), 0
    world.diary.errors = [SinkUnavailable("lost")]
    assert world.shell.turn()
    assert isinstance(world.shell.error, SinkUnavailable)
    assert "sink_away" not in world.diary.notes
    assert world.diary.notes[-2:] == ["release", "close"]


def test_the_first_error_is_the_one_that_is_told() -> None:
    """What fails behind it fails because the ledger is closed by then."""
    world = World()
    first = LogRegressed("the log has lost records")
    world.do(Stop(first))
    world.shell._failed(OnceMQError("the log is closed"))
    assert world.shell.ended
    assert world.shell.error is first


@pytest.mark.parametrize("error", [Fenced("a successor"), SinkUnavailable("away")])
def test_who_has_given_its_grant_back_may_be_fenced(error: OnceMQError) -> None:
    """The successor has the ledger by right: this is a clean end."""
    for gave_back, wanted in ((True, None), (False, error)):
        world = World()
        if gave_back:
            world.do(GaveBack())
        world.shell._failed(error)
        assert world.shell.ended
        assert world.shell.error is wanted


def test_an_ended_consumer_does_nothing_more() -> None:
    """Its owner may turn it, and end it again, without harm."""
    world = World()
    world.shell.end(None)
    world.diary.notes.clear()
    assert not world.shell.turn()
    world.shell.end(OnceMQError("too late"))
    assert world.shell.error is None
    assert world.diary.notes == []
