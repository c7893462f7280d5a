"""A consumer: its core on a ledger behind a transport, turned by its owner.

What the core asks for (core/consumer/work.py) is done here, but for what only the embedder knows:
how handlers run. A process lets its main thread run them (library/consuming/process.py), the test
kit calls them between two turns, the simulator draws what they do. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, Protocol, Self, TypeVar

import xxhash

from ..backoff import backoff_ms
from ..core.client.connection import Reconnect
from ..core.consumer.core import ConsumerCore
from ..core.consumer.effect_work import (
    EffectAnswer,
    EffectHeld,
    EffectOrder,
    KeepOrders,
    LookForOrders,
)
from ..core.consumer.grant import Member
from ..core.consumer.work import (
    AnswerDropped,
    CutHandler,
    GaveBack,
    HandlerDone,
    LedgerPeeked,
    OpenLedger,
    PeekLedger,
    Repost,
    RunHandler,
    StandingBy,
    TopicFound,
    TopicResolved,
)
from ..driver import DISK_FULL_RETRY_MS, Driver
from ..errors import DiskFull, Fenced, LogInUse, OnceMQError, SinkUnavailable
from ..limits import (
    CRASH_RETRIES_DEFAULT,
    LEDGER_SNAPSHOT_EVERY_BYTES,
    LIMITS,
    PARK_LIMIT_DEFAULT,
    RETRIES_DEFAULT,
    STANDBY_RETRY_MS,
    Limits,
)
from ..outcome import Event, Stop
from ..ports import Background, Clock, Events, Log, Transport

Place = tuple[str, str, int]  # group, topic, partition


def fingerprints(ledger_id: bytes, ids: list[bytes]) -> bytes:
    """Return 16 bytes for each tagged id, keyed by the random id of the ledger.

    The key keeps out ids that were chosen to collide.
    """
    seed, digest = int.from_bytes(ledger_id[:8], "little"), xxhash.xxh3_128_digest
    return b"".join(map(digest, ids, repeat(seed)))


class ReopenedTransport(Transport, Protocol):
    """The socket of a consumer; its owner closes it."""

    def reopen(self) -> None:
        """Close and connect anew under a fresh routing id."""


class LentConnection(Protocol):
    """The connection to a sink that handlers write to: lent to a call, taken back for the commit."""

    @property
    def broken(self) -> bool:
        """Whether the connection is of no use any more: the next owner needs another one."""

    def expect_call(self) -> None:
        """A call is on its way: until it has answered the connection is its own."""

    def answered(self) -> None:
        """The call has answered, whether it began or not."""

    def drop(self) -> None:
        """Roll back what a call has handed over: nothing of it counts."""

    def lend_again(self) -> None:
        """The record that the call waits for is written, or none is: the call goes on."""


class LedgerDoor(Protocol):
    """One ledger before and at its opening: in files or in tables of a database."""

    directory: str  # where the ledger is, for people

    @property
    def session(self) -> LentConnection | None:
        """Where handlers write what is committed with the ledger's record; None: files."""

    def peek(self) -> LedgerPeeked:
        """Return the facts of the ledger; make it where there is none."""

    def open(self, epoch: int) -> Log:
        """Open it for writing under a grant."""

    def find_orders(self, effect_ids: Iterable[str]) -> list[EffectOrder]:
        """Return what operators have ordered about some calls of effects."""

    def keep_orders(self, effect_ids: Iterable[str]) -> None:
        """Forget all orders but those about some calls."""

    def release(self) -> None:
        """Let the lock of the last owner go, if it is held."""

    def close(self) -> None:
        """Let everything go."""


_Shell_contra = TypeVar("_Shell_contra", contravariant=True)


class Host(Protocol[_Shell_contra]):
    """What only the embedder of a consumer knows. It may have more than one of them."""

    def start_call(self, shell: _Shell_contra, run: RunHandler, /) -> None:
        """Have the handlers called; `shell.post` the answer, or `shell.fail`."""

    def cut_call(self, shell: _Shell_contra, /) -> None:
        """Make the running call end after the message it is at."""

    def effect_answered(self, shell: _Shell_contra, answer: EffectAnswer, /) -> None:
        """A handler that waits in an effect may go on."""

    def effect_held(self, shell: _Shell_contra, held: EffectHeld, /) -> None:
        """A message waits until an operator resolves an effect."""

    def topic_found(self, shell: _Shell_contra, partitions: int, /) -> None:
        """The input topic has so many partitions: a consumer is wanted for each."""

    def topic_resolved(self, shell: _Shell_contra, resolved: TopicResolved, /) -> None:
        """A topic that a handler waits for is known now, or refused."""

    def standing_by(self, shell: _Shell_contra, owner: str, /) -> None:
        """Another member has the partition."""

    def sink_away(self, shell: _Shell_contra, error: SinkUnavailable, /) -> None:
        """The database of the consumer cannot be reached or written; the shell still retries."""


