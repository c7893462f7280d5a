"""Reading the broker's log for a proof: offsets, numbers and epochs follow from each other.

A log that retention has shortened begins with a snapshot: what that says is taken for the records below
it, and every later snapshot is compared with the records up to its place. What messages are left of
the time before that snapshot are read first: they must be whole up to it.

Every stored batch is looked at once. Sequence ids are judged as ranges; explicit ids become rows
(rows.py), once for the uniqueness in their topic and once for each ledger that has them
behind it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...errors import CorruptLog
from ...ids import output_producer, sequence_id
from ..findings import Findings
from ..parse.batch import BadBatch, BatchView
from ..parse.batch import parse as parse_batch
from ..parse.document import SnapshotHead
from ..parse.frames import Frame
from ..parse.log import Log
from ..parse.records import (
    BadRecord,
    Configuration,
    Deletion,
    GroupGrant,
    GroupRewind,
    History,
    HorizonMark,
    ProducerGrant,
    Replacement,
    Retirement,
    Stored,
    Topic,
    Trim,
    parse,
    unpack,
)
from .facts import Ledger
from .kept import Keeper
from .ledgers import sensible
from .parked import PRIVATE_ID_MARK
from .rows import IN_LOG, Rows, seed_of

BEFORE_MARKS = bytes(16)  # stands for the history before the first mark
_DEFAULTS = (None, None, None, False)  # settings of a topic that was never configured
_PROCESSED = "processed"  # why messages were deleted: every group had come so far
Place = tuple[int, int]  # topic number, partition
Row = tuple[str, int, int]  # producer, topic number, partition


@dataclass(slots=True)
class Partition:
    """One partition as the log's records make it."""

    end_offset: int = 0
    last_at_ms: int = 0
    start: int = 0  # messages below were deleted
    processed: int = 0  # the highest start that was set because every group had come so far
    shown_from: int = 0  # the first offset that the log still shows: at the start, or below it


@dataclass(slots=True)
class Horizon:
    """What a topic with a dedup horizon has forgotten."""

    floor_ms: int = 0
    forgotten_ids: int = 0
    ids_at: dict[int, int] = field(default_factory=lambda: {0: 0})  # ids stored, by time of marks


@dataclass(slots=True)
class BrokerLog:
    """What the records of the broker's log say, up to `end`."""

    log_id: bytes = b""
    generation: int = 0
    end: int = 0
    topics: dict[int, Topic] = field(default_factory=dict)  # by number, also deleted ones
    topic_count: int = 0  # of all that were ever made
    deleted: set[int] = field(default_factory=set)
    settings: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # by topic number
    horizons: dict[int, Horizon] = field(default_factory=dict)  # of topics that had one
    partitions: dict[Place, Partition] = field(default_factory=dict)
    # Live epochs of producers, those of outputs included.
    epochs: dict[str, int] = field(default_factory=dict)
    # The next number of each producer in each partition.
    next_sequence: dict[Row, int] = field(default_factory=dict)
    # Grants of (group, topic, partition) by epoch.
    grants: dict[tuple[str, str, int], dict[int, GroupGrant]] = field(default_factory=dict)
    # The first epoch by the same key of which the log still tells, where that is not the first.
    grants_from: dict[tuple[str, str, int], int] = field(default_factory=dict)
    # The first number that the log still shows of each producer in each partition.
    shown_sequence: dict[Row, int] = field(default_factory=dict)
    # Epochs under which an operator gave a partition another ledger, by the same key.
    replaced: dict[tuple[str, str, int], set[int]] = field(default_factory=dict)
    # Explicit ids by topic number: how many, and the sum of their body hashes.
    ids: dict[int, tuple[int, int]] = field(default_factory=dict)
    # The mark of each generation and where it begins, in order.
    marks: list[tuple[bytes, int]] = field(default_factory=list)
    batches: int = 0
    masked: int = 0  # batches of which only a part was new
    torn_bytes: int = 0

    def history_end(self, mark: bytes) -> int:
        """Return where the history under a mark ends; -1 if this log never had it."""
        for number, (known, _) in enumerate(self.marks):
            if known == mark:
                following = self.marks[number + 1 :]
                return following[0][1] if following else self.end
        return -1

    def shows_no(self, producer: str, topic: str, partition: int, sequence: int) -> bool:
        """Return whether the message with a number may have been deleted."""
        number = self.number_of(topic)
        if number is None:
            return any(self.topics[gone].topic == topic for gone in self.deleted & set(self.topics))
        place = self.partitions.get((number, partition))
        row = (producer, number, partition)
        shown = self.shown_sequence.get(row, self.next_sequence.get(row, 0))
        return place is not None and place.start > 0 and sequence < shown

    def number_of(self, topic: str) -> int | None:
        """Return the number of the topic that has this name now; None: there is none."""
        for number, known in self.topics.items():
            if known.topic == topic and number not in self.deleted:
                return number
        return None


