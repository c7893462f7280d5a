"""A small synchronous client for questions about topics and groups.

It sends one request at a time and waits for the answer. Every request here may arrive twice without
harm, so the client resends it after a silence. What it has read or stored it relies on: a broker that
answers later and does not have that past is refused with LogRegressed.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import Any, TypeVar

from ...batch import Batch
from ...codec import wire
from ...core.client.connection import PLACES_VERSION
from ...errors import NotSupported, OnceMQError, ProtocolError, from_code
from ...history import NO_PLACE, History, highest
from ...limits import LIMITS, RESEND_MS
from ...outcome import Received
from ...protocol import (
    SETTINGS_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    ConfigureTopic,
    CreateTopic,
    DeleteTopic,
    DescribeGroup,
    DescribeTopic,
    Failure,
    Fetch,
    Fetched,
    Granted,
    GroupDescribed,
    GroupsListed,
    Hello,
    InitProducer,
    Join,
    Leave,
    Left,
    ListGroups,
    ListProducers,
    ListTopics,
    Message,
    Produce,
    Produced,
    ProducerReady,
    ProducersListed,
    Retired,
    RetireProducer,
    Rewind,
    Rewound,
    ShowTopic,
    Standby,
    Survey,
    Surveyed,
    TopicDescribed,
    TopicGone,
    TopicShown,
    TopicsListed,
    Welcome,
    place_in,
)
from ...records import BatchStored
from ...runtime.zmq_transport import DealerTransport

Answer = TypeVar("Answer")

DEFAULT_TIMEOUT_S = 5.0
SESSION_BYTES = 16


class NoAnswer(OnceMQError):
    """No broker answered in time."""

    code = "no_answer"
    retriable = True
    default_hint = "check --broker, or start a broker: oncemq broker"


class AdminClient:
    """Asks a broker. Use it in a `with`; not thread-safe."""

    def __init__(self, endpoint: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Ask the broker at `endpoint`, waiting up to `timeout_s` seconds for each answer."""
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._transport = DealerTransport(endpoint)
        self._request = 0
        self._welcome: Welcome | None = None
        # The furthest place that was relied on, for later hellos.
        self._place = NO_PLACE

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    # --- questions -------------------------------------------------------------------------------

    def welcome(self) -> Welcome:
        """Return the broker's Welcome; connect first if needed. Raises NoAnswer, LogRegressed."""
        if self._welcome is None:
            mine = secrets.token_bytes(16)
            hello = Hello(0, VERSION_MIN, VERSION_MAX, "admin", mine, b"", 0, *self._place)
            self._welcome = self._ask_once(hello, Welcome)
        return self._welcome

    @property
    def knows_places(self) -> bool:
        """Whether the broker compares places. Raises NoAnswer."""
        return self.welcome().version >= PLACES_VERSION

    def create_topic(
        self, topic: str, partitions: int, dedup: str = "", retain: str = ""
    ) -> TopicDescribed:
        """The same again is no error; "" stands for any setting.

        Raises TopicExists, InvalidName, InvalidSetting, NotSupported, NoAnswer.
        """
        if dedup or retain:
            self._check_settings()
        return self._ask(CreateTopic(0, topic, partitions, dedup, retain), TopicDescribed)

    def configure_topic(self, topic: str, dedup: str = "", retain: str = "") -> TopicDescribed:
        """Raises UnknownTopic, InvalidSetting, NotSupported, NoAnswer."""
        self._check_settings()
        return self._ask(ConfigureTopic(0, topic, dedup, retain), TopicDescribed)

    def _check_settings(self) -> None:
        if self.welcome().version < SETTINGS_VERSION:
            raise NotSupported(
                "the broker speaks an earlier version of the protocol", hint="upgrade the broker"
            )

    def producers(self) -> tuple[list[tuple[Any, ...]], int]:
        """Return rows of ProducersListed for all names, and broker time. Raises NotSupported, NoAnswer."""
        self._check_settings()
        rows: list[tuple[Any, ...]] = []
        while True:
            after = rows[-1][0] if rows else ""
            listed = self._ask(ListProducers(0, after), ProducersListed)
            rows += listed.producers
            if not listed.more:
                return rows, listed.at_ms

    def retire_producer(self, producer: str, idle_ms: int) -> Retired:
        """The same again is no error. Raises UnknownProducer, ProducerInUse, NoAnswer, ..."""
        self._check_settings()
        return self._ask(RetireProducer(0, producer, idle_ms), Retired)

    def describe_topic(self, topic: str) -> TopicDescribed:
        """Raises UnknownTopic, NoAnswer."""
        return self._ask(DescribeTopic(0, topic, create=False), TopicDescribed)

    def show_topic(self, topic: str) -> TopicShown:
        """Raises UnknownTopic, NotSupported, NoAnswer."""
        self._check_settings()
        return self._ask(ShowTopic(0, topic), TopicShown)

    def delete_topic(self, topic: str, topic_id: bytes) -> TopicGone:
        """The same again is no error. Raises StoreMismatch, InvalidName, DiskFull, NoAnswer."""
        self._check_settings()
        return self._ask(DeleteTopic(0, topic, topic_id), TopicGone)

    def topics(self) -> TopicsListed:
        """Raises NoAnswer."""
        return self._ask(ListTopics(0), TopicsListed)

    def groups(self) -> GroupsListed:
        """Raises NoAnswer."""
        return self._ask(ListGroups(0), GroupsListed)

    def group(self, group: str) -> GroupDescribed:
        """Raises NoAnswer, InvalidName."""
        return self._ask(DescribeGroup(0, group), GroupDescribed)

    def survey(self, after: tuple[str, str, int]) -> Surveyed:
        """Return one page; `overview` asks for all. Raises NotSupported, NoAnswer."""
        self._check_settings()
        return self._ask(Survey(0, *after), Surveyed)

    def join(self, join: Join) -> Granted | Standby:
        """Raises LedgerNotHere, LogRegressed, StoreMismatch, NoAnswer, ..."""
        answer = self._ask(join, (Granted, Standby))
        assert isinstance(answer, Granted | Standby), "as asked"
        if isinstance(answer, Granted):
            self._place = highest(self._place, place_in(answer))
        return answer

    def next_sequences(self, producer: str, nonce: bytes) -> dict[tuple[str, int], int]:
        """Return the next number of an output producer for each (topic, partition) it has written.

        `nonce` is the incarnation that holds the grant. Raises UnknownProducer, NoAnswer.
        """
        ready = self._ask(InitProducer(0, producer, nonce, "admin"), ProducerReady)
        return {(topic, partition): number for topic, partition, number, _ in ready.partitions}

    def leave(self, group: str, topic: str, partition: int, epoch: int, offset: int) -> None:
        """Raises NotGranted, NoAnswer."""
        self._ask(Leave(0, group, topic, partition, epoch, offset), Left)

    def rewind(self, group: str, topic: str, partition: int, epoch: int, offset: int) -> None:
        """Announce that the ledger will go back to `offset`. Raises NotGranted, NoAnswer."""
        self._ask(Rewind(0, group, topic, partition, epoch, offset), Rewound)

    def fetch(
        self, topic: str, partition: int, offset: int, max_bytes: int = LIMITS.fetch_bytes_default
    ) -> tuple[Fetched, list[BatchStored]]:
        """Read stored batches freely, from the one that holds `offset`. Raises UnknownTopic,
        LogRegressed (an offset above the end), NoAnswer."""
        fetch = Fetch(0, "", topic, partition, 0, offset, max_bytes, 0)
        self.welcome()
        received = self._exchange(fetch)
        answer = received.message
        if not isinstance(answer, Fetched):
            raise _refused(answer)
        if answer.positions:
            read = History(answer.marks).place_of(answer.positions[-1])
            self._place = highest(self._place, read)
        return answer, received.stored or []

    def produce(self, topic: str, partition: int, batch: Batch) -> Produced:
        """Send a batch with explicit ids, as a session of its own; the same again is a duplicate.

        Raises UnknownTopic, InvalidName, DiskFull, Busy, NoAnswer.
        """
        session = secrets.token_bytes(SESSION_BYTES)
        produce = Produce(0, topic, partition, "", 0, -1, session, 0, b"", batch.crc)
        self.welcome()
        answer = self._exchange(produce, batch.raw).message
        if not isinstance(answer, Produced):
            raise _refused(answer)
        self._place = highest(self._place, place_in(answer))
        return answer

    # --- one question ----------------------------------------------------------------------------

    def _ask(self, message: Any, kind: type[Answer] | tuple[type[Answer], ...]) -> Answer:
        self.welcome()
        return self._ask_once(message, kind)

    def _ask_once(self, message: Any, kind: type[Answer] | tuple[type[Answer], ...]) -> Answer:
        answer = self._exchange(message).message
        if not isinstance(answer, kind):
            raise _refused(answer)
        return answer

    def _exchange(self, message: Any, body: bytes | memoryview | None = None) -> Received:
        """Send until an answer comes. A broker that restarted meanwhile gets a hello first."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            self._request += 1
            numbered = replace(message, request=self._request)
            self._transport.send(b"", wire.encode(numbered, body))
            received = self._wait(min(deadline, time.monotonic() + RESEND_MS / 1000))
            if received is None:
                if time.monotonic() >= deadline:
                    raise NoAnswer(f"no broker answers at {self._endpoint}")
                continue
            answer = received.message
            if isinstance(answer, Failure) and answer.code == "hello_required":
                self._welcome = None
                self.welcome()
                continue
            return received

    def _wait(self, until: float) -> Received | None:
        while (left := until - time.monotonic()) > 0:
            for peer, frames in self._transport.poll(max(1, int(left * 1000))):
                received = wire.decode(peer, frames)
                if received.message.request == self._request:
                    return received
        return None


def _refused(answer: Message) -> OnceMQError:
    if isinstance(answer, Failure):
        return from_code(answer.code, answer.reason, answer.hint)
    return ProtocolError(f"the broker answered with {type(answer).__name__}")
