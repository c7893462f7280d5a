"""Log records as bytes."""

from __future__ import annotations

import msgpack
import pytest

from oncemq.codec import batch, records
from oncemq.errors import Malformed, UnsupportedFormat
from oncemq.history import Place
from oncemq.records import (
    AttemptMarked,
    BatchStored,
    Committed,
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    HorizonMarked,
    LedgerEnded,
    LedgerReplaced,
    LedgerStarted,
    Output,
    Parked,
    ProducerGranted,
    ProducerRetired,
    Renumbered,
    Skipped,
    TopicConfigured,
    TopicCreated,
)

BATCH = batch.build([b"a", b"b"], encodings=0)

EVERY_KIND = [
    TopicCreated("t", b"1" * 16, 3, 5),
    ProducerGranted("p", 2, b"n" * 16, "host:1", 6),
    BatchStored(1, 0, 5, 2, 7, "p", 2, 9, b"", b"d" * 16, BATCH.raw, BATCH.crc, 2),
    GroupGranted("g", "t", 0, 4, b"i" * 16, b"l" * 16, 10, "host", "/p", "host:2", 8),
    LedgerStarted("g", "t", 0, b"1" * 16, b"2" * 16, b"3" * 16, 0),
    Committed(
        4,
        1,
        [(b"1" * 16, 11)],
        [("p", 9, 2)],
        b"f" * 32,
        {"a": b"\x01", "gone": None},
        [Output("o", 0, 0, 2, BATCH.raw, BATCH.crc)],
        [("o", 0, 0)],
    ),
    Committed(
        4,
        2,
        [(b"1" * 16, 12)],
        [],
        b"",
        {},
        parked=[
            Parked(b"1" * 16, 11, "crashed", 7),
            Parked(b"1" * 16, 12, "raised", 6, "KeyError"),
        ],
        skipped=[Skipped(b"1" * 16, 3, 9, "seek")],
    ),
    AttemptMarked(4, b"1" * 16, 12, 2, returned=False),
    LedgerEnded(4),
    GroupRewound("g", "t", 0, 4, 3, 9),
    LedgerReplaced("g", "t", 0, 5, b"l" * 16, 10),
    HorizonMarked(1, 5, 3, 13),
    ProducerRetired("p", 14),
    TopicConfigured(1, 86_400_000, None, 10**9, True, 12),
    Committed(5, 2, [(b"1" * 16, 3)], [], b"", {}, skipped=[Skipped(b"1" * 16, 11, 3, "by order")]),
    HistoryBegun(b"m" * 16, 7, 11),
    GroupGranted(
        "g", "t", 0, 4, b"i" * 16, b"l" * 16, 10, "h", "/p", "h:2", 8, Place(b"m" * 16, 99)
    ),
    Committed(5, 3, [(b"1" * 16, 4)], [], b"", {}, seen=Place(b"m" * 16, 99)),
    Committed(
        5,
        4,
        [],
        [],
        b"",
        {},
        seen=Place(b"n" * 16, 7),
        renumbered=[Renumbered("o", 0, 3)],
        accepted=Place(b"m" * 16, 99),
    ),
]


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda r: type(r).__name__)
def test_every_record_comes_back_as_it_was_written(record):
    """Replay sees exactly what the live run applied."""
    number, meta, body, crc = records.encode(record)

    assert records.decode(number, meta, body, crc or 0) == record


def test_types_have_the_numbers_that_are_on_disk():
    """A record type's number never changes: old logs name it."""
    assert [records.encode(record)[0] for record in EVERY_KIND] == [
        1, 2, 3, 4, 10, 11, 12, 13, 16, 5, 8, 17, 18, 9, 12, 6, 7, 12, 12,
    ]  # fmt: skip


def test_columns_are_parsed_only_where_wanted():
    """Reading for a fetch does not pay for columns; replay does."""
    number, meta, body, crc = records.encode(EVERY_KIND[2])

    assert records.decode(number, meta, body, crc).batch is None
    assert records.decode(number, meta, body, crc, columns=True).batch.count == 2


@pytest.mark.parametrize(
    ("number", "meta", "body"),
    [
        (99, b"", b"\x90"),
        (1, b"", b"\x90"),
        (1, b"", b"\xc1"),
        (3, b"short", b""),
        (11, b"", b"\x93\x01\x01\x01"),
        (12, b"", msgpack.packb([1, 1, [], [], b"", {}, [], [], {"seen": []}])),
        (7, b"", msgpack.packb(["g", "t", 0])),
    ],
)
def test_unknown_bytes_are_malformed(number, meta, body):
    """A record that no known version wrote is refused, never guessed at."""
    with pytest.raises(Malformed):
        records.decode(number, meta, body, 0)


def test_a_commit_with_parts_of_a_newer_version_is_refused():
    """An unknown part of a commit may matter: decoding refuses it."""
    fields = (4, 1, [], [], b"", {}, [], [], {"magic": [1]})

    with pytest.raises(UnsupportedFormat, match="magic"):
        records.decode(12, b"", msgpack.packb(fields), 0)
