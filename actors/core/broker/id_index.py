"""The explicit ids of all topics: which are known, where they are stored, and what their bodies are.

Theory of operation. An entry is the keyed 128-bit fingerprint of topic and id, the place of the
message and the keyed hash of its body; dedup/tree.py holds them. Batches are looked up as columns,
all of a turn together: a call of numpy costs about the same for one id and for a thousand. Each is
then judged by what was found; only an id that comes twice in the turn is asked for again.

All hashes are made here, under the secret of this log: a client that lies about its own, or makes
two bodies collide, gains nothing. A false "known" has one chance in 2^128 for each pair of ids, and
without the secret no choice of ids makes it likelier; there is no false "new".

The entries follow from the records alone, so a lost index is made again by replaying the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...batch import BODY_PREFIX_BYTES, Batch, one_size
from ...dedup.keyed_hash import KeyedHash, Rows, Words
from ...dedup.origin import Origin
from ...dedup.run import Run
from ...dedup.tree import Living, NewRun, Tree, first_places
from ...errors import CorruptLog
from ...limits import Limits
from ...outcome import NewFile
from ...protocol import AHEAD, CONFLICT, DUPLICATE, STORED, TOO_OLD, UNKNOWN_OFFSET
from ...records import BatchStored, Plain
from .topics import Topic
from .verdicts import Runs

_OFFSET_BITS = np.uint64(48)  # leaves 16 bits for the partition: place and partition share a word
_OFFSET_MASK = np.uint64((1 << 48) - 1)
_WIDTH = 4  # words of an entry: fingerprint, place, body
_PREFIX = "run-"


class Columns(NamedTuple):
    """What is known of a batch's messages without looking anything up."""

    high: Words
    low: Words
    bodies: Words
    look: int  # the look ahead that made them; 0: none did


class Found(NamedTuple):
    """What the index knows of a batch's ids."""

    columns: Columns
    known: NDArray[np.bool_]
    values: Words  # places and bodies of the known ones
    twice: NDArray[np.intp]  # messages whose id another one of the look has too: asked again


class Judged(NamedTuple):
    """The verdicts on a batch, and which of its messages are new."""

    runs: Runs
    mask: bytes  # of a record that keeps the new ones; b"" if it keeps all, or none
    kept: int


