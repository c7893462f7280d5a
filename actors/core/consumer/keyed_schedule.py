"""Handlers with a state for each key: which messages may run now, and which may be committed.

Theory of operation. Messages of one key run in the order of their offsets; messages of different
keys do not wait for each other. The result of a message is kept until every message before it is
done: a commit holds the results of a contiguous prefix and nothing else. So after a crash the
messages behind the prefix run again, on a state without their changes. The next call uses a kept
result as long as the state that the handler found is still that of the key.

A message that fails ends the prefix. Running messages behind it finish and wait, its own key waits,
and nothing more starts once results of `commit_bytes` wait. Each attempt is a call of its own, in
which other keys may go on.

All of this belongs to the thread that carries the call out; handlers run elsewhere and come back
through `finish`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Generic, Protocol, TypeVar

from ...errors import StateTooLarge
from ...records import BatchStored
from .work import HELD_EFFECT, UNKNOWN_EFFECT, FailedMessage, RunHandler


class KeyedMessage(Protocol):
    """What a schedule needs of a message."""

    @property
    def offset(self) -> int:
        """The offset in the partition."""


Message = TypeVar("Message", bound=KeyedMessage)

# Failures that rest on the unknown outcome of an effect. They are not kept for the next call: an
# order may have come meanwhile.
_UNTIL_AN_ORDER = frozenset({HELD_EFFECT, UNKNOWN_EFFECT})


@dataclass(frozen=True, slots=True)
class Job(Generic[Message]):
    """A message to handle, with the name and the content of its key's entry."""

    message: Message
    name: str
    entry: bytes | None


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a message that was handled apart from the others.

    It is valid while the message is the same (stored batch and offset) and its key's state is what
    the handler found: then another call would give the same result.
    """

    stored: BatchStored
    name: str  # of the entry that holds the state of its key
    found: bytes | None  # the entry as the handler found it; None: there was none
    left: bytes | None  # the entry as the handler left it
    outgoing: tuple[Any, ...] = ()  # messages that the handler sends, in order
    failure: FailedMessage | None = None
    size: int = 0  # estimated bytes of the result in a commit


class Schedule(Generic[Message]):
    """The messages of one call."""

    def __init__(
        self,
        run: RunHandler,
        messages: Iterable[tuple[str, Message]],
        kept: dict[int, Result],
        fail: Callable[[Message, BaseException], FailedMessage],
    ) -> None:
        """Handle `messages`, all those of the run, each with the name of its key's entry.

        `kept` has the results of earlier calls by offset, and keeps those that this call leaves.
        `fail` makes the FailedMessage for the core.
        """
        self._fail_with = fail
        # Bounds, read once: they are asked for at each message.
        limits = run.ledger.limits
        self._commit_bytes = limits.commit_bytes
        self._messages_max = limits.commit_messages_max
        self._ahead_max = limits.keys_ahead_max
        self._messages: Iterator[tuple[str, Message]] = iter(messages)
        here = {id(piece.stored) for piece in run.window.pieces}
        for offset, result in list(kept.items()):
            if offset < run.first_offset or id(result.stored) not in here:
                del kept[offset]
        self._results = kept
        # Set by another thread: start no more messages.
        self.cut = False
        # Offsets of the messages taken from the run, in order.
        self._order: list[int] = []
        # Messages whose turn has come because the one before them of their key is done.
        self._ready: list[tuple[int, str, Message]] = []
        # By key that is busy or has failed: its messages that wait. Their sum is `_waiting`.
        self._busy: dict[str, deque[Message]] = {}
        self._waiting = 0
        # The entries of keys as the results have left them: later messages find these.
        self._state = run.ledger.state
        self._entries: dict[str, bytes | None] = {}
        self._room = _Room(run)
        # The lowest offset that has failed.
        self._failed_at: int | None = None
        # Whether the call has used or started a message: each call makes some progress, also when
        # it is cut at once or begins with full results.
        self._started = False
        self._bytes = sum(result.size for result in self._results.values())

    def next(self) -> Job[Message] | None:
        """Return a job that may start now; None: wait for running jobs, or there are no more."""
        if self._started and (self.cut or self._bytes >= self._commit_bytes):
            return None
        picked = self._pick()
        if picked is None:
            return None
        self._started = True
        name, message = picked
        return Job(message, name, self._entry(name))

    def _entry(self, name: str) -> bytes | None:
        return self._entries[name] if name in self._entries else self._state.get(name)

    def _pick(self) -> tuple[str, Message] | None:
        """Return the first message whose turn it is and that has no valid result."""
        limit = self._failed_at
        if self._ready:
            if limit is not None and self._ready[0][0] > limit:
                return None
            offset, name, message = heappop(self._ready)
            self._forget(offset)
            return name, message
        while self._waiting < self._ahead_max and len(self._order) < self._messages_max:
            if self._failed_at is not None and self._order[-1] >= self._failed_at:
                return None
            try:
                name, message = next(self._messages)
            except StopIteration:
                return None
            self._order.append(message.offset)
            if name in self._busy:
                self._busy[name].append(message)
                self._waiting += 1
            elif not self._is_done(message, name):
                self._busy.setdefault(name, deque())
                return name, message
        return None

    def _is_done(self, message: Message, name: str) -> bool:
        """Use the kept result of a message; return whether there is a valid one."""
        result = self._results.get(message.offset)
        if result is None:
            return False
        if result.found != self._entry(name):
            self._forget(message.offset)
            return False
        self._started = True
        if result.failure is not None:
            self._busy[name] = deque()
            self._fail(message.offset)
        elif result.left != result.found:
            self._entries[name] = result.left
            self._room.take(name, result.left)
        return True

    def _forget(self, offset: int) -> None:
        old = self._results.pop(offset, None)
        if old is not None:
            self._bytes -= old.size

    def finish(self, job: Job[Message], result: Result) -> None:
        offset = job.message.offset
        if result.left != result.found:
            try:
                self._room.take(job.name, result.left)
            except StateTooLarge as error:
                failure = self._fail_with(job.message, error)
                result = replace(result, left=job.entry, outgoing=(), size=0, failure=failure)
            else:
                self._entries[job.name] = result.left
        self._results[offset] = result
        self._bytes += result.size
        waiting = self._busy[job.name]
        if result.failure is not None:
            self._fail(offset)
        elif waiting:
            self._waiting -= 1
            following = waiting.popleft()
            heappush(self._ready, (following.offset, job.name, following))
        else:
            del self._busy[job.name]

    def _fail(self, offset: int) -> None:
        self._failed_at = offset if self._failed_at is None else min(self._failed_at, offset)

    def prefix(self) -> tuple[list[Result], FailedMessage | None]:
        """End the call: return the results to commit, in order, and the failure right behind them.

        Further results stay for the next call.
        """
        done: list[Result] = []
        size = 0
        failure = None
        for offset in self._order:
            result = self._results.get(offset)
            if result is None or size >= self._commit_bytes:
                break
            del self._results[offset]
            if result.failure is not None:
                failure = result.failure
                break
            done.append(result)
            size += result.size
        for offset, result in list(self._results.items()):
            if result.failure is not None and result.failure.kind in _UNTIL_AN_ORDER:
                del self._results[offset]
        return done, failure


def changes_of(done: Iterable[Result], state: dict[str, bytes]) -> dict[str, bytes | None]:
    """Return the changes of `state` by a commit of results."""
    changes = {result.name: result.left for result in done if result.left != result.found}
    return {name: changes[name] for name in sorted(changes) if changes[name] != state.get(name)}


class _Room:
    """Whether every prefix of the results leaves the state within its limit."""

    def __init__(self, run: RunHandler) -> None:
        self._state = run.ledger.state
        # For each changed entry the greatest size among the state and the results. A commit leaves
        # one of these sizes, so their sum bounds the state after any commit.
        self._sizes: dict[str, int] = {}
        self._total = run.ledger.state_bytes
        self._bytes_max = run.ledger.limits.state_bytes_max

    def take(self, name: str, entry: bytes | None) -> None:
        """Add a change. Raises StateTooLarge, having changed nothing."""
        before = self._sizes.get(name)
        if before is None:
            before = _size(name, self._state.get(name))
        after = max(before, _size(name, entry))
        total = self._total + after - before
        if total > self._bytes_max and after > before:
            raise StateTooLarge(
                f"tx.state would have {total} bytes, the limit is {self._bytes_max}"
            )
        self._sizes[name], self._total = after, total


def _size(name: str, entry: bytes | None) -> int:
    return 0 if entry is None else len(name.encode()) + len(entry)
