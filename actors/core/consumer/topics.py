"""Topics that a consumer asks for: T.dead to write, T@G to read, and targets of tx.send.

Theory of operation. The consumer creates the topic of dead letters when it parks its first message,
with as many partitions as the topic has; the commit waits for it, so that a committed output can go
out. An operator's command creates the private topic by sending to it. A consumer asks for it at the
start and then now and then, and never creates it. docs/PROTOCOL.md, "Dead letters".
"""

from __future__ import annotations

from ...errors import TopicExists, UnknownTopic, from_code
from ...limits import JOIN_RETRY_MS, PRIVATE_LOOK_MS, RESEND_MS
from ...outcome import Outcome, Send
from ...protocol import CreateTopic, DescribeTopic, Failure, TopicDescribed
from ..client.connection import BROKER, Connection, is_final
from .work import TopicResolved


class DeadTopic:
    """The topic of dead letters: asked for when wanted, until it exists."""

    def __init__(self, connection: Connection, topic: str, partitions: int) -> None:
        self._connection = connection
        self.topic = topic
        self._wanted_partitions = partitions
        # How many partitions it has; 0: not known yet.
        self.partitions = 0
        # Number of the request in flight; 0: none. When the next may be sent.
        self._request = 0
        self._again_at_ms = 0
        # Whether it exists with another partition count: then it is used as it is.
        self._exists = False
        self._wanted = False

    @property
    def owed(self) -> bool:
        return self._wanted and not self.partitions

    @property
    def wake_at_ms(self) -> int | None:
        return self._again_at_ms if self.owed else None

    def lost(self) -> None:
        self._again_at_ms = 0

    def advance(self, now_ms: int, out: Outcome, *, wanted: bool) -> None:
        self._wanted = wanted
        if not self.owed or now_ms < self._again_at_ms:
            return
        self._request = self._connection.next_request()
        self._again_at_ms = now_ms + RESEND_MS
        question: DescribeTopic | CreateTopic
        if self._exists:
            question = DescribeTopic(self._request, self.topic, create=False)
        else:
            question = CreateTopic(self._request, self.topic, self._wanted_partitions)
        out.sends_after_sync.append(Send(BROKER, question))

    def received(self, message: TopicDescribed | Failure, now_ms: int) -> None:
        """Other messages are ignored. Raises what no retry mends."""
        if message.request != self._request or not self._request:
            return
        self._request = 0
        if isinstance(message, TopicDescribed):
            self.partitions = message.partitions
            return
        error = from_code(message.code, message.reason, message.hint)
        if isinstance(error, TopicExists):
            self._exists = True
            self._again_at_ms = 0
        elif not is_final(error):
            self._again_at_ms = now_ms + JOIN_RETRY_MS
        else:
            raise error


class PrivateTopic:
    """The private topic of the group: asked for until it exists."""

    def __init__(self, connection: Connection, topic: str) -> None:
        self._connection = connection
        self.topic = topic
        # The topic, once it exists.
        self.found: TopicDescribed | None = None
        # Whether the broker has answered at least once, in either way.
        self.looked = False
        self._request = 0
        self._again_at_ms = 0

    @property
    def wake_at_ms(self) -> int | None:
        return self._again_at_ms if self.found is None else None

    def lost(self) -> None:
        self._again_at_ms = 0

    def advance(self, now_ms: int, out: Outcome) -> None:
        if self.found is not None or now_ms < self._again_at_ms:
            return
        self._request = self._connection.next_request()
        self._again_at_ms = now_ms + (PRIVATE_LOOK_MS if self.looked else RESEND_MS)
        question = DescribeTopic(self._request, self.topic, create=False)
        out.sends_after_sync.append(Send(BROKER, question))

    def received(self, message: TopicDescribed | Failure, now_ms: int) -> None:
        """Other messages are ignored. Raises what no retry mends."""
        if message.request != self._request or not self._request:
            return
        self._request = 0
        if isinstance(message, TopicDescribed):
            self.looked = True
            self.found = message
            return
        error = from_code(message.code, message.reason, message.hint)
        if isinstance(error, UnknownTopic):
            self.looked = True
            self._again_at_ms = now_ms + PRIVATE_LOOK_MS
        elif not is_final(error):
            self._again_at_ms = now_ms + JOIN_RETRY_MS
        else:
            raise error


class TopicLookups:
    """Topics that a handler sends to for the first time: looked up, and created where missing.

    The handler waits inside tx.send meanwhile, so an answer always comes: the facts, or an error
    when the broker refuses. The shell decides how long the handler waits.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        # Topics in question, with the number of the request in flight; 0: not sent yet.
        # Invariant: one for each waiting handler, so at most one.
        self._wanted: dict[str, int] = {}
        self._again_at_ms = 0

    @property
    def owed(self) -> bool:
        return bool(self._wanted)

    @property
    def wake_at_ms(self) -> int | None:
        return self._again_at_ms if self._wanted else None

    def want(self, topic: str) -> None:
        """The answer is TopicResolved."""
        self._wanted.setdefault(topic, 0)
        self._again_at_ms = 0

    def lost(self) -> None:
        self._again_at_ms = 0

    def advance(self, now_ms: int, out: Outcome) -> None:
        if not self._wanted or now_ms < self._again_at_ms:
            return
        self._again_at_ms = now_ms + RESEND_MS
        for topic in self._wanted:
            number = self._wanted[topic] = self._connection.next_request()
            question = self._connection.ask_for_topic(number, topic)
            out.sends_after_sync.append(Send(BROKER, question))

    def received(self, message: TopicDescribed | Failure, now_ms: int, out: Outcome) -> None:
        """Other messages are ignored."""
        topic = next((t for t, number in self._wanted.items() if number == message.request), None)
        if topic is None:
            return
        if isinstance(message, TopicDescribed):
            del self._wanted[topic]
            self._connection.topic_described(message, out)
            out.work.append(TopicResolved(topic, message.partitions))
            return
        error = from_code(message.code, message.reason, message.hint)
        if not is_final(error):
            self._again_at_ms = now_ms + JOIN_RETRY_MS
        else:
            del self._wanted[topic]
            out.work.append(TopicResolved(topic, 0, error))
