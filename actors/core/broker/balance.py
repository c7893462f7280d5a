"""Which member of a group should have which partition: even shares, few moves, no haste.

Theory of operation. A member is one process; its random id comes with every Join and Renew, and it
asks for every partition that it does not own about once a second. So the broker needs no election
and no session: a member heard within MEMBER_MS is live, and one that asked for a partition within
ASKED_MS would take it. All of this is volatile and decides only *when* a member is granted, never
whether a write counts; grants, epochs and leases (groups.py) do not change their meaning. Who owns
how much is counted here, from those leases; membership.py only answers requests.

With m live members and n partitions each share is n/m rounded down or up. The members that own most
have the larger shares, so nothing moves without need (the sticky assignor of Kafka has the same
aim). A free partition goes to the first asker below its share. If the asker is not below, and a live
member below its share asks for the partition too, the broker keeps the partition for that member,
for KEEP_MS at most: no partition stays without an owner for a member that does not come. An owner
above its share is asked to give one back when it renews (`Renewed.revoke`), and only in favour of a
member that asks for that very partition; the partition is then *promised* to that member until it
is granted.

Nothing moves in haste. For SETTLE_MS after a start of the broker no owner is asked to give back:
all members are heard in that time. A new member gets partitions of other members only after
STEADY_MS. A partition that was taken from an owner is not taken again for MOVE_PAUSE_MS, so a
process that comes and goes moves each partition a few times a minute at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...limits import (
    ASKED_MS,
    COUNT_MS,
    KEEP_MS,
    LABEL_CHARS_MAX,
    MEMBER_MS,
    MOVE_PAUSE_MS,
    SETTLE_MS,
    STEADY_MS,
    Limits,
)
from .groups import GroupTable, Key

Share = tuple[str, str]  # group, topic


@dataclass(slots=True)
class MemberSeen:
    """One live process of a group."""

    label: str
    since_ms: int  # heard from then on without a gap above MEMBER_MS
    heard_ms: int  # time of the last Join or Renew
    # Time of the last Join, by partition that it does not own. Invariant: partitions that exist.
    asked_ms: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Shared:
    """The members of one group for one topic."""

    members: dict[bytes, MemberSeen] = field(default_factory=dict)
    # The member that waits for a partition which its owner was asked to give back, or which is
    # kept free.
    promised: dict[int, bytes] = field(default_factory=dict)
    # Since when a free partition is kept for another member than the asker.
    kept_since_ms: dict[int, int] = field(default_factory=dict)
    # When a partition was last taken from its owner.
    moved_ms: dict[int, int] = field(default_factory=dict)
    # Partitions that each member owned at the last count, and the time of that count.
    owners: Counter[bytes] = field(default_factory=Counter)
    counted_ms: int = -COUNT_MS


_NO_MEMBERS = Shared()  # of a group without members; never changed


@dataclass(slots=True)
class Shares:
    """Partitions by live member."""

    weight: dict[bytes, int]  # owned, or promised
    target: dict[bytes, int]  # the share

    def below(self, member: bytes) -> bool:
        return self.weight.get(member, 0) < self.target.get(member, 0)

    def above(self, member: bytes) -> bool:
        return self.weight.get(member, 0) > self.target.get(member, 0)


class Balance:
    """The volatile table of members, and what follows from it."""

    def __init__(self, groups: GroupTable, limits: Limits) -> None:
        self._groups = groups
        self._shared: dict[Share, Shared] = {}
        self._limits = limits
        # Entries in all `members` and all `asked_ms`. Invariant: at most members_max, asked_max.
        self._members = 0
        self._asked = 0
        # No owner is asked to give a partition back before.
        self._settled_at_ms = 0

    def start(self, now_ms: int) -> None:
        """Begin after a start of the broker: it knows no members yet, though there may be many."""
        self._settled_at_ms = now_ms + SETTLE_MS

    # --- members ---------------------------------------------------------------------------------

    def heard(
        self, key: Key, member: bytes, label: str, now_ms: int, *, asks: bool
    ) -> MemberSeen | None:
        """Record that a member joins (`asks`) or renews; return it if it is new.

        At the bound a new member is not recorded: it then takes free partitions that no recorded
        member waits for.
        """
        seen, new = self._shared.get(key[:2], _NO_MEMBERS).members.get(member), None
        if seen is None or now_ms - seen.heard_ms > MEMBER_MS:
            if seen is None and self._members >= self._limits.members_max:
                self._sweep(now_ms)
                if self._members >= self._limits.members_max:
                    return None
            shared = self._shared.setdefault(key[:2], Shared())
            self._drop(shared, member)
            self._members += 1
            new = seen = shared.members[member] = MemberSeen("", now_ms, now_ms)
        seen.heard_ms = now_ms
        seen.label = label[:LABEL_CHARS_MAX] or seen.label
        partition = key[2]
        if not asks:
            self._asked -= seen.asked_ms.pop(partition, None) is not None
        elif partition in seen.asked_ms:
            seen.asked_ms[partition] = now_ms
        elif self._asked < self._limits.asked_max:
            self._asked += 1
            seen.asked_ms[partition] = now_ms
        return new

    def gone(self, key: Key, member: bytes) -> None:
        """Forget a member that ends or is proved dead: its share goes to the others."""
        shared = self._shared.get(key[:2])
        if shared is not None:
            self._drop(shared, member)

    def forget_topic(self, topic: str) -> None:
        for share in [share for share in self._shared if share[1] == topic]:
            shared = self._shared.pop(share)
            for member in list(shared.members):
                self._drop(shared, member)

    def _drop(self, shared: Shared, member: bytes) -> None:
        seen = shared.members.pop(member, None)
        if seen is not None:
            self._members -= 1
            self._asked -= len(seen.asked_ms)

    def _sweep(self, now_ms: int) -> None:
        for share, shared in list(self._shared.items()):
            for member, seen in list(shared.members.items()):
                if now_ms - seen.heard_ms > MEMBER_MS:
                    self._drop(shared, member)
            if not shared.members:
                del self._shared[share]

    def members(self, group: str, now_ms: int) -> Iterator[tuple[str, bytes, MemberSeen]]:
        for (of_group, topic), shared in sorted(self._shared.items()):
            if of_group == group:
                for member, seen in sorted(self._live(shared, now_ms).items()):
                    yield topic, member, seen

    def label(self, key: Key, member: bytes) -> str:
        """Return "" for an unknown member."""
        shared = self._shared.get(key[:2])
        seen = shared.members.get(member) if shared else None
        return seen.label if seen else ""

    @staticmethod
    def _live(shared: Shared, now_ms: int) -> dict[bytes, MemberSeen]:
        return {m: s for m, s in shared.members.items() if now_ms - s.heard_ms <= MEMBER_MS}

    # --- shares ----------------------------------------------------------------------------------

    def owner(self, key: Key, now_ms: int) -> bytes:
        """Return the member whose lease of a partition runs; b"" without one, or without its id."""
        lease = self._groups.leases.get(key)
        return lease.member if lease and self._groups.live(key, now_ms) else b""

    def shares(self, share: Share, partitions: int, now_ms: int) -> Shares:
        """Return what each member has and should have. The same state gives the same shares."""
        shared = self._shared.get(share, _NO_MEMBERS)
        live = self._live(shared, now_ms)
        weight = dict.fromkeys(live, 0)
        for partition in range(partitions):
            member = shared.promised.get(partition) or self.owner((*share, partition), now_ms)
            if member in weight:
                weight[member] += 1
        least, larger = divmod(partitions, len(live)) if live else (0, 0)
        order = sorted(live, key=lambda member: (-weight[member], member))
        target = {member: least + (rank < larger) for rank, member in enumerate(order)}
        return Shares(weight, target)

    def others_own(self, key: Key, member: bytes, partitions: int, now_ms: int) -> bool:
        owners = self._owners(key[:2], partitions, now_ms)
        return sum(owners.values()) > owners[member]

    def _owners(self, share: Share, partitions: int, now_ms: int) -> Counter[bytes]:
        """Return how many partitions each member owns, as counted COUNT_MS ago at most.

        A count looks at every partition, and every renewal asks.
        """
        shared = self._shared.get(share, _NO_MEMBERS)
        if shared is _NO_MEMBERS or not 0 <= now_ms - shared.counted_ms < COUNT_MS:
            keys = [(*share, partition) for partition in range(partitions)]
            alive = [key for key in keys if key in self._groups.leases]
            owners = Counter(
                self._groups.leases[key].member for key in alive if self._groups.live(key, now_ms)
            )
            if shared is _NO_MEMBERS:
                return owners
            shared.owners, shared.counted_ms = owners, now_ms
        return shared.owners

    # --- decisions -------------------------------------------------------------------------------

    def kept_for(
        self, key: Key, member: bytes, partitions: int, now_ms: int
    ) -> tuple[str, int] | None:
        """Return the label of the member that a free partition is kept for, and the time left.

        None: the asker gets the partition.
        """
        shared = self._shared.get(key[:2])
        if shared is None or member not in shared.members:
            return None
        partition = key[2]
        promised = self._promised(shared, partition, now_ms)
        if promised is None:
            shares = self.shares(key[:2], partitions, now_ms)
            if shares.below(member):
                return None
            promised = self._first_below(shared, shares, key, member, now_ms)
        if promised is None or promised == member:
            return None
        since_ms = shared.kept_since_ms.setdefault(partition, now_ms)
        left_ms = since_ms + KEEP_MS - now_ms
        if left_ms <= 0:
            return None
        shared.promised[partition] = promised
        return shared.members[promised].label, left_ms

    def granted(self, key: Key, member: bytes) -> None:
        """The partition has a new owner."""
        shared = self._shared.get(key[:2])
        if shared is not None:
            shared.promised.pop(key[2], None)
            shared.kept_since_ms.pop(key[2], None)
            seen = shared.members.get(member)
            if seen is not None:
                self._asked -= seen.asked_ms.pop(key[2], None) is not None

    def left(self, key: Key, member: bytes) -> None:
        """Forget an owner that gave a partition back without being asked: its process is ending."""
        shared = self._shared.get(key[:2])
        if shared is not None and key[2] not in shared.promised:
            self._drop(shared, member)

    def revoke(
        self, key: Key, member: bytes, partitions: int, now_ms: int
    ) -> tuple[bool, str | None]:
        """Return whether a renewing owner should give the partition back, and for which member.

        The label of the member is there only when this call decides it.
        """
        shared = self._shared.get(key[:2])
        if shared is None or member not in shared.members:
            return False, None
        if self._promised(shared, key[2], now_ms) is not None:
            return True, None  # said before, but that answer may be lost
        if now_ms < self._settled_at_ms or len(shared.members) < 2:
            return False, None
        moved_ms = shared.moved_ms.get(key[2])
        if moved_ms is not None and now_ms - moved_ms < MOVE_PAUSE_MS:
            return False, None
        least = partitions // len(shared.members)  # dead members only make it smaller
        if self._owners(key[:2], partitions, now_ms)[member] <= least:
            return False, None  # nearly always: it costs no look at every partition
        shares = self.shares(key[:2], partitions, now_ms)
        if not shares.above(member):
            return False, None
        to = self._first_below(shared, shares, key, member, now_ms, steady=True)
        if to is None:
            return False, None
        shared.promised[key[2]] = to
        shared.moved_ms[key[2]] = now_ms
        return True, shared.members[to].label

    def promised_to(self, key: Key, now_ms: int) -> str:
        """Return the label of the member that a partition is promised to; "" without one."""
        shared = self._shared.get(key[:2])
        to = self._promised(shared, key[2], now_ms) if shared else None
        return shared.members[to].label if shared and to else ""

    def _promised(self, shared: Shared, partition: int, now_ms: int) -> bytes | None:
        """Return the member that a partition is promised to.

        A member that no longer asks for the partition loses the promise.
        """
        to = shared.promised.get(partition)
        if to is None:
            return None
        seen = shared.members.get(to)
        if seen is not None and now_ms - seen.asked_ms.get(partition, -ASKED_MS) < ASKED_MS:
            return to
        del shared.promised[partition]
        return None

    def _first_below(
        self,
        shared: Shared,
        shares: Shares,
        key: Key,
        asker: bytes,
        now_ms: int,
        *,
        steady: bool = False,
    ) -> bytes | None:
        """Return the asker of this partition that is furthest below its share; None without one."""
        found = [
            member
            for member, seen in shared.members.items()
            if member != asker
            and shares.below(member)
            and now_ms - seen.asked_ms.get(key[2], -ASKED_MS) < ASKED_MS
            and (not steady or seen.heard_ms - seen.since_ms >= STEADY_MS)
        ]
        missing = {member: shares.target[member] - shares.weight[member] for member in found}
        return min(found, key=lambda member: (-missing[member], member), default=None)
