"""What is said on the wire by and to operators of groups; protocol.py lists it with all else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rewind:
    """Version 2: an operator is about to commit `next_offset`, below what the ledger has reported.

    Only the owner may say so, once its generation of the ledger is open.
    """

    request: int
    group: str
    topic: str
    partition: int
    epoch: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class DescribeGroup:
    """Version 2: asks for the members of a group, for who owns what and how far it is."""

    request: int
    group: str


@dataclass(frozen=True, slots=True)
class Rewound:
    """The broker will accept a ledger of this generation at the lower offset."""

    request: int


@dataclass(frozen=True, slots=True)
class GroupDescribed:
    """A group: its partitions by topic and number, and the members that were heard lately.

    A partition: (topic, partition, epoch, label, host, path, live, member, committed, end offset,
    label of the member that it is given to). A member: (topic, member, label, partitions, ms since
    it was heard).
    """

    request: int
    group: str
    partitions: tuple[tuple[str, int, int, str, str, str, bool, bytes, int, int, str], ...]
    members: tuple[tuple[str, bytes, str, int, int], ...]
