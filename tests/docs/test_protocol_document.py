"""docs/PROTOCOL.md is the contract: its tables say what the code does."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from oncemq import errors, ids
from oncemq.protocol import KINDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text("utf-8")


def rows(head: str) -> list[list[str]]:
    """The cells of the table whose head begins with `head`."""
    lines = PAGE.split(f"| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_messages_have_the_numbers_and_fields_of_the_page():
    """Kinds, names and the order of fields on the wire."""
    told = {
        int(row[0]): (row[1], re.findall(r"`(\w+)`", row[2]))
        for row in rows("kind | request") + rows("kind | answer")
    }
    assert told == {
        number: (kind.__name__, list(typing.get_type_hints(kind))) for number, kind in KINDS.items()
    }


def parse(cell: str) -> tuple[str, str]:
    kind, _, text = cell.replace("`", "").rpartition(" ")
    return kind, text


@pytest.mark.parametrize("row", rows("key | id"), ids=" ".join)
def test_partitions_are_those_of_the_page(row):
    """The test vectors are frozen: a key stays in its partition for ever."""
    key, explicit, count, partitions, expected = row
    kind, text = parse(explicit)
    tagged = None
    if text:
        tagged = ids.tagged_id(text if kind == "text" else text.encode())
    raw_key = key.strip("`").encode() or None
    assert ids.partition_of(raw_key, tagged, int(count), int(partitions)) == int(expected)


def test_failures_are_retriable_as_the_page_says():
    """A client written from the page retries what may be retried."""
    told = {row[0].strip("`"): row[1] == "yes" for row in rows("code | retriable")}
    assert told == {code: errors.BY_CODE[code].retriable for code in told}
    assert len(told) == 24
