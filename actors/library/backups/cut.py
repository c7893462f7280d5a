"""Which moment a backup shows: one end of the broker's log, and for each ledger the commits that fit it.

Theory of operation. A backup must hold what was acknowledged before it began, and its parts must fit: all
that a ledger relies on is in the broker's copy, and all that the broker's copy says of a ledger is in that
ledger's copy. Two logs that grow are never read at one instant, so one of them is cut back.

The end E of the broker's log is taken first. Then each ledger is read, which is newer by then, and cut
after its last group all of whose places (history.py) and grants lie below E. So it relies on nothing above
E. Nor is
anything missing below E that it must have: an output, or a grant that reports an offset, follows in the
broker's log what its commit relied on, so that commit relies on places below E and is kept. After a restore
such a ledger repeats what it had not committed at E, with the same numbers of outputs, none of which the
broker has.

Were the ledgers read first and the broker after them, the broker's copy could hold outputs and grants of
commits that the ledgers' copies lack: the messages handled again would send other outputs under the numbers
of those, or the ledgers would be refused as older copies.

A database cannot be cut back. Its copy is made after an end F of the log was read, and E is the first end of
a group at or above F, and all places and grants of that copy. A commit that is not in the copy came after it,
so its outputs lie above all that the copy relies on, and above F; so does a grant that reports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...codec import records as record_codec
from ...codec import wire
from ...core.broker.groups import GroupTable, Key
from ...errors import LogRegressed, StorageError
from ...history import History, Place
from ...records import GroupGranted, GroupRewound, HistoryBegun, TopicCreated
from ...shells.ledger.files import LedgerFacts
from ...shells.tables.records import Row
from ...storage import snapshots
from ...storage.by_position import StoredRecord
from ...storage.copying import group_end, groups
from ...storage.disk import Disk
from ...storage.view import View


class Moved(StorageError):
    """A ledger has gone on so far that no moment of it fits the end that was taken: begin again."""

    code = "moved"


class Relying(Protocol):
    """What a ledger says of the log that it follows: `LedgerFacts`, or its row in a database."""

    @property
    def topic_id(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def seen(self) -> Place: ...


class BrokerCut:
    """What the broker's log says up to its cut."""

    def __init__(self, log_id: bytes, end: int) -> None:
        self.log_id = log_id
        self.end = end
        self.history = History()
        self.topic_ids: set[bytes] = set()
        self.groups = GroupTable()
        self.epochs: dict[bytes, int] = {}  # the highest that was granted, by ledger_id

    @classmethod
    def read(cls, disk: Disk, view: View) -> BrokerCut:
        """Read a view that ends at the cut. Raises CorruptLog, FileNotFoundError."""
        cut = cls(view.manifest.log_id, view.end)
        start = view.start
        for info in snapshots.usable(disk, view)[0]:
            parts = {part.name: part for part in info.parts}
            if "history" not in parts:
                continue  # of an early version, which a broker does not use either
            plain = {
                name: wire.unpack_plain(snapshots.read_part(disk, view.path, parts[name]))
                for name in ("history", "topics", "groups")
            }
            cut.history = History((bytes(mark), at) for mark, at in plain["history"])
            cut.topic_ids = {bytes(row[1]) for row in plain["topics"]}
            cut.groups.restore(plain["groups"])
            cut.epochs = {g.ledger_id: g.epoch for g in cut.groups.grants.values()}
            start = info.position
            break
        for records, _end in groups(disk, view, start):
            for stored in records:
                if stored.type != record_codec.BATCH_STORED:
                    cut._take(
                        record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc),
                        stored.position,
                    )
        return cut

    def _take(self, record: object, position: int) -> None:
        if isinstance(record, HistoryBegun):
            self.history.begin(record.mark, position)
        elif isinstance(record, TopicCreated):
            self.topic_ids.add(record.topic_id)
        elif isinstance(record, GroupGranted):
            self.groups.apply(record)
            self.epochs[record.ledger_id] = record.epoch
        elif isinstance(record, GroupRewound):
            self.groups.apply_rewound(record)

    def covers(self, ledger_id: bytes, facts: Relying) -> bool:
        """Return whether all that a ledger relies on lies below the cut."""
        if facts.topic_id and facts.topic_id not in self.topic_ids:
            return False
        return facts.epoch <= self.epochs.get(ledger_id, 0) and self._holds(facts.seen)

    def _holds(self, place: Place) -> bool:
        return not place.mark or self.history.holds(place, self.end)

    def check_same_past(self, who: str, place: Place) -> None:
        """`place` must lie below the cut, or later in the history that is cut.

        Raises Moved: in a history that began after the cut, it seems. LogRegressed: in another one.
        """
        if self._holds(place) or place.mark == self.history.current:
            return
        if any(place.mark == mark for mark, _ in self.history.begins):
            raise LogRegressed(
                f"{who} relies on {place}; {self.history.difference(place, self.end)}",
                hint=LogRegressed.group_hint,
            )
        raise Moved(f"{who} relies on {place}, which the broker's copy does not know")


