"""Files as rows: lines, csv and jsonl, gzip-compressed or growing, streamed in bounded memory.

The caller asks a source for the next `Rows`; a source never waits by itself. A line that cannot be
read ends the source: the rows before it come first, with `error` naming the line, so that a sender
gets them acknowledged before it stops.
"""

from __future__ import annotations

import abc
import csv
import gzip
import json
import os
import select
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ...errors import BadInput, InputChanged, OnceMQError
from ...limits import MESSAGE_BYTES_MAX

STDIN = "-"
FORMATS = ("lines", "csv", "jsonl")
READ_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Rows:
    """Some rows in order."""

    values: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # line numbers, from 1, where the rows begin
    error: OnceMQError | None = None  # about the line after these rows
    ended: bool = False  # nothing follows
    waiting: bool = False  # the end of a followed file: ask again later


class ByteSource:
    """The bytes of a file, of a gzip file, or of standard input."""

    def __init__(self, path: str, *, follow: bool = False) -> None:
        """Open `path`; `-` is standard input. `follow`: at the end, wait for more.

        Raises OSError.
        """
        self.path = path
        self.follow = follow
        self.position = 0  # bytes taken from the file (compressed ones of a gzip file)
        self._file: BinaryIO
        self._packed: BinaryIO | None = None
        if path == STDIN:
            self._file = sys.stdin.buffer
        else:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        if path.endswith(".gz"):
            self._packed = self._file
            self._file = gzip.GzipFile(fileobj=self._packed, mode="rb")  # type: ignore[assignment]
        self._inode = self._stat().st_ino

    @property
    def total(self) -> int | None:
        """Bytes; None for standard input."""
        return None if self.path == STDIN else self._stat().st_size

    def ready(self, timeout_s: float) -> bool:
        """Whether `read` would not block; only standard input ever does."""
        if self.path != STDIN:
            return True
        return bool(select.select([self._file.fileno()], [], [], timeout_s)[0])

    def read(self) -> bytes:
        """b"" at the (present) end. Raises BadInput for a damaged gzip."""
        if self._packed is not None:
            try:
                data = self._file.read(READ_BYTES)
            except (OSError, EOFError, zlib.error) as error:
                raise BadInput(f"{self.path} is not a complete gzip file: {error}") from None
            self.position = self._packed.tell()
            if not data and not self.position:  # gzip itself takes it for a file of no members
                raise BadInput(f"{self.path} is not a complete gzip file: it is empty")
            return data
        data = os.read(self._file.fileno(), READ_BYTES)
        self.position += len(data)
        return data

    def check_same(self) -> None:
        """Check at the end of a followed file that it is still the same. Raises InputChanged.

        A file that was cut and has grown beyond the old length between two checks passes; the
        digest finds it at the next start.
        """
        if self._stat().st_size < self.position:
            raise InputChanged(
                f"{self.path} was truncated", hint="send the new file under a new --name"
            )
        try:
            moved = os.stat(self.path).st_ino != self._inode
        except FileNotFoundError:
            moved = True
        if moved:
            raise InputChanged(
                f"{self.path} was rotated; the old file is sent completely",
                hint="send the new file under a new --name",
            )

    def _stat(self) -> os.stat_result:
        return os.fstat((self._packed or self._file).fileno())

    def close(self) -> None:
        """Standard input stays open."""
        if self.path != STDIN:
            self._file.close()
            if self._packed is not None:
                self._packed.close()


class RowSource:
    """Rows of one file in one format."""

    def __init__(self, source: ByteSource, format_name: str) -> None:
        assert format_name in FORMATS, format_name
        self.source = source
        parsers: dict[str, Callable[[], _Format]] = {"lines": _Lines, "csv": _Csv, "jsonl": _Jsonl}
        self._parse = parsers[format_name]()
        self._tail = b""
        self._line = 0  # whole lines taken so far
        self._ended = False

    @property
    def field_names(self) -> list[str] | None:
        return self._parse.field_names

    def next_rows(self) -> Rows:
        """Rows that can be read now, perhaps none; call again unless `ended`."""
        rows = Rows()
        try:
            self._take(rows)
        except OnceMQError as error:
            rows.error = error
            rows.ended = True
        except UnicodeDecodeError as error:
            rows.error = BadInput(f"line {self._parse.line}: not UTF-8: {error.reason}")
            rows.ended = True
        return rows

    def _take(self, rows: Rows) -> None:
        try:
            data = self.source.read()
        except BadInput as error:
            raise BadInput(f"after line {self._line}: {error.reason}") from None
        if self._line == 0 and not self._tail:
            data = data.removeprefix(_BOM)
        if data:
            lines = (self._tail + data).split(b"\n")
            self._tail = lines.pop()
            self._add(lines, rows)
            if len(self._tail) > MESSAGE_BYTES_MAX:
                raise BadInput(f"line {self._line + 1} is longer than {MESSAGE_BYTES_MAX} bytes")
        elif self.source.follow:
            self.source.check_same()
            rows.waiting = True
        else:
            last, self._tail = self._tail, b""
            if last:
                self._add([last], rows)
            self._parse.finish(rows)
            rows.ended = True

    def _add(self, lines: list[bytes], rows: Rows) -> None:
        first = self._line + 1
        self._line += len(lines)
        if lines and max(map(len, lines)) > MESSAGE_BYTES_MAX:
            long = next(i for i, line in enumerate(lines) if len(line) > MESSAGE_BYTES_MAX)
            self._parse.add(lines[:long], first, rows)
            raise BadInput(f"line {first + long} is longer than {MESSAGE_BYTES_MAX} bytes")
        self._parse.add(lines, first, rows)


