"""Files as rows: formats, bounds, damage, growth."""

from __future__ import annotations

import csv
import gzip
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import BadInput, InputChanged
from oncemq.library.files import sources
from oncemq.library.files.sources import ByteSource, Rows, RowSource, open_rows
from oncemq.limits import MESSAGE_BYTES_MAX

Follow = Callable[..., RowSource]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def read_all(path: str, format_name: str) -> Rows:
    source = open_rows(path, format_name)
    found = Rows()
    while not found.ended:
        rows = source.next_rows()
        found.values += rows.values
        found.numbers += rows.numbers
        found.error, found.ended = rows.error, rows.ended
    source.source.close()
    return found


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a few bytes at a time, so that every boundary is met."""
    monkeypatch.setattr(sources, "READ_BYTES", 7)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\n\nx\n", ["", "", "x"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        ("grün\n".encode(), ["grün"]),
    ],
)
def test_lines(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    """Each line is a text without its line end; empty ones count; the last may lack the end."""
    rows = read_all(write(tmp_path / "f", data), "lines")
    assert rows.values == expected
    assert rows.numbers == list(range(1, len(expected) + 1))
    assert rows.error is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a,b\n", []),
        (b"a,b\n1,2\n3,4", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]),
        (b'a,b\r\n"1,x","say ""hi"""\r\n', [{"a": "1,x", "b": 'say "hi"'}]),
        (b'a,b\n"two\nlines",2\n3,4\n', [{"a": "two\nlines", "b": "2"}, {"a": "3", "b": "4"}]),
        (b'a,b\n"1\n\n2",\n', [{"a": "1\n\n2", "b": ""}]),
        (b"a\n\n1\n", [{"a": "1"}]),
        (b"\xef\xbb\xbfa\n1\n", [{"a": "1"}]),
    ],
)
def test_csv(tmp_path: Path, data: bytes, expected: list[dict[str, str]]) -> None:
    """Rows are maps from the names in the header to text; quotes may hold commas and lines."""
    rows = read_all(write(tmp_path / "f.csv", data), "csv")
    assert rows.values == expected
    assert rows.error is None


@pytest.mark.usefixtures("small_reads")
def test_reads_may_end_anywhere(tmp_path: Path) -> None:
    """Where a read ends makes no difference, inside quotes and multi-byte characters too."""
    data = 'name,text\n"ä\nö, ""ü""",x\n1,"2"\n'.encode() * 3
    rows = read_all(write(tmp_path / "f.csv", data), "csv")
    header = {"name": "name", "text": "text"}
    row = {"name": 'ä\nö, "ü"', "text": "x"}
    last = {"name": "1", "text": "2"}
    assert rows.values == [row, last, header, row, last, header, row, last]
    assert rows.numbers == [2, 4, 5, 6, 8, 9, 10, 12]


def test_jsonl(tmp_path: Path) -> None:
    """Each line is a JSON object; blank lines are passed over; numbers stay line numbers."""
    rows = read_all(write(tmp_path / "f", b'{"a": 1}\n\n{"b": [null, "x"]}\n'), "jsonl")
    assert rows.values == [{"a": 1}, {"b": [None, "x"]}]
    assert rows.numbers == [1, 3]


@pytest.mark.parametrize(
    ("format_name", "data", "good", "line"),
    [
        ("lines", b"a\n\xff\nb\n", 1, "line 2"),
        ("csv", b"a\n1\n\xff\n2\n", 1, "line 3"),
        ("csv", b"a,b\n1,2\n3\n4,5\n", 1, "line 3"),
        ("csv", b"a,b\n1,2\n3,4,5\n", 1, "line 3"),
        ("csv", b"a,a\n1,2\n", 0, "line 1"),
        ("csv", b'a,b\n1,2\n3,"4\n', 1, "line 3"),
        ("csv", b"a\n1\n" + b"x" * 200_000 + b"\n", 1, "line 3"),
        ("jsonl", b'{"a":1}\n[1]\n', 1, "line 2"),
        ("jsonl", b'{"a":1}\n{"a":\n', 1, "line 2"),
        ("jsonl", b'{"a":1}\n' + b"[" * 100_000 + b"\n", 1, "line 2"),
        ("jsonl", b'{"a":1}\n{"a":"\xff"}\n', 1, "line 2"),
        ("lines", b"a\n" + b"x" * (MESSAGE_BYTES_MAX + 1) + b"\nb\n", 1, "line 2"),
        ("lines", b"a\n" + b"x" * (3 * MESSAGE_BYTES_MAX), 1, "line 2"),
        ("csv", b"a,b\n1,2\n" + b'"' + b"x\n" * MESSAGE_BYTES_MAX, 1, "line 3"),
    ],
)
def test_what_cannot_be_read_names_its_line(
    tmp_path: Path, format_name: str, data: bytes, good: int, line: str
) -> None:
    """All rows before a bad line come first; the error names the line and nothing follows."""
    rows = read_all(write(tmp_path / "f", data), format_name)
    assert len(rows.values) == good
    assert isinstance(rows.error, BadInput)
    assert line in rows.error.reason


def test_an_endless_line_is_bounded(tmp_path: Path) -> None:
    """A line without end is refused when it passes the limit, not when the file ends."""
    path = write(tmp_path / "f", b"a\n")
    os.truncate(path, 50 * MESSAGE_BYTES_MAX)
    source = open_rows(path, "lines")
    while not (rows := source.next_rows()).ended:
        assert source.source.position < 2 * MESSAGE_BYTES_MAX
    source.source.close()
    assert isinstance(rows.error, BadInput)


