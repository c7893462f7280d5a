"""The base of cores without peers, which decide only about events of their owner."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ...outcome import DiskSpace, Event, Outcome, Recovered


class PeerlessCore(ABC):
    """An actor inside this process, with a log of its own: no messages, no timers.

    A subclass decides in `_decide`, and adds `apply`, `snapshot` and `restore`.
    """

    def __init__(self) -> None:
        self._epoch = 0  # generation of the log; it stands in every record
        self._full = False  # the log has no room for this turn

    @property
    def wake_at_ms(self) -> int | None:
        """Always None: nothing here waits for time."""
        return None

    def step(self, event: Event, now_ms: int) -> Outcome:
        del now_ms
        outcome = Outcome()
        if isinstance(event, Recovered):
            self._epoch = event.generation
        elif isinstance(event, DiskSpace):
            self._full = event.full
        self._decide(event, outcome)
        return outcome

    @abstractmethod
    def _decide(self, event: Event, outcome: Outcome) -> None:
        """Put into `outcome` what follows from an event, or nothing."""
