"""A consumer whose commits are large: each message changes 5 KB of state."""

from __future__ import annotations

from oncemq import App, Message, Tx

KEYS = 40
app = App()


@app.consumer("t", group="sizes")
def note(message: Message, tx: Tx) -> None:
    """Count, and keep something long."""
    tx.state["count"] = (tx.state.get("count") or 0) + 1
    tx.state[f"long-{message.offset % KEYS}"] = "x" * 5_000
