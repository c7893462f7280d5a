"""The consumer core step by step, against answers written by hand: also those no sane broker gives."""

from __future__ import annotations

from typing import Any

import pytest

from oncemq.codec import batch as batch_codec
from oncemq.core.client.connection import Reopened
from oncemq.core.consumer.core import ConsumerCore
from oncemq.core.consumer.grant import Member
from oncemq.core.consumer.work import (
    CutHandler,
    Drain,
    FailedMessage,
    HandlerDone,
    LedgerPeeked,
    OpenLedger,
    PeekLedger,
    ResolveTopic,
    RunHandler,
    TopicFound,
    TopicResolved,
)
from oncemq.errors import (
    Busy,
    Fenced,
    HandlerFailed,
    LogRegressed,
    NotSupported,
    OnceMQError,
    StoreMismatch,
)
from oncemq.history import Place
from oncemq.limits import (
    JOIN_RETRY_MS,
    LEASE_RENEW_MS,
    LEAVE_WAIT_MS,
    LEDGER_FILES_LOOK_MS,
    LIMITS,
    RESEND_MS,
    Limits,
)
from oncemq.outcome import DiskSpace, Outcome, Received, Recovered, Stop, Synced, Tick
from oncemq.protocol import (
    CreateTopic,
    DescribeTopic,
    Failure,
    Fetch,
    Fetched,
    Granted,
    Hello,
    Join,
    Leave,
    Left,
    Produce,
    Produced,
    Renew,
    Renewed,
    TopicDescribed,
    Welcome,
)
from oncemq.records import BatchStored, Committed, LedgerStarted, Output

LOG, TOPIC_ID = b"l" * 16, b"t" * 16


class Scripted:
    """A core, its clock, and the turn without a disk: appends are applied, nothing is lost."""

    def __init__(self, *, retries: int = 5, limits: Limits = LIMITS) -> None:
        member = Member("g", "t", 0, b"i" * 16, "me", retries)
        self.core = ConsumerCore(
            member,
            "here",
            fingerprint=lambda ids: b"".join(i.ljust(16) for i in ids),
            limits=limits,
        )
        self.now = 1_000
        self.position = 0
        self.records: list[Any] = []
        self.work: list[Any] = []
        self.said: list[Any] = []
        self.last_request: dict[type, int] = {}

    def step(self, event: Any) -> Outcome:
        out = self.core.step(event, self.now)
        for record in out.appends:
            self.position += 1
            self.core.apply(record, self.position)
            self.records.append(record)
        self.work += out.work + out.work_after_sync
        for send in out.sends + out.sends_after_sync:
            self.said.append(send.message)
            if "@" not in getattr(send.message, "topic", ""):  # of the private topic: looked for
                self.last_request[type(send.message)] = send.message.request
        return out

    def hear(self, message: Any, stored: list[BatchStored] | None = None) -> Outcome:
        return self.step(Received(b"", message, stored=stored))

    def take(self, kind: type) -> Any:
        """Return the one item of work of this kind and forget all."""
        found = [item for item in self.work if isinstance(item, kind)]
        self.work.clear()
        assert len(found) == 1, f"{len(found)} of {kind.__name__}"
        return found[0]

    def number(self, kind: type) -> int:
        return self.last_request[kind]

    def facts(self, **changed: Any) -> LedgerPeeked:
        fields = {
            "ledger_id": b"L" * 16, "topic_id_seen": b"", "log_id_seen": b"", "next_offset": 0,
            "highest_generation": 1, "lock_held": True, "host": "h", "path": "/p", **changed,
        }  # fmt: skip
        return LedgerPeeked(**fields)

    def connect(self) -> None:
        self.step(Tick())
        self.take(PeekLedger)
        self.step(self.facts())
        self.hear(Welcome(self.number(Hello), 1, LOG, LOG, 2))

    def join(self) -> None:
        self.connect()
        self.hear(TopicDescribed(self.number(DescribeTopic), "t", TOPIC_ID, 1, (0,)))
        assert self.take_all(TopicFound) == [TopicFound("t", 1)]
        self.step(self.facts())

    def take_all(self, kind: type) -> list[Any]:
        found = [item for item in self.work if isinstance(item, kind)]
        self.work.clear()
        return found

    def grant(self, **changed: Any) -> Granted:
        fields = {"epoch": 5, "topic_id": TOPIC_ID, "log_id": LOG, "lineage": LOG,
                  "end_offset": 0, "lease_ms": 10_000, **changed}  # fmt: skip
        return Granted(self.number(Join), **fields)

    def run(self, **changed: Any) -> None:
        self.join()
        self.hear(self.grant(**changed))
        assert self.take(OpenLedger) == OpenLedger(5)
        self.step(Recovered(5, 0))
        self.step(Synced(1))

    def fetched(self, stored: list[BatchStored], next_offset: int, **changed: Any) -> Outcome:
        fields = {"request": self.number(Fetch), "epoch": 5, "log_id": LOG, "topic_id": TOPIC_ID,
                  "next_offset": next_offset, "end_offset": 100, **changed}  # fmt: skip
        return self.hear(Fetched(**fields), stored)

    def error(self) -> BaseException | None:
        return self.take(Stop).error

    def fetches(self) -> int:
        return sum(isinstance(message, Fetch) for message in self.said)


