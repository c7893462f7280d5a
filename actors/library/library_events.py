"""Structured events of actors inside a user's program: they go to the logger `oncemq`."""

from __future__ import annotations

import logging
from typing import Any

from ..runtime.diagnostics import log
from ..runtime.events import NullEvents


class LibraryEvents(NullEvents):
    """As NullEvents, but a broker that does not answer is a warning: the user should hear it."""

    def emit(self, event: str, **fields: Any) -> None:
        """Log `event` at its level; `client.waiting` as a sentence for people."""
        if event == "client.waiting":
            endpoint = fields.get("endpoint")
            log(logging.WARNING, "no broker answers at %s; still retrying", endpoint)
        else:
            super().emit(event, **fields)
