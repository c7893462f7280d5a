"""The fenced log as a crash case: two roles, several lives, and what each of them promises."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from oncemq.sim.disk.disk import SimDisk, SimProcess
from oncemq.storage.log import FencedLog, Mapped, create
from tests.storage.loghelp import DIRECTORY, LOG_ID

OTHER_ID = b"another log's id"
OWNER = {"pid": 1, "host": "simulated", "boot_id": "b", "start_time": 1}
BASE = b"the part that never changes"
MAPPED = b"a part that is mapped" * 20
SEGMENT_BYTES = 700


@dataclass(frozen=True, slots=True)
class Written:
    """A record as it was handed to the log."""

    position: int
    type: int
    meta: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Promise:
    """What may be relied on.

    Records below `durable_end` are there; those above were attempted, as one group: all or none.
    """

    made: bool = False  # `create` has returned
    written: tuple[Written, ...] = ()
    durable_end: int = 0
    snapshot: int = -1  # position of the newest snapshot whose writing has returned
    discardable: int = 0  # records below this may have been discarded


def digest(written: tuple[Written, ...], position: int) -> bytes:
    """The state of this test: how many records lie below `position`, and a checksum of them."""
    below = [record for record in written if record.position < position]
    return b"%d %08x" % (len(below), zlib.crc32(repr(below).encode()))


class Life:
    """One process that has the log open, and keeps the promise up to date."""

    def __init__(self, process: SimProcess, log: FencedLog, promised: Promise) -> None:
        self.process = process
        self.log = log
        self.promised = promised
        self.tell: Callable[[Promise], None] = lambda _promised: None

    def promise(self, promised: Promise) -> None:
        self.promised = promised
        self.tell(promised)

    def group(self, *bodies: bytes) -> None:
        """Append some records and sync them; they count from the moment `sync` returns."""
        written = list(self.promised.written)
        self.log.reserve(sum(map(len, bodies)) + 64 * len(bodies))
        for body in bodies:
            kind, meta = 1 + len(body) % 3, b"%d bytes" % len(body)
            position = self.log.append(kind, meta, body)
            written.append(Written(position, kind, meta, body))
        self.promise(replace(self.promised, written=tuple(written)))
        self.promise(replace(self.promised, durable_end=self.log.sync()))

    def attest(self) -> None:
        self.log.attest()
        self.promise(replace(self.promised, durable_end=self.log.durable_end))

    def snapshot(self) -> None:
        """Write the state at the durable end; base and mapped part are carried on by reference.

        The mapped part is written ahead of the first snapshot, and one more that no snapshot names.
        """
        position = self.log.durable_end
        kept = self.promised.snapshot >= 0
        parts = {"digest": digest(self.promised.written, position)}
        if not kept:
            parts["base"] = BASE
            for name in ("unwanted", "mapped"):
                writer = self.log.part_writer(name)
                writer.write([MAPPED[:100], MAPPED[100:]])
                assert writer.finish() is not None
        keep = {"base", "mapped"} if kept else {"mapped"}
        self.log.write_snapshot(position, parts, keep)
        self.promise(replace(self.promised, snapshot=position))

    def discard(self) -> None:
        below = self.log.snapshots()[-1].position
        self.promise(replace(self.promised, discardable=below))
        self.log.discard(below)

    def stop(self, *, clean: bool) -> None:
        """End the process: orderly, or as SIGKILL does."""
        if clean:
            self.log.close()
            self.promise(replace(self.promised, durable_end=self.log.durable_end))
        self.process.kill()


@dataclass
class LogCase:
    """A life story of one log. `ledger`: its generations are given from outside and jump."""

    ledger: bool = False

    def nothing(self) -> Promise:
        return Promise()

    def begin(self, disk: SimDisk, promised: Promise) -> Life:
        """Start a process: create if there is nothing, open, and check all that was promised."""
        process = disk.process("a life")
        identity = create(process, DIRECTORY, log_id=LOG_ID, owner=OWNER)
        assert identity.log_id == LOG_ID
        generation = None
        if self.ledger:
            taken = [int(name[-20:]) for name in process.list(DIRECTORY) if "gen-" in name]
            generation = max(taken) + 3
        log = FencedLog.open(
            process, DIRECTORY, generation=generation, owner=OWNER, segment_bytes=SEGMENT_BYTES
        )
        return Life(process, log, verify(log, promised))

    def run(self, disk: SimDisk, promise: Callable[[Promise], None]) -> None:
        """First start, growth, rolls, snapshots, discards, clean and unclean ends."""
        life = self.begin(disk, Promise())
        life.tell = promise
        life.promise(life.promised)
        life.group(b"one", b"two" * 20)
        life.group(b"three" * 60)
        life.attest()
        life.snapshot()
        life.group(b"four" * 70, b"", b"five" * 50)
        life.group(b"six" * 10)
        life.snapshot()
        life.discard()
        life.group(b"seven" * 40)
        life.stop(clean=True)

        life = self.begin(disk, life.promised)
        life.tell = promise
        life.promise(life.promised)
        life.group(b"eight" * 30)
        life.group(b"nine" * 90)
        life.snapshot()
        life.discard()
        life.group(b"ten" * 5, b"eleven" * 5)
        life.stop(clean=False)

        life = self.begin(disk, life.promised)
        life.tell = promise
        life.promise(life.promised)
        life.group(b"twelve" * 12)
        life.stop(clean=True)

    def recover(self, disk: SimDisk, promised: Promise) -> Promise:
        """Open after a crash and be killed at once: what it showed must stay."""
        life = self.begin(disk, promised)
        life.process.kill()
        return life.promised

    def check(self, disk: SimDisk, promised: Promise) -> None:
        """All is there, and the log works on: append, snapshot, end, and all is there again."""
        if promised.made:  # else a crash before the first start had returned
            assert create(disk, DIRECTORY, log_id=OTHER_ID, owner=OWNER).log_id == LOG_ID
        life = self.begin(disk, promised)
        life.group(b"after" * 30, b"the crash")
        life.snapshot()
        life.stop(clean=True)
        life = self.begin(disk, life.promised)
        life.stop(clean=True)
        generations = [name for name in disk.list(DIRECTORY) if name.startswith("gen-")]
        assert len(generations) == 1, f"left over: {generations}"


def verify(log: FencedLog, promised: Promise) -> Promise:
    """Compare the log with the promise; return the promise that holds from now on."""
    assert log.log_id == LOG_ID
    assert log.start <= promised.discardable, "more was discarded than asked for"
    assert log.durable_end >= promised.durable_end, "the log ends below what was acknowledged"
    found = [
        Written(record.position, record.type, bytes(record.meta), bytes(record.body))
        for record in log.replay(log.start)
    ]
    expected = [record for record in promised.written if record.position >= log.start]
    sure = [record for record in expected if record.position < promised.durable_end]
    assert found[: len(sure)] == sure, "an acknowledged record is missing or changed"
    assert found[len(sure) :] in ([], expected[len(sure) :]), "a record was invented or torn"
    gone = tuple(record for record in promised.written if record.position < log.start)
    known = gone + tuple(found)
    if found:
        read = log.read(found[0].position, 1 << 20)
        assert [record.position for record in read] == [record.position for record in found]
    check_snapshots(log, promised, known)
    return replace(promised, made=True, written=known, durable_end=log.durable_end)


def check_snapshots(log: FencedLog, promised: Promise, known: tuple[Written, ...]) -> None:
    """Each snapshot is whole and its replay leads to the end; none that was promised is missing."""
    usable = log.snapshots()
    newest = usable[0].position if usable else -1
    assert newest >= promised.snapshot, "a snapshot that had been written is gone"
    assert log.start == 0 or usable, "the start of the log is gone and no snapshot stands for it"
    for info in usable:
        assert info.position >= log.start, "a snapshot lies below the start of the log"
        assert info.position <= log.durable_end, "a snapshot is ahead of the log"
        parts = log.read_snapshot(info)
        mapped = parts.pop("mapped")
        assert isinstance(mapped, Mapped)
        assert bytes(mapped.buffer) == MAPPED, "a mapped part was not durable with its snapshot"
        assert parts == {"digest": digest(known, info.position), "base": BASE}
        after = [record.position for record in log.replay(info.position)]
        assert after == [record.position for record in known if record.position >= info.position]
