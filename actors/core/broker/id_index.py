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
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...batch import BODY_PREFIX_BYTES, Batch, one_size
from ...dedup.keyed_hash import KeyedHash, Rows, Words
from ...dedup.run import Run
from ...dedup.tree import NewRun, Tree
from ...errors import CorruptLog
from ...limits import Limits
from ...outcome import NewFile
from ...protocol import CONFLICT, DUPLICATE, STORED, UNKNOWN_OFFSET
from ...records import BatchStored, Plain
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
        self._tree = Tree(_WIDTH, limits.id_table_ids)
        # What the last look ahead found for batches that are not judged yet, by the identity of
        # their columns. Invariant: all that was added since has other ids.
        self._ahead: dict[int, Found] = {}
        self._looks = 0

    def __len__(self) -> int:
        return self._tree.count

    @property
    def behind(self) -> bool:
        """Whether so many ids wait to be written that no more may come: memory is bounded."""
        return self._tree.waiting > self._waiting_max

    def judge(self, batch: Batch, topic: int, partition: int, first_offset: int) -> Judged:
        """Judge a batch whose new messages get dense offsets from `first_offset` on.

        An id that comes twice in the batch is judged against its first occurrence. Raises
        CorruptLog.
        """
        (high, low, bodies, _), known, values, twice = self._found(batch, topic)
        origin = None
        if twice.size:  # of a message that was judged since, or of this batch
            known[twice], values[:, twice] = self._tree.find(high[twice], low[twice])
            origin = _origins(high, low)
        fresh = ~known if origin is None else ~known & (origin == np.arange(batch.count))
        kept = int(np.count_nonzero(fresh))
        if kept == batch.count:
            return Judged(Runs([(kept, STORED, first_offset)]), b"", kept)
        offsets = np.where(known, values[0] & _OFFSET_MASK, 0).astype(np.int64)
        # An offset of another partition would mislead: the answer names one partition.
        offsets[known & (values[0] >> _OFFSET_BITS != partition)] = UNKNOWN_OFFSET
        offsets[fresh] = np.arange(first_offset, first_offset + kept)
        originals = np.where(known, values[1], bodies)
        if origin is not None:
            again = ~known & ~fresh
            offsets[again] = offsets[origin[again]]
            originals[again] = bodies[origin[again]]
        verdicts = np.where(originals == bodies, DUPLICATE, CONFLICT)
        verdicts[fresh] = STORED
        mask = np.packbits(fresh, bitorder="little").tobytes() if kept else b""
        return Judged(_packed(verdicts, offsets), mask, kept)

    def add(self, record: BatchStored) -> None:
        """Take the new ids of a stored batch."""
        batch = record.batch
        assert batch is not None, "batches with explicit ids are applied with their columns"
        high, low, bodies, look = self._columns(batch, record.topic_number)
        if look != self._looks:
            self._ahead.clear()  # they did not know of this batch
        place = record.partition << int(_OFFSET_BITS) | record.first_offset
        places = np.arange(place, place + record.kept, dtype=np.uint64)
        if record.mask:
            bits = np.unpackbits(np.frombuffer(record.mask, np.uint8), bitorder="little")
            kept = bits[: batch.count].astype(np.bool_)
            high, low, bodies = high[kept], low[kept], bodies[kept]
        self._tree.add(np.stack((high, low, places, bodies)))

    def look_ahead(self, batches: Sequence[tuple[Batch, int]]) -> None:
        """Look up the ids of `batches`, each with its topic, together. Raises CorruptLog."""
        self._looks += 1
        self._ahead.clear()
        high, low, bodies = self._hashed(batches)
        known, values = self._tree.find(high, low)
        ordered = np.sort(high)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        twice = np.flatnonzero(np.isin(high, again)) if again.size else again.astype(np.intp)
        end = 0
        for batch, topic in batches:
            start, end = end, end + batch.count
            part = slice(start, end)
            columns = Columns(high[part], low[part], bodies[part], self._looks)
            batch.digests = (topic, columns)
            own = twice[slice(*twice.searchsorted((start, end)))] - start
            self._ahead[id(columns)] = Found(columns, known[part], values[:, part], own)

    def _found(self, batch: Batch, topic: int) -> Found:
        """Return what was found ahead, once; else look up this batch alone."""
        made_for, columns = batch.digests or (topic, None)
        if made_for != topic or id(columns) not in self._ahead:
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

    def _hashed(self, batches: Sequence[tuple[Batch, int]]) -> tuple[Words, Words, Words]:
        topics = np.array([topic for _, topic in batches], np.uint64)
        salts = np.repeat(topics, [batch.count for batch, _ in batches])
        ids = Rows.joined([_ids_of(batch) for batch, _ in batches])
        bodies = Rows.joined([_bodies_of(batch) for batch, _ in batches])
        return *self._hash.fingerprints(ids, salts), self._hash.words(bodies)

    # --- outcome.Files ---------------------------------------------------------------------------

    def due(self) -> list[NewFile]:
        return [
            NewFile(f"{_PREFIX}{new.number}", partial(self._pieces, new))
            for new in self._tree.due()
        ]

    def _pieces(self, new: NewRun) -> Iterator[bytes]:
        return new.pieces(_WIDTH, self._mark)

    def made(self, name: str, buffer: Any, path: str) -> None:
        """Raises CorruptLog."""
        run = Run(buffer, path, mark=self._mark, own=True)
        self._tree.made(_number(name), run)

    def failed(self, name: str) -> None:
        self._tree.failed(_number(name))

    # --- snapshot --------------------------------------------------------------------------------

    def freeze(self) -> tuple[Plain, list[str]]:
        """Return a part that holds the newest ids and names the files of all others."""
        tree = self._tree
        recent = tree.recent().astype("<u8").tobytes()
        names = [f"{_PREFIX}{number}" for number in tree.runs]
        return [self._mark, tree.next_number, names, recent], names

    def restore(self, part: Plain, parts: dict[str, Any]) -> None:
        """Take what `freeze` returned, and the files it names. Raises CorruptLog."""
        mark, next_number, names, recent = part
        if mark != self._mark:
            raise CorruptLog("", 0, "the index of ids was made under another secret")
        runs = {
            _number(name): Run(parts[name].buffer, parts[name].path, mark=mark) for name in names
        }
        entries = np.frombuffer(recent, "<u8").reshape(_WIDTH, -1).astype(np.uint64)
        self._tree.restore(next_number, runs, entries)


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


def _number(name: str) -> int:
    return int(name.removeprefix(_PREFIX))


def _origins(high: Words, low: Words) -> NDArray[np.intp] | None:
    """Return the first message with the id of each one; None: every id comes once."""
    ordered = np.sort(high)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    first: dict[tuple[int, int], int] = {}
    pairs = zip(high.tolist(), low.tolist(), strict=True)
    return np.array([first.setdefault(pair, place) for place, pair in enumerate(pairs)], np.intp)


def _packed(verdicts: NDArray[Any], offsets: NDArray[np.int64]) -> Runs:
    """Pack neighbours with one verdict and adjacent offsets into one run each."""
    unknown = offsets == UNKNOWN_OFFSET
    adjacent = np.where(unknown[:-1], unknown[1:], offsets[1:] == offsets[:-1] + 1)
    starts = np.flatnonzero((verdicts[1:] != verdicts[:-1]) | ~adjacent) + 1
    starts = np.concatenate((np.zeros(1, starts.dtype), starts))
    counts = np.diff(starts, append=len(verdicts))
    columns = (counts, verdicts[starts], offsets[starts])
    return Runs(list(zip(*(column.tolist() for column in columns), strict=True)))
