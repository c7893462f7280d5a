"""What a consumer process says to whoever started it."""

from __future__ import annotations

from ...errors import OnceMQError
from .tally import Summary


class NotDrained(OnceMQError):
    """The time for ending was over before all was committed and acknowledged."""

    code = "not_drained"
    default_hint = "uncommitted messages are handled again at the next start"


class Watcher:
    """What a consumer process tells its owner, from the I/O thread. Does nothing by itself."""

    def standby(self, text: str) -> None:
        """Another member has a partition; this process waits for it."""

    def silence(self, endpoint: str) -> None:
        """Once each time that no broker has answered for two seconds; the process keeps retrying."""

    def sink_away(self, text: str) -> None:
        """The database of a consumer is not available or locked; the consumer keeps retrying. Told for each attempt."""

    def effect_held(self, text: str) -> None:
        """A message waits for an operator's decision on an effect; other partitions go on."""

    def progress(self, summary: Summary) -> None:
        """About five times a second."""

    def abandon(self, summary: Summary, error: BaseException) -> None:
        """A handler did not return within the time for ending: end the process, nobody else can."""
