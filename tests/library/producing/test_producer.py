"""The producer that users hold: handles, bounds, threads, event loops, forks, the end."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import Any

import pytest

from oncemq.errors import (
    BadCreatedAt,
    BufferFull,
    Fenced,
    IdConflict,
    IdRequired,
    InvalidName,
    OnceMQError,
    ProducerClosed,
    ResultTimeout,
    TooLarge,
    TopicExists,
    Unacknowledged,
    ValueNotEncodable,
)
from oncemq.ids import partition_of, tagged_id
from oncemq.library.producing import producer as producer_module
from oncemq.library.producing.acks import Patience, Verdicts
from oncemq.library.producing.pending import AckMany
from oncemq.library.producing.producer import Ack, Pending, Producer
from oncemq.limits import KEY_BYTES_MAX, MESSAGE_BYTES_MAX
from oncemq.protocol import DUPLICATE, UNKNOWN_OFFSET
from tests.library.wired import ENDPOINT, Wire

SOON = 120.0  # seconds: far beyond what a test needs


def test_a_message_is_acknowledged_with_its_offset() -> None:
    """`result()` returns topic, partition, offset, and that the message is new and durable."""
    wire = Wire()
    with wire.producer("importer") as producer:
        acks = [producer.send("orders", b"%d" % number).result(SOON) for number in range(3)]
    assert acks == [Ack("orders", 0, offset, duplicate=False) for offset in range(3)]
    assert acks[0].durability == "fsync"
    assert wire.values("orders") == [b"0", b"1", b"2"]


def test_a_resend_of_an_id_is_a_duplicate() -> None:
    """The same id and body again gives the original offset and duplicate=True."""
    with Wire().producer() as producer:
        first = producer.send("orders", {"b": 1, "a": 2}, id="o-1", key="k").result(SOON)
        again = producer.send("orders", {"a": 2, "b": 1}, id="o-1", key="k").result(SOON)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert first.offset == again.offset


def test_one_id_with_two_bodies_is_a_conflict() -> None:
    """Another body under a stored id raises IdConflict from `result()`, naming the id."""
    with Wire().producer() as producer:
        producer.send("orders", b"x", id=b"o-1").result(SOON)
        with pytest.raises(IdConflict, match="o-1"):
            producer.send("orders", b"y", id=b"o-1").result(SOON)


def test_an_anonymous_producer_needs_ids() -> None:
    """Without a name every send needs id=: IdRequired, and nothing is taken."""
    wire = Wire()
    with wire.producer() as producer:
        with pytest.raises(IdRequired):
            producer.send("orders", b"x")
        with pytest.raises(IdRequired):
            producer.send_many("orders", [b"x"])
    assert wire.broker.requests == []


@pytest.mark.parametrize("bad", ["", b"", "\ud800", 7])
def test_the_hint_of_a_bad_id_is_about_ids(bad: Any) -> None:
    """An id may hold what a name may not."""
    with Wire().producer() as producer:
        sends = [lambda: producer.send("orders", b"x", id=bad)]
        sends.append(lambda: producer.send_many("orders", [b"x"], ids=[bad]))
        for send in sends:
            with pytest.raises(InvalidName) as caught:
                send()
            assert caught.value.hint == "an id is text or bytes, 1 to 128 bytes long"
        assert producer.send("orders", b"x", id="a:b/c@d.dead").result(SOON).offset == 0


def test_no_socket_before_the_first_send() -> None:
    """A producer that is never used opens nothing and closes at once."""

    def forbidden(name: str, endpoint: str) -> Any:
        raise AssertionError((name, endpoint))

    with Producer("idle", connect=forbidden) as producer:
        assert producer.name == "idle"
        producer.flush(0)


def test_many_messages_share_one_handle() -> None:
    """send_many returns one handle whose result is a sequence of acknowledgements."""
    with Wire().producer("importer") as producer:
        acks = producer.send_many("t", [b"%d" % number for number in range(10_000)]).result(SOON)
    assert (len(acks), acks.appended, acks.duplicates) == (10_000, 10_000, 0)
    assert acks[9_999] == acks[-1] == Ack("t", 0, 9_999, duplicate=False)
    assert [ack.offset for ack in acks] == list(range(10_000))
    assert [ack.offset for ack in acks[5:7]] == [5, 6]
    with pytest.raises(IndexError):
        acks[10_000]


def test_many_with_ids_tell_duplicates_apart() -> None:
    """A batch is judged message by message: new ones stored, known ones reported."""
    with Wire().producer() as producer:
        producer.send("t", "b", id="b").result(SOON)
        acks = producer.send_many("t", ["a", "b", "c"], ids=["a", "b", "c"]).result(SOON)
    assert [(ack.offset, ack.duplicate) for ack in acks] == [(1, False), (0, True), (2, False)]
    assert (acks.appended, acks.duplicates) == (2, 1)


def test_many_with_a_conflict_fail_but_tell_the_rest() -> None:
    """A conflict raises from result(); acks() still gives the verdict of every other message."""
    with Wire().producer() as producer:
        producer.send("t", "b", id="b").result(SOON)
        pending = producer.send_many("t", ["a", "other", "c"], ids=["a", "b", "c"])
        with pytest.raises(IdConflict, match="'b'"):
            pending.result(SOON)
        acks = pending.acks(SOON)  # type: ignore[attr-defined]
    assert isinstance(acks, AckMany)
    assert [acks[0].offset, acks[2].offset] == [1, 2]
    with pytest.raises(IdConflict):
        acks[1]
    with pytest.raises(IdConflict):
        list(acks)


def test_nothing_to_send_is_done_at_once() -> None:
    """send_many of no values needs no broker."""
    pending = Wire().producer("importer").send_many("t", [])
    assert pending.done()
    assert len(pending.result()) == 0


def test_a_list_may_be_changed_after_the_call() -> None:
    """send_many takes the messages as they were at the call."""
    wire = Wire()
    values = [b"a", b"b"]
    with wire.producer("importer") as producer:
        with wire.away():
            pending = producer.send_many("t", values)
            values[0] = b"changed"
        pending.result(SOON)
    assert wire.values("t") == [b"a", b"b"]


def test_order_holds_between_send_and_send_many() -> None:
    """Messages of one producer are stored in the order of the calls, whatever the call."""
    wire = Wire()
    with wire.producer("importer") as producer:
        for number in range(0, 300, 3):
            producer.send("t", b"%d" % number)
            producer.send_many("t", [b"%d" % (number + 1), b"%d" % (number + 2)])
    assert wire.values("t") == [b"%d" % number for number in range(300)]


def test_order_holds_between_kinds_of_ids() -> None:
    """Messages with and without id= of one named producer keep their order too."""
    wire = Wire()
    with wire.producer("importer") as producer:
        for number in range(100):
            producer.send("t", b"%d" % number, id=None if number % 3 else f"id-{number}")
    assert wire.values("t") == [b"%d" % number for number in range(100)]


def test_single_sends_are_gathered() -> None:
    """Messages that come while others are on their way share batches."""
    wire = Wire()
    with wire.producer("importer") as producer, wire.away():
        pending = [producer.send("t", b"%d" % number) for number in range(2_500)]
        wire.cut = False
        producer.flush(SOON)
        assert all(each.done() for each in pending)
        assert [each.result().offset for each in pending] == list(range(2_500))
    batches = [request for request in wire.broker.requests if hasattr(request, "crc")]
    assert len(batches) < 20


@pytest.mark.parametrize("ids", [["a", "b\0s", "c"], ["\0", "\0s", "é"], ["a\0sb"], ["a", "b"]])
def test_text_ids_of_any_characters_stay_apart(ids: list[str]) -> None:
    """Ids are tagged all at once; one that looks like the seam between two is still one."""
    wire = Wire()
    with wire.producer("importer") as producer:
        producer.send_many("t", [b"x"] * len(ids), ids=ids).result(SOON)
        again = producer.send_many("t", [b"x"] * len(ids), ids=ids).result(SOON)
    assert (again.appended, again.duplicates) == (0, len(ids))
    assert [message.id for message in wire.broker.logs["t", 0]] == [
        b"s" + one.encode() for one in ids
    ]


def test_headers_and_mixed_values_travel() -> None:
    """Keys, headers and values of different types may alternate in gathered sends."""
    wire = Wire()
    with wire.producer("importer") as producer, wire.away():
        producer.send("t", b"a")
        producer.send("t", "b", key="k")
        producer.send("t", {"c": 1}, headers={"trace": b"x"})
        wire.cut = False
    assert [message.body[:1] for message in wire.broker.logs["t", 0]] == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"value": object()}, ValueNotEncodable),
        ({"value": "\ud800"}, ValueNotEncodable),
        ({"value": b"x" * (MESSAGE_BYTES_MAX + 1)}, TooLarge),
        ({"value": b"x", "key": "k" * (KEY_BYTES_MAX + 1)}, TooLarge),
        ({"value": b"x" * MESSAGE_BYTES_MAX, "key": "k"}, TooLarge),
        ({"value": b"x", "headers": {"oncemq-x": b""}}, ValueNotEncodable),
        ({"value": b"x", "id": ""}, InvalidName),
        ({"value": b"x", "id": "i" * 129}, TooLarge),
        ({"value": b"x", "topic": "a/b"}, InvalidName),
    ],
)
def test_what_cannot_be_sent_is_refused_at_send(
    options: dict[str, Any], error: type[OnceMQError]
) -> None:
    """Bad values, keys, ids, headers and names raise at the call and cost no number."""
    wire = Wire()
    with wire.producer("importer") as producer:
        arguments = {"topic": "t", **options}
        with pytest.raises(error):
            producer.send(arguments.pop("topic"), arguments.pop("value"), **arguments)
        assert producer.send("t", b"good").result(SOON).offset == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"values": [b"x", object()]}, ValueNotEncodable),
        ({"values": ["x", "\ud800"]}, ValueNotEncodable),
        ({"values": [b"x", b"x" * (MESSAGE_BYTES_MAX + 1)]}, TooLarge),
        ({"values": [b"x"], "keys": ["k" * (KEY_BYTES_MAX + 1)]}, TooLarge),
        ({"values": [b"x"], "keys": [b"k" * (KEY_BYTES_MAX + 1)]}, TooLarge),
        ({"values": [b"x" * MESSAGE_BYTES_MAX], "keys": ["k"]}, TooLarge),
        ({"values": [b"x"], "keys": ["\ud800"]}, ValueNotEncodable),
        ({"values": [b"x"], "ids": [""]}, InvalidName),
        ({"values": [b"x"], "ids": ["\ud800"]}, InvalidName),
        ({"values": [b"x"], "ids": [b"i" * 129]}, TooLarge),
        ({"values": [b"x", b"y"], "ids": ["a", 1]}, InvalidName),
        ({"values": [b"x", b"y"], "ids": [b"", "b"]}, InvalidName),
        ({"values": [b"x"], "ids": ["a", "b"]}, ValueError),
        ({"values": [b"x"], "keys": []}, ValueError),
    ],
)
def test_many_are_refused_as_a_whole(options: dict[str, Any], error: type[Exception]) -> None:
    """One message that cannot be sent refuses the whole call: nothing of it is taken."""
    wire = Wire()
    with wire.producer("importer") as producer:
        with pytest.raises(error):
            producer.send_many("t", options.pop("values"), **options)
        assert producer.send("t", b"good").result(SOON).offset == 0


def test_partitions_follow_key_id_and_count() -> None:
    """The partition of each message is ids.partition_of, for single and for many sends."""
    wire = Wire(partitions=3)
    keys = [None, "a", "b", "c", None, "d", None]
    values = [b"%d" % number for number in range(len(keys))]
    with wire.producer("importer") as producer:
        many = producer.send_many("t", values, keys=keys).result(SOON)
        single = [producer.send("t", b"s", key=key).result(SOON) for key in keys]
        with_ids = producer.send_many("t", values, ids=list("pqrstuv"), keys=keys).result(SOON)
    keyless = 0
    for acks in (many, single):
        for key, ack in zip(keys, acks, strict=True):
            raw = None if key is None else key.encode()
            assert ack.partition == partition_of(raw, None, keyless, 3)
            keyless += key is None
    for key, text, ack in zip(keys, "pqrstuv", with_ids, strict=True):
        raw = None if key is None else key.encode()
        assert ack.partition == partition_of(raw, tagged_id(text), 0, 3)


def test_the_count_of_keyless_messages_goes_on_over_restarts() -> None:
    """A named producer spreads keyless messages on from where the earlier incarnation ended."""
    wire = Wire(partitions=3)
    places = []
    for _ in range(4):
        with wire.producer("importer") as producer:
            places += [producer.send("t", b"x").result(SOON).partition for _ in range(2)]
    assert places == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_large_call_is_cut_into_batches_in_order() -> None:
    """More than a batch holds, in messages or bytes, becomes several batches in order."""
    wire = Wire()
    values = [bytes([number % 251]) * 300_000 for number in range(40)]
    with wire.producer("importer", in_flight_bytes=1_000_000) as producer:
        acks = producer.send_many("t", values).result(SOON)
        assert [ack.offset for ack in acks] == list(range(40))
    assert wire.values("t") == values


def test_the_largest_messages_go_alone() -> None:
    """Messages at the limit, with ids, each make a batch of their own."""
    wire = Wire()
    values = [b"%d" % number * MESSAGE_BYTES_MAX for number in range(2)]
    with wire.producer() as producer:
        acks = producer.send_many("t", values, ids=["a", "b"]).result(SOON)
    assert [ack.offset for ack in acks] == [0, 1]


def test_results_can_be_waited_for_with_a_bound() -> None:
    """result(timeout) raises ResultTimeout, which is a TimeoutError; the message goes on."""
    wire = Wire()
    with wire.producer("importer") as producer:
        with wire.away():
            pending = producer.send("t", b"x")
            with pytest.raises(ResultTimeout) as caught:
                pending.result(0.01)
            assert isinstance(caught.value, TimeoutError)
            assert not pending.done()
        assert pending.result(SOON).offset == 0


@pytest.mark.parametrize("many", [False, True])
def test_a_wait_ends_when_no_acknowledgement_comes(many: bool) -> None:
    """await, result() and flush() raise ResultTimeout; the message is still sent, and acknowledged."""
    wire = Wire()

    async def main() -> None:
        async with wire.producer("importer", ack_timeout=0.2) as producer:
            with wire.away():
                pending: Pending[Any] = (
                    producer.send_many("t", [b"x"]) if many else producer.send("t", b"x")
                )
                for _ in range(2):
                    with pytest.raises(ResultTimeout, match="outcome is unknown"):
                        await pending
                with pytest.raises(ResultTimeout, match="for the same handle again"):
                    pending.result()
                with pytest.raises(ResultTimeout):
                    producer.flush()
                assert not pending.done()
            found = await pending
            assert (found[0] if many else found).offset == 0
            producer.flush()

    asyncio.run(main())
    assert wire.values("t") == [b"x"]


def test_a_wait_without_end_is_asked_for() -> None:
    """ack_timeout=None and result(None) wait for ever; a bound of its own goes before."""
    wire = Wire()
    with (
        wire.producer("a", ack_timeout=None) as endless,
        wire.producer("b", ack_timeout=0.1) as brief,
    ):
        with wire.away():
            first, second = endless.send("t", b"x"), brief.send("t", b"x")
            waits = [
                threading.Thread(target=wait, daemon=True)
                for wait in (first.result, endless.flush, lambda: second.result(None))
            ]
            for thread in waits:
                thread.start()
            with pytest.raises(ResultTimeout, match=r"within 0\.01 s"):
                second.result(0.01)
            time.sleep(0.5)
            assert all(thread.is_alive() for thread in waits)
        for thread in waits:
            thread.join(SOON)
        assert first.done()
        assert second.done()


def test_a_broker_that_is_slow_but_at_work_is_waited_for() -> None:
    """The time counts from the last acknowledgement of any message of the producer."""
    patience = Patience(0.3, lambda: "")
    verdicts = Verdicts("t", patience)
    verdicts.expect(1)

    def work() -> None:
        for _ in range(12):
            time.sleep(0.1)
            patience.heard()
        verdicts.give([0], 0, ((1, 0, 0),), None)

    thread = threading.Thread(target=work)
    thread.start()
    verdicts.wait(...)
    thread.join()
    assert verdicts.settled


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_an_impossible_ack_timeout_is_refused(timeout: float) -> None:
    """None is how to wait for ever."""
    with pytest.raises(ValueError, match="ack_timeout"):
        Producer("importer", ack_timeout=timeout)


def test_flush_waits_for_all_sent_before() -> None:
    """After flush() every handle is done; with a bound that is too short it raises."""
    wire = Wire()
    with wire.producer("importer") as producer:
        with wire.away():
            pending = [producer.send("t", b"x") for _ in range(10)]
            with pytest.raises(ResultTimeout):
                producer.flush(0.01)
        producer.flush(SOON)
        assert all(each.done() for each in pending)


def test_callbacks_come_once_settled() -> None:
    """A callback gets the handle when it is settled, or at once if it is; one that raises harms
    nobody.
    """
    wire = Wire()
    seen: list[int | None] = []
    with wire.producer("importer") as producer:
        with wire.away():
            pending = producer.send("t", b"x")
            pending.add_done_callback(lambda _: 1 / 0)
            pending.add_done_callback(lambda done: seen.append(done.result().offset))
            assert seen == []
        producer.flush(SOON)
        pending.add_done_callback(lambda done: seen.append(done.result().offset))
        assert producer.send("t", b"y").result(SOON).offset == 1
    assert seen == [0, 0]


def test_a_full_buffer_blocks_and_then_refuses() -> None:
    """At the bound on bytes send waits up to its timeout, then BufferFull; nothing is taken."""
    wire = Wire()
    with wire.producer("importer", in_flight_bytes=1_000) as producer:
        with wire.away():
            producer.send("t", b"a" * 900)
            with pytest.raises(BufferFull):
                producer.send("t", b"b" * 900, timeout=0.01)
            with pytest.raises(BufferFull):
                producer.send_many("t", [b"c" * 900], timeout=0)
        producer.send("t", b"d" * 900, timeout=SOON)
    assert [value[:1] for value in wire.values("t")] == [b"a", b"d"]


def test_a_call_above_the_bound_goes_alone() -> None:
    """A single call larger than the bound is taken when nothing else is on its way."""
    wire = Wire()
    with wire.producer("importer", in_flight_bytes=1_000) as producer:
        assert len(producer.send_many("t", [b"x" * 900] * 5).result(SOON)) == 5


def test_a_callback_may_send() -> None:
    """Sending from a callback works, and at the bound it fails instead of waiting for itself."""
    wire = Wire()
    outcome: list[object] = []
    done = threading.Event()

    def send_more(_: object) -> None:
        outcome.append(producer.send("t", b"b" * 900))
        try:
            producer.send("t", b"c" * 900)
        except BufferFull as error:
            outcome.append(error)
        done.set()

    with wire.producer("importer", in_flight_bytes=1_000) as producer:
        producer.send("t", b"a" * 900).add_done_callback(send_more)
        assert done.wait(SOON)
    assert isinstance(outcome[1], BufferFull)
    assert [value[:1] for value in wire.values("t")] == [b"a", b"b"]


def test_threads_share_a_producer() -> None:
    """Sends from many threads are all stored once, each thread's in its order."""
    wire = Wire()
    with wire.producer("importer") as producer:

        def work(thread: int) -> None:
            for number in range(200):
                producer.send("t", b"%d %d" % (thread, number))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    values = [tuple(map(int, value.split())) for value in wire.values("t")]
    assert len(values) == 1_000
    for thread in range(5):
        assert [number for owner, number in values if owner == thread] == list(range(200))


