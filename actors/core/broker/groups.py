"""Grants: which consumer owns a partition of a group, and which one may follow.

Theory of operation. A grant gives (group, topic, partition) to one incarnation under an epoch that
is above every earlier epoch and above every reported generation of the ledger. The epoch is also
the generation that the consumer makes of its ledger and the epoch of its output producer, so a
replaced consumer is fenced in all three places at once. The grant is a record. The lease beside it
is volatile and decides only *when* another consumer may be granted, never whether a write counts
(Gray and Cheriton, "Leases", 1989, make the lease itself the fence, which trusts clocks). So leases
may be generous: after a restart every grant has a full one.

The ledger reported at a join must be the one that the last grant knew, and must not be behind it. A
consumer started in another directory thus gets LedgerNotHere and calls no handler.

A joiner need not wait for the lease in three cases: the owner left; the joiner is the owner itself
and has used its epoch up; or the joiner proves that the owner is dead: it holds the lock of the
granted generation, on the host and in the place that the grant names.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from ...errors import LedgerNotHere, LogRegressed, NotGranted, ProtocolError
from ...history import Place
from ...ids import IN_DATABASE
from ...limits import LABEL_CHARS_MAX, LEASE_MS
from ...protocol import Join
from ...records import GroupGranted, GroupRewound, Plain

Key = tuple[str, str, int]  # group, topic, partition

_GRANT_FIELDS = 11  # in a snapshot; then the generation of a rewind, mark and position
GENERATION_MAX = 1 << 48  # numbers may jump, but not so far that they would ever run out


@dataclass(slots=True)
class Lease:
    """The time for which a grant makes other consumers wait. Volatile."""

    epoch: int  # of the grant
    until_ms: int  # in time of the driver
    released: bool = False  # the owner left
    dead: bool = False  # a joiner has proved that the owner died
    next_offset: int = 0  # the highest that the owner reported under this grant
    member: bytes = b""  # the process of the owner, once heard
    committed: int = 0  # durably, by the last renewal: a ledger below it is an older copy
    # Below it messages may be deleted. Not where a joiner says that its ledger stands: what it saw
    # there may have been written by a process that was killed before its sync.
    processed: int = 0


class GroupTable:
    """All grants (hard state) and their leases (volatile)."""

    def __init__(self) -> None:
        # The last grant of each partition. Invariant: epochs rise.
        self.grants: dict[Key, GroupGranted] = {}
        # Invariant after Recovered: one for each grant, with its epoch.
        self.leases: dict[Key, Lease] = {}
        # The generation in which an operator went back to an earlier offset: a ledger without that
        # generation is an older copy at any offset. Only for keys where that happened.
        self.rewound: dict[Key, int] = {}
        # The keys of `grants` by topic.
        self.of_topic: dict[str, set[Key]] = {}

    def __len__(self) -> int:
        return len(self.grants)

    # --- hard state ------------------------------------------------------------------------------

    def apply(self, record: GroupGranted) -> None:
        key = (record.group, record.topic, record.partition)
        last = self.grants.get(key)
        assert last is None or record.epoch > last.epoch, "epochs rise"
        self._put(key, record)

    def _put(self, key: Key, record: GroupGranted) -> None:
        self.grants[key] = record
        self.of_topic.setdefault(key[1], set()).add(key)

    def forget_topic(self, topic: str) -> None:
        for key in self.of_topic.pop(topic, ()):
            del self.grants[key]
            self.leases.pop(key, None)
            self.rewound.pop(key, None)

    def apply_rewound(self, record: GroupRewound) -> None:
        """Lower the offset that the ledger must have reached: an operator moves it back."""
        key = (record.group, record.topic, record.partition)
        grant = self.grants[key]
        assert record.epoch == grant.epoch, "only the owner rewinds"
        self.grants[key] = replace(grant, next_offset=min(grant.next_offset, record.next_offset))
        self.rewound[key] = record.epoch

    def freeze(self, key: Key) -> Plain:
        """Return a grant as a row of a snapshot; what most lack stands at the end."""
        grant = self.grants[key]
        return [
            *key,
            grant.epoch,
            grant.incarnation,
            grant.ledger_id,
            grant.next_offset,
            grant.host,
            grant.path,
            grant.label,
            grant.at_ms,
            *self._rarely(key, grant),
        ]

    def _rarely(self, key: Key, grant: GroupGranted) -> list[Plain]:
        rewound = self.rewound.get(key, 0)
        if grant.seen.mark:
            return [rewound, *grant.seen]
        return [rewound] if rewound else []

    def restore(self, part: Plain) -> None:
        for fields in part:
            grant = GroupGranted(*fields[:_GRANT_FIELDS])
            key = (grant.group, grant.topic, grant.partition)
            rewound, *seen = fields[_GRANT_FIELDS:] or [0]
            if rewound:
                self.rewound[key] = rewound
            self._put(key, replace(grant, seen=Place(*seen)))

    # --- decisions -------------------------------------------------------------------------------

    def start_leases(self, now_ms: int) -> None:
        """After a restart owners must have time to renew."""
        self.leases = {
            key: Lease(grant.epoch, now_ms + LEASE_MS, committed=grant.next_offset)
            for key, grant in self.grants.items()
        }

    def check_ledger(self, key: Key, join: Join, end_offset: int, *, sent: bool) -> None:
        """Raises LedgerNotHere, LogRegressed.

        `sent`: the broker has outputs of this ledger, which therefore cannot be without any record.
        """
        if join.next_offset > end_offset and not join.accepts:
            raise LogRegressed(
                f"the ledger stands at offset {join.next_offset}, "
                f"{join.topic} partition {join.partition} ends at {end_offset}",
                hint=LogRegressed.group_hint,
            )
        grant = self.grants.get(key)
        if grant is None and sent and not join.replaces and not join.topic_id_seen:
            raise LedgerNotHere(
                f"group {join.group} has sent messages for an earlier topic {join.topic}, which was "
                "deleted; a new ledger would number its own like those",
                hint=f"let it go on behind them: {_new_ledger(join)}",
            )
        if grant is None or join.replaces:
            return
        known = self.known_offset(key)
        whole = join.highest_generation >= self.rewound.get(key, 0)
        whole = whole and bool(join.mark or not grant.seen.mark)
        whole = whole and bool(join.topic_id_seen or not sent)
        if join.ledger_id == grant.ledger_id and join.next_offset >= known and whole:
            return
        what = "an older state of its" if join.ledger_id == grant.ledger_id else "another"
        raise LedgerNotHere(
            f"group {join.group} has its ledger of {join.topic} partition {join.partition} on "
            f"{grant.host} in {grant.path}, at offset {known} or above; this is {what} ledger, "
            f"on {join.host} in {join.path}, at offset {join.next_offset}",
            hint=_way_back(join, grant),
        )

    def known_offset(self, key: Key) -> int:
        grant = self.grants.get(key)
        lease = self.leases.get(key)
        reported = max(lease.next_offset, lease.committed) if lease else 0
        return max(grant.next_offset if grant else 0, reported)

    def processed(self, topic: str, partition: int) -> int | None:
        """Return the offset below which every group of the topic has committed; None: no group.

        Only what a ledger reported as durable since the broker started counts. A group that owned
        another partition and has never reported of this one may still come for all of it.
        """
        keys = self.of_topic.get(topic)
        if not keys:
            return None
        leases = (self.leases.get((group, topic, partition)) for group in {key[0] for key in keys})
        return min(0 if lease is None else lease.processed for lease in leases)

    def same_again(self, key: Key, join: Join) -> bool:
        """Return whether the owner asks again for a grant that it has not used yet.

        Its answer was lost: the same epoch again, because a new one would fence its own opening.
        """
        grant = self.grants.get(key)
        return (
            grant is not None
            and grant.incarnation == join.incarnation
            and join.highest_generation < grant.epoch
            and not self.leases[key].released
        )

    def wait_for(self, key: Key, join: Join, now_ms: int) -> int:
        """For how many milliseconds another consumer's lease still counts; 0: grant now."""
        grant = self.grants.get(key)
        if grant is None or grant.incarnation == join.incarnation:
            return 0
        if _proves_death(join, grant):
            return 0
        lease = self.leases[key]
        return 0 if lease.released or lease.dead else max(0, lease.until_ms - now_ms)

    def new_grant(self, join: Join, at_ms: int, last_epoch: int) -> GroupGranted:
        """`last_epoch`: of the output producer, also of an earlier topic. Raises ProtocolError."""
        key = (join.group, join.topic, join.partition)
        if join.highest_generation >= GENERATION_MAX:
            raise ProtocolError(f"a ledger generation of {join.highest_generation} is impossible")
        next_offset = max(join.next_offset, self.known_offset(key))
        if self.rewound.get(key) == join.highest_generation:
            # The joiner looked while the operator was at work, perhaps before the ledger went back.
            # A grant at its higher offset would refuse the ledger for ever.
            next_offset = self.known_offset(key)
        return GroupGranted(
            join.group,
            join.topic,
            join.partition,
            max(last_epoch, join.highest_generation) + 1,
            join.incarnation,
            join.ledger_id,
            next_offset,
            join.host[:LABEL_CHARS_MAX],
            join.path,
            join.label[:LABEL_CHARS_MAX],
            at_ms,
            Place(join.mark, join.position),
        )

    def start_lease(self, record: GroupGranted, now_ms: int) -> Lease:
        """The grant of `record` is being appended."""
        key = (record.group, record.topic, record.partition)
        before = self.leases.get(key)
        self.leases[key] = Lease(
            record.epoch,
            now_ms + LEASE_MS,
            next_offset=record.next_offset,
            committed=record.next_offset,
            processed=0 if before is None else min(before.processed, record.next_offset),
        )
        return self.leases[key]

    def renew(self, key: Key, epoch: int, now_ms: int) -> Lease:
        """Raises NotGranted."""
        self.check(key, epoch)
        lease = self.leases[key]
        lease.until_ms = now_ms + LEASE_MS
        return lease

    def report(self, key: Key, committed: int) -> None:
        lease = self.leases[key]
        if self.rewound.get(key) == lease.epoch:  # the renewal may have left before the rewind
            committed = min(committed, self.grants[key].next_offset)
        lease.committed = lease.processed = committed

    def leave(self, key: Key, epoch: int, next_offset: int) -> None:
        """Raises NotGranted."""
        self.check(key, epoch)
        lease = self.leases[key]
        lease.released = True
        lease.next_offset = max(lease.next_offset, next_offset)
        lease.committed = lease.processed = next_offset

    def rewind(self, key: Key, next_offset: int, at_ms: int) -> GroupRewound:
        """Return the record that allows the ledger a lower offset from here on."""
        lease = self.leases[key]
        lease.next_offset = 0  # the offset of the grant counts from now on
        lease.committed = min(lease.committed, next_offset)
        lease.processed = min(lease.processed, next_offset)
        return GroupRewound(*key, self.grants[key].epoch, next_offset, at_ms)

    def check(self, key: Key, epoch: int) -> None:
        """Raises NotGranted."""
        grant = self.grants.get(key)
        group, topic, partition = key
        if grant is None:
            raise NotGranted(f"{topic} partition {partition} was never granted to group {group}")
        if epoch != grant.epoch:
            raise NotGranted(
                f"{topic} partition {partition} of group {group} is granted to {grant.label} "
                f"under epoch {grant.epoch}, not under {epoch}"
            )
        if self.leases[key].released:
            raise NotGranted(f"{topic} partition {partition} of group {group} was given back")

    def live(self, key: Key, now_ms: int) -> bool:
        """Return whether the lease of a grant still makes other consumers wait."""
        lease = self.leases[key]
        return not lease.released and lease.until_ms > now_ms


