"""The producer core: epochs and numbers from the broker, fencing, questions asked until answered."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from oncemq.codec import batch as batch_codec
from oncemq.core.client.connection import Reconnect
from oncemq.core.client.producer import (
    Describe,
    Opened,
    ProducerCore,
    Start,
    Submit,
    TopicKnown,
    TopicRefused,
)
from oncemq.core.client.send_window import REFUSALS_TOLD, Settled
from oncemq.errors import Busy, DiskFull, Fenced, LogRegressed, StoreMismatch, TopicExists
from oncemq.limits import BACKOFF_FIRST_MS, RESEND_MS, SILENCE_MS
from oncemq.outcome import Outcome, Received, Stop, Tick
from oncemq.protocol import DescribeTopic, Failure, InitProducer, Produce
from oncemq.records import TopicCreated
from tests.core.broker.dumb_broker import DumbBroker

NONCES = (count.to_bytes(16, "big") for count in itertools.count())


class Run:
    """One incarnation of a producer against a broker."""

    def __init__(self, broker: DumbBroker, name: str = "importer") -> None:
        self.broker = broker
        self.peer = next(NONCES)
        self.core = ProducerCore(
            name,
            incarnation=self.peer,
            label="a test",
            endpoint="tcp://test",
            entropy=lambda: next(NONCES),
        )
        self.now_ms = 0
        self.requests: list[Any] = []
        self.work: list[Any] = []
        self.take(self.core.step(Start(), 0))

    def take(self, out: Outcome) -> None:
        self.requests += out.sends_after_sync
        self.work += out.work
        assert not out.appends

    def post(self, event: Any) -> None:
        self.take(self.core.step(event, self.now_ms))

    def exchange(self) -> None:
        while self.requests:
            answer = self.broker.handle_send(self.peer, self.requests.pop(0))
            self.post(Received(b"", answer))

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass as a driver does: Tick when the core asked to be woken."""
        end = self.now_ms + milliseconds
        while (wake := self.core.wake_at_ms) is not None and wake <= end:
            self.now_ms = max(wake, self.now_ms + 1)
            self.post(Tick())
        self.now_ms = end

    def send(self, *values: bytes, ids: list[bytes] | None = None, digest: bytes = b"") -> None:
        batch = batch_codec.build(list(values), encodings=0, ids=ids)
        self.post(Submit("t", 0, batch, list(values), digest))

    def of(self, kind: type) -> list[Any]:
        return [item for item in self.work if isinstance(item, kind)]

    def on_the_way(self, kind: type) -> list[Any]:
        return [send.message for send in self.requests if isinstance(send.message, kind)]


def opened(broker: DumbBroker, name: str = "importer") -> Run:
    run = Run(broker, name)
    run.exchange()
    assert len(run.of(Opened)) == 1
    return run


def test_a_named_producer_opens_with_its_epoch() -> None:
    """InitProducer is asked after the Welcome and answers epoch and next numbers."""
    run = Run(DumbBroker())
    assert run.on_the_way(InitProducer) == []
    run.exchange()
    assert run.of(Opened) == [Opened(1, ())]


def test_numbers_go_on_where_the_log_ends() -> None:
    """A new incarnation counts on from the broker's next number: no hole, no number twice."""
    broker = DumbBroker()
    first = opened(broker)
    first.send(b"0", b"1", digest=b"d" * 16)
    first.exchange()
    second = opened(broker)
    assert second.of(Opened) == [Opened(2, (("t", 0, 2, b"d" * 16),))]
    second.send(b"2")
    second.send(b"3")
    assert [p.first_sequence for p in second.on_the_way(Produce)] == [2, 3]
    second.exchange()
    assert [message.number for message in broker.logs["t", 0]] == [0, 1, 2, 3]


def test_a_lost_answer_to_init_costs_no_epoch() -> None:
    """InitProducer asked twice under one nonce is one grant."""
    broker = DumbBroker()
    run = Run(broker)
    broker.handle_send(run.peer, run.requests[0])
    run.exchange()
    run = Run(broker, "other")
    run.post(Received(b"", broker.handle_send(run.peer, run.requests.pop(0))))
    broker.handle_send(run.peer, run.requests.pop(0))  # the answer is lost
    run.pass_time(RESEND_MS)
    run.exchange()
    assert broker.epochs["other"][0] == 1
    assert run.of(Opened) == [Opened(1, ())]


