"""State by key and handlers at the same time: order within a key, and a commit that is a prefix."""

from __future__ import annotations

import asyncio
import random
import threading
import zlib
from dataclasses import replace
from typing import Any

import pytest

from oncemq import App, Harness, Message, Tx
from oncemq.chaos.programs import wait_until
from oncemq.codec import batch as batch_codec
from oncemq.codec.entries import entry_name, message_key
from oncemq.codec.values import decode_value, encode_value
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.window import cut
from oncemq.core.consumer.work import HandlerDone, RunHandler, TopicResolved
from oncemq.errors import (
    HandlerFailed,
    NotAHandler,
    OnceMQError,
    StateMismatch,
    StateTooLarge,
    UnknownTopic,
)
from oncemq.library.consuming.topic_book import TopicBook
from oncemq.library.handling.carry import Carry
from oncemq.library.handling.make_call import TopicFinders, make_call
from oncemq.library.handling.state import decode_state, encode_state, shown_state
from oncemq.library.handling.threads import HandlerThreads
from oncemq.limits import LIMITS, Limits
from oncemq.records import BatchStored

KEYS = ["a", "b", "c", "d"]


def numbers_sent(done: HandlerDone) -> list[Any]:
    found = []
    for output in done.outputs:
        batch = batch_codec.parse(output.raw, output.crc, check=True)
        for index in range(batch.count):
            encoding, _, data = batch_codec.split_body(batch.body(index))
            found.append(decode_value(encoding, data))
    return found


class Keyed:
    """One window of messages with keys; commits are applied as a ledger would."""

    def __init__(
        self, handler: Any, keys: list[Any], *, limits: Limits = LIMITS, **options: Any
    ) -> None:
        app = App()
        app.consumer("t", group="g", state_by="key", **options)(handler)
        (self.consumer,) = app.consumers
        encoded = [encode_value(value) for value in range(len(keys))]
        batch = batch_codec.build(
            [data for _, data in encoded],
            encodings=encoded[0][0],
            keys=[key.encode() if isinstance(key, str) else key for key in keys],
        )
        stored = BatchStored(
            0, 0, 0, len(keys), 7, "p", 1, 0, b"", b"", batch.raw, batch.crc, len(keys), batch
        )
        window = cut([stored], 0, len(keys))
        assert window is not None
        self.window = window
        self.ledger = Ledger(limits)
        self.carry = Carry()
        self.threads = HandlerThreads()
        self.sent: list[Any] = []

    def call(self, *, attempt: int = 1, cut: bool = False) -> HandlerDone:
        run = RunHandler(1, self.window, attempt, self.ledger)
        call = make_call(self.consumer, run, TopicFinders(lambda _: 1), self.carry, self.threads)
        if cut:
            call.cut()
        if call.is_async:
            done = asyncio.run(call.carry_out_async(("g", "t", 0)))
        else:
            done = call.carry_out(("g", "t", 0))
        _, self.window = self.window.split(done.handled)
        self.ledger._change_state(done.state)
        self.sent += numbers_sent(done)
        return done

    def state(self) -> dict[Any, Any]:
        return shown_state(self.ledger.state)


def gathering(shape: str, body: Any) -> Any:
    """A handler, plain or async, that lets `body` work at a place where others may come between."""
    if shape == "async":

        async def handler(message: Message, tx: Tx) -> None:
            for _ in range(random.Random(message.offset).randrange(4)):
                await asyncio.sleep(0)
            body(message, tx)
            await asyncio.sleep(0)

        return handler
    return body