class IdIndex:
    """All explicit ids of a broker. Its `due`, `made` and `failed` are those of outcome.Files."""

    def __init__(self, secret: bytes, limits: Limits) -> None:
        self._hash = KeyedHash(secret)
        # Names the secret without telling it.
        self._mark = hashlib.blake2b(secret, digest_size=16, person=b"oncemq.mark").digest()
        self._waiting_max = limits.id_tables_waiting_max
        self._table_ids = (limits.id_table_ids, limits.id_table_ids_max)
        # Ids of topics with alike horizons stand together, since they go together: by the number of
        # bits of the horizon's length; 0: never forgotten. Invariant: an id lives in one of them.
        self._trees: dict[int, Tree] = {}
        # What the last look ahead found for batches that are not judged yet, by the identity of
        # their columns. Invariant: all that was added since has other ids.
        self._ahead: dict[int, Found] = {}
        self._looks = 0

    def __len__(self) -> int:
        return sum(tree.count for tree in self._trees.values())

    @property
    def behind(self) -> bool:
        """Whether so many ids wait to be written that no more may come: memory is bounded."""
        waiting = sum(tree.waiting for tree in self._trees.values())
        return waiting > self._waiting_max

    def judge(
        self, batch: Batch, topic: Topic, partition: int, first_offset: int, latest_ms: int
    ) -> Judged:
        """Judge a batch whose new messages get dense offsets from `first_offset` on.

        An id that comes twice in the batch is judged against its first occurrence. In a topic that is
        dated all messages have a time of their own, and none is taken that is above `latest_ms`. Raises CorruptLog.
        """
        (high, low, bodies, _), known, values, twice = self._found(batch, topic)
        origin = None
        if twice.size:  # of a message that was judged since, or of this batch
            living = _living([(len(twice), topic)])
            known[twice], values[:, twice] = self._find(high[twice], low[twice], living)
            origin = first_places(high, low)
        horizon = topic.horizon
        fresh = ~known if origin is None else ~known & (origin == np.arange(batch.count))
        refused = None
        if topic.dated:
            assert batch.created_at_ms is not None, "a batch without times is refused before"
            created = np.frombuffer(batch.created_at_ms, np.int64)
            refused = np.where(created < horizon.floor_ms, TOO_OLD, 0)
            refused[created > latest_ms] = AHEAD
            if origin is not None:
                refused = np.maximum(refused, refused[origin])
            refused[known] = 0
            fresh &= refused == 0
        kept = int(np.count_nonzero(fresh))
        if kept == batch.count:
            return Judged(Runs([(kept, STORED, first_offset)]), b"", kept)
        offsets = np.where(known, values[0] & _OFFSET_MASK, 0).astype(np.int64)
        # An offset of another partition would mislead: the answer names one partition.
        offsets[known & (values[0] >> _OFFSET_BITS != partition)] = UNKNOWN_OFFSET
        offsets[fresh] = np.arange(first_offset, first_offset + kept)
        # A message was stored with its time if its topic had a horizon then.
        dated = self._dated(batch, bodies) if horizon.since_ms else bodies
        originals = np.where(known, values[1], bodies)
        if origin is not None:
            again = ~known & ~fresh
            offsets[again] = offsets[origin[again]]
            originals[again] = (dated if topic.dated else bodies)[origin[again]]
        verdicts = np.where((originals == bodies) | (originals == dated), DUPLICATE, CONFLICT)
        verdicts[fresh] = STORED
        if refused is not None and refused.any():
            verdicts = np.where(refused, refused, verdicts)
            offsets[refused > 0] = UNKNOWN_OFFSET
        mask = np.packbits(fresh, bitorder="little").tobytes() if kept else b""
        return Judged(_packed(verdicts, offsets), mask, kept)

    def add(self, record: BatchStored, topic: Topic) -> None:
        """Take the new ids of a stored batch."""
        batch = record.batch
        assert batch is not None, "batches with explicit ids are applied with their columns"
        high, low, bodies, look = self._columns(batch, record.topic_number)
        if look != self._looks:
            self._ahead.clear()  # they did not know of this batch
        length_ms = topic.settings.dedup_ms
        if topic.dated:
            bodies = self._dated(batch, bodies)
        place = record.partition << int(_OFFSET_BITS) | record.first_offset
        places = np.arange(place, place + record.kept, dtype=np.uint64)
        if record.mask:
            bits = np.unpackbits(np.frombuffer(record.mask, np.uint8), bitorder="little")
            kept = bits[: batch.count].astype(np.bool_)
            high, low, bodies = high[kept], low[kept], bodies[kept]
        origin = Origin(record.at_ms, frozenset((record.topic_number,)))
        tree = self._tree(0 if length_ms is None else length_ms.bit_length())
        tree.add(np.stack((high, low, places, bodies)), origin)

    def forget(self, topics: Iterable[Topic]) -> None:
        """Drop the files of which every id is forgotten."""
        forgotten = {topic.number: topic.horizon.forgotten_ms for topic in topics}
        for tree in self._trees.values():
            tree.forget(forgotten)

    def _tree(self, kind: int) -> Tree:
        tree = self._trees.get(kind)
        if tree is None:
            tree = self._trees[kind] = Tree(_WIDTH, *self._table_ids)
        return tree

    def _find(
        self, high: Words, low: Words, living: Living | None
    ) -> tuple[NDArray[np.bool_], Words]:
        """Raises CorruptLog."""
        known = np.zeros(len(high), np.bool_)
        values = np.zeros((_WIDTH - 2, len(high)), np.uint64)
        for tree in self._trees.values():
            its, found = tree.find(high, low, living)
            known |= its
            values[:, its] = found[:, its]
        return known, values

    def look_ahead(self, batches: Sequence[tuple[Batch, Topic]]) -> None:
        """Look up the ids of `batches`, each with its topic, together. Raises CorruptLog."""
        self._looks += 1
        self._ahead.clear()
        high, low, bodies = self._hashed([(batch, topic.number) for batch, topic in batches])
        living = _living([(batch.count, topic) for batch, topic in batches])
        known, values = self._find(high, low, living)
        ordered = np.sort(high)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        twice = again.astype(np.intp)
        if again.size:
            twice = np.flatnonzero(again.take(again.searchsorted(high), mode="clip") == high)
        end = 0
        for batch, topic in batches:
            start, end = end, end + batch.count
            part = slice(start, end)
            columns = Columns(high[part], low[part], bodies[part], self._looks)
            batch.digests = (topic.number, columns)
            own = twice[slice(*twice.searchsorted((start, end)))] - start
            self._ahead[id(columns)] = Found(columns, known[part], values[:, part], own)

    def _found(self, batch: Batch, topic: Topic) -> Found:
        """Return what was found ahead, once; else look up this batch alone."""
        made_for, columns = batch.digests or (topic.number, None)
        if made_for != topic.number or id(columns) not in self._ahead:
            self.look_ahead([(batch, topic)])
            _, columns = batch.digests
        return self._ahead.pop(id(columns))

    def _columns(self, batch: Batch, topic: int) -> Columns:
        """Make them once: a batch is judged and applied with the same ones."""
        made: Columns | None = None
        if batch.digests is not None:
            salt, made = batch.digests
            made = made if salt == topic else None
        if made is None:
            made = Columns(*self._hashed([(batch, topic)]), 0)
            batch.digests = (topic, made)
        return made

    def _dated(self, batch: Batch, bodies: Words) -> Words:
        """Return hashes of the bodies together with the times of the messages, if they have any."""
        if batch.created_at_ms is None:
            return bodies
        return bodies ^ self._hash.times(Rows(batch.created_at_ms, 8, batch.count))

    def _hashed(self, batches: Sequence[tuple[Batch, int]]) -> tuple[Words, Words, Words]:
        topics = [topic for _, topic in batches]
        salt: int | Words = topics[0]
        if len(set(topics)) > 1:
            salt = np.repeat(np.array(topics, np.uint64), [batch.count for batch, _ in batches])
        ids = Rows.joined([_ids_of(batch) for batch, _ in batches])
        bodies = Rows.joined([_bodies_of(batch) for batch, _ in batches])
        return *self._hash.fingerprints(ids, salt), self._hash.words(bodies)

    # --- outcome.Files ---------------------------------------------------------------------------

    def due(self) -> list[NewFile]:
        return [
            NewFile(_name(kind, new.number), partial(self._pieces, new))
            for kind, tree in self._trees.items()
            for new in tree.due()
        ]

    def _pieces(self, new: NewRun) -> Iterator[bytes]:
        return new.pieces(_WIDTH, self._mark)

    def made(self, name: str, buffer: Any, path: str) -> None:
        """Raises CorruptLog."""
        kind, number = _numbers(name)
        self._trees[kind].made(number, Run(buffer, path, mark=self._mark, own=True))

    def failed(self, name: str) -> None:
        kind, number = _numbers(name)
        self._trees[kind].failed(number)

    # --- snapshot --------------------------------------------------------------------------------

    def freeze(self) -> tuple[Plain, list[str]]:
        """Return a part that holds the newest ids and names the files of all others."""
        trees, names = [], []
        for kind, tree in self._trees.items():
            runs = [[_name(kind, n), *run.origin.freeze()] for n, run in tree.runs.items()]
            recent = tree.recent().astype("<u8").tobytes()
            trees.append([kind, tree.next_number, runs, recent, *tree.recent_origin.freeze()])
            names += [run[0] for run in runs]
        return [self._mark, trees], names

    def restore(self, part: Plain, parts: dict[str, Any]) -> None:
        """Take what `freeze` returned, and the files it names. Raises CorruptLog."""
        mark, trees = part
        if mark != self._mark:
            raise CorruptLog("", 0, "the index of ids was made under another secret")
        for kind, next_number, rows, recent, *origin in trees:
            runs = {}
            for name, *its in rows:
                run = Run(parts[name].buffer, parts[name].path, mark=mark)
                run.origin = Origin.restored(*its)
                runs[_numbers(name)[1]] = run
            entries = np.frombuffer(recent, "<u8").reshape(_WIDTH, -1).astype(np.uint64)
            self._tree(kind).restore(next_number, runs, entries, Origin.restored(*origin))


