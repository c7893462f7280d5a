"""One consumer core with its driver, socket and ledger: the shell that both forms share.

The process (consumer_process.py) and the test kit (harness.py) turn it; they differ in which
thread calls handlers and what waiting means, which is all that `Host` says.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import xxhash

from ...backoff import backoff_ms
from ...core.client.connection import Reconnect
from ...core.consumer.core import ConsumerCore
from ...core.consumer.effect_work import (
    EffectAnswer,
    EffectHeld,
    EffectOrder,
    KeepOrders,
    LookForOrders,
)
from ...core.consumer.grant import Member
from ...core.consumer.work import (
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
from ...driver import DISK_FULL_RETRY_MS, Driver
from ...errors import CorruptLog, DiskFull, Fenced, LogInUse, OnceMQError, SinkUnavailable
from ...limits import LEDGER_SNAPSHOT_EVERY_BYTES, STANDBY_RETRY_MS
from ...outcome import Event, Stop
from ...ports import Clock, Events, Log, Transport
from ...shells.effect_answers import EffectAnswers
from ...storage.log import TailCut
from ..handling.call import Consumer
from ..handling.carry import Carry
from ..sinks.session import Session


class LedgerLog(Log, Protocol):
    """A ledger that is open for writing."""

    cut_report: TailCut | None
    snapshot_damage: list[CorruptLog]


class LedgerDoor(Protocol):
    """One ledger before and at its opening: files (ledger_files.py) or tables (sinks/ledger.py)."""

    directory: str

    @property
    def session(self) -> Session | None:
        """Where handlers write what is committed with the ledger's record; None: files."""

    def peek(self) -> LedgerPeeked:
        """Return the facts of the ledger; make it where there is none."""

    def open(self, epoch: int) -> LedgerLog:
        """Open it for writing under a grant."""

    def find_orders(self, effect_ids: Iterable[str]) -> list[EffectOrder]:
        """Return what operators have ordered about some calls of effects."""

    def keep_orders(self, effect_ids: Iterable[str]) -> None:
        """Forget all orders but those about some calls."""

    def release(self) -> None:
        """Let the lock of the last owner go, if it is held."""

    def close(self) -> None:
        """Let everything go."""


class Host(Protocol):
    """Who turns consumers and calls their handlers."""

    def start_call(self, actor: ConsumerActor, run: RunHandler) -> None:
        """Have the handler called; `actor.post` the answer."""

    def cut_call(self, actor: ConsumerActor) -> None:
        """Make the running call end after the message it is at."""

    def topic_found(self, actor: ConsumerActor, partitions: int) -> None:
        """The input topic has so many partitions."""

    def topic_resolved(self, resolved: TopicResolved) -> None:
        """A topic that a handler waits for is known now, or refused."""

    def standing_by(self, actor: ConsumerActor, owner: str) -> None:
        """Another member has the partition."""

    def effect_held(self, actor: ConsumerActor, held: EffectHeld) -> None:
        """A message waits for an operator's word about an effect."""

    def sink_away(self, actor: ConsumerActor, error: SinkUnavailable) -> None:
        """The database of the consumer cannot be reached or written; it is tried on."""


