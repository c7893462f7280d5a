"""Requests about topics: describe, create, configure, show, delete, list.

A topic of users is made by CreateTopic, or by DescribeTopic where the broker allows it. Each method
answers one request, or raises what refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from ...errors import (
    Busy,
    DiskFull,
    InvalidName,
    InvalidSetting,
    ProtocolError,
    StoreMismatch,
    TopicExists,
)
from ...ids import INTERNAL_MARK, dead_topic
from ...limits import Limits
from ...outcome import Outcome, Send
from ...protocol import (
    SETTINGS_VERSION,
    ConfigureTopic,
    CreateTopic,
    DeleteTopic,
    DescribeTopic,
    ListTopics,
    ShowTopic,
    TopicDescribed,
    TopicGone,
    TopicShown,
    TopicsListed,
)
from ...records import TopicConfigured, TopicCreated, TopicDeleted
from ...topic_settings import DEFAULTS, FOREVER, TopicSettings
from .fetch import FetchServer
from .membership import Membership
from .produce import NO_ROOM, Judge
from .sessions import PeerTable
from .state import BrokerState
from .topics import Topic, check_topic, is_own


class TopicRequests:
    """The broker's answers about topics."""

    def __init__(
        self,
        state: BrokerState,
        peers: PeerTable,
        users: tuple[Judge, FetchServer, Membership],
        limits: Limits,
        *,
        broker_ms: Callable[[], int],
        entropy: Callable[[], bytes],
        may_create: bool,
    ) -> None:
        """`users` are told when a topic is deleted; `entropy` gives 16 random bytes at each call.

        Without `may_create` only CreateTopic makes topics of users.
        """
        self._state = state
        self._peers = peers
        self._judge, self._fetches, self._membership = users
        self._limits = limits
        self._broker_ms = broker_ms
        self._entropy = entropy
        self._may_create = may_create

    def describe(self, peer: bytes, request: DescribeTopic, out: Outcome) -> None:
        topic = self._state.topics.by_name.get(request.topic)
        if topic is None and request.create:
            if not self._may_create:
                self._state.topics.check_wanted(request.topic)
            self._make(peer, request, out)
        else:
            self._answer(peer, request.request, topic or self._state.topics.get(request.topic), out)

    def create(self, peer: bytes, request: CreateTopic, out: Outcome) -> None:
        topic = self._state.topics.by_name.get(request.topic)
        if topic is None:
            self._make(peer, request, out)
            return
        if topic.partitions != request.partitions:
            raise TopicExists(
                f"topic {request.topic} has {topic.partitions} partitions; the count never changes",
                hint="use another topic name for another partition count",
            )
        settings = topic.settings
        if settings.changed(request.dedup, request.retain) != settings:
            raise TopicExists(
                f"topic {request.topic} exists with dedup {settings.dedup}, retain {settings.retain}",
                hint="to change them: oncemq topics set",
            )
        self._answer(peer, request.request, topic, out)

    def _make(self, peer: bytes, request: DescribeTopic | CreateTopic, out: Outcome) -> None:
        name, partitions = check_topic(request.topic), request.partitions
        if not 1 <= partitions <= self._limits.partitions_max:
            raise ProtocolError(
                f"a topic has 1 to {self._limits.partitions_max} partitions, not {partitions}",
                hint="choose another count; it cannot be changed later",
            )
        settings = _changed(DEFAULTS, name, request.dedup, request.retain)
        if self._judge.disk_full:
            raise DiskFull(NO_ROOM)
        number = len(self._state.topics)
        if number >= self._limits.topics_max:
            raise Busy(
                f"the broker holds {self._limits.topics_max} topics and takes no more",
                hint="use a topic that exists (oncemq topics), or another broker for new ones",
            )
        made = TopicCreated(name, self._entropy(), partitions, self._broker_ms())
        out.appends.append(made)
        fields = {"topic": name, "topic_id": made.topic_id.hex(), "partitions": partitions}
        out.events.append(("topic.created", fields))
        topic = Topic(number, name, made.topic_id, partitions, made.at_ms, self._limits)
        if settings != DEFAULTS:
            self._set(topic, settings, out)
        self._answer(peer, request.request, topic, out, settings)

    def configure(self, peer: bytes, request: ConfigureTopic, out: Outcome) -> None:
        topic = self._state.topics.get(request.topic)
        settings = _changed(topic.settings, topic.name, request.dedup, request.retain)
        if settings != topic.settings:
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            self._set(topic, settings, out)
        self._answer(peer, request.request, topic, out, settings)

    def _set(self, topic: Topic, settings: TopicSettings, out: Outcome) -> None:
        at_ms = self._broker_ms()
        out.appends.append(TopicConfigured(topic.number, at_ms=at_ms, **asdict(settings)))
        fields = {"topic": topic.name, "dedup": settings.dedup, "retain": settings.retain}
        out.events.append(("topic.configured", fields))

    def _answer(
        self,
        peer: bytes,
        request: int,
        topic: Topic,
        out: Outcome,
        settings: TopicSettings | None = None,
    ) -> None:
        """`settings`: those that this step gives the topic."""
        settings = settings or topic.settings
        described = TopicDescribed(
            request, topic.name, topic.topic_id, topic.partitions, topic.end_offsets()
        )
        if self._peers.version_of(peer) >= SETTINGS_VERSION:
            described = replace(
                described,
                dedup=settings.dedup,
                retain=settings.retain,
                start_offsets=topic.start_offsets(),
            )
        out.sends_after_sync.append(Send(peer, described))

    def show(self, peer: bytes, request: ShowTopic, now_ms: int, out: Outcome) -> None:
        topics, groups = self._state.topics, self._state.groups
        topic = topics.get(request.topic)
        rows = []
        for number, partition in sorted(topic.by_number.items()):
            start, end = partition.log_start_offset, partition.durable_end_offset
            first, held = partition.index.first, partition.bytes_stored - partition.bytes_trimmed
            times = (first[2], partition.last_at_ms) if first else (0, 0)
            rows.append((number, start, end, held, *times))
        grants = tuple(
            (key[0], key[2], groups.leases[key].committed, groups.live(key, now_ms))
            for key in sorted(groups.of_topic.get(topic.name, ()))
        )
        dead = topics.by_name.get(dead_topic(topic.name))
        letters = sum(dead.messages) if dead is not None and dead is not topic else 0
        shown = TopicShown(
            request.request,
            topic.name,
            topic.topic_id,
            topic.partitions,
            topic.settings.dedup,
            topic.settings.retain,
            topic.at_ms,
            topic.ids,
            tuple(rows),
            grants,
            letters,
        )
        out.sends_after_sync.append(Send(peer, shown))

    def delete(self, peer: bytes, request: DeleteTopic, out: Outcome) -> None:
        """What OnceMQ made for the topic goes with it: it names messages that are gone."""
        topics = self._state.topics
        topic = topics.by_name.get(request.topic)
        if topic is not None and topic.topic_id != request.topic_id:
            raise StoreMismatch(
                f"topic {topic.name} is not the one that was to be deleted: it was made since",
                hint="look at it first: oncemq topics show",
            )
        if topic is not None and is_own(topic.name):
            raise InvalidName(
                f"{topic.name} is made by OnceMQ and goes with its topic",
                hint="to keep fewer dead letters: oncemq topics set --retain",
            )
        if topic is not None:
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            for gone in [topic, *topics.own_of(topic.name)]:
                self._forget(gone, out)
        out.sends_after_sync.append(Send(peer, TopicGone(request.request, request.topic)))

    def _forget(self, topic: Topic, out: Outcome) -> None:
        out.appends.append(TopicDeleted(topic.number, self._broker_ms()))
        self._fetches.forget_topic(topic, out)
        self._judge.forget_topic(topic, out)
        self._membership.balance.forget_topic(topic.name)
        fields = {"topic": topic.name, "topic_id": topic.topic_id.hex()}
        out.events.append(("topic.deleted", {**fields, "messages": sum(topic.messages)}))

    def list(self, peer: bytes, request: ListTopics, out: Outcome) -> None:
        topics = list(self._state.topics.by_number.values())
        rows = tuple(
            (topic.name, topic.topic_id, topic.partitions, sum(topic.end_offsets()))
            for topic in topics
        )
        settings: tuple[tuple[str, str], ...] = ()
        if self._peers.version_of(peer) >= SETTINGS_VERSION:
            settings = tuple((topic.settings.dedup, topic.settings.retain) for topic in topics)
        out.sends_after_sync.append(Send(peer, TopicsListed(request.request, rows, settings)))


def _changed(settings: TopicSettings, topic: str, dedup: str, retain: str) -> TopicSettings:
    """Return the settings with what the texts say. Raises InvalidSetting."""
    changed = settings.changed(dedup, retain)
    if changed.dedup_ms is not None and is_own(topic):
        raise InvalidSetting(
            f"{topic} is made by OnceMQ, which relies on its ids: it has no dedup horizon",
            hint="set only how long its messages are kept: --retain",
        )
    if changed.retain != FOREVER and INTERNAL_MARK in topic:
        raise InvalidSetting(
            f"{topic} holds replays that its group has yet to handle: it retains all of them",
            hint="they go with their topic",
        )
    return changed