def test_handles_are_awaitable() -> None:
    """In an event loop a handle can be awaited, many at a time, and `async with` flushes."""
    wire = Wire()

    async def main() -> list[Ack]:
        async with wire.producer("importer") as producer:
            first = await producer.send("t", b"first")
            return [first, *await asyncio.gather(*(producer.send("t", b"x") for _ in range(50)))]

    acks = asyncio.run(main())
    assert [ack.offset for ack in acks] == list(range(51))


def test_awaiting_never_blocks_the_loop() -> None:
    """At the bound a send in an event loop returns at once and waits for room by itself."""
    wire = Wire()

    async def main() -> None:
        async with wire.producer("importer", in_flight_bytes=1_000) as producer:
            with wire.away():
                pending = [producer.send("t", b"%d" % number * 450) for number in range(3)]
                with pytest.raises(BufferFull):  # the bound on what waits for room
                    for _ in range(10):
                        producer.send_many("t", [b"x" * 450])
            await asyncio.gather(*pending)

    asyncio.run(main())
    assert [value[:1] for value in wire.values("t")][:3] == [b"0", b"1", b"2"]


def test_waiting_for_room_ends_at_the_timeout() -> None:
    """A send in an event loop that finds no room within its timeout fails with BufferFull."""
    wire = Wire()

    async def main() -> None:
        async with wire.producer("importer", in_flight_bytes=1_000) as producer:
            with wire.away():
                first = producer.send("t", b"a" * 900)
                late = producer.send("t", b"b" * 900, timeout=0.01)
                with pytest.raises(BufferFull):
                    await late
            await first

    asyncio.run(main())
    assert [value[:1] for value in wire.values("t")] == [b"a"]