SHAPES = ["plain", "async"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_each_key_has_a_state_of_its_own_and_keeps_its_order(shape: str, concurrency: int) -> None:
    """Whatever runs at the same time: each key sees its messages in order, outputs go by offset."""
    lock = threading.Lock()
    seen: dict[Any, list[int]] = {}

    def body(message: Message, tx: Tx) -> None:
        with lock:
            seen.setdefault(message.key, []).append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.state.setdefault("log", []).append(message.offset)
        tx.send("out", message.offset)

    keys = [random.Random(number).choice(KEYS) for number in range(60)]
    keyed = Keyed(gathering(shape, body), keys, concurrency=concurrency)
    done = keyed.call()
    keyed.threads.close()
    expected = {key: [n for n, its in enumerate(keys) if its == key] for key in KEYS}
    assert done.handled == 60
    assert seen == expected
    assert keyed.sent == list(range(60))
    assert keyed.state() == {k: {"n": len(its), "log": its} for k, its in expected.items()}


def test_plain_handlers_really_run_at_the_same_time() -> None:
    """Four messages of four keys meet at a barrier: none of them could pass it alone."""
    barrier = threading.Barrier(4, timeout=30)

    def handler(message: Message, tx: Tx) -> None:
        barrier.wait()
        tx.state["thread"] = threading.current_thread().name

    keyed = Keyed(handler, KEYS, concurrency=4)
    assert keyed.call().handled == 4
    keyed.threads.close()
    assert len({its["thread"] for its in keyed.state().values()}) == 4


def test_async_handlers_really_run_at_the_same_time() -> None:
    """Four messages of four keys wait for each other in one loop; a fifth has to wait its turn."""
    inside: list[int] = []
    most = []
    full = asyncio.Event()

    async def handler(message: Message, tx: Tx) -> None:
        inside.append(message.offset)
        if len(inside) == 4:
            full.set()
        await full.wait()
        most.append(len(inside))
        await asyncio.sleep(0)
        inside.remove(message.offset)

    assert Keyed(handler, [*KEYS, "e"], concurrency=4).call().handled == 5
    assert max(most) == 4


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_beyond_the_prefix_is_in_the_commit(shape: str) -> None:
    """A failing message holds the commit; those behind it are done and wait, and do not run again."""
    ran: list[int] = []
    broken = [True]

    def body(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.send("out", message.offset)
        if message.key == "b" and broken[0]:
            raise LookupError("b")

    # 0:a 1:b 2:a 3:c 4:b 5:c: key b fails at 1 and blocks 4, the others finish
    keyed = Keyed(gathering(shape, body), ["a", "b", "a", "c", "b", "c"], concurrency=6)
    done = keyed.call()
    assert done.handled == 1
    assert set(done.state) == {"s:a"}
    assert decode_state(done.state["s:a"]) == {"n": 1}
    assert keyed.sent == [0]
    assert isinstance(done.failure.error, LookupError)
    assert done.failure.message_id == "t/p:0:1"
    assert 4 not in ran
    again = keyed.call(attempt=2)
    assert (again.handled, again.state, again.outputs) == (0, {}, [])
    broken[0] = False
    last = keyed.call(attempt=3)
    keyed.threads.close()
    assert (last.handled, last.failure) == (5, None)
    assert keyed.sent == [0, 1, 2, 3, 4, 5]
    assert keyed.state() == {"a": {"n": 2}, "b": {"n": 2}, "c": {"n": 2}}
    assert sorted(ran) == [0, 1, 1, 1, 2, 3, 4, 5]


def test_after_a_crash_what_was_kept_aside_runs_again() -> None:
    """Effects behind the prefix are in memory only: a new process begins from the commit."""
    ran: list[int] = []
    broken = [True]

    def handler(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        if message.offset == 0 and broken[0]:
            raise LookupError

    keyed = Keyed(handler, ["a", "b", "b"], concurrency=1)
    broken[0] = True
    keyed.call()
    first = list(ran)
    keyed.carry = Carry()
    broken[0] = False
    assert keyed.call().handled == 3
    assert ran == [*first, 0, 1, 2]
    assert keyed.state() == {"a": {"n": 1}, "b": {"n": 2}}


def test_a_kept_result_is_used_only_on_the_state_it_was_made_of() -> None:
    """If a key's state has changed by other means meanwhile, its messages run again."""
    ran: list[int] = []
    broken = [True]

    def handler(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        if message.offset == 0 and broken[0]:
            raise LookupError

    keyed = Keyed(gathering("plain", handler), ["a", "b", "b", "c"], concurrency=4)
    while len(keyed.carry.results) < 3:  # all but the failing one have got done
        keyed.call()
    keyed.ledger._change_state({entry_name("b"): None, entry_name("x"): None})
    other = Keyed(lambda m, tx: tx.state.update(n=10), ["b"])
    other.call()
    keyed.ledger._change_state(dict(other.ledger.state))
    broken[0] = False
    ran.clear()
    assert keyed.call(attempt=2).handled == 4
    keyed.threads.close()
    assert sorted(ran) == [0, 1, 2]
    assert keyed.state() == {"a": {"n": 1}, "b": {"n": 12}, "c": {"n": 1}}


def test_a_second_failure_waits_for_its_turn_and_keeps_its_count() -> None:
    """Each message has its own attempts: one that failed behind another is not run for nothing."""
    attempts: list[tuple[int, int]] = []
    broken = {1, 3}

    def handler(message: Message, tx: Tx) -> None:
        attempts.append((message.offset, message.attempt))
        if message.offset in broken:
            raise LookupError(message.offset)

    barrier = threading.Barrier(2, timeout=30)

    def together(message: Message, tx: Tx) -> None:
        if message.offset in {1, 3} and message.attempt == 1:
            barrier.wait()
        handler(message, tx)

    keyed = Keyed(together, ["a", "b", "c", "d"], concurrency=4)
    assert keyed.call().failure.message_id == "t/p:0:1"
    broken.discard(1)
    done = keyed.call(attempt=2)
    assert (done.handled, done.failure.message_id) == (2, "t/p:0:3")
    broken.clear()
    assert keyed.call(attempt=2).handled == 1
    keyed.threads.close()
    assert sorted(attempts) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]


def test_what_waits_behind_a_failing_message_is_bounded() -> None:
    """Once `commit_bytes` wait nothing more is started, and a commit takes no more than fits."""
    ran: list[int] = []
    broken = [True]

    def handler(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["v"] = "x" * 300
        if message.offset == 0 and broken[0]:
            raise LookupError

    keys = [f"k{number}" for number in range(20)]
    keyed = Keyed(handler, keys, concurrency=2, limits=Limits(commit_bytes=1000))
    for attempt in range(1, 12):
        assert keyed.call(attempt=attempt).handled == 0
    assert len(set(ran)) <= 6
    broken[0] = False
    calls = 0
    attempt = 12
    while keyed.window.count:
        done = keyed.call(attempt=attempt)
        attempt = 1
        assert done.handled
        assert sum(len(value) for value in done.state.values()) < 1000 + 400
        calls += 1
    keyed.threads.close()
    assert calls > 4
    assert sorted(set(ran)) == list(range(20))
    assert len([offset for offset in ran if offset]) == 19


def test_a_cut_leaves_out_what_is_done_behind_a_message_that_is_not() -> None:
    """The second message of a key was not started; the third message is done, and waits."""
    keyed = Keyed(lambda m, tx: None, ["a", "a", "b"], concurrency=2)
    run = RunHandler(1, keyed.window, 1, keyed.ledger)
    both = threading.Barrier(2, timeout=30)

    def handler(message: Message, tx: Tx) -> None:
        if message.offset != 1:
            both.wait()
            call.cut()
            both.wait()
        tx.send("out", message.offset)

    consumer = replace(keyed.consumer, handler=handler)
    call = make_call(consumer, run, TopicFinders(lambda _: 1), keyed.carry, keyed.threads)
    done = call.carry_out(("g", "t", 0))
    assert (done.handled, numbers_sent(done), done.failure) == (1, [0], None)
    _, keyed.window = keyed.window.split(1)
    keyed.call()
    keyed.threads.close()
    assert keyed.sent == [2]  # the other handler sends nothing for the second one


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_waits_for_what_runs_and_starts_nothing_more(shape: str) -> None:
    """A commit that is due takes the prefix that is done; the rest comes in the next."""
    ran: list[int] = []
    keyed = Keyed(
        gathering(shape, lambda m, tx: ran.append(m.offset)), list("abcdefgh"), concurrency=3
    )
    assert keyed.call(cut=True).handled == 1
    assert ran == [0]
    assert keyed.call().handled == 7
    keyed.threads.close()
    assert sorted(ran) == list(range(8))


def test_the_limit_of_the_state_holds_for_every_prefix() -> None:
    """What shrinks behind the prefix makes no room before its own commit."""

    def handler(message: Message, tx: Tx) -> None:
        if message.offset == 2:
            tx.state.clear()
        else:
            tx.state["v"] = "x" * 400

    keyed = Keyed(handler, ["a", "b", "a", "c"], limits=Limits(state_bytes_max=1000))
    done = keyed.call()
    assert done.handled == 3
    assert isinstance(done.failure.error, StateTooLarge)
    assert keyed.call(attempt=2).handled == 1
    assert set(keyed.state()) == {"b", "c"}


def test_message_keys_become_names_that_never_meet() -> None:
    """Text, bytes and no key at all: each its own, and back again."""
    keys: list[Any] = [None, "", "n:", "s:", "b:00", "a", b"\xff", b"\xff\x00", "ff", "ÿ"]
    names = [entry_name(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert [message_key(name) for name in names] == keys


def test_keyless_messages_share_a_state() -> None:
    """Without a key there is one state, and the order of the partition."""
    keyed = Keyed(lambda m, tx: tx.state.setdefault("log", []).append(m.offset), [None, "a", None],
                  concurrency=2)  # fmt: skip
    assert keyed.call().handled == 3
    keyed.threads.close()
    assert keyed.state() == {None: {"log": [0, 2]}, "a": {"log": [1]}}


def test_an_emptied_state_leaves_the_ledger() -> None:
    """A key whose mapping is empty costs nothing."""
    keyed = Keyed(lambda m, tx: tx.state.clear() if m.offset else tx.state.update(a=1), ["k", "k"])
    keyed.call(cut=True)
    assert keyed.state() == {"k": {"a": 1}}
    keyed.call()
    assert keyed.ledger.state == {}
    assert keyed.ledger.state_bytes == 0


def test_state_of_the_other_kind_is_refused_before_any_handler_runs() -> None:
    """A group that goes over to state_by, or back, must not begin to count anew unnoticed."""
    keyed = Keyed(lambda m, tx: None, ["a"])
    keyed.ledger._change_state({"total": encode_state(1)})
    with pytest.raises(StateMismatch, match="'total'"):
        keyed.call()
    calls = []

    def by_key(message: Message, tx: Tx) -> None:
        tx.state["n"] = 1

    app = App()
    app.consumer("t", group="g", state_by="key")(by_key)
    harness = Harness(app)
    harness.send("t", 1, key="a")
    harness.drain()
    app._consumers.clear()
    app.consumer("t", group="g")(lambda m, tx: calls.append(m))
    harness.crash()
    harness.send("t", 2, key="a")
    with pytest.raises(StateMismatch, match="state_by"):
        harness.drain()
    assert calls == []


def test_what_excludes_each_other_is_refused_at_decoration() -> None:
    """concurrency without state_by, lists with state_by, numbers that make no sense."""
    app = App()
    with pytest.raises(TypeError, match='needs state_by="key"'):
        app.consumer("t", group="g", concurrency=2)(lambda m, tx: None)
    with pytest.raises(NotAHandler, match="exclude"):
        app.consumer("t", group="g", batch=True, state_by="key")(lambda m, tx: None)
    with pytest.raises(ValueError, match="state_by"):
        app.consumer("t", group="g", state_by="value")(lambda m, tx: None)
    for number in (0, True, 1.5, 5000):
        with pytest.raises(ValueError, match="concurrency"):
            app.consumer("t", group="g", state_by="key", concurrency=number)(  # type: ignore[arg-type]
                lambda m, tx: None
            )
    assert app.consumers == []


@pytest.mark.parametrize("shape", SHAPES)
def test_end_to_end_with_crashes(shape: str) -> None:
    """Through broker, ledger and restarts each message counts once and outputs keep their order."""

    def body(message: Message, tx: Tx) -> None:
        tx.state["n"] = tx.state.get("n", 0) + message.value
        tx.send("out", message.value, key=message.key)
        tx.send(f"other-{message.key}", message.value)
        if message.attempt == 1 and message.value % 7 == 0:
            raise LookupError("first time")

    app = App()
    app.consumer("t", group="g", state_by="key", concurrency=4)(gathering(shape, body))
    harness = Harness(app, partitions={"t": 2})
    for number in range(40):
        harness.send("t", number, id=f"m{number}", key=KEYS[number % 4])
        if number % 10 == 9:
            harness.drain()
            harness.crash()
    expected = {key: {"n": sum(range(index, 40, 4))} for index, key in enumerate(KEYS)}
    assert harness.state("g") == expected
    for key in KEYS:
        mine = [m.value for m in harness.sent("out") if m.key == key]
        assert mine == list(range(KEYS.index(key), 40, 4))
        assert [m.value for m in harness.sent(f"other-{key}")] == mine


@pytest.mark.parametrize("shape", SHAPES)
def test_a_failure_ends_the_consumer_after_its_retries(shape: str) -> None:
    """The prefix before it is committed, and nothing behind it, however much of that was done."""

    def body(message: Message, tx: Tx) -> None:
        tx.state["n"] = 1
        if message.offset == 2:
            raise LookupError("two")

    app = App()
    options = {"state_by": "key", "concurrency": 4, "retries": 1, "park": False}
    app.consumer("t", group="g", **options)(gathering(shape, body))
    harness = Harness(app)
    for key in "abcdef":
        harness.send("t", 0, key=key)
    with pytest.raises(HandlerFailed, match="offset 2, attempt 2"):
        harness.drain()
    harness.crash()
    assert harness.state("g") == {"a": {"n": 1}, "b": {"n": 1}}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_parked_message_lets_its_key_go_on(shape: str) -> None:
    """The dead letter takes its place in the prefix: its key's messages run then, others once."""
    ran: list[int] = []

    def body(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        tx.send("out", message.offset)
        if message.offset == 1:
            raise LookupError("one")

    app = App()
    app.consumer("t", group="g", state_by="key", concurrency=4, retries=1)(gathering(shape, body))
    harness = Harness(app)
    for key in "abbcd":
        harness.send("t", 0, key=key)
    harness.drain()
    assert harness.state("g") == {key: {"n": 1} for key in "abcd"}
    assert sorted(m.value for m in harness.sent("out")) == [0, 2, 3, 4]
    assert len(harness.sent("t.dead")) == 1
    assert sorted(ran) == [0, 1, 1, 2, 3, 4]
    harness.assert_exactly_once()
    harness.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_replayed_message_is_handled_with_the_state_of_its_key(shape: str) -> None:
    """What waits in the main partition is not lost by it, and does not miss what it changed."""
    ran: list[int] = []

    def handler(message: Message, tx: Tx) -> None:
        ran.append(message.offset)
        tx.state["n"] = tx.state.get("n", 0) + 1
        if message.key == "a" and message.attempt < 3:
            raise LookupError

    keyed = Keyed(gathering(shape, handler), ["a", "b", "c"], concurrency=3)
    while len(keyed.carry.results) < 2:
        keyed.call()
    replay = Keyed(gathering(shape, handler), ["b"], concurrency=3)
    run = RunHandler(1, replay.window, 1, keyed.ledger, 0, private=True)
    call = make_call(keyed.consumer, run, TopicFinders(lambda _: 1), keyed.carry, keyed.threads)
    ran.clear()
    if call.is_async:
        done = asyncio.run(call.carry_out_async(("g", "t", 0)))
    else:
        done = call.carry_out(("g", "t", 0))
    assert done.private
    assert len(keyed.carry.results) == 2
    keyed.ledger._change_state(done.state)
    ran.clear()
    assert keyed.call(attempt=3).handled == 3
    keyed.threads.close()
    assert sorted(ran) == [0, 1]
    assert keyed.state() == {"a": {"n": 1}, "b": {"n": 2}, "c": {"n": 1}}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_message_that_killed_its_processes_is_not_handled(shape: str) -> None:
    """Also handlers of other shapes are not called for it; the answer is its dead letter."""
    calls: list[int] = []
    keyed = Keyed(gathering(shape, lambda m, tx: calls.append(1)), ["a"], concurrency=2)
    run = RunHandler(1, keyed.window, 1, keyed.ledger, 0, deaths=7)
    find = TopicFinders(lambda _: 1)
    call = make_call(keyed.consumer, run, find, keyed.carry, keyed.threads)
    assert not call.is_async
    done = call.carry_out(("g", "t", 0))
    assert (done.handled, done.failure.kind, calls) == (0, "crashed", [])
    assert done.failure.letter is not None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tx_is_over_when_its_handler_has_returned(shape: str) -> None:
    """A task that was left behind cannot slip something into another message's commit."""
    kept = []
    handler = gathering(shape, lambda message, tx: kept.append(tx))
    keyed = Keyed(handler, ["a"], concurrency=2)
    keyed.call()
    keyed.threads.close()
    with pytest.raises(OnceMQError, match="this Tx is over"):
        kept[0].send("out", 1)


def finders(known: dict[str, int], asked: list[str], release: asyncio.Event) -> TopicFinders:
    """Topics that are known only once somebody has awaited `release`."""

    def at_once(topic: str) -> int:
        return known.get(topic, 0)

    def blocking(topic: str) -> int:
        raise AssertionError(f"a loop must not block for {topic}")

    async def awaited(topic: str) -> int:
        asked.append(topic)
        await release.wait()
        known[topic] = 4
        return 4

    return TopicFinders(blocking, at_once, awaited)


@pytest.mark.parametrize("options", [{}, {"state_by": "key", "concurrency": 3}])
def test_a_topic_that_is_looked_up_freezes_nobody(options: dict[str, Any]) -> None:
    """tx.send awaits nothing: the lookup comes after the handler, and others run meanwhile."""

    async def scenario() -> tuple[HandlerDone, list[str]]:
        release = asyncio.Event()
        asked: list[str] = []

        async def handler(message: Message, tx: Tx) -> None:
            if message.offset == 0:
                tx.send("new", "v", key="alice")
                tx.send("old", "v", key="alice")
            elif options:
                while not asked:  # noqa: ASYNC110 - until the other one waits for its topic
                    await asyncio.sleep(0)
                release.set()

        if not options:
            release.set()
        app = App()
        app.consumer("t", group="g", **options)(handler)
        keyed = Keyed(lambda m, tx: None, ["a", "b"])
        (consumer,) = app.consumers
        run = RunHandler(1, keyed.window, 1, keyed.ledger)
        find = finders({"old": 1}, asked, release)
        call = make_call(consumer, run, find, Carry(), HandlerThreads())
        return await call.carry_out_async(("g", "t", 0)), asked

    done, asked = asyncio.run(asyncio.wait_for(scenario(), 30))
    assert (done.handled, done.failure) == (2, None)
    assert asked == ["new"]
    partitions = {output.topic: output.partition for output in done.outputs}
    assert partitions == {"new": zlib.crc32(b"alice") % 4, "old": 0}


def test_a_refused_topic_is_told_to_everybody_who_waits_for_it() -> None:
    """Handlers in several threads that ask for the same topic all hear the broker's no."""
    book = TopicBook()
    told: list[str] = []
    barrier = threading.Barrier(4, timeout=30)

    def ask() -> None:
        barrier.wait()
        try:
            book.wait("nowhere", 30_000)
        except UnknownTopic as error:
            told.append(error.reason)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    barrier.wait()
    wait_until(lambda: book._waiting.get("nowhere") == 3, 30, "three who wait")
    book.learn(TopicResolved("nowhere", 0, UnknownTopic("no")))
    for thread in threads:
        thread.join(30)
    assert told == ["no"] * 3
    assert book.known("nowhere") is None
