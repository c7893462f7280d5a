"""Real input as work without end: the rows of a file, in portions, round after round.

Each producer of the cast follows a file of its own, a *portion* of the input that grows row by
row. When a portion is whole and acknowledged, the producer is ended and the next one begins with
the next portion, so that a killed producer has little to read again. When the input ends it begins
again: rows with numbers are sent under a new producer name anyway; rows with id fields get one more
field, `oncemq_round`, which becomes part of the id. The first round is the input as it is.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from ..errors import BadInput
from ..library.files.rows import FileJob, parcel_of
from ..library.files.sources import Rows, open_rows
from ..library.producing.parcel import cut

ROUND_FIELD = "oncemq_round"
INPUT_ROWS_MAX = 200_000  # the rest of a longer input is not used
INPUT_BYTES_MAX = 64 * 1024 * 1024
PORTION_ROWS = 2_000
BACKLOG_MAX = 20_000  # rows fed and not processed; feeding waits above it
BACKLOG_MIN = 500
BACKLOG_S = 5.0  # of work at the best speed seen: what feeding may be ahead
CALM_SHARE = 0.03  # of the feeds are followed by silence, and then a crowd
HELD_BACK = 1  # rows kept for the end of a takeover: a zombie is noticed when it speaks
_digest = xxhash.xxh3_128_digest


@dataclass(frozen=True, slots=True)
class Input:
    """The rows of a file, each as one line of text (csv: perhaps several)."""

    job: FileJob
    header: str  # csv only
    rows: tuple[str, ...]
    repeated: int = 0  # rows left out, because an equal row with this id came before
    cut: bool = False  # the file goes on

    def line(self, index: int, round_: int) -> str:
        """With its line end."""
        row = self.rows[index]
        if round_ == 1 or not self.job.id_fields:
            return row + "\n"
        if self.job.format_name == "csv":
            return f"{row},{round_}\n"
        comma = "" if row == "{}" else ", "
        return f'{row[:-1]}{comma}"{ROUND_FIELD}": "{round_}"}}\n'

    def head(self, round_: int) -> str:
        if self.job.format_name != "csv":
            return ""
        more = f",{ROUND_FIELD}" if round_ > 1 and self.job.id_fields else ""
        return f"{self.header}{more}\n"

    def id_fields(self, round_: int) -> tuple[str, ...]:
        fields = self.job.id_fields
        return (*fields, ROUND_FIELD) if round_ > 1 and fields else fields


def read_input(job: FileJob) -> Input:
    """Read what `job` names. Raises BadInput, OSError.

    Rows that are the same in all and have the same id are taken once: a producer would have them
    refused as duplicates. Two different rows with one id are an error in the choice of id fields.
    """
    source = open_rows(job.path, job.format_name)
    lines: list[str] = []
    seen: dict[bytes, tuple[int, bytes]] = {}
    repeated = size = 0
    over = False
    try:
        while not over:
            rows = source.next_rows()
            error, ended = rows.error, rows.ended
            for number, value, name, body in _checked(job, rows):
                if name is not None and name in seen:
                    _compare(job, number, body, seen[name])
                    repeated += 1
                    continue
                if name is not None:
                    seen[name] = (number, _digest(body))
                line = _line(job.format_name, value)
                size += len(line)
                if len(lines) >= INPUT_ROWS_MAX or size > INPUT_BYTES_MAX:
                    over = True
                    break
                lines.append(line)
            error = error or rows.error
            if error is not None:
                raise error
            if ended:
                break
        names = source.field_names or []
    finally:
        source.source.close()
    if not lines:
        raise BadInput(f"{job.path} holds no rows")
    if job.id_fields and (ROUND_FIELD in names or any(f'"{ROUND_FIELD}"' in its for its in lines)):
        raise BadInput(f"{job.path} has a field {ROUND_FIELD} already")
    return Input(job, _csv_line(names) if names else "", tuple(lines), repeated, over)


def _checked(job: FileJob, rows: Rows) -> Iterator[tuple[int, Any, bytes | None, bytes]]:
    """Yield (line number, row, id, body) up to the first row that cannot be sent."""
    parcel = parcel_of(job, rows)
    for piece in cut(parcel, 1, lambda _: 0) if rows.values else ():
        for place, member in enumerate(piece.members):
            name = None if parcel.ids is None else parcel.ids[member]
            yield rows.numbers[member], rows.values[member], name, piece.batch.body(place)


def _compare(job: FileJob, number: int, body: bytes, before: tuple[int, bytes]) -> None:
    if _digest(body) != before[1]:
        raise BadInput(
            f"lines {before[0]} and {number} differ and have one id",
            hint=f"--id-field {','.join(job.id_fields)} does not tell rows apart",
        )


def _line(format_name: str, value: Any) -> str:
    if format_name == "csv":
        return _csv_line(list(value.values()))
    return str(value) if format_name == "lines" else json.dumps(value)


def _csv_line(fields: list[str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(fields)  # so that both are quoted in fields
    return text.getvalue().removesuffix("\r\n")


# --- growing files --------------------------------------------------------------------------------


@dataclass(slots=True)
class Portion:
    """Consecutive rows of the input that one producer sends."""

    number: int
    round: int
    first: int  # row of the input
    planned: int
    path: Path
    producer: str  # name under which it is sent
    id_fields: tuple[str, ...]
    fed: int = 0
    closed: bool = False  # no row comes any more
    confirmed: bool = False  # its producer has ended well: all of it is acknowledged

    @property
    def whole(self) -> bool:
        """Whether all that it will ever hold is in its file."""
        return self.closed or self.fed == self.planned


class Lane:
    """The work of one producer: one portion after the other."""

    def __init__(self, name: str, feed: Feed) -> None:
        self.name = name
        self._feed = feed
        self.portion = feed.next_portion(name)

    @property
    def left(self) -> int:
        return 0 if self.portion.closed else self.portion.planned - self.portion.fed

    def talks(self) -> bool:
        """Whether the portion still grows by more than what is held back."""
        return self.left > HELD_BACK

    def advance(self) -> bool:
        """Begin the next portion; False if feeding is over."""
        self.portion.confirmed = True
        if self._feed.over:
            return False
        self.portion = self._feed.next_portion(self.name)
        return True


class Feed:
    """Lets the portions of all lanes grow, at `rate` rows a second, in fits and starts."""

    def __init__(
        self, source: Input, directory: Path, lanes: int, *, rate: float, rng: random.Random
    ) -> None:
        """Portions go to `directory`, one growing for each of `lanes` producers."""
        self.source = source
        self.over = False
        self.portions: list[Portion] = []
        self.fed = 0  # rows in all portions. Invariant: the sum over `portions`
        self._directory = directory
        self._rate = rate
        self._rng = rng
        self._cursor = 0
        self.rounds = 1
        self._due_s: float | None = None
        self._fed_s = 0.0
        self._allowed = 0.0
        self.lanes = [Lane(f"producer-{number + 1}", self) for number in range(lanes)]

    def next_portion(self, lane: str) -> Portion:
        """Begin a portion: an empty file, for csv with its header."""
        rows = len(self.source.rows)
        if self._cursor == rows:
            self._cursor, self.rounds = 0, self.rounds + 1
        number = len(self.portions) + 1
        planned = min(PORTION_ROWS, rows - self._cursor)
        suffix = self.source.job.format_name
        path = self._directory / f"portion-{number:05d}.{suffix}"
        with path.open("x", encoding="utf-8", newline="") as stream:
            stream.write(self.source.head(self.rounds))
        named = f"{lane}-portion-{number:05d}"
        ids = self.source.id_fields(self.rounds)
        portion = Portion(number, self.rounds, self._cursor, planned, path, named, ids)
        self._cursor += planned
        self.portions.append(portion)
        return portion

    def grow(
        self, now_s: float, behind: int, best_per_s: float, held: Callable[[str], bool]
    ) -> None:
        """Let rows arrive if it is time. `behind`: rows fed that were not processed yet.

        `held(name)` says whether the last rows of a lane are to be kept back for now.
        """
        if self.over:
            return
        if self._due_s is None:
            self._due_s = self._fed_s = now_s
        if now_s < self._due_s:
            return
        self._allowed += (now_s - self._fed_s) * self._rate
        self._fed_s = now_s
        silent = self._rng.random() < CALM_SHARE
        self._due_s = now_s + (self._rng.uniform(0.5, 2.0) if silent else self._rng.uniform(0, 0.1))
        room = min(BACKLOG_MAX, max(BACKLOG_MIN, BACKLOG_S * best_per_s)) - behind
        count = int(min(self._allowed, room))
        self._allowed = min(self._allowed, self._rate)  # what there was no room for is not made up
        while count > 0:
            open_ = [lane for lane in self.lanes if lane.left > HELD_BACK * held(lane.name)]
            if not open_:
                return
            lane = self._rng.choice(open_)
            share = min(count, lane.left - HELD_BACK * held(lane.name), self._rng.randint(1, 200))
            self._append(lane.portion, share)
            count -= share
            self._allowed -= share

    def finish(self) -> None:
        """No more rows: what portions hold now is all that they will ever hold."""
        self.over = True
        for lane in self.lanes:
            lane.portion.closed = True

    def _append(self, portion: Portion, count: int) -> None:
        first = portion.first + portion.fed
        lines = (self.source.line(index, portion.round) for index in range(first, first + count))
        with portion.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write("".join(lines))
        portion.fed += count
        self.fed += count

    def sent_rows(self, portion: Portion) -> Iterator[tuple[int, bytes | None, bytes]]:
        """Yield (number, tagged id or None, body) of all that a portion sent, as its file says."""
        job = replace(self.source.job, path=str(portion.path), id_fields=portion.id_fields)
        rows_of = open_rows(job.path, job.format_name)
        number = 0
        try:
            while True:
                rows = rows_of.next_rows()
                for _, _, name, body in _checked(job, rows):
                    yield number, name, body
                    number += 1
                if rows.error is not None:
                    raise rows.error
                if rows.ended:
                    return
        finally:
            rows_of.source.close()
