"""How long to wait before something that failed is tried again: the one back-off of the project."""

from __future__ import annotations

from .limits import BACKOFF_FIRST_MS, BACKOFF_MAX_MS

_DOUBLINGS_MAX = 32  # the pause is at its bound long before; the number stays small


def backoff_ms(
    failures: int,
    *,
    jitter: float = 1.0,
    first_ms: float = BACKOFF_FIRST_MS,
    max_ms: float = BACKOFF_MAX_MS,
) -> int:
    """Return the pause in milliseconds after `failures` earlier failures in a row (0: the first).

    The pause doubles with each failure, from `first_ms` to `max_ms`. `jitter`, drawn by the caller
    from [0, 1), takes up to half of it off, so that those who failed together do not all come back
    at one moment; the default takes nothing off.
    """
    pause = min(max_ms, first_ms * 2 ** min(failures, _DOUBLINGS_MAX))
    return int(pause * (0.5 + jitter / 2))
