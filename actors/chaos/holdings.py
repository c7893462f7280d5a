"""Which places each process owns, as its own events report them.

A process may own several places at once (partitions, one each), and give up one without ending. So
a takeover starts from what its target owns, and it has come when one of just those places
belongs to the successor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Place = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Owning:
    """By which events a program tells what it owns."""

    event: str  # "I own a place"
    place: tuple[str, ...] = ()  # the fields that name it; (): there is only one
    given_up: str = ""  # "I have it no more, and go on"; "": it ends instead


class Holdings:
    """Takes events in order and knows what each process owns."""

    def __init__(self, ways: Iterable[Owning]) -> None:
        ways = list(ways)
        self._gains = {way.event: way.place for way in ways}
        self._losses = {way.given_up: way.place for way in ways if way.given_up}
        self._places: dict[int, set[Place]] = {}

    def take(self, line: dict[str, Any]) -> None:
        name = line["event"]
        if (fields := self._gains.get(name)) is not None:
            self._places.setdefault(line["pid"], set()).add(tuple(line[key] for key in fields))
        elif (fields := self._losses.get(name)) is not None:
            self._places.get(line["pid"], set()).discard(tuple(line[key] for key in fields))

    def of(self, pid: int) -> frozenset[Place]:
        """Return what the process `pid` owns, as far as it has told."""
        return frozenset(self._places.get(pid, ()))

    def begin(self, pid: int) -> None:
        """A new process has this pid: it owns nothing."""
        self._places.pop(pid, None)