def test_a_second_owner_fences_the_first() -> None:
    """The older incarnation ends with Fenced, at its next batch, and sends nothing after."""
    broker = DumbBroker()
    first = opened(broker)
    second = opened(broker)
    first.send(b"old")
    first.exchange()
    (stop,) = first.of(Stop)
    assert isinstance(stop.error, Fenced)
    assert first.of(Settled) == []
    first.post(Submit("t", 0, batch_codec.build([b"x"], encodings=0), None))
    first.pass_time(10 * SILENCE_MS)
    assert first.requests == []
    second.send(b"new")
    second.exchange()
    assert broker.bodies("t") == [b"new"]


def test_a_superseded_nonce_is_fenced_before_it_opens() -> None:
    """An incarnation whose grant was taken over while its answer was lost ends Fenced."""
    broker = DumbBroker()
    late = Run(broker)
    late.post(Received(b"", broker.handle_send(late.peer, late.requests.pop(0))))
    broker.handle_send(late.peer, late.requests.pop(0))
    opened(broker)
    late.pass_time(RESEND_MS)
    late.exchange()
    (stop,) = late.of(Stop)
    assert isinstance(stop.error, Fenced)
    assert late.of(Opened) == []


def test_an_anonymous_producer_opens_with_the_welcome() -> None:
    """Without a name there is no epoch to wait for, and nothing is asked."""
    run = opened(DumbBroker(), name="")
    run.send(b"a", ids=[b"sa"])
    assert run.on_the_way(Produce)[0].producer == ""
    run.exchange()
    assert run.of(Settled)[0].runs == ((1, 0, 0),)


def test_an_anonymous_producer_has_no_numbers() -> None:
    """A batch without ids from an anonymous producer is a bug of ours, not a message."""
    run = opened(DumbBroker(), name="")
    with pytest.raises(AssertionError):
        run.send(b"a")


def test_a_topic_is_described_once() -> None:
    """Describe is answered with the partition count; asking twice at once is one question."""
    run = opened(DumbBroker(partitions=3))
    run.post(Describe("t"))
    run.post(Describe("t"))
    assert len(run.on_the_way(DescribeTopic)) == 1
    run.exchange()
    assert run.of(TopicKnown) == [TopicKnown("t", b"T" * 16, 3)]


def test_questions_survive_a_restart_of_the_broker() -> None:
    """What was asked of a broker that died is asked of its successor."""
    broker = DumbBroker()
    run = opened(broker)
    run.post(Describe("t"))
    run.requests.clear()
    broker.restart()
    run.pass_time(RESEND_MS)
    run.exchange()
    assert len(run.of(TopicKnown)) == 1


def test_a_full_disk_delays_questions() -> None:
    """A retriable refusal of a question is asked again after a growing pause."""
    broker = DumbBroker(refusals=["disk_full"] * 2)
    run = Run(broker)
    run.exchange()
    assert run.of(Opened) == []
    run.pass_time(BACKOFF_FIRST_MS - 1)
    assert run.on_the_way(InitProducer) == []
    run.pass_time(1)
    run.exchange()
    run.pass_time(BACKOFF_FIRST_MS)
    assert run.on_the_way(InitProducer) == []
    run.pass_time(BACKOFF_FIRST_MS)
    run.exchange()
    assert len(run.of(Opened)) == 1


def test_a_full_table_is_told_at_once() -> None:
    """A table of topics or names does not empty by itself: no second question, an error instead."""
    run = opened(DumbBroker())
    run.broker.refusals = ["busy"]
    run.post(Describe("one-more"))
    run.exchange()
    (refused,) = run.of(TopicRefused)
    assert isinstance(refused.error, Busy)
    assert run.of(Stop) == []
    named = Run(DumbBroker(refusals=["busy"]))
    named.exchange()
    (stop,) = named.of(Stop)
    assert isinstance(stop.error, Busy)


