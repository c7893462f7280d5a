"""An operator moves a group: the one commit, the ledger's memory of it, and the broker's part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.seeker import MoveOffset, SeekerCore
from oncemq.errors import (
    LogRegressed,
    NotSupported,
    OffsetOutOfRange,
    StoreMismatch,
    UnsupportedFormat,
)
from oncemq.history import Place
from oncemq.limits import LEASE_MS, LIMITS, Limits
from oncemq.outcome import Recovered
from oncemq.protocol import Granted, Join, Leave, Renew, Rewind
from oncemq.records import (
    AttemptMarked,
    Committed,
    EffectEnded,
    EffectIntended,
    LedgerEnded,
    LedgerStarted,
    Output,
    Record,
    Renumbered,
    Skipped,
)
from tests.core.broker.help import World

LOG, TOPIC_ID = b"l" * 16, b"t" * 16
PLACE = ("g", "t", 0)
STARTED = LedgerStarted(*PLACE, TOPIC_ID, LOG, LOG, 0)


def granted(end_offset: int = 100, **changes: Any) -> Granted:
    return replace(Granted(1, 5, TOPIC_ID, LOG, LOG, end_offset, LEASE_MS), **changes)


def seeker(*records: Record, limits: Limits = LIMITS, **changes: Any) -> SeekerCore:
    """A core whose ledger holds these records and is open."""
    core = SeekerCore(PLACE, granted(**changes), limits)
    for record in records:
        core.apply(record, 0)
    apply_all(core, Recovered(5, 0))
    return core


def apply_all(core: SeekerCore, event: Any) -> list[Record]:
    appended = core.step(event, 0).appends
    for record in appended:
        core.apply(record, 0)
    return appended


def handled(ledger: Ledger, following: int) -> Committed:
    return Committed(1, ledger.commit_no + 1, [(TOPIC_ID, following)], [], b"", {})


def test_a_move_is_one_commit_that_says_what_it_skips() -> None:
    """From where to where, and why; the ledger stands there and knows what was passed over."""
    core = seeker(STARTED, handled(Ledger(), 10))
    (record,) = apply_all(core, MoveOffset(25, "why"))
    assert isinstance(record, Committed)
    assert record.inputs == [(TOPIC_ID, 25)]
    assert record.skipped == [Skipped(TOPIC_ID, 10, 25, "why")]
    assert (core.ledger.next_offset, core.ledger.skips) == (25, [(10, 25, "why")])


@pytest.mark.parametrize("backup", [False, True])
def test_a_ledger_in_place_of_a_lost_one_numbers_outputs_behind_those_that_were_sent(
    backup: bool,
) -> None:
    """The numbers are in the group of its first record, so no crash leaves a ledger without them.

    A backup of the lost ledger keeps what it knows, and gets numbers too where it is behind.
    """
    expected = {("out", 0): 7, ("out", 1): 2}
    core = SeekerCore(PLACE, granted(mark=b"m" * 16, durable=99), replaces=expected)
    if backup:
        behind = handled(Ledger(), 3)
        behind.outputs = [Output("out", 1, 0, 2, b"raw", 1)]
        behind.acked = [("out", 1, 2)]
        for record in (STARTED, behind):
            core.apply(record, 0)
    records = apply_all(core, Recovered(5, 0))
    wrong = (
        [Renumbered("out", 0, 7)] if backup else [Renumbered("out", 0, 7), Renumbered("out", 1, 2)]
    )
    kinds = [type(record) for record in records]
    assert kinds == [Committed] if backup else [LedgerStarted, Committed, LedgerEnded]
    [committed] = [record for record in records if isinstance(record, Committed)]
    assert committed.renumbered == wrong
    assert committed.seen == Place(b"m" * 16, 99)
    assert core.ledger.next_sequence == {("out", 0): 7, ("out", 1): 2}
    assert core.ledger.next_offset == (3 if backup else 0)
    again = SeekerCore(PLACE, granted(mark=b"m" * 16, durable=99), replaces=expected)
    for record in [*([STARTED, behind] if backup else []), *records]:
        again.apply(record, 0)
    assert apply_all(again, Recovered(6, 0)) == [], "the command was interrupted and runs again"


def test_going_back_takes_skips_away_and_keeps_what_was_processed() -> None:
    """What lies behind the new offset is to be read again: nothing there counts as skipped."""
    core = seeker(STARTED)
    core.ledger.processed.add_numbers("p", 0, 5)
    for offset in (20, 40, 30):
        apply_all(core, MoveOffset(offset, "r"))
    assert core.ledger.skips == [(0, 20, "r"), (20, 30, "r")]
    apply_all(core, MoveOffset(10, "r"))
    assert core.ledger.skips == [(0, 10, "r")]
    assert (core.ledger.next_offset, core.ledger.reached) == (10, 40)
    assert core.ledger.processed.knows_numbers("p", 0, 5)


def test_a_group_that_never_ran_can_be_told_where_to_begin() -> None:
    """The ledger begins with its start, then the move."""
    core = SeekerCore(PLACE, granted())
    first, end = apply_all(core, Recovered(5, 0))
    assert isinstance(first, LedgerStarted)
    assert isinstance(end, LedgerEnded)
    apply_all(core, MoveOffset(100, "latest"))
    assert core.ledger.next_offset == 100


@pytest.mark.parametrize("clean", [False, True])
def test_a_move_ends_well_only_if_the_owner_before_did(clean: bool) -> None:
    """A death before the move is not forgotten by it, and the move itself is none."""
    before = [LedgerEnded(1)] if clean else []
    core = seeker(STARTED, handled(Ledger(), 10), *before)
    apply_all(core, MoveOffset(25, "why"))
    assert core.ledger.ended is clean


def test_a_snapshot_keeps_what_was_moved() -> None:
    """Compaction forgets neither skipped ranges nor how far the ledger once was."""
    core = seeker(STARTED)
    apply_all(core, MoveOffset(40, "a"))
    apply_all(core, MoveOffset(30, "b"))
    parts = core.snapshot().parts
    again = SeekerCore(PLACE, granted())
    again.restore({name: wire.unpack_plain(wire.pack_plain(p)) for name, p in parts.items()})
    assert (again.ledger.skips, again.ledger.reached) == ([(0, 30, "a")], 40)
    plain = seeker(STARTED).snapshot().parts["ledger"]
    assert not {"skips", "reached"} & plain.keys(), "ledgers that nobody moved stay as they were"


def test_impossible_moves_are_refused() -> None:
    """Beyond the end, or one range too many."""
    core = seeker(STARTED, limits=Limits(skips_max=1), end_offset=50)
    for offset in (51, -1):
        with pytest.raises(OffsetOutOfRange):
            core.step(MoveOffset(offset, ""), 0)
    apply_all(core, MoveOffset(10, ""))
    with pytest.raises(NotSupported):
        core.step(MoveOffset(20, ""), 0)
    apply_all(core, MoveOffset(5, ""))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"log_id": b"other"}, StoreMismatch),
        ({"topic_id": b"other"}, StoreMismatch),
        ({"end_offset": 9}, LogRegressed),
    ],
)
def test_another_log_is_not_moved_in(changes: dict[str, Any], error: type[Exception]) -> None:
    """The ledger must follow the log that the grant names."""
    with pytest.raises(error):
        seeker(STARTED, handled(Ledger(), 10), **changes)


def test_an_offset_goes_back_by_an_order_only() -> None:
    """A commit that lowers the offset without saying so is a bug of ours."""
    ledger = Ledger()
    ledger.apply(STARTED, 0)
    ledger.apply(handled(ledger, 10), 0)
    with pytest.raises(AssertionError, match="only an order moves"):
        ledger.apply(handled(ledger, 9), 0)


def test_parts_of_a_newer_version_are_refused() -> None:
    """A commit with a part that is not known is not half understood."""
    core = seeker(STARTED)
    (record,) = apply_all(core, MoveOffset(7, "r"))
    number, meta, body, _ = record_codec.encode(record)
    assert number == 12
    assert record_codec.decode(number, meta, body, 0) == record
    fields = list(msgpack.unpackb(body))
    fields[-1]["unheard"] = [1]
    with pytest.raises(UnsupportedFormat, match="unheard"):
        record_codec.decode(number, meta, msgpack.packb(fields), 0)


# --- the broker ----------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    world = World(snapshot_every=1)
    world.hello()
    world.topic()
    world.producer()
    world.send(0, *"abcdefghij")
    assert join(world, b"A").epoch == 1
    world.ask(Leave(world.n, *PLACE, 1, 8))
    return world


def join(world: World, who: bytes, next_offset: int = 0, generation: int = 0) -> Any:
    return world.ask(
        Join(world.n, *PLACE, who * 16, b"ledger", b"", b"", next_offset, generation, False, "h",
             "/s", "one")
    )  # fmt: skip


def test_a_lower_offset_is_accepted_after_a_rewind_and_survives_restarts(world: World) -> None:
    """Before it the ledger would be taken for an old copy; after it it is the right one."""
    assert join(world, b"B", 8, 1).epoch == 2
    assert world.ask(Rewind(world.n, *PLACE, 1, 3)).code == "not_granted"
    assert world.ask(Rewind(world.n, *PLACE, 2, 3)).request > 0
    for _ in range(2):
        world.crash()
        world.hello()
    world.clock.ms += LEASE_MS
    assert join(world, b"C", 2, 2).code == "ledger_not_here"
    assert join(world, b"C", 3, 2).epoch == 3


def test_a_copy_from_before_the_rewind_is_refused(world: World) -> None:
    """Its offset is high enough, but it lacks the generation in which the operator went back."""
    join(world, b"B", 8, 1)
    world.ask(Rewind(world.n, *PLACE, 2, 3))
    world.ask(Leave(world.n, *PLACE, 2, 3))
    world.crash(clean=True)
    world.hello()
    world.clock.ms += LEASE_MS
    assert join(world, b"C", 5, 1).code == "ledger_not_here"
    assert join(world, b"C", 3, 2).epoch == 3


def test_renewals_from_before_a_rewind_do_not_count(world: World) -> None:
    """Renewals of the operator's own command do not count after the rewind, in any order of arrival."""
    join(world, b"B", 8, 1)
    world.ask(Renew(world.n, *PLACE, 2, b"m" * 16, 8))
    world.ask(Rewind(world.n, *PLACE, 2, 3))
    world.ask(Renew(world.n, *PLACE, 2, b"m" * 16, 8))
    world.clock.ms += LEASE_MS
    assert join(world, b"C", 2, 2).code == "ledger_not_here"
    assert join(world, b"C", 3, 2).epoch == 3
    world.ask(Renew(world.n, *PLACE, 3, b"m" * 16, 6))
    world.clock.ms += LEASE_MS
    assert join(world, b"D", 5, 3).code == "ledger_not_here"
    assert join(world, b"D", 6, 3).epoch == 4


