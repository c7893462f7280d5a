"""Zombies, exactly: a takeover at every call of the old owner, and every call of a takeover
interrupted by the old owner or by a third process. Whoever was told "synced" is in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from oncemq.sim.disk.disk import SimDisk
from tests.storage.crash_actors import check, stage


@contextmanager
def at_call(disk: SimDisk, call: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """While inside, run `act` just before call number `call`; yields the number of calls met."""
    met = [0]
    busy = False

    def look(_kind: str, _path: str) -> None:
        nonlocal busy
        if busy:
            return
        met[0] += 1
        if met[0] == call:
            busy = True
            act()
            busy = False

    disk.observer = look
    try:
        yield met
    finally:
        disk.observer = None


def sweep_calls(run: Callable[[int], int]) -> int:
    """Run with an interruption at call 1, 2, ... until the work has fewer calls; count them."""
    call = 1
    while run(call) >= call:
        call += 1
    return call - 1


@pytest.mark.slow
def test_a_takeover_at_any_call_of_the_owner() -> None:
    """A frozen owner wakes up anywhere in its work: it ends Fenced, or the successor has it all."""
    fenced = 0

    def run(call: int) -> int:
        nonlocal fenced
        disk, first, second, _ = stage()

        def take_over() -> None:
            second.open(5)
            second.group(1)

        with at_call(disk, call, take_over) as met:
            first.work()
        second.group(2)
        fenced += first.fenced
        check(disk, f"takeover at call {call}", first, second)
        if met[0] >= call:
            assert first.fenced, f"the old owner worked on after a takeover at call {call}"
            assert not second.fenced
            assert len(second.told) == 6
        return met[0]

    calls = sweep_calls(run)
    print(f"\ntakeover at each of {calls} calls of the owner, {fenced} fenced: zero violations")
    assert calls > 30
    assert fenced == calls


@pytest.mark.slow
def test_the_owner_works_at_any_call_of_the_takeover() -> None:
    """The old owner writes while it is replaced: the successor has all that it had acknowledged."""
    kept = 0

    def run(call: int) -> int:
        nonlocal kept
        disk, first, second, _ = stage()
        with at_call(disk, call, first.work) as met:
            second.open(5)
        kept += len(first.told) > 3
        second.group(1)
        assert not second.fenced
        check(disk, f"owner at call {call}", first, second)
        return met[0]

    calls = sweep_calls(run)
    print(f"\nowner works at each of {calls} calls of the takeover: zero violations")
    assert calls > 20
    assert kept > 0, "the owner was never early enough to be told anything"


@pytest.mark.slow
def test_a_third_process_at_any_call_of_the_takeover() -> None:
    """A takeover that is overtaken ends Fenced, at the latest at its first sync."""

    def run(call: int) -> int:
        disk, first, second, third = stage()

        def overtake() -> None:
            third.open(9)
            third.group(1)

        with at_call(disk, call, overtake) as met:
            second.open(5)
            second.group(1)
        first.group(1)
        third.group(2)
        check(disk, f"overtaken at call {call}", first, second, third)
        if met[0] >= call:
            assert second.fenced, f"overtaken at call {call}"
            assert not third.fenced
            assert first.fenced
        return met[0]

    calls = sweep_calls(run)
    print(f"\novertaken at each of {calls} calls of the takeover: zero violations")
    assert calls > 30
