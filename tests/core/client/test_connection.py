"""The client's connection: hello, signs of life, and what must never change."""

from __future__ import annotations

from dataclasses import replace

from oncemq.core.client.connection import Connection, Reconnect
from oncemq.errors import StoreMismatch, VersionMismatch
from oncemq.limits import NO_BROKER_WARNING_MS, PING_MS, RESEND_MS, SILENCE_MS
from oncemq.outcome import Outcome, Stop
from oncemq.protocol import Failure, Hello, Message, Ping, Pong, Produced, Welcome

ENDPOINT = "tcp://127.0.0.1:7400"
LOG = b"L" * 16


class Client:
    """A connection and what it has asked for."""

    def __init__(self, log_id_seen: bytes = b"") -> None:
        self.connection = Connection("producer", b"i" * 16, ENDPOINT, log_id_seen=log_id_seen)
        self.out = Outcome()

    def start(self) -> Hello:
        self.connection.start(0, self.out)
        (hello,) = self.sent(Hello)
        return hello

    def tick(self, now_ms: int, *, owed: bool = True) -> None:
        self.connection.tick(now_ms, self.out, owed=owed)

    def receive(self, message: Message, now_ms: int = 0) -> bool:
        return self.connection.received(message, now_ms, self.out)

    def sent(self, kind: type[Message]) -> list[Message]:
        mine = [send for send in self.out.sends_after_sync if isinstance(send.message, kind)]
        for send in mine:
            self.out.sends_after_sync.remove(send)
        return [send.message for send in mine]

    def events(self) -> list[str]:
        names = [name for name, _ in self.out.events]
        self.out.events.clear()
        return names

    def stop(self) -> Stop | None:
        return next((item for item in self.out.work if isinstance(item, Stop)), None)


def welcome(request: int, *, epoch: int = 1, log_id: bytes = LOG) -> Welcome:
    return Welcome(request, 1, log_id, log_id, epoch)


def open_client() -> Client:
    client = Client()
    client.receive(welcome(client.start().request))
    client.tick(0)
    client.events()
    return client


def test_hello_opens_the_connection() -> None:
    """A client says hello first and is ready after the Welcome, whose log it remembers."""
    client = Client()
    client.tick(10 * SILENCE_MS)
    assert client.out.sends_after_sync == []
    assert client.connection.endpoint == ENDPOINT
    hello = client.start()
    assert (hello.log_id_seen, hello.epoch_seen, client.connection.ready) == (b"", 0, False)
    assert client.receive(welcome(hello.request, epoch=4))
    assert client.connection.ready
    assert (client.connection.sessions, client.connection.epoch) == (1, 4)
    assert client.connection.log_id == LOG
    assert client.events() == ["client.connected"]


def test_a_hello_repeats_the_proof_of_a_restored_log() -> None:
    """Of the last Welcome, with its epoch: whoever is the original of that log ends."""
    client = Client()
    restored = replace(
        welcome(client.start().request, epoch=9), lineage=b"l" * 16, proof=b"p" * 16, version=4
    )
    client.receive(restored)
    client.connection.reopened(1, client.out)
    [hello] = client.sent(Hello)
    assert (hello.epoch_seen, hello.lineage, hello.proof) == (9, b"l" * 16, b"p" * 16)
    client.receive(welcome(hello.request, epoch=10))
    client.connection.reopened(2, client.out)
    [hello] = client.sent(Hello)
    assert (hello.epoch_seen, hello.lineage, hello.proof) == (10, b"", b"")


def test_hello_is_repeated_until_answered() -> None:
    """A lost hello is sent again after RESEND_MS and not before."""
    client = Client()
    client.start()
    client.tick(RESEND_MS - 1)
    assert client.sent(Hello) == []
    assert client.connection.wake_at_ms == RESEND_MS
    client.tick(RESEND_MS)
    assert len(client.sent(Hello)) == 1


def test_two_welcomes_are_one_session() -> None:
    """The second answer to a hello said twice is no reason to send everything again."""
    client = Client()
    first = client.start()
    client.tick(RESEND_MS)
    (second,) = client.sent(Hello)
    client.receive(welcome(first.request))
    client.receive(welcome(second.request))
    assert client.connection.sessions == 1


def test_a_welcome_of_a_newer_epoch_is_a_new_session() -> None:
    """A Welcome that shows another start of the broker counts even if we thought to be ready."""
    client = open_client()
    client.receive(welcome(99, epoch=2))
    assert client.connection.sessions == 2


def test_silence_while_something_is_owed_is_broken_by_pings() -> None:
    """A ping goes out after PING_MS of silence, only while the broker owes an answer."""
    client = open_client()
    client.tick(PING_MS * 4, owed=False)
    assert client.connection.wake_at_ms is None
    start = PING_MS * 10
    client.tick(start)
    assert client.sent(Ping) == []
    assert client.connection.wake_at_ms == start + PING_MS
    client.tick(start + PING_MS)
    assert len(client.sent(Ping)) == 1
    assert not client.out.work


