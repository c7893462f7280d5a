"""`tx.effect` with a SQL sink: no transaction across the call, and everything once all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oncemq import App, EffectMisused, EffectNotDone, EffectUnknown, Harness
from oncemq.core.consumer.open_effects import RETURNED, RUNNING
from oncemq.core.consumer.work import GiveUp
from oncemq.errors import HandlerLeft, SinkUnavailable
from oncemq.library.sinks.reading import read_sink_group
from oncemq.library.sinks.sqlite import SqliteSession
from oncemq.shells.tables.session import Session
from tests.sql.client import rows, run
from tests.sql.conftest import table

CHARGE = "charge"


class Shop:
    """A handler with a table and a bank; it writes before the call, or behind it only."""

    def __init__(self, sink: str) -> None:
        self.sink = sink
        self.insert = table(sink)
        self.calls: list[str] = []  # of the bank, by key
        self.runs: list[str] = []  # of the handler
        self.fail: list[Any] = []  # what the next calls raise
        self.in_call: Callable[[], None] = lambda: None
        self.before = True
        self.policy = "ask"
        self.app = App()
        self.app.consumer("orders", group="g", sink=sink, retries=1)(self.handle)
        self.made: list[Harness] = []

    def charge(self, key: str) -> int:
        self.calls.append(key)
        self.in_call()
        error = self.fail.pop(0) if self.fail else None
        if error is not None:
            raise error
        return len(self.calls)

    def handle(self, message: Any, tx: Any) -> None:
        self.runs.append(message.id)
        if self.before:
            tx.sql(self.insert, f"{message.id} before", 0)
            tx.state["seen"] = tx.state.get("seen", 0) + 1
            tx.send("out", f"{message.id} before")
        receipt = tx.effect(
            CHARGE, self.charge, tx.effect_key(CHARGE).split(":")[2], policy=self.policy
        )
        tx.sql(self.insert, message.id, receipt)
        tx.send("out", message.id)

    def harness(self, *ids: str, partitions: int = 1) -> Harness:
        harness = Harness(self.app, partitions={"orders": partitions})
        self.made.append(harness)
        for name in ids:
            harness.send("orders", name, id=name, key=name)
        return harness

    def paid(self) -> dict[str, int]:
        return dict(rows(self.sink, "SELECT id, cents FROM paid"))

    def effects(self) -> list[tuple[int, str]]:
        """The open effects as the database has them: offset and how they ended."""
        [ledger] = read_sink_group(self.sink, "g").values()
        return [(one.offset, one.how) for one in ledger.effects]


@pytest.fixture
def shop(sink: str) -> Iterator[Shop]:
    shop = Shop(sink)
    yield shop
    for harness in shop.made:
        harness.close()


def open_transactions(sink: str) -> int:
    """How many sessions of consumers have a transaction; SQLite: whether nobody else may write."""
    if sink.startswith("sqlite"):
        try:
            run(
                sink, "CREATE TABLE IF NOT EXISTS other (n INTEGER)", "INSERT INTO other VALUES (1)"
            )
        except Exception:
            return 1
        return 0
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'oncemq%'"
        " AND state LIKE 'idle in transaction%'"
    )
    return int(rows(sink, query)[0][0])


# --- once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
def test_each_call_is_made_once_and_its_rows_are_there_once(shop: Shop, before: bool) -> None:
    """Whatever dies around the commit, and whether or not the handler wrote before the call."""
    shop.before = before
    harness = shop.harness("a", "b", "c")
    harness.assert_exactly_once()
    assert shop.calls == ["a", "b", "c"]
    whole = {"a": 1, "b": 2, "c": 3}
    assert shop.paid() == {**whole, **{f"{one} before": 0 for one in whole if before}}
    assert harness.state("g") == ({"seen": 3} if before else {})
    expected = [text for one in whole for text in ([f"{one} before"] if before else []) + [one]]
    assert [m.value for m in harness.sent("out")] == expected


def test_no_transaction_is_open_across_the_call(shop: Shop) -> None:
    """Others write meanwhile, the intent is there for all to see, and of the handler nothing is."""
    seen: list[Any] = []

    def look() -> None:
        seen.append((open_transactions(shop.sink), shop.effects(), set(shop.paid())))

    shop.in_call = look
    shop.harness("a", "b").drain()
    assert seen == [
        (0, [(0, RUNNING)], set()),
        (0, [(1, RUNNING)], {"a", "a before"}),
    ]
    assert shop.runs == ["a", "a", "b", "b"]


@pytest.mark.parametrize("before", [True, False])
def test_the_result_is_recorded_before_the_handler_goes_on(sink: str, before: bool) -> None:
    """A handler that dies behind the call leaves nothing unknown."""
    insert, app, seen = table(sink), App(), []

    @app.consumer("orders", group="g", sink=sink)
    def handle(message: Any, tx: Any) -> None:
        if before:
            tx.sql(insert, "before", 0)
        tx.effect("x", int)
        [ledger] = read_sink_group(sink, "g").values()
        seen.append([one.how for one in ledger.effects])

    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
    assert seen == [[RETURNED]]


def test_messages_before_it_are_committed_first(shop: Shop) -> None:
    """The call ends before the message that was left; the others need not be handled again."""
    app, seen, runs = App(), [], []

    @app.consumer("orders", group="g", sink=shop.sink)
    def handle(message: Any, tx: Any) -> None:
        runs.append(message.id)
        tx.sql(shop.insert, message.id, 0)
        if message.id == "c":
            tx.effect("look", lambda: seen.append(set(shop.paid())))

    with Harness(app) as harness:
        for name in "abc":
            harness.send("orders", name, id=name)
        harness.drain()
    assert seen == [{"a", "b"}]
    assert runs.count("a") == runs.count("b") == 1
    assert set(shop.paid()) == {"a", "b", "c"}


def test_a_message_may_have_several_effects(shop: Shop) -> None:
    """Each is made once, between two runs of the handler, which sees the same outcomes again."""
    app, runs = App(), []
    told = [EffectNotDone("not today")]

    def fails() -> None:
        shop.calls.append("two")
        raise told[0]

    @app.consumer("orders", group="g", sink=shop.sink)
    def handle(message: Any, tx: Any) -> None:
        runs.append(message.value.pop("cents"))  # the message is as it was sent, each time
        tx.sql(shop.insert, "first", tx.effect("one", lambda: shop.calls.append("one") or 1))
        with pytest.raises(EffectNotDone):
            tx.effect("two", fails)
        tx.sql(shop.insert, "last", tx.effect("three", lambda: shop.calls.append("three") or 3))

    with Harness(app) as harness:
        harness.send("orders", {"cents": 7}, id="a")
        harness.drain()
    assert shop.calls == ["one", "two", "three"]
    assert shop.paid() == {"first": 1, "last": 3}
    assert runs == [7, 7, 7]


def test_partitions_share_a_database(shop: Shop) -> None:
    """Calls of several partitions take turns; none waits for what only another's turn would free."""
    harness = shop.harness(*"abcdefgh", partitions=4)
    harness.assert_exactly_once()
    assert sorted(shop.calls) == list("abcdefgh")
    assert len(shop.paid()) == 16