def _ids_of(batch: Batch) -> Rows:
    assert batch.id_block is not None
    if one_size(batch.id_sizes):
        return Rows(batch.id_block, batch.id_sizes[0], batch.count)
    return Rows(batch.id_block, batch.id_sizes)


def _bodies_of(batch: Batch) -> Rows:
    payload = memoryview(batch.raw)[batch.payload_start :]
    if batch.uniform:
        return Rows(payload, batch.lengths[0] + BODY_PREFIX_BYTES, batch.count)
    return Rows(payload, np.frombuffer(batch.lengths, np.uint32) + np.uint32(BODY_PREFIX_BYTES))


def _living(parts: Sequence[tuple[int, Topic]]) -> Living | None:
    """Return what tells which entries are not forgotten, of so many messages of each topic."""
    if not any(topic.horizon.forgotten for _, topic in parts):
        return None
    starts: dict[int, int] = {}  # where the partitions of a topic begin in `ends`
    tables: list[Words] = []
    for _, topic in parts:
        if topic.number not in starts:
            starts[topic.number] = sum(map(len, tables))
            tables.append(_forgotten(topic))
    ends = np.concatenate(tables)
    start = np.repeat([starts[topic.number] for _, topic in parts], [count for count, _ in parts])

    def living(which: NDArray[np.intp], places: Words) -> NDArray[np.bool_]:
        partitions = (places >> _OFFSET_BITS).astype(np.intp)
        lives: NDArray[np.bool_] = (places & _OFFSET_MASK) >= ends[start[which] + partitions]
        return lives

    return living


