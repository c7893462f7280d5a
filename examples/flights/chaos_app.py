"""The application of chaos.py: as app.py, and it passes on a third of all flights.

More outputs mean that more kills fall between a commit and what it lets go.
"""

from __future__ import annotations

from examples.flights.app import add_flight, count_cancelled
from oncemq import App, Message, Tx

app = App()
app.consumer("cancelled", group="cancelled")(count_cancelled)


@app.consumer("flights", group="totals")
def add_and_pass_on(flight: Message, tx: Tx) -> None:
    """Add the flight to its carrier's totals; pass it on if it leaves from JFK."""
    add_flight(flight, tx)
    row = flight.value
    if row["origin"] == "JFK":
        tx.send("jfk", {"carrier": row["carrier"], "flight": row["flight"]})


@app.consumer("jfk", group="jfk")
def count_from_jfk(flight: Message, tx: Tx) -> None:
    """Count flights from JFK by carrier."""
    carrier = flight.value["carrier"]
    tx.state[carrier] = tx.state.get(carrier, 0) + 1
