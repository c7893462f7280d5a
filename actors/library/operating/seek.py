"""Moving the offset of a group: what `oncemq groups seek` and `reset` do.

The command is an owner like any other: it joins each partition, is granted an epoch, opens that
generation of the ledger and makes one commit. So no other owner works there meanwhile, a frozen
owner is fenced as at any takeover, and a command that is killed half-way has moved some partitions
entirely and the others not at all. It takes all partitions before it moves the first one.

A move is also the way out where the broker's log has another past than a ledger relied on, because
one of them was restored from a backup: the ledger relies on the log as it is from then on.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from ...core.consumer.grant import join_with
from ...errors import (
    Fenced,
    GroupInUse,
    LedgerNotHere,
    LogRegressed,
    NotSupported,
    OffsetOutOfRange,
    OnceMQError,
    UnknownTopic,
)
from ...ids import check_name, output_producer, private_topic
from ...ports import Events
from ...protocol import Standby
from ...runtime.clock import SystemClock
from ...runtime.os_disk import OsDisk
from ...runtime.process import draw, own_label, owner_facts
from ...shells.consumer import LedgerDoor
from ...shells.ledger.files import LedgerFiles, ledger_directory
from ...shells.seeker import SeekerShell
from ..sinks.opening import open_sink
from ..sinks.reading import address_of
from .client import AdminClient

EARLIEST, LATEST = "earliest", "latest"


@dataclass(frozen=True, slots=True)
class Moved:
    """The move of one partition."""

    partition: int
    first_offset: int  # committed offset before
    next_offset: int  # committed offset from now on
    accepted: str = (
        ""  # how the log differs from the one that the ledger relied on; "": it does not
    )


@dataclass(frozen=True, slots=True)
class LostLedger:
    """A partition whose ledger the broker knows, and which is not the one at hand."""

    topic: str
    partition: int
    committed: int  # by the ledger that the broker knows, as far as that was reported
    end: int  # of the partition
    host: str  # of that ledger
    path: str
    next_offset: int  # of the ledger at hand
    replayed: int  # dead letters that were replayed to this group
    in_place: bool  # the ledger at hand is empty, and in the very place that the broker knows

    def handled_again(self, offset: int) -> int:
        """Return how many messages may be handled again if the partition goes on at `offset`."""
        return max(0, self.committed - offset)


class Seeker:
    """Moves offsets of groups. Use it in a `with`; not thread-safe."""

    def __init__(
        self, endpoint: str, state: str, events: Events, *, sink: str | None = None
    ) -> None:
        """Ask the broker at `endpoint`; ledgers are below the directory `state`.

        With `sink` they are in that database. Raises BadSink, NotSupported.
        """
        if sink is not None:
            address_of(sink)  # refuse a bad URL before the broker is asked
        self._sink = sink
        self._client = AdminClient(endpoint)
        self._state = os.path.abspath(state)  # as consumers name it: see `maker_of`
        self._events = events
        self._label = f"seek by {own_label()}"
        self._disk = OsDisk()
        # What the broker said against a ledger that relied on another past, by partition.
        self._accepted: dict[int, str] = {}
        # As whom a partition was joined.
        self._incarnations: dict[int, bytes] = {}
        self._taken: list[SeekerShell] = []

    def __enter__(self) -> Seeker:
        return self

    def __exit__(self, _kind: object, error: object, _trace: object) -> None:
        try:
            self._give_back(clean=error is None)
        finally:
            self._client.close()

    def targets(self, topic: str, to: str | int, partition: int | None = None) -> dict[int, int]:
        """Return the offset for each partition: `to` is an offset, EARLIEST or LATEST.

        Raises UnknownTopic, OffsetOutOfRange, NoAnswer.
        """
        chosen: dict[int, int] = {}
        for number, start, end in self._bounds(topic, partition):
            offset = {EARLIEST: start, LATEST: end}.get(to, to) if isinstance(to, str) else to
            assert isinstance(offset, int), f"{to!r} is no place"
            if not start <= offset <= end:
                why = "was deleted by retention" if 0 <= offset < start else "does not exist"
                raise OffsetOutOfRange(
                    f"{topic}/{number} has offsets {start} to {end}; offset {offset} {why}"
                )
            chosen[number] = offset
        return chosen

    def at_time(self, topic: str, at_ms: int, partition: int | None = None) -> dict[int, int]:
        """Return for each partition the first offset that was appended at `at_ms` or later."""
        return {
            number: self._first_since(topic, number, start, end, at_ms)
            for number, start, end in self._bounds(topic, partition)
        }

    def _bounds(self, topic: str, partition: int | None) -> Iterator[tuple[int, int, int]]:
        """Yield each partition with its first offset and its end."""
        described = self._client.describe_topic(topic)
        ends = described.end_offsets
        starts = described.start_offsets or (0,) * len(ends)
        if partition is None:
            yield from zip(range(len(ends)), starts, ends, strict=True)
        elif partition < len(ends):
            yield partition, starts[partition], ends[partition]
        else:
            raise OffsetOutOfRange(
                f"topic {topic} has {len(ends)} partitions; partition {partition} does not exist"
            )

    def _first_since(self, topic: str, partition: int, start: int, end: int, at_ms: int) -> int:
        """Search by halves: times of stored batches never go back in a partition."""
        low, high = start, end
        while low < high:
            middle = (low + high) // 2
            _, stored = self._client.fetch(topic, partition, middle, max_bytes=1)
            batch = stored[0]  # the one that contains `middle`
            if batch.at_ms >= at_ms:
                high = min(middle, batch.first_offset)
            else:
                low = batch.first_offset + batch.kept
        return low

    def lost(self, group: str, topic: str, partitions: Iterable[int]) -> list[LostLedger]:
        """Return the partitions whose ledger is another one than that at hand. Moves nothing.

        Raises what `seek` raises, but for LedgerNotHere.
        """
        check_name(group, "group")
        found = []
        for partition in sorted(partitions):
            try:
                self._take(group, topic, partition)
            except LedgerNotHere:
                found.append(self._lost((group, topic, partition)))
        self._give_back(clean=True)
        return found

    def _lost(self, place: tuple[str, str, int]) -> LostLedger:
        group, topic, partition = place
        door = self._door(place)
        try:
            facts = door.peek()
        finally:
            door.close()
        host, path, committed, end = facts.host, facts.path, 0, 0  # of an earlier topic of the name
        for row in self._client.group(group).partitions:
            if row[:2] == (topic, partition):
                host, path, committed, end = row[4], row[5], row[8], row[9]
        try:
            ends = self._client.describe_topic(private_topic(topic, group)).end_offsets
        except UnknownTopic:
            ends = ()
        replayed = ends[partition] if partition < len(ends) else 0
        here = (facts.host, facts.path) == (host, path)
        in_place = here and not facts.topic_id_seen
        return LostLedger(
            topic, partition, committed, end, host, path, facts.next_offset, replayed, in_place
        )

    def seek(
        self,
        group: str,
        topic: str,
        offsets: Mapping[int, int],
        reason: str,
        *,
        replaces: Container[int] = (),
    ) -> list[Moved]:
        """Move the group in each partition of `offsets`; durable when this returns.

        In the partitions of `replaces` the ledger at hand takes the place of the group's own, which
        is lost. Raises GroupInUse: a live consumer owns one of them, and nothing was moved; and
        LedgerNotHere, Fenced, CorruptLog, DiskFull, NoAnswer, NotSupported.
        """
        check_name(group, "group")
        try:
            for partition in sorted(offsets):
                self._take(group, topic, partition, replaces=partition in replaces)
        except OnceMQError:
            self._give_back(clean=False)
            raise
        moved = []
        for taken in self._taken:
            offset, first = offsets[taken.place[2]], taken.core.ledger.next_offset
            # The broker expects of a replacing ledger what it knows of the lost one, until the rewind.
            if offset < first or taken.place[2] in replaces:
                self._client.rewind(*taken.place, taken.core.epoch, offset)
            if offset != first or taken.core.accepts:
                taken.move(offset, reason, self._expected(taken))
            moved.append(
                Moved(taken.place[2], first, offset, self._accepted.pop(taken.place[2], ""))
            )
        self._give_back(clean=True)
        return moved

    def _expected(self, taken: SeekerShell) -> dict[tuple[str, int], int]:
        """Return what the broker expects next of the outputs, if another past is accepted."""
        return self._next_sequences(taken.place) if taken.core.accepts else {}

    def _next_sequences(self, place: tuple[str, str, int]) -> dict[tuple[str, int], int]:
        nonce = self._incarnations[place[2]]
        return self._client.next_sequences(output_producer(*place), nonce)

    def _check_may_replace(self) -> None:
        if not self._client.knows_places:
            raise NotSupported(
                "this broker is of an earlier version and knows no way to replace a lost ledger",
                hint="upgrade the broker",
            )

    def _take(self, group: str, topic: str, partition: int, *, replaces: bool = False) -> None:
        place = (group, topic, partition)
        door = self._door(place)
        try:
            nonce = self._incarnations[partition] = draw()
            join = join_with(
                door.peek(), 0, place, nonce, self._label, marked=self._client.knows_places
            )
            if replaces:
                self._check_may_replace()
                join = replace(join, replaces=True)
            accepts = False
            try:
                answer = self._client.join(join)
            except LogRegressed as error:
                if not self._client.knows_places:
                    raise
                accepts, self._accepted[partition] = True, error.reason
                answer = self._client.join(replace(join, accepts=True))
            if isinstance(answer, Standby):
                raise GroupInUse(
                    f"{topic}/{partition} of group {group} is held by {answer.owner}, whose lease "
                    f"runs for {answer.lease_left_ms / 1000:g} s; nothing was moved"
                )
            numbers = self._next_sequences(place) if replaces else None
        except BaseException:
            door.close()
            raise
        taken = SeekerShell(
            place,
            answer,
            ledger=door,
            accepts=accepts,
            replaces=numbers,
            clock=SystemClock(),
            events=self._events,
        )
        self._taken.append(taken)
        taken.open()

    def _door(self, place: tuple[str, str, int]) -> LedgerDoor:
        if self._sink is not None:
            return open_sink(self._sink, place)
        return LedgerFiles(
            self._disk,
            ledger_directory(self._state, *place),
            owner_facts(),
            draw=draw,
        )

    def _give_back(self, *, clean: bool) -> None:
        """Leave every partition, and let its ledger go first: the next owner need not wait."""
        while self._taken:
            taken = self._taken.pop()
            core = taken.core
            try:
                taken.close(clean=clean)
                self._client.leave(*taken.place, core.epoch, core.ledger.next_offset)
            except Fenced:  # somebody took over: what was committed before counts
                raise
            except OnceMQError:
                if clean:
                    raise
