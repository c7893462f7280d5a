"""A broker that an operator starts from a backup of its data, beside the world that went on.

Theory of operation. A fault copies the disk of the broker at any instant. At the end of the run each copy
is started as a broker of its own, which begins its own history and grows: less far than the ledgers
stand, exactly as far, or past them. Then every ledger asks to join it, readers ask it for what comes next,
and producers say hello. Who relies on a record behind the backup must be refused, whatever the numbers
are; who relies on nothing behind it must not.

Half of the copies are restored as `oncemq restore` does it, as a lineage of their own. Then a client of such
a copy goes to the original, which must end.
"""

from __future__ import annotations

import posixpath
import random
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...codec import batch as batch_codec
from ...codec import wire
from ...core.consumer.grant import join_with
from ...errors import Fenced
from ...history import NO_PLACE, Place
from ...ids import tagged_id
from ...ports import Frames
from ...protocol import VERSION_MAX, VERSION_MIN, Failure, Fetch, Hello, Produce
from ...shells.broker import BrokerShell
from ...storage.copying import Copies, copy_generation, cut_at, restored_number
from ...storage.layout import MANIFEST, SECRET, generation_name, make_directories, read_file
from ...storage.layout import replace as replace_file
from ...storage.log import FencedLog
from ...storage.outside_reader import latest_view
from ..disk.disk import SimDisk, SimProcess
from ..environment import Environment
from ..trace import Violation
from .broker import DATA
from .consumer import SimConsumer
from .producer import SimProducer
from .role import ProcessClock, SimEvents

_RESTORED = "restored"
_PEER = b"operator".ljust(16, b".")
_GROWN = (-2, -1, 0, 1, 3)  # where the partition ends, counted from where a ledger stands
_TURNS_MAX = 50


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of the broker's disk."""

    disk: SimDisk
    live: bool  # taken while the broker ran


class _Wire:
    """The transport of a broker with one peer."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, list[bytes]]] = []
        self.answers: list[Any] = []

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        del timeout_ms
        waiting, self.waiting = self.waiting, []
        return waiting

    def send(self, peer: bytes, frames: Frames) -> bool:
        del peer
        self.answers.append(wire.decode(b"", [bytes(frame) for frame in frames]).message)
        return True


class _Clock:
    """The world's time, and a moment more for each turn: what a turn puts off comes in the next."""

    def __init__(self, clock: ProcessClock) -> None:
        self._clock = clock
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return self._clock.now_ms() + self.ahead_ms


class AskedBroker:
    """A broker with one peer, which asks one question after the other."""

    def __init__(self, world: Environment, disk: SimProcess, directory: str, name: str) -> None:
        self._world = world
        self._wire = _Wire()
        self._clock = _Clock(ProcessClock(world.clock))
        self._requests = 0
        self.name = name
        self._shell = BrokerShell(
            disk,
            directory,
            owner={"shell": name},
            bind=lambda: self._wire,
            clock=self._clock,
            events=SimEvents(world, name),
            entropy=world.draw,
            open_log=partial(FencedLog.open, segment_bytes=world.plan.segment_bytes),
            snapshot_every_bytes=None,
            limits=world.limits,
        )

    def ask(self, message: Any, body: Any = None) -> Any:
        """Return the answer to a message, which gets a number of its own."""
        self._requests += 1
        numbered = replace(message, request=self._requests)
        frames = [bytes(frame) for frame in wire.encode(numbered, body)]
        self._wire.waiting.append((_PEER, frames))
        for _ in range(_TURNS_MAX):
            self._shell.turn(0)
            self._clock.ahead_ms += 1
            if self._wire.answers:
                return self._wire.answers.pop()
        raise Violation("restored", f"{self.name} does not answer")

    def say_hello(self, place: Place, *seen: Any) -> Any:
        """`seen` is what a client brings from another broker: log_id and epoch, lineage and proof."""
        role, nobody = "restored", self._world.draw()
        log_id, epoch, *proof = seen or (b"", 0)
        return self.ask(
            Hello(0, VERSION_MIN, VERSION_MAX, role, nobody, log_id, epoch, *place, *proof)
        )

    def close(self) -> None:
        self._shell.close(clean=False)


