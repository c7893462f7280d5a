"""Comparing sorted rows: what a ledger says it processed, and what the log holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from operator import itemgetter
from struct import unpack_from

from ...ids import sequence_id
from ..findings import Findings, shown_id
from ..parse.batch import parse as parse_batch
from ..parse.frames import Frame
from ..parse.records import Stored, parse
from .facts import Ledger
from .log import BrokerLog
from .rows import ID, IN_LOG, OUTPUT, RANGE, UNIQUE, Rows

Fetch = Callable[[int], Frame]  # the record at a position of the broker's log

_HASH = itemgetter(slice(0, 16))
_FINGERPRINT = itemgetter(slice(0, 20))  # ledger and fingerprint


def compare_unique(rows: Rows, log: BrokerLog, fetch: Fetch, found: Findings) -> None:
    """Every explicit id stands once in its topic; where hashes meet, the ids are compared."""
    before = b""
    meeting: list[bytes] = []
    for row in rows.unique.sorted():
        if row[:16] == before:
            meeting.append(row)
            continue
        if len(meeting) > 1:
            _judge_meeting(meeting, log, fetch, found)
        before = row[:16]
        meeting = [row]
    if len(meeting) > 1:
        _judge_meeting(meeting, log, fetch, found)


def _judge_meeting(meeting: list[bytes], log: BrokerLog, fetch: Fetch, found: Findings) -> None:
    seen: dict[tuple[int, bytes], str] = {}
    for row in meeting:
        _, topic, position, index = UNIQUE.unpack(row)
        record = parse(fetch(position))
        assert isinstance(record, Stored), "rows are made of stored batches"
        ids = parse_batch(record.raw).ids
        assert ids is not None, "rows are made of explicit ids"
        offset = record.first_offset + list(record.kept_indices()).index(index)
        place = f"{log.topics[topic].topic}/{record.partition} offset {offset}"
        tagged = ids[index]
        first = seen.setdefault((topic, tagged), place)
        if first != place:
            found.add("I3-no-duplicate", place, f"the id stands at {first} too", [shown_id(tagged)])


def compare_ids(rows: Rows, ledgers: dict[int, Ledger], fetch: Fetch, found: Findings) -> None:
    """Each explicit id below a ledger's offset was processed in one commit, and in no other."""
    for _, same in groupby(rows.ids.sorted(), key=_FINGERPRINT):
        group = list(same)
        if len(group) == 2 and group[0][20] == IN_LOG and group[1][20] != IN_LOG:
            offset = unpack_from(">Q", group[0], 21)[0]
            first, following = unpack_from(">QQ", group[1], 21)
            if first <= offset < following:
                continue
        _judge_id(group, ledgers, fetch, found)


def _judge_id(
    group: list[bytes], ledgers: dict[int, Ledger], fetch: Fetch, found: Findings
) -> None:
    rows = [ID.unpack(row) for row in group]
    ledger = ledgers.get(rows[0][0])
    if ledger is None:
        return  # an attempt at reading that was given up
    places = [(row[4], row[3]) for row in rows if row[2] == IN_LOG]
    stored = [offset for _, offset in places]
    commits = [(row[3], row[4]) for row in rows if row[2] != IN_LOG]
    ids = [shown_id(stored_id(fetch, *place)) for place in places] or ["0x" + rows[0][1].hex()]
    if len(commits) > 1:
        spans = ", ".join(f"[{first}, {following})" for first, following in commits)
        explanation = f"processed {len(commits)} times, by the commits of offsets {spans}"
        found.add("I7-effect-once", ledger.where, explanation, ids)
    elif not commits and _excused(ledger, fetch, *places[0]):
        return
    elif not commits:
        explanation = f"offset {stored[0]} is committed, its message was not processed"
        found.add("I8-commit-covers", ledger.where, explanation, ids)
    elif not stored and commits[0][0] < ledger.shown_from:
        return  # its message was deleted
    elif not stored:
        explanation = f"processed by the commit of {commits[0]}, but not in the log there"
        found.add("I4-no-invention", ledger.where, explanation, ids)
    elif not commits[0][0] <= stored[0] < commits[0][1]:
        explanation = f"offset {stored[0]} was processed by the commit of {commits[0]}"
        found.add("I12-order", ledger.where, explanation, ids)


def _excused(ledger: Ledger, fetch: Fetch, position: int, offset: int) -> bool:
    """Whether an operator moved the ledger over a message, or back below it."""
    record = parse(fetch(position))
    assert isinstance(record, Stored), "rows are made of stored batches"
    return record.topic_number == ledger.topic_number and not ledger.missing(offset, offset + 1)


def stored_id(fetch: Fetch, position: int, offset: int) -> bytes:
    """Return the tagged id at `offset`, which the record at `position` holds."""
    record = parse(fetch(position))
    assert isinstance(record, Stored), "rows are made of stored batches"
    ids = parse_batch(record.raw).ids
    assert ids is not None, "rows are made of explicit ids"
    return ids[record.kept_indices()[offset - record.first_offset]]


def compare_ranges(rows: Rows, ledgers: dict[int, Ledger], found: Findings) -> None:
    """Each sequence id below a ledger's offset was processed in one commit, and in no other."""
    for (number, producer), group in groupby(
        map(RANGE.unpack, rows.ranges.sorted()), key=itemgetter(0, 1)
    ):
        ledger = ledgers.get(number)
        if ledger is not None:
            _Sweep(ledger, str(rows.producers.names[producer]), found).run(group)


