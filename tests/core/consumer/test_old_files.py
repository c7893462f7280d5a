"""A broker's log and a ledger as older versions wrote them, frozen: every later version goes on from them.

`tests/golden/records/v1` was written before histories had marks, `v2` since. In both, `orders` holds five
messages of which the ledger of group `billing` has handled four; broker and consumer ended in good order.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

import pytest

from oncemq.history import UNMARKED
from oncemq.sim.disk.disk import SimDisk, SimProcess
from tests.core.consumer.world import World

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "records"


def load(source: Path) -> SimDisk:
    """Return a disk that holds what is below `source`."""
    disk = SimDisk()
    _put(disk.process("cp"), source, "")
    return disk


def _put(process: SimProcess, source: Path, path: str) -> None:
    for one in sorted(source.iterdir()):
        target = posixpath.join(path or "/", one.name)
        if one.is_dir():
            process.make_directory(target)
            _put(process, one, target)
        else:
            file = process.create(target)
            file.write(one.read_bytes(), 0)
            file.sync()
            file.close()
        process.sync_directory(path or "/")


class Found(World):
    """A world that goes on from files."""

    def __init__(self, version: str) -> None:
        self._found = load(GOLDEN / version)
        super().__init__(seed=7)
        self.disk = self._found

    def _broker(self) -> Any:
        self.broker_disk = self._found
        return super()._broker()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_broker_and_consumer_go_on_from_frozen_files(version: str) -> None:
    """Every message is handled once; the outputs of before and now are there once."""
    world = Found(version)
    assert len(world.ids()) == 5
    world.send(count=2)
    member = world.member()
    world.drain(member)
    world.check_whole(member)
    assert len(member.seen) == 3
    assert member.core.ledger.seen.mark == world.broker.core.state.history.current


def test_files_without_marks_have_one_history_before_the_first() -> None:
    """The ledger takes the marks up, once."""
    world = Found("v1")
    assert world.broker.core.state.history.begins[0] == (UNMARKED, 0)
    for _ in range(2):
        member = world.member()
        world.drain(member)
        world.stop(member)
    assert [one["next_offset"] for one in world.events.of("history.taken_up")] == [4]


def test_files_with_marks_are_not_taken_up() -> None:
    """The ledger's place is of the generation that wrote the files, which the log still has."""
    world = Found("v2")
    first, second = world.broker.core.state.history.begins
    assert first[1] == 0
    member = world.member()
    world.run(lambda: member.core.phase == "running", member, handle=False)
    assert member.core.ledger.seen.mark == first[0]
    assert member.core.ledger.seen.position <= second[1]
    assert world.events.of("history.taken_up") == []