def test_any_traffic_is_a_sign_of_life() -> None:
    """An answer to anything puts off pings and hellos."""
    client = open_client()
    for now_ms in range(0, 5 * SILENCE_MS, PING_MS - 1):
        assert not client.receive(Produced(1, 1, ()), now_ms)
        client.tick(now_ms)
    assert client.sent(Ping) == []
    assert client.sent(Hello) == []


def test_long_silence_reopens_the_socket_and_says_hello() -> None:
    """After SILENCE_MS of silence the socket is given up, again and again."""
    client = open_client()
    client.tick(SILENCE_MS - 1)
    assert client.out.work == []
    client.tick(SILENCE_MS)
    assert client.out.work == [Reconnect()]
    assert len(client.sent(Hello)) == 1
    assert not client.connection.ready
    client.tick(2 * SILENCE_MS)
    assert client.out.work == [Reconnect(), Reconnect()]


def test_a_broker_that_forgot_us_gets_a_hello_at_once() -> None:
    """HelloRequired is answered by one hello, however many requests were refused with it."""
    client = open_client()
    refused = [client.connection.next_request() for _ in range(3)]
    for request in refused:
        assert client.receive(Failure(request, "hello_required", "", "", -1))
    (hello,) = client.sent(Hello)
    assert (hello.log_id_seen, hello.epoch_seen) == (LOG, 1)
    assert not client.connection.ready
    client.receive(welcome(hello.request, epoch=2))
    assert client.connection.sessions == 2
    assert client.events() == ["client.reconnected"]


def test_old_news_of_a_forgotten_connection_is_ignored() -> None:
    """HelloRequired for a request older than the last hello does not close the new connection."""
    client = open_client()
    old = client.connection.next_request()
    client.tick(SILENCE_MS)
    (hello,) = client.sent(Hello)
    client.receive(welcome(hello.request))
    client.receive(Failure(old, "hello_required", "", "", -1))
    assert client.connection.ready
    assert client.sent(Hello) == []


def test_an_older_broker_is_never_used() -> None:
    """A Welcome of a lower epoch comes from a zombie: the client goes on waiting, and reports it."""
    client = open_client()
    client.receive(welcome(50, epoch=3))
    client.events()
    client.tick(SILENCE_MS)
    (hello,) = client.sent(Hello)
    client.receive(welcome(hello.request, epoch=2), SILENCE_MS)
    client.receive(welcome(hello.request, epoch=2), SILENCE_MS)
    assert not client.connection.ready
    assert client.connection.epoch == 3
    assert client.events().count("client.refused_broker") == 1
    client.tick(2 * SILENCE_MS)
    assert client.out.work.count(Reconnect()) == 2


def test_another_log_ends_the_client() -> None:
    """A broker with another log is never worked with: StoreMismatch."""
    client = open_client()
    client.receive(welcome(50, log_id=b"M" * 16))
    stop = client.stop()
    assert stop is not None
    assert isinstance(stop.error, StoreMismatch)


def test_a_ledger_knows_its_log_before_the_first_hello() -> None:
    """A client that was built on a log refuses another one at the first Welcome."""
    client = Client(log_id_seen=b"M" * 16)
    client.receive(welcome(client.start().request))
    assert client.stop() is not None


def test_a_version_mismatch_ends_the_client() -> None:
    """A hello that is refused for good stops the client with the broker's reason."""
    client = Client()
    hello = client.start()
    assert client.receive(Failure(hello.request, "version_mismatch", "upgrade it", "", -1))
    stop = client.stop()
    assert stop is not None
    assert isinstance(stop.error, VersionMismatch)


def test_a_busy_or_fenced_broker_is_asked_again() -> None:
    """A hello refused by a full or an ending broker is sent again later."""
    for code in ("busy", "fenced"):
        client = Client()
        hello = client.start()
        assert client.receive(Failure(hello.request, code, "", "", -1))
        assert client.stop() is None
        client.tick(RESEND_MS)
        assert len(client.sent(Hello)) == 1


def test_a_missing_broker_is_told_once() -> None:
    """After NO_BROKER_WARNING_MS one event names the endpoint; one more says when it is over."""
    client = Client()
    client.start()
    for now_ms in range(0, 3 * NO_BROKER_WARNING_MS, 100):
        client.tick(now_ms)
    ((name, fields),) = client.out.events
    assert (name, fields["endpoint"]) == ("client.waiting", ENDPOINT)
    assert client.connection.silent
    client.events()
    client.receive(welcome(client.sent(Hello)[-1].request), 3 * NO_BROKER_WARNING_MS)
    assert client.events() == ["client.connected"]
    assert not client.connection.silent


def test_a_silent_broker_that_speaks_again_is_told() -> None:
    """A broker that was frozen and answers a ping without a new hello ends the warning."""
    client = open_client()
    for now_ms in range(0, NO_BROKER_WARNING_MS + 1, PING_MS):
        client.tick(now_ms)
    assert client.events() == ["client.waiting"]
    client.receive(Pong(1, 1), NO_BROKER_WARNING_MS + 1)
    assert client.events() == ["client.reconnected"]


def test_failures_of_requests_are_the_owners() -> None:
    """A refusal that is not about the connection goes to the owner of the request."""
    client = open_client()
    assert not client.receive(Failure(client.connection.next_request(), "gap", "", "", 0))
