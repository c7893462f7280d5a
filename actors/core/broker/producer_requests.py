"""Requests about producers' names: grant an epoch, list, retire.

Each method answers one request, or raises what refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest

from ...errors import Busy, DiskFull, InvalidName, ProducerInUse, ProtocolError, UnknownProducer
from ...ids import INTERNAL_MARK, check_name
from ...limits import LABEL_CHARS_MAX, PRODUCERS_LISTED_MAX, Limits
from ...outcome import Outcome, Send
from ...protocol import (
    InitProducer,
    ListProducers,
    ProducerReady,
    ProducersListed,
    Retired,
    RetireProducer,
)
from ...records import ProducerGranted, ProducerRetired
from ...topic_settings import duration_text
from .produce import NO_ROOM, Judge
from .state import BrokerState

_NONCE_BYTES = 16
_NUMBERS_LISTED = 10  # partitions of a producer that a list names


class ProducerRequests:
    """The broker's answers about producers."""

    def __init__(
        self, state: BrokerState, judge: Judge, limits: Limits, broker_ms: Callable[[], int]
    ) -> None:
        self._state = state
        self._judge = judge
        self._limits = limits
        self._broker_ms = broker_ms

    def init(self, peer: bytes, request: InitProducer, out: Outcome) -> None:
        """Grant the next epoch to a new incarnation; repeat the epoch of a known one.

        An output producer is granted together with its group's partition: here it only learns its
        next numbers.
        """
        name = request.producer
        producers = self._state.producers
        if len(request.nonce) != _NONCE_BYTES:
            raise ProtocolError("a nonce is 16 random bytes")
        output = name.startswith(INTERNAL_MARK)
        if not output:
            check_name(name, "producer")
        epoch = producers.granted_epoch(name, request.nonce)
        if epoch is None:
            if output:
                raise UnknownProducer(
                    f"{name} was not granted to this incarnation", hint="join the group first"
                )
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            epoch = self._grant(request, out)
        known = producers.by_name.get(name)
        its = {} if known is None else known.numbers_and_digests()
        rows = tuple(
            (self._state.topics.by_number[topic_number].name, partition, number, digest)
            for (topic_number, partition), (number, digest) in sorted(its.items())
        )
        out.sends_after_sync.append(Send(peer, ProducerReady(request.request, epoch, rows)))

    def _grant(self, request: InitProducer, out: Outcome) -> int:
        name = request.producer
        known = self._state.producers.by_name.get(name)
        most = self._limits.producers_max
        is_more = known is None or known.kept is not None
        if is_more and len(self._state.producers) >= most:
            raise Busy(
                f"the broker holds {most} producer names and takes no more",
                hint="use a name again (a name is a role, not a run), or send without a name, "
                "each message with its id; retire idle names: oncemq producers retire --idle 30d",
            )
        epoch = 1 + (known.epoch if known else 0)
        label = request.label[:LABEL_CHARS_MAX]
        out.appends.append(ProducerGranted(name, epoch, request.nonce, label, self._broker_ms()))
        out.events.append(("producer.granted", {"producer": name, "epoch": epoch}))
        return epoch

    def list(self, peer: bytes, request: ListProducers, out: Outcome) -> None:
        by_name, topics = self._state.producers.by_name, self._state.topics.by_number
        behind = (name for name in by_name if name > request.after)
        names = nsmallest(PRODUCERS_LISTED_MAX + 1, behind)
        rows = []
        for name in names[:PRODUCERS_LISTED_MAX]:
            its = by_name[name]
            numbers = its.numbers_and_digests()
            first = tuple(
                (topics[topic].name, partition, numbers[topic, partition][0])
                for topic, partition in nsmallest(_NUMBERS_LISTED, numbers)
            )
            facts = (its.label, its.last_at_ms, its.memory_bytes(), its.kept is not None)
            rows.append((name, its.epoch, *facts, first, len(numbers)))
        more = len(names) > PRODUCERS_LISTED_MAX
        listed = ProducersListed(request.request, tuple(rows), more, self._broker_ms())
        out.sends_after_sync.append(Send(peer, listed))

    def retire(self, peer: bytes, request: RetireProducer, out: Outcome) -> None:
        """Raises UnknownProducer, InvalidName, ProducerInUse, Busy, DiskFull."""
        name, table = request.producer, self._state.producers
        known = table.by_name.get(name)
        if known is None:
            raise UnknownProducer(f"no producer is named {name!r}", hint="oncemq producers list")
        if name.startswith(INTERNAL_MARK):
            raise InvalidName(f"{name} belongs to a group, which relies on its numbers", hint="")
        if known.kept is None:
            idle_ms = self._broker_ms() - known.last_at_ms
            if idle_ms < request.idle_ms:
                raise ProducerInUse(
                    f"{name}, of {known.label}, stored something {duration_text(idle_ms)} ago"
                )
            if table.retired >= self._limits.producers_retired_max:
                raise Busy(
                    f"the broker holds {table.retired} retired names and takes no more",
                    hint="use names again: a name is a role, not a run",
                )
            if self._judge.disk_full:
                raise DiskFull(NO_ROOM)
            out.appends.append(ProducerRetired(name, self._broker_ms()))
            fields = {"producer": name, "epoch": known.epoch, "idle_ms": idle_ms}
            out.events.append(("producer.retired", fields))
        out.sends_after_sync.append(Send(peer, Retired(request.request, name)))