class LogReader:
    """Reads the log into rows."""

    def __init__(
        self, log: Log, ledgers: list[Ledger], rows: Rows, found: Findings, keeper: Keeper
    ) -> None:
        """`ledgers` were read before, so all that they committed is in this log."""
        self.facts = BrokerLog(log.log_id, log.generation, log.end, torn_bytes=log.torn_bytes)
        # How many explicit ids there are, and the sum of their places as an index packs them.
        self._id_count = self._id_places = 0
        self._ids_before = 0  # of the index where the log begins at a snapshot
        self._log = log
        self._rows = rows
        self._found = found
        self._keeper = keeper
        self._numbers: dict[str, int] = {}  # topic name -> number
        self._ledgers: dict[tuple[str, int], list[Ledger]] = {}
        for ledger in ledgers:
            _, topic, partition = ledger.place
            for name in (topic, ledger.private_topic):
                self._ledgers.setdefault((name, partition), []).append(ledger)
        self._output_epochs: dict[str, GroupGrant] = {}
        # By group, topic and partition: no grant may begin below this offset.
        self._reported: dict[tuple[str, str, int], int] = {}

    def read(self, progress: Callable[[int, int], None]) -> BrokerLog:
        """`progress` gets (position, end). Raises CorruptLog, LogMoved."""
        log = self._log
        later = list(log.snapshots)
        self._found.notes += [f"{log.directory}: {damage}" for damage in log.snapshot_damage]
        position = 0
        if log.start:
            later = [head for head in later if head.position >= log.start]
            base = later.pop(0)
            sensible(self._begin, base, log.path)
            position = base.position
            self._read_before(base)
        for group in log.groups(position):
            for frame in group.frames:
                self._checked(self._take, frame)
            while later and later[0].position <= group.end:
                sensible(self._compare, later.pop(0), log.path)
            progress(group.end, log.end)
        self._check_starts()
        return self.facts

    # --- a log without its beginning -------------------------------------------------------------

    def _begin(self, head: SnapshotHead) -> None:
        """Take what a snapshot says for the records below it."""
        facts, log = self.facts, self._log
        broker = unpack(log.snapshot_part(head, "broker"))
        facts.topic_count = broker[3]
        for row in unpack(log.snapshot_part(head, "topics")):
            name, topic_id, count, at_ms, partitions, settings, (number, _), horizon = row
            facts.topics[number] = Topic(name, topic_id, count, at_ms)
            self._numbers[name] = number
            if tuple(settings) != _DEFAULTS:
                facts.settings[number] = tuple(settings)
            floor_ms, _, forgotten_ms, _, marks = horizon
            if floor_ms or marks:  # counts begin here: see _may_lack
                ids_at = dict.fromkeys((forgotten_ms, *(at_ms for at_ms, _ in marks)), 0)
                facts.horizons[number] = Horizon(floor_ms, 0, ids_at)
            for partition, end, start, _, last_at_ms, why, _ in partitions:
                processed = start if why == _PROCESSED else 0
                facts.partitions[number, partition] = Partition(
                    end, last_at_ms, start, processed, shown_from=end
                )
        facts.deleted = set(range(facts.topic_count)) - set(facts.topics)
        for name, epoch, _, _, rows, *_ in unpack(log.snapshot_part(head, "producers")):
            facts.epochs[name] = epoch
            for number, partition, following, *_ in rows:
                facts.next_sequence[name, number, partition] = following
        for row in unpack(log.snapshot_part(head, "groups")):
            grant = GroupGrant(*row[:11])
            key = (grant.group, grant.topic, grant.partition)
            facts.grants[key] = {grant.epoch: grant}
            facts.grants_from[key] = grant.epoch
            self._reported[key] = grant.next_offset
        marks = unpack(log.snapshot_part(head, "history"))
        facts.marks = [(mark, at) for mark, at in marks]
        self._id_count, self._id_places = self._ids_in(head) or (0, 0)
        self._ids_before = self._id_count

    def _read_before(self, head: SnapshotHead) -> None:
        """Read what is left of the batches below the first snapshot: they end where it says."""
        ends: dict[Place, int] = {}
        for frame in self._log.frames_before(head):
            self._checked(partial(self._take_before, ends), frame)
        for place, end in ends.items():
            partition = self.facts.partitions[place]
            if end < partition.end_offset:  # the rest must be below the start in the end
                self._shown_from(place, partition.end_offset)
            elif end > partition.end_offset:
                said = f"the snapshot at {head.position} says {partition.end_offset}"
                self._found.add("I6-offsets", self._where(place), f"it ends at {end}, {said}")

    def _checked(self, take: Callable[[Any, int], None], frame: Frame) -> None:
        """Raises CorruptLog."""
        try:
            take(parse(frame), frame.position)
        except (BadRecord, BadBatch) as bad:
            raise CorruptLog(self._log.path, frame.position, str(bad)) from None

    def _take_before(self, ends: dict[Place, int], record: Any, position: int) -> None:
        if isinstance(record, Stored) and record.topic_number not in self.facts.deleted:
            self._stored_before(record, position, ends)

    def _stored_before(self, record: Stored, position: int, ends: dict[Place, int]) -> None:
        facts, place = self.facts, (record.topic_number, record.partition)
        partition = facts.partitions.get(place)
        if partition is None:
            where = f"position {position}"
            self._found.add("log-shape", where, "a batch that the first snapshot does not know")
            return
        expected = ends.get(place, -1)
        if record.first_offset > expected:
            # What is missing must be below the start in the end: a part may keep what was deleted
            # later, while the log behind it is gone.
            self._shown_from(place, record.first_offset)
        elif record.first_offset < expected:
            text = f"offset {record.first_offset} at position {position} follows {expected - 1}"
            self._found.add("I6-offsets", self._where(place), text)
        ends[place] = record.end_offset
        topic, where = facts.topics[record.topic_number].topic, self._where(place)
        batch = _batch_of(record)
        self._keeper.stored(record, batch, topic)
        if record.first_sequence >= 0:
            self._sequence_rows(record, topic, place, position)
        else:
            self._explicit_rows(record, batch, topic, where, position)

    def _shown_from(self, place: Place, offset: int) -> None:
        """What the log shows of a partition without holes begins here."""
        self.facts.partitions[place].shown_from = offset
        for row in [row for row in self.facts.shown_sequence if row[1:] == place]:
            del self.facts.shown_sequence[row]

    def _check_starts(self) -> None:
        """What was not deleted is there."""
        for place, partition in self.facts.partitions.items():
            if partition.shown_from > partition.start:
                text = f"the messages {partition.start} to {partition.shown_from - 1} are missing"
                self._found.add("retained", self._where(place), text)

    def _where(self, place: Place) -> str:
        return f"{self.facts.topics[place[0]].topic}/{place[1]}"

    # --- records ---------------------------------------------------------------------------------

    def _take(self, record: Any, position: int) -> None:
        if isinstance(record, Stored):
            self._stored(record, position)
        elif isinstance(record, Topic):
            if record.topic in self._numbers:
                self._found.add("log-shape", record.topic, "the topic is created a second time")
            self._numbers[record.topic] = self.facts.topic_count
            self.facts.topics[self.facts.topic_count] = record
            self.facts.topic_count += 1
        elif isinstance(record, Configuration):
            if record.topic_number >= len(self.facts.topics):
                self._found.add("log-shape", f"position {position}", "settings of no topic")
            self.facts.settings[record.topic_number] = record.settings
        elif isinstance(record, Retirement):
            if record.producer not in self.facts.epochs:
                self._found.add("log-shape", f"position {position}", "nobody has this name")
        elif isinstance(record, HorizonMark):
            self._horizon(record, position)
        elif isinstance(record, ProducerGrant):
            self._grant(record.producer, record.epoch)
        elif isinstance(record, GroupGrant):
            self._group_grant(record)
        elif isinstance(record, History):
            self._history(record, position)
        elif isinstance(record, Trim):
            self._trim(record, position)
        elif isinstance(record, Deletion):
            self._delete(record, position)
        elif isinstance(record, GroupRewind):
            self._reported[record.group, record.topic, record.partition] = record.next_offset
        elif isinstance(record, Replacement):
            key = (record.group, record.topic, record.partition)
            self.facts.replaced.setdefault(key, set()).add(record.epoch)
        else:
            self._found.add("log-shape", f"position {position}", "a record of a ledger")

    def _trim(self, record: Trim, position: int) -> None:
        partition = self.facts.partitions.get((record.topic_number, record.partition))
        if partition is None or not partition.start < record.below <= partition.end_offset:
            self._found.add("log-shape", f"position {position}", "a start that does not move up")
            return
        partition.start = record.below
        if record.why == _PROCESSED:
            partition.processed = record.below

    def _delete(self, record: Deletion, position: int) -> None:
        facts, number = self.facts, record.topic_number
        if number not in facts.topics or number in facts.deleted:
            self._found.add("log-shape", f"position {position}", "a topic that is not there goes")
            return
        name = facts.topics[number].topic
        facts.deleted.add(number)
        del self._numbers[name]
        facts.settings.pop(number, None)
        for table in (facts.grants, facts.grants_from, self._reported):
            for key in [key for key in table if key[1] == name]:
                del table[key]
        for place in [place for place in facts.partitions if place[0] == number]:
            del facts.partitions[place]
        for row in [row for row in facts.next_sequence if row[1] == number]:
            del facts.next_sequence[row]

    def _history(self, record: History, position: int) -> None:
        marks = self.facts.marks
        if not marks and position:
            marks.append((BEFORE_MARKS, 0))
        if any(record.mark == mark for mark, _ in marks):
            self._found.add("log-shape", f"position {position}", "a mark comes a second time")
        marks.append((record.mark, position))

    def _horizon(self, record: HorizonMark, position: int) -> None:
        """A mark forgets what an earlier mark had seen, and nothing that is younger than the floor."""
        horizon = self.facts.horizons.setdefault(record.topic_number, Horizon())
        known = horizon.ids_at.get(record.forgotten_ms)
        dedup_ms = self.facts.settings.get(record.topic_number, _DEFAULTS)[0]
        if (
            known is None
            or record.floor_ms < horizon.floor_ms
            or known < horizon.forgotten_ids
            or 0 < record.floor_ms <= record.forgotten_ms
            or dedup_ms is None
            or (horizon.floor_ms < record.floor_ms > record.at_ms - dedup_ms)
        ):
            self._found.add("horizon", f"position {position}", "a horizon that forgets too much")
            return
        horizon.floor_ms, horizon.forgotten_ids = record.floor_ms, known
        horizon.ids_at = {at: n for at, n in horizon.ids_at.items() if at >= record.forgotten_ms}
        horizon.ids_at[record.at_ms] = self.facts.ids.get(record.topic_number, (0, 0))[0]

    # --- grants ----------------------------------------------------------------------------------

    def _grant(self, producer: str, epoch: int) -> None:
        known = self.facts.epochs.get(producer, 0)
        if epoch <= known:
            self._found.add(
                "I10-zombie-fenced", f"producer {producer}", f"epoch {epoch} follows epoch {known}"
            )
        self.facts.epochs[producer] = epoch

    def _group_grant(self, record: GroupGrant) -> None:
        key = (record.group, record.topic, record.partition)
        self._grant(output_producer(*key), record.epoch)
        grants = self.facts.grants.setdefault(key, {})
        last = max(grants.values(), key=lambda grant: grant.epoch, default=None)
        where = f"group {record.group} {record.topic}/{record.partition}"
        meant = record.epoch in self.facts.replaced.get(key, ())
        if last is not None and record.ledger_id != last.ledger_id and not meant:
            self._found.add("one-ledger", where, f"epoch {record.epoch} has another ledger")
        reported = self._reported.get(key, 0)
        if record.next_offset < reported:
            self._found.add(
                "I8-commit-monotone",
                where,
                f"granted at offset {record.next_offset} after {reported}",
            )
        self._reported[key] = record.next_offset
        grants[record.epoch] = record

    # --- batches ---------------------------------------------------------------------------------

    def _stored(self, record: Stored, position: int) -> None:
        facts = self.facts
        if record.topic_number not in facts.topics or record.topic_number in facts.deleted:
            self._found.add("log-shape", f"position {position}", "a batch of an unknown topic")
            return
        topic = facts.topics[record.topic_number]
        where = f"{topic.topic}/{record.partition}"
        place = (record.topic_number, record.partition)
        partition = facts.partitions.setdefault(place, Partition())
        if record.partition >= topic.partitions:
            self._found.add("log-shape", where, f"there are {topic.partitions} partitions")
        if record.first_offset != partition.end_offset:
            self._found.add(
                "I6-offsets",
                where,
                f"offset {record.first_offset} at position {position} follows "
                + (f"{partition.end_offset - 1}" if partition.end_offset else "nothing"),
            )
        if record.at_ms < partition.last_at_ms:
            self._found.add("I6-offsets", where, f"time goes back at offset {record.first_offset}")
        partition.end_offset = record.end_offset
        partition.last_at_ms = record.at_ms
        facts.batches += 1
        facts.masked += bool(record.mask)
        batch = _batch_of(record)
        self._check_epoch(record, where)
        self._keeper.stored(record, batch, topic.topic)
        if record.first_sequence >= 0:
            self._sequence(record, topic.topic, place, where, position)
        else:
            self._explicit(record, batch, topic.topic, where, position)

    def _check_epoch(self, record: Stored, where: str) -> None:
        live = self.facts.epochs.get(record.producer, 0) if record.producer else 0
        if record.epoch != live:
            self._found.add(
                "I10-zombie-fenced",
                where,
                f"offset {record.first_offset} is of epoch {record.epoch} of producer "
                f"{record.producer!r}, whose live epoch was {live}",
            )

    def _sequence(
        self, record: Stored, topic: str, place: Place, where: str, position: int
    ) -> None:
        """A batch with numbers: they go on where the last ones ended; only a front is known."""
        row = (record.producer, *place)
        expected = self.facts.next_sequence.get(row, 0)
        first_new = record.first_sequence + record.count - record.kept
        tail_kept = not record.mask or record.kept_indices()[0] == record.count - record.kept
        if first_new != expected or not tail_kept:
            check = "I3-no-duplicate" if first_new < expected else "I5-producer-order"
            self._found.add(
                check,
                where,
                f"number {first_new} of producer {record.producer} at offset "
                f"{record.first_offset}, {expected} is expected",
                [sequence_id(topic, record.producer, record.partition, first_new)],
            )
        self.facts.next_sequence[row] = first_new + record.kept
        self._sequence_rows(record, topic, place, position)

    def _sequence_rows(self, record: Stored, topic: str, place: Place, position: int) -> None:
        first_new = record.first_sequence + record.count - record.kept
        shown = self.facts.shown_sequence
        row = (record.producer, *place)
        shown[row] = min(shown.get(row, first_new), record.first_sequence)
        if record.producer.startswith("@"):
            self._rows.output(
                (record.producer, topic, record.partition),
                record.first_sequence,
                record.count,
                record.crc,
                IN_LOG,
                position,
            )
        for ledger in self._ledgers.get((topic, record.partition), ()):
            low, high = self._clip(ledger, record)
            if low < high:
                first = first_new + low - record.first_offset
                self._rows.sequence_range(
                    ledger.number, record.producer, first, high - low, IN_LOG, low, high
                )

    def _explicit(
        self, record: Stored, batch: BatchView, topic: str, where: str, position: int
    ) -> None:
        """A batch with explicit ids: each id once in its topic."""
        ids = self._explicit_rows(record, batch, topic, where, position)
        if ids is None:
            return
        hashes = self._kept_hashes(record, batch)
        count, total = self.facts.ids.get(record.topic_number, (0, 0))
        self.facts.ids[record.topic_number] = (count + len(ids), total + sum(hashes))
        self._id_count += len(ids)
        place = record.partition << 48 | record.first_offset
        self._id_places += place * len(ids) + len(ids) * (len(ids) - 1) // 2

    def _kept_hashes(self, record: Stored, batch: BatchView) -> Sequence[int]:
        assert batch.hashes is not None, "a batch with ids has hashes"
        if not record.mask:
            return batch.hashes
        return array("Q", [batch.hashes[index] for index in record.kept_indices()])

    def _explicit_rows(
        self, record: Stored, batch: BatchView, topic: str, where: str, position: int
    ) -> list[bytes] | None:
        """Return the ids that were kept; None: the batch has none."""
        if batch.ids is None or batch.hashes is None:
            self._found.add("log-shape", where, f"no ids at offset {record.first_offset}")
            return None
        indices, ids = record.kept_indices(), batch.ids
        if record.mask:
            ids = [ids[index] for index in indices]
        self._rows.unique_ids(record.topic_number, position, self._named(record, batch), indices)
        for ledger in self._ledgers.get((topic, record.partition), ()):
            low, high = self._clip(ledger, record)
            if low < high:
                start = low - record.first_offset
                chosen = ids[start : start + high - low]
                if topic == ledger.private_topic:
                    chosen = [PRIVATE_ID_MARK + tagged for tagged in chosen]
                seed = seed_of(ledger.ledger_id)
                self._rows.stored_ids(ledger.number, seed, chosen, low, position)
        return list(ids)

    def _named(self, record: Stored, batch: BatchView) -> list[bytes]:
        """Return what no two messages of a topic have in common: ids, with a horizon also times."""
        assert batch.ids is not None, "as in a batch with explicit ids"
        indices = record.kept_indices()
        number = record.topic_number
        dedup_ms = self.facts.settings.get(number, _DEFAULTS)[0]
        dated = dedup_ms is not None or number in self.facts.horizons
        if not dated or batch.created_at_ms is None:
            return [batch.ids[index] for index in indices]
        times = batch.created_at_ms
        return [b"%b, created at %d" % (batch.ids[index], times[index]) for index in indices]

    def _clip(self, ledger: Ledger, record: Stored) -> tuple[int, int]:
        assert ledger.started is not None, "ledgers without a first record are left out"
        topic = self.facts.topics[record.topic_number]
        private = topic.topic == ledger.private_topic
        if not private:
            ledger.topic_number = record.topic_number
        start = 0 if private else ledger.started.start_offset
        end = ledger.parked.offsets.get(topic.topic_id, 0) if private else ledger.reached
        return max(record.first_offset, start), min(record.end_offset, end)

    # --- snapshots -------------------------------------------------------------------------------

    def _same_ids(self, head: SnapshotHead) -> bool:
        """Return whether a snapshot holds the ids of the records below it, at their places.

        Ids of deleted messages are among them. Raises CorruptLog: a file of the index is not what an
        index may rest on.
        """
        if any(part.name == "ids" for part in head.parts):
            held = self._ids_in(head)
            lost = self._may_lack()
            if lost and held is not None:
                return self._id_count - lost <= held[0] <= self._id_count
            return held == (self._id_count, self._id_places % 2**64)
        ids: dict[int, tuple[int, int]] = {}  # as snapshots of version 1 hold them
        for part in head.parts:
            kind, _, place = part.name.partition("-")
            if kind == "ids":
                number = int(place.partition("-")[0])
                names, _, hashes = unpack(self._log.snapshot_part(head, part.name))[:3]
                total = ids.get(number, (0, 0))
                ids[number] = (total[0] + len(names), total[1] + sum(hashes))
        return ids == self.facts.ids

    def _ids_in(self, head: SnapshotHead) -> tuple[int, int] | None:
        """Return how many ids a snapshot's index holds and the sum of their places.

        None: it has none. Raises CorruptLog.
        """
        parts = {part.name: part for part in head.parts}
        if "ids" not in parts:
            return None
        # numpy is loaded where there are explicit ids only
        from ..parse.run import sum_of_places

        mark, *rest = unpack(self._log.snapshot_part(head, "ids"))
        if len(rest) == 3:  # of version 3
            sets = [(rest[1], rest[2])]
        else:
            sets = [([run[0] for run in its[2]], its[3]) for its in rest[0]]
        count = places = 0
        for names, recent in sets:
            entries, sum_ = sum_of_places(recent)
            count, places = count + entries, places + sum_
            for name in names:
                for columns in self._log.run(parts[name], 4, mark):
                    count += columns.shape[1]
                    places += int(columns[2].sum())
        return count, places % 2**64

    def _may_lack(self) -> int:
        """Return how many ids an index may have let go: forgotten ones, and those of deleted topics."""
        facts = self.facts
        gone = sum(facts.ids.get(number, (0, 0))[0] for number in facts.deleted)
        forgotten = sum(
            horizon.forgotten_ids
            for number, horizon in facts.horizons.items()
            if number not in facts.deleted
        )
        before = self._ids_before if facts.deleted or facts.horizons else 0
        return gone + forgotten + before

    def _compare(self, head: SnapshotHead) -> None:
        """A snapshot says the same as the records below it."""
        log, facts = self._log, self.facts
        # Snapshots of version 3 have no settings, numbers and starts.
        topics = {
            topic[6][0] if topic[6:] else place: topic
            for place, topic in enumerate(unpack(log.snapshot_part(head, "topics")))
        }
        ends = {(number, row[0]): row[1] for number, topic in topics.items() for row in topic[4]}
        starts = {
            (number, row[0]): row[2] if row[2:] else 0
            for number, topic in topics.items()
            for row in topic[4]
        }
        settings = {number: tuple(topic[5]) for number, topic in topics.items() if topic[5:]}
        expected = {number: facts.settings.get(number, _DEFAULTS) for number in settings}
        producers = unpack(log.snapshot_part(head, "producers"))
        rows = {(p[0], row[0], row[1]): row[2] for p in producers for row in p[4]}
        known = {place: its.end_offset for place, its in facts.partitions.items()}
        known_starts = {place: its.start for place, its in facts.partitions.items()}
        living = {n: topic.topic for n, topic in facts.topics.items() if n not in facts.deleted}
        groups = unpack(log.snapshot_part(head, "groups"))
        grants = {(g[0], g[1], g[2]): g[3] for g in groups}
        named = {part.name for part in head.parts}
        marks = unpack(log.snapshot_part(head, "history")) if "history" in named else []
        pairs = (
            ("topics", {number: topic[0] for number, topic in topics.items()} == living),
            ("settings", settings == expected),
            ("end offsets", ends == known),
            ("start offsets", starts == known_starts),
            ("epochs", {p[0]: p[1] for p in producers} == facts.epochs),
            ("numbers", rows == facts.next_sequence),
            ("ids", self._same_ids(head)),
            ("marks", [(mark, at) for mark, at in marks] == facts.marks),
            ("grants", grants == {key: max(by) for key, by in facts.grants.items()}),
        )
        wrong = [what for what, same in pairs if not same]
        if wrong:
            self._found.add(
                "I13-atomicity",
                log.directory,
                f"the snapshot at {head.position} differs from the records in {', '.join(wrong)}",
            )


def _batch_of(record: Stored) -> BatchView:
    """Raises BadBatch."""
    batch = parse_batch(record.raw)
    if batch.count != record.count:
        raise BadBatch("a batch with another number of messages than its record says")
    return batch
