"""A disk that runs full under a ledger and under files of ids, in mid-work: nothing is lost.

    unshare --mount python -m tests.powercut.full_disk ledger
    unshare --mount python -m tests.powercut.full_disk index

`ledger` has real processes, whose broker lies on another disk. `index` has a broker with small
tables inside this process, so that a small disk holds many files. The log itself is in siege.py.
"""

from __future__ import annotations

import errno
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.dedup import TOPIC, names
from oncemq import protocol as say
from oncemq.chaos.programs import wait_until
from oncemq.codec import batch as batch_codec
from oncemq.library.embedded.broker import InlineBroker
from oncemq.limits import Limits
from oncemq.runtime.background import BackgroundThreads
from oncemq.runtime.clock import SystemClock
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.process import draw, owner_facts
from tests.powercut.filesystems import file_system
from tests.powercut.siege import END_S, story

KIND = "ext4-small"
LEFT_BYTES = 700_000  # for a ledger to begin: less than it would reserve ahead
BATCH = 1_000


def fill(path: Path, left_bytes: int) -> None:
    """Leave about so many bytes free on the file system of `path`."""
    with path.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(16 * 1024))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        stream.truncate(max(0, stream.tell() - left_bytes))


# --- a ledger -------------------------------------------------------------------------------------


def ledger() -> dict[str, Any]:
    """A consumer whose ledger has no room waits, and goes on when there is some."""
    with story(KIND) as tale:
        house = tale.house
        house.data = house.directory / "data"
        broker = tale.begin()
        filler = tale.mounted.path / "filler"
        fill(filler, LEFT_BYTES)
        consumer = house.consumer("tests.powercut.full_app:app")

        def is_full() -> bool:
            tale.send(END_S)
            house.refresh()
            return house.history.of(consumer.pid)["log.disk_full"] > 0

        wait_until(is_full, END_S, "the ledger's disk is full")
        before = house.committed("sizes", "t")
        for _ in range(20):
            tale.send(END_S)
        assert house.committed("sizes", "t") <= before + 1, "committed without room"
        filler.unlink()
        house.wait_for_committed("sizes", "t", len(tale.told))
        assert broker.exit_code is None
        assert consumer.exit_code is None, consumer.told()
        consumer.stop(END_S, 0)
        state = house.command("state", f"--state={house.state}", "--group=sizes")
        assert state["count"] == len(tale.told), "a message was counted twice, or not at all"
        return {"told": len(tale.told), "before": before}


# --- files of ids ---------------------------------------------------------------------------------


class Noted:
    """Events by name, as a sink of a driver."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def emit(self, event: str, **fields: Any) -> None:
        if event == "log.disk_full":
            self.reasons.append(str(fields.get("for_", "the log")))


class Ids:
    """A broker in this process, and what it has stored."""

    def __init__(self, directory: Path, events: Noted) -> None:
        self.background = BackgroundThreads()
        self.broker = InlineBroker(
            OsDisk(),
            str(directory),
            owner=owner_facts(),
            clock=SystemClock(),
            events=events,
            entropy=draw,
            limits=Limits(id_table_ids=2 * BATCH),
            snapshot_every_bytes=1 << 20,
            background=self.background,
        )
        self.broker.ask_one(say.CreateTopic(self.broker.number(), TOPIC, 1))
        self.session = draw()
        self.counter = 0

    def send(self, number: int) -> say.Produced | say.Failure:
        """Send the batch with that number."""
        ids = range(number * BATCH, (number + 1) * BATCH)
        batch = batch_codec.build([b"v"] * BATCH, encodings=1, ids=names(ids))
        source = ("", 0, -1, self.session, self.counter)
        produce = say.Produce(self.broker.number(), TOPIC, 0, *source, b"", batch.crc)
        (answer,) = self.broker.ask([(produce, batch.raw)]).values()
        assert isinstance(answer.message, say.Produced | say.Failure)
        self.counter += isinstance(answer.message, say.Produced)
        return answer.message

    def check(self, number: int, verdict: int) -> None:
        """Send a batch until it is taken, and assert what is said of all its ids."""
        deadline = time.monotonic() + END_S
        while isinstance(answer := self.send(number), say.Failure):
            assert time.monotonic() < deadline, answer
            self.broker.rest()
            time.sleep(0.02)
        assert answer.runs == ((BATCH, verdict, number * BATCH),)

    def close(self) -> None:
        self.broker.close()
        self.background.close()


def index() -> dict[str, Any]:
    """Files of ids meet a full disk, and then the log does; all ids are known afterwards."""
    with file_system(KIND) as mounted:
        events = Noted()
        ids = Ids(mounted.path / "data", events)
        for number in range(6):
            ids.check(number, say.STORED)
        filler = mounted.path / "filler"
        fill(filler, 0)
        stored = 6
        while isinstance(answer := ids.send(stored), say.Produced):
            stored += 1
        assert answer.code in {"disk_full", "busy"}, answer
        assert any(reason != "the log" for reason in events.reasons), "no file met the full disk"
        filler.unlink()
        count = stored + 10
        for number in range(stored, count):
            ids.check(number, say.STORED)
        for number in range(count):
            ids.check(number, say.DUPLICATE)
        ids.close()
        again = Ids(mounted.path / "data", events)
        for number in range(count):
            again.check(number, say.DUPLICATE)
        again.close()
        refused, reasons = answer.code, len(events.reasons)
        del ids, again  # their maps keep the file system busy
        gc.collect()
        return {"stored": count, "before": stored, "refused": refused, "reasons": reasons}


if __name__ == "__main__":
    print(json.dumps({"ledger": ledger, "index": index}[sys.argv[1]]()))
