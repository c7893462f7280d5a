"""Requests about groups: join, renew, leave, list.

Theory of operation: see groups.py, which decides who may be granted. Here requests are checked
against topics and log, and decisions become a record, an answer and an event. A join changes
nothing unless it is granted, so a consumer that waits may ask as often as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import (
    Busy,
    DiskFull,
    LogRegressed,
    OnceMQError,
    ProtocolError,
    StoreMismatch,
    TooLarge,
)
from ..ids import check_name
from ..limits import FRAME_BYTES_MAX, GROUPS_MAX, LABEL_CHARS_MAX, LEASE_MS
from ..outcome import Outcome, Send
from ..protocol import (
    Granted,
    GroupsListed,
    Join,
    Leave,
    Left,
    ListGroups,
    Renew,
    Renewed,
    Standby,
)
from .broker_state import BrokerState
from .groups import Key
from .produce import NO_ROOM
from .topics import Topic

_IDENTITY_BYTES = 16
_TEXT_BYTES_MAX = 4  # of a character in UTF-8
_ROW_BYTES = 48  # of a grant in a list, besides its texts


@dataclass(slots=True)
class Membership:
    """Answers what consumers ask about grants."""

    state: BrokerState
    log_id: bytes
    lineage: bytes

    def join(
        self,
        peer: bytes,
        join: Join,
        times: tuple[int, int],
        out: Outcome,
        *,
        disk_full: bool,
    ) -> None:
        """Grant the partition, or say who has it. `times`: now and broker time. Raises OnceMQError.

        An epoch is granted once: asking again before it was used gets the same one.
        """
        place = {
            "group": join.group,
            "topic": join.topic,
            "partition": join.partition,
            "consumer": join.label[:LABEL_CHARS_MAX],
        }
        seen = {"ledger_id": join.ledger_id.hex(), "next_offset": join.next_offset}
        out.events.append(("group.join", {**place, **seen}))
        try:
            self._join(peer, join, times, place, out, disk_full=disk_full)
        except OnceMQError as error:
            out.events.append(
                ("group.refused", {**place, "code": error.code, "reason": error.reason})
            )
            raise

    def _join(
        self,
        peer: bytes,
        join: Join,
        times: tuple[int, int],
        place: dict[str, Any],
        out: Outcome,
        *,
        disk_full: bool,
    ) -> None:
        now_ms, broker_ms = times
        groups = self.state.groups
        topic, end_offset = self._check(join)
        key = (join.group, join.topic, join.partition)
        groups.check_ledger(key, join, end_offset)
        grant = groups.grants.get(key)
        if grant is not None and groups.same_again(key, join):
            groups.renew(key, grant.epoch, now_ms)
            self._granted(peer, join, grant.epoch, topic, end_offset, out)
            return
        wait_ms = groups.wait_for(key, join, now_ms)
        if wait_ms:
            assert grant is not None
            out.sends_after_sync.append(Send(peer, Standby(join.request, grant.label, wait_ms)))
            return
        if disk_full:
            raise DiskFull(NO_ROOM)
        if grant is None and len(groups) >= GROUPS_MAX:
            raise Busy(f"the broker holds {GROUPS_MAX} grants and takes no more")
        if grant is not None and not groups.leases[key].released and not groups.live(key, now_ms):
            out.events.append(
                (
                    "group.lease_expired",
                    {**place, "consumer": grant.label, "epoch": grant.epoch},
                )
            )
        record = groups.new_grant(join, broker_ms)
        out.appends.append(record)
        groups.start_lease(record, now_ms)
        granted = {"epoch": record.epoch, "next_offset": record.next_offset}
        out.events.append(("group.granted", {**place, **granted}))
        self._granted(peer, join, record.epoch, topic, end_offset, out)

    def _check(self, join: Join) -> tuple[Topic, int]:
        """Check what a join says about itself and about our log. Raises OnceMQError."""
        check_name(join.group, "group")
        if len(join.incarnation) != _IDENTITY_BYTES or not join.ledger_id:
            raise ProtocolError("a join names its incarnation (16 bytes) and its ledger")
        if join.log_id_seen not in {b"", self.log_id}:
            raise StoreMismatch(
                f"the ledger was built on log {join.log_id_seen.hex()}, this is {self.log_id.hex()}"
            )
        topic = self.state.topics.get(join.topic)
        if join.topic_id_seen not in {b"", topic.topic_id}:
            raise StoreMismatch(
                f"the ledger was built on another topic {join.topic} than the one of this log"
            )
        return topic, topic.partition(join.partition).end_offset

    def _granted(
        self,
        peer: bytes,
        join: Join,
        epoch: int,
        topic: Topic,
        end_offset: int,
        out: Outcome,
    ) -> None:
        granted = Granted(
            join.request, epoch, topic.topic_id, self.log_id, self.lineage, end_offset, LEASE_MS
        )
        out.sends_after_sync.append(Send(peer, granted))

    def renew(self, peer: bytes, renew: Renew, now_ms: int, out: Outcome) -> None:
        """Let a lease run anew. Raises NotGranted."""
        self.state.groups.renew(_key(renew), renew.epoch, now_ms)
        out.sends_after_sync.append(Send(peer, Renewed(renew.request, renew.epoch)))

    def leave(self, peer: bytes, leave: Leave, out: Outcome) -> None:
        """Free a grant for the next joiner. Raises NotGranted, LogRegressed, UnknownTopic."""
        key = _key(leave)
        self.state.groups.check(key, leave.epoch)
        end_offset = self.state.topics.get(leave.topic).partition(leave.partition).end_offset
        if leave.next_offset > end_offset:
            raise LogRegressed(
                f"the ledger stands at offset {leave.next_offset}, "
                f"{leave.topic} partition {leave.partition} ends at {end_offset}"
            )
        self.state.groups.leave(key, leave.epoch, leave.next_offset)
        out.sends_after_sync.append(Send(peer, Left(leave.request)))
        out.events.append(
            (
                "group.released",
                {
                    "group": leave.group,
                    "topic": leave.topic,
                    "partition": leave.partition,
                    "consumer": self.state.groups.grants[key].label,
                    "epoch": leave.epoch,
                },
            )
        )

    def list(self, peer: bytes, request: ListGroups, now_ms: int, out: Outcome) -> None:
        """Answer with all grants. Raises TooLarge: the answer would not fit a frame."""
        groups = self.state.groups
        chars = sum(
            sum(map(len, (grant.group, grant.topic, grant.label, grant.host, grant.path)))
            for grant in groups.grants.values()
        )
        if chars * _TEXT_BYTES_MAX + len(groups) * _ROW_BYTES > FRAME_BYTES_MAX:
            raise TooLarge(f"{len(groups)} grants do not fit one answer", hint="")
        rows = tuple(
            (*key, grant.epoch, grant.label, grant.host, grant.path, groups.live(key, now_ms))
            for key, grant in sorted(groups.grants.items())
        )
        out.sends_after_sync.append(Send(peer, GroupsListed(request.request, rows)))


def _key(request: Renew | Leave) -> Key:
    return (request.group, request.topic, request.partition)