class _Format(abc.ABC):
    """Turns whole lines into rows."""

    def __init__(self) -> None:
        self.line = 0  # the line being parsed, for errors
        self.field_names: list[str] | None = None

    @abc.abstractmethod
    def add(self, lines: list[bytes], first: int, rows: Rows) -> None:
        """`first` is the number of the first line."""

    def finish(self, rows: Rows) -> None:
        """Parse what only the end of the file completes."""


class _Lines(_Format):
    def add(self, lines: list[bytes], first: int, rows: Rows) -> None:
        for number, line in enumerate(lines, first):
            self.line = number
            rows.values.append(line.removesuffix(b"\r").decode())
            rows.numbers.append(number)


class _Jsonl(_Format):
    def add(self, lines: list[bytes], first: int, rows: Rows) -> None:
        for number, line in enumerate(lines, first):
            self.line = number
            text = line.decode()
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"line {number}: not JSON: {error}") from None
            if not isinstance(value, dict):
                raise BadInput(f"line {number}: expected a JSON object, not {text[:40]!r}")
            rows.values.append(value)
            rows.numbers.append(number)


class _NeedMoreError(Exception):
    """A quoted field goes on beyond the lines at hand."""


class _Csv(_Format):
    """Rows as maps from the names in the first row to text.

    A quoted field may hold line ends. If the lines at hand end inside one, those of the unfinished
    row are kept and parsed again, together with what comes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[tuple[int, str]] = deque()
        self._row: list[tuple[int, str]] = []  # lines of the row being parsed
        self._final = False
        self._reader = csv.reader(self._feed())

    def _feed(self) -> Iterator[str]:
        return iter(self._next_line, None)

    def _next_line(self) -> str | None:
        if not self._lines:
            if self._final:
                if self._row:
                    raise BadInput(f"line {self._row[0][0]}: a quoted field does not end")
                return None
            raise _NeedMoreError
        line = self._lines.popleft()
        self._row.append(line)
        return line[1]

    def add(self, lines: list[bytes], first: int, rows: Rows) -> None:
        for number, line in enumerate(lines, first):
            self.line = number
            try:
                text = line.decode() + "\n"
            except UnicodeDecodeError:
                self._parse(rows)
                raise
            self._lines.append((number, text))
        self._parse(rows)

    def finish(self, rows: Rows) -> None:
        self._final = True
        if self._lines:
            self._parse(rows)

    def _parse(self, rows: Rows) -> None:
        while True:
            self._row.clear()
            try:
                row = next(self._reader, None)
            except _NeedMoreError:
                self._lines.extendleft(reversed(self._row))
                if sum(len(text) for _, text in self._row) > MESSAGE_BYTES_MAX:
                    raise BadInput(
                        f"line {self._row[0][0]}: a quoted field does not end "
                        f"within {MESSAGE_BYTES_MAX} bytes"
                    ) from None
                return
            except csv.Error as error:
                raise BadInput(f"line {self._row[0][0]}: {error}") from None
            if row is None:
                return
            if row:
                self._add_row(row, self._row[0][0], rows)

    def _add_row(self, row: list[str], number: int, rows: Rows) -> None:
        if self.field_names is None:
            if len(set(row)) != len(row):
                raise BadInput(f"line {number}: two columns have the same name")
            self.field_names = row
            return
        if len(row) != len(self.field_names):
            raise BadInput(
                f"line {number}: {len(row)} fields, but the header has {len(self.field_names)}"
            )
        rows.values.append(dict(zip(self.field_names, row, strict=True)))
        rows.numbers.append(number)


def open_rows(path: str, format_name: str, *, follow: bool = False) -> RowSource:
    """Raises OSError, BadInput (following a gzip file or standard input)."""
    if follow and path.endswith(".gz"):
        raise BadInput(
            "--follow does not work with a gzip file", hint="follow the uncompressed file"
        )
    return RowSource(ByteSource(path, follow=follow and path != STDIN), format_name)
