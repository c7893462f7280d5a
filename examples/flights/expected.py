"""What must come out, computed from the rows themselves without any queue."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FLIGHTS = HERE / "flights-2013-01.csv.gz"
AIRLINES = HERE / "airlines.csv"
ID_FIELDS = ("year", "month", "day", "carrier", "flight", "origin", "sched_dep_time")
MISSING = frozenset({"NA", ""})

Row = dict[str, str]
Totals = dict[str, dict[str, int]]


def lines() -> list[str]:
    """Return the file as lines: the header first, each with its newline."""
    with gzip.open(FLIGHTS, "rt", encoding="utf-8", newline="") as stream:
        return stream.readlines()


def rows() -> Iterator[Row]:
    """Yield the flights as the producer sends them."""
    yield from csv.DictReader(lines())


def airlines() -> dict[str, str]:
    """Return the name of each carrier."""
    with AIRLINES.open(encoding="utf-8", newline="") as stream:
        return {row["carrier"]: row["name"] for row in csv.DictReader(stream)}


def totals_of(flights: Iterable[Row]) -> Totals:
    """Return what group `totals` must hold after these flights."""
    totals: Totals = {}
    for row in flights:
        entry = totals.setdefault(
            row["carrier"], {"flights": 0, "delay_minutes": 0, "cancelled": 0}
        )
        entry["flights"] += 1
        if row["arr_delay"] not in MISSING:
            entry["delay_minutes"] += int(row["arr_delay"])
        entry["cancelled"] += row["dep_time"] in MISSING
    return totals


def cancelled_of(totals: Totals) -> dict[str, int]:
    """Return what group `cancelled` must hold when group `totals` holds `totals`."""
    return {name: entry["cancelled"] for name, entry in totals.items() if entry["cancelled"]}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for each carrier that is not as it must be; none if all is exact."""
    return [
        f"{carrier}: expected {expected.get(carrier)}, found {found.get(carrier)}"
        for carrier in sorted(expected.keys() | found.keys())
        if expected.get(carrier) != found.get(carrier)
    ]
