"""The limit of the state, end to end with its real size: over many commits, and after restarts."""

from __future__ import annotations

from typing import Any

import pytest

from oncemq import App, Harness, Message, Tx
from oncemq.errors import HandlerFailed, StateTooLarge
from oncemq.limits import LIMITS

MIB = 1024 * 1024
PART = 7 * MIB  # of one message: below what one may change

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    "options", [{}, {"state_by": "key"}, {"state_by": "key", "concurrency": 3}]
)
def test_no_commit_and_no_restart_leads_over_the_limit(options: dict[str, Any]) -> None:
    """The message that would pass 64 MiB fails with advice; the state before it stays, and shrinks."""
    app = App()

    @app.consumer("t", group="g", retries=0, park=False, **options)
    def handler(message: Message, tx: Tx) -> None:
        name = "v" if options else str(message.key)
        if message.value == "drop":
            del tx.state[name]
        else:
            tx.state[name] = message.value * PART

    harness = Harness(app, audit=False)
    for number in range(10):
        harness.send("t", b"x", key=f"k{number}")
    for _ in range(2):
        with pytest.raises(HandlerFailed, match="offset 9") as caught:
            harness.drain()
        error = caught.value.__cause__
        assert isinstance(error, StateTooLarge)
        assert "sink" in str(error)
        harness.crash()
    held = sum(actor.core.ledger.state_bytes for actor in harness._system.actors.values())
    assert 9 * PART <= held <= LIMITS.state_bytes_max
    harness.close()


def test_shrinking_makes_room() -> None:
    """What was refused can be kept once something else is gone, in a later message of a batch too."""
    app = App()

    @app.consumer("t", group="g", retries=0)
    def handler(message: Message, tx: Tx) -> None:
        if message.value == "drop":
            del tx.state[message.key]
        else:
            tx.state[message.key] = b"x" * PART

    harness = Harness(app, audit=False)
    for number in range(9):
        harness.send("t", "grow", key=f"k{number}")
    harness.send("t", "drop", key="k0")
    harness.send("t", "grow", key="k9")
    harness.drain()
    assert sorted(harness.state("g")) == [f"k{number}" for number in range(1, 10)]
    harness.close()
