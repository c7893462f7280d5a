"""The processed explicit ids of a ledger: fingerprints of 16 bytes, in a tree (dedup/tree.py).

Apart from processed.py because numpy is large: only a ledger that meets explicit ids loads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...dedup.run import Run
from ...dedup.tree import NewRun, Tree, first_places
from ...errors import CorruptLog
from ...limits import Limits
from ...outcome import NewFile
from ...records import Plain

Words = NDArray[np.uint64]

_WIDTH = 2  # words of an entry: those of the fingerprint, and no value
_PREFIX = "run-"


class ExplicitIds:
    """A set of fingerprints. What comes in and goes out has them one behind the other.

    Its `due`, `made` and `failed` are those of outcome.Files.
    """

    def __init__(self, mark: bytes, limits: Limits) -> None:
        """`mark` names the ledger."""
        self._mark = mark
        self._waiting_max = limits.ledger_tables_waiting_max
        self._tree = Tree(_WIDTH, limits.ledger_table_ids, limits.ledger_table_ids_max)

    def __len__(self) -> int:
        return self._tree.count

    @property
    def behind(self) -> bool:
        """Whether so many ids wait to be written that no more may come: memory is bounded."""
        return self._tree.waiting > self._waiting_max

    def add(self, fingerprints: bytes) -> None:
        """Add fingerprints that are new and differ from each other."""
        self._tree.add(_columns(fingerprints))

    def fresh(self, fingerprints: bytes, before: bytes) -> bytes | None:
        """Return a byte for each fingerprint: 1 if it is neither here nor in `before` nor came already.

        None: all are fresh. Raises CorruptLog.
        """
        high, low = _columns(before + fingerprints)
        start = len(before) // (8 * _WIDTH)
        known = self._tree.find(high[start:], low[start:])[0]
        first = first_places(high, low)
        if first is not None:
            known |= (first != np.arange(len(high)))[start:]
        return (~known).tobytes() if known.any() else None

    def all(self) -> Iterator[bytes]:
        """Yield all fingerprints, in steps of bounded size. Raises CorruptLog."""
        for entries in self._tree.entries():
            yield entries.T.astype("<u8").tobytes()

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
        self._tree.made(_number(name), Run(buffer, path, mark=self._mark, own=True))

    def failed(self, name: str) -> None:
        self._tree.failed(_number(name))

    # --- snapshot --------------------------------------------------------------------------------

    def freeze(self) -> tuple[Plain, list[str]]:
        """Return a part that holds the newest ids, and the names of the files with all others."""
        recent = self._tree.recent().astype("<u8").tobytes()
        names = [f"{_PREFIX}{number}" for number in self._tree.runs]
        return [self._mark, self._tree.next_number, names, recent], names

    def restore(self, part: Plain, parts: dict[str, Any]) -> None:
        """Take what `freeze` returned, and the files it names. Raises CorruptLog."""
        mark, next_number, names, recent = part
        if mark != self._mark:
            raise CorruptLog("", 0, "the processed set was made under another secret")
        missing = [name for name in names if name not in parts]
        if missing:
            raise CorruptLog("", 0, f"the snapshot lacks its part {missing[0]}")
        runs = {
            _number(name): Run(parts[name].buffer, parts[name].path, mark=mark) for name in names
        }
        entries = np.frombuffer(recent, "<u8").reshape(_WIDTH, -1).astype(np.uint64)
        self._tree.restore(next_number, runs, entries)


def _columns(fingerprints: bytes) -> Words:
    pairs = np.frombuffer(fingerprints, "<u8").reshape(-1, _WIDTH)
    return np.ascontiguousarray(pairs.T, np.uint64)


def _number(name: str) -> int:
    return int(name.removeprefix(_PREFIX))