def batch(first: int, count: int, ids: list[bytes] | None = None) -> BatchStored:
    made = batch_codec.build([b"v"] * count, encodings=0, ids=ids)
    sequence = first if ids is None else -1
    return BatchStored(
        0, 0, first, count, 1, "p", 1, sequence, b"", b"", made.raw, made.crc, count, made
    )


def output(count: int = 1) -> Output:
    made = batch_codec.build([b"v"] * count, encodings=0)
    return Output("out", 0, -1, count, made.raw, made.crc)


# --- the way to the grant ------------------------------------------------------------------------


def test_nothing_is_said_before_the_ledger_was_looked_at() -> None:
    """The first act is to read the ledger; the hello names the log that it follows."""
    scripted = Scripted()
    scripted.step(Tick())
    assert scripted.said == []
    scripted.take(PeekLedger)
    scripted.step(scripted.facts(log_id_seen=b"x" * 16))
    (hello,) = scripted.said
    assert hello.log_id_seen == b"x" * 16
    scripted.hear(Welcome(hello.request, 1, LOG, LOG, 2))
    assert isinstance(scripted.error(), StoreMismatch)


def test_the_join_carries_fresh_facts() -> None:
    """Each join reads the ledger's facts again, also when an answer was lost."""
    scripted = Scripted()
    scripted.join()
    assert scripted.said[-1].next_offset == 0
    scripted.now += RESEND_MS
    scripted.step(Tick())
    scripted.take(PeekLedger)
    scripted.step(scripted.facts(next_offset=7))
    join = scripted.said[-1]
    assert isinstance(join, Join)
    assert join.next_offset == 7


def test_a_late_grant_of_an_earlier_join_is_not_taken() -> None:
    """Only the answer to the last join counts."""
    scripted = Scripted()
    scripted.join()
    late = scripted.grant(epoch=5)
    scripted.now += RESEND_MS
    scripted.step(Tick())
    scripted.step(scripted.facts())
    scripted.hear(late)
    assert scripted.core.phase == "joining"
    scripted.hear(scripted.grant(epoch=6))
    assert scripted.take_all(OpenLedger) == [OpenLedger(6)]


def test_refusals_of_a_join() -> None:
    """What a retry mends is asked again after a pause; the rest ends the consumer."""
    scripted = Scripted()
    scripted.join()
    scripted.hear(Failure(scripted.number(Join), "disk_full", "full", "", -1))
    scripted.work.clear()
    scripted.now += JOIN_RETRY_MS - 1
    scripted.step(Tick())
    assert scripted.work == []
    scripted.now += 1
    scripted.step(Tick())
    scripted.take(PeekLedger)
    scripted.step(scripted.facts())
    scripted.hear(Failure(scripted.number(Join), "log_regressed", "shorter", "", -1))
    assert scripted.error().code == "log_regressed"  # type: ignore[union-attr]


