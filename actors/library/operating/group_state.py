"""How a group stands: its members, who owns what, its lag and what operators had it skip."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import OnceMQError
from ...runtime.os_disk import OsDisk
from ...storage.layout import generations
from ..ledgers.reader import read_ledger
from .client import AdminClient


@dataclass(slots=True)
class PartitionState:
    """One partition of a topic that the group consumes."""

    topic: str
    partition: int
    consumer: str  # who owns it or owned it last; "": nobody yet
    host: str
    path: str  # of the ledger
    epoch: int
    live: bool
    member: str
    committed: int
    end: int
    moving_to: str  # who waits for it to be given back
    skipped: list[tuple[int, int, str]] = field(default_factory=list)  # from, to, reason

    @property
    def lag(self) -> int:
        """Messages that are stored and not committed."""
        return self.end - self.committed


@dataclass(frozen=True, slots=True)
class MemberState:
    """One live process of the group, for one topic."""

    topic: str
    member: str
    consumer: str
    partitions: int
    heard_ms_ago: int


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group."""

    group: str
    partitions: list[PartitionState]
    members: list[MemberState]

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(one), "lag": one.lag} for one in self.partitions]
        for row in rows:
            row["skipped"] = [
                {"from": low, "to": high, "reason": why} for low, high, why in row["skipped"]
            ]
        return {
            "group": self.group,
            "lag": sum(one.lag for one in self.partitions),
            "partitions": rows,
            "members": [asdict(one) for one in self.members],
        }


def group_state(client: AdminClient, group: str, *, host: str) -> GroupState:
    """Return how a group stands; ledgers on `host`, which is this machine, are looked into.

    Partitions that nobody ever owned are there too, at the offset where the group will begin.
    Raises NoAnswer, InvalidName.
    """
    described = client.group(group)
    known: dict[tuple[str, int], PartitionState] = {}
    for (
        topic,
        number,
        epoch,
        label,
        on,
        path,
        live,
        member,
        committed,
        end,
        to,
    ) in described.partitions:
        known[topic, number] = PartitionState(
            topic, number, label, on, path, epoch, live, member.hex(), committed, end, to
        )
    for topic in sorted({topic for topic, _ in known} | {row[0] for row in described.members}):
        for number, end in enumerate(client.describe_topic(topic).end_offsets):
            nobody = PartitionState(
                topic,
                number,
                "",
                "",
                "",
                0,
                live=False,
                member="",
                committed=0,
                end=end,
                moving_to="",
            )
            known.setdefault((topic, number), nobody)
    for state in known.values():
        if state.host == host and state.path:
            _look(state)
    members = [
        MemberState(topic, member.hex(), label, owned, heard)
        for topic, member, label, owned, heard in described.members
    ]
    return GroupState(group, [known[place] for place in sorted(known)], members)


def _look(state: PartitionState) -> None:
    """Read the ledger: for a partition without owner it knows more than the broker."""
    disk = OsDisk()
    try:
        if not generations(disk, state.path):
            return
        ledger = read_ledger(disk, state.path)
    except (OnceMQError, OSError):
        return  # another directory, or damage that its owner will tell of: the broker's word stands
    started = ledger.started
    if started is None or (started.topic, started.partition) != (state.topic, state.partition):
        return
    state.skipped = list(ledger.skips)
    if not state.live:
        state.committed = min(ledger.next_offset, state.end)
