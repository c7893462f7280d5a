"""Mutants of what may be forgotten: dedup horizons, and producer names that were idle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.broker import id_index
from oncemq.core.broker.horizon import Horizon
from oncemq.core.broker.id_index import IdIndex
from oncemq.core.broker.producers import Producer
from oncemq.core.broker.topics import Topic
from oncemq.dedup.origin import Origin
from tests.sim.mutants.table import mutant

HORIZONS = ("horizons", "kill", "clean stop")


def _back(original: Any) -> Any:
    """The floor follows the setting of the moment."""

    def broken(self: Horizon, number: int, length_ms: int, ahead_ms: int, at_ms: int) -> Any:
        self.floor_ms, kept = 0, self.floor_ms
        try:
            mark = original(self, number, length_ms, ahead_ms, at_ms)
        finally:
            self.floor_ms = kept
        return mark

    return broken


def _any_floor(original: Any) -> Any:
    def broken(self: Horizon, record: Any, ends: Any) -> None:
        self.floor_ms = min(self.floor_ms, record.floor_ms)
        original(self, record, ends)

    return broken


mutant(
    "horizon moves back",
    "what was forgotten is never taken for new",
    (Horizon, "due", _back),
    (Horizon, "apply", _any_floor),
    faults=HORIZONS,
)


def _at_once(original: Any) -> Any:
    def broken(self: Horizon, *asked: Any) -> Any:
        self.since_ms, kept = 0, self.since_ms
        try:
            mark = original(self, *asked)
        finally:
            self.since_ms = kept
        return mark

    return broken


mutant(
    "horizon forgets at once on change",
    "a new duration counts from its setting on",
    (Horizon, "due", _at_once),
    faults=HORIZONS,
)


def _stores_old(original: Any) -> Any:
    def broken(self: IdIndex, batch: Any, topic: Topic, *where: Any) -> Any:
        horizon = topic.horizon
        topic.horizon = replace(horizon, floor_ms=0)
        try:
            return original(self, batch, topic, *where)
        finally:
            topic.horizon = horizon

    return broken


mutant(
    "TooOld not asked",
    "a message from before the horizon is refused unless its id is known",
    (IdIndex, "judge", _stores_old),
    faults=HORIZONS,
)


def _early(original: Any) -> Any:
    """Ids are forgotten by the floor of messages, not by when they were stored."""

    def broken(self: Horizon, *asked: Any) -> Any:
        mark = original(self, *asked)
        if mark is None or not self.marks:
            return mark
        return replace(mark, forgotten_ms=max(self.marks[-1][0], mark.forgotten_ms))

    return broken


mutant(
    "forgets ids that are too young",
    "an id is forgotten only when its message must be older than the floor",
    (Horizon, "due", _early),
    faults=HORIZONS,
)
mutant(
    "horizon missing from snapshots",
    "what is forgotten survives a restart as it was",
    (Horizon, "restored", lambda _original: lambda cls, _part: cls()),
    faults=HORIZONS,
)
mutant(
    "files go while something in them lives",
    "a run goes when every topic has forgotten all that it holds",
    (Origin, "gone", lambda _original: lambda self, _ms: self.newest_ms is not None),
    faults=HORIZONS,
)
mutant(
    "dead entries hide living ones",
    "at most one entry of a fingerprint lives, and it is found",
    (id_index, "_living", lambda _original: lambda _parts: None),
    tests=("tests/core/broker/test_horizon.py",),
)
mutant(
    "time of a message left out of its body",
    "one id with two times is refused while the first is known",
    (IdIndex, "_dated", lambda _original: lambda _self, _batch, bodies: bodies),
    tests=("tests/core/broker/test_horizon.py",),
)
mutant(
    "forever forgets that it has forgotten",
    "a topic that has forgotten ids asks for times for ever",
    (Topic, "dated", lambda _original: property(lambda self: self.settings.dedup_ms is not None)),
    tests=("tests/core/broker/test_horizon.py",),
)
mutant(
    "retired producer starts at 0",
    "a retired name keeps its next numbers",
    (Producer, "unretire", lambda _original: _starts_anew),
    faults=("retirement", "kill", "clean stop"),
)


def _starts_anew(self: Producer) -> None:
    if self.kept is not None:
        self.rows, self.kept = {}, None


mutant(
    "retired incarnation goes on",
    "who had a retired name must begin again",
    (Producer, "check", lambda original: _checks_epoch_only(original)),
    faults=("retirement",),
)


def _checks_epoch_only(original: Any) -> Any:
    def broken(self: Producer, epoch: int) -> None:
        self.kept, kept = None, self.kept
        try:
            original(self, epoch)
        finally:
            self.kept = kept

    return broken