def test_a_rewind_that_came_to_nothing_does_no_harm(world: World) -> None:
    """The operator's command died before its commit: the ledger is where it was."""
    join(world, b"B", 8, 1)
    world.ask(Rewind(world.n, *PLACE, 2, 3))
    world.clock.ms += LEASE_MS
    assert join(world, b"C", 8, 2).epoch == 3


def test_facts_read_before_the_ledger_went_back_do_not_lock_the_group_out(world: World) -> None:
    """It read the old offset in the operator's generation; the ledger stands lower when it opens."""
    join(world, b"B", 8, 1)
    world.ask(Rewind(world.n, *PLACE, 2, 3))
    world.ask(Leave(world.n, *PLACE, 2, 3))
    assert join(world, b"C", 8, 2).epoch == 3
    assert join(world, b"C", 3, 3).epoch == 4


# --- a log with another past ---------------------------------------------------------------------


def accepting(*records: Record, **changes: Any) -> SeekerCore:
    """A core whose operator knows that the log has another past than the ledger relied on."""
    core = SeekerCore(PLACE, granted(**changes), accepts=True)
    for position, record in enumerate(records):
        core.apply(record, position)
    apply_all(core, Recovered(core.epoch, 0))
    return core


def test_accepting_another_log_moves_all_that_stands_on_the_old_one() -> None:
    """The place is the log's, also at the same offset; lost outputs and private offsets go back."""
    sent = Output("out", 0, 0, 4, b"raw", 7)
    waits = Output("out", 0, 4, 2, b"raw", 7)
    core = accepting(
        STARTED,
        Committed(1, 1, [(STARTED.topic_id, 9)], [], b"", {}, [sent], seen=Place(b"a" * 16, 900)),
        Committed(1, 2, [(b"private", 5)], [], b"", {}, [waits], [("out", 0, 4)]),
        mark=b"b" * 16,
        durable=300,
        end_offset=9,
    )
    (record,) = [
        one
        for one in apply_all(core, MoveOffset(9, "accepted", {("out", 0): 1}))
        if isinstance(one, Committed)
    ]
    assert record.seen == core.ledger.seen == Place(b"b" * 16, 300)
    assert record.skipped == [Skipped(b"private", 5, 0, "accepted")]
    assert core.ledger.next_offset == 9
    assert core.ledger.next_offset_of(b"private") == 0
    assert core.ledger.dropped == 0
    assert [(o.first_sequence, o.count) for o in core.ledger.unacked["out", 0]] == [(1, 2)]
    assert core.ledger.next_sequence["out", 0] == 3