def end_for(disk: Disk, view: View, floor: int, rows: Sequence[Row]) -> int:
    """Return the first end of a group at or above `floor`, itself one, that covers ledgers of a database.

    Raises Moved: the view ends before a place in which one relies.
    """
    wanted = max([floor, *(row.seen.position for row in rows)])
    claimed = {row.ledger_id: row.epoch for row in rows}
    found = end = floor
    for records, after in groups(disk, view, floor):
        for record in filter(_is_grant, records):
            grant = record_codec.decode(record.type, record.meta, record.body, record.body_crc)
            assert isinstance(grant, GroupGranted)
            if grant.epoch <= claimed.get(grant.ledger_id, 0):
                wanted = max(wanted, after)
        end = after
        if found < wanted <= end:
            found = end
    if found < wanted:
        raise Moved(f"the log ends at {end}, and a ledger relies on position {wanted}")
    return found


def _is_grant(record: StoredRecord) -> bool:
    return record.type in {record_codec.GROUP_GRANTED, record_codec.GROUP_GRANTED_SEEN}


def ledger_cut(disk: Disk, view: View, who: str, broker: BrokerCut) -> tuple[int, bytes]:
    """Return where a ledger ends that fits the broker's cut, and the log that it follows.

    A ledger of another log fits as it stands; one that follows none yet names b"". Raises Moved, LogRegressed, CorruptLog, FileNotFoundError.
    """
    ledger_id, log_id = view.manifest.log_id, b""
    starts: list[tuple[LedgerFacts, int]] = []
    for info in snapshots.usable(disk, view)[0]:
        part = next(part for part in info.parts if part.name == "ledger")
        plain = wire.unpack_plain(snapshots.read_part(disk, view.path, part))
        starts.append((LedgerFacts.of_snapshot(plain), group_end(disk, view, info.position)))
    if view.start == 0:
        starts.append((LedgerFacts(), 0))
    for number, (facts, start) in enumerate(starts):
        end = start if broker.covers(ledger_id, facts) else -1
        for records, after in groups(disk, view, start):
            for stored in records:
                facts.take(
                    record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)
                )
            if broker.covers(ledger_id, facts):
                end = after
        if number == 0:
            log_id = facts.log_id
            if log_id not in {b"", broker.log_id}:
                return view.end, log_id
            broker.check_same_past(who, facts.seen)
            if broker.covers(ledger_id, facts):
                return view.end, log_id
        if end >= 0:
            return end, log_id
    raise Moved(f"{who} has no snapshot that is old enough")


def elsewhere(broker: BrokerCut, ledger_ids: set[bytes]) -> dict[Key, GroupGranted]:
    """Return the grants whose ledgers are not among `ledger_ids`: they lie in another place."""
    grants = broker.groups.grants.items()
    return {key: grant for key, grant in grants if grant.ledger_id not in ledger_ids}
