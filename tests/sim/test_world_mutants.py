"""The seeded bugs of `make mutants`: they are really there, and leave no trace behind."""

from __future__ import annotations

import pytest

from tests.sim.mutants import MUTANTS, applied
from tests.sim.mutants.runner import hunt, run_tests

QUICK = (
    "promises before the sync",
    "log fsync missing",
    "mask of duplicates lost",
    "effects left out of the commit",
    "SQL offset in a second transaction (simulated)",
    "what a dropped call left open goes on",
    "offset committed over a hole",
)


@pytest.mark.parametrize("name", sorted(MUTANTS))
def test_a_mutant_changes_something_and_is_undone(name: str) -> None:
    """Each patch replaces what it names, and afterwards all is as before."""
    mutant = MUTANTS[name]
    before = [vars(patch.owner)[patch.name] for patch in mutant.patches]
    with applied(mutant):
        during = [vars(patch.owner)[patch.name] for patch in mutant.patches]
    after = [vars(patch.owner)[patch.name] for patch in mutant.patches]
    assert after == before
    assert all(one is not other for one, other in zip(before, during, strict=True))


def test_there_are_enough_mutants() -> None:
    """A table that lost its files would prove nothing."""
    assert len(MUTANTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_the_simulator_catches_a_mutant(name: str) -> None:
    """A few of them here; all of them in `make mutants`."""
    _, who, _, _ = hunt(name, 12)
    assert who.startswith("simulator: ")


@pytest.mark.slow
def test_the_control_passes() -> None:
    """Without a mutant the same seeds and tests find nothing."""
    _, who, seeds, _ = hunt(None, 3)
    assert (who, seeds) == ("", 3)
    assert run_tests(("tests/sim/test_clock.py",)) == ""