class ConsumerActor:
    """Drives one consumer. One thread calls all of it."""

    def __init__(
        self,
        consumer: Consumer,
        partition: int,
        endpoint: str,
        *,
        transport: Transport,
        clock: Clock,
        events: Events,
        ledger: LedgerDoor,
        host: Host,
        label: str,
        reopen: Callable[[], None] | None = None,
        process: bytes = b"",
        outlived: int = 0,
    ) -> None:
        """`reopen` connects the transport anew under a fresh routing id.

        `outlived` is the epoch of the actor before this one, if its database failed under it.

        `process` is the id of the member that this actor works for: 16 random bytes, the same for
        all partitions of one process, which then shares them with other members.
        """
        self.consumer = consumer
        self.partition = partition
        # What one call of the handler leaves for the next; of the thread that carries them out.
        self.carry = Carry()
        # Answers for handlers that wait in tx.effect. Any thread may take them.
        self.effect_answers = EffectAnswers()
        self.transport = transport
        self._clock = clock
        self._events = events
        self._ledger = ledger
        self._host = host
        self._reopen = reopen
        self._seed = 0
        member = Member(
            consumer.group,
            consumer.topic,
            partition,
            secrets.token_bytes(16),
            label,
            consumer.retries,
            consumer.crash_retries,
            process,
            commit_first=ledger.session is not None,
            outlived=outlived,
        )
        self.core = ConsumerCore(member, endpoint, fingerprint=self.fingerprints)
        self._driver = Driver(
            self.core,
            transport,
            clock,
            events,
            perform=self._perform,
            snapshot_every_bytes=LEDGER_SNAPSHOT_EVERY_BYTES,
            compacts=True,
        )
        # Work that must be tried again (the item), and when.
        self._again: Any = None
        self._again_at_ms = 0
        # Whether the grant is on its way back: whoever is next may have opened the ledger.
        self.gave_back = False
        self._pauses = 0  # how often the sink was tried in vain, one after the other
        # Whether it has ended, and why: None for a clean end.
        self.ended = False
        self.error: BaseException | None = None

    @property
    def place(self) -> tuple[str, str, int]:
        """(group, topic, partition)."""
        return self.core.member.place

    @property
    def why_rejoin(self) -> str:
        """Why, having ended, it is followed by an actor that stands by; "": it is not.

        Who was fenced while others owned partitions of the topic too has lost this one to a member
        of its group. Who owned them all has been replaced by a successor.
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
        """Queue an event for the next turn."""
        if isinstance(event, HandlerDone) and self.sink is not None:
            self.sink.answered()
        self._driver.post(event)

    @property
    def sink(self) -> Session | None:
        """The connection that handlers write to."""
        return self._ledger.session

    def fail(self, error: OnceMQError) -> None:
        """End because a call could not be carried out."""
        if not self.ended:
            self._end(error)

    def time_left_ms(self) -> int:
        """Return how long the next turn may wait."""
        left = self._driver.time_left_ms()
        if self._again is not None:
            left = min(left, max(0, self._again_at_ms - self._clock.now_ms()))
        return left

    def turn(self, timeout_ms: int | None = 0, /) -> bool:
        """Do what is to be done now; never waits. Returns whether anything happened.

        An error ends the actor and is kept in `error`; other actors of the process may go on.
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
            if isinstance(error, Fenced | SinkUnavailable) and self.gave_back:
                self._end(None)
                return True
            log = self._driver.log
            if isinstance(error, Fenced) and log is not None:  # the log tells before the broker
                fields = self.core.member.fields(epoch=log.generation, reason=error.reason)
                self._events.emit("consumer.fenced", **fields)
            self._end(error)
            return True

    def close(self) -> None:
        """Let go of the ledger; what was not synced counts as never done."""
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

    def _end(self, error: BaseException | None) -> None:
        self.ended = True
        self.error = error
        self.close()

    def _perform(self, item: Any) -> None:
        match item:
            case RunHandler():
                if self.sink is not None:
                    self.sink.expect_call()
                self._host.start_call(self, item)
            case CutHandler():
                self._host.cut_call(self)
            case Repost():
                self.post(item.event)
            case AnswerDropped():
                if self.sink is not None:
                    self.sink.drop()
            case EffectAnswer():
                if self.sink is not None:
                    self.sink.lend_again()
                self.effect_answers.put(item)
            case EffectHeld():
                self._host.effect_held(self, item)
            case LookForOrders():
                for order in self._ledger.find_orders(item.effect_ids):
                    self.post(order)
            case KeepOrders():
                self._ledger.keep_orders(item.effect_ids)
            case PeekLedger():
                self._peek(item)
            case OpenLedger():
                self._open(item)
            case TopicFound():
                self._host.topic_found(self, item.partitions)
            case TopicResolved():
                self._host.topic_resolved(item)
            case StandingBy():
                self._host.standing_by(self, item.owner)
            case GaveBack():
                self.gave_back = True
            case Reconnect():
                if self._reopen is not None:
                    self._reopen()
            case Stop():
                self._end(item.error)
            case _:
                raise AssertionError(f"unknown work {item!r}")

    def _peek(self, item: PeekLedger) -> None:
        try:
            facts = self._ledger.peek()
        except LogInUse:  # another process is making it this very moment
            self._try_again(item, STANDBY_RETRY_MS)
            return
        except SinkUnavailable as error:
            self._sink_away(item, error)
            return
        self._pauses = 0
        self._seed = int.from_bytes(facts.ledger_id[:8], "little")
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
        if log.cut_report is not None:
            cut = log.cut_report
            self._events.emit(
                "log.tail_cut",
                directory=self._ledger.directory,
                from_=cut.from_position,
                to=cut.to_position,
                bytes=cut.nbytes,
                reason=cut.reason,
            )
        self._driver.open_log(log)
        for damage in log.snapshot_damage:
            self._events.emit("snapshot.fallback", reason=str(damage))

    def _sink_away(self, item: Any, error: SinkUnavailable) -> None:
        """Try again, unless a connection broke: the actor that follows this one has another."""
        session = self._ledger.session
        if session is not None and session.broken:
            raise error
        self._host.sink_away(self, error)
        self._try_again(item, backoff_ms(self._pauses, jitter=random.random()))
        self._pauses += 1

    def _try_again(self, item: Any, pause_ms: int) -> None:
        self._again = item
        self._again_at_ms = self._clock.now_ms() + pause_ms

    def fingerprints(self, ids: list[bytes]) -> list[bytes]:
        """16 bytes for each tagged id, keyed by the ledger's random id."""
        seed, digest = self._seed, xxhash.xxh3_128_digest
        return [digest(tagged, seed) for tagged in ids]
