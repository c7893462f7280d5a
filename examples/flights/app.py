"""Two chained consumers: totals by carrier, and the cancelled flights passed on and counted.

    python consumer.py examples.flights.app:app

The producer sends one row of the file a message: a dict of text, `NA` where a value is missing.
"""

from __future__ import annotations

from oncemq import App, Message, Tx

MISSING = frozenset({"NA", ""})
app = App()


@app.consumer("flights", group="totals")
def add_flight(flight: Message, tx: Tx) -> None:
    """Add a flight to its carrier's totals; a flight that never left goes to `cancelled`."""
    row = flight.value
    totals = tx.state.get(row["carrier"]) or {"flights": 0, "delay_minutes": 0, "cancelled": 0}
    totals["flights"] += 1
    if row["arr_delay"] not in MISSING:
        totals["delay_minutes"] += int(row["arr_delay"])
    if row["dep_time"] in MISSING:
        totals["cancelled"] += 1
        tx.send("cancelled", {"carrier": row["carrier"], "flight": row["flight"]})
    tx.state[row["carrier"]] = totals


@app.consumer("cancelled", group="cancelled")
def count_cancelled(cancelled: Message, tx: Tx) -> None:
    """Count cancelled flights by carrier."""
    carrier = cancelled.value["carrier"]
    tx.state[carrier] = tx.state.get(carrier, 0) + 1
