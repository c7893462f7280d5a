"""Structured events of actors inside a user's program: they go to the logger `oncemq`."""

from __future__ import annotations

import logging
from typing import Any

from ..runtime.diagnostics import log
from ..runtime.events import NullEvents


class LibraryEvents(NullEvents):
    """As NullEvents, but warnings for what the user should hear: no broker, another topic."""

    def emit(self, event: str, **fields: Any) -> None:
        """Log `event` at its level; what people should act on as a sentence."""
        if event == "client.waiting":
            endpoint = fields.get("endpoint")
            log(logging.WARNING, "no broker answers at %s; still retrying", endpoint)
        elif event == "topic.differs":
            log(
                logging.WARNING,
                "topic %s has %s; the program declares %s. To change it: oncemq topics set",
                *(fields.get(name) for name in ("topic", "there", "declared")),
            )
        else:
            super().emit(event, **fields)
