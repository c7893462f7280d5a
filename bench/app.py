"""The consumer of the pipeline: a handler that does what the naive one does."""

from __future__ import annotations

from oncemq import App, Message, Tx

TOPIC = "bench"

app = App()


class _Seen:
    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0


seen = _Seen()


@app.consumer(TOPIC, group="bench")
def look(message: Message, tx: Tx) -> None:
    """Look at the message."""
    del tx
    seen.messages += 1
    seen.bytes += len(message.value)
