"""Requests about groups: join, renew, leave, rewind, list, describe.

Theory of operation: see groups.py, which decides whether a joiner may be granted, and balance.py,
which computes the shares of members. This file checks requests against topics and log, and turns
decisions into a record, an answer and an event. A join changes nothing durable unless it is granted,
so a waiting consumer may ask as often as it likes.
"""

from __future__ import annotations

from typing import Any

from ...errors import (
    Busy,
    DiskFull,
    LogRegressed,
    OnceMQError,
    ProtocolError,
    StoreMismatch,
    TooLarge,
)
from ...ids import check_name, output_producer
from ...limits import FRAME_BYTES_MAX, LABEL_CHARS_MAX, LEASE_MS, Limits
from ...outcome import Outcome, Send
from ...protocol import (
    DescribeGroup,
    Granted,
    GroupDescribed,
    GroupsListed,
    Join,
    Leave,
    Left,
    ListGroups,
    Renew,
    Renewed,
    Rewind,
    Rewound,
    Standby,
)
from ...records import GroupGranted, LedgerReplaced
from .balance import Balance
from .groups import Key
from .produce import NO_ROOM
from .state import BrokerState, checked_place
from .topics import Topic, trimmed

_IDENTITY_BYTES = 16
_TEXT_BYTES_MAX = 4  # of a character in UTF-8
_ROW_BYTES = 48  # of a grant in a list, besides its texts


