"""The consumer of the pipeline: a handler that does what the naive one does."""

from __future__ import annotations

from oncemq import App, Message, Tx

TOPIC = "bench"

app = App()


class _Seen:
    messages = 0
    bytes = 0


@app.consumer(TOPIC, group="bench")
def look(message: Message, tx: Tx) -> None:
    """Look at the message."""
    del tx
    _Seen.messages += 1
    _Seen.bytes += len(message.value)
