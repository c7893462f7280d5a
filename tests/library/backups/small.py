"""A small system on any disk: one broker's log and one ledger that follow each other's rules.

Each step is one synced group, as the actors write them: a message is stored, then passed by a commit with
an output, then the output is stored. Owners are replaced, snapshots and discards come on the way.
"""

from __future__ import annotations

import random
from typing import Any

from oncemq.codec import batch as batch_codec
from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.broker.state import BrokerState
from oncemq.history import Place
from oncemq.library.backups.catalog import BROKER
from oncemq.library.backups.make import Job, Made
from oncemq.limits import LIMITS
from oncemq.records import (
    BatchStored,
    Committed,
    GroupGranted,
    HistoryBegun,
    LedgerStarted,
    Output,
    TopicCreated,
)
from oncemq.storage.disk import Disk
from oncemq.storage.log import FencedLog
from oncemq.storage.outside_reader import LogReader

LOG_ID, LEDGER_ID, TOPIC_ID, OUT_ID = (c * 16 for c in (b"b", b"l", b"t", b"o"))
DATA, STATE, LEDGER = "data", "state", "state/g/orders/0"
PRODUCER = "@g/orders/0"
SEGMENT_BYTES = 2048
GROUP_BYTES = 512


class System:
    """The two owners, alive. Positions of stored messages are remembered as consumers do."""

    def __init__(self, disk: Disk, *, secret: bool = True) -> None:
        self.disk = disk
        self.stored: list[int] = []  # position of each message of `orders`
        self.outputs: list[int] = []  # numbers of outputs that the broker has
        self.committed = 0
        self.commits = 0
        self.history: list[tuple[bytes, int]] = []  # marks, and the records of topics before them
        self.broker: FencedLog | None = None
        self.ledger: FencedLog | None = None
        self.seen = Place()
        self.start_broker()
        if secret:
            assert self.broker is not None
            self.broker.secret(lambda: b"s" * 16)
        self.put_broker(TopicCreated("orders", TOPIC_ID, 1, 1), TopicCreated("out", OUT_ID, 1, 1))
        self.grant()

    # --- the broker -----------------------------------------------------------------------------

    def start_broker(self) -> None:
        """A new generation begins its history."""
        if self.broker is not None:
            self.broker.close()
        self.broker = open_log(self.disk, DATA, None, LOG_ID)
        mark = bytes([len(self.history) + 1]) * 16
        [position] = self.put_broker(HistoryBegun(mark, self.broker.generation, 1))
        self.history.append((mark, position))

    def put_broker(self, *records: Any) -> list[int]:
        assert self.broker is not None
        return put(self.broker, *records)

    def store(self) -> None:
        [at] = self.put_broker(_batch(0, len(self.stored), "", -1))
        self.stored.append(at)

    def place_of(self, position: int) -> Place:
        return next(Place(m, position + 1) for m, at in reversed(self.history) if at <= position)

    # --- the ledger -----------------------------------------------------------------------------

    def grant(self) -> None:
        """The broker grants the partition anew, and the taker opens that generation."""
        if self.ledger is not None:
            self.ledger.close()
        epoch = 2 if self.ledger is None else self.ledger.generation + 1
        grant = GroupGranted(
            "g",
            "orders",
            0,
            epoch,
            b"i" * 16,
            LEDGER_ID,
            self.committed,
            "h",
            "p",
            "l",
            1,
            self.seen,
        )
        self.put_broker(grant)
        first = self.ledger is None
        self.ledger = open_log(self.disk, LEDGER, epoch, LEDGER_ID)
        if first:
            put(self.ledger, LedgerStarted("g", "orders", 0, TOPIC_ID, LOG_ID, LOG_ID, 0))

    def commit(self) -> None:
        """Pass one message, with one output."""
        assert self.ledger is not None
        if self.committed == len(self.stored):
            return
        self.seen = self.place_of(self.stored[self.committed])
        self.committed += 1
        self.commits += 1
        batch = batch_codec.build([b"out"], encodings=0)
        output = Output("out", 0, self.commits - 1, 1, bytes(batch.raw), batch.crc)
        inputs = [(TOPIC_ID, self.committed)]
        put(
            self.ledger,
            Committed(
                self.ledger.generation, self.commits, inputs, [], b"", {}, [output], seen=self.seen
            ),
        )

    def send(self) -> None:
        """Store the next output that is committed and not sent."""
        assert self.ledger is not None
        number = len(self.outputs)
        if number < self.commits:
            self.put_broker(_batch(1, number, PRODUCER, number, self.ledger.generation))
            self.outputs.append(number)

    def snapshot_ledger(self) -> None:
        """And forget what lies below the older one."""
        assert self.ledger is not None
        started = ["g", "orders", 0, TOPIC_ID, LOG_ID, LOG_ID, 0]
        plain = {"started": started, "next_offset": self.committed, "commit_no": self.commits}
        plain |= {"epoch": self.ledger.generation, "seen": list(self.seen)}
        self.ledger.write_snapshot(self.ledger.durable_end, {"ledger": wire.pack_plain(plain)})
        self.ledger.discard(self.ledger.durable_end)

    def snapshot_broker(self) -> None:
        """As a broker writes it; a part that is mapped stands for the index of ids."""
        assert self.broker is not None
        writer = self.broker.part_writer(f"run-{self.broker.durable_end}")
        writer.write([b"mapped %d" % self.broker.durable_end * 20])
        assert writer.finish() is not None
        state = BrokerState(bytes(32), LIMITS)
        for position, record in records_of(self.disk, DATA):
            if not isinstance(record, BatchStored):
                state.apply(record, position)
        plain = state.snapshot().whole()
        packed = {name: wire.pack_plain(part) for name, part in plain.items()}
        end = self.broker.durable_end
        self.broker.write_snapshot(end, packed, {f"run-{end}"})

    def step(self, rng: random.Random) -> None:
        """Go on by one thing that actors do; now and then an owner is replaced."""
        usual = [self.store, self.commit, self.send]
        seldom = [self.grant, self.start_broker, self.snapshot_ledger, self.snapshot_broker]
        rng.choice(usual * 4 + seldom)()

    def close(self) -> None:
        for log in (self.broker, self.ledger):
            assert log is not None
            log.close()


