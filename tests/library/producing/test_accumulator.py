"""Where sends gather: order, linger and the bound on bytes."""

from __future__ import annotations

from oncemq.library.producing.accumulator import Accumulator
from oncemq.library.producing.acks import Verdicts
from oncemq.library.producing.parcel import GATHER_BYTES, GATHER_MESSAGES, Message, checked_message
from oncemq.limits import LINGER_MS


def message(size: int = 10, *, id: str | None = None) -> Message:  # noqa: A002
    return checked_message(b"x" * size, id=id, key=None, headers=None)


def accumulator(bound: int = 1_000_000) -> Accumulator:
    return Accumulator(bound, Verdicts)


def test_a_lone_message_leaves_at_once() -> None:
    """With nothing in flight there is nothing to wait for."""
    gathered = accumulator()
    gathered.add("t", message(), 0)
    parcel = gathered.take("t", 0, in_flight=False)
    assert parcel is not None
    assert (len(parcel), parcel.open, parcel.verdicts.count) == (1, False, 1)
    assert gathered.idle


def test_company_is_waited_for_while_others_fly() -> None:
    """With something in flight a message waits LINGER_MS and no longer."""
    gathered = accumulator()
    gathered.add("t", message(), 0)
    gathered.add("t", message(), 1)
    assert gathered.take("t", LINGER_MS - 1, in_flight=True) is None
    assert not gathered.ready(LINGER_MS - 1, in_flight=True)
    assert gathered.ready(LINGER_MS, in_flight=True)
    parcel = gathered.take("t", LINGER_MS, in_flight=True)
    assert parcel is not None
    assert len(parcel) == 2


def test_a_full_parcel_does_not_wait() -> None:
    """A parcel at its bound in messages or bytes leaves at once and the next one begins."""
    for size, count in ((10, GATHER_MESSAGES), (GATHER_BYTES // 4, 3)):
        gathered = accumulator()
        for _ in range(count + 1):
            gathered.add("t", message(size), 0)
        parcel = gathered.take("t", 0, in_flight=True)
        assert parcel is not None
        assert len(parcel) == count
        assert gathered.take("t", 0, in_flight=True) is None


def test_the_bound_counts_until_the_verdict() -> None:
    """Bytes count as used until somebody frees them; a message above the bound goes alone."""
    gathered = accumulator(bound=100)
    size = message(60).size
    assert gathered.has_room(10_000)
    gathered.add("t", message(60), 0)
    gathered.take("t", 0, in_flight=False)
    assert not gathered.has_room(size)
    gathered.used -= size
    assert gathered.has_room(size)


def test_nothing_overtakes_what_waits_for_room() -> None:
    """While a message waits for room, later ones do not slip past it."""
    gathered = accumulator(bound=100)
    gathered.add("t", message(60), 0)
    gathered.add_late("t", message(60), 0, 1_000)
    gathered.take("t", 0, in_flight=False)
    gathered.used = 0
    assert not gathered.has_room(1)
    assert gathered.admit_late(1) == []
    assert gathered.take("t", 1, in_flight=False) is not None
    assert not gathered.has_late


def test_what_waits_for_room_shares_parcels() -> None:
    """Late messages of one topic with deadlines alike travel together, others apart."""
    gathered = accumulator()
    gathered.used = 10**9
    first, _ = gathered.add_late("t", message(), 0, 1_000)
    second, index = gathered.add_late("t", message(), 0, 1_050)
    assert (first is second, index) == (True, 1)
    assert gathered.add_late("t", message(), 0, 5_000)[0] is not first
    assert gathered.add_late("u", message(), 0, 5_000)[1] == 0
    assert gathered.add_late("u", message(id="a"), 0, 5_000)[1] == 0


def test_a_dropped_topic_frees_its_bytes() -> None:
    """Giving up a topic returns what waited for it and leaves the others."""
    gathered = accumulator()
    gathered.add("t", message(), 0)
    gathered.add("u", message(), 0)
    used = gathered.used
    (parcel,) = gathered.drop("t")
    assert gathered.used == used - parcel.size
    assert gathered.topics() == ["u"]
    assert gathered.drop("t") == []


def test_clear_returns_all_that_waits() -> None:
    """At the end everything not yet taken is handed back, sealed."""
    gathered = accumulator(bound=10)
    gathered.add("t", message(), 0)
    gathered.add_late("t", message(), 0, 1_000)
    parcels = gathered.clear()
    assert [parcel.open for parcel in parcels] == [False, False]
    assert gathered.idle
    assert gathered.used == 0