def test_a_cancelled_waiter_harms_nobody() -> None:
    """Cancelling a task that awaits a handle leaves the message on its way, without a trace."""
    wire = Wire()
    troubles: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, trouble: troubles.append(trouble)
        )
        async with wire.producer("importer") as producer:
            with wire.away():
                pending = producer.send("t", b"x")
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pending, 0.01)
            assert (await pending).offset == 0

    asyncio.run(main())
    assert troubles == []


def test_leaving_without_acknowledgement_is_loud() -> None:
    """Leaving `with` while messages have no answer raises Unacknowledged with their number."""
    wire = Wire()
    wire.cut = True
    pending: list[Pending[Any]] = []

    def leave() -> None:
        with wire.producer("importer", close_timeout=0.02) as producer:
            pending.append(producer.send("t", b"x"))
            pending.append(producer.send_many("t", [b"y"] * 4))

    with pytest.raises(Unacknowledged) as caught:
        leave()
    assert caught.value.count == 5
    for each in pending:
        with pytest.raises(Unacknowledged):
            each.result()


def test_the_error_of_the_block_wins() -> None:
    """An exception in the `with` block is not replaced; what was not acknowledged is a note."""
    wire = Wire()
    wire.cut = True

    def leave() -> None:
        with wire.producer("importer", close_timeout=0.02) as producer:
            producer.send("t", b"x")
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        leave()
    assert any("1 messages" in note for note in caught.value.__notes__)


