"""Topics that a handler sends to and nobody here has met: looked up, made where they are missing.

A handler waits inside tx.send meanwhile, so an answer always comes: the facts, or an error when
the broker refuses. How long the handler waits is decided by the shell.
"""

from __future__ import annotations

from ..errors import from_code
from ..limits import JOIN_RETRY_MS, RESEND_MS
from ..outcome import Outcome, Send
from ..protocol import DescribeTopic, Failure, TopicDescribed
from .connection import BROKER, Connection
from .consumer_work import TopicResolved


class TopicLookups:
    """Questions about topics in flight."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Topics that are waited for, and the request in flight for each; 0: none yet.
        # Invariant: at most one question a waiting handler, so at most one.
        self._wanted: dict[str, int] = {}
        self._again_at_ms = 0

    @property
    def owed(self) -> bool:
        """Whether an answer is waited for."""
        return bool(self._wanted)

    @property
    def wake_at_ms(self) -> int | None:
        """When `advance` has something to do."""
        return self._again_at_ms if self._wanted else None

    def want(self, topic: str) -> None:
        """Ask for a topic; the answer is TopicResolved."""
        self._wanted.setdefault(topic, 0)
        self._again_at_ms = 0

    def lost(self) -> None:
        """The connection is a new one: ask again."""
        self._again_at_ms = 0

    def advance(self, now_ms: int, out: Outcome) -> None:
        """Ask, or ask again what was not answered."""
        if not self._wanted or now_ms < self._again_at_ms:
            return
        self._again_at_ms = now_ms + RESEND_MS
        for topic in self._wanted:
            number = self._wanted[topic] = self._connection.next_request()
            out.sends_after_sync.append(Send(BROKER, DescribeTopic(number, topic, create=True)))

    def received(self, message: TopicDescribed | Failure, now_ms: int, out: Outcome) -> None:
        """Take an answer; others are ignored."""
        topic = next((t for t, number in self._wanted.items() if number == message.request), None)
        if topic is None:
            return
        if isinstance(message, TopicDescribed):
            del self._wanted[topic]
            out.work.append(TopicResolved(topic, message.partitions))
            return
        error = from_code(message.code, message.reason, message.hint)
        if error.retriable:
            self._again_at_ms = now_ms + JOIN_RETRY_MS
        else:
            del self._wanted[topic]
            out.work.append(TopicResolved(topic, 0, error))
