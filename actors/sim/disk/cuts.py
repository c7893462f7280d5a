"""What survives a power cut: policies that choose among the units that were not synced.

A policy is called with every pending unit, oldest first, and returns the `order` numbers of those
that reached the disk. All of them are legal: a drive may write sectors in any order, a journal may
have committed or not, and file data and names are written apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .image import NamesChanged, Pending


class CutPolicy(Protocol):
    """Chooses what survives."""

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        """Return the `order` numbers of the units that were written before the power went."""


@dataclass(frozen=True, slots=True)
class LoseEverything:
    """Nothing that was not synced survives."""

    def survivors(self, _units: Sequence[Pending], /) -> set[int]:
        return set()


@dataclass(frozen=True, slots=True)
class KeepEverything:
    """Everything survives: the same disk that a killed process leaves, but with nothing pending."""

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        return {unit.order for unit in units}


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `count` units survive, in the order in which they were done."""

    count: int

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        return {unit.order for unit in units[: self.count]}


@dataclass(frozen=True, slots=True)
class OnlyNames:
    """Every name operation survives and no file data: a metadata journal that runs ahead."""

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        return {unit.order for unit in units if isinstance(unit, NamesChanged)}


@dataclass(frozen=True, slots=True)
class OnlyData:
    """All file data survives and no name operation."""

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        return {unit.order for unit in units if not isinstance(unit, NamesChanged)}


@dataclass(frozen=True, slots=True)
class Seeded:
    """Any subset, the same for the same seed. Names and data have odds of their own."""

    seed: int

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        draw = random.Random(self.seed)
        odds_of_names = draw.choice((0.1, 0.5, 0.9))
        odds_of_data = draw.choice((0.1, 0.5, 0.9))
        kept: set[int] = set()
        for unit in units:
            odds = odds_of_names if isinstance(unit, NamesChanged) else odds_of_data
            if draw.random() < odds:
                kept.add(unit.order)
        return kept


@dataclass(frozen=True, slots=True)
class Exactly:
    """The units with these order numbers survive; for a case that a sweep has found."""

    orders: frozenset[int]

    def survivors(self, units: Sequence[Pending], /) -> set[int]:
        return {unit.order for unit in units if unit.order in self.orders}