def test_a_closed_producer_refuses() -> None:
    """Sends after close raise ProducerClosed; closing again does nothing."""
    producer = Wire().producer("importer")
    producer.send("t", b"x")
    producer.close()
    producer.close()
    with pytest.raises(ProducerClosed):
        producer.send("t", b"y")


def test_close_wakes_who_waits_for_room() -> None:
    """A thread that waits in send gets ProducerClosed when another one closes."""
    wire = Wire()
    wire.cut = True
    producer = wire.producer("importer", in_flight_bytes=1_000, close_timeout=0.02)
    producer.send("t", b"a" * 900)
    caught: list[BaseException] = []

    def work() -> None:
        try:
            producer.send("t", b"b" * 900, timeout=SOON)
        except OnceMQError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(Unacknowledged):
        producer.close()
    thread.join(SOON)
    assert isinstance(caught[0], ProducerClosed)


def test_a_second_owner_fences_the_first() -> None:
    """The fenced one raises Fenced from results, from every later send, and at its end."""
    wire = Wire()
    old = wire.producer("importer")
    assert old.send("t", b"0").result(SOON).offset == 0
    with wire.producer("importer") as new:
        assert new.send("t", b"1").result(SOON).offset == 1
        pending = old.send("t", b"zombie")
        with pytest.raises(Fenced):
            pending.result(SOON)
        with pytest.raises(Fenced):
            old.send("t", b"zombie")
        with pytest.raises(Fenced):
            old.close()
    assert wire.values("t") == [b"0", b"1"]


