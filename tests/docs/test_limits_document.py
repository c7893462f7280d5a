"""docs/LIMITS.md says of every bound of `Limits` what it is, and nothing else."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import numpy as np

from oncemq.dedup.table import Table
from oncemq.limits import LIMITS, Limits

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "LIMITS.md").read_text("utf-8")
UNITS = {"": 1, " ms": 1, " KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30}


def bounds_of_the_page() -> dict[str, int]:
    """Each row that begins with the name of a bound, and its value."""
    found: dict[str, int] = {}
    for line in PAGE.splitlines():
        if row := re.match(r"\| `(\w+)` \| ([\d,]+)( \w+)? \|", line):
            name, number, unit = row.groups(default="")
            assert name not in found, f"{name} is there twice"
            found[name] = int(number.replace(",", "")) * UNITS[unit]
    return found


def test_the_page_has_every_bound_with_its_value() -> None:
    """A bound that is added or changed is changed here too."""
    assert bounds_of_the_page() == {
        field.name: getattr(LIMITS, field.name) for field in fields(Limits)
    }


def test_every_bound_says_what_happens_there() -> None:
    """No cell of the last column is empty."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert rows
    assert all(re.search(r"\w.* \|$", row.rsplit(" | ", 1)[1]) for row in rows)


def test_a_table_of_ids_costs_what_the_page_says() -> None:
    """Columns and slots of a full table, by entry."""
    (said,) = re.findall(r"\| `id_table_ids` \| [\d,]+ \| (\d+) \|", PAGE)
    table = Table(4, 1024)
    table.add(np.arange(4 * 1024, dtype=np.uint64).reshape(4, 1024))
    held = table._columns.nbytes + table._slots.nbytes
    assert held / 1024 <= int(said)
