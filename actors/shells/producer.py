"""A producer: its core behind a transport, turned by its owner.

`library/producing/thread.py` turns it in a thread beside the user's, the file producer and the relay in
their own loop, the simulator between two steps of its world. Nothing here waits except `turn`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..core.client.connection import Reconnect
from ..core.client.producer import (
    Describe,
    Opened,
    ProducerCore,
    Start,
    Submit,
    TopicKnown,
    TopicRefused,
)
from ..core.client.send_window import Settled
from ..driver import Driver
from ..errors import OnceMQError
from ..limits import LIMITS, Limits
from ..outcome import Stop
from ..ports import Clock, Events, Transport


class ClientTransport(Transport, Protocol):
    """A client's socket."""

    def wake(self) -> None:
        """Make a `poll` in another thread return."""

    def reopen(self) -> None:
        """Close and connect anew under a fresh routing id."""

    def close(self) -> None:
        """Close the socket."""


class ProducerShell:
    """One incarnation of a producer. One thread calls all but `wake`."""

    def __init__(
        self,
        name: str,
        *,
        endpoint: str,
        transport: ClientTransport,
        clock: Clock,
        events: Events,
        entropy: Callable[[], bytes],
        label: str,
        limits: Limits = LIMITS,
    ) -> None:
        """`name` "" is an anonymous producer. `close` closes `transport`.

        `endpoint` and `label` tell people where the broker is and who this is; `entropy` draws 16
        random bytes.
        """
        self.core = ProducerCore(
            name,
            incarnation=entropy(),
            label=label,
            endpoint=endpoint,
            entropy=entropy,
            limits=limits,
        )
        self._transport = transport
        self._clock = clock
        self._driver = Driver(self.core, transport, clock, events, perform=self._perform)
        self._driver.post(Start())
        # The answer to InitProducer; for an anonymous producer a formality.
        self.opened: Opened | None = None
        self.topics: dict[str, TopicKnown] = {}
        # Topics that were asked for. Invariant: asked for once, until refused.
        self._asked: set[str] = set()
        self.refused: dict[str, OnceMQError] = {}
        # Verdicts since `take_settled`, in order for each partition.
        self._settled: list[Settled] = []
        # Why it ended: Fenced, LogRegressed, StoreMismatch ... None while it runs.
        self.error: Exception | None = None
        self._submitted = 0  # since the last turn

    @property
    def room(self) -> int:
        if self.opened is None or self.error is not None:
            return 0
        return max(0, self.core.batches_max - self.core.send_window.batches - self._submitted)

    @property
    def in_flight(self) -> bool:
        return self.core.send_window.batches + self._submitted > 0

    @property
    def waits_for(self) -> str:
        """Why there is no answer for so long, for people; "": there is no cause to name."""
        if self.core.connection.silent:
            return f"no broker answers at {self.core.connection.endpoint}"
        held_by = self.core.held_by
        return "" if held_by is None else f"the broker refuses it for now: {held_by}"

    def ask(self, topic: str) -> None:
        """The answer appears in `topics` or `refused`."""
        if topic not in self._asked:
            self._asked.add(topic)
            self.refused.pop(topic, None)
            self._driver.post(Describe(topic))

    def submit(self, submit: Submit) -> None:
        """Call it only while there is `room`."""
        self._submitted += 1
        self._driver.post(submit)

    def turn(self, timeout_ms: int | None = None) -> bool:
        """Run one turn: wait at most `timeout_ms` for answers. Afterwards look at `error`.

        Returns whether anything happened.
        """
        happened = self._driver.turn(timeout_ms)
        self._submitted = 0
        return happened

    def time_left_ms(self) -> int:
        return self._driver.time_left_ms()

    def take_settled(self) -> list[Settled]:
        settled, self._settled = self._settled, []
        return settled

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def wake(self) -> None:
        """Make a `turn` in another thread return."""
        self._transport.wake()

    def close(self) -> None:
        """What is unsettled stays unknown."""
        self._transport.close()

    def _perform(self, item: Any) -> None:
        if isinstance(item, Settled):
            self._settled.append(item)
        elif isinstance(item, Opened):
            self.opened = item
        elif isinstance(item, TopicKnown):
            self.topics[item.topic] = item
        elif isinstance(item, TopicRefused):
            self._asked.discard(item.topic)
            self.refused[item.topic] = item.error
        elif isinstance(item, Reconnect):
            self._transport.reopen()
        else:
            assert isinstance(item, Stop), f"not work of a producer: {item!r}"
            self.error = item.error or OnceMQError("the producer was stopped")