def _proves_death(join: Join, grant: GroupGranted) -> bool:
    """Return whether the joiner's lock is that of the owner itself.

    The lock of a ledger in another place says nothing about the owner: a copy of a ledger, taken
    while its owner lives, has a lock that is free.
    """
    used = join.highest_generation >= grant.epoch
    return join.lock_held and used and _same_place(join, grant)


def _same_place(join: Join, grant: GroupGranted) -> bool:
    return (join.host[:LABEL_CHARS_MAX], join.path) == (grant.host, grant.path)


def _way_back(join: Join, grant: GroupGranted) -> str:
    """Return what to do about a ledger that is not the one of the grant."""
    if join.ledger_id == grant.ledger_id:
        way = "this is a copy or an old backup: use the ledger as it was last"
    elif _same_place(join, grant):
        way = "it was deleted or replaced there: put it back"
    elif grant.path.endswith(IN_DATABASE):
        way = f"give the consumer that database: sink={grant.path.removesuffix(IN_DATABASE)!r}"
    else:
        way = f"start the consumer on {grant.host} with the --state directory that holds it"
    return f"{way}; if it is lost for good, start over without it: {_new_ledger(join)}"


def _new_ledger(join: Join) -> str:
    names = f"{shlex.quote(join.group)} {shlex.quote(join.topic)}"
    return f"oncemq groups reset {names} --to earliest --new-ledger"