def test_a_refused_topic_fails_only_its_messages() -> None:
    """A topic that cannot be made fails what was sent to it; the producer goes on."""
    wire = Wire()
    with wire.producer("importer") as producer:
        producer.send("good", b"x").result(SOON)
        wire.broker.refusals = ["topic_exists"]
        with pytest.raises(TopicExists):
            producer.send("bad", b"x").result(SOON)
        assert producer.send("good", b"y").result(SOON).offset == 1
        assert producer.send("bad", b"z").result(SOON).offset == 0


def test_messages_are_refused_one_batch_at_a_time() -> None:
    """A batch refused for good raises from its own handles only."""
    wire = Wire()
    with wire.producer() as producer:
        producer.send("t", b"x", id="a").result(SOON)
        wire.broker.refusals = ["bad_created_at"]
        single = producer.send("t", b"x", id="b")
        with pytest.raises(BadCreatedAt):
            single.result(SOON)
        wire.broker.refusals = ["bad_created_at"]
        many = producer.send_many("t", [b"x", b"y"], ids=["c", "d"])
        with pytest.raises(BadCreatedAt):
            many.result(SOON)
        with pytest.raises(BadCreatedAt):
            list(many.acks())  # type: ignore[attr-defined]
        assert producer.send("t", b"x", id="e").result(SOON).offset == 1


