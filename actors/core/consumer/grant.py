"""The grant of a consumer: how it gets the grant, keeps it and gives it back.

Theory of operation. The phases follow each other:

    starting -> describing -> joining -> opening -> running -> leaving -> stopped

The ledger's facts are read before anything else and go with the join, so the broker can refuse a
ledger that is not the group's. While another member has the partition the consumer joins again every
second, each time with fresh facts. The grant names an epoch: the next generation of the ledger and
the epoch of the outputs. From then on the consumer renews the lease, also while the disk is full or
a handler hangs; but only the fence of the ledger decides whether a commit is valid. The answer to a
renewal may ask for the partition back, for another member whose share it is (balance.py): the core
then drains and leaves as at its end.

docs/PROTOCOL.md, "Groups".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import Fenced, LedgerNotHere, NotSupported, StoreMismatch, from_code
from ...history import NO_PLACE
from ...ids import private_topic
from ...limits import (
    CRASH_RETRIES_DEFAULT,
    JOIN_RETRY_MS,
    LEASE_RENEW_MS,
    LEAVE_WAIT_MS,
    PARK_LIMIT_DEFAULT,
    RESEND_MS,
    RETRIES_DEFAULT,
    STANDBY_RETRY_MS,
)
from ...outcome import Outcome, Send
from ...protocol import (
    Failure,
    Granted,
    Join,
    Leave,
    Left,
    Message,
    Renew,
    Renewed,
    Standby,
    TopicDescribed,
    place_in,
)
from ..client.connection import BROKER, Connection, is_final
from .fetch import regressed
from .ledger import Ledger
from .work import GaveBack, LedgerPeeked, OpenLedger, PeekLedger, StandingBy, TopicFound

_MEMBERS_VERSION = 2  # of the protocol: brokers before it know no members

STARTING = "starting"  # waits for the facts of the ledger
DESCRIBING = "describing"  # waits for the topic
JOINING = "joining"  # waits for the grant, perhaps as standby
OPENING = "opening"  # the shell opens the ledger
RUNNING = "running"
LEAVING = "leaving"  # all is committed; waits for the broker to take the grant back
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Member:
    """The joining consumer: fixed for the life of one core."""

    group: str
    topic: str
    partition: int
    incarnation: bytes  # 16 random bytes
    label: str  # host and pid, for messages to people
    retries: int = RETRIES_DEFAULT
    crash_retries: int = CRASH_RETRIES_DEFAULT
    park_limit: int | None = (
        PARK_LIMIT_DEFAULT  # None: a row of parked messages may have any length
    )
    process: bytes = b""  # 16 random bytes, the same for all partitions; b"": takes what is free
    commit_first: bool = False  # no handler call before the sync of the commit before it
    # Epoch under which this very process had the partition before and lost its database: no process
    # died in the call that ran then. 0: none.
    outlived: int = 0

    @property
    def private_topic(self) -> str:
        """The topic of replayed dead letters, which only this group handles."""
        return private_topic(self.topic, self.group)

    @property
    def place(self) -> tuple[str, str, int]:
        return self.group, self.topic, self.partition

    def fields(self, **more: Any) -> dict[str, Any]:
        named = {"group": self.group, "topic": self.topic, "partition": self.partition}
        return {**named, **more}


class GrantHolder:
    """The phases of one consumer, and the requests that move it through them."""

    def __init__(self, member: Member, connection: Connection) -> None:
        """Join as `member` over `connection`, which is started with the first facts."""
        self.member = member
        self._connection = connection
        # Invariant: moves along the line above; `stopped` can follow any.
        self.phase = STARTING
        # The grant. Invariant: set from OPENING on; its epoch is the ledger's generation.
        self.grant: Granted | None = None
        # The ledger that joined; b"" before.
        self.ledger_id = b""
        # How many partitions the topic has. Invariant: set from JOINING on.
        self.partitions = 0
        # Number of the request (describe, join, leave) whose answer the phase waits for; 0: none.
        self._request = 0
        # When the phase sends its request again; when LEAVING, when it stops waiting.
        self._again_at_ms = 0
        # Number of the last renewal of the lease, and when the next is due.
        self._renewal = 0
        self._renew_at_ms = 0
        # (ledger_id, next_offset) of the last join, and of the join that got LedgerNotHere.
        self._reported: tuple[bytes, int] | None = None
        self._doubted: tuple[bytes, int] | None = None
        # Whether the ledger was asked for its facts, and standing by was reported.
        self._asked_facts = False
        self._standby_reported = False
        # Whether the broker has asked for the partition back. Invariant: stays True.
        self.revoked = False
        # Whether other members own partitions of the topic, by the last answer of the broker.
        self.shared = False
        # Whether the owner has committed all of the partition, by the last answer of the broker.
        self.idle = False
        # The durably committed offset: goes with renewals, for people who ask for the lag.
        self.committed = 0

    @property
    def owed(self) -> bool:
        return self._request != 0 or self.phase in {DESCRIBING, JOINING}

    @property
    def wake_at_ms(self) -> int | None:
        if not self._asked_facts:
            return 0
        if self.phase == LEAVING:
            return self._again_at_ms
        if self._connection.ready and self.phase in {DESCRIBING, JOINING}:
            return self._again_at_ms
        if self._connection.ready and self.phase in {OPENING, RUNNING}:
            return self._renew_at_ms
        return None

    def lost(self) -> None:
        """Send open requests again: the connection is new."""
        self.idle = False
        if self.phase in {DESCRIBING, JOINING}:
            self._request = self._again_at_ms = 0

    def advance(self, now_ms: int, out: Outcome) -> None:
        """Send the request of the phase when it is due; renew the lease."""
        if not self._asked_facts:
            self._asked_facts = True
            out.work.append(PeekLedger())
        if not self._connection.ready:
            return
        if self.phase == DESCRIBING and now_ms >= self._again_at_ms:
            self._request = self._connection.next_request()
            self._again_at_ms = now_ms + RESEND_MS
            question = self._connection.ask_for_topic(self._request, self.member.topic)
            out.sends_after_sync.append(Send(BROKER, question))
        elif self.phase == JOINING and now_ms >= self._again_at_ms:
            self._again_at_ms = now_ms + RESEND_MS
            out.work.append(PeekLedger())
        elif self.phase in {OPENING, RUNNING} and now_ms >= self._renew_at_ms:
            assert self.grant is not None, "a lease belongs to a grant"
            self._renewal = self._connection.next_request()
            self._renew_at_ms = now_ms + LEASE_RENEW_MS
            known = (self._process, self.committed) if self._process else ()
            renew = Renew(self._renewal, *self.member.place, self.grant.epoch, *known)
            out.sends.append(Send(BROKER, renew))

    @property
    def _process(self) -> bytes:
        """The id of the process; b"" for a broker whose version has no field for it."""
        return self.member.process if self._connection.version >= _MEMBERS_VERSION else b""

    def peeked(self, facts: LedgerPeeked, now_ms: int, out: Outcome) -> None:
        """Take the facts of the ledger: connect with the first ones, join with later ones."""
        if self.phase == STARTING:
            self.phase = DESCRIBING
            self._connection.log_id = facts.log_id_seen
            self._connection.start(now_ms, out)
        elif self.phase == JOINING and self._connection.ready:
            self._request = self._connection.next_request()
            self.ledger_id = facts.ledger_id
            self._reported = (facts.ledger_id, facts.next_offset)
            member = self.member
            join = join_with(
                facts,
                self._request,
                member.place,
                member.incarnation,
                member.label,
                self._process,
                marked=self._connection.knows_places,
            )
            out.sends_after_sync.append(Send(BROKER, join))

    def answered(self, message: Message, now_ms: int, out: Outcome) -> bool:
        """Take an answer; return whether the broker has taken the grant back.

        Raises NotSupported for a partition that the topic does not have.
        """
        if message.request != self._request:
            return False
        if isinstance(message, TopicDescribed) and self.phase == DESCRIBING:
            if self.member.partition >= message.partitions:
                raise NotSupported(
                    f"topic {message.topic} has {message.partitions} partitions, "
                    f"no partition {self.member.partition}"
                )
            self.partitions = message.partitions
            if self.member.partition == 0:  # one of the partitions tells
                self._connection.topic_described(message, out)
            out.work.append(TopicFound(message.topic, message.partitions))
            self.phase = JOINING
            self._request = self._again_at_ms = 0
        elif isinstance(message, Standby) and self.phase == JOINING:
            self._request = 0
            self._again_at_ms = now_ms + STANDBY_RETRY_MS
            self.idle = message.idle
            if not self._standby_reported:
                self._standby_reported = True
                out.events.append(("consumer.standby", self.member.fields()))
                out.work.append(StandingBy(message.owner))
        elif isinstance(message, Granted) and self.phase == JOINING:
            self._request = 0
            self.grant = message
            self._connection.rely(place_in(message))
            self.shared = message.shared
            self.phase = OPENING
            self._renew_at_ms = now_ms + LEASE_RENEW_MS
            out.work.append(OpenLedger(message.epoch))
        return isinstance(message, Left) and self.phase == LEAVING

    def renewed(self, message: Renewed, out: Outcome) -> bool:
        """Take the answer to a renewal; return True, once, when the broker wants the partition back."""
        if message.request != self._renewal or self.phase not in {OPENING, RUNNING}:
            return False
        self.shared = message.shared
        if not message.revoke or self.revoked:
            return False
        self.revoked = True
        out.events.append(("consumer.revoked", self.member.fields(epoch=message.epoch)))
        return True

    def refused(self, failure: Failure, now_ms: int) -> None:
        """Take a refusal of a request of this class; others are ignored.

        Raises the broker's error unless a retry mends it; Fenced when the grant is gone. A ledger
        that its owner still moved while the join was in flight looks old. So the consumer joins
        once more, and believes LedgerNotHere only when the broker refuses the same facts twice.
        """
        if failure.request == self._renewal and failure.code in {"not_granted", "fenced"}:
            raise Fenced(failure.reason)
        if failure.request != self._request or self.phase == LEAVING:
            return
        error = from_code(failure.code, failure.reason, failure.hint)
        moving = isinstance(error, LedgerNotHere) and self._reported != self._doubted
        if is_final(error) and not moving:
            raise error
        if moving:
            self._doubted = self._reported
        self._request = 0
        self._again_at_ms = now_ms + JOIN_RETRY_MS

    def leave(self, next_offset: int, now_ms: int, out: Outcome) -> None:
        """Give the grant back; `wait_is_over` tells when to stop waiting for the answer."""
        assert self.grant is not None, "only a grant can be given back"
        self.phase = LEAVING
        self._request = self._connection.next_request()
        self._again_at_ms = now_ms + LEAVE_WAIT_MS
        leave = Leave(self._request, *self.member.place, self.grant.epoch, next_offset)
        out.sends_after_sync.append(Send(BROKER, leave))
        out.work_after_sync.append(GaveBack())
        fields = self.member.fields(epoch=self.grant.epoch, next_offset=next_offset)
        out.events.append(("consumer.left", fields))

    def wait_is_over(self, now_ms: int) -> bool:
        """Return whether to stop without the answer to `leave`; the lease will end by itself."""
        return not self._connection.ready or now_ms >= self._again_at_ms


def join_with(
    facts: LedgerPeeked,
    request: int,
    place: tuple[str, str, int],
    incarnation: bytes,
    label: str,
    process: bytes = b"",
    *,
    marked: bool,
    accepts: bool = False,
) -> Join:
    """Return the join for `place` (group, topic, partition) with the facts of its ledger.

    `marked`: the broker knows places. `accepts` is an operator's, who moves the ledger onto the
    broker's log whatever it relied on.
    """
    return Join(
        request,
        *place,
        incarnation,
        facts.ledger_id,
        facts.topic_id_seen,
        facts.log_id_seen,
        facts.next_offset,
        facts.highest_generation,
        facts.lock_held,
        facts.host,
        facts.path,
        label,
        process,
        *(facts.seen if marked else NO_PLACE),
        accepts,
    )


def check_follows(
    ledger: Ledger, place: tuple[str, str, int], grant: Granted, *, accepts: bool = False
) -> None:
    """Raise StoreMismatch or LogRegressed unless the ledger of `place` follows the granted log.

    That the log has the past which the ledger relies on was compared by the broker. `accepts`: an
    operator is about to move the ledger onto this log.
    """
    started = ledger.started
    assert started is not None, "a ledger without a first record follows any log"
    if (started.group, started.topic, started.partition) != place:
        raise StoreMismatch(
            f"the ledger belongs to group {started.group}, "
            f"{started.topic}/{started.partition}, not to {'/'.join(map(str, place))}"
        )
    if (started.log_id, started.topic_id) != (grant.log_id, grant.topic_id):
        raise StoreMismatch(
            f"the ledger follows log {started.log_id.hex()} topic {started.topic_id.hex()}, "
            f"the broker has log {grant.log_id.hex()} topic {grant.topic_id.hex()}"
        )
    if ledger.seen.mark and not grant.mark:
        raise StoreMismatch(
            f"the ledger relies on {ledger.seen}; this broker keeps no marks of its history",
            hint="upgrade the broker",
        )
    if grant.end_offset < ledger.next_offset and not accepts:
        raise regressed(place, ledger.next_offset, grant.end_offset)
