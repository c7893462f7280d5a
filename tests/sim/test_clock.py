"""The simulated clock: steady time apart from the date."""

from __future__ import annotations

import pytest

from oncemq.sim.clock import SimClock


def test_time_stands_still_until_told() -> None:
    """Reading the clock does not move it."""
    clock = SimClock(1000)
    assert (clock.now_ms(), clock.now_ms(), clock.wall_ms()) == (1000, 1000, 1000)
    clock.advance(5)
    clock.advance_to(1020)
    clock.advance_to(1010)
    assert clock.now_ms() == 1020


def test_time_never_runs_backwards() -> None:
    """A negative step is a bug of the world, not a fault to simulate."""
    with pytest.raises(ValueError, match="-1 ms"):
        SimClock().advance(-1)


def test_a_jump_moves_the_date_only() -> None:
    """Setting the wall clock leaves leases and time-outs alone."""
    clock = SimClock(1000)
    clock.jump(-600)
    assert (clock.now_ms(), clock.wall_ms()) == (1000, 400)
    clock.advance(10)
    clock.jump(100)
    assert (clock.now_ms(), clock.wall_ms()) == (1010, 510)
