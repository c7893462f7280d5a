"""docs/STORAGE.md is the contract of the files: its tables of records and parts say what is there."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.protocol import Join
from oncemq.records import Committed, LedgerStarted, Output
from tests.core.broker.help import World

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "STORAGE.md").read_text("utf-8")
SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}


def section(number: str) -> str:
    return PAGE.split(f"\n### {number} ", 1)[1].split("\n##", 1)[0]


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose head begins with `head`."""
    lines = text.split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def fields_of(part: str) -> list[str]:
    found = [row[1] for row in rows(section("3.6"), "part | value") if row[0] == part]
    found += [row[1] for row in LEDGER_ROWS if row[0] == part]
    (text,) = found
    return re.findall(r"`(\w+)`", text.split(";")[0])


LEDGER_ROWS = rows(section("3.6").split("A ledger's:", 1)[1], "part | value")


def test_records_have_the_numbers_and_fields_of_the_page() -> None:
    """Types, names, and the order of fields in their arrays."""
    told = {
        int(row[0]): (row[1], re.findall(r"`(\w+)`", row[3]))
        for row in rows(section("3.5"), "type | record")
    }
    simple = record_codec._SIMPLE
    assert told == {
        **{number: (kind.__name__, list(names)) for number, (kind, names) in simple.items()},
        record_codec.BATCH_STORED: ("BatchStored", []),
        record_codec.COMMITTED: (
            "Committed",
            ["epoch", "commit_no", "inputs", "ranges", "fingerprints", "state", "outputs", "acked"],
        ),
    }


def test_the_meta_of_a_stored_batch_is_laid_out_as_the_page_says() -> None:
    """Offsets and sizes, without gaps."""
    *fixed, rest = rows(section("3.5"), "offset | bytes")
    layout = struct.Struct("<" + "".join(SIZES[int(row[1])] for row in fixed))
    ends = [int(row[0]) + int(row[1]) for row in fixed]
    assert [int(row[0]) for row in fixed] == [0, *ends[:-1]]
    assert int(rest[0]) == ends[-1] == layout.size == record_codec._STORED.size
    signed = {"q": "Q"}
    real = record_codec._STORED.format
    assert layout.format == "".join(signed.get(letter, letter) for letter in real)


@pytest.fixture
def broker_parts() -> dict[str, Any]:
    world = World()
    world.hello()
    world.topic()
    world.producer()
    world.send(0, "a", "b")
    world.send_ids(0, {"x": "1", "y": "2"})
    join = Join(
        world.n, "g", "t", 0, b"i" * 16, b"l" * 16, b"", b"", 0, 0, False, "host", "/path", "label"
    )  # fmt: skip
    world.ask(join)
    parts = world.core.snapshot().whole()
    return {name: wire.unpack_plain(wire.pack_plain(part)) for name, part in parts.items()}


def test_the_parts_of_a_broker_are_those_of_the_page(broker_parts: dict[str, Any]) -> None:
    """Every part has a row, and as many fields as the row names."""
    told = {row[0].strip("`") for row in rows(section("3.6"), "part | value")}
    shapes = {re.sub(r"\d+", "*", name) for name in broker_parts}
    shapes |= {"run-*", "run-*-*"}  # there is one only once a table of ids was full
    shapes.add("kept-*-*")  # where most of the log is deleted
    assert shapes == {
        re.sub(r"\b(N|FROM|TO|KIND)\b", "*", name) for name in told if " " not in name
    }
    assert len(broker_parts["broker"]) == len(fields_of("`broker`"))
    (topic,) = broker_parts["topics"]
    assert len(topic) == len(fields_of("`topics`"))
    assert topic[0] == "t"
    assert topic[-3:] == [[None, None, None, False], [0, 2], [0, 0, 0, [], []]]
    (end,) = topic[-4]
    assert dict(zip(fields_of("an entry of `ends`"), end, strict=True))["end_offset"] == 4
    names = fields_of("`producers`")
    by_name = {its[0]: its for its in broker_parts["producers"]}
    assert {len(its) for its in by_name.values()} == {len(names)}
    (row,) = by_name["p"][names.index("rows")]
    assert dict(zip(fields_of("a row of `rows`"), row, strict=True))["next_sequence"] == 2
    (grant,) = broker_parts["groups"]
    assert len(grant) == len(record_codec._SIMPLE[record_codec.GROUP_GRANTED][1])
    (its,) = dict(zip(fields_of("`ids`"), broker_parts["ids"], strict=True))["sets"]
    ids = dict(zip(fields_of("a set of `sets`"), its, strict=True))
    assert (ids["kind"], ids["runs"], ids["topics"]) == (0, [], [0])
    words = struct.unpack("<8Q", ids["recent"])
    assert words[4:6] == (2, 3)  # the places of the two ids: partition 0, offsets 2 and 3
    (offsets,) = (part for name, part in broker_parts.items() if name.startswith("offsets-"))
    assert all(len(entry) == 4 for _, _, entries in offsets for entry in entries)
    assert [len(its) for its in offsets] == [len(fields_of("`offsets-FROM-TO`"))]


def test_the_parts_of_a_ledger_are_those_of_the_page() -> None:
    """Every part has a row, and the fields that the row names."""
    ledger = Ledger()
    ledger.apply(LedgerStarted("g", "t", 0, b"topic", b"log", b"log", 0), 0)
    output = Output("out", 0, 0, 1, b"raw", 7)
    ledger.apply(
        Committed(1, 1, [(b"topic", 2)], [("p", 0, 1)], b"f" * 16, {"k": b"v"}, [output]), 1
    )
    parts = ledger.snapshot().parts
    assert {row[0].strip("`") for row in LEDGER_ROWS} == set(parts) | {"run-N"}
    (row,) = (row for row in LEDGER_ROWS if row[0] == "`ledger`")
    assert set(parts["ledger"]) == set(re.findall(r"`(\w+)`", row[1]))
    assert parts["state"] == {"k": b"v"}
    (kept,) = parts["outputs"]
    names = fields_of("`outputs`")
    assert dict(zip(names, kept, strict=True)) == {name: getattr(output, name) for name in names}
    assert len(parts["processed"]) == len(fields_of("`processed`"))
    assert parts["processed"][-1] == b"f" * 16
