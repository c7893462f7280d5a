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

from ...codec import records as record_codec
from ...codec import wire
from ...core.broker.groups import Key
from ...core.broker.state import BrokerState
from ...errors import LogRegressed, StorageError, UnsupportedFormat
from ...history import History, Place
from ...limits import LIMITS
from ...records import (
    GroupGranted,
    GroupRewound,
    HistoryBegun,
    Record,
    TopicCreated,
    TopicDeleted,
)
from ...shells.ledger.files import LedgerFacts
from ...shells.tables.records import Row
from ...storage import snapshots
from ...storage.by_position import StoredRecord
from ...storage.copying import group_end, groups
from ...storage.creation import SECRET_BYTES
from ...storage.disk import Disk
from ...storage.view import View

# What says who owns what. Whatever else a record says is of messages, ids and producers.
_OWNERS = (HistoryBegun, TopicCreated, TopicDeleted, GroupGranted, GroupRewound)
# Parts of a snapshot that hold the state but for messages and ids.
_STATE = frozenset({"broker", "topics", "producers", "groups", "history"})


class Moved(StorageError):
    """A ledger has gone on so far that no moment of it fits the end that was taken: begin again."""

    code = "moved"


class BrokerCut:
    """What the broker's log says up to its cut. Messages are passed over."""

    def __init__(self, log_id: bytes, end: int) -> None:
        self.log_id = log_id
        self.end = end
        self.state = BrokerState(bytes(SECRET_BYTES), LIMITS)

    @classmethod
    def read(cls, disk: Disk, view: View) -> BrokerCut:
        """Read a view that ends at the cut. Raises CorruptLog, UnsupportedFormat, FileNotFoundError."""
        cut = cls(view.manifest.log_id, view.end)
        start = cut._restore(disk, view)
        for records, _end in groups(disk, view, start):
            for stored in records:
                if stored.type != record_codec.BATCH_STORED:
                    record = decoded(stored)
                    if isinstance(record, _OWNERS):
                        cut.state.apply(record, stored.position)
        return cut

    def _restore(self, disk: Disk, view: View) -> int:
        """Take the newest snapshot that this version understands; return where the rest begins."""
        unknown: UnsupportedFormat | None = None
        for info in snapshots.usable(disk, view)[0]:
            plain = {
                part.name: wire.unpack_plain(snapshots.read_part(disk, view.path, part))
                for part in info.parts
                if part.name in _STATE
            }
            try:
                self.state.restore(plain)
            except UnsupportedFormat as error:
                unknown = error
            else:
                return info.position
        if unknown is not None and view.start > 0:
            raise unknown
        return view.start

    @property
    def history(self) -> History:
        return self.state.history

    def knows_topic(self, topic_id: bytes) -> bool:
        return any(topic.topic_id == topic_id for topic in self.state.topics.by_number.values())

    def covers(self, facts: LedgerFacts) -> bool:
        """Return whether all that a ledger relies on lies below the cut."""
        if not self._holds(facts.seen):
            return False
        if facts.topic_id and not self.knows_topic(facts.topic_id):
            return bool(
                facts.seen.mark
            )  # deleted: what relied on it came before, and is all the past
        grant = self.state.groups.grants.get(facts.key)
        return facts.epoch <= (grant.epoch if grant else 0)

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
            grant = decoded(record)
            assert isinstance(grant, GroupGranted)
            if grant.epoch <= claimed.get(grant.ledger_id, 0):
                wanted = max(wanted, after)
        end = after
        if found < wanted <= end:
            found = end
    if found < wanted:
        raise Moved(f"the log ends at {end}, and a ledger relies on position {wanted}")
    return found


def decoded(stored: StoredRecord) -> Record:
    """Raises UnsupportedFormat."""
    return record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)


def _is_grant(record: StoredRecord) -> bool:
    return record.type in {record_codec.GROUP_GRANTED, record_codec.GROUP_GRANTED_SEEN}


def ledger_cut(disk: Disk, view: View, who: str, broker: BrokerCut) -> tuple[int, bytes]:
    """Return where a ledger ends that fits the broker's cut, and the log that it follows.

    A ledger of another log fits as it stands; one that follows none yet names b"". Raises Moved, LogRegressed, CorruptLog, FileNotFoundError.
    """
    log_id = b""
    starts: list[tuple[LedgerFacts, int]] = []
    for info in snapshots.usable(disk, view)[0]:
        part = next(part for part in info.parts if part.name == "ledger")
        plain = wire.unpack_plain(snapshots.read_part(disk, view.path, part))
        starts.append((LedgerFacts.of_snapshot(plain), group_end(disk, view, info.position)))
    if view.start == 0:
        starts.append((LedgerFacts(), 0))
    for number, (facts, start) in enumerate(starts):
        end = start if broker.covers(facts) else -1
        for records, after in groups(disk, view, start):
            for stored in records:
                facts.take(decoded(stored))
            if broker.covers(facts):
                end = after
        if number == 0:
            log_id = facts.log_id
            if log_id not in {b"", broker.log_id}:
                return view.end, log_id
            broker.check_same_past(who, facts.seen)
            if broker.covers(facts):
                return view.end, log_id
        if end >= 0:
            return end, log_id
    raise Moved(f"{who} has no snapshot that is old enough")


def elsewhere(broker: BrokerCut, ledger_ids: set[bytes]) -> dict[Key, GroupGranted]:
    """Return the grants whose ledgers are not among `ledger_ids`: they lie in another place."""
    grants = broker.state.groups.grants.items()
    return {key: grant for key, grant in grants if grant.ledger_id not in ledger_ids}
