"""The consumer of one (group, topic, partition), as a pure state machine.

Theory of operation. grant.py gets the grant and keeps it. Once the shell has opened the ledger
under it, committed outputs without an acknowledgement go out first, and fetch.py goes on where the
ledger ends. handling.py has one handler call out at a time; the answer becomes one commit record:
inputs, ids, state, outputs and acknowledgements together. Outputs (send_window.py) and the event
`commit.synced` wait for the sync. A message that cannot be handled is parked by the same kind of
commit (handling.py); replayed dead letters come as a second input (running.py).

While the disk is full the core holds an answer back until there is room; this bounds fetching too,
and the lease is renewed all the time. To end in good order the consumer commits the running call,
waits until its outputs are acknowledged, records in the ledger that it ended on purpose, and gives
the grant back.

docs/PROTOCOL.md, "Groups" and "Fetch"; docs/STORAGE.md, "Ledger".
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import Fenced, IdConflict, OnceMQError, from_code
from ...history import Place, highest
from ...limits import LIMITS, Limits
from ...outcome import (
    DiskSpace,
    Event,
    Outcome,
    Received,
    Recovered,
    Snapshot,
    Stop,
    Synced,
)
from ...protocol import (
    CONFLICT,
    Failure,
    Fetched,
    Granted,
    Message,
    Renewed,
    TopicDescribed,
    place_in,
)
from ...records import Committed, LedgerEnded, LedgerStarted, Plain, Record
from ..client.connection import Connection, Reopened
from .commits import Acked
from .effect_work import STALE, EffectAnswer, EffectOrder, EffectTold, EffectWanted
from .grant import JOINING, LEAVING, OPENING, RUNNING, STOPPED, GrantHolder, Member, check_follows
from .ledger import Ledger
from .running import Running
from .topics import TopicLookups
from .window import Fingerprint
from .work import AnswerDropped, Drain, GiveUp, HandlerDone, LedgerPeeked, ResolveTopic


class ConsumerCore:
    """One consumer. The shell around it does the work that work.py describes."""

    def __init__(
        self,
        member: Member,
        endpoint: str,
        *,
        fingerprint: Fingerprint,
        first_request: int = 1,
        limits: Limits = LIMITS,
    ) -> None:
        """`fingerprint` turns tagged ids into 16 bytes each, keyed by the ledger's id.

        Requests are numbered from `first_request` on.
        """
        self.member = member
        self.ledger = Ledger(limits)
        self.connection = Connection(
            "consumer", member.incarnation, endpoint, first_request=first_request
        )
        self._holder = GrantHolder(member, self.connection)
        self._lookups = TopicLookups(self.connection)
        self._fingerprint = fingerprint
        # Invariant: set from RUNNING on.
        self._running: Running | None = None
        # Acknowledgements that the next commit will carry.
        self._acked = Acked()
        # Session of the connection in which requests were last sent.
        self._session_seen = 0
        self._recovered = False  # whether the ledger is open and replayed
        self._disk_full = False
        self._draining = False  # whether the end was asked for
        # Since when all is handled, committed and acknowledged; None while there is work. For a
        # standby: since when the owner has no work.
        self.idle_since_ms: int | None = None

    @property
    def phase(self) -> str:
        return self._holder.phase

    @property
    def revoked(self) -> bool:
        """Whether the broker asked for the partition back: a fresh core may stand by for it."""
        return self._holder.revoked

    @property
    def shared(self) -> bool:
        """Whether other members own partitions of the topic, by the last answer of the broker."""
        return self._holder.shared

    @property
    def unfinished(self) -> bool:
        """Whether more than its records of the end keeps this consumer from ending.

        A call that runs, outputs without an acknowledgement, a ledger that is not open yet, a full
        disk.
        """
        running = self._running
        if running is None or self.phase != RUNNING:
            return self.phase == OPENING
        out = running.handling.running is not None or running.send_window.batches > 0
        return out or self._disk_full

    @property
    def held_effects(self) -> list[str]:
        """Names of the effect calls whose messages wait for an operator's order."""
        return self._running.handling.held_effects if self._running else []

    @property
    def processed(self) -> int:
        """Messages handled under this grant."""
        return self._running.handling.processed if self._running else 0

    @property
    def parked(self) -> int:
        """Messages parked under this grant."""
        return self._running.handling.parked if self._running else 0

    @property
    def skipped(self) -> int:
        """Messages passed over under this grant: processed before, or dropped dead letters."""
        return self._running.handling.skipped if self._running else 0

    # --- the core protocol -----------------------------------------------------------------------

    @property
    def wake_at_ms(self) -> int | None:
        if self.phase == STOPPED:
            return None
        times = [self._holder.wake_at_ms, self.connection.wake_at_ms]
        running = self._running
        if running is not None and self.connection.ready:
            times.append(self._lookups.wake_at_ms)
            times += running.wake_times(draining=self._draining)
        return min((time for time in times if time is not None), default=None)

    def apply(self, record: Record, position: int) -> None:
        self.ledger.apply(record, position)

    def snapshot(self) -> Snapshot:
        return self.ledger.snapshot()

    def restore(self, parts: dict[str, Plain]) -> None:
        self.ledger.restore(parts)

    def step(self, event: Event, now_ms: int) -> Outcome:
        out = Outcome()
        if self.phase == STOPPED:
            self._turn_away(event, out)
            return out
        try:
            self._take(event, now_ms, out)
            self._advance(now_ms, out)
        except OnceMQError as error:
            self._stop(error, now_ms, out)
        return out

    def _take(self, event: Event, now_ms: int, out: Outcome) -> None:
        match event:
            case Received():
                self._received(event, now_ms, out)
            case HandlerDone() if self._running is not None:
                failed = self._running.handling.done(event, now_ms, out, self._acked)
                if failed is not None:
                    self._stop(failed, now_ms, out)
            case EffectWanted() | EffectTold() if self._running is not None:
                self._running.handling.effect(event, now_ms, out)
            case EffectOrder() if self._running is not None:
                self._running.handling.ordered(event, now_ms, out)
            case Reopened():
                self.connection.reopened(now_ms, out)
            case LedgerPeeked():
                self._holder.peeked(event, now_ms, out)
            case Recovered():
                self._recovered = True
            case DiskSpace():
                self._disk_full = event.full
                if self._running is not None:
                    self._running.handling.disk_space(now_ms, out, full=event.full)
            case Synced():
                self._holder.committed = self.ledger.next_offset
            case ResolveTopic():
                self._lookups.want(event.topic)
            case Drain():
                self._draining = True
            case GiveUp():
                self._give_up(now_ms, out)

    def _turn_away(self, event: Event, out: Outcome) -> None:
        """Answer a handler that still runs after the end.

        With a sink its transaction is rolled back, because the last record of the ledger may wait
        for the connection that the handler holds.
        """
        if isinstance(event, HandlerDone) and self.member.commit_first:
            out.work.append(AnswerDropped())
        elif isinstance(event, EffectWanted) or (isinstance(event, EffectTold) and event.waits):
            out.work.append(EffectAnswer(event.offset, event.name, STALE))

    def _stop(self, error: Exception | None, now_ms: int, out: Outcome) -> None:
        """End, after the sync of this step's commits. Leaves the grant where the owner still has it."""
        grant = self._holder.grant
        if isinstance(error, Fenced):
            fields = self.member.fields(epoch=grant.epoch if grant else 0, reason=error.reason)
            out.events.append(("consumer.fenced", fields))
        elif self.phase == RUNNING and error is not None:
            self._end_well(out)
            self._holder.leave(self._committed_offset(out), now_ms, out)
        self._holder.phase = STOPPED
        out.work_after_sync.append(Stop(error))

    def _give_up(self, now_ms: int, out: Outcome) -> None:
        """End at once: the running call is not committed, and its messages run again elsewhere."""
        if self.phase == RUNNING:
            self._end_well(out)
            self._holder.leave(self._committed_offset(out), now_ms, out)
        self._stop(None, now_ms, out)

    def _end_well(self, out: Outcome) -> None:
        """Record that this generation ends on purpose, unless there is no room."""
        grant = self._holder.grant
        if grant is not None and not self._disk_full:
            out.appends.append(LedgerEnded(grant.epoch))

    # --- messages --------------------------------------------------------------------------------

    def _received(self, event: Received, now_ms: int, out: Outcome) -> None:
        message, connection = event.message, self.connection
        taken = connection.received(message, now_ms, out)
        if any(isinstance(item, Stop) for item in out.work):
            self._holder.phase = STOPPED
            return
        if connection.sessions != self._session_seen:
            self._session_seen = connection.sessions
            self._holder.lost()
            self._lookups.lost()
            if self._running is not None:
                self._running.lost()
        if taken:
            return
        if self._running is not None:
            self._for_running(self._running, event, now_ms, out)
        if isinstance(message, TopicDescribed | Failure):
            self._lookups.received(message, now_ms, out)
        if isinstance(message, Failure):
            self._holder.refused(message, now_ms)
        elif isinstance(message, Renewed):
            self._draining = self._holder.renewed(message, out) or self._draining
        elif self._holder.answered(message, now_ms, out):
            self._stop(None, now_ms, out)

    def _for_running(self, running: Running, event: Received, now_ms: int, out: Outcome) -> None:
        message = event.message
        if isinstance(message, Fetched):
            for fetcher in running.fetchers:
                fetcher.received(message, event.stored or [], now_ms)
            return
        asking = [f for f in running.fetchers if f.answers(message.request)]
        if isinstance(message, Failure) and asking:
            error = from_code(message.code, message.reason, message.hint)
            if message.code in {"not_granted", "fenced"}:
                raise Fenced(message.reason)
            if not error.retriable:
                raise error
            asking[0].pause(now_ms)
        elif isinstance(message, TopicDescribed):
            running.described(message, now_ms)
        else:
            if isinstance(message, Failure):
                running.described(message, now_ms)
            self._settle(running, message, now_ms, out)

    def _settle(self, running: Running, message: Message, now_ms: int, out: Outcome) -> None:
        """Take the verdict on outputs. Raises the error that ends the consumer."""
        sends = running.send_window
        for settled in sends.received(message, now_ms, out):
            running.output_bytes -= settled.token
            first, count = settled.first_sequence, settled.count
            if any(run[1] == CONFLICT for run in settled.runs):
                raise IdConflict(
                    f"the broker has other messages of {sends.producer} under the numbers from "
                    f"{first} on in {settled.topic}/{settled.partition}",
                    hint="this ledger did not send them; check whether it was copied or restored",
                )
            self._acked.add(settled.topic, settled.partition, first + count, settled.place)
            fields = self.member.fields(first_sequence=first, count=count)
            out.events.append(("output.acked", fields))
        if sends.error is not None:
            raise sends.error

    # --- the end of every step -------------------------------------------------------------------

    def _advance(self, now_ms: int, out: Outcome) -> None:
        """Begin what the new state allows: run, ask, renew, end."""
        holder = self._holder
        if self.phase == OPENING and self._recovered and not self._disk_full:
            self._begin(out)
        elif self._draining and self.phase not in {OPENING, RUNNING, LEAVING, STOPPED}:
            self._stop(None, now_ms, out)
        if self._running is None:
            idle = self.phase == JOINING and holder.idle
            self.idle_since_ms = (self.idle_since_ms or now_ms) if idle else None
        if self._running is not None:
            self._run(self._running, now_ms, out)
        if self.phase == STOPPED:
            return
        holder.advance(now_ms, out)
        owed = holder.owed or self._lookups.owed
        if self._running is not None:
            owed = owed or self._running.owed
        self.connection.tick(now_ms, out, owed=owed)

    def _begin(self, out: Outcome) -> None:
        """Check that the open ledger belongs to this place and log, then start running."""
        grant, ledger = self._holder.grant, self.ledger
        assert grant is not None, "a ledger is opened for a grant"
        if ledger.started is not None:
            check_follows(ledger, self.member.place, grant)
        self._running = Running(
            self.member,
            self.connection,
            ledger,
            grant,
            self._holder.partitions,
            self._fingerprint,
        )
        if ledger.started is None:
            log = (grant.topic_id, grant.log_id, grant.lineage)
            out.appends.append(LedgerStarted(*self.member.place, *log, grant.start_offset))
        elif ledger.unmarked and grant.mark:
            # An older version wrote the ledger: it takes up the history that it meets, once.
            place = place_in(grant)
            out.appends.append(self._empty_commit(grant, place))
            fields = self.member.fields(next_offset=ledger.next_offset, mark=place.mark.hex())
            out.events.append(("history.taken_up", fields))
        elif ledger.ended:
            # The recorded end is that of the generation before. An empty commit takes its place;
            # else a death before the first record of this generation would look like an end on
            # purpose.
            out.appends.append(self._empty_commit(grant, ledger.seen))
        attempt = ledger.open_attempt
        if attempt is not None and attempt.epoch == self.member.outlived:
            out.appends.append(replace(attempt, epoch=grant.epoch, returned=True))
        self._running.handling.effects.forget_orders(out)
        self._holder.phase = RUNNING
        self._holder.committed = self.ledger.next_offset
        fields = self.member.fields(
            epoch=grant.epoch,
            next_offset=self._running.fetcher.offset,
            ledger_id=self._holder.ledger_id.hex(),
        )
        out.events.append(("consumer.granted", fields))

    def _empty_commit(
        self, grant: Granted, seen: Place, acked: list[tuple[str, int, int]] | None = None
    ) -> Committed:
        """Return a commit that passes no message."""
        number = self.ledger.commit_no + 1
        return Committed(grant.epoch, number, [], [], b"", {}, acked=acked or [], seen=seen)

    def _run(self, running: Running, now_ms: int, out: Outcome) -> None:
        handling, sends = running.handling, running.send_window
        running.queue_outputs(out)  # before the next call begins: unacknowledged outputs bound it
        if self._draining:
            handling.cut_call(out)
        elif self.phase == RUNNING:
            running.advance(now_ms, out, self._acked)
        running.queue_outputs(out)
        if self.connection.ready:
            self._lookups.advance(now_ms, out)
        sends.advance(now_ms, out)
        quiet = handling.running is None and sends.batches == 0
        if self.phase == RUNNING:
            if self._draining:
                if quiet and not self._disk_full:
                    self._finish(now_ms, out)
            elif self.connection.ready:
                running.ask(now_ms, out)
        elif self.phase == LEAVING and self._holder.wait_is_over(now_ms):
            self._stop(None, now_ms, out)
        quiet = quiet and handling.idle and running.caught_up and self.connection.ready
        self.idle_since_ms = (self.idle_since_ms or now_ms) if quiet else None

    def _committed_offset(self, out: Outcome) -> int:
        for record in reversed(out.appends):
            for topic_id, next_offset in record.inputs if isinstance(record, Committed) else ():
                if self.ledger.started is not None and topic_id == self.ledger.started.topic_id:
                    return next_offset
        return self.ledger.next_offset

    def _finish(self, now_ms: int, out: Outcome) -> None:
        """Give the grant back, now that all is committed and acknowledged.

        The acknowledgements are committed first, or the next owner would send the outputs again.
        """
        grant = self._holder.grant
        assert grant is not None, "a running consumer has a grant"
        if self._acked.ends and not any(isinstance(record, Committed) for record in out.appends):
            seen = highest(self.ledger.seen, self._acked.place)
            out.appends.append(self._empty_commit(grant, seen, self._acked.take()))
        self._end_well(out)
        self._holder.leave(self._committed_offset(out), now_ms, out)