def open_log(disk: Disk, directory: str, generation: int | None, log_id: bytes) -> FencedLog:
    return FencedLog.open(
        disk,
        directory,
        generation=generation,
        owner={"pid": 1},
        create_log_id=log_id,
        segment_bytes=SEGMENT_BYTES,
    )


def put(log: FencedLog, *records: Any) -> list[int]:
    log.reserve(GROUP_BYTES)
    positions = [log.append(*record_codec.encode(record)) for record in records]
    log.sync()
    return positions


def _batch(topic: int, offset: int, producer: str, sequence: int, epoch: int = 0) -> BatchStored:
    ids = None if producer else [b"t%d" % offset]
    batch = batch_codec.build([b"x" * 100], encodings=0, ids=ids)
    return BatchStored(
        topic, 0, offset, 1, 1, producer, epoch, sequence, b"", b"", batch.raw, batch.crc, 1
    )


def job(disk: Disk, **more: Any) -> Job:
    """A backup of the system on `disk` into `backups`."""
    settings: dict[str, Any] = {
        "directory": "backups",
        "data": DATA,
        "state": STATE,
        "host": "here",
        "now_ms": 1_800_000_000_000,
        "sink": None,
        "independent": False,
        "tell": lambda _name, _nbytes: None,
        "wait": lambda: None,
    }
    return Job(disk, **{**settings, **more})


def records_of(disk: Disk, directory: str) -> list[Any]:
    reader = LogReader.open(disk, directory)
    try:
        return [
            (r.position, record_codec.decode(r.type, r.meta, r.body, r.body_crc))
            for r in reader.replay()
        ]
    finally:
        reader.close()


def check_fits(disk: Disk, broker: str, ledger: str, base: int = 0) -> int:
    """Broker and ledger are of one moment, judged by their records alone; return the commits.

    `base`: commits that a snapshot of the ledger stands for, if its records do not begin at 0.
    """
    stored = records_of(disk, broker)
    end = stored[-1][0] + 1
    grants = [r for _, r in stored if isinstance(r, GroupGranted)]
    outputs = [r for _, r in stored if isinstance(r, BatchStored) and r.producer]
    commits = [r for _, r in records_of(disk, ledger) if isinstance(r, Committed)]
    last = commits[-1].commit_no if commits else base
    assert len(outputs) <= last, "the broker has outputs that the ledger would make again"
    reached = commits[-1].inputs[0][1] if commits else base
    assert reached >= max(grant.next_offset for grant in grants), "it would be refused"
    assert all(commit.seen.position <= end for commit in commits), "it relies on what is missing"
    granted = max(grant.epoch for grant in grants)
    assert all(commit.epoch <= granted for commit in commits), "it was never granted"
    return last


def check_made(disk: Disk, made: Made) -> int:
    return check_fits(disk, f"{made.path}/{BROKER}", f"{made.path}/ledgers/g/orders/0")