class Neighbour:
    """Another consumer of this process with something to write; it asks again at its next turn."""

    def __init__(self, sink: str) -> None:
        self.session = SqliteSession(sink.removeprefix("sqlite:///"), sink)
        self.asks = False
        self.waited = 0

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        if self.asks and self.session._may_begin():
            self.session._ended()
            self.asks = False
        self.waited += self.asks
        return False

    def time_left_ms(self) -> int:
        return 1_000


def test_whoever_waits_for_the_file_has_a_turn_between_two_records(shop: Shop) -> None:
    """In a world of one thread nobody else would give it one, and the handler would wait for ever."""
    if not shop.sink.startswith("sqlite"):
        pytest.skip("PostgreSQL has more than one writer")
    app, neighbour = App(), Neighbour(shop.sink)

    @app.consumer("orders", group="g", sink=shop.sink)
    def handle(message: Any, tx: Any) -> None:
        tx.sql(shop.insert, "first", 0)
        neighbour.asks = True
        shop.handle(message, tx)

    with Harness(app) as harness:
        harness._system.loop._members.insert(0, neighbour)
        harness.send("orders", 1, id="a")
        harness.drain()
    assert (shop.calls, neighbour.asks) == (["a"], False)
    assert neighbour.waited > 0


# --- nobody knows --------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", ["after_intent_before_call", "after_call_before_record"])
@pytest.mark.parametrize("word", ["done", "retry"])
def test_a_call_whose_process_died_waits_for_an_operator(
    shop: Shop, step: str, before: bool, word: str
) -> None:
    """It is not repeated unasked; nothing of its message is there; both words let it go on."""
    shop.before = before
    harness = shop.harness("a", "b")
    harness.crash_at(step)
    made = 1 if step == "after_call_before_record" else 0
    for _ in range(2):
        with pytest.raises(EffectUnknown, match="unknown whether effect"):
            harness.drain()
        assert (len(shop.calls), shop.paid()) == (made, {})
        harness.crash()
    with pytest.raises(EffectUnknown):
        harness.drain()
    [held] = harness.effects.held
    assert held == "g:orders:0:0:charge:1"
    if word == "done":
        harness.effects.done(held, 99)
    else:
        harness.effects.retry(held)
    harness.drain()
    assert shop.paid()["a"] == (99 if word == "done" else made + 1)
    assert shop.calls == ["a"] * (made + (word == "retry")) + ["b"]
    assert rows(shop.sink, "SELECT * FROM oncemq_effect_order") == []


