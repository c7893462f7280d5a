"""Mutants of retention: what goes, what is told, and when its bytes go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.broker.fetch import FetchServer
from oncemq.core.broker.groups import GroupTable
from oncemq.core.broker.kept import KeptParts
from oncemq.core.broker.membership import Membership
from oncemq.core.broker.offset_index import OffsetIndex
from oncemq.core.broker.producers import Row
from oncemq.core.broker.state import BrokerState
from oncemq.outcome import Keep
from oncemq.records import Trimmed
from tests.sim.mutants.table import mutant

_RETENTION = ("tests/core/broker/test_retention.py",)
_KEPT = ("tests/core/broker/test_kept.py",)


def _without_ids(original: Any) -> Any:
    def broken(self: Any, record: Any, position: int) -> None:
        original(self, record, position)
        if isinstance(record, Trimmed):
            self._ids = None

    return broken


mutant(
    "retention forgets ids",
    "deleting messages does not forget their ids",
    (BrokerState, "apply", _without_ids),
    tests=_RETENTION,
)


def _fastest_group(_original: Any) -> Any:
    def broken(self: Any, topic: str, partition: int) -> int | None:
        keys = self.of_topic.get(topic, ())
        leases = (self.leases.get((key[0], topic, partition)) for key in keys)
        return max((lease.processed for lease in leases if lease is not None), default=None)

    return broken


mutant(
    "trim below a group",
    "what goes as processed every group has passed",
    (GroupTable, "processed", _fastest_group),
    tests=_RETENTION,
)


def _believes_the_joiner(original: Any) -> Any:
    def broken(self: GroupTable, record: Any, now_ms: int) -> Any:
        lease = original(self, record, now_ms)
        lease.processed = record.next_offset
        return lease

    return broken


mutant(
    "what a joiner saw counts as processed",
    "what goes as processed is durable in every ledger",
    (GroupTable, "start_lease", _believes_the_joiner),
    tests=_RETENTION,
)
mutant(
    "trim beyond what a group has committed",
    "what goes as processed every group has passed",
    (OffsetIndex, "down", lambda _original: lambda self, _offset: self._offsets[-1]),
)


def _moved(original: Any) -> Any:
    def broken(self: Any, peer: bytes, request: Any, now_ms: int, out: Any) -> None:
        topic = self.state.topics.get(request.topic)
        start = topic.partition(request.partition).log_start_offset
        original(self, peer, replace(request, offset=max(start, request.offset)), now_ms, out)

    return broken


mutant(
    "OffsetTrimmed not told: moved silently",
    "a reader below the start is told, never moved",
    (FetchServer, "fetch", _moved),
    tests=_RETENTION,
)
mutant(
    "a waiting fetch goes on behind what was deleted",
    "a reader below the start is told, never moved",
    (FetchServer, "_is_gone", lambda _original: lambda _self, _job, _out: False),
    tests=_RETENTION,
)
mutant(
    "deleted numbers have no offset",
    "a duplicate of a deleted message is answered with its offset where that is known",
    (Row, "offset_of", lambda _original: lambda _self, _sequence: -1),
    tests=_RETENTION,
)
mutant(
    "segment deleted before the snapshots name the kept part",
    "the log goes only below what both kept snapshots find elsewhere",
    (KeptParts, "durable_end", lambda _original: property(lambda self: self.end)),
    tests=_KEPT,
)


def _one_less(original: Any) -> Any:
    def broken(self: Any, partition: tuple[int, int], end_offset: int) -> bool:
        return bool(original(self, partition, end_offset - 1))

    return broken


mutant(
    "a copy leaves out the first message that is left",
    "what was not deleted is there",
    (Keep, "wants", _one_less),
    tests=_KEPT,
)
mutant(
    "snapshots do not name kept parts",
    "what was not deleted is there",
    (KeptParts, "offer", lambda _original: lambda _self: iter(())),
    tests=_KEPT,
)
mutant(
    "a later topic of the name begins with epoch 1 again",
    "no epoch is given twice",
    (Membership, "_last_epoch", lambda _original: lambda _self, _key: 0),
    tests=_RETENTION,
)


def _reads_from_the_beginning(original: Any) -> Any:
    def broken(self: KeptParts, *args: Any) -> None:
        original(self, *args)
        assert self.making is not None
        self.making = self._due[-1] = replace(self.making, log_start=self.making.start)

    return broken


mutant(
    "a copy reads log that may have gone",
    "between the parts that a copy takes in and its own stretch nothing is left",
    (KeptParts, "want", _reads_from_the_beginning),
    tests=_KEPT,
)
