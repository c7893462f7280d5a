"""Real processes on a file system of their own: power cuts, failing, full, read-only, slow disks.

    unshare --mount python -m tests.powercut.siege cuts --on xfs --cuts 6

Each act is a function below; it prints one line of JSON and raises AssertionError otherwise. What
was acknowledged is remembered here, outside of what loses power.
"""

from __future__ import annotations

import argparse
import errno
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.flights import expected
from oncemq.chaos import read_topic
from oncemq.chaos.programs import KILLED, Running, wait_until
from oncemq.codec import batch as batch_codec
from oncemq.protocol import Failure, Produce, Produced
from tests.powercut.filesystems import KINDS, Mounted, file_system
from tests.powercut.strace import Strace
from tests.process.house import House
from tests.process.talker import Talker

ROWS_EACH = 150  # rows that are added to the producer's file in each life
PIECE = 10  # of them, how many at a time where each shall make commits of its own
END_S = 300.0
APPLICATION = "examples.flights.app:app"
SYNCS = "fsync,fdatasync"


@dataclass
class Story:
    """A queue on a disk that fails, and an honest client that knows what it was promised."""

    mounted: Mounted
    house: House
    talker: Talker
    told: list[str] = field(default_factory=list)  # values acknowledged, in order of offset
    asked: list[str] = field(default_factory=list)  # the value that may be stored, not acknowledged
    strikes: list[str] = field(default_factory=list)

    def begin(self, *more: str) -> Running:
        """Start the broker and find all that was promised, once and in order."""
        broker = self.house.broker("--snapshot-every=16384", *more)
        self.talker.become()
        stored = self.talker.stored()
        assert stored[: len(self.told)] == self.told, "an acknowledged message is gone or moved"
        assert stored[len(self.told) :] in ([], self.asked), "a message was invented"
        self.told, self.asked = stored, []
        assert self.talker.next_number == len(stored), "the producer's number is another"
        return broker

    def send(self, timeout_s: float = 0.5, size: int = 0) -> Any:
        """Ask once for the next message to be stored; note the answer if it is a promise."""
        value = f"m{len(self.told)}".ljust(size, ".")
        self.asked = [value]
        batch = batch_codec.build([value.encode()], encodings=1)
        number = self.talker.next_number
        produce = Produce(0, "t", 0, "p", self.talker.epoch, number, b"", 0, b"", batch.crc)
        received = self.talker.once(produce, batch.raw, timeout_s)
        answer = None if received is None else received.message
        if isinstance(answer, Produced):
            assert answer.runs in (((1, 0, number),), ((1, 1, number),)), answer.runs
            self.told.append(value)
            self.asked = []
            self.talker.next_number += 1
        elif isinstance(answer, Failure):
            self.asked = []
        return answer

    def lose_power(self) -> None:
        """The disk stops, then everybody ends at once, then the machine starts again."""
        self.mounted.lose_power()
        self.house.close()
        self.mounted.unmount()
        self.mounted.mount()


@contextmanager
def story(kind: str) -> Iterator[Story]:
    """A file system, programs whose data lies on it, and a client beside it."""
    with file_system(kind) as mounted:
        outside = mounted.path.parent / "house"
        outside.mkdir()
        house = House(outside)
        house.data = mounted.path / "data"
        house.state = mounted.path / "consumers"
        try:
            with Talker(house.endpoint) as talker:
                yield Story(mounted, house, talker)
        finally:
            house.close()


# --- power cuts -----------------------------------------------------------------------------------

# Who is struck, at which kind of call; None: all at once, at any moment.
STRIKES = (
    ("broker", "fdatasync"),
    ("consumer", "fdatasync"),
    ("broker", "pwrite64"),
    ("broker", "rename"),
    ("consumer", "pwrite64"),
    ("broker", "fsync"),
    (None, ""),
)


