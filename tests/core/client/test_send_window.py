"""The send window: every batch reaches the broker once, in order, over any network."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import batch as batch_codec
from oncemq.core.client.connection import Connection
from oncemq.core.client.send_window import ATTEMPTS_KEPT, EXPLICIT, SendWindow, Settled
from oncemq.errors import BadCreatedAt, Fenced, LogRegressed, OnceMQError
from oncemq.limits import BACKOFF_FIRST_MS, LIMITS, RESEND_MS
from oncemq.outcome import Outcome, Send
from oncemq.protocol import DUPLICATE, STORED, Failure, Produce, Produced
from oncemq.records import Output
from tests.core.broker.dumb_broker import DumbBroker

NAME = "importer"
PEER = b"p"


class Sender:
    """A send window, its connection and a broker, with every message in the test's hands."""

    def __init__(self, broker: DumbBroker | None = None, **options: Any) -> None:
        self.broker = broker or DumbBroker()
        self.broker.epochs.setdefault(NAME, (1, [b"n"]))
        self.now_ms = 0
        self.connection = Connection("producer", b"i" * 16, "tcp://test")
        sessions = itertools.count()
        self.window = SendWindow(
            self.connection,
            producer=NAME,
            epoch=1,
            entropy=lambda: next(sessions).to_bytes(16, "big"),
            batches_max=LIMITS.in_flight_batches_max,
            **options,
        )
        self.settled: list[Settled] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.requests: list[Send] = []  # to the broker, not delivered
        self.answers: list[Any] = []  # to the window, not delivered
        self.numbers: dict[int, int] = {}
        out = Outcome()
        self.connection.start(0, out)
        self._finish(out)

    def add(self, *values: bytes, partition: int = 0, ids: list[bytes] | None = None) -> None:
        batch = batch_codec.build(list(values), encodings=0, ids=ids)
        first = EXPLICIT
        if ids is None:
            first = self.numbers.get(partition, 0)
            self.numbers[partition] = first + len(values)
        self.window.add(
            "t",
            partition,
            first_sequence=first,
            count=batch.count,
            raw=batch.raw,
            crc=batch.crc,
            token=list(values),
        )
        self.step()

    def step(self) -> None:
        self._finish(Outcome())

    def _finish(self, out: Outcome) -> None:
        self.window.advance(self.now_ms, out)
        self.connection.tick(self.now_ms, out, owed=self.window.owed)
        self.requests += out.sends_after_sync
        self.events += out.events
        assert not out.sends, "what a peer may rely on leaves after the sync"

    def receive(self, answer: Any) -> None:
        out = Outcome()
        if not self.connection.received(answer, self.now_ms, out):
            self.settled += self.window.received(answer, self.now_ms, out)
        self._finish(out)

    def broker_takes(self, index: int = 0) -> None:
        """Let one request reach the broker; its answer waits."""
        self.answers.append(self.broker.handle_send(PEER, self.requests.pop(index)))

    def run(self) -> None:
        """Deliver everything in order until nothing is on the way."""
        for _ in range(10_000):
            if self.requests:
                self.broker_takes()
            elif self.answers:
                self.receive(self.answers.pop(0))
            else:
                return
        raise AssertionError("the exchange does not end")

    def pass_time(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        self.step()

    def run_until_settled(self) -> None:
        """Heal the network and let time pass until every batch has its verdict."""
        for _ in range(200):
            self.run()
            if not self.window.owed:
                return
            self.pass_time(100)
        raise AssertionError("a batch never got its verdict")

    def produces(self) -> list[Produce]:
        return [send.message for send in self.requests if isinstance(send.message, Produce)]

    def drop_requests(self) -> None:
        self.requests.clear()


def ready(broker: DumbBroker | None = None, **options: Any) -> Sender:
    sender = Sender(broker, **options)
    sender.run()
    return sender


def test_batches_are_stored_in_order_and_settled_in_order() -> None:
    """What is added is stored once, in order, and each batch gets its own verdict."""
    sender = ready()
    for number in range(5):
        sender.add(b"%d" % number)
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1", b"2", b"3", b"4"]
    assert [settled.token for settled in sender.settled] == [[b"%d" % n] for n in range(5)]
    assert [settled.runs for settled in sender.settled] == [((1, STORED, n),) for n in range(5)]
    assert not sender.window.owed


def test_nothing_is_sent_before_the_welcome() -> None:
    """Batches wait until the broker has welcomed the client."""
    sender = Sender()
    sender.add(b"a")
    assert sender.produces() == []
    sender.run()
    assert sender.broker.bodies("t") == [b"a"]


def test_the_window_bounds_batches_in_flight() -> None:
    """No more than `batches_max` batches of a partition are on their way at once."""
    sender = ready()
    for number in range(LIMITS.in_flight_batches_max + 5):
        sender.add(b"%d" % number)
    assert len(sender.produces()) == LIMITS.in_flight_batches_max
    assert sender.window.waiting
    sender.run()
    assert len(sender.settled) == LIMITS.in_flight_batches_max + 5


def test_the_window_bounds_bytes_in_flight() -> None:
    """Batches wait while the bytes in flight are at their bound; a larger one goes alone."""
    sender = ready(window_bytes=300)
    sender.add(b"x" * 1000)
    sender.add(b"y" * 100)
    sender.add(b"z" * 100)
    assert len(sender.produces()) == 1
    sender.broker_takes()
    sender.receive(sender.answers.pop())
    assert len(sender.produces()) == 2
    sender.run()
    assert len(sender.broker.bodies("t")) == 3


def test_a_lost_batch_is_sent_again_in_order() -> None:
    """A gap makes the client send all that is unacknowledged again, and only once for it."""
    sender = ready()
    for number in range(4):
        sender.add(b"%d" % number)
    del sender.requests[0]
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1", b"2", b"3"]
    assert [event for event, _ in sender.events].count("producer.resent") == 1


def test_a_lost_answer_is_asked_for_again() -> None:
    """Silence makes the client send again; the answer then names the original offset."""
    sender = ready()
    sender.add(b"a")
    sender.broker_takes()
    sender.answers.clear()
    sender.pass_time(RESEND_MS - 1)
    assert sender.produces() == []
    assert sender.window.wake_at_ms == RESEND_MS
    sender.pass_time(1)
    sender.run()
    assert sender.settled[0].runs == ((1, DUPLICATE, 0),)
    assert sender.broker.bodies("t") == [b"a"]


def test_late_answers_to_earlier_attempts_count() -> None:
    """A broker slower than the resend timer still settles batches: any attempt's verdict is it."""
    sender = ready()
    sender.add(b"a")
    sender.broker_takes()
    late = sender.answers.pop()
    sender.pass_time(RESEND_MS)
    sender.drop_requests()
    sender.receive(late)
    assert sender.settled[0].runs == ((1, STORED, 0),)


def test_attempts_are_bounded() -> None:
    """Sending again and again keeps no more than ATTEMPTS_KEPT request numbers a batch."""
    sender = ready()
    sender.add(b"a")
    for _ in range(10 * ATTEMPTS_KEPT):
        sender.pass_time(10 * RESEND_MS)
        sender.connection.ready = True
        sender.step()
        sender.drop_requests()
    assert len(sender.window._by_request) == ATTEMPTS_KEPT


def test_a_restarted_broker_gets_everything_unacknowledged_again() -> None:
    """After a new Welcome all in flight is sent again, in order, before anything new."""
    sender = ready()
    sender.add(b"0")
    sender.run()
    sender.add(b"1")
    sender.add(b"2")
    sender.drop_requests()
    sender.broker.restart()
    sender.add(b"3")
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("code", ["busy", "disk_full"])
def test_a_broker_at_its_bound_is_given_time(code: str) -> None:
    """Busy and DiskFull make the client wait longer and longer, then send the same again."""
    sender = ready()
    sender.broker.refusals = [code] * 2
    sender.add(b"0")
    sender.run()
    assert sender.broker.bodies("t") == []
    sender.pass_time(BACKOFF_FIRST_MS - 1)
    assert sender.produces() == []
    sender.pass_time(1)
    sender.run()
    sender.pass_time(BACKOFF_FIRST_MS)
    assert sender.produces() == []
    sender.pass_time(BACKOFF_FIRST_MS)
    sender.run()
    assert sender.broker.bodies("t") == [b"0"]
    assert sender.window.error is None


def test_held_batches_let_nothing_overtake() -> None:
    """While a batch waits for a full disk, later ones of its partition wait behind it."""
    sender = ready()
    sender.broker.refusals = ["disk_full"]
    sender.add(b"0")
    sender.run()
    sender.add(b"1")
    assert sender.produces() == []
    sender.pass_time(BACKOFF_FIRST_MS)
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1"]


def test_a_log_that_forgot_acknowledged_messages_is_found() -> None:
    """A gap below what was acknowledged before the batch left is LogRegressed, and the end."""
    sender = ready()
    sender.add(b"0")
    sender.run()
    sender.broker.lose_log()
    sender.add(b"1")
    sender.run()
    assert isinstance(sender.window.error, LogRegressed)
    assert sender.broker.bodies("t") == []
    sender.add(b"2")
    assert sender.produces() == []


def test_numbers_that_the_broker_granted_are_acknowledged_ones() -> None:
    """A log that ends below the next number of ProducerReady is LogRegressed too."""
    sender = ready()
    sender.numbers[0] = 7
    sender.window.expect("t", 0, 7)
    sender.add(b"7")
    sender.run()
    assert isinstance(sender.window.error, LogRegressed)


def test_an_old_gap_is_no_regression() -> None:
    """A gap that left the broker before the acknowledged batch arrived there proves nothing."""
    sender = ready()
    sender.add(b"0")
    sender.add(b"1")
    sender.broker_takes(1)  # the second overtakes the first: a gap, expecting 0
    gap = sender.answers.pop()
    assert isinstance(gap, Failure)
    sender.broker_takes(0)
    sender.receive(sender.answers.pop())
    sender.receive(gap)
    assert sender.window.error is None
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1"]


def test_a_gap_of_an_earlier_attempt_is_no_regression() -> None:
    """A gap for an attempt that was repeated since is old news."""
    sender = ready()
    sender.add(b"0")
    sender.add(b"1")
    sender.broker_takes(1)
    gap = sender.answers.pop()
    sender.broker_takes(0)
    stored = sender.answers.pop()
    sender.receive(stored)
    sender.pass_time(RESEND_MS)  # the second goes again, knowing that the first is stored
    sender.receive(gap)
    assert sender.window.error is None
    sender.run()
    assert sender.broker.bodies("t") == [b"0", b"1"]


def test_one_full_disk_is_one_back_off() -> None:
    """A whole window refused at once is one refusal: the pause does not grow with the window."""
    sender = ready()
    sender.broker.refusals = ["disk_full"] * LIMITS.in_flight_batches_max
    for number in range(LIMITS.in_flight_batches_max):
        sender.add(b"%d" % number)
    sender.run()
    sender.pass_time(BACKOFF_FIRST_MS)
    sender.run()
    assert len(sender.broker.bodies("t")) == LIMITS.in_flight_batches_max


def test_refusals_without_progress_do_not_make_a_storm() -> None:
    """The second refusal in a row is not answered at once but after a pause."""
    sender = ready()
    sender.broker.refusals = ["unknown_session"] * 3
    sender.add(b"a", ids=[b"sa"])
    sender.run()
    assert len(sender.broker.refusals) == 1
    sender.run_until_settled()
    assert sender.broker.bodies("t") == [b"a"]


def test_fenced_is_the_end() -> None:
    """A fenced producer sends nothing more and names what is unknown."""
    sender = ready()
    sender.broker.epochs[NAME] = (2, [b"n", b"m"])
    sender.add(b"0")
    sender.add(b"1")
    sender.run()
    assert isinstance(sender.window.error, Fenced)
    assert sender.settled == []
    assert sender.window.unsettled() == [[b"0"], [b"1"]]
    assert not sender.window.owed
    assert sender.window.wake_at_ms is None


def test_an_unknown_producer_means_a_log_that_forgot() -> None:
    """An epoch that was granted and is not known any more is LogRegressed."""
    sender = ready()
    sender.broker.refusals = ["unknown_producer"]
    sender.add(b"0")
    sender.run()
    assert isinstance(sender.window.error, LogRegressed)


def test_a_verdict_on_another_number_of_messages_is_refused() -> None:
    """Runs that do not add up to the batch end the producer: nothing is guessed."""
    sender = ready()
    sender.add(b"0", b"1")
    request = sender.produces()[0].request
    sender.receive(Produced(request, 1, ((1, STORED, 0),)))
    assert isinstance(sender.window.error, OnceMQError)
    assert sender.settled == []


def test_explicit_ids_count_in_a_session_of_their_partition() -> None:
    """Counters start at 0 in each partition and grow by one a batch."""
    sender = ready()
    sender.add(b"a", ids=[b"sa"])
    sender.add(b"b", ids=[b"sb"])
    sender.add(b"c", ids=[b"sc"], partition=1)
    produces = sender.produces()
    assert [produce.counter for produce in produces] == [0, 1, 0]
    assert produces[0].session == produces[1].session != produces[2].session
    sender.run()
    assert len(sender.settled) == 3


def test_an_unknown_session_is_replaced() -> None:
    """A restarted broker knows no session: a new one is counted from 0 and order is kept."""
    sender = ready()
    sender.add(b"a", ids=[b"sa"])
    sender.run()
    sender.add(b"b", ids=[b"sb"])
    sender.add(b"c", ids=[b"sc"])
    sender.drop_requests()
    sender.broker.restart()
    sender.run_until_settled()
    assert sender.broker.bodies("t") == [b"a", b"b", b"c"]
    assert sorted(sender.broker.sessions.values()) == [2]


def test_a_refused_explicit_batch_does_not_stop_the_others() -> None:
    """A batch that is refused for good gets its error; those behind it are stored in order."""
    sender = ready()
    sender.broker.refusals = ["bad_created_at"]
    sender.add(b"a", ids=[b"sa"])
    sender.add(b"b", ids=[b"sb"])
    sender.run_until_settled()
    assert isinstance(sender.settled[0].error, BadCreatedAt)
    assert sender.settled[0].runs == ()
    assert sender.settled[1].error is None
    assert sender.broker.bodies("t") == [b"b"]


def test_a_refused_numbered_batch_ends_the_producer() -> None:
    """A number that was sent is never given to other bytes, so a final refusal is the end."""
    sender = ready()
    sender.broker.refusals = ["too_large"]
    sender.add(b"a")
    sender.run()
    assert sender.window.error is not None
    assert sender.settled == []


def test_kinds_of_ids_do_not_overtake_each_other() -> None:
    """Batches with ids wait until those with numbers before them are settled, and vice versa."""
    sender = ready()
    sender.add(b"0")
    sender.add(b"a", ids=[b"sa"])
    sender.add(b"1")
    assert len(sender.produces()) == 1
    del sender.requests[0]
    sender.run_until_settled()
    assert sender.broker.bodies("t") == [b"0", b"a", b"1"]


def test_outputs_of_a_consumer_keep_their_numbers() -> None:
    """A committed output is sent under the numbers of its commit and settled with its token."""
    sender = ready()
    batch = batch_codec.build([b"x", b"y"], encodings=0)
    output = Output("t", 0, 0, 2, bytes(batch.raw), batch.crc)
    sender.window.add_output(output, token=output)
    sender.step()
    sender.run()
    assert sender.settled[0].token is output
    assert [message.number for message in sender.broker.logs["t", 0]] == [0, 1]


@given(seed=st.integers(0, 2**32), explicit=st.sampled_from(["no", "yes", "mixed"]))
def test_any_network(seed: int, explicit: str) -> None:
    """Drops, duplicates, reordering and restarts: stored once, in order, verdicts true."""
    rng = random.Random(seed)
    sender = Sender()
    count = 0
    for _ in range(60):
        action = rng.random()
        if action < 0.25 and count < 20:
            values = [b"%d.%d" % (count, index) for index in range(rng.randint(1, 3))]
            with_ids = explicit == "yes" or (explicit == "mixed" and rng.random() < 0.5)
            sender.add(*values, ids=[b"s" + value for value in values] if with_ids else None)
            count += 1
        elif action < 0.55 and sender.requests:
            sender.broker_takes(rng.randrange(min(3, len(sender.requests))))
        elif action < 0.8 and sender.answers:
            sender.receive(sender.answers.pop(rng.randrange(min(3, len(sender.answers)))))
        elif action < 0.85 and sender.requests:
            del sender.requests[rng.randrange(len(sender.requests))]
        elif action < 0.88 and sender.answers:
            del sender.answers[rng.randrange(len(sender.answers))]
        elif action < 0.9 and sender.requests:
            sender.requests.append(rng.choice(sender.requests))
        elif action < 0.92:
            sender.broker.restart()
        elif action < 0.94:
            sender.broker.refusals.append(rng.choice(["busy", "disk_full"]))
        else:
            sender.pass_time(rng.choice([1, 100, 1000, 4000]))
    sender.run_until_settled()
    assert sender.window.error is None
    stored = sender.broker.bodies("t")
    sent = [value for settled in sender.settled for value in settled.token]
    assert len(sender.settled) == count
    assert len(stored) == len(set(stored))
    if explicit == "mixed":  # order of each kind and, within a lane, of kinds
        assert sorted(stored) == sorted(sent)
    assert stored == sent
    for settled in sender.settled:
        offsets = [first + step for n, _, first in settled.runs for step in range(n)]
        assert [stored[offset] for offset in offsets] == settled.token