def _forgotten(topic: Topic) -> Words:
    """Return the offset of each partition below which ids are forgotten."""
    ends = np.zeros(topic.partitions, np.uint64)
    for number, end in topic.horizon.forgotten.items():
        ends[number] = end
    return ends


def _name(kind: int, number: int) -> str:
    return f"{_PREFIX}{kind}-{number}" if kind else f"{_PREFIX}{number}"


def _numbers(name: str) -> tuple[int, int]:
    """Return kind and number."""
    kind, _, number = name.removeprefix(_PREFIX).rpartition("-")
    return int(kind or 0), int(number)


def _packed(verdicts: NDArray[Any], offsets: NDArray[np.int64]) -> Runs:
    """Pack neighbours with one verdict and adjacent offsets into one run each."""
    unknown = offsets == UNKNOWN_OFFSET
    adjacent = np.where(unknown[:-1], unknown[1:], offsets[1:] == offsets[:-1] + 1)
    starts = np.flatnonzero((verdicts[1:] != verdicts[:-1]) | ~adjacent) + 1
    starts = np.concatenate((np.zeros(1, starts.dtype), starts))
    counts = np.diff(starts, append=len(verdicts))
    columns = (counts, verdicts[starts], offsets[starts])
    return Runs(list(zip(*(column.tolist() for column in columns), strict=True)))