class _Sweep:
    """Goes over the numbers of one producer in one ledger, both sides in step."""

    def __init__(self, ledger: Ledger, producer: str, found: Findings) -> None:
        self._ledger = ledger
        self._producer = producer
        self._found = found
        # What each side still has to match: [first, end, offset of first] and [first, end, a, b].
        self._stored: list[list[int]] = []
        self._committed: list[list[int]] = []
        self._ends = {True: 0, False: 0}

    def run(self, rows: Iterator[tuple[int, ...]]) -> None:
        for _, _, first, side, count, a, b in rows:
            in_log = side == IN_LOG
            if first < self._ends[in_log] and not in_log:
                end = min(self._ends[in_log], first + count)
                self._tell(
                    "I7-effect-once", first, end, f"processed again by the commit of [{a}, {b})"
                )
                count -= end - first
                first = end
            if count <= 0:
                continue
            self._ends[in_log] = max(self._ends[in_log], first + count)
            (self._stored if in_log else self._committed).append([first, first + count, a, b])
            self._match()
        self._rest()

    def _match(self) -> None:
        while self._stored and self._committed:
            stored, committed = self._stored[0], self._committed[0]
            if stored[0] < committed[0]:
                self._only_stored(stored, min(stored[1], committed[0]))
            elif committed[0] < stored[0]:
                self._only_committed(committed, min(committed[1], stored[0]))
            else:
                end = min(stored[1], committed[1])
                last = stored[2] + end - stored[0]
                if not committed[2] <= stored[2] <= last <= committed[3]:
                    self._tell(
                        "I12-order",
                        stored[0],
                        end,
                        f"offset {stored[2]} was processed by the commit of "
                        f"[{committed[2]}, {committed[3]})",
                    )
                self._advance(stored, end)
                committed[0] = end
            if stored[0] >= stored[1]:
                self._stored.pop(0)
            if committed[0] >= committed[1]:
                self._committed.pop(0)

    def _advance(self, stored: list[int], end: int) -> None:
        stored[2] += end - stored[0]
        stored[0] = end

    def _only_stored(self, stored: list[int], end: int) -> None:
        at = stored[2] - stored[0]
        for first, following in self._ledger.missing(stored[2], end + at):
            explanation = f"offset {first} is committed, its message was not processed"
            self._tell("I8-commit-covers", first - at, following - at, explanation)
        self._advance(stored, end)

    def _only_committed(self, committed: list[int], end: int) -> None:
        if committed[2] < self._ledger.shown_from:  # their messages were deleted
            committed[0] = end
            return
        place = f"[{committed[2]}, {committed[3]})"
        explanation = f"processed by the commit of {place}, but not in the log there"
        self._tell("I4-no-invention", committed[0], end, explanation)
        committed[0] = end

    def _rest(self) -> None:
        for stored in self._stored:
            self._only_stored(stored, stored[1])
        for committed in self._committed:
            self._only_committed(committed, committed[1])

    def _tell(self, check: str, first: int, end: int, explanation: str) -> None:
        _, topic, partition = self._ledger.place
        shown = range(first, min(end, first + 3))
        ids = [sequence_id(topic, self._producer, partition, number) for number in shown]
        more = f" ({end - first} messages)" if end - first > 1 else ""
        self._found.add(check, self._ledger.where, explanation + more, ids)


def compare_outputs(rows: Rows, owners: dict[str, Ledger], log: BrokerLog, found: Findings) -> int:
    """Every batch of outputs in the log comes from a commit; every acknowledged one is there.

    Returns how many outgoing messages are committed and not in the log yet.
    """
    pending = 0
    for (target, first), same in groupby(
        map(OUTPUT.unpack, rows.outputs.sorted()), key=itemgetter(0, 1)
    ):
        name = rows.targets.names[target]
        assert isinstance(name, tuple)
        producer, topic, partition = name
        ledger = owners.get(producer)
        sides: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
        for _, _, side, count, crc, _ in same:
            sides[side == IN_LOG].add((count, crc))
        where = f"{topic}/{partition}"
        ids = [sequence_id(topic, producer, partition, first)]
        if sides[True] == sides[False]:
            continue
        if not sides[False]:
            if ledger is not None and _is_own(ledger, (topic, partition), first):
                explanation = "the log holds outputs that no commit of their group made"
                found.add("I11-outputs-once", where, explanation, ids)
        elif not sides[True]:
            if ledger is None or log.shows_no(producer, topic, partition, first):
                continue
            if first < ledger.acked.get((topic, partition), 0):
                explanation = "outputs were acknowledged and are not in the log"
                found.add("I1-acked-not-lost", where, explanation, ids)
            pending += sum(count for count, _ in sides[False])
        else:
            explanation = "the log holds other outputs than the commit made"
            found.add("I11-outputs-once", where, explanation, ids)
    return pending


def _is_own(ledger: Ledger, target: tuple[str, int], number: int) -> bool:
    """Return whether the records of the ledger would tell of an output with this number."""
    if number < ledger.known_from.get(target, 0):
        return False
    return not any(first <= number < end for first, end in ledger.foreign.get(target, ()))
