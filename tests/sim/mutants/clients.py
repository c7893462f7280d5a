"""Mutants of producer and consumer: numbers, gaps, the one commit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from oncemq.core.client.producer import ProducerCore
from oncemq.core.client.send_window import SendWindow
from oncemq.core.consumer import fetch as consumer_fetch
from oncemq.core.consumer import handling
from oncemq.core.consumer.fetch import Fetcher
from oncemq.core.consumer.ledger import Ledger
from oncemq.core.consumer.window import Window
from tests.sim.mutants.table import mutant

mutant(
    "numbers start at 0 in every process",
    "fresh bytes never get a number below the broker's",
    (
        ProducerCore,
        "_open",
        lambda original: (
            lambda self, ready, out: original(self, replace(ready, partitions=()), out)
        ),
    ),
)


def _from_wherever(original: Any) -> Any:
    def broken(stored: Any, expected: int, next_offset: int) -> Any:
        window = original(stored, expected, next_offset)
        if window is None and stored:
            window = original(stored, stored[0].first_offset, next_offset)
        return window

    return broken


mutant(
    "fetch gap accepted",
    "a first offset above the expected one is fetched again",
    (consumer_fetch, "cut", _from_wherever),
    tests=("tests/core/consumer/test_core.py", "tests/core/consumer/test_interleavings.py"),
)


def _any_reply(original: Any) -> Any:
    def broken(self: Any, fetched: Any, stored: Any, now_ms: int) -> None:
        original(self, replace(fetched, request=self._request), stored, now_ms)

    return broken


mutant(
    "late replies believed",
    "a reply counts only if it answers the request in flight",
    (Fetcher, "received", _any_reply),
    tests=("tests/core/consumer/test_core.py", "tests/core/consumer/test_interleavings.py"),
)
mutant(
    "skip rule forgotten",
    "an id in the processed set is not handled again",
    (handling, "leave_out_known", lambda _original: lambda window, *_more: window),
    tests=("tests/core/consumer/test_core.py", "tests/core/consumer/test_machine.py"),
)
mutant(
    "offset committed beyond what was handled",
    "a commit covers exactly what its handlers did",
    (
        Window,
        "split",
        lambda _original: (
            lambda self, _number: (
                self,
                Window(self.next_offset, self.next_offset, []),
            )
        ),
    ),
)
mutant(
    "effects left out of the commit",
    "offset and effects are one record",
    (
        handling.Handling,
        "_commit",
        lambda original: (
            lambda self, window, answer, acked, out: original(
                self, window, replace(answer, state={}), acked, out
            )
        ),
    ),
)


def _without(part: str, empty: Any) -> Any:
    def change(original: Any) -> Any:
        def broken(self: Any, parts: dict[str, Any]) -> None:
            original(self, {**parts, part: empty})

        return broken

    return change


mutant(
    "unacknowledged outputs lost by compaction",
    "snapshots carry what is not acknowledged",
    (Ledger, "restore", _without("outputs", [])),
)
mutant(
    "state lost by compaction",
    "snapshots carry the state",
    (Ledger, "restore", _without("state", {})),
)


def _no_numbers(original: Any) -> Any:
    def broken(self: Any, parts: dict[str, Any]) -> None:
        original(self, {**parts, "ledger": {**parts["ledger"], "next_sequence": []}})

    return broken


mutant(
    "output numbers restart",
    "an output's number is bound to its bytes",
    (Ledger, "restore", _no_numbers),
)


def _forget_in_flight(original: Any) -> Any:
    def broken(self: Any, lanes: Any, reason: str, now_ms: int, out: Any) -> None:
        if reason != "new connection":
            original(self, lanes, reason, now_ms, out)

    return broken


mutant(
    "nothing is sent again on a new connection",
    "whatever has no verdict is sent again",
    (SendWindow, "_send_again", _forget_in_flight),
    tests=("tests/core/client/test_send_window.py",),
)


def _gives_up(_original: Any) -> Any:
    def broken(self: Any, lanes: Any, reason: str, now_ms: int, out: Any) -> None:
        for lane in lanes:
            lane.due_ms = now_ms + 1_000

    return broken


mutant(
    "nothing is ever sent again",
    "what was lost on the way is sent until it has a verdict",
    (SendWindow, "_send_again", _gives_up),
)


def _pause_after_each(original: Any) -> Any:
    def broken(self: Any, answer: Any, now_ms: int, *more: Any) -> Any:
        failed = original(self, answer, now_ms, *more)
        for one in self.inputs:
            one.not_before_ms = now_ms + 500
        return failed

    return broken


mutant(
    "the next call waits for a timer",
    "what can be handled is handled at once",
    (handling.Handling, "done", _pause_after_each),
)