class RestoredBroker(AskedBroker):
    """The broker that was started from a backup."""

    def __init__(self, world: Environment, backup: Backup, number: int) -> None:
        """Begin a history of its own where the backup ends: at `begin`."""
        self._rng = random.Random(f"{world.plan.seed} restored {number}")
        name = f"restored-{number}"
        disk = backup.disk.process(name)
        lineage = self._rng.random() < 0.5
        if lineage:
            _restore(disk, world.draw())
        super().__init__(world, disk, _RESTORED if lineage else DATA, name)
        self.begin = self._shell.core.state.history.begins[-1][1]
        self._is_lineage = lineage
        self._welcome = self.say_hello(NO_PLACE)

    def meet_original(self, disk: SimDisk) -> None:
        """A client that has met this broker goes to the original, which ends if this is another lineage."""
        if not self._is_lineage:
            return
        name = f"original of {self.name}"
        original = AskedBroker(self._world, disk.process("original"), DATA, name)
        welcome = self._welcome
        seen = (welcome.log_id, welcome.epoch, welcome.lineage, welcome.proof)
        try:
            answer = original.say_hello(NO_PLACE, *seen)
        except Fenced:
            self._world.trace.add(original.name, "fenced")
        else:
            raise Violation("original not fenced", f"{original.name} answers {answer}")
        finally:
            original.close()

    def grow(self, topic: str, partition: int, stands: int) -> None:
        """Store messages until the partition ends near where a ledger stands."""
        known = self._shell.core.state.topics.by_name.get(topic)
        if known is None:
            return
        end = known.partition(partition).end_offset
        count = max(0, stands + self._rng.choice(_GROWN) - end)
        if not count:
            return
        ids = [tagged_id(f"restored-{partition}-{end + n}-{self.name}") for n in range(count)]
        batch = batch_codec.build([b"other"] * count, encodings=0, ids=ids)
        session = self._world.draw()
        produce = Produce(0, topic, partition, "", 0, -1, session, 0, b"", batch.crc)
        answer = self.ask(produce, batch.raw)
        if isinstance(answer, Failure):
            raise Violation("restored", f"{self.name}: {answer.code} {answer.reason}")

    # --- what must be refused --------------------------------------------------------------------

    def judge(self, who: str, answer: Any, relied: int, place: Place) -> None:
        """`relied` is the position of the last record that `who` relies on, -1 for none.

        `place` is what it says itself, which may lie further by the records of one group.
        """
        refused = isinstance(answer, Failure) and answer.code == "log_regressed"
        if relied >= self.begin and not refused:
            raise Violation(
                "lost past followed",
                f"{who} relies on {relied}, {self.name} begins at {self.begin}: {answer}",
            )
        if place.position <= self.begin and isinstance(answer, Failure):
            raise Violation("refused in vain", f"{who} at {place}: {answer.code} {answer.reason}")
        self._world.trace.add(self.name, "refused" if refused else "followed", {"who": who})

    def meet_ledger(self, role: SimConsumer, disk: SimDisk) -> None:
        """The ledger joins as its group would after the restore, and reads on."""
        facts = role.file_door(disk.process("joiner"), role).peek()
        join = join_with(facts, 0, role.place, self._world.draw(), "joiner", marked=True)
        relied, seen = role.model.relied, role.model.seen
        topic, partition = role.place[1:]
        known = self._shell.core.state.topics.by_name.get(topic)
        if known is None:
            return  # the backup is older than the topic: that is told anyway
        end = known.partition(partition).end_offset
        behind = facts.next_offset > end  # told by the numbers alone
        answer = self.ask(join)
        self.judge(role.name, answer, relied, Place(b"", self.begin + 1) if behind else seen)
        offset = min(end, facts.next_offset)
        fetch = Fetch(0, "", topic, partition, 0, offset, 1 << 16, 0, *facts.seen)
        answer = self.ask(fetch)
        self.judge(f"reader of {role.name}", answer, relied, seen)

    def meet_producer(self, role: SimProducer) -> None:
        """A producer that lives on says hello."""
        if role.place is not None:
            self.judge(role.name, self.say_hello(role.place), role.relied, role.place)
            self.say_hello(NO_PLACE)


def _restore(disk: SimProcess, lineage: bytes) -> None:
    """As `oncemq restore`, from the copied disk instead of a directory of backups."""
    view = latest_view(disk, DATA)
    number = restored_number(view.manifest, 0)
    path = posixpath.join(_RESTORED, generation_name(number))
    make_directories(disk, path)
    cut = cut_at(disk, view, view.end)
    manifest = copy_generation(disk, cut, Copies(disk, path), number, lineage, {})
    replace_file(disk, _RESTORED, SECRET, read_file(disk, posixpath.join(DATA, SECRET)))
    replace_file(disk, path, MANIFEST, manifest.encode())