class Membership:
    """Answers requests about grants."""

    def __init__(self, state: BrokerState, log_id: bytes, lineage: bytes, limits: Limits) -> None:
        self.state = state
        self.log_id = log_id
        self.lineage = lineage
        self.balance = Balance(state.groups, limits)
        self._groups_max = limits.groups_max

    def start(self, now_ms: int) -> None:
        """Begin after the replay: every grant has a full lease, no member is known yet."""
        self.state.groups.start_leases(now_ms)
        self.balance.start(now_ms)

    def join(
        self,
        peer: bytes,
        join: Join,
        times: tuple[int, int],
        out: Outcome,
        *,
        disk_full: bool,
    ) -> None:
        """Grant the partition, or name the owner. `times`: now and broker time. Raises OnceMQError.

        An epoch is granted once: a joiner that asks again before it has used the epoch gets the
        same one.
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
        groups.check_ledger(key, join, end_offset, sent=self._has_sent(key))
        grant = groups.grants.get(key)
        if grant is not None and groups.same_again(key, join):
            groups.renew(key, grant.epoch, now_ms)
            self._granted(peer, join, grant.epoch, topic, now_ms, out)
            return
        if join.member:
            self._heard(key, join.member, join.label, now_ms, out, asks=True)
        reason = self._why_free(key, join, now_ms)
        wait: tuple[str, int] | None = None
        if grant is not None and not reason:
            wait = grant.label, groups.wait_for(key, join, now_ms)
        elif join.member:
            wait = self.balance.kept_for(key, join.member, topic.partitions, now_ms)
        if wait is not None:
            lease = groups.leases.get(key)
            idle = bool(join.member) and (lease.committed if lease else 0) == end_offset
            out.sends_after_sync.append(Send(peer, Standby(join.request, *wait, idle)))
            return
        if disk_full:
            raise DiskFull(NO_ROOM)
        if grant is None and len(groups) >= self._groups_max:
            raise Busy(
                f"the broker holds {self._groups_max} grants (one for each group and partition) "
                "and takes no more",
                hint="use a group that exists (oncemq groups), or topics with fewer partitions",
            )
        if grant is not None and not groups.leases[key].released and not groups.live(key, now_ms):
            out.events.append(
                (
                    "group.lease_expired",
                    {**place, "consumer": grant.label, "epoch": grant.epoch},
                )
            )
        record = groups.new_grant(join, broker_ms, self._last_epoch(key))
        if grant is not None and join.replaces:
            out.appends.append(LedgerReplaced(*key, record.epoch, grant.ledger_id, broker_ms))
            lost = {"host": grant.host, "path": grant.path, "next_offset": groups.known_offset(key)}
            fields = {**lost, "ledger_id": grant.ledger_id.hex(), "by": join.ledger_id.hex()}
            out.events.append(("group.ledger_replaced", {**place, **fields}))
        out.appends.append(record)
        groups.start_lease(record, now_ms).member = join.member
        self.balance.granted(key, join.member)
        granted = {"epoch": record.epoch, "next_offset": record.next_offset, "reason": reason}
        out.events.append(("group.granted", {**place, **granted}))
        self._granted(peer, join, record.epoch, topic, now_ms, out)

    def _last_epoch(self, key: Key) -> int:
        producer = self.state.producers.by_name.get(output_producer(*key))
        return 0 if producer is None else producer.epoch

    def _has_sent(self, key: Key) -> bool:
        """Return whether outputs of the partition's ledger are stored."""
        producer = self.state.producers.by_name.get(output_producer(*key))
        return producer is not None and bool(producer.rows)

    def _why_free(self, key: Key, join: Join, now_ms: int) -> str:
        """Return why no lease must be waited for; "" while another consumer's lease runs.

        A dead owner is dead in all partitions: its process has no share any more. Its death counts
        for every joiner: the one that proved it holds the lock, so no other can prove it, and the
        partition may be kept for another member.
        """
        groups = self.state.groups
        grant = groups.grants.get(key)
        if grant is None:
            return "new"
        if groups.wait_for(key, join, now_ms):
            return ""
        lease = groups.leases[key]
        if lease.released:
            return "given back"
        if grant.incarnation == join.incarnation:
            return "asked again"
        if not groups.live(key, now_ms):
            return "lease over"
        lease.dead = True
        if lease.member not in {b"", join.member}:
            self.balance.gone(key, lease.member)
        return "owner dead"

    def _heard(
        self, key: Key, member: bytes, label: str, now_ms: int, out: Outcome, *, asks: bool
    ) -> None:
        """Raises ProtocolError."""
        if len(member) != _IDENTITY_BYTES:
            raise ProtocolError("a member id is 16 random bytes")
        if self.balance.heard(key, member, label, now_ms, asks=asks) is not None:
            fields = {"group": key[0], "topic": key[1], "consumer": label[:LABEL_CHARS_MAX]}
            out.events.append(("group.member", {**fields, "member": member.hex()}))

    def _check(self, join: Join) -> tuple[Topic, int]:
        """Raises OnceMQError."""
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
                f"the ledger was built on another topic {join.topic} than the one of this log",
                hint="if that was deleted on purpose, remove the ledger (it lies on "
                f"{join.host[:LABEL_CHARS_MAX]} in {join.path}): a new one follows the new topic",
            )
        place = checked_place(join.mark, join.position)
        if not join.accepts:
            who = f"the ledger of group {join.group}, {join.topic} partition {join.partition},"
            self.state.check_place(place, who, LogRegressed.group_hint)
        return topic, topic.partition(join.partition).end_offset

    def _granted(
        self,
        peer: bytes,
        join: Join,
        epoch: int,
        topic: Topic,
        now_ms: int,
        out: Outcome,
    ) -> None:
        granted = Granted(
            join.request,
            epoch,
            topic.topic_id,
            self.log_id,
            self.lineage,
            topic.partition(join.partition).end_offset,
            LEASE_MS,
            self._shared((join.group, join.topic, join.partition), join.member, now_ms),
            start_offset=topic.partition(join.partition).log_start_offset,
        )
        out.sends_after_sync.append(Send(peer, granted))

    def _shared(self, key: Key, member: bytes, now_ms: int) -> bool:
        """Return whether other members own partitions of the topic; False without a member id.

        A joiner without an id speaks version 1, which has no field for it.
        """
        partitions = self.state.topics.get(key[1]).partitions
        return bool(member) and self.balance.others_own(key, member, partitions, now_ms)

    def renew(self, peer: bytes, renew: Renew, now_ms: int, out: Outcome) -> None:
        """The answer says if another member should get the partition. Raises NotGranted."""
        key, member = _key(renew), renew.member
        groups = self.state.groups
        self.state.topics.get(renew.topic)  # its grants went with a deleted topic
        lease = groups.renew(key, renew.epoch, now_ms)
        revoke, shared = False, False
        if member:
            label = groups.grants[key].label
            self._heard(key, member, label, now_ms, out, asks=False)
            topic = self.state.topics.get(renew.topic)
            end_offset = topic.partition(renew.partition).end_offset
            lease.member = member
            groups.report(key, min(renew.committed, end_offset))
            shared = self._shared(key, member, now_ms)
            revoke, to = self.balance.revoke(key, member, topic.partitions, now_ms)
            if to is not None:
                place = {"group": key[0], "topic": key[1], "partition": key[2]}
                fields = {"consumer": label, "epoch": renew.epoch, "to": to}
                reason = "it has more than its share"
                out.events.append(("group.revoked", {**place, **fields, "reason": reason}))
        renewed = Renewed(renew.request, renew.epoch, revoke, shared)
        out.sends_after_sync.append(Send(peer, renewed))

    def rewind(self, peer: bytes, rewind: Rewind, at_ms: int, out: Outcome) -> None:
        """Raises NotGranted, OffsetTrimmed."""
        key, groups = _key(rewind), self.state.groups
        groups.check(key, rewind.epoch)
        topic = self.state.topics.get(rewind.topic)
        partition = topic.partition(rewind.partition)
        if rewind.next_offset < partition.log_start_offset:
            raise trimmed(topic, partition, rewind.next_offset, rewind.group)
        out.appends.append(groups.rewind(key, rewind.next_offset, at_ms))
        out.sends_after_sync.append(Send(peer, Rewound(rewind.request)))
        place = {"group": key[0], "topic": key[1], "partition": key[2]}
        fields = {"epoch": rewind.epoch, "next_offset": rewind.next_offset}
        out.events.append(("group.rewound", {**place, **fields}))

    def leave(self, peer: bytes, leave: Leave, out: Outcome) -> None:
        """Raises NotGranted, LogRegressed, UnknownTopic."""
        key = _key(leave)
        self.state.groups.check(key, leave.epoch)
        end_offset = self.state.topics.get(leave.topic).partition(leave.partition).end_offset
        if leave.next_offset > end_offset:
            raise LogRegressed(
                f"the ledger stands at offset {leave.next_offset}, "
                f"{leave.topic} partition {leave.partition} ends at {end_offset}",
                hint=LogRegressed.group_hint,
            )
        self.balance.left(key, self.state.groups.leases[key].member)
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
        """Raises TooLarge: the answer would not fit a frame."""
        groups = self.state.groups
        _check_size(list(groups.grants.values()))
        rows = tuple(
            (*key, grant.epoch, grant.label, grant.host, grant.path, groups.live(key, now_ms))
            for key, grant in sorted(groups.grants.items())
        )
        out.sends_after_sync.append(Send(peer, GroupsListed(request.request, rows)))

    def describe(self, peer: bytes, request: DescribeGroup, now_ms: int, out: Outcome) -> None:
        """Raises TooLarge, InvalidName."""
        check_name(request.group, "group")
        groups, balance = self.state.groups, self.balance
        grants = [(key, g) for key, g in sorted(groups.grants.items()) if key[0] == request.group]
        _check_size([grant for _, grant in grants])
        partitions = tuple(
            (
                key[1],
                key[2],
                grant.epoch,
                grant.label,
                grant.host,
                grant.path,
                groups.live(key, now_ms),
                groups.leases[key].member,
                groups.leases[key].committed,
                self.state.topics.get(key[1]).partition(key[2]).end_offset,
                balance.promised_to(key, now_ms),
            )
            for key, grant in grants
        )
        members = []
        for topic, member, seen in balance.members(request.group, now_ms):
            owned = sum(row[0] == topic and row[6] and row[7] == member for row in partitions)
            members.append((topic, member, seen.label, owned, now_ms - seen.heard_ms))
        answer = GroupDescribed(request.request, request.group, partitions, tuple(members))
        out.sends_after_sync.append(Send(peer, answer))


def _key(request: Renew | Leave | Rewind) -> Key:
    return (request.group, request.topic, request.partition)


def _check_size(grants: list[GroupGranted]) -> None:
    """Raises TooLarge."""
    chars = sum(
        sum(map(len, (grant.group, grant.topic, grant.label, grant.host, grant.path)))
        for grant in grants
    )
    if chars * _TEXT_BYTES_MAX + len(grants) * _ROW_BYTES > FRAME_BYTES_MAX:
        raise TooLarge(
            f"{len(grants)} grants do not fit one answer of {FRAME_BYTES_MAX} bytes",
            hint="ask for one group (oncemq groups show GROUP), or use shorter paths for --state",
        )
