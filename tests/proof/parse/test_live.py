"""Looks at logs whose owners go on between two reads: what was never damaged is never called so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from oncemq.proof.parse import log as log_module
from oncemq.proof.parse.files import OsFiles
from oncemq.proof.parse.log import Log, LogMoved
from oncemq.storage import layout
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from tests.proof.live import MovingDisk
from tests.storage.loghelp import DIRECTORY, generation_path, open_log, put

CALLS = 400  # of a reader, between which the owner goes on


def bodies(log: Log) -> list[bytes]:
    return [bytes(frame.body) for group in log.groups() for frame in group.frames]


def a_snapshot(log: FencedLog) -> None:
    log.write_snapshot(log.durable_end, {"part": b"x"})


def compact(log: FencedLog) -> None:
    a_snapshot(log)
    log.discard(log.durable_end)


ACTS: dict[str, Callable[[FencedLog], Any]] = {
    "groups": lambda log: [put(log, b"%d" % number) for number in range(3)],
    "an attesting frame": lambda log: (put(log, b"g"), log.attest()),
    "snapshots": lambda log: (put(log, b"s"), a_snapshot(log)),
    "segments": lambda log: put(log, b"r" * 900),
    "compactions": lambda log: (put(log, b"c" * 900), compact(log)),
}


@pytest.mark.parametrize("every", range(1, 6))
@pytest.mark.parametrize("act", ACTS)
def test_a_tail_that_grows_between_two_reads_is_whole(act: str, every: int) -> None:
    """What is attested after bytes were read says nothing of those bytes."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048 if act in {"segments", "compactions"} else 1 << 20)
    put(log, b"first")

    def go_on(_: str) -> None:
        if door.calls < CALLS and door.calls % every == 0:
            ACTS[act](log)

    door = MovingDisk(disk, go_on)
    look = Log.look(door, DIRECTORY)
    assert look is not None
    assert look.end > 0
    assert look.torn_bytes == 0
    if act != "compactions":
        told = bodies(look)
        assert told[0] == b"first"
        assert told == bodies_of_owner(log)[: len(told)]
    assert door.calls > 3


def bodies_of_owner(log: FencedLog) -> list[bytes]:
    return [bytes(record.body) for record in log.replay(0)]


def calls_with_a_takeover_at(moment: int) -> int:
    """Look at a log that is taken over after so many calls; return how many the look made."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048)
    for number in range(20):
        put(log, b"%d" % number * 100)
    expected = bodies_of_owner(log)
    disk.drop_locks()

    def take_over(_: str) -> None:
        if door.calls == moment:
            put(open_log(disk, segment_bytes=2048), b"the successor's")

    door = MovingDisk(disk, take_over)
    look = Log.look(door, DIRECTORY)
    assert look is not None
    assert bodies(look)[:20] == expected
    return door.calls


def test_a_look_at_each_moment_of_a_takeover_is_whole() -> None:
    """A successor opens, copies, writes and takes the old files away between any two reads."""
    moments = itertools.count(1)
    last = next(moment for moment in moments if calls_with_a_takeover_at(moment) < moment)
    assert last > 20


def test_a_log_that_was_taken_over_is_read_on_in_the_new_generation() -> None:
    """Its files are gone, its records are not."""
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes=2048)
    for number in range(20):
        put(log, b"%d" % number * 100)
    look = Log.look(disk, DIRECTORY)
    assert look is not None
    groups = look.groups()
    first = next(groups)
    disk.drop_locks()
    successor = open_log(disk, segment_bytes=2048)
    assert not disk.exists(generation_path(log))
    told = [first, *groups]
    assert [bytes(f.body) for g in told for f in g.frames] == bodies_of_owner(successor)
    last = told[-1].frames[0]
    assert look.frame(last.position).body == last.body


def test_a_look_waits_for_a_successor_that_is_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker may have taken the tail already: what was written since is left behind."""
    monkeypatch.setattr(log_module, "SUCCESSOR_WAIT_S", 0.05)
    disk = MemoryDisk()
    log = open_log(disk)
    put(log, b"a")
    path = f"{DIRECTORY}/{layout.generation_name(log.generation + 1)}"
    disk.make_directory(path)
    disk.create(f"{path}/LOCK").close()
    lock = disk.lock(f"{path}/LOCK")
    assert lock is not None
    with pytest.raises(LogMoved):
        Log.look(disk, DIRECTORY)
    lock.release()
    assert Log.look(disk, DIRECTORY) is not None


def test_no_log_is_no_look() -> None:
    """Where nothing was made there is nothing to wait for."""
    assert Log.look(OsFiles(), "/nowhere/at/all") is None
