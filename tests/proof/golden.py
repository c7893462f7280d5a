"""Small systems on a memory disk, written record by record through the real codec and log."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import xxhash

from oncemq.codec import batch as batch_codec
from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.ids import output_producer, tagged_id
from oncemq.limits import LIMITS, Limits
from oncemq.records import (
    BatchStored,
    Committed,
    GroupGranted,
    LedgerStarted,
    Output,
    ProducerGranted,
    Record,
    TopicCreated,
)
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk

LOG_ID = b"L" * 16
DATA, STATE = "data", "state"
OWNER: dict[str, str | int] = {"pid": 1}


def put(log: FencedLog, *records: Record) -> int:
    """Append records as one group; return the position of the last."""
    position = -1
    encoded = [record_codec.encode(record) for record in records]
    log.reserve(sum(len(meta) + len(body) for _, meta, body, _ in encoded))
    for kind, meta, body, crc in encoded:
        position = log.append(kind, meta, body, crc)
    log.sync()
    return position


def topic_id(topic: str) -> bytes:
    return topic.encode().ljust(16, b".")


class Broker:
    """Writes a broker's log as a broker would, unless a test asks for something else."""

    def __init__(self, disk: Any, directory: str = DATA, **more: Any) -> None:
        self.log = FencedLog.open(
            disk, directory, generation=None, owner=OWNER, create_log_id=LOG_ID, **more
        )
        self.disk = disk
        self.topics: list[str] = []
        self.ends: dict[tuple[str, int], int] = {}
        self.next: dict[tuple[str, str, int], int] = {}
        self.epochs: dict[str, int] = {}
        self.nonces = itertools.count(1)

    def topic(self, name: str, partitions: int = 1) -> None:
        self.topics.append(name)
        put(self.log, TopicCreated(name, topic_id(name), partitions, 1))

    def producer(self, name: str) -> None:
        self.epochs[name] = self.epochs.get(name, 0) + 1
        nonce = next(self.nonces).to_bytes(16, "big")
        put(self.log, ProducerGranted(name, self.epochs[name], nonce, "me", 1))

    def grant(self, group: str, topic: str, partition: int, epoch: int, **more: Any) -> None:
        self.epochs[output_producer(group, topic, partition)] = epoch
        record = GroupGranted(
            group,
            topic,
            partition,
            epoch,
            b"i" * 16,
            more.pop("ledger_id", ledger_id(group, topic, partition)),
            more.pop("next_offset", 0),
            "here",
            "path",
            "me",
            1,
        )
        put(self.log, record)

    def store(
        self, topic: str, batch: Any, *, partition: int = 0, producer: str = "", **wrong: Any
    ) -> int:
        """Store a batch and return its first offset; `wrong` overrides fields of the record."""
        first = self.ends.get((topic, partition), 0)
        explicit = batch.ids is not None
        sequence = -1 if explicit else self.next.get((producer, topic, partition), 0)
        fields: dict[str, Any] = {
            "topic_number": self.topics.index(topic),
            "partition": partition,
            "first_offset": first,
            "kept": batch.count,
            "at_ms": 1,
            "producer": producer,
            "epoch": self.epochs.get(producer, 0) if producer else 0,
            "first_sequence": sequence,
            "mask": b"",
            "digest": b"",
            "raw": batch.raw,
            "crc": batch.crc,
            "count": batch.count,
        }
        fields.update(wrong)
        if fields["crc"] is None:
            fields["crc"] = zlib.crc32(fields["raw"])
        put(self.log, BatchStored(**fields))
        self.ends[topic, partition] = fields["first_offset"] + fields["kept"]
        if not explicit:
            following = fields["first_sequence"] + batch.count
            self.next[producer, topic, partition] = following
        return first


def ledger_id(group: str, topic: str, partition: int) -> bytes:
    return f"{group}{topic}{partition}".encode().ljust(16, b"#")