def test_a_trimmed_duplicate_has_no_offset() -> None:
    """A duplicate whose original is no longer kept is acknowledged with offset None."""
    verdicts = Verdicts("t")
    verdicts.expect(2)
    verdicts.give(range(2), 0, ((2, DUPLICATE, UNKNOWN_OFFSET),), None)
    assert list(AckMany(verdicts)) == [Ack("t", 0, None, duplicate=True)] * 2


def test_a_fenced_producer_fails_flush_and_every_handle() -> None:
    """flush() and the handles of send_many raise what ended the producer."""
    wire = Wire()
    old = wire.producer("importer")
    old.send("t", b"0").result(SOON)
    with wire.producer("importer") as new:
        new.send("t", b"1").result(SOON)
        many = old.send_many("t", [b"2", b"3"])
        with pytest.raises(Fenced):
            old.flush(SOON)
        with pytest.raises(Fenced):
            many.result(SOON)
        with pytest.raises(Fenced):
            many.acks()  # type: ignore[attr-defined]
        with pytest.raises(Fenced):
            old.close()


def test_forgetting_to_close_is_warned_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the interpreter a producer that was never closed gets a moment to flush."""
    monkeypatch.setattr(producer_module, "_EXIT_FLUSH_S", SOON)
    wire = Wire()
    good = wire.producer("good")
    pending = good.send("t", b"x")
    bad = Wire().producer("bad")
    bad._connect = lambda name, endpoint: 1 / 0  # type: ignore[assignment,return-value]
    bad.send("t", b"y")
    producer_module._at_exit()
    assert pending.done()
    assert "was not closed" in caplog.text


def test_a_broken_engine_fails_what_is_on_its_way() -> None:
    """An unexpected error of the I/O thread reaches every handle; nobody waits for ever."""

    def broken(name: str, endpoint: str) -> Any:
        raise OSError(f"no socket for {name} at {endpoint}")

    producer = Producer("importer", broker=ENDPOINT, connect=broken)
    with pytest.raises(OnceMQError, match="no socket"):
        producer.send("t", b"x").result(SOON)
    with pytest.raises(OnceMQError):
        producer.close()


def test_a_missing_broker_is_named_in_timeouts() -> None:
    """Whoever waits in vain reads at which endpoint no broker answers."""
    wire = Wire()
    wire.cut = True
    producer = wire.producer("importer", close_timeout=0)
    pending = producer.send("t", b"x")
    deadline = time.monotonic() + SOON
    while not wire.events and time.monotonic() < deadline:
        with pytest.raises(ResultTimeout):
            pending.result(0.01)
    with pytest.raises(ResultTimeout, match=ENDPOINT):
        pending.result(0.01)
    with pytest.raises(Unacknowledged):
        producer.close()
    assert [name for name, _ in wire.events].count("client.waiting") == 1


def test_a_forked_child_is_an_owner_of_its_own() -> None:
    """The child inherits nothing unsent, gets no answers of the parent's, and opens anew."""
    wire = Wire()
    with wire.away(), wire.producer("importer") as producer:
        pending = producer.send("t", b"parent")
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            report = b"failed"
            try:
                with pytest.raises(ProducerClosed, match="before the process forked"):
                    pending.result(0)
                wire.lock = threading.Lock()
                wire.cut = False
                ack = producer.send("t", b"child").result(SOON)
                report = b"%d %s" % (ack.offset or 0, b",".join(wire.values("t")))
            finally:
                os.write(write_end, report)
                os._exit(0)
        os.close(write_end)
        os.waitpid(child, 0)
        assert os.read(read_end, 100) == b"0 child"
        os.close(read_end)
        wire.cut = False
        assert pending.result(SOON).offset == 0
    assert wire.values("t") == [b"parent"]
