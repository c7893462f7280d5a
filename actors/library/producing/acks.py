"""The verdicts of messages that were sent together, and how to wait for them."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import NamedTuple

from ...errors import BadCreatedAt, IdConflict, OnceMQError, ResultTimeout, TooOld
from ...ids import untagged_id
from ...protocol import AHEAD, DUPLICATE, STORED, TOO_OLD, UNKNOWN_OFFSET
from ...runtime.diagnostics import log
from ..raised import raised_by_code

Run = tuple[int, int, int]


class Ack(NamedTuple):
    """The message is durable in the log of the broker."""

    topic: str
    partition: int
    offset: int | None  # None: a duplicate whose original was trimmed from the log
    duplicate: bool  # it was there before; `offset` is the original's
    durability: str = "fsync"


_TAKEN = frozenset({STORED, DUPLICATE})


def refusal_of(verdict: int, named: str, topic: str) -> OnceMQError:
    """Return the error that tells of a message which was not taken; `named` says which."""
    if verdict == TOO_OLD:
        return TooOld(
            f"{named} is not known in {topic!r}, and was created before its dedup horizon"
        )
    if verdict == AHEAD:
        return BadCreatedAt(
            f"{named} was created in the future by the clock of the broker",
            hint="set the clocks right; created_at= counts milliseconds since 1970",
        )
    return IdConflict(f"{named} is stored in {topic!r} with another body")


class _Part(NamedTuple):
    """The verdict of one batch, which holds some messages of the send."""

    members: Sequence[int]  # increasing
    partition: int
    runs: tuple[Run, ...]
    error: OnceMQError | None


class Patience:
    """How long the handles of a producer wait if they are not told.

    Until the broker has acknowledged nothing at all for `timeout_s`: a broker that is slow but at work
    is waited for. None: for ever.
    """

    def __init__(self, timeout_s: float | None, describe_wait: Callable[[], str]) -> None:
        """`describe_wait` gives the cause of the wait, for the text of a timeout."""
        self._timeout_s = timeout_s
        self.describe_wait = describe_wait
        self._heard_s = 0.0  # when the last verdict came

    def heard(self) -> None:
        self._heard_s = time.monotonic()

    def left_s(self, since_s: float) -> float | None:
        """Return how long a wait that began at `since_s` goes on, at least; None: for ever."""
        if self._timeout_s is None:
            return None
        return max(since_s, self._heard_s) + self._timeout_s - time.monotonic()

    def over(self) -> ResultTimeout:
        return ResultTimeout(
            f"no acknowledgement for {self._timeout_s:g} s{self.describe_wait()}; the outcome is unknown",
            hint="the producer keeps sending it: wait for the same handle again, or flush(); a second "
            "send under another id may store it twice",
        )


_ENDLESS = Patience(None, lambda: "")


class Verdicts:
    """The verdicts of messages that were sent together. All are given at once, at the end."""

    __slots__ = (
        "_bell",
        "_callbacks",
        "_left",
        "_lock",
        "_parts",
        "_refused",
        "_told",
        "count",
        "error",
        "ids",
        "patience",
        "settled",
        "topic",
    )

    def __init__(self, topic: str, patience: Patience = _ENDLESS) -> None:
        self.topic = topic
        self.count = 0  # messages; fixed before the first part is given
        self.ids: list[bytes] | None = None  # tagged; to name a conflict
        self.settled = False
        self.error: OnceMQError | None = None  # the whole send failed
        self.patience = patience
        self._parts: list[_Part] = []
        self._refused = 0  # messages that were refused, each told to its handle alone
        self._told: set[int] = set()  # those of them whose handle was asked
        self._left = 0  # messages without a verdict
        self._lock = threading.Lock()
        self._bell: threading.Event | None = None  # made by the first waiter: most sends have none
        self._callbacks: list[Callable[[], None]] = []

    # --- the side of the producer ----------------------------------------------------------------

    def expect(self, count: int) -> None:
        """Called before the first verdict."""
        self.count = self._left = count

    def give(
        self,
        members: Sequence[int],
        partition: int,
        runs: tuple[Run, ...],
        error: OnceMQError | None,
    ) -> None:
        """The verdict of the last batch settles the send."""
        self._parts.append(_Part(members, partition, runs, error))
        if error is not None:
            self._refused += len(members)
        else:
            self._refused += sum(run[0] for run in runs if run[1] not in _TAKEN)
        self._left -= len(members)
        if self._left == 0:
            self._settle()

    def fail(self, error: OnceMQError, *, refused: bool = False) -> None:
        """Settle the send with an error: `refused`, or its outcome unknown, which `close` tells too."""
        if not self.settled:
            self.error = error
            self._refused = self.count if refused else 0
            self._settle()

    def __del__(self) -> None:
        """Warn of refused messages whose handle was never asked, as asyncio does of lost errors."""
        unread = self._refused - len(self._told)
        if self.settled and unread > 0:
            error = self.first_error()
            many = "a message was" if unread == 1 else f"{unread} messages were"
            log(logging.WARNING, "%s refused and no result() was asked for: %s", many, error)

    def forked(self, error: OnceMQError) -> None:
        """Fail in a forked child, where a thread that does not exist may hold the old lock."""
        self._lock = threading.Lock()
        self._callbacks = []  # they belong to the parent
        self.fail(error)

    def _settle(self) -> None:
        with self._lock:
            self.settled = True
            callbacks, self._callbacks = self._callbacks, []
            if self._bell is not None:
                self._bell.set()
        for callback in callbacks:
            _call(callback)

    # --- the side of the caller ------------------------------------------------------------------

    def wait(self, timeout: float | EllipsisType | None) -> None:
        """`...` waits as long as the producer's patience says. Raises ResultTimeout."""
        bell = self._hang_bell()
        if bell is None:
            return
        if isinstance(timeout, EllipsisType):
            self._wait_patiently(bell)
        elif not bell.wait(timeout):
            raise ResultTimeout(
                f"no answer within {timeout} s{self.patience.describe_wait()}",
                hint="the producer keeps sending it: call result() again, or flush()",
            )

    def _wait_patiently(self, bell: threading.Event) -> None:
        since_s = time.monotonic()
        while not bell.wait(left_s := self.patience.left_s(since_s)):
            if left_s is not None and left_s <= 0:
                raise self.patience.over()

    def _hang_bell(self) -> threading.Event | None:
        with self._lock:
            if not self.settled and self._bell is None:
                self._bell = threading.Event()
            return None if self.settled else self._bell

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call `callback` once settled, in the thread that settles; at once if it is."""
        with self._lock:
            if not self.settled:
                self._callbacks.append(callback)
                return
        _call(callback)

    def asked(self) -> None:
        """The caller has taken all verdicts: nothing of them is unread."""
        self._refused = 0

    def verdict(self, index: int) -> Ack | OnceMQError:
        """Call it once settled."""
        assert self.settled, "not settled yet"
        found = self._verdict(index)
        if isinstance(found, OnceMQError):
            self._told.add(index)
        return found

    def _verdict(self, index: int) -> Ack | OnceMQError:
        if self.error is not None:
            return self.error
        for part in self._parts:
            place = bisect_left(part.members, index)
            if place < len(part.members) and part.members[place] == index:
                return self._read_one(part, place, index)
        raise AssertionError(f"no batch holds message {index}")

    def all_verdicts(self) -> list[Ack | OnceMQError]:
        """In order; call it once settled."""
        self.asked()
        if self.error is not None:
            return [self.error] * self.count
        found = {
            index: verdict
            for part in self._parts
            for index, verdict in zip(part.members, self._read(part), strict=True)
        }
        return [found[index] for index in range(self.count)]

    def _read_one(self, part: _Part, place: int, index: int) -> Ack | OnceMQError:
        if part.error is not None:
            return part.error
        for count, verdict, first_offset in part.runs:
            if place < count:
                return self._judge(part.partition, verdict, first_offset, place, index)
            place -= count
        raise AssertionError("the runs of a batch are shorter than the batch")

    def _read(self, part: _Part) -> list[Ack | OnceMQError]:
        if part.error is not None:
            return [part.error] * len(part.members)
        members = iter(part.members)
        return [
            self._judge(part.partition, verdict, first_offset, step, next(members))
            for count, verdict, first_offset in part.runs
            for step in range(count)
        ]

    def _judge(
        self, partition: int, verdict: int, first_offset: int, step: int, index: int
    ) -> Ack | OnceMQError:
        if verdict not in _TAKEN:
            named = (
                f"of message {index}" if self.ids is None else repr(untagged_id(self.ids[index]))
            )
            return refusal_of(verdict, f"id {named}", self.topic)
        offset = None if first_offset == UNKNOWN_OFFSET else first_offset + step
        return Ack(self.topic, partition, offset, verdict == DUPLICATE)

    def counted(self, wanted: int) -> int:
        """`wanted`: STORED, DUPLICATE, CONFLICT, TOO_OLD or AHEAD."""
        return sum(run[0] for part in self._parts for run in part.runs if run[1] == wanted)

    def first_error(self) -> OnceMQError | None:
        self.asked()
        if self.error is not None:
            return self.error
        for part in self._parts:
            if part.error is not None:
                return part.error
        if any(run[1] not in _TAKEN for part in self._parts for run in part.runs):
            return next(v for v in self.all_verdicts() if isinstance(v, OnceMQError))
        return None


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except BaseException as error:
        if not raised_by_code(error):
            raise
        log(logging.ERROR, "a done callback of a message raised", exc_info=True)