def test_a_ledger_that_moves_while_it_joins_is_shown_again() -> None:
    """A standby whose join was late is not in the wrong place; one refused twice as it stands is."""
    scripted = Scripted()
    scripted.join()
    for next_offset in (4, 5, 5):
        scripted.hear(Failure(scripted.number(Join), "ledger_not_here", "elsewhere", "", -1))
        assert not [item for item in scripted.work if isinstance(item, Stop)]
        scripted.now += JOIN_RETRY_MS
        scripted.step(Tick())
        scripted.take(PeekLedger)
        scripted.step(scripted.facts(next_offset=next_offset))
    scripted.hear(Failure(scripted.number(Join), "ledger_not_here", "elsewhere", "", -1))
    assert scripted.error().code == "ledger_not_here"  # type: ignore[union-attr]


def test_a_partition_that_the_topic_does_not_have() -> None:
    """It ends with a clear error instead of waiting for ever."""
    scripted = Scripted()
    scripted.connect()
    scripted.hear(TopicDescribed(scripted.number(DescribeTopic), "t", TOPIC_ID, 0, ()))
    assert isinstance(scripted.error(), NotSupported)


@pytest.mark.parametrize("changed", [{"log_id": b"x" * 16}, {"topic_id": b"x" * 16}])
def test_a_ledger_of_another_log_or_topic_stops(changed: dict[str, Any]) -> None:
    """StoreMismatch before anything is fetched, sent or handled."""
    scripted = Scripted()
    scripted.core.apply(LedgerStarted("g", "t", 0, TOPIC_ID, LOG, LOG, 0), 0)
    scripted.join()
    scripted.hear(scripted.grant(**changed))
    scripted.step(Recovered(5, 0))
    assert isinstance(scripted.error(), StoreMismatch)
    assert scripted.fetches() == 0


def test_a_ledger_of_another_group_stops() -> None:
    """A directory that was copied under another group's name."""
    scripted = Scripted()
    scripted.core.apply(LedgerStarted("other", "t", 0, TOPIC_ID, LOG, LOG, 0), 0)
    scripted.join()
    scripted.hear(scripted.grant())
    scripted.step(Recovered(5, 0))
    assert isinstance(scripted.error(), StoreMismatch)


def test_a_log_that_ends_below_the_ledger_stops() -> None:
    """LogRegressed before anything is fetched or handled."""
    scripted = Scripted()
    scripted.core.apply(LedgerStarted("g", "t", 0, TOPIC_ID, LOG, LOG, 9), 0)
    scripted.join()
    scripted.hear(scripted.grant(end_offset=8))
    scripted.step(Recovered(5, 0))
    assert isinstance(scripted.error(), LogRegressed)


# --- fetching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{"request": 1}, {"epoch": 4}])
def test_a_stale_fetch_reply_is_dropped(changed: dict[str, Any]) -> None:
    """An answer to another request or grant changes nothing."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 2)], 2, **changed)
    assert scripted.take_all(RunHandler) == []
    scripted.fetched([batch(0, 3)], 3)
    assert scripted.take(RunHandler).window.count == 3


@pytest.mark.parametrize("changed", [{"log_id": b"x" * 16}, {"topic_id": b"x" * 16}])
def test_a_fetch_from_another_log_stops(changed: dict[str, Any]) -> None:
    """StoreMismatch, and its messages are not handled."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 2)], 2, **changed)
    assert isinstance(scripted.error(), StoreMismatch)


