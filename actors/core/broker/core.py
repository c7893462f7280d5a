"""The broker: one core that judges every request and owns the log.

Theory of operation. A request is answered in one step: it is checked, what it changes goes into
the outcome as a record, and the answer goes into `sends_after_sync`. The driver appends and
applies the record before the next request is looked at, so each decision sees all earlier ones;
the answers of a turn leave together, after one sync that covers them. Nobody can therefore see a
duplicate, a conflict or a grant that a crash could take back.

The parts: state.py is what survives; produce.py judges batches, lookup.py compares resends with
their originals, fetch.py serves readers, groups.py, balance.py and membership.py decide which
consumer owns a partition, topic_requests.py and producer_requests.py answer about topics and names,
sessions.py holds what may be forgotten. docs/PROTOCOL.md describes the same from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import (
    DiskFull,
    Fenced,
    HelloRequired,
    LogRegressed,
    OnceMQError,
    ProtocolError,
    StoreMismatch,
    VersionMismatch,
)
from ...limits import LABEL_CHARS_MAX, LIMITS, Limits
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
    Renew,
    RetireProducer,
    Rewind,
    ShowTopic,
    Survey,
    Welcome,
)
from ...records import (
    BatchStored,
    HistoryBegun,
    Plain,
    Record,
)
from .fetch import FetchServer
from .lineage import is_proof, lineage_proof
from .lookup import Recent
from .membership import Membership
from .produce import NO_ROOM, Judge
from .producer_requests import ProducerRequests
from .refusal import Refusal, failure
from .retention import Retention
from .sessions import Peer, PeerTable
from .state import BrokerState, checked_place
from .survey import READ_TOKENS, Surveyor, SurveyWanted
from .topic_requests import TopicRequests

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

        Without `create_topics` only CreateTopic makes topics of users. `message_events` adds an
        event for each message to those for each batch.
        """
        self.log_id = log_id
        self.lineage = lineage
        self._secret = secret
        # Of this lineage and epoch, where it is a restored one; b"" else, and before Recovered.
        self._proof = b""
        self.state = BrokerState(secret, limits)
        # Generation of the log, which is the broker epoch. 0 before Recovered.
        self.epoch = 0
        self._entropy = entropy
        # Applied and not yet synced. Volatile.
        self._recent = Recent()
        self._peers = PeerTable(limits.peers_max)
        self._judge = Judge(self.state, self._recent, limits, verbose=message_events)
        self._fetches = FetchServer(self.state, log_id, limits)
        self._membership = Membership(self.state, log_id, lineage, limits)
        self._retention = Retention(self.state, limits)
        self._surveyor = Surveyor(self.state, self._judge, limits, self._broker_ms)
        # Broker time minus driver time. Not negative: time goes on from the last logged time, so
        # stored times never decrease, not even after a restart with a clock that was set back.
        self._ahead_ms = 0
        # When lookups of an earlier turn continue; None without one.
        self._lookups_at_ms: int | None = None
        self._now_ms = 0
        # Whether this generation has written its mark: before that it writes nothing.
        self._history_begun = False
        self._topics = TopicRequests(
            self.state,
            self._peers,
            (self._judge, self._fetches, self._membership),
            limits,
            broker_ms=self._broker_ms,
            entropy=entropy,
            may_create=create_topics,
        )
        self._producers = ProducerRequests(self.state, self._judge, limits, self._broker_ms)
        self._answers = self._answers_of()

    def _answers_of(self) -> dict[type[Any], Callable[[bytes, Any, Outcome], None]]:
        """Return who answers which request."""
        topics, producers = self._topics, self._producers
        return {
            Ping: self._ping,
            DescribeTopic: topics.describe,
            CreateTopic: topics.create,
            ConfigureTopic: topics.configure,
            ListTopics: topics.list,
            ShowTopic: lambda peer, asked, out: topics.show(peer, asked, self._now_ms, out),
            DeleteTopic: topics.delete,
            InitProducer: producers.init,
            ListProducers: producers.list,
            RetireProducer: producers.retire,
            Fetch: lambda peer, fetch, out: self._fetches.fetch(peer, fetch, self._now_ms, out),
            Join: self._join,
            Renew: lambda peer, renew, out: self._membership.renew(peer, renew, self._now_ms, out),
            Leave: self._membership.leave,
            Rewind: self._rewind,
            Survey: lambda peer, asked, out: self._surveyor.ask(peer, asked, self._now_ms, out),
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
            if event.token >= READ_TOKENS:
                self._surveyor.read_done(event.token, event.found, out)
            elif event.token in self._fetches.jobs:  # positive; tokens of lookups are negative
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
        elif isinstance(event, SurveyWanted):
            self._surveyor.ask(None, event.request, now_ms, out)
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
            knows = self._peers.version_of(send.peer) >= _PLACES_VERSION
            if isinstance(message, Fetched):
                if not knows:
                    message = replace(message, positions=(), marks=())
                    out.sends_after_sync[number] = replace(send, message=message)
            elif knows:
                mark, end = self.state.history.current, self.state.durable_end
                message = replace(message, mark=mark, durable=end)
                if (
                    isinstance(message, Granted)
                    and self._peers.version_of(send.peer) < SETTINGS_VERSION
                ):
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
            topic = self.state.topics.by_name.get(message.topic)
            if topic is not None and event.batch is not None and not cause.retriable:
                topic.refused += event.batch.count
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
