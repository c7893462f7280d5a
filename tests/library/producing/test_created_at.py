"""The time of a message: how users give it, and what a topic with a dedup horizon does with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from oncemq.errors import BadCreatedAt, IdConflict, TooOld, ValueNotEncodable
from oncemq.library.producing.acks import Verdicts
from oncemq.library.producing.parcel import (
    Parcel,
    checked_many,
    checked_message,
    cut,
    milliseconds_of,
)

MOMENT = datetime(2026, 1, 31, 11, 0, 0, 250_000, UTC)
MS = 1_769_857_200_250


@pytest.mark.parametrize(
    "given",
    [
        MS,
        MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=1))),
        MOMENT.replace(microsecond=250_999),
    ],
)
def test_a_time_is_milliseconds_or_an_aware_datetime(given):
    """The same moment in any zone; what is finer is cut off, so a resend gives the same number."""
    assert milliseconds_of(given) == MS


@pytest.mark.parametrize(
    "given", [MOMENT.replace(tzinfo=None), 1.5, "2026-01-31", True, -1, 1 << 63]
)
def test_anything_else_is_refused_before_it_is_sent(given):
    """A time without a zone would be another one on another machine."""
    with pytest.raises(ValueNotEncodable, match="created_at"):
        checked_message(b"x", id="a", key=None, headers=None, created_at=given)


def test_times_travel_with_their_messages():
    """Over several partitions, one by one or many at once."""
    parcel = Parcel("t", Verdicts("t"), explicit=True, born_ms=0)
    checked_many(
        parcel, [b"v"] * 20, [f"i{n}" for n in range(20)], None, None, [MS + n for n in range(20)]
    )
    seen = {}
    for piece in cut(parcel, 3, lambda _: 0):
        assert piece.batch.created_at_ms is not None
        seen.update(zip(piece.members, piece.batch.created_at_ms, strict=True))
    assert seen == {n: MS + n for n in range(20)}
    with pytest.raises(ValueError, match="created_at"):
        checked_many(parcel, [b"v"], ["i"], None, None, [])


def test_messages_with_and_without_times_share_no_batch():
    """The column is of all messages of a batch: one without a time must not be given one."""
    parcel = Parcel("t", Verdicts("t"), explicit=True, born_ms=0)
    timed = checked_message(b"x", id="a", key=None, headers=None, created_at=MS)
    plain = checked_message(b"x", id="b", key=None, headers=None)
    parcel.add(timed)
    assert parcel.takes(timed)
    assert not parcel.takes(plain)
    other = Parcel("t", Verdicts("t"), explicit=True, born_ms=0)
    other.add(plain)
    assert not other.takes(timed)


def test_each_message_is_told_its_own_verdict():
    """TooOld and BadCreatedAt are errors of one message; its neighbours have their acknowledgements."""
    verdicts = Verdicts("t")
    verdicts.expect(5)
    verdicts.ids = [b"sa", b"sb", b"sc", b"sd", b"se"]
    runs = ((1, 0, 7), (1, 3, -1), (1, 4, -1), (1, 2, 3), (1, 1, 2))
    verdicts.give(range(5), 0, runs, None)
    stored, old, ahead, conflict, known = (verdicts.verdict(n) for n in range(5))
    assert (stored.offset, known.offset, known.duplicate) == (7, 2, True)
    assert isinstance(old, TooOld)
    assert "'b'" in old.reason
    assert isinstance(ahead, BadCreatedAt)
    assert isinstance(conflict, IdConflict)
    assert isinstance(verdicts.first_error(), TooOld)
    assert isinstance(verdicts.first_error(), TooOld)
    verdicts.asked()
