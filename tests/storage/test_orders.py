"""Orders beside a log: whole or not there, the first one stands, and power cuts lose none."""

from __future__ import annotations

import pytest

from oncemq.codec import wire
from oncemq.core.consumer.effect_work import EffectOrder
from oncemq.core.consumer.open_effects import AGAIN, ANSWERED
from oncemq.errors import LogInUse, Malformed, UnsupportedFormat
from oncemq.shells.ledger.orders import find_orders, give_order, keep_orders
from oncemq.sim.disk.cuts import KeepEverything, LoseEverything
from oncemq.sim.disk.disk import SimDisk, SimulatedCrash
from oncemq.storage import orders
from oncemq.storage.memory import MemoryDisk

HOME = "/state/g/t/0"


def test_the_first_order_of_a_name_stands() -> None:
    """A second order of a name gets the first one back; orders of other names stay."""
    disk = MemoryDisk()
    assert orders.give(disk, HOME, "a", b"1") == b"1"
    assert orders.give(disk, HOME, "a", b"2") == b"1"
    assert orders.give(disk, HOME, "b", b"3") == b"3"
    assert (orders.read(disk, HOME, "a"), orders.read(disk, HOME, "c")) == (b"1", None)
    orders.keep(disk, HOME, {"b"})
    assert (orders.read(disk, HOME, "a"), orders.read(disk, HOME, "b")) == (None, b"3")
    orders.keep(disk, "/nowhere", ())


def test_two_writers_exclude_each_other() -> None:
    """The second writer gets LogInUse with the hint to try again."""
    disk = MemoryDisk()
    orders.give(disk, HOME, "a", b"1")
    lock = disk.lock(f"{HOME}/orders/LOCK")
    assert lock is not None
    with pytest.raises(LogInUse, match="try again"):
        orders.give(disk, HOME, "b", b"2")
    lock.release()
    orders.give(disk, HOME, "b", b"2")


def test_an_order_is_durable_when_it_is_said_and_whole_at_any_time() -> None:
    """A death at each disk call, with all or nothing of what was not synced lost."""
    for policy in (LoseEverything(), KeepEverything()):
        calls = 1
        while not _dies_at(calls, policy):
            calls += 1
        assert calls > 8


def _dies_at(calls: int, policy: object) -> bool:
    """Give an order and die at a disk call; return whether it was given before that."""
    disk = SimDisk()
    process = disk.process("operator")
    left = [calls]

    def hook(kind: str, path: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise SimulatedCrash

    process.hook = hook
    try:
        orders.give(process, HOME, "a", b"1")
        given = True
    except SimulatedCrash:
        given = False
    process.hook = None
    disk = disk.power_cut(policy)  # type: ignore[arg-type]
    found = orders.read(disk.process("owner"), HOME, "a")
    assert found in ({b"1"} if given else {b"1", None})
    again = disk.process("again")
    assert orders.give(again, HOME, "a", found or b"2") == (found or b"2")
    return given


def test_orders_about_effects_are_found_by_their_ids() -> None:
    """However long the ids are; what another version wrote is refused, not guessed at."""
    disk = MemoryDisk()
    first = EffectOrder("g:t:0:7:charge:1", ANSWERED, 2, b"\x81\xa1a\x01")
    second = EffectOrder(":".join(["x" * 128] * 5), AGAIN)
    for order in (first, second):
        assert give_order(disk, HOME, order) == order
    other = EffectOrder(first.effect_id, AGAIN)
    assert give_order(disk, HOME, other) == first
    names = [second.effect_id, first.effect_id, "g:t:0:7:charge:2"]
    assert find_orders(disk, HOME, names) == [second, first]
    keep_orders(disk, HOME, [first.effect_id])
    assert find_orders(disk, HOME, names) == [first]
    orders.give(disk, HOME, "new", wire.pack_plain([2, "a", "b"]))
    with pytest.raises(UnsupportedFormat):
        find_orders(disk, HOME, ["new"])
    for number, bad in enumerate(([1, "x"], [1, "x", "perhaps", 0, b""], [1, 5, ANSWERED, 0, b""])):
        orders.give(disk, HOME, f"bad{number}", wire.pack_plain(bad))
        with pytest.raises(Malformed):
            find_orders(disk, HOME, [f"bad{number}"])
