"""Producers, acknowledgements, errors, the outbox, the embedded queue and the test kit."""

import sqlite3

import oncemq
from oncemq import (
    Ack,
    AckMany,
    App,
    BufferFull,
    EffectUnknown,
    ExactlyOnceConsumer,
    ExactlyOnceQueue,
    Fenced,
    Harness,
    IdConflict,
    Message,
    OnceMQError,
    Pending,
    Producer,
    ResultTimeout,
    Unacknowledged,
    outbox,
)
from oncemq import Ap  # error

app = App()


def send() -> tuple[int | None, bool]:
    with app.producer("importer", in_flight_bytes=1 << 20, close_timeout=5) as producer:
        pending: Pending[Ack] = producer.send("orders", {"cents": 1}, key=b"k", headers={"h": b""})
        pending.add_done_callback(lambda done: print(done.result().offset))
        ack = pending.result(timeout=5)
        ack.ofset  # error
        many = producer.send_many("orders", [b"1", b"2"], ids=["a", b"b"], keys=[None, "k"])
        acks: AckMany = many.acks(timeout=1.5)
        first: Ack = acks[0]
        rest: list[Ack] = acks[1:]
        print(acks.appended, acks.duplicates, len(rest), many.result().appended, first.durability)
        many.result().apended  # error
        producer.flush(timeout=1)
    return ack.offset, ack.duplicate


def producers() -> None:
    app.producer("importer", in_flight=5)  # error
    app.producer("importer", broker="tcp://127.0.0.1:1")  # error
    one = Producer("importer", broker="tcp://127.0.0.1:1")
    name: str | None = one.name
    one.send("orders", 1, ids="x")  # error
    one.close(timeout=1)
    print(name)


async def send_awaited() -> int:
    async with app.producer() as producer:
        ack = await producer.send("orders", 1, id="o-1")
        acks = await producer.send_many("orders", [1], ids=["o-2"])
        ack.ofset  # error
        return acks.appended + ack.partition


def errors() -> str:
    try:
        send()
    except (IdConflict, BufferFull, ResultTimeout) as error:
        return f"{error.code} {error.reason} {error.hint} {error.retriable}"
    except Unacknowledged as error:
        return str(error.count + 1)
    except (Fenced, EffectUnknown, oncemq.TooLarge, oncemq.NotAHandler, OnceMQError):
        return oncemq.__version__
    return oncemq.NoSuchError.code  # error


def put(path: str) -> None:
    with sqlite3.connect(path) as connection:
        outbox.create(connection)
        outbox.send(connection, "orders", {"cents": 1}, id="o-1", key="alice")


def once_each() -> int:
    queue = ExactlyOnceQueue(dedup_window=None)
    ack = queue.send("order-1", {"cents": 250})
    queue.send(5, b"")
    queue.join()  # error
    with ExactlyOnceConsumer(queue, "data/processed") as consumer:
        return consumer.poll_and_process(print) + ack.partition


def test_shop() -> None:
    with Harness(app, partitions={"orders": 2}) as harness:
        ack: Ack = harness.send("orders", {"cents": 250}, id="o-1", key="alice")
        harness.crash_at("before_handler")
        harness.assert_exactly_once(allow={"file"})
        invoices: list[Message] = harness.sent("invoices")
        harness.effects.retry(harness.effects.held[0])
        harness.start_call()  # error
        assert harness.state("billing", "orders")["alice"] == 250
        assert harness.crashes and [one.value for one in invoices] and ack.offset == 0
