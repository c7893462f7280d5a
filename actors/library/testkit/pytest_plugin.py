"""The pytest fixture `oncemq_harness`: a Harness that dies at every step of the commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..app import App
    from .harness import Harness


@pytest.fixture
def oncemq_harness() -> Iterator[Callable[..., Harness]]:
    """Make harnesses: `oncemq_harness(app)`. Each is closed when the test ends.

    Every consumer dies once at each step of its commit, the first time it comes there in `drain`;
    with `crash_at=()` none does. Other arguments are those of Harness.
    """
    from .crash_steps import STEPS
    from .harness import Harness

    made: list[Harness] = []

    def make(app: App, *, crash_at: tuple[str, ...] = STEPS, **options: Any) -> Harness:
        harness = Harness(app, **options)
        made.append(harness)
        if crash_at:
            harness.crash_at(*crash_at)
        return harness

    yield make
    for harness in made:
        harness.close()