def test_a_fetch_that_shows_a_shorter_log_stops() -> None:
    """The durable end lies below what was read: the log forgot what it had shown."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 3)], 3)
    scripted.fetched([], 3, end_offset=2)
    assert isinstance(scripted.error(), LogRegressed)


def test_a_gap_is_asked_for_again_after_a_pause() -> None:
    """A first offset above the expected one is not taken."""
    scripted = Scripted()
    scripted.run()
    before = scripted.fetches()
    scripted.fetched([batch(1, 2)], 3)
    assert scripted.take_all(RunHandler) == []
    scripted.now += JOIN_RETRY_MS
    scripted.step(Tick())
    assert scripted.fetches() == before + 1
    assert scripted.said[-1].offset == 0


def test_a_reply_that_does_not_say_where_its_batches_lie_is_asked_for_again() -> None:
    """Such a commit could not say what it relies on: a broker of this version has forgotten the peer."""
    scripted = Scripted()
    scripted.run()
    scripted.core.connection.version = 3
    before = scripted.fetches()
    scripted.fetched([batch(0, 2)], 2)
    assert scripted.take_all(RunHandler) == []
    scripted.now += JOIN_RETRY_MS
    scripted.step(Tick())
    assert scripted.fetches() == before + 1
    scripted.fetched([batch(0, 2)], 2, positions=(40,), marks=((b"m" * 16, 0),))
    assert scripted.take(RunHandler).window.count == 2
    assert scripted.core.connection.place == Place(b"m" * 16, 41)


def test_no_more_replies_are_held_than_allowed() -> None:
    """The next fetch is asked for while a handler runs, and then no more."""
    scripted = Scripted()
    scripted.run()
    for number in range(LIMITS.fetches_held_max):
        assert scripted.fetches() == number + 1
        scripted.fetched([batch(number, 1)], number + 1)
    assert scripted.fetches() == LIMITS.fetches_held_max
    scripted.step(HandlerDone(5, 0, 1))
    assert scripted.fetches() == LIMITS.fetches_held_max + 1


def test_a_fetch_whose_grant_is_gone_fences() -> None:
    """NotGranted to a fetch: Fenced, at once, without a Leave for another owner's grant."""
    scripted = Scripted()
    scripted.run()
    scripted.hear(Failure(scripted.number(Fetch), "not_granted", "epoch 6", "", -1))
    assert isinstance(scripted.error(), Fenced)
    assert not any(isinstance(message, Leave) for message in scripted.said)


def test_a_renewal_whose_grant_is_gone_fences() -> None:
    """NotGranted to a renewal: Fenced, although a handler runs and nothing is fetched."""
    scripted = Scripted()
    scripted.run()
    scripted.now += LEASE_RENEW_MS
    scripted.step(Tick())
    scripted.hear(Failure(scripted.number(Renew), "not_granted", "epoch 6", "", -1))
    assert isinstance(scripted.error(), Fenced)


def test_a_busy_broker_is_asked_again() -> None:
    """A retriable refusal of a fetch pauses it; another refusal ends the consumer."""
    scripted = Scripted()
    scripted.run()
    before = scripted.fetches()
    scripted.hear(Failure(scripted.number(Fetch), "busy", "many", "", -1))
    assert scripted.fetches() == before
    scripted.now += JOIN_RETRY_MS
    scripted.step(Tick())
    assert scripted.fetches() == before + 1
    scripted.hear(Failure(scripted.number(Fetch), "log_regressed", "short", "", -1))
    assert isinstance(scripted.error(), LogRegressed)


# --- commits -------------------------------------------------------------------------------------


def test_one_commit_carries_everything() -> None:
    """Offset, ids, state and numbered outputs are one record; outputs leave after the sync only."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 3)], 3)
    run = scripted.take(RunHandler)
    outcome = scripted.step(
        HandlerDone(5, run.first_offset, 3, {"k": b"\x02\x01"}, [output(2), output(3)])
    )
    (record,) = outcome.appends
    assert isinstance(record, Committed)
    assert (record.epoch, record.commit_no, record.inputs) == (5, 1, [(TOPIC_ID, 3)])
    assert record.ranges == [("p", 0, 3)]
    assert record.state == {"k": b"\x02\x01"}
    assert [(o.first_sequence, o.count) for o in record.outputs] == [(0, 2), (2, 3)]
    assert not any(isinstance(send.message, Produce) for send in outcome.sends)
    produces = [s.message for s in outcome.sends_after_sync if isinstance(s.message, Produce)]
    assert [(p.producer, p.epoch, p.first_sequence) for p in produces] == [
        ("@g/t/0", 5, 0),
        ("@g/t/0", 5, 2),
    ]
    assert ("commit.synced" in [name for name, _ in outcome.events]) is True
    for produce in produces:
        scripted.hear(
            Produced(produce.request, 1, ((2 if produce.first_sequence == 0 else 3, 0, 0),))
        )
    scripted.fetched([batch(3, 1)], 4)
    scripted.step(HandlerDone(5, 3, 1, outputs=[output()]))
    assert scripted.records[-1].acked == [("out", 0, 2), ("out", 0, 5)]
    assert scripted.records[-1].outputs[0].first_sequence == 5
    assert scripted.core.ledger.unacked_count == 1


def test_the_next_call_starts_with_the_append() -> None:
    """Handlers work while the disk syncs; ids of the unsynced commit are not handled again."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 2)], 2)
    again = batch(2, 3)
    again.first_sequence = 0  # the first two ids once more: a log that was fed again
    scripted.fetched([again], 5)
    scripted.work.clear()
    scripted.step(HandlerDone(5, 0, 2))
    run = scripted.take(RunHandler)
    assert [list(piece.offsets) for piece in run.window.pieces] == [[4]]
    scripted.step(HandlerDone(5, 2, 1))
    assert scripted.core.ledger.next_offset == 5
    assert scripted.core.skipped == 2
    assert scripted.core.processed == 3


