"""A client's connection to the broker: hello, signs of life, and what must never change.

Theory of operation. A transport may lose anything at any time, silently, so a client asks: while
the broker owes an answer and sends nothing for PING_MS, the client pings, and after SILENCE_MS it
gives the socket up (`Reconnect`) and says hello again (the lazy pirate pattern of the ZeroMQ guide,
chapter 4). A restarted broker knows no connection and answers HelloRequired; the client then says
hello at once. Every accepted Welcome adds one to `sessions`: an owner of requests in flight compares
that number and sends all of them again, in order. Sending twice is safe everywhere, since the broker
judges by ids and numbers.

Three things must never change under a running client. The log is the one it began with (`log_id`;
else StoreMismatch), and the broker is never an older one than was met before (`epoch`; an older one
is a zombie, and the client waits for its successor). And the log has the past that the client relies
on: each hello but the first names the furthest place of it (`rely`), and a broker whose data was
restored or copied refuses (LogRegressed). docs/PROTOCOL.md, "Connection".

The owner calls `start` once, `received` with every message (any message is a sign of life), and
`tick` at the end of every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import Busy, OnceMQError, StoreMismatch, from_code
from ...history import NO_PLACE, Place, highest
from ...limits import NO_BROKER_WARNING_MS, PING_MS, RESEND_MS, SILENCE_MS
from ...outcome import Outcome, Send, Stop
from ...protocol import (
    SETTINGS_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    DescribeTopic,
    Failure,
    Hello,
    Message,
    Ping,
    Pong,
    TopicDescribed,
    Welcome,
)
from ...topic_settings import TopicWish

BROKER = b""  # the peer of every client
PLACES_VERSION = 3  # of the protocol: brokers before it know no marks


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Work for the shell: close the socket and connect again under a fresh routing id."""


def is_final(error: OnceMQError) -> bool:
    """Return whether the refusal of a question (a topic, an epoch, a grant) does not pass.

    A question meets Busy at a table that only grows, so asking again would wait for ever and name
    no cause. A batch or a fetch meets it at a queue that empties.
    """
    return not error.retriable or isinstance(error, Busy)


@dataclass(frozen=True, slots=True)
class Reopened:
    """Event: another client of the process has opened the shared connection anew: say hello."""