class ConsumerShell:
    """One consumer of one partition. One thread calls all of it."""

    def __init__(
        self,
        place: Place,
        *,
        endpoint: str,
        transport: ReopenedTransport,
        clock: Clock,
        events: Events,
        entropy: Callable[[], bytes],
        ledger: LedgerDoor,
        host: Host[Self],
        label: str,
        retries: int = RETRIES_DEFAULT,
        crash_retries: int = CRASH_RETRIES_DEFAULT,
        park_limit: int | None = PARK_LIMIT_DEFAULT,
        process: bytes = b"",
        outlived: int = 0,
        first_request: int = 1,
        snapshot_every_bytes: int = LEDGER_SNAPSHOT_EVERY_BYTES,
        limits: Limits = LIMITS,
        background: Background | None = None,
    ) -> None:
        """`endpoint` and `label` tell people where the broker is and who this is.

        `entropy` draws 16 random bytes. `process` is the id of the member that this consumer works
        for: 16 random bytes, the same for all partitions of one process, which then shares them
        with other members. `outlived` is `last_epoch` of the consumer before this one, if its
        database failed under it. Requests are numbered from `first_request` on. Parts of a ledger in
        files are written in `background` (None: in the turn); the caller closes it.
        """
        self._transport = transport
        self._clock = clock
        self._events = events
        self._entropy = entropy
        self._ledger = ledger
        self._host: Host[Self] = host
        self._ledger_id = b""  # known once the shell has peeked into the ledger
        commit_first = ledger.session is not None  # a connection holds one transaction
        who = (*place, entropy(), label, retries, crash_retries, park_limit, process)
        member = Member(*who, commit_first=commit_first, outlived=outlived)
        self.core = ConsumerCore(
            member,
            endpoint,
            fingerprint=self.fingerprints,
            first_request=first_request,
            limits=limits,
        )
        self._driver = Driver(
            self.core,
            transport,
            clock,
            events,
            perform=self._perform,
            snapshot_every_bytes=snapshot_every_bytes,
            compacts=True,
            files=self.core.ledger.processed,
            background=background if ledger.session is None else None,
        )
        # Work that could not be done, and when it is due again; None: there is none.
        self._again: PeekLedger | OpenLedger | None = None
        self._again_at_ms = 0
        self._sink_failures = 0  # in a row
        # Whether the grant is on its way back: a successor may have opened the ledger.
        self.gave_back = False
        # Whether it has ended, and why: None for a clean end.
        self.ended = False
        self.error: BaseException | None = None

    @property
    def place(self) -> Place:
        return self.core.member.place

    @property
    def serving(self) -> bool:
        """Whether the ledger is open: on a full disk the consumer waits for room from then on."""
        return self._driver.log is not None

    @property
    def waits_for_writer(self) -> bool:
        """Whether its last records wait for another ledger of this thread, in the same database."""
        log = self._driver.log
        return log is not None and log.end > log.durable_end

    @property
    def why_rejoin(self) -> str:
        """Why a fresh consumer stands by after this one has ended; "": none does.

        Fenced while other members own partitions of the topic: this partition went to one of them.
        Fenced as the owner of all of them: a successor has replaced the whole process.
        """
        if self.error is None:
            return "revoked" if self.core.revoked else ""
        return "fenced" if isinstance(self.error, Fenced) and self.core.shared else ""

    @property
    def last_epoch(self) -> int:
        """The last epoch under which this process has written; 0: none."""
        log = self._driver.log
        return self.core.member.outlived if log is None else log.generation

    def post(self, event: Event) -> None:
        session = self._ledger.session
        if isinstance(event, HandlerDone) and session is not None:
            session.answered()
        self._driver.post(event)

    def time_left_ms(self) -> int:
        left = self._driver.time_left_ms()
        if self._again is not None:
            left = min(left, max(0, self._again_at_ms - self._clock.now_ms()))
        return left

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """Do what is to be done now; never waits. Returns whether anything happened.

        An error ends the consumer and is kept in `error`; others of the process may go on.
        """
        del timeout_ms
        if self.ended:
            return False
        try:
            if self._again is not None and self._again_at_ms <= self._clock.now_ms():
                item, self._again = self._again, None
                self._perform(item)
            return self._driver.turn(0)
        except (OnceMQError, OSError) as error:
            self._failed(error)
            return True

    def _failed(self, error: OnceMQError | OSError) -> None:
        if self.ended:  # because of what made this follow: the ledger is closed by now
            return
        if isinstance(error, Fenced | SinkUnavailable) and self.gave_back:
            self.end(None)
            return
        log = self._driver.log
        if isinstance(error, Fenced) and log is not None:  # the log tells before the broker
            fields = self.core.member.fields(epoch=log.generation, reason=error.reason)
            self._events.emit("consumer.fenced", **fields)
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """End at once, because of `error` if there is one. Does nothing if it has ended."""
        if not self.ended:
            self.ended = True
            self.error = error
            self.close()

    def close(self) -> None:
        """What was not synced counts as never done."""
        self.ended = True
        self._ledger.release()
        try:
            self._driver.close(clean=self.error is None)
        except (OnceMQError, OSError) as error:
            if not (isinstance(error, Fenced) and self.gave_back):
                self.error = self.error or error
        self._ledger.close()

    def kill(self) -> None:
        """End as a crash would: locks are let go, nothing more is written."""
        self.error = self.error or OnceMQError("killed")
        self.close()

    def fingerprints(self, ids: list[bytes]) -> bytes:
        """Return 16 bytes for each tagged id, as the ledger keeps them."""
        return fingerprints(self._ledger_id, ids)

    # --- the work of the core --------------------------------------------------------------------

    def _perform(self: Self, item: Any) -> None:
        match item:
            case PeekLedger():
                self._peek(item)
            case OpenLedger():
                self._open(item)
            case RunHandler():
                if self._ledger.session is not None:
                    self._ledger.session.expect_call()
                self._host.start_call(self, item)
            case CutHandler():
                self._host.cut_call(self)
            case AnswerDropped():
                if self._ledger.session is not None:
                    self._ledger.session.drop()
            case Repost():
                self.post(item.event)
            case EffectAnswer():
                if self._ledger.session is not None:
                    self._ledger.session.lend_again()
                self._host.effect_answered(self, item)
            case EffectHeld():
                self._host.effect_held(self, item)
            case LookForOrders():
                for order in self._ledger.find_orders(item.effect_ids):
                    self.post(order)
            case KeepOrders():
                self._ledger.keep_orders(item.effect_ids)
            case TopicFound():
                self._host.topic_found(self, item.partitions)
            case TopicResolved():
                self._host.topic_resolved(self, item)
            case StandingBy():
                self._host.standing_by(self, item.owner)
            case GaveBack():
                self.gave_back = True
            case Reconnect():
                self._transport.reopen()
            case Stop():
                self.end(item.error)
            case _:
                raise AssertionError(f"not work of a consumer: {item!r}")

    def _peek(self, item: PeekLedger) -> None:
        try:
            facts = self._ledger.peek()
        except LogInUse:  # another process is making it this very moment
            self._try_again(item, STANDBY_RETRY_MS)
            return
        except SinkUnavailable as error:
            self._sink_away(item, error)
            return
        self._sink_failures = 0
        self._ledger_id = facts.ledger_id
        self.post(facts)

    def _open(self, item: OpenLedger) -> None:
        try:
            log = self._ledger.open(item.epoch)
        except DiskFull as error:
            self._events.emit("log.disk_full", for_=str(error))
            self._try_again(item, DISK_FULL_RETRY_MS)
            return
        except SinkUnavailable as error:
            self._sink_away(item, error)
            return
        self._driver.open_log(log, self._ledger.directory)

    def _sink_away(self: Self, item: PeekLedger | OpenLedger, error: SinkUnavailable) -> None:
        """Try again, unless a connection broke: the consumer that follows this one has another."""
        session = self._ledger.session
        if session is not None and session.broken:
            raise error
        self._host.sink_away(self, error)
        jitter = int.from_bytes(self._entropy()[:4], "big") / 2**32
        self._try_again(item, backoff_ms(self._sink_failures, jitter=jitter))
        self._sink_failures += 1

    def _try_again(self, item: PeekLedger | OpenLedger, pause_ms: int) -> None:
        self._again = item
        self._again_at_ms = self._clock.now_ms() + pause_ms