@pytest.mark.parametrize("parks", [False, True])
def test_a_message_may_fail_behind_others_that_are_passed_over(*, parks: bool) -> None:
    """As after an operator went back: what is known goes with the message that comes after it."""
    scripted = Scripted(retries=0 if parks else 1)
    scripted.run()
    scripted.fetched([batch(0, 2)], 2)
    scripted.step(HandlerDone(5, 0, 2))
    again = batch(2, 4)
    again.first_sequence = 0  # two that are known, two that are new
    scripted.fetched([again], 6)
    letter = output() if parks else None
    failed = FailedMessage("id", "ValueError: x", ValueError("x"), "trace", 0.5, letter=letter)
    scripted.step(HandlerDone(5, 2, 0, failure=failed))
    if parks:
        found = TopicDescribed(scripted.number(CreateTopic), "t.dead", b"d" * 16, 1, (0,))
        scripted.hear(found)
        assert scripted.core.ledger.next_offset == 5
    else:
        scripted.now += 10_000
        scripted.work.clear()
        scripted.step(Tick())
        run = scripted.take(RunHandler)
        assert [list(piece.offsets) for piece in run.window.pieces] == [[4, 5]]
        scripted.step(HandlerDone(5, run.first_offset, 2))
        assert scripted.core.ledger.next_offset == 6
    assert scripted.core.skipped == 2