class Feed:
    """A file of flights that grows, and the arguments of a producer that sends it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.arguments = ("--topic=flights", "--format=csv", "--name=a", str(path))
        self._header, *self._lines = expected.lines()
        path.write_text(self._header, "utf-8")

    def grow(self, rows: int) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(self._lines[self.rows : rows])
        self.rows = rows


def cuts(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Broker, producer and consumer through power cuts: each row is counted once in the end."""
    source = random.Random(seed)
    kills = 0
    with story(kind) as tale:
        feed = Feed(tale.house.directory / "flights.csv")
        for cut in range(count):
            kills += _life_and_cut(tale, feed, STRIKES[cut % len(STRIKES)], source)
        tale.begin()
        tale.house.producer(*feed.arguments).wait(END_S, 0)
        tale.house.consumer(APPLICATION, "--until-idle=1").wait(END_S, 0)
        rows = list(expected.rows())[: count * ROWS_EACH]
        messages = list(read_topic(tale.house.endpoint, "flights"))
        assert [message.value for message in messages] == rows, "a row is missing, double or moved"
        assert [message.sequence for message in messages] == list(range(len(rows)))
        totals = expected.totals_of(rows)
        assert _state(tale.house, "totals") == totals
        outputs = list(read_topic(tale.house.endpoint, "cancelled"))
        assert [message.sequence for message in outputs] == list(range(len(outputs)))
        if outputs:  # without any, a consumer may end before it has begun that ledger
            assert _state(tale.house, "cancelled") == expected.cancelled_of(totals)
        assert len(outputs) == sum(expected.cancelled_of(totals).values())
        assert kills > 0, "nobody was killed"
        return {"cuts": tale.mounted.power_cuts, "kills": kills, "acked": len(tale.told),
                "rows": len(rows), "outputs": len(outputs), "strikes": tale.strikes}  # fmt: skip


def _life_and_cut(
    tale: Story, feed: Feed, strike: tuple[str | None, str], source: random.Random
) -> int:
    """Everybody works until one is struck; the power goes with it. Returns how many were struck."""
    victim_name, call = strike
    house = tale.house
    victim = broker = tale.begin()
    consumer = house.consumer(APPLICATION)
    rows = feed.rows + ROWS_EACH
    if victim_name == "consumer":
        victim = consumer
        house.wait_for(victim, "client.connected")
    else:
        feed.grow(rows)
    if victim_name is None:
        house.producer(*feed.arguments)
        for _ in range(source.randint(1, 20)):
            tale.send()
        tale.lose_power()
        tale.strikes.append("all")
        return 0
    k = source.randint(1, 2 if call in {"rename", "fsync"} else 6)
    log = house.directory / f"strike-{len(tale.strikes)}"
    with Strace(victim.pid, call, f"{call}:signal=SIGKILL:when={k}", log):
        house.producer("--follow", *feed.arguments)
        deadline = time.monotonic() + END_S
        while victim.exit_code is None:
            assert time.monotonic() < deadline, f"no {call} {k} of {victim_name}"
            tale.send(size=2000)
            if victim is not broker and house.committed("totals", "flights") >= feed.rows:
                feed.grow(min(feed.rows + PIECE, rows))
        assert victim.exit_code == KILLED, victim.told()
        tale.lose_power()
    feed.grow(rows)
    tale.strikes.append(f"{victim_name}:{call}:{k}")
    return 1


def _state(house: House, group: str) -> Any:
    command = house.start("state", "-m", "oncemq", "state", f"--state={house.state}",
                          f"--group={group}", "--json")  # fmt: skip
    command.wait(END_S, 0)
    return json.loads(command.stdout())


# --- a disk that fails --------------------------------------------------------------------------


def failing_sync(kind: str, count: int, seed: int) -> dict[str, Any]:
    """A sync fails once and would work again: the broker ends, and syncs that file never again."""
    source = random.Random(seed)
    failed = []
    with story(kind) as tale:
        for number in range(count):
            call = ("fdatasync", "fsync")[number % 2]
            k = source.randint(1, 3 if call == "fsync" else 8)
            broker = tale.begin()
            log = tale.house.directory / f"failing-{number}"
            with Strace(broker.pid, f"{SYNCS},pwrite64", f"{call}:error=EIO:when={k}", log) as seen:
                deadline = time.monotonic() + END_S
                while broker.exit_code is None:
                    assert time.monotonic() < deadline, f"no {call} {k}"
                    tale.send(size=2000)
                seen.wait()
                lines = seen.lines()
            assert broker.exit_code == 1, broker.told()
            assert "Traceback" not in broker.stderr(), broker.told()
            place = [at for at, line in enumerate(lines) if "INJECTED" in line]
            assert len(place) == 1, lines[-5:]
            path = _path_of(lines[place[0]])
            after = [line for line in lines[place[0] + 1 :] if _path_of(line) == path]
            assert after == [], f"{path} was used after its sync had failed: {after}"
            failed.append(f"{call}:{k}:{Path(path).name}")
            tale.lose_power()
        tale.begin()
        return {"failed": failed, "acked": len(tale.told), "cuts": tale.mounted.power_cuts}


