"""Which messages may be handled now when each key has a state of its own, and what may be committed.

Theory of operation. Messages of one key follow each other in the order of their offsets; those of
different keys do not wait for each other. Effects are kept beside their message until every message
before it is done: a commit holds the effects of a contiguous prefix and nothing else, so after a
crash what lies behind it runs again, on a state that knows nothing of it. The next call uses what
was kept as long as the state that the handler found is still that of the key.

A message that fails holds the prefix. Behind it what runs goes on to its end and waits, and no
more is started once `commit_bytes` wait; its own key waits. Each attempt is a call of its own, in
which what follows may go on.

All of it belongs to the thread that carries the call out; handlers run elsewhere and come back
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
    """What is asked of a message here."""

    @property
    def offset(self) -> int:
        """Where it lies in its partition."""


Message = TypeVar("Message", bound=KeyedMessage)

# Failures that say what is known of an effect: it may be known better when they are told.
_UNTIL_SOMEBODY_SPEAKS = frozenset({HELD_EFFECT, UNKNOWN_EFFECT})


@dataclass(frozen=True, slots=True)
class Job(Generic[Message]):
    """A message to be handled, the name of its key's entry and what that holds."""

    message: Message
    name: str
    entry: bytes | None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a message that was handled apart from the others.

    It is right for as long as the message is the same (its stored batch and offset) and its key's
    state is what the handler found: then the handler would do it all again.
    """

    stored: BatchStored
    name: str  # of the entry that holds the state of its key
    found: bytes | None  # that entry as the handler found it ...
    left: bytes | None  # ... and as it left it; None: none
    outgoing: tuple[Any, ...] = ()  # messages that it sends, in order
    failure: FailedMessage | None = None
    size: int = 0  # bytes that a commit needs for it, about


class Schedule(Generic[Message]):
    """The messages of one call."""

    def __init__(
        self,
        run: RunHandler,
        messages: Iterable[tuple[str, Message]],
        kept: dict[int, Result],
        fail: Callable[[Message, Exception], FailedMessage],
    ) -> None:
        """Handle `messages`, all those of the run, each with the name of its key's entry.

        `kept` is what earlier calls know of them, by offset, and takes what this one leaves.
        `fail` makes what the core is told of a message that failed.
        """
        self._fail_with = fail
        self._limits = run.ledger.limits
        self._messages: Iterator[tuple[str, Message]] = iter(messages)
        here = {id(piece.stored) for piece in run.window.pieces}
        for offset, result in list(kept.items()):
            if offset < run.first_offset or id(result.stored) not in here:
                del kept[offset]
        self._results = kept
        # Set by another thread: start nothing more.
        self.cut = False
        # Offsets that were met, in order.
        self._order: list[int] = []
        # Messages whose turn has come because the one before them of their key is done.
        self._ready: list[tuple[int, str, Message]] = []
        # By key that is busy or has failed: its messages that wait. Their sum is `_waiting`.
        self._busy: dict[str, deque[Message]] = {}
        self._waiting = 0
        # What later messages find: the entries of keys as the results have left them.
        self._state = run.ledger.state
        self._entries: dict[str, bytes | None] = {}
        self._room = _Room(run)
        # The lowest offset that has failed.
        self._failed_at: int | None = None
        # Whether the call has got anywhere: however little it may do, it does that much.
        self._started = False
        self._bytes = sum(result.size for result in self._results.values())

    def next(self) -> Job[Message] | None:
        """Return what may be started now; None: wait for what runs, or there is nothing more."""
        if self._started and (self.cut or self._bytes >= self._limits.commit_bytes):
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
        """Return the first message whose turn it is and of which nothing is known."""
        limit = self._failed_at
        if self._ready:
            if limit is not None and self._ready[0][0] > limit:
                return None
            offset, name, message = heappop(self._ready)
            self._forget(offset)
            return name, message
        ahead_max, messages_max = self._limits.keys_ahead_max, self._limits.commit_messages_max
        while self._waiting < ahead_max and len(self._order) < messages_max:
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
        """Use what is known of a message; return whether that will do."""
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
        """End the call: return what may be committed, in order, and the failure right behind it.

        The rest stays for the next call.
        """
        done: list[Result] = []
        size, enough = 0, self._limits.commit_bytes
        failure = None
        for offset in self._order:
            result = self._results.get(offset)
            if result is None or size >= enough:
                break
            del self._results[offset]
            if result.failure is not None:
                failure = result.failure
                break
            done.append(result)
            size += result.size
        for offset, result in list(self._results.items()):
            if result.failure is not None and result.failure.kind in _UNTIL_SOMEBODY_SPEAKS:
                del self._results[offset]
        return done, failure


def changes_of(done: Iterable[Result], state: dict[str, bytes]) -> dict[str, bytes | None]:
    """Return what a commit of results changes in `state`."""
    changes = {result.name: result.left for result in done if result.left != result.found}
    return {name: changes[name] for name in sorted(changes) if changes[name] != state.get(name)}


class _Room:
    """Whether every prefix of the results leaves the state within its limit."""

    def __init__(self, run: RunHandler) -> None:
        self._state = run.ledger.state
        # Of each entry that some result changes: its greatest size among the state and the results.
        # A commit leaves one of these, so their sum bounds the state after any commit.
        self._sizes: dict[str, int] = {}
        self._total = run.ledger.state_bytes
        self._bytes_max = run.ledger.limits.state_bytes_max

    def take(self, name: str, entry: bytes | None) -> None:
        """Take one more change. Raises StateTooLarge and changes nothing then."""
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