def test_what_the_function_raises_comes_out_of_tx_effect(shop: Shop) -> None:
    """In the handler, as without a database, though it was called between two runs."""
    shop.fail = [EffectNotDone("refused")]
    harness = shop.harness("a")
    harness.drain()
    assert shop.calls == ["a", "a"], "the next attempt calls again"
    shop.fail = [TimeoutError("no answer")]
    harness.send("orders", 1, id="b")
    with pytest.raises(EffectUnknown):
        harness.drain()
    assert shop.effects() == [(1, "unknown")]
    assert shop.calls == ["a", "a", "b"]
    assert set(shop.paid()) == {"a", "a before"}


def test_the_policies_park_and_retry(shop: Shop) -> None:
    """A dead letter in the same commit as the offset; or called again, in the next attempt."""
    shop.policy, shop.fail = "park", [TimeoutError("no answer")]
    harness = shop.harness("a", "b")
    harness.drain()
    [letter] = harness.sent("orders.dead")
    assert letter.headers["oncemq-kind"] == b"unknown effect"
    assert set(shop.paid()) == {"b", "b before"}
    shop.policy, shop.fail = "retry", [TimeoutError("no answer")]
    harness.send("orders", 1, id="c")
    harness.drain()
    assert shop.calls == ["a", "b", "c", "c"]
    assert set(shop.paid()) == {"b", "b before", "c", "c before"}


def test_a_handler_that_forgets_its_effect_is_not_committed(shop: Shop) -> None:
    """What it wrote is rolled back, its partition is held, and goes on when somebody has spoken."""
    app, forgets = App(), []

    @app.consumer("orders", group="g", sink=shop.sink)
    def handle(message: Any, tx: Any) -> None:
        tx.sql(shop.insert, message.id, 0)
        if not forgets:
            tx.effect(CHARGE, shop.charge, "k")

    shop.fail = [TimeoutError("no answer")]
    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        with pytest.raises(EffectUnknown):
            harness.drain()
        forgets.append(True)
        harness.crash()
        with pytest.raises(EffectUnknown):
            harness.drain()
        assert shop.paid() == {}
        assert open_transactions(shop.sink) == 0
        harness.effects.done(harness.effects.held[0], 1)
        harness.send("orders", 2, id="b")
        harness.drain()
    assert set(shop.paid()) == {"a", "b"}
    assert shop.calls == ["k"]


def test_an_effect_that_the_next_run_does_not_come_to_is_not_in_its_way(shop: Shop) -> None:
    """Under "park" a handler may decide otherwise when it begins anew, as at a later attempt."""
    app, runs = App(), []

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    def handle(message: Any, tx: Any) -> None:
        runs.append(message.id)
        tx.sql(shop.insert, message.id, len(runs))
        if len(runs) == 1:
            tx.effect(CHARGE, shop.charge, "k", policy="park")

    shop.fail = [TimeoutError("no answer")]
    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
        assert harness.sent("orders.dead") == []
    assert shop.paid() == {"a": 2}


# --- the handler that was left -------------------------------------------------------------------


