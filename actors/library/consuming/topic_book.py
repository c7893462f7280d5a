"""What a program that calls handlers keeps: which topics are known, and who waits for one."""

from __future__ import annotations

import threading

from ...core.consumer.work import TopicResolved
from ...errors import Busy, UnknownTopic
from ...ids import check_name
from ...limits import TOPICS_KNOWN_MAX


class TopicBook:
    """Partition counts by topic. They never change, so what is known stays. Thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        # Answers that nobody has taken yet, and how many handlers wait for one, by topic.
        self._refused: dict[str, Exception] = {}
        self._waiting: dict[str, int] = {}
        self._news = threading.Condition()

    def known(self, topic: str) -> int | None:
        """Return the partition count; None if nobody has asked yet.

        Raises what the broker said when it was asked last, once.
        """
        count = self._counts.get(topic)
        if count is not None:
            return count
        with self._news:
            refused = self._refused.get(topic)
            if topic not in self._waiting:
                self._refused.pop(topic, None)
        if refused is not None:
            raise refused
        return None

    def check_new(self, topic: str) -> None:
        """Raises InvalidName, Busy."""
        check_name(topic, "topic")
        if len(self._counts) >= TOPICS_KNOWN_MAX:
            raise Busy(
                f"this process sends to {TOPICS_KNOWN_MAX} topics and takes no more",
                hint="send to fewer topics and tell messages apart by their keys",
            )

    def learn(self, resolved: TopicResolved) -> None:
        with self._news:
            if resolved.error is not None:
                self._refused[resolved.topic] = resolved.error
            else:
                self._counts[resolved.topic] = resolved.partitions
            self._news.notify_all()

    def wait(self, topic: str, timeout_ms: int) -> int:
        """Called in another thread. Raises UnknownTopic when no answer comes in time."""
        with self._news:
            self._waiting[topic] = self._waiting.get(topic, 0) + 1
            self._news.wait_for(
                lambda: topic in self._counts or topic in self._refused, timeout_ms / 1000
            )
            self._waiting[topic] -= 1
            refused = self._refused.get(topic)
            if not self._waiting[topic]:  # the last of those who asked takes the refusal away
                del self._waiting[topic]
                self._refused.pop(topic, None)
        if refused is not None:
            raise refused
        count = self._counts.get(topic)
        if count is None:
            raise UnknownTopic(
                f"no broker reported the partitions of {topic!r} within {timeout_ms / 1000:g} s",
                hint="the message will be retried; check that the broker runs",
            )
        return count