@pytest.mark.parametrize("what", ["question", "batch"])
def test_what_is_refused_again_and_again_has_a_cause(what: str) -> None:
    """After 1.5 s the producer can say why it waits; once it is served there is no cause any more."""
    run = opened(DumbBroker())
    run.broker.refusals = ["disk_full"] * REFUSALS_TOLD
    if what == "question":
        run.post(Describe("t"))
    else:
        run.send(b"0")
    causes = []
    for pause in range(REFUSALS_TOLD):
        run.exchange()
        causes.append(run.core.held_by)
        run.pass_time(BACKOFF_FIRST_MS << pause)
    assert causes[:-1] == [None] * (REFUSALS_TOLD - 1)
    assert isinstance(causes[-1], DiskFull)
    run.exchange()
    assert run.core.held_by is None
    assert len(run.of(TopicKnown if what == "question" else Settled)) == 1


def test_a_refused_topic_stops_only_itself() -> None:
    """A refused topic is reported; the producer goes on."""
    run = opened(DumbBroker(refusals=[]))
    run.post(Describe("t"))
    request = run.on_the_way(DescribeTopic)[0].request
    run.requests.clear()
    run.post(Received(b"", Failure(request, "topic_exists", "no", "", -1)))
    (refused,) = run.of(TopicRefused)
    assert isinstance(refused.error, TopicExists)
    assert run.of(Stop) == []
    run.post(Describe("t"))
    run.exchange()
    assert len(run.of(TopicKnown)) == 1


def test_another_log_behind_the_endpoint_ends_the_producer() -> None:
    """A data directory that was wiped or swapped is found at the next hello: StoreMismatch."""
    broker = DumbBroker()
    run = opened(broker)
    broker.restart()
    broker.log_id = b"M" * 16
    run.send(b"0")
    run.exchange()
    (stop,) = run.of(Stop)
    assert isinstance(stop.error, StoreMismatch)
    run.pass_time(10 * SILENCE_MS)
    run.send(b"1")
    assert run.requests == []
    assert broker.bodies("t") == []


def test_a_log_cut_below_an_acknowledgement_ends_the_producer() -> None:
    """The same log without messages that it acknowledged is LogRegressed."""
    broker = DumbBroker()
    run = opened(broker)
    run.send(b"0")
    run.exchange()
    broker.lose_log()
    run.send(b"1")
    run.exchange()
    (stop,) = run.of(Stop)
    assert isinstance(stop.error, LogRegressed)


def test_a_log_cut_below_the_granted_numbers_ends_the_producer() -> None:
    """The numbers of ProducerReady count like acknowledgements."""
    broker = DumbBroker()
    first = opened(broker)
    first.send(b"0", b"1")
    first.exchange()
    second = opened(broker)
    broker.lose_log()
    second.send(b"2")
    second.exchange()
    (stop,) = second.of(Stop)
    assert isinstance(stop.error, LogRegressed)


def test_a_late_second_answer_does_not_turn_numbers_back() -> None:
    """The answer to an InitProducer asked twice comes late: numbers given since then stay given."""
    broker = DumbBroker()
    first = opened(broker)
    first.send(b"0")
    first.exchange()
    run = Run(broker)
    run.post(Received(b"", broker.handle_send(run.peer, run.requests.pop(0))))
    run.pass_time(RESEND_MS)
    assert len(run.on_the_way(InitProducer)) == 2
    late = broker.handle_send(run.peer, run.requests.pop(0))
    run.exchange()
    run.send(b"1")
    run.exchange()
    run.post(Received(b"", late))
    run.send(b"2")
    run.exchange()
    assert broker.bodies("t") == [b"0", b"1", b"2"]
    assert len(run.of(Opened)) == 1


def test_an_idle_producer_keeps_quiet() -> None:
    """With nothing owed there are no pings and no timers."""
    run = opened(DumbBroker())
    assert run.core.wake_at_ms is None
    run.pass_time(10 * SILENCE_MS)
    assert run.requests == []


def test_a_silent_broker_is_looked_for_again() -> None:
    """While a batch is owed, silence makes the shell reopen the socket."""
    run = opened(DumbBroker())
    run.send(b"0")
    run.requests.clear()
    run.pass_time(SILENCE_MS)
    assert run.of(Reconnect) == [Reconnect()]
    run.peer = b"fresh"
    run.exchange()
    assert run.broker.bodies("t") == [b"0"]


def test_a_producer_has_no_log() -> None:
    """A producer never claims to survive: nothing to apply, nothing in a snapshot."""
    core = Run(DumbBroker()).core
    assert core.snapshot().parts == {}
    core.restore({})
    with pytest.raises(AssertionError):
        core.apply(TopicCreated("t", b"", 1, 0), 0)