def test_a_handler_that_goes_on_when_it_was_left_fails(shop: Shop) -> None:
    """Nothing of it is committed, nothing was called, and tx is of no more use to it."""
    app = App()
    later: list[type[BaseException]] = []

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    def handle(message: Any, tx: Any) -> None:
        tx.sql(shop.insert, "before", 0)
        try:
            tx.effect(CHARGE, shop.charge, "k")
        except BaseException:
            tx.state["failed"] = True
        uses = (
            lambda: tx.sql(shop.insert, "behind", 0),
            lambda: tx.connection,
            lambda: tx.send("out", 1),
            lambda: tx.effect("another", shop.charge, "k"),
        )
        for use in uses:
            try:
                use()
            except BaseException as error:
                later.append(type(error))

    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
        [letter] = harness.sent("orders.dead")
        assert letter.headers["oncemq-error"].startswith(EffectMisused.__name__.encode())
        assert harness.state("g") == {}
        assert harness.sent("out") == []
    assert later == [HandlerLeft] * 4
    assert (shop.calls, shop.paid()) == ([], {})


def test_what_a_handler_raises_instead_on_its_way_out_says_nothing(shop: Shop) -> None:
    """It is over anyway; `except Exception` does not see it."""
    app, seen = App(), []

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    def handle(message: Any, tx: Any) -> None:
        tx.sql(shop.insert, "before", 0)
        try:
            try:
                tx.effect(CHARGE, shop.charge, "k")
            except Exception as error:
                seen.append(error)
        except BaseException as error:
            raise ValueError("broken") from error

    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
        assert harness.sent("orders.dead") == []
    assert (shop.calls, seen, set(shop.paid())) == (["k"], [], {"before"})


def test_the_function_uses_nothing_of_tx_but_its_keys(shop: Shop) -> None:
    """It is not called when its handler runs again, so that would be lost."""
    app, keys = App(), []

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    def handle(message: Any, tx: Any) -> None:
        if message.value:
            tx.sql(shop.insert, message.id, 0)

        def function() -> None:
            keys.append(tx.key)
            for use in (lambda: tx.sql("SELECT 1"), lambda: tx.connection, lambda: tx.send("o", 1)):
                with pytest.raises(EffectMisused, match="inside an effect"):
                    use()

        tx.effect(CHARGE, function)

    with Harness(app) as harness:
        for value in (True, False):
            harness.send("orders", value, id=f"{value}")
        harness.drain()
        assert harness.sent("orders.dead") == []
    assert keys == ["g@orders:s:True", "g@orders:s:False"]


# --- a database that goes away -------------------------------------------------------------------


def lost_commit(monkeypatch: pytest.MonkeyPatch, number: int, *, happened: bool) -> None:
    """Let the n-th record of an effect lose its connection, before its COMMIT or behind it."""
    original = Session.commit
    left = [number]

    def commit(self: Session) -> None:
        if self._paused is not None and self._call == self._paused:
            left[0] -= 1
            if left[0] == 0:
                if happened:
                    original(self)
                raise SinkUnavailable("the connection is lost")
        original(self)

    monkeypatch.setattr(Session, "commit", commit)


@pytest.mark.parametrize(
    ("number", "happened", "made", "held"),
    [(1, False, 0, False), (1, True, 0, True), (2, False, 1, True), (2, True, 1, False)],
)
def test_a_connection_that_is_lost_around_the_call(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, number: int, happened: bool, made: int, held: bool
) -> None:
    """No intent, or one whose outcome is unknown; a result that is there counts."""
    lost_commit(monkeypatch, number, happened=happened)
    harness = shop.harness("a")
    with pytest.raises(SinkUnavailable):
        harness.drain()
    assert len(shop.calls) == made
    with pytest.raises(EffectUnknown) if held else contextlib.nullcontext():
        harness.drain()
    assert len(shop.calls) == (made if held else 1)
    if held:
        harness.effects.done(harness.effects.held[0], 5)
        harness.drain()
    assert shop.paid() == {"a before": 0, "a": 5 if held else 1}


def test_a_consumer_that_ends_while_a_handler_is_in_its_call(shop: Shop) -> None:
    """It says that it ended well when the handler has come back; what that did is rolled back."""
    harness = shop.harness("a")
    seen: list[Any] = []

    def end() -> None:
        [actor] = harness._system.actors.values()
        actor.post(GiveUp())
        seen.append(actor)

    shop.in_call = end
    harness._system._add(shop.app.consumers[0], 0)
    harness._system.loop.run_until(lambda: bool(seen) and seen[0].ended)
    assert (seen[0].ended, seen[0].error) == (True, None)
    assert (shop.calls, shop.paid(), open_transactions(shop.sink)) == (["a"], {}, 0)
    [ledger] = read_sink_group(shop.sink, "g").values()
    assert ledger.ended