class Connection:
    """The client side of hello, ping and silence. Pure: times come in, messages go out."""

    def __init__(
        self,
        role: str,
        incarnation: bytes,
        endpoint: str,
        *,
        log_id_seen: bytes = b"",
        first_request: int = 1,
    ) -> None:
        """Speak as `role` to the broker at `endpoint` (only named in events).

        `log_id_seen` is the log that a ledger was built on; b"" accepts any log at first. Requests
        are numbered from `first_request` on.
        """
        self._role = role
        self._incarnation = incarnation
        self.endpoint = endpoint
        self._next_request = first_request
        # Whether the broker has sent a Welcome since the last Hello. Invariant: only Hello is sent
        # while it is False.
        self.ready = False
        # Welcomes accepted so far. Invariant: grows whenever requests in flight may be lost.
        self.sessions = 0
        # The log of this client. Invariant: once set it never changes; another log ends the client.
        self.log_id = log_id_seen
        self.lineage = b""
        # That the log of `lineage` has `epoch`, for its original; b"" where it is no restored one.
        self._proof = b""
        # Highest broker epoch met. Invariant: never falls.
        self.epoch = 0
        # The version of the protocol that the last Welcome named; 0 before the first.
        self.version = 0
        # Topics that the program has declared. The owner sets it before it asks for topics.
        self.wishes: Mapping[str, TopicWish] = {}
        # The furthest place that the owner relies on. Invariant: never falls.
        self.place = NO_PLACE
        # When a Tick is wanted; None: never. Set by `tick`.
        self.wake_at_ms: int | None = None
        # Number and time of the last Hello; 0 before the first. Invariant: every request with a
        # higher number was sent after it.
        self._hello_request = 0
        self._hello_at_ms = 0
        self._ping_at_ms = 0
        # Since when the broker owes an answer and sends nothing; None: it owes nothing.
        self._quiet_since_ms: int | None = None
        # Start of the silence: time of the last message, or when the socket was opened.
        self._reopened_at_ms = 0
        # Whether client.waiting was reported for this silence.
        self._warned = False
        # Epoch of the last refused broker: each is reported once.
        self._refused_epoch = -1

    @property
    def silent(self) -> bool:
        """Whether the broker owes an answer and has sent nothing for NO_BROKER_WARNING_MS."""
        return self._warned

    def next_request(self) -> int:
        """Return a fresh request number; numbers grow and are never used twice."""
        number = self._next_request
        self._next_request = number + 1
        return number

    def ask_for_topic(self, request: int, topic: str) -> DescribeTopic:
        """Return the question for a topic, which makes it as the program has declared it."""
        wish = self.wishes.get(topic)
        if wish is None or self.version < SETTINGS_VERSION:
            return DescribeTopic(request, topic, create=True)
        count = 1 if wish.partitions is None else wish.partitions
        return DescribeTopic(request, topic, True, count, wish.dedup, wish.retain)

    def topic_described(self, topic: TopicDescribed, out: Outcome) -> None:
        """Report a topic that is another one than the program has declared."""
        wish = self.wishes.get(topic.topic)
        if wish is not None and not wish.fits(topic.partitions, topic.dedup, topic.retain):
            there = TopicWish(topic.partitions, topic.dedup, topic.retain)
            fields = {"topic": topic.topic, "declared": str(wish), "there": str(there)}
            out.events.append(("topic.differs", fields))

    @property
    def knows_places(self) -> bool:
        """Whether the broker speaks a version that compares places."""
        return self.version >= PLACES_VERSION

    def rely(self, place: Place) -> None:
        """The owner relies on an answer, and so on the broker's log up to this place."""
        self.place = highest(self.place, place)

    def start(self, now_ms: int, out: Outcome) -> None:
        assert self._hello_request == 0, "a connection starts once"
        self._quiet_since_ms = self._reopened_at_ms = now_ms
        self._hello(now_ms, out)
        self._set_wake()

    def reopened(self, now_ms: int, out: Outcome) -> None:
        """The socket is another one, and it was not this class that asked for it."""
        if self._hello_request:
            self._reopened_at_ms = now_ms
            self._hello(now_ms, out)

    def received(self, message: Message, now_ms: int, out: Outcome) -> bool:
        """Take any message from the broker; return whether it belongs to the connection.

        A fatal answer puts a Stop into `out`. After each call compare `sessions`.
        """
        if isinstance(message, Welcome):
            self._welcomed(message, now_ms, out)
            return True
        self._heard(now_ms, out)
        if isinstance(message, Pong):
            return True
        if isinstance(message, Failure):
            return self._refused(message, now_ms, out)
        return False

    def tick(self, now_ms: int, out: Outcome, *, owed: bool) -> None:
        """Ping, reconnect or warn when it is time. `owed`: the owner waits for an answer."""
        if self._hello_request == 0:
            return
        if self.ready and not owed:
            self._quiet_since_ms = None
            self.wake_at_ms = None
            return
        if self._quiet_since_ms is None:
            self._quiet_since_ms = self._reopened_at_ms = self._ping_at_ms = now_ms
        self._warn(now_ms, out)
        if now_ms - self._reopened_at_ms >= SILENCE_MS:
            self._reopened_at_ms = now_ms
            out.work.append(Reconnect())
            self._hello(now_ms, out)
        elif not self.ready:
            if now_ms - self._hello_at_ms >= RESEND_MS:
                self._hello(now_ms, out)
        elif now_ms - self._ping_at_ms >= PING_MS:
            self._ping_at_ms = now_ms
            out.sends_after_sync.append(Send(BROKER, Ping(self.next_request())))
        self._set_wake()

    def _set_wake(self) -> None:
        assert self._quiet_since_ms is not None
        wake = self._reopened_at_ms + SILENCE_MS
        if not self._warned:
            wake = min(wake, self._quiet_since_ms + NO_BROKER_WARNING_MS)
        again = self._ping_at_ms + PING_MS if self.ready else self._hello_at_ms + RESEND_MS
        self.wake_at_ms = min(wake, again)

    def _hello(self, now_ms: int, out: Outcome) -> None:
        self.ready = False
        self._hello_request = self.next_request()
        self._hello_at_ms = now_ms
        hello = Hello(
            self._hello_request,
            VERSION_MIN,
            VERSION_MAX,
            self._role,
            self._incarnation,
            self.log_id,
            self.epoch,
            *(self.place if self.knows_places else NO_PLACE),
            *((self.lineage, self._proof) if self._proof else (b"", b"")),
        )
        out.sends_after_sync.append(Send(BROKER, hello))

    def _heard(self, now_ms: int, out: Outcome) -> None:
        if self._quiet_since_ms is not None:
            self._quiet_since_ms = self._reopened_at_ms = self._ping_at_ms = now_ms
        if self._warned and self.ready:
            self._say_reconnected(out)

    def _warn(self, now_ms: int, out: Outcome) -> None:
        assert self._quiet_since_ms is not None
        waited = now_ms - self._quiet_since_ms
        if waited >= NO_BROKER_WARNING_MS and not self._warned:
            self._warned = True
            out.events.append(("client.waiting", {"endpoint": self.endpoint, "waited_ms": waited}))

    def _say_reconnected(self, out: Outcome) -> None:
        self._warned = False
        fields = {"endpoint": self.endpoint, "epoch": self.epoch, "log_id": self.log_id.hex()}
        out.events.append(("client.reconnected", fields))

    def _welcomed(self, welcome: Welcome, now_ms: int, out: Outcome) -> None:
        if self.log_id not in {b"", welcome.log_id}:
            out.work.append(Stop(self._other_log(welcome.log_id)))
            return
        if welcome.epoch < self.epoch:  # a zombie: its successor was met before
            if welcome.epoch != self._refused_epoch:
                self._refused_epoch = welcome.epoch
                out.events.append(
                    (
                        "client.refused_broker",
                        {
                            "endpoint": self.endpoint,
                            "epoch": welcome.epoch,
                            "epoch_seen": self.epoch,
                        },
                    )
                )
            return
        if self.ready and welcome.epoch == self.epoch:  # a second answer, after two hellos
            self._heard(now_ms, out)
            return
        first = self.sessions == 0
        self.ready = True
        self.sessions += 1
        self.log_id, self.lineage, self.epoch = welcome.log_id, welcome.lineage, welcome.epoch
        self.version, self._proof = welcome.version, welcome.proof
        self._quiet_since_ms = self._reopened_at_ms = self._ping_at_ms = now_ms
        if first:
            self._warned = False
            fields = {"endpoint": self.endpoint, "epoch": self.epoch, "log_id": self.log_id.hex()}
            out.events.append(("client.connected", fields))
        else:
            self._say_reconnected(out)

    def _refused(self, failure: Failure, now_ms: int, out: Outcome) -> bool:
        """False if the failure answers a request of the owner."""
        if failure.code == "hello_required":
            # An answer to a request older than the last hello is about the connection before.
            if failure.request > self._hello_request:
                self._hello(now_ms, out)
            return True
        if failure.request != self._hello_request:
            return False
        error = from_code(failure.code, failure.reason, failure.hint)
        # `fenced`: this broker learned of a higher epoch and is ending; its successor will come.
        if not error.retriable and failure.code != "fenced":
            out.work.append(Stop(error))
        return True

    def _other_log(self, log_id: bytes) -> OnceMQError:
        return StoreMismatch(
            f"the broker at {self.endpoint} has log {log_id.hex()}, "
            f"this {self._role} works with log {self.log_id.hex()}"
        )
