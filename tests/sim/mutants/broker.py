"""Mutants of the broker: dedup, order, epochs, grants."""

from __future__ import annotations

from typing import Any

from oncemq.core.broker import produce, producers, verdicts
from oncemq.core.broker.core import BrokerCore
from oncemq.core.broker.freezing import Freezing
from oncemq.core.broker.groups import GroupTable
from oncemq.core.broker.id_index import IdIndex
from oncemq.core.broker.producers import Producer, ProducerTable, Row
from oncemq.core.broker.sessions import SessionTable
from oncemq.core.broker.state import BrokerState
from oncemq.core.broker.topics import Partition
from oncemq.dedup import bloom
from oncemq.dedup.tree import Tree
from oncemq.protocol import CONFLICT, DUPLICATE
from tests.sim.mutants.table import mutant, nothing


def _row_jumps(_original: Any) -> Any:
    def broken(self: Row, record: Any, position: int) -> None:
        self.next_sequence = max(self.next_sequence, record.first_sequence + record.count)
        self.digest = record.digest
        self.sequences.append(record.first_sequence)
        self.positions.append(position)

    return broken


def _gap_is_new(original: Any) -> Any:
    def broken(self: Any, arrival: Any, out: Any) -> None:
        key = (arrival.topic.number, arrival.partition.number)
        producer = self.state.producers.checked(arrival.request.producer, arrival.request.epoch)
        row = producer.rows.get(key)
        first = arrival.request.first_sequence
        if row is not None and first > row.next_sequence:
            row.next_sequence = first
        elif row is None and first > 0:
            producer.rows[key] = Row(next_sequence=first)
        original(self, arrival, out)

    return broken


mutant(
    "dedup by highest sequence",
    "numbers are contiguous: newer than the highest seen is not enough",
    (Row, "apply", _row_jumps),
    (produce.Judge, "_judge_numbers", _gap_is_new),
)
mutant(
    "epoch checked at login only",
    "every batch must come from the live epoch",
    (Producer, "check", nothing),
)
mutant(
    "ids forgotten by a restart",
    "dedup state is rebuilt from snapshot and log",
    (BrokerState, "restore", lambda original: _without_ids(original)),
)


def _without_ids(original: Any) -> Any:
    def broken(self: Any, parts: Any) -> None:
        original(self, parts)
        self._ids = None

    return broken


mutant(
    "all ids count as new",
    "one id, one offset",
    (Tree, "find", lambda original: lambda self, *asked: _nothing_known(original(self, *asked))),
)


def _forget_made(self: Any, number: int, run: Any) -> None:
    del run
    self._making = [one for one in self._making if one.number != number]
    self._full = []


def _nothing_known(found: Any) -> Any:
    known, values = found
    return known & False, values


def _only_duplicates(original: Any) -> Any:
    def broken(self: Any, *asked: Any) -> Any:
        judged = original(self, *asked)
        runs = judged.runs
        runs.runs = [(c, DUPLICATE if v == CONFLICT else v, at) for c, v, at in runs.runs]
        return judged

    return broken


mutant(
    "conflict told as duplicate",
    "one id, one body",
    (IdIndex, "judge", _only_duplicates),
)
mutant(
    "mask of duplicates lost",
    "a batch is judged message by message",
    (
        IdIndex,
        "judge",
        lambda original: lambda self, *asked: original(self, *asked)._replace(mask=b""),
    ),
)


def _forgets_one(original: Any) -> Any:
    def broken(self: Any) -> Any:
        due = original(self)
        for new in due:
            if len(new.sources) > 1:
                object.__setattr__(new, "sources", [*new.sources[1:], new.sources[1]])
        return due

    return broken


mutant(
    "merge forgets a run",
    "a run holds what its sources held",
    (Tree, "due", _forgets_one),
)
mutant(
    "snapshot forgets a run",
    "a snapshot names every file of the index",
    (
        Tree,
        "runs",
        lambda original: property(lambda self: dict(list(original.fget(self).items())[1:])),
    ),
)
mutant(
    "newest ids missing from snapshots",
    "dedup state is rebuilt from snapshot and log",
    (Tree, "recent", lambda original: lambda self: original(self)[:, :0]),
)
mutant(
    "filter drops what it holds",
    "a filter is never wrong about what it holds",
    (bloom, "put", lambda _original: lambda _table, _high, _low: None),
)
mutant(
    "batches of a turn do not know of each other",
    "one id, one offset",
    (IdIndex, "_found", lambda original: lambda self, *of: _asked_once(original(self, *of))),
)


def _asked_once(found: Any) -> Any:
    return found._replace(twice=found.twice[:0])


mutant(
    "filed ids are forgotten",
    "a run stands for its sources",
    (Tree, "made", lambda _original: _forget_made),
)
mutant(
    "sessions not checked",
    "explicit batches of a producer are stored in the order sent",
    (SessionTable, "check", lambda _original: lambda _self, _session, _counter: True),
)
mutant(
    "foreign ledger accepted",
    "only the ledger of the last grant may go on",
    (GroupTable, "check_ledger", nothing),
)


def _without_groups(rows: Any) -> Any:
    return (row for row in rows if row.part != "groups")


mutant(
    "a row is frozen after its change",
    "a snapshot shows the state of one moment",
    (Freezing, "before", nothing),
)
mutant(
    "grants missing from snapshots",
    "an epoch is granted once",
    (Freezing, "rows", lambda original: lambda self: _without_groups(original(self))),
)
mutant(
    "output producer not fenced with the grant",
    "ledger, outputs and grant are fenced as one",
    (ProducerTable, "apply_group", lambda original: _epoch_stays(original)),
)


def _epoch_stays(original: Any) -> Any:
    def broken(self: Any, record: Any) -> None:
        from oncemq.ids import output_producer

        known = self.by_name.get(output_producer(record.group, record.topic, record.partition))
        epoch = known.epoch if known is not None else None
        original(self, record)
        if known is not None and epoch is not None:
            known.epoch = epoch

    return broken


def _seen_at_once(original: Any) -> Any:
    def broken(self: Any, record: Any, position: int) -> None:
        original(self, record, position)
        self.durable_end_offset = self.end_offset

    return broken


mutant(
    "readers see what is not synced",
    "a fetch never shows what lies at or above the durable end",
    (Partition, "apply", _seen_at_once),
    tests=("tests/core/broker/test_fetch.py",),
)
mutant(
    "broker time follows the clock",
    "times in the log never go back",
    (BrokerCore, "_broker_ms", lambda _original: lambda self: self._now_ms),
)
mutant(
    "producer table restored without numbers",
    "the next number survives a snapshot",
    (producers.ProducerTable, "restore", lambda original: _without_rows(original)),
)


def _without_rows(original: Any) -> Any:
    def broken(self: Any, part: Any) -> None:
        original(self, [[*fields[:4], []] for fields in part])

    return broken


mutant(
    "resends are not compared",
    "a duplicate is answered with the offset of its original",
    (
        verdicts.Runs,
        "add",
        lambda original: (
            lambda self, count, verdict, offset: original(
                self, count, verdict, offset + 1 if verdict == DUPLICATE else offset
            )
        ),
    ),
)