def test_an_owner_that_was_replaced_records_nothing(shop: Shop) -> None:
    """Neither its intent, so that it calls nothing, nor its result."""
    bump = "UPDATE oncemq_ledger SET epoch = epoch + 1"
    insert, when = shop.insert, ["before"]
    app = App()

    @app.consumer("orders", group="g", sink=shop.sink)
    def handle(message: Any, tx: Any) -> None:
        if when[0] == "before":
            run(shop.sink, bump)
        tx.effect(CHARGE, lambda: (shop.calls.append("k"), run(shop.sink, bump)))
        tx.sql(insert, "behind", 0)

    for made in (0, 1):
        harness = Harness(app)
        harness.send("orders", 1, id="a")
        with pytest.raises(Exception, match=r"epoch|ended"):
            harness.drain()
        harness.close()
        assert (len(shop.calls), shop.paid()) == (made, {})
        when[0] = "in the call"
        run(shop.sink, "DELETE FROM oncemq_ledger", "DELETE FROM oncemq_record")


# --- async ---------------------------------------------------------------------------------------


def awaiting(shop: Shop, *, before: bool = True) -> App:
    """As the handler of the shop, in an event loop."""
    app = App()

    async def charge(key: str) -> int:
        await asyncio.sleep(0)
        return shop.charge(key)

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    async def handle(message: Any, tx: Any) -> None:
        if before:
            await tx.sql(shop.insert, f"{message.id} before", 0)
        receipt = await tx.effect(CHARGE, charge, message.id)
        await tx.sql(shop.insert, message.id, receipt)

    return app


@pytest.mark.parametrize("before", [True, False])
def test_async_handlers(shop: Shop, before: bool) -> None:
    """The same in an event loop, and nothing is open while others run in it."""
    seen: list[int] = []
    shop.in_call = lambda: seen.append(open_transactions(shop.sink))
    with Harness(awaiting(shop, before=before)) as harness:
        for name in "ab":
            harness.send("orders", name, id=name)
        harness.assert_exactly_once()
    assert (shop.calls, seen) == (["a", "b"], [0, 0])
    assert len(shop.paid()) == (4 if before else 2)


def test_an_async_call_whose_process_died(shop: Shop) -> None:
    """It waits for an operator too."""
    with Harness(awaiting(shop)) as harness:
        harness.send("orders", 1, id="a")
        harness.crash_at("after_call_before_record")
        with pytest.raises(EffectUnknown):
            harness.drain()
        harness.effects.done(harness.effects.held[0], 8)
        harness.drain()
    assert (shop.calls, shop.paid()) == (["a"], {"a before": 0, "a": 8})


async def _together(tx: Any, insert: str) -> None:
    await asyncio.gather(tx.sql(insert, "x", 1), tx.effect("x", int))


async def _the_other_way(tx: Any, insert: str) -> None:
    await asyncio.gather(tx.effect("x", int), tx.sql(insert, "x", 1))


async def _swallowed(tx: Any, insert: str) -> None:
    await tx.sql(insert, "x", 1)
    with contextlib.suppress(BaseException):
        await tx.effect("x", int)


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("handle", [_together, _the_other_way, _swallowed])
def test_async_handlers_that_are_refused(shop: Shop, handle: Any) -> None:
    """A statement beside an effect shares its connection; what left the handler is not swallowed."""
    app = App()

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    async def orders(message: Any, tx: Any) -> None:
        await handle(tx, shop.insert)

    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
        [letter] = harness.sent("orders.dead")
        assert letter.headers["oncemq-error"].startswith(b"EffectMisused")
    assert shop.paid() == {}


def test_a_task_group_that_was_left(shop: Shop) -> None:
    """It wraps what left it; the effect is made all the same, once."""
    app = App()

    @app.consumer("orders", group="g", sink=shop.sink, retries=0)
    async def orders(message: Any, tx: Any) -> None:
        await tx.sql(shop.insert, "x", 1)

        async def work() -> None:
            await tx.effect("x", shop.charge, "k")

        async with asyncio.TaskGroup() as group:
            group.create_task(work())

    with Harness(app) as harness:
        harness.send("orders", 1, id="a")
        harness.drain()
        assert harness.sent("orders.dead") == []
    assert (shop.calls, shop.paid()) == (["k"], {"x": 1})