def _path_of(line: str) -> str:
    """Return the path of the descriptor in a line of strace -y."""
    found = re.search(r"\(\d+<([^>]*)>", line)
    return found[1] if found else ""


def full(kind: str) -> dict[str, Any]:
    """No room: writes are refused, all is read, and work goes on by itself when there is room."""
    with story(kind) as tale:
        broker = tale.begin()
        for _ in range(20):
            tale.send(5.0, 20_000)
        filler = tale.mounted.path / "filler"
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(64 * 1024))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        refused = _send_until(tale, lambda answer: isinstance(answer, Failure))
        assert refused.code == "disk_full", refused
        before = len(tale.told)
        for _ in range(5):
            assert tale.send(END_S, 20_000).code == "disk_full"
        assert tale.talker.stored() == tale.told
        filler.unlink()
        tale.mounted.flush()  # the power cut below must not bring it back
        _send_until(tale, lambda answer: isinstance(answer, Produced))
        assert len(tale.told) == before + 1
        assert broker.exit_code is None
        tale.lose_power()
        tale.begin()
        return {"acked": len(tale.told), "before": before}


def _send_until(tale: Story, enough: Callable[[Any], bool]) -> Any:
    """Send until an answer is `enough`; it comes within the time and within 1,000 messages."""
    deadline = time.monotonic() + END_S
    for _ in range(1000):
        answer = tale.send(5.0, 20_000)
        if enough(answer):
            return answer
        if isinstance(answer, Failure):
            time.sleep(0.1)
        assert time.monotonic() < deadline
    raise AssertionError(f"1,000 messages, and still {answer}")


def read_only(kind: str) -> dict[str, Any]:
    """The file system turns read-only: the broker ends with one sentence and promises nothing."""
    with story(kind) as tale:
        broker = tale.begin()
        for _ in range(5):
            tale.send(5.0)
        before = len(tale.told)
        subprocess.run(["mount", "-o", "remount,abort", str(tale.mounted.path)], check=True)
        deadline = time.monotonic() + END_S
        while broker.exit_code is None:
            assert time.monotonic() < deadline, "the broker goes on"
            tale.send()
        assert len(tale.told) == before, "acknowledged on a disk that took nothing"
        assert broker.exit_code == 1
        assert "Traceback" not in broker.stderr(), broker.told()
        again = tale.house.broker(ready=False)
        assert again.wait(END_S) == 1
        assert "read-only file system" in again.stderr(), again.told()
        assert "Traceback" not in again.stderr(), again.told()
        tale.mounted.unmount()
        tale.mounted.mount()
        tale.begin()
        return {"acked": len(tale.told), "said": again.stderr().strip().splitlines()[-1][:200]}


def slow(kind: str) -> dict[str, Any]:
    """Each sync takes 300 ms: answers come later, nobody resends, nothing becomes a duplicate."""
    with story(kind) as tale:
        broker = tale.begin()
        feed = tale.house.directory / "flights.csv"
        feed.write_text("".join(expected.lines()[:2001]), "utf-8")
        delay = f"{SYNCS}:delay_exit=300000"
        with Strace(broker.pid, SYNCS, delay, tale.house.directory / "slow"):
            started = time.monotonic()
            assert isinstance(tale.send(END_S), Produced)
            one_s = time.monotonic() - started
            assert one_s >= 0.3, "the disk was not slow"
            producer = tale.house.producer("--topic=flights", "--format=csv", "--name=a", str(feed))
            producer.wait(END_S, 0)
            consumer = tale.house.consumer(APPLICATION, "--group=totals", "--until-idle=2")
            consumer.wait(END_S, 0)
        tale.house.check_summary(producer, sent=2000, appended=2000)
        assert _state(tale.house, "totals") == expected.totals_of(list(expected.rows())[:2000])
        wait_until(lambda: broker.exit_code is None, 1, "the broker is up")
        return {"one_s": round(one_s, 2), "summary": producer.summary()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("act", choices=["cuts", "failing-sync", "full", "read-only", "slow"])
    parser.add_argument("--on", choices=sorted(KINDS), default="ext4")
    parser.add_argument("--count", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    started = time.monotonic()
    acts: dict[str, Callable[[], dict[str, Any]]] = {
        "cuts": lambda: cuts(asked.on, asked.count, asked.seed),
        "failing-sync": lambda: failing_sync(asked.on, asked.count, asked.seed),
        "full": lambda: full(asked.on),
        "read-only": lambda: read_only(asked.on),
        "slow": lambda: slow(asked.on),
    }
    report = acts[asked.act]()
    print(json.dumps({**report, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