def test_rows_before_a_long_line_of_one_read_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is read at once, all rows before the over-long line come first."""
    monkeypatch.setattr(sources, "READ_BYTES", 10 * MESSAGE_BYTES_MAX)
    data = b"a\nb\n" + b"x" * (MESSAGE_BYTES_MAX + 1) + b"\nc\n"
    rows = read_all(write(tmp_path / "f", data), "lines")
    assert rows.values == ["a", "b"]
    assert rows.error is not None
    assert "line 3" in rows.error.reason


def test_a_quote_that_never_ends_is_bounded(tmp_path: Path) -> None:
    """A row that goes on and on is refused at the limit of a message, not kept in memory."""
    before = csv.field_size_limit(10 * MESSAGE_BYTES_MAX)
    try:
        data = b"a,b\n1,2\n" + b'"' + b"x\n" * MESSAGE_BYTES_MAX
        rows = read_all(write(tmp_path / "f", data), "csv")
    finally:
        csv.field_size_limit(before)
    assert len(rows.values) == 1
    assert rows.error is not None
    assert "line 3: a quoted field does not end" in rows.error.reason


def test_gzip_is_read_as_it_is(tmp_path: Path) -> None:
    """A .gz file gives the rows that are packed in it."""
    path = write(tmp_path / "f.csv.gz", gzip.compress(b"a\n1\n2\n"))
    assert read_all(path, "csv").values == [{"a": "1"}, {"a": "2"}]


def test_a_damaged_gzip_is_told(tmp_path: Path) -> None:
    """A gzip file that is cut or is none ends with an error after its readable lines."""
    packed = gzip.compress(random.Random(1).randbytes(100).hex().encode() + b"\nx\n")
    cut = read_all(write(tmp_path / "cut.gz", packed[:-10]), "lines")
    assert isinstance(cut.error, BadInput)
    none = read_all(write(tmp_path / "none.gz", b"plain text\n"), "lines")
    assert isinstance(none.error, BadInput)
    assert none.values == []


@pytest.mark.parametrize("members", [1, 2])
def test_a_gzip_that_is_cut_anywhere_is_told(tmp_path: Path, members: int) -> None:
    """Of 0 bytes too: an upload that broke. Only between two members a cut cannot be seen."""
    one = gzip.compress(b"x\n" * 30)
    packed = one * members
    for end in range(len(packed)):
        found = read_all(write(tmp_path / "cut.gz", packed[:end]), "lines")
        if end == len(one):
            assert (len(found.values), found.error) == (30, None)
            continue
        assert isinstance(found.error, BadInput), end
        assert "is not a complete gzip file" in found.error.reason


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A read takes a bounded piece of the file, however long it is."""
    path = write(tmp_path / "f", b"0123456789\n" * 100_000)
    source = open_rows(path, "lines")
    rows = source.next_rows()
    source.source.close()
    assert 0 < len(rows.values) <= sources.READ_BYTES // 11 + 1


class TestFollow:
    """A file that grows."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        return write(tmp_path / "f", b"a\nb")

    @pytest.fixture
    def follow(self) -> Iterator[Callable[..., RowSource]]:
        opened = []

        def follow(path: str, format_name: str = "lines") -> RowSource:
            opened.append(open_rows(path, format_name, follow=True))
            return opened[-1]

        yield follow
        for source in opened:
            source.source.close()

    def append(self, path: str, data: bytes) -> None:
        with open(path, "ab") as file:
            file.write(data)

    def test_a_line_without_its_end_waits(self, path: str, follow: Follow) -> None:
        """The last line is not given before its newline is there."""
        source = follow(path)
        assert source.next_rows().values == ["a"]
        nothing = source.next_rows()
        assert (nothing.values, nothing.ended) == ([], False)
        self.append(path, b"c\nd")
        assert source.next_rows().values == ["bc"]

    def test_a_row_without_its_end_waits(self, path: str, follow: Follow) -> None:
        """A csv row whose quotes are open waits for the rest, however often one looks."""
        write(Path(path), b'x\n"1\n')
        source = follow(path, "csv")
        assert source.next_rows().values == []
        assert source.next_rows().values == []
        self.append(path, b'2"\n3\n')
        assert source.next_rows().values == [{"x": "1\n2"}, {"x": "3"}]

    def test_a_truncated_file_is_an_error(self, path: str, follow: Follow) -> None:
        """A file that is shorter than what was read of it is another file."""
        source = follow(path)
        source.next_rows()
        os.truncate(path, 0)
        rows = source.next_rows()
        assert isinstance(rows.error, InputChanged)
        assert "truncated" in rows.error.reason

    @pytest.mark.parametrize("successor", [True, False])
    def test_a_rotated_file_is_an_error_after_its_end(
        self, path: str, successor: Any, follow: Follow
    ) -> None:
        """A file that was renamed or removed is read to its end; then the follower stops."""
        source = follow(path)
        source.next_rows()
        self.append(path, b"c\n")
        os.rename(path, path + ".1")
        if successor:
            write(Path(path), b"new\n")
        assert source.next_rows().values == ["bc"]
        rows = source.next_rows()
        assert isinstance(rows.error, InputChanged)
        assert "rotated" in rows.error.reason

    def test_a_gzip_file_cannot_be_followed(self, tmp_path: Path) -> None:
        """Following a .gz is refused at once."""
        with pytest.raises(BadInput):
            open_rows(write(tmp_path / "f.gz", b""), "lines", follow=True)


def test_standard_input_tells_whether_it_would_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe with nothing in it is not ready; with something, or closed, it is."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream:
        monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": stream})())
        source = ByteSource(sources.STDIN)
        assert source.total is None
        assert not source.ready(0)
        os.write(write_end, b"x\n")
        assert source.ready(0)
        assert source.read() == b"x\n"
        os.close(write_end)
        assert source.ready(0)
        assert source.read() == b""
