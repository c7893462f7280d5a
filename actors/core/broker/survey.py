"""What operators watch: topics with their counts, groups with owner and lag, a page at a time.

Theory of operation. A page is made inside one turn, so its figures belong to one moment. Lag in time
is the age of the first message that a group has not committed. The offset index knows the time of a
batch for each step of log; where two entries lie close in time that is good enough. Else the batch
itself is read, a few in each page, and remembered for as long as the group stands there: a consumer
that stopped costs one read. What is not read yet is told by the entry before it, as older than it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import NamedTuple

from ...limits import SURVEY_ROWS_MAX, Limits
from ...outcome import Outcome, Read, Send
from ...protocol import Survey, Surveyed
from ...records import BatchStored
from .groups import Key
from .produce import Judge
from .state import BrokerState
from .topics import Partition, Topic

READ_TOKENS = 1 << 62  # from here on: below are those of fetches
_CLOSE_MS = 50  # between two entries of an index: no batch between them needs to be read


@dataclass(frozen=True, slots=True)
class SurveyWanted:
    """Event: this process wants a page for itself; SurveyMade answers it in the same turn."""

    request: Survey


@dataclass(frozen=True, slots=True)
class SurveyMade:
    """Work: the page that this process wanted."""

    page: Surveyed


class _Row(NamedTuple):
    """A line of a page: a topic (`key` None), or a grant of it."""

    topic: Topic
    key: Key | None


class _Waiting(NamedTuple):
    """The first message that a group has not committed."""

    key: Key
    topic: Topic
    partition: Partition
    offset: int


@dataclass(slots=True)
class _Page:
    """A page that is being made: `reads` are under way."""

    peer: bytes | None  # None: for this process
    request: Survey
    rows: list[_Row]
    more: bool
    reads: dict[int, _Waiting] = field(default_factory=dict)


class Surveyor:
    """Makes pages of a survey."""

    def __init__(
        self, state: BrokerState, judge: Judge, limits: Limits, broker_ms: Callable[[], int]
    ) -> None:
        self._state = state
        self._judge = judge
        self._limits = limits
        self._broker_ms = broker_ms
        # Number of the topic, offset and time of the first message that a group has not committed.
        # Invariant: at most as many as there are grants, and one page.
        self._stored_at: dict[Key, tuple[int, int, int]] = {}
        # Invariant: None between two steps that are no reads: a read is answered at once.
        self._page: _Page | None = None
        self._now_ms = 0

    def ask(self, peer: bytes | None, request: Survey, now_ms: int, out: Outcome) -> None:
        assert self._page is None, "a page is made within one event"
        self._now_ms = now_ms
        rows = self._rows_behind((request.topic, request.group, request.partition))
        page = _Page(peer, request, rows[:SURVEY_ROWS_MAX], len(rows) > SURVEY_ROWS_MAX)
        for row in page.rows:
            waiting = self._waiting(row)
            if waiting is None or len(page.reads) >= self._limits.survey_reads_max:
                continue
            if self._known(waiting) is None:
                token = READ_TOKENS + len(page.reads)
                page.reads[token] = waiting
                position = waiting.partition.position_of(waiting.offset)
                assert position is not None, "a durable offset has an entry at or before it"
                out.reads.append(Read(token, position, self._limits.offset_index_step_bytes))
        if page.reads:
            self._page = page
        else:
            self._answer(page, out)

    def read_done(self, token: int, found: list[tuple[int, BatchStored]], out: Outcome) -> None:
        page = self._page
        assert page is not None, "reads belong to the page that is being made"
        key, topic, partition, offset = page.reads.pop(token)
        for _, record in found:
            here = (record.topic_number, record.partition) == (topic.number, partition.number)
            if here and record.first_offset <= offset < record.first_offset + record.kept:
                self._stored_at[key] = (topic.number, offset, record.at_ms)
                break
        if not page.reads:
            self._page = None
            self._answer(page, out)

    # --- inside ----------------------------------------------------------------------------------

    def _rows_behind(self, after: tuple[str, str, int]) -> list[_Row]:
        """Return the rows behind a place, one more than a page has."""
        by_name, of_topic = self._state.topics.by_name, self._state.groups.of_topic
        rows: list[_Row] = []
        most = SURVEY_ROWS_MAX + 1
        for name in nsmallest(most, (name for name in by_name if name >= after[0])):
            topic = by_name[name]
            if (name, "", 0) > after:
                rows.append(_Row(topic, None))
            keys = sorted(of_topic.get(name, ()))
            rows += [_Row(topic, key) for key in keys if (name, key[0], key[2]) > after]
            if len(rows) >= most:
                break
        return rows[:most]

    def _waiting(self, row: _Row) -> _Waiting | None:
        topic, key = row
        if key is None:
            return None
        partition = topic.partition(key[2])
        committed = self._state.groups.leases[key].committed
        offset = max(committed, partition.log_start_offset)
        if offset >= partition.durable_end_offset:
            return None
        return _Waiting(key, topic, partition, offset)

    def _known(self, waiting: _Waiting) -> int | None:
        """Return when the message was stored, to within _CLOSE_MS; None: its batch must be read."""
        key, topic, partition, offset = waiting
        number, at, at_ms = self._stored_at.get(key, (-1, -1, 0))
        if (number, at) == (topic.number, offset):
            return at_ms
        low_ms, high_ms = partition.index.times_around(offset)
        if high_ms is None:
            high_ms = partition.last_at_ms
        return low_ms if high_ms - low_ms <= _CLOSE_MS else None

    def _waited_ms(self, waiting: _Waiting, at_ms: int) -> int:
        stored_at = self._known(waiting)
        if stored_at is None:
            stored_at, _ = waiting.partition.index.times_around(waiting.offset)
        return max(0, at_ms - stored_at)

    def _answer(self, page: _Page, out: Outcome) -> None:
        at_ms = self._broker_ms()
        topics = tuple(_topic_row(row.topic) for row in page.rows if row.key is None)
        grants = tuple(
            self._grant_row(row, row.key, at_ms) for row in page.rows if row.key is not None
        )
        surveyed = Surveyed(
            page.request.request,
            at_ms,
            self._state.durable_end,
            self._judge.disk_full,
            topics,
            grants,
            page.more,
        )
        all_grants = self._state.groups.grants
        if len(self._stored_at) > len(all_grants):
            self._stored_at = {k: v for k, v in self._stored_at.items() if k in all_grants}
        if page.peer is None:
            out.work.append(SurveyMade(surveyed))
        else:
            out.sends_after_sync.append(Send(page.peer, surveyed))

    def _grant_row(
        self, row: _Row, key: Key, at_ms: int
    ) -> tuple[str, str, int, int, str, bool, int, int, int]:
        groups = self._state.groups
        grant, lease = groups.grants[key], groups.leases[key]
        waiting = self._waiting(row)
        return (
            *key,
            grant.epoch,
            grant.label,
            groups.live(key, self._now_ms),
            lease.committed,
            row.topic.partition(key[2]).end_offset,
            0 if waiting is None else self._waited_ms(waiting, at_ms),
        )


def _topic_row(topic: Topic) -> tuple[str, int, int, int, int, int, int, int, int, int]:
    used = topic.by_number.values()
    return (
        topic.name,
        topic.partitions,
        sum(one.durable_end_offset for one in used),
        sum(topic.messages),
        sum(one.bytes_stored for one in used),
        sum(one.bytes_stored - one.bytes_trimmed for one in used),
        topic.ids,
        topic.duplicates,
        topic.conflicts,
        topic.refused,
    )
