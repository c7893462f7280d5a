"""Mutants of dead letters and solitary attempts: what is parked, who is blamed, what comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.consumer import handling
from oncemq.core.consumer.core import ConsumerCore
from oncemq.core.consumer.handling import Handling
from oncemq.core.consumer.inputs import Input
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.running import Running
from oncemq.records import AttemptMarked
from tests.sim.mutants.table import mutant, nothing

CORE = ("tests/core/consumer/test_dead_letters.py",)


def _offset_stays(original: Any) -> Any:
    def broken(self: Any, its: Any, window: Any, *rest: Any, **more: Any) -> None:
        if more.get("parked"):
            window = replace(window, next_offset=window.first_offset)
        original(self, its, window, *rest, **more)

    return broken


mutant(
    "parked but offset not moved",
    "a letter, its id and the offset behind it are one commit",
    (Handling, "_commit", _offset_stays),
)


def _no_letter(original: Any) -> Any:
    def broken(self: Any, its: Any, window: Any, answer: Any, *rest: Any, **more: Any) -> None:
        if more.get("parked"):
            answer = replace(answer, outputs=[])
        original(self, its, window, answer, *rest, **more)

    return broken


mutant(
    "parked without a letter",
    "the letter is an output of the commit that parks",
    (Handling, "_commit", _no_letter),
)


def _deaths_from_kills(original: Any) -> Any:
    def broken(self: Any, topic_id: bytes, offset: int) -> int:
        return int(original(self, topic_id, offset)) + (0 if self.ended else 7)

    return broken


mutant(
    "healthy message blamed for kills",
    "only deaths behind a mark of the message alone count",
    (Ledger, "deaths_in", _deaths_from_kills),
)


def _never_answered(original: Any) -> Any:
    def broken(self: Any, topic_id: bytes, next_offset: int) -> None:
        deaths = dict(self.deaths)
        original(self, topic_id, next_offset)
        if topic_id in deaths and topic_id not in self.deaths:
            self.deaths[topic_id] = (next_offset, deaths[topic_id][1])

    return broken


mutant(
    "a death is handed on to the next message",
    "what died in one message says nothing of its neighbour",
    (Ledger, "_move", _never_answered),
)


def _came_back_ignored(original: Any) -> Any:
    def broken(self: Any, record: Any, position: int) -> None:
        if isinstance(record, AttemptMarked) and record.returned:
            return
        original(self, record, position)

    return broken


mutant(
    "an attempt that came back counts as a death",
    "a handler that raises has killed nobody",
    (Ledger, "apply", _came_back_ignored),
    tests=CORE,
)
mutant(
    "nobody runs alone after an unclean end",
    "the message that kills is found and parked",
    (Input, "alone", lambda _original: lambda self: False),
)


def _call_before_mark(original: Any) -> Any:
    def broken(self: Any, its: Any, window: Any, now_ms: int, out: Any, *, alone: bool) -> None:
        original(self, its, window, now_ms, out, alone=alone)
        out.work += out.work_after_sync
        out.work_after_sync.clear()

    return broken


mutant(
    "the handler starts before its mark is synced",
    "a power cut in the handler leaves the mark",
    (Handling, "_call", _call_before_mark),
    tests=CORE,
)
mutant(
    "no word of a good end",
    "after a clean stop nothing runs alone",
    (ConsumerCore, "_end_well", nothing),
    tests=CORE,
)


def _forgets_private(original: Any) -> Any:
    def broken(self: Any, parts: dict[str, Any]) -> None:
        fields = {n: v for n, v in parts["ledger"].items() if n != "private_offsets"}
        original(self, {**parts, "ledger": fields})

    return broken


mutant(
    "the private offset is lost by compaction",
    "snapshots carry both inputs",
    (Ledger, "restore", _forgets_private),
    tests=CORE,
)
mutant(
    "ids of replays are taken for ids of the topic",
    "the two inputs have ids of their own",
    (
        Running,
        "_private_fingerprint",
        lambda _original: lambda self, ids: self._fingerprint(ids),
    ),
    tests=CORE,
)
mutant(
    "a dropped letter is handled",
    "a drop excludes a replay",
    (handling, "is_dropped", lambda _original: lambda window: False),
    tests=CORE,
)


def _row_of_one_process(original: Any) -> Any:
    def broken(self: Any, parts: dict[str, Any]) -> None:
        fields = {n: value for n, value in parts["ledger"].items() if n != "parked_row"}
        original(self, {**parts, "ledger": fields})

    return broken


ROW = ("tests/core/consumer/test_park_limit.py",)
mutant(
    "rows of parked messages are not counted",
    "a systematic failure stops the consumer",
    (Ledger, "_count_row", nothing),
    tests=ROW,
)
mutant(
    "a row of parked messages is lost by compaction",
    "a restart does not begin the count anew",
    (Ledger, "restore", _row_of_one_process),
    tests=ROW,
)
mutant(
    "a row goes on behind a handled message",
    "only failures in a row are the handler's fault",
    (
        Handling,
        "_ends_row",
        lambda _original: lambda self, failure: self._ledger.parked >= self._member.park_limit,
    ),
    tests=ROW,
)
