"""The broker: one core that judges every request and owns the log.

Theory of operation. A request is answered in one step: it is checked, what it changes goes into
the outcome as a record, and the answer goes into `sends_after_sync`. The driver appends and
applies the record before the next request is looked at, so each decision sees all earlier ones;
the answers of a turn leave together, after one sync that covers them. Nobody can therefore see a
duplicate, a conflict or a grant that a crash could take back.

The parts: state.py is what survives; produce.py judges batches, lookup.py compares resends with
their originals, fetch.py serves readers, groups.py, balance.py and membership.py decide which
consumer owns a partition, sessions.py holds what may be forgotten. docs/PROTOCOL.md describes the
same from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nsmallest
from typing import Any

from ...errors import (
    Busy,
    DiskFull,
    Fenced,
    HelloRequired,
    InvalidName,
    InvalidSetting,
    LogRegressed,
    OnceMQError,
    ProducerInUse,
    ProtocolError,
    StoreMismatch,
    TopicExists,
    UnknownProducer,
    VersionMismatch,
)
from ...ids import INTERNAL_MARK, check_name, dead_topic
from ...limits import LABEL_CHARS_MAX, LIMITS, PRODUCERS_LISTED_MAX, Limits
from ...outcome import (
    DiskSpace,
    Event,
    Outcome,
    ReadDone,
    Received,
    Recovered,
    Send,
    Snapshot,
    SnapshotWritten,
    Synced,
    Tick,
)
from ...protocol import (
    LINEAGE_VERSION,
    SETTINGS_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    ConfigureTopic,
    CreateTopic,
    DeleteTopic,
    DescribeGroup,
    DescribeTopic,
    Fetch,
    Fetched,
    Granted,
    Hello,
    InitProducer,
    Join,
    Leave,
    ListGroups,
    ListProducers,
    ListTopics,
    Ping,
    Placed,
    Pong,
    Produce,
    ProducerReady,
    ProducersListed,
    Renew,
    Retired,
    RetireProducer,
    Rewind,
    ShowTopic,
    TopicDescribed,
    TopicGone,
    TopicShown,
    TopicsListed,
    Welcome,
)
from ...records import (
    BatchStored,
    HistoryBegun,
    Plain,
    ProducerGranted,
    ProducerRetired,
    Record,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
)
from ...topic_settings import DEFAULTS, FOREVER, TopicSettings, duration_text
from .fetch import FetchServer
from .lineage import is_proof, lineage_proof
from .lookup import Recent
from .membership import Membership
from .produce import NO_ROOM, Judge
from .refusal import Refusal, failure
from .retention import Retention
from .sessions import Peer, PeerTable
from .state import BrokerState, checked_place
from .topics import Topic, check_topic, is_own

_NONCE_BYTES = 16
_NUMBERS_LISTED = 10  # partitions of a producer that a list names
_PLACES_VERSION = 3  # of the protocol: clients before it know no marks
_START_ANEW = (
    "find out which messages are missing, send them again under their ids, "
    "and start the process anew"
)


@dataclass(frozen=True, slots=True)
class CheckFence:
    """Work for the shell: look for a higher generation of this broker's log; end if there is one.

    A client claims to have met a successor, or a past that only a successor may have written. The
    claim may be false, so it only causes a look.
    """


@dataclass(frozen=True, slots=True)
class Superseded:
    """Work for the shell: end as Fenced. A restored copy of this log was proved to be its successor."""

    reason: str


class BrokerCore:
    """The broker as a pure state machine (outcome.Core)."""

    def __init__(
        self,
        log_id: bytes,
        lineage: bytes,
        *,
        secret: bytes,
        entropy: Callable[[], bytes],
        message_events: bool = False,
        create_topics: bool = True,
        limits: Limits = LIMITS,
    ) -> None:
        """Own the log `log_id` and its `secret`; `entropy` gives 16 random bytes at each call.

        Without `create_topics` only CreateTopic makes topics of users. `message_events` adds an event for each message to those for each batch.
        """
        self.log_id = log_id
        self.lineage = lineage
        self._secret = secret
        # Of this lineage and epoch, where it is a restored one; b"" else, and before Recovered.
        self._proof = b""
        self.limits = limits
        self.state = BrokerState(secret, limits)
        # Generation of the log, which is the broker epoch. 0 before Recovered.
        self.epoch = 0
        self._entropy = entropy
        self._create_topics = create_topics
        # Applied and not yet synced. Volatile.
        self._recent = Recent()
        self._peers = PeerTable(limits.peers_max)
        self._judge = Judge(self.state, self._recent, limits, verbose=message_events)
        self._fetches = FetchServer(self.state, log_id, limits)
        self._membership = Membership(self.state, log_id, lineage, limits)
        self._retention = Retention(self.state, limits)
        # Broker time minus driver time. Not negative: time goes on from the last logged time, so
        # stored times never decrease, not even after a restart with a clock that was set back.
        self._ahead_ms = 0
        # When lookups of an earlier turn continue; None without one.
        self._lookups_at_ms: int | None = None
        self._now_ms = 0
        # Whether this generation has written its mark: before that it writes nothing.
        self._history_begun = False
        self._answers: dict[type[Any], Callable[[bytes, Any, Outcome], None]] = {
            Ping: self._ping,
            DescribeTopic: self._describe_topic,
            CreateTopic: self._create_topic,
            ConfigureTopic: self._configure_topic,
            ListTopics: self._list_topics,
            ShowTopic: self._show_topic,
            DeleteTopic: self._delete_topic,
            InitProducer: self._init_producer,
            ListProducers: self._list_producers,
            RetireProducer: self._retire_producer,
            Fetch: lambda peer, fetch, out: self._fetches.fetch(peer, fetch, self._now_ms, out),
            Join: self._join,
            Renew: lambda peer, renew, out: self._membership.renew(peer, renew, self._now_ms, out),
            Leave: self._membership.leave,
            Rewind: self._rewind,
            ListGroups: lambda peer, asked, out: self._membership.list(
                peer, asked, self._now_ms, out
            ),
            DescribeGroup: lambda peer, asked, out: self._membership.describe(
                peer, asked, self._now_ms, out
            ),
        }

    # --- outcome.Core ----------------------------------------------------------------------------

    @property
    def wake_at_ms(self) -> int | None:
        wakes = (self._fetches.wake_at_ms, self._lookups_at_ms, self._retention.wake_at_ms)
        return min((wake for wake in wakes if wake is not None), default=None)

    def step(self, event: Event, now_ms: int) -> Outcome:
        out = Outcome()
        self._now_ms = now_ms
        if isinstance(event, Received):
            self._received(event, out)
        elif isinstance(event, Synced):
            self._synced(event.end, out)
        elif isinstance(event, ReadDone):
            if event.token in self._fetches.jobs:  # positive tokens; those of lookups are negative
                self._fetches.read_done(
                    event.token, event.found, event.next_position, out, stopped=event.stopped
                )
            else:
                self._judge.read_done(-event.token, event.found, event.next_position, out)
        elif isinstance(event, Tick):
            self._fetches.tick(now_ms, out)
            self._judge.tick(out)
            full = self._judge.disk_full
            self._retention.tick(now_ms, self._broker_ms(), out, disk_full=full)
        elif isinstance(event, Recovered):
            self._recovered(event, out)
        elif isinstance(event, SnapshotWritten):
            self.state.snapshot_written()
        else:
            assert isinstance(event, DiskSpace), f"not an event of a broker: {event}"
            self._judge.disk_full = event.full
            self._begin_history(out)
        self._tell_places(out)
        self._lookups_at_ms = now_ms + 1 if self._judge.lookups else None
        return out

    def look_ahead(self, events: Sequence[Event]) -> None:
        """Look up the explicit ids of a turn together, before its first event. Raises CorruptLog."""
        self._judge.look_ahead([event for event in events if isinstance(event, Received)])

    def apply(self, record: Record, position: int) -> None:
        """Change what must survive: live right after the append, and on replay."""
        self.state.apply(record, position)
        if self.epoch and isinstance(record, BatchStored):
            self._recent.add(record, position)

    def snapshot(self) -> Snapshot:
        return self.state.snapshot()

    def restore(self, parts: dict[str, Plain]) -> None:
        """Become the state that `snapshot` returned (new and kept parts together)."""
        self.state.restore(parts)

    # --- events of the log -----------------------------------------------------------------------

    def _recovered(self, event: Recovered, out: Outcome) -> None:
        """Begin to answer: all replayed records are durable, every grant has a full lease."""
        self.epoch = event.generation
        if self.lineage != self.log_id:
            self._proof = lineage_proof(self._secret, self.lineage, self.epoch)
        self._ahead_ms = max(0, self.state.last_at_ms - self._now_ms)
        self._membership.start(self._now_ms)
        for _, partition in self.state.topics.partitions():
            partition.durable_end_offset = partition.end_offset
        self.state.durable_end = event.end
        self._begin_history(out)

    def _begin_history(self, out: Outcome) -> None:
        """Write the mark of this generation, before anything else is written or granted.

        A full disk delays it: until there is room the broker refuses all that would be written.
        """
        if self.epoch and not self._history_begun and not self._judge.disk_full:
            self._history_begun = True
            mark = self._entropy()
            out.appends.append(HistoryBegun(mark, self.epoch, self._broker_ms()))
            fields = {"mark": mark.hex(), "generation": self.epoch}
            out.events.append(("history.begun", fields))

    def _tell_places(self, out: Outcome) -> None:
        """Add to answers which history they rest on, for clients that know marks.

        The driver raises `durable` to the end of this turn's sync, which covers the answer.
        """
        for number, send in enumerate(out.sends_after_sync):
            message = send.message
            if not isinstance(message, Placed | Fetched):
                continue
            knows = self._version_of(send.peer) >= _PLACES_VERSION
            if isinstance(message, Fetched):
                if not knows:
                    message = replace(message, positions=(), marks=())
                    out.sends_after_sync[number] = replace(send, message=message)
            elif knows:
                mark, end = self.state.history.current, self.state.durable_end
                message = replace(message, mark=mark, durable=end)
                if isinstance(message, Granted) and not self._knows_settings(send.peer):
                    message = replace(message, start_offset=0)
                out.sends_after_sync[number] = replace(send, message=message, tells_end=True)

    def _synced(self, end: int, out: Outcome) -> None:
        """Messages that a sync covers become visible to readers."""
        self.state.durable_end = end
        grown: dict[tuple[int, int], None] = {}
        for record in self._recent.synced(end):
            _, partition = self.state.partition_of(record)
            partition.durable_end_offset = record.first_offset + record.kept
            grown[record.topic_number, record.partition] = None
        self._fetches.durable(list(grown), self._now_ms, out)

    # --- requests --------------------------------------------------------------------------------

    def _received(self, event: Received, out: Outcome) -> None:
        message, peer = event.message, event.peer
        try:
            if isinstance(message, Hello):
                self._hello(peer, message, out)
                return
            known = self._peers.get(peer)
            if known is None:
                raise HelloRequired("this broker does not know the connection: send hello first")
            if isinstance(message, Produce):
                assert event.batch is not None, "the codec gives every Produce its batch"
                sender = (peer, known.version)
                self._judge.produce(sender, message, event.batch, self._broker_ms(), out)
                return
            answer = self._answers.get(type(message))
            if answer is None:
                raise ProtocolError(f"a broker does not take {type(message).__name__}")
            answer(peer, message, out)
        except (OnceMQError, Refusal) as error:
            self._report_refusal(event, error, out)
            if isinstance(error, LogRegressed):
                # A successor may have written what this log lacks: then it must not answer.
                out.work.append(CheckFence())
            refused = failure(message.request, error)
            out.sends_after_sync.append(Send(peer, refused))

    def _report_refusal(self, event: Received, error: OnceMQError | Refusal, out: Outcome) -> None:
        message = event.message
        cause = error.error if isinstance(error, Refusal) else error
        if isinstance(message, Produce) and not isinstance(cause, HelloRequired):
            out.events.append(
                (
                    "batch.refused",
                    {
                        "topic": message.topic,
                        "partition": message.partition,
                        "count": event.batch.count if event.batch else 0,
                        "producer": message.producer,
                        "first_sequence": message.first_sequence,
                        "code": cause.code,
                        "reason": cause.reason,
                    },
                )
            )
        if isinstance(cause, Fenced) and isinstance(message, Produce | InitProducer):
            current = self.state.producers.by_name[message.producer].epoch
            fields = {"producer": message.producer, "current_epoch": current}
            if isinstance(message, Produce):
                fields["epoch"] = message.epoch
            out.events.append(("producer.fenced", fields))

    def _broker_ms(self) -> int:
        """Return broker time: never below a logged time, not even one of an earlier process."""
        return max(self._now_ms + self._ahead_ms, self.state.last_at_ms)

    def _hello(self, peer: bytes, hello: Hello, out: Outcome) -> None:
        low, high = max(hello.version_min, VERSION_MIN), min(hello.version_max, VERSION_MAX)
        if low > high:
            ours = f"{VERSION_MIN} to {VERSION_MAX}"
            theirs = f"{hello.version_min} to {hello.version_max}"
            older = "client" if hello.version_max < VERSION_MIN else "broker"
            raise VersionMismatch(
                f"the broker speaks versions {ours}, the client {theirs}",
                hint=f"upgrade the {older}",
            )
        if hello.log_id_seen not in {b"", self.log_id}:
            raise StoreMismatch(
                f"the client worked with log {hello.log_id_seen.hex()}, this is {self.log_id.hex()}"
            )
        self._check_lineage(hello, out)
        if hello.log_id_seen and hello.epoch_seen > self.epoch:
            raise LogRegressed(
                f"a broker of epoch {hello.epoch_seen} was met before, this one has epoch "
                f"{self.epoch} and knows no successor"
            )
        place = checked_place(hello.mark, hello.position)
        hint = LogRegressed.group_hint if hello.role == "consumer" else _START_ANEW
        self.state.check_place(place, f"this {hello.role[:LABEL_CHARS_MAX]}", hint)
        self._peers.put(peer, Peer(hello.role, hello.incarnation, high))
        proof = self._proof if high >= LINEAGE_VERSION else b""
        welcome = Welcome(hello.request, high, self.log_id, self.lineage, self.epoch, proof=proof)
        out.sends_after_sync.append(Send(peer, welcome))

    def _check_lineage(self, hello: Hello, out: Outcome) -> None:
        """Raises Fenced: the client has met a copy of this log that was restored, and proves it."""
        if hello.lineage in {b"", self.lineage} or hello.epoch_seen <= self.epoch:
            return
        if is_proof(hello.proof, self._secret, hello.lineage, hello.epoch_seen):
            reason = (
                f"this log was restored from a backup elsewhere, as lineage {hello.lineage.hex()}: "
                f"a broker of epoch {hello.epoch_seen} has met this client, this one has epoch "
                f"{self.epoch}"
            )
            out.work.append(Superseded(reason))
            raise Fenced(reason)

    def _ping(self, peer: bytes, ping: Ping, out: Outcome) -> None:
        out.sends_after_sync.append(Send(peer, Pong(ping.request, self.epoch)))

    def _join(self, peer: bytes, join: Join, out: Outcome) -> None:
        times = (self._now_ms, self._broker_ms())
        self._membership.join(peer, join, times, out, disk_full=self._judge.disk_full)

    def _rewind(self, peer: bytes, rewind: Rewind, out: Outcome) -> None:
        if self._judge.disk_full:
            raise DiskFull(NO_ROOM)
        self._membership.rewind(peer, rewind, self._broker_ms(), out)

    # --- topics ----------------------------------------------------------------------------------

    def _describe_topic(self, peer: bytes, request: DescribeTopic, out: Outcome) -> None:
        topic = self.state.topics.by_name.get(request.topic)
        if topic is None and request.create:
            if not self._create_topics:
                self.state.topics.check_wanted(request.topic)
            self._make_topic(peer, request, out)
        else:
            self._describe(
                peer, request.request, topic or self.state.topics.get(request.topic), out
            )

    def _create_topic(self, peer: bytes, request: CreateTopic, out: Outcome) -> None:
        topic = self.state.topics.by_name.get(request.topic)
        if topic is None:
            self._make_topic(peer, request, out)
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
        self._describe(peer, request.request, topic, out)

    def _make_topic(self, peer: bytes, request: DescribeTopic | CreateTopic, out: Outcome) -> None:
        name, partitions = check_topic(request.topic), request.partitions
        if not 1 <= partitions <= self.limits.partitions_max:
            raise ProtocolError(
                f"a topic has 1 to {self.limits.partitions_max} partitions, not {partitions}",
                hint="choose another count; it cannot be changed later",
            )
        settings = _changed(DEFAULTS, name, request.dedup, request.retain)
        if self._judge.disk_full:
            raise DiskFull(NO_ROOM)
        number = len(self.state.topics)
        if number >= self.limits.topics_max:
            raise Busy(
                f"the broker holds {self.limits.topics_max} topics and takes no more",
                hint="use a topic that exists (oncemq topics), or another broker for new ones",
            )
        made = TopicCreated(name, self._entropy(), partitions, self._broker_ms())
        out.appends.append(made)
        fields = {"topic": name, "topic_id": made.topic_id.hex(), "partitions": partitions}
        out.events.append(("topic.created", fields))
        topic = Topic(number, name, made.topic_id, partitions, made.at_ms, self.limits)
        if settings != DEFAULTS:
            self._set(topic, settings, out)
        self._describe(peer, request.request, topic, out, settings)

    def _configure_topic(self, peer: bytes, request: ConfigureTopic, out: Outcome) -> None:
        topic = self.state.topics.get(request.topic)
        settings = _changed(topic.settings, topic.name, request.dedup, request.retain)
        if settings != topic.settings:
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            self._set(topic, settings, out)
        self._describe(peer, request.request, topic, out, settings)

    def _set(self, topic: Topic, settings: TopicSettings, out: Outcome) -> None:
        at_ms = self._broker_ms()
        out.appends.append(TopicConfigured(topic.number, at_ms=at_ms, **asdict(settings)))
        fields = {"topic": topic.name, "dedup": settings.dedup, "retain": settings.retain}
        out.events.append(("topic.configured", fields))

    def _describe(
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
        if self._knows_settings(peer):
            described = replace(
                described,
                dedup=settings.dedup,
                retain=settings.retain,
                start_offsets=topic.start_offsets(),
            )
        out.sends_after_sync.append(Send(peer, described))

    def _show_topic(self, peer: bytes, request: ShowTopic, out: Outcome) -> None:
        topics, groups = self.state.topics, self.state.groups
        topic = topics.get(request.topic)
        rows = []
        for number, partition in sorted(topic.by_number.items()):
            start, end = partition.log_start_offset, partition.durable_end_offset
            first, held = partition.index.first, partition.bytes_stored - partition.bytes_trimmed
            times = (first[2], partition.last_at_ms) if first else (0, 0)
            rows.append((number, start, end, held, *times))
        grants = tuple(
            (key[0], key[2], groups.leases[key].committed, groups.live(key, self._now_ms))
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

    def _delete_topic(self, peer: bytes, request: DeleteTopic, out: Outcome) -> None:
        """What OnceMQ made for the topic goes with it: it names messages that are gone."""
        topics = self.state.topics
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
                self._forget_topic(gone, out)
        out.sends_after_sync.append(Send(peer, TopicGone(request.request, request.topic)))

    def _forget_topic(self, topic: Topic, out: Outcome) -> None:
        out.appends.append(TopicDeleted(topic.number, self._broker_ms()))
        self._fetches.forget_topic(topic, out)
        self._judge.forget_topic(topic, out)
        self._membership.balance.forget_topic(topic.name)
        fields = {"topic": topic.name, "topic_id": topic.topic_id.hex()}
        out.events.append(("topic.deleted", {**fields, "messages": sum(topic.messages)}))

    def _list_topics(self, peer: bytes, request: ListTopics, out: Outcome) -> None:
        topics = list(self.state.topics.by_number.values())
        rows = tuple(
            (topic.name, topic.topic_id, topic.partitions, sum(topic.end_offsets()))
            for topic in topics
        )
        settings: tuple[tuple[str, str], ...] = ()
        if self._knows_settings(peer):
            settings = tuple((topic.settings.dedup, topic.settings.retain) for topic in topics)
        out.sends_after_sync.append(Send(peer, TopicsListed(request.request, rows, settings)))

    def _knows_settings(self, peer: bytes) -> bool:
        return self._version_of(peer) >= SETTINGS_VERSION

    def _version_of(self, peer: bytes) -> int:
        known = self._peers.get(peer)
        return 0 if known is None else known.version

    # --- producers -------------------------------------------------------------------------------

    def _init_producer(self, peer: bytes, request: InitProducer, out: Outcome) -> None:
        """Grant the next epoch to a new incarnation; repeat the epoch of a known one.

        An output producer is granted together with its group's partition: here it only learns its
        next numbers.
        """
        name = request.producer
        producers = self.state.producers
        if len(request.nonce) != _NONCE_BYTES:
            raise ProtocolError("a nonce is 16 random bytes")
        output = name.startswith(INTERNAL_MARK)
        if not output:
            check_name(name, "producer")
        epoch = producers.granted_epoch(name, request.nonce)
        if epoch is None:
            if output:
                raise UnknownProducer(
                    f"{name} was not granted to this incarnation", hint="join the group first"
                )
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            epoch = self._grant_producer(request, out)
        known = producers.by_name.get(name)
        its = {} if known is None else known.numbers_and_digests()
        rows = tuple(
            (self.state.topics.by_number[topic_number].name, partition, number, digest)
            for (topic_number, partition), (number, digest) in sorted(its.items())
        )
        out.sends_after_sync.append(Send(peer, ProducerReady(request.request, epoch, rows)))

    def _grant_producer(self, request: InitProducer, out: Outcome) -> int:
        name = request.producer
        known = self.state.producers.by_name.get(name)
        most = self.limits.producers_max
        is_more = known is None or known.kept is not None
        if is_more and len(self.state.producers) >= most:
            raise Busy(
                f"the broker holds {most} producer names and takes no more",
                hint="use a name again (a name is a role, not a run), or send without a name, "
                "each message with its id; retire idle names: oncemq producers retire --idle 30d",
            )
        epoch = 1 + (known.epoch if known else 0)
        label = request.label[:LABEL_CHARS_MAX]
        out.appends.append(ProducerGranted(name, epoch, request.nonce, label, self._broker_ms()))
        out.events.append(("producer.granted", {"producer": name, "epoch": epoch}))
        return epoch

    def _list_producers(self, peer: bytes, request: ListProducers, out: Outcome) -> None:
        by_name, topics = self.state.producers.by_name, self.state.topics.by_number
        behind = (name for name in by_name if name > request.after)
        names = nsmallest(PRODUCERS_LISTED_MAX + 1, behind)
        rows = []
        for name in names[:PRODUCERS_LISTED_MAX]:
            its = by_name[name]
            numbers = its.numbers_and_digests()
            first = tuple(
                (topics[topic].name, partition, numbers[topic, partition][0])
                for topic, partition in nsmallest(_NUMBERS_LISTED, numbers)
            )
            facts = (its.label, its.last_at_ms, its.memory_bytes(), its.kept is not None)
            rows.append((name, its.epoch, *facts, first, len(numbers)))
        more = len(names) > PRODUCERS_LISTED_MAX
        listed = ProducersListed(request.request, tuple(rows), more, self._broker_ms())
        out.sends_after_sync.append(Send(peer, listed))

    def _retire_producer(self, peer: bytes, request: RetireProducer, out: Outcome) -> None:
        """Raises UnknownProducer, InvalidName, ProducerInUse, Busy, DiskFull."""
        name, table = request.producer, self.state.producers
        known = table.by_name.get(name)
        if known is None:
            raise UnknownProducer(f"no producer is named {name!r}", hint="oncemq producers list")
        if name.startswith(INTERNAL_MARK):
            raise InvalidName(f"{name} belongs to a group, which relies on its numbers", hint="")
        if known.kept is None:
            idle_ms = self._broker_ms() - known.last_at_ms
            if idle_ms < request.idle_ms:
                raise ProducerInUse(
                    f"{name}, of {known.label}, stored something {duration_text(idle_ms)} ago"
                )
            if table.retired >= self.limits.producers_retired_max:
                raise Busy(
                    f"the broker holds {table.retired} retired names and takes no more",
                    hint="use names again: a name is a role, not a run",
                )
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            out.appends.append(ProducerRetired(name, self._broker_ms()))
            fields = {"producer": name, "epoch": known.epoch, "idle_ms": idle_ms}
            out.events.append(("producer.retired", fields))
        out.sends_after_sync.append(Send(peer, Retired(request.request, name)))


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