def test_a_window_without_anything_new_moves_the_offset_only() -> None:
    """No handler is called; the offset moves in a commit of its own."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 2)], 2)
    scripted.step(HandlerDone(5, 0, 2))
    scripted.work.clear()
    again = batch(2, 2)
    again.first_sequence = 0
    scripted.fetched([again], 4)
    assert scripted.take_all(RunHandler) == []
    assert scripted.core.ledger.next_offset == 4
    assert scripted.core.skipped == 2


def test_calls_wait_while_too_many_outputs_are_unacknowledged() -> None:
    """Back-pressure: memory for outputs is bounded when the broker does not take them."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 1)], 1)
    scripted.fetched([batch(1, 1)], 2)
    scripted.work.clear()
    piles = [output(16_000) for _ in range(LIMITS.outputs_unacked_max // 16_000 + 1)]
    scripted.step(HandlerDone(5, 0, 1, outputs=piles))
    assert scripted.take_all(RunHandler) == []
    wake = scripted.core.wake_at_ms
    assert wake is not None
    assert wake > scripted.now  # it waits, it does not spin
    for message in [m for m in scripted.said if isinstance(m, Produce)]:
        scripted.hear(Produced(message.request, 1, ((16_000, 0, message.first_sequence),)))
    assert len(scripted.take_all(RunHandler)) == 1


def test_calls_wait_while_too_many_bytes_are_unacknowledged() -> None:
    """The bound on outputs counts bytes too."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 1)], 1)
    scripted.fetched([batch(1, 1)], 2)
    scripted.work.clear()
    made = batch_codec.build([bytes(1024 * 1024 - 3)] * 3, encodings=0)
    pile = Output("out", 0, -1, 3, made.raw, made.crc)
    count = LIMITS.outputs_unacked_bytes_max // len(made.raw) + 1
    scripted.step(HandlerDone(5, 0, 1, outputs=[pile] * count))
    assert scripted.take_all(RunHandler) == []
    (first, *_) = [m for m in scripted.said if isinstance(m, Produce)]
    scripted.hear(Produced(first.request, 1, ((3, 0, 0),)))
    assert len(scripted.take_all(RunHandler)) == 1


def test_calls_wait_while_too_many_ids_wait_for_a_file() -> None:
    """Back-pressure: memory for processed ids is bounded when the disk is slower than the handlers."""
    scripted = Scripted(limits=Limits(ledger_table_ids=1, ledger_tables_waiting_max=2))
    scripted.run()
    scripted.fetched([batch(0, 4, ids=[b"a", b"b", b"c", b"d"])], 4)
    scripted.fetched([batch(4, 1, ids=[b"e"])], 5)
    scripted.step(HandlerDone(5, 0, 4))
    scripted.fetched([batch(5, 1, ids=[b"f"])], 6)
    scripted.work.clear()
    processed = scripted.core.ledger.processed
    (new,) = processed.due()  # as the driver asks in each turn
    scripted.step(HandlerDone(5, 4, 1))
    assert processed.behind
    assert scripted.take_all(RunHandler) == []
    wake = scripted.core.wake_at_ms
    assert wake == scripted.now + LEDGER_FILES_LOOK_MS
    processed.made(new.name, b"".join(new.pieces()), new.name)
    scripted.now = wake
    scripted.step(Tick())
    assert len(scripted.take_all(RunHandler)) == 1


def test_a_last_failure_commits_what_came_before_it() -> None:
    """With no retries left the prefix is committed in the step that stops the consumer."""
    scripted = Scripted(retries=0)
    scripted.run()
    scripted.fetched([batch(0, 3)], 3)
    scripted.work.clear()
    failed = FailedMessage("id", "ValueError: x", ValueError("x"), "trace", 0.5)
    outcome = scripted.step(HandlerDone(5, 0, 2, failure=failed))
    assert outcome.appends[0].inputs == [(TOPIC_ID, 2)]
    stop = outcome.work_after_sync[-1]
    assert isinstance(stop.error, HandlerFailed)
    (leave,) = [s.message for s in outcome.sends_after_sync if isinstance(s.message, Leave)]
    assert leave.next_offset == 2


def test_a_full_disk_starts_no_call_and_begins_no_ledger() -> None:
    """Without room the first record waits too."""
    scripted = Scripted()
    scripted.join()
    scripted.hear(scripted.grant())
    scripted.step(DiskSpace(full=True))
    scripted.step(Recovered(5, 0))
    assert scripted.records == []
    scripted.step(DiskSpace(full=False))
    assert [type(record) for record in scripted.records] == [LedgerStarted]
    scripted.step(DiskSpace(full=True))
    scripted.work.clear()
    scripted.fetched([batch(0, 1)], 1)
    assert scripted.take_all(RunHandler) == []
    scripted.step(DiskSpace(full=False))
    assert len(scripted.take_all(RunHandler)) == 1


# --- the end -------------------------------------------------------------------------------------


def test_leaving_without_an_answer_ends_after_a_while() -> None:
    """A broker that does not answer the Leave delays the end by LEAVE_WAIT_MS at most."""
    scripted = Scripted()
    scripted.run()
    scripted.step(Drain())
    assert scripted.core.phase == "leaving"
    scripted.now += LEAVE_WAIT_MS - 1
    scripted.step(Tick())
    assert scripted.core.phase == "leaving"
    scripted.now += 1
    assert scripted.core.wake_at_ms is not None
    assert scripted.core.wake_at_ms <= scripted.now
    scripted.step(Tick())
    assert scripted.error() is None
    assert scripted.core.wake_at_ms is None


def test_leaving_ends_with_the_answer() -> None:
    """The broker has taken the grant back: a clean end."""
    scripted = Scripted()
    scripted.run()
    scripted.step(Drain())
    scripted.hear(Left(scripted.number(Leave)))
    assert scripted.error() is None


def test_a_drain_with_a_broker_away_stops_without_leaving() -> None:
    """Nobody to tell: the end does not wait."""
    scripted = Scripted()
    scripted.run()
    scripted.hear(Failure(scripted.number(Fetch), "hello_required", "who?", "", -1))
    assert not scripted.core.connection.ready
    scripted.step(Drain())
    scripted.step(Tick())
    assert scripted.error() is None


def test_a_cut_is_asked_for_once() -> None:
    """Draining asks the running call to end, and does not nag."""
    scripted = Scripted()
    scripted.run()
    scripted.fetched([batch(0, 2)], 2)
    scripted.work.clear()
    scripted.step(Drain())
    scripted.step(Tick())
    assert scripted.take(CutHandler) == CutHandler()


def test_topics_for_send_are_looked_up() -> None:
    """An answer always comes to the waiting handler: the count, or the broker's refusal."""
    scripted = Scripted()
    scripted.run()
    scripted.step(ResolveTopic("out"))
    scripted.now += RESEND_MS
    scripted.step(Tick())
    scripted.hear(TopicDescribed(scripted.number(DescribeTopic), "out", b"o" * 16, 3, (0, 0, 0)))
    assert scripted.take(TopicResolved) == TopicResolved("out", 3)
    scripted.step(ResolveTopic("bad"))
    number = scripted.number(DescribeTopic)
    scripted.hear(Failure(number, "disk_full", "later", "", -1))
    assert scripted.take_all(TopicResolved) == []
    scripted.now += JOIN_RETRY_MS
    scripted.step(Tick())
    scripted.hear(Failure(scripted.number(DescribeTopic), "invalid_name", "no", "", -1))
    resolved = scripted.take(TopicResolved)
    assert isinstance(resolved.error, OnceMQError)
    scripted.step(ResolveTopic("one-more"))
    number = scripted.number(DescribeTopic)
    scripted.hear(Failure(number, "busy", "the broker holds 10 topics", "use another", -1))
    resolved = scripted.take(TopicResolved)
    assert isinstance(resolved.error, Busy), "a full table does not empty: the handler must know"
    assert str(resolved.error) == "the broker holds 10 topics (use another)"


def test_what_is_unfinished() -> None:
    """A call, outputs on their way, a ledger to be opened, a full disk; not the records of the end."""
    scripted = Scripted()
    scripted.join()
    assert not scripted.core.unfinished
    scripted.hear(scripted.grant())
    assert scripted.core.unfinished
    scripted.step(Recovered(5, 0))
    scripted.step(Synced(1))
    assert not scripted.core.unfinished
    scripted.step(DiskSpace(full=True))
    assert scripted.core.unfinished
    scripted.step(DiskSpace(full=False))
    scripted.fetched([batch(0, 1)], 1)
    assert scripted.core.unfinished
    run = scripted.take(RunHandler)
    scripted.step(HandlerDone(5, run.first_offset, 1, outputs=[output()]))
    assert scripted.core.unfinished, "its output has no acknowledgement"


@pytest.mark.parametrize("asks", [DescribeTopic, Join])
def test_a_full_table_ends_the_consumer(asks: type) -> None:
    """No room for its topic or its grant: asking again would wait for ever."""
    scripted = Scripted()
    scripted.connect()
    if asks is Join:
        scripted.hear(TopicDescribed(scripted.number(DescribeTopic), "t", TOPIC_ID, 1, (0,)))
        scripted.step(scripted.facts())
    scripted.hear(Failure(scripted.number(asks), "busy", "full", "do that", -1))
    error = scripted.error()
    assert isinstance(error, Busy)
    assert str(error) == "full (do that)"


def test_a_connection_that_another_opened_anew_is_greeted() -> None:
    """Before its start there is nothing to say; later it says hello, and resends after the Welcome."""
    scripted = Scripted()
    scripted.step(Reopened())
    assert scripted.said == []
    scripted.run()
    scripted.said.clear()
    scripted.step(Reopened())
    (hello,) = scripted.said
    assert isinstance(hello, Hello)
    scripted.now += 5_000
    scripted.step(Tick())
    assert {type(message) for message in scripted.said} == {Hello}, "nothing else before Welcome"
    scripted.hear(Welcome(scripted.number(Hello), 2, LOG, LOG, 2))
    assert scripted.fetches() == 1


def test_a_stopped_core_does_nothing() -> None:
    """After Stop every event is ignored."""
    scripted = Scripted()
    scripted.step(Drain())
    scripted.step(Tick())
    assert scripted.core.phase == "stopped"
    for event in (Tick(), Synced(1), scripted.facts(), Received(b"", Renewed(1, 5))):
        assert scripted.step(event) == Outcome()
