"""Whether a consumer that could go on waits for a timer: the mark of a missing wake-up.

Such a consumer is slow and not stuck, so no budget for the end of a run finds it for sure.
"""

from __future__ import annotations

from ...core.consumer.work import HandlerDone, RunHandler
from ..trace import Violation

# Between two handler runs lie a sync and some messages; timers that ask or send again are longer.
PAUSE_MAX_MS = 200


class Pauses:
    """Looks at the time from one handler run of a process to the next."""

    def __init__(self) -> None:
        # The offset that may be handled, and since when; None: a run is out, nothing is there, or
        # a failed message pauses.
        self._free: tuple[int, int] | None = None

    def answered(self, run: RunHandler, done: HandlerDone, stored: int, now_ms: int) -> None:
        """`stored`: how many messages the topic has when the run is over."""
        following = run.window.split(done.handled)[0].next_offset
        if done.failure is None and not run.private and following < stored:
            self._free = (following, now_ms)

    def called(self, run: RunHandler, now_ms: int, *, at_rest: bool, refused_ms: int) -> None:
        """A run begins. Raises Violation if that is late, unless faults may be the cause.

        `refused_ms`: how long a consumer waits whose fetch was one too many for the broker.
        """
        free, self._free = self._free, None
        if free is None or run.private or run.first_offset != free[0]:
            return
        if at_rest and now_ms - free[1] > PAUSE_MAX_MS + refused_ms:
            raise Violation("idle", f"nothing ran at {free[0]} for {now_ms - free[1]} ms")
