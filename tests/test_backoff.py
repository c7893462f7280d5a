"""The one back-off: doubles up to its bound, and jitter takes up to half of it off."""

from __future__ import annotations

from oncemq.backoff import backoff_ms
from oncemq.limits import BACKOFF_FIRST_MS, BACKOFF_MAX_MS


def test_it_doubles_from_the_first_pause_to_the_longest() -> None:
    """Also after so many failures that a plain shift would be a huge number."""
    assert [backoff_ms(n) for n in range(7)] == [100, 200, 400, 800, 1_600, 3_200, 5_000]
    assert backoff_ms(10**9) == BACKOFF_MAX_MS
    assert backoff_ms(0) == BACKOFF_FIRST_MS


def test_jitter_takes_up_to_half_off() -> None:
    """Never less than half of the pause, never more than all of it."""
    assert backoff_ms(3, jitter=0.0) == 400
    assert backoff_ms(3, jitter=0.5) == 600


def test_other_bounds() -> None:
    """A caller may have bounds of its own."""
    assert [backoff_ms(n, first_ms=10, max_ms=25) for n in range(4)] == [10, 20, 25, 25]