class Consumer:
    """Writes a ledger as a consumer would, unless a test asks for something else."""

    def __init__(
        self, disk: Any, group: str, topic: str, partition: int = 0, epoch: int = 2, **more: Any
    ) -> None:
        self.directory = f"{more.pop('state', STATE)}/{group}/{topic}/{partition}"
        self.place = (group, topic, partition)
        self.ledger_id = ledger_id(*self.place)
        self.log = FencedLog.open(
            disk,
            self.directory,
            generation=epoch,
            owner=OWNER,
            create_log_id=self.ledger_id,
            **more,
        )
        self.epoch = epoch
        self.offset = 0
        self.number = 0
        self.sent: dict[tuple[str, int], int] = {}

    def start(self, offset: int = 0) -> None:
        group, topic, partition = self.place
        self.offset = offset
        started = LedgerStarted(group, topic, partition, topic_id(topic), LOG_ID, LOG_ID, offset)
        put(self.log, started)

    def commit(self, following: int, ids: Any = (), **more: Any) -> Committed:
        """Commit up to `following`; ids are explicit, ranges=[(producer, first, count)]."""
        self.number += 1
        record = Committed(
            more.get("epoch", self.epoch),
            more.get("commit_no", self.number),
            [(topic_id(self.place[1]), following)],
            list(more.get("ranges", ())),
            b"".join(self.fingerprints(ids)),
            more.get("state", {}),
            list(more.get("outputs", ())),
            list(more.get("acked", ())),
            parked=list(more.get("parked", ())),
            skipped=list(more.get("skipped", ())),
        )
        put(self.log, record)
        self.offset = following
        return record

    def fingerprints(self, ids: Any) -> list[bytes]:
        seed = int.from_bytes(self.ledger_id[:8], "little")
        return [xxhash.xxh3_128_digest(tagged_id(name), seed) for name in ids]

    def output(self, topic: str, batch: Any, partition: int = 0) -> Output:
        first = self.sent.get((topic, partition), 0)
        self.sent[topic, partition] = first + batch.count
        return Output(topic, partition, first, batch.count, bytes(batch.raw), batch.crc)


def explicit(*ids: str, value: bytes = b"v") -> Any:
    names = [tagged_id(name) for name in ids]
    return batch_codec.build([value] * len(ids), encodings=0, ids=names)


def numbered(count: int, value: bytes = b"v") -> Any:
    return batch_codec.build([value] * count, encodings=0)


def shop(disk: MemoryDisk) -> tuple[Broker, Consumer]:
    """A clean system: orders by explicit ids and by numbers, billed, with invoices going out."""
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("invoices")
    broker.producer("importer")
    broker.store("orders", explicit("o-1", "o-2", "o-3"))
    broker.store("orders", numbered(4), producer="importer")
    broker.store("orders", explicit("o-4"))
    broker.grant("billing", "orders", 0, 2)
    consumer = Consumer(disk, "billing", "orders")
    consumer.start()
    first = consumer.output("invoices", numbered(2, b"i"))
    consumer.commit(2, ["o-1", "o-2"], outputs=[first], state={"n": b"\x02\x02"})
    consumer.commit(7, ["o-3"], ranges=[("importer", 0, 4)])
    sender = output_producer("billing", "orders", 0)
    broker.store("invoices", numbered(2, b"i"), producer=sender)
    consumer.commit(7, [], acked=[("invoices", 0, 2)])
    return broker, consumer


def _make_runs(consumer: Consumer, core: Ledger) -> None:
    while due := core.processed.due():
        for new in due:
            writer = consumer.log.part_writer(new.name)
            writer.write(new.pieces())
            made = writer.finish()
            assert made is not None
            core.processed.made(new.name, made.buffer, made.path)


def compacted(
    broker: Broker,
    *,
    discard: bool = True,
    stored: int = 60,
    limits: Limits = LIMITS,
    harm: str = "",
) -> Consumer:
    """A ledger of topic orders as a core has written it, with snapshots and without its start.

    Of its 60 outputs the broker has stored and acknowledged the first `stored`. Small `limits` let it
    make runs, to which `harm` is done in the last snapshot.
    """
    consumer = Consumer(broker.disk, "billing", "orders", segment_bytes=4096)
    consumer.start()
    core = Ledger(limits)
    started = LedgerStarted("billing", "orders", 0, topic_id("orders"), LOG_ID, LOG_ID, 0)
    core.apply(started, 0)
    sender = output_producer("billing", "orders", 0)
    for number in range(60):
        broker.store("orders", explicit(f"a{number}", f"b{number}"))
        batch = numbered(1, b"%d" % number)
        output = consumer.output("out", batch)
        acked = [("out", 0, number)] if 0 < number <= stored else []
        ids = [f"a{number}", f"b{number}"]
        commit = consumer.commit(consumer.offset + 2, ids, outputs=[output], acked=acked)
        core.apply(commit, 0)
        if number < stored:
            broker.store("out", batch, producer=sender)
        if number in {20, 40}:
            _make_runs(consumer, core)
            snapshot = core.snapshot()
            parts = dict(snapshot.parts)
            mark, *rest = parts["processed"]
            if harm == "a run less":
                parts["processed"] = [mark, rest[0], rest[1][1:], rest[2]]
            elif harm == "another ledger":
                parts["processed"] = [mark[::-1], *rest]
            packed = {name: wire.pack_plain(part) for name, part in parts.items()}
            consumer.log.write_snapshot(consumer.log.durable_end, packed, snapshot.keep)
    if harm == "a changed bit":
        path = consumer.log._view.path
        for name in broker.disk.list(path):
            if name.endswith(".map"):
                file = broker.disk.open(f"{path}/{name}", write=True)
                file.write(bytes([file.read(30, 1)[0] ^ 1]), 30)
                file.close()
    if discard:
        consumer.log.discard(consumer.log.durable_end)
        assert consumer.log.start > 0
    return consumer
