"""Coroutines that are written once and used two ways: awaited in a loop, or run to the end without.

A protocol with plain and async users is one coroutine here. Where it must wait, the plain user's
part of it blocks instead of awaiting, so that the coroutine never suspends.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

_T = TypeVar("_T")


def run_without_loop(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine that never suspends; return its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    coroutine.close()
    raise AssertionError(f"{coroutine!r} has suspended, and there is no event loop")


async def to_the_end(work: Coroutine[Any, Any, _T]) -> tuple[_T, asyncio.CancelledError | None]:
    """Await work that goes on to its end even if this wait is cancelled.

    Returns its result, and the cancellation, which the caller raises when it has used the result.
    """
    import asyncio  # which plain handlers never load

    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    return task.result(), cancelled