@pytest.mark.parametrize("expected", [4, 5, 6])
def test_outputs_that_the_log_may_still_take_keep_their_numbers(expected: int) -> None:
    """A resend of what the log has is a duplicate, as always."""
    outputs = [Output("out", 0, 0, 4, b"raw", 7), Output("out", 0, 4, 2, b"raw", 7)]
    core = accepting(
        STARTED,
        Committed(1, 1, [(STARTED.topic_id, 9)], [], b"", {}, outputs),
        Committed(1, 2, [], [], b"", {}, acked=[("out", 0, 4)]),
        mark=b"b" * 16,
        durable=300,
    )
    apply_all(core, MoveOffset(3, "accepted", {("out", 0): expected}))
    assert core.ledger.unacked["out", 0][0].first_sequence == 4
    assert core.ledger.next_sequence["out", 0] == 6


def test_accepting_another_log_forgets_effects_and_deaths_of_the_lost_one() -> None:
    """They are told by offset, and another message lies there now."""
    core = accepting(
        STARTED,
        Committed(1, 1, [(TOPIC_ID, 9)], [], b"", {}, seen=Place(b"a" * 16, 900)),
        EffectIntended(1, TOPIC_ID, 9, "key", "charge", 1, "ask", 5),
        EffectEnded(1, TOPIC_ID, 9, "charge", 1, "returned", "ask", 1, b"paid", 6),
        AttemptMarked(1, TOPIC_ID, 9, 3, returned=False),
        mark=b"b" * 16,
        durable=300,
    )
    assert core.ledger.effects.find(TOPIC_ID, 9, "charge") is not None
    assert core.ledger.deaths_in(TOPIC_ID, 9) == 4
    (record, *_) = apply_all(core, MoveOffset(9, "accepted"))
    assert isinstance(record, Committed)
    assert record.accepted == Place(b"a" * 16, 900)
    assert record_codec.decode(*record_codec.encode(record)[:3], 0) == record
    assert len(core.ledger.effects) == 0
    assert core.ledger.deaths_in(TOPIC_ID, 9) == 0
    assert core.ledger.open_attempt is None


def test_a_ledger_ahead_of_the_log_is_moved_by_who_accepts_that() -> None:
    """Without acceptance it is LogRegressed; with it the offset may only be one of the log."""
    handled_all = handled(Ledger(), 9)
    core = accepting(STARTED, handled_all, mark=b"b" * 16, durable=300, end_offset=5)
    with pytest.raises(OffsetOutOfRange):
        core.step(MoveOffset(9, "as it stands"), 0)
    apply_all(core, MoveOffset(5, "accepted", {}))
    assert core.ledger.next_offset == 5
