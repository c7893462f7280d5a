"""The parts of a consumer that exist only while its ledger is open: inputs, handling, outputs."""

from __future__ import annotations

from ...errors import ProtocolError
from ...ids import dead_topic, output_producer
from ...limits import LEDGER_FILES_LOOK_MS
from ...outcome import Outcome
from ...protocol import Failure, Granted, TopicDescribed
from ...records import Committed, Output
from ..client.connection import Connection
from ..client.send_window import SendWindow
from .commits import Acked
from .fetch import Fetcher
from .grant import Member
from .handling import Handling
from .inputs import Input
from .ledger import Ledger
from .topics import DeadTopic, PrivateTopic
from .window import Fingerprint, Window

_PRIVATE_MARK = b"@"  # prefix of tagged ids, so that a private id never equals an id of the topic


class Running:
    """The parts of a consumer under one grant."""

    def __init__(
        self,
        member: Member,
        connection: Connection,
        ledger: Ledger,
        grant: Granted,
        partitions: int,
        fingerprint: Fingerprint,
    ) -> None:
        """Go on where `ledger` ends; the input topic has so many `partitions`."""
        self._member = member
        self._connection = connection
        self._ledger = ledger
        self._limits = ledger.limits
        self._grant = grant
        self._fingerprint = fingerprint
        place, epoch = member.place, grant.epoch
        log = (grant.log_id, grant.topic_id)
        offset = ledger.next_offset if ledger.started else grant.start_offset
        credit = self._limits.fetch_bytes_default
        self.fetcher = Fetcher(
            connection, place, epoch, log, offset, ledger.seen, fingerprint, credit
        )
        # Of the private topic; None while that does not exist.
        self.private: Fetcher | None = None
        # Whether a process may have died in a handler before. Read now: the first record of this
        # generation changes `ended`.
        # This very process wrote the last record, under `outlived`: it lives, and so nobody died.
        lives = member.outlived != 0 and ledger.epoch == member.outlived
        self._unclean = ledger.started is not None and not ledger.ended and not lives
        main = self._input(grant.topic_id, self.fetcher, private=False)
        self.handling = Handling(ledger, member, epoch, main)
        self.dead_topic = DeadTopic(connection, dead_topic(member.topic), partitions)
        self.private_topic = PrivateTopic(connection, member.private_topic)
        # Bytes of the outputs in the send window.
        self.output_bytes = 0
        # When to look whether ids that wait for a file hold up calls no more; None: they do not.
        self._look_again_ms: int | None = None
        # The last commit whose outputs the send window has.
        self._queued = ledger.commit_no
        self.send_window = SendWindow(
            connection,
            producer=output_producer(*place),
            epoch=epoch,
            batches_max=self._limits.in_flight_batches_max,
        )
        for (topic, partition), following in sorted(ledger.next_sequence.items()):
            outputs = ledger.unacked.get((topic, partition), ())
            first = outputs[0].first_sequence if outputs else following
            self.send_window.expect(topic, partition, first)
            for output in outputs:
                self._queue(output)

    @property
    def fetchers(self) -> list[Fetcher]:
        return [self.fetcher] if self.private is None else [self.fetcher, self.private]

    @property
    def caught_up(self) -> bool:
        """Whether the last replies reached the ends of all inputs; a held input counts as caught up."""
        looked = self.private_topic.looked
        held = {id(source.windows) for source in self.handling.inputs if source.held}
        return looked and all(f.caught_up or id(f.windows) in held for f in self.fetchers)

    @property
    def owed(self) -> bool:
        fetching = any(fetcher.owed for fetcher in self.fetchers)
        return fetching or self.send_window.owed or self.dead_topic.owed

    def wake_times(self, *, draining: bool) -> list[int | None]:
        times = [self.send_window.wake_at_ms, self.dead_topic.wake_at_ms]
        if draining:
            return times
        times += [self.private_topic.wake_at_ms, self._look_again_ms]
        if self.may_advance():
            times.append(self.handling.wake_at_ms)
        times += [fetcher.wake_at_ms for fetcher in self.fetchers if self._may_hold(fetcher)]
        return times

    def lost(self) -> None:
        """Send open requests again: the connection is new."""
        for fetcher in self.fetchers:
            fetcher.lost()
        self.dead_topic.lost()
        self.private_topic.lost()

    def may_call(self) -> bool:
        """Return whether there is room for the outputs and ids of another call."""
        return (
            self.send_window.messages < self._limits.outputs_unacked_max
            and self.output_bytes < self._limits.outputs_unacked_bytes_max
            and not self._ledger.processed.behind
        )

    def may_advance(self) -> bool:
        """Return whether `handling.advance` may be called, and so whether its deadlines count."""
        return self.handling.running is not None or self.may_call()

    def _may_hold(self, fetcher: Fetcher) -> bool:
        """Return whether one more reply may be held; the running call counts as one."""
        running = self.handling.running
        mine = running is not None and running.private == (fetcher is self.private)
        return len(fetcher.windows) + mine < self._limits.fetches_held_max

    def advance(self, now_ms: int, out: Outcome, acked: Acked) -> None:
        """Let handling go on, unless unacknowledged outputs or ids without a file are at their bound."""
        behind = self._ledger.processed.behind
        self._look_again_ms = now_ms + LEDGER_FILES_LOOK_MS if behind else None
        if self.may_advance():
            self.handling.advance(now_ms, out, acked)

    def ask(self, now_ms: int, out: Outcome) -> None:
        self.dead_topic.advance(now_ms, out, wanted=self.handling.wants_dead)
        self.private_topic.advance(now_ms, out)
        for fetcher in self.fetchers:
            if self._may_hold(fetcher):
                fetcher.ask(now_ms, out)

    def described(self, message: TopicDescribed | Failure, now_ms: int) -> None:
        """Take a possible answer about a topic. Raises an error that no retry mends."""
        self.dead_topic.received(message, now_ms)
        if self.dead_topic.partitions and self.handling.dead is None:
            partition = self._member.partition % self.dead_topic.partitions
            self.handling.dead = (self.dead_topic.topic, partition)
        self.private_topic.received(message, now_ms)
        found = self.private_topic.found
        if found is None or self.private is not None or self._member.partition >= found.partitions:
            return
        place = (self._member.group, found.topic, self._member.partition)
        log = (self._grant.log_id, found.topic_id)
        offset = self._ledger.next_offset_of(found.topic_id)
        self.private = _PrivateFetcher(
            self._connection,
            place,
            self._grant.epoch,
            log,
            offset,
            self._ledger.seen,
            self._private_fingerprint,
            self._limits.fetch_bytes_default,
        )
        self.handling.inputs.append(self._input(found.topic_id, self.private, private=True))

    def _input(self, topic_id: bytes, fetcher: Fetcher, *, private: bool) -> Input:
        suspicious = self._unclean or topic_id in self._ledger.deaths
        alone_max = self._limits.solitary_messages_max if suspicious else 0
        return Input(
            topic_id,
            fetcher.windows,
            fetcher.place_of,
            fetcher.passed,
            private=private,
            alone_max=alone_max,
        )

    def _private_fingerprint(self, ids: list[bytes]) -> bytes:
        return self._fingerprint([_PRIVATE_MARK + tagged for tagged in ids])

    def queue_outputs(self, out: Outcome) -> None:
        """Hand the outputs of this step's commits to the send window, whose sends wait for the sync."""
        for record in out.appends:
            if not isinstance(record, Committed) or record.commit_no <= self._queued:
                continue
            self._queued = record.commit_no
            for output in record.outputs:
                self._queue(output)
                fields = {"first_sequence": output.first_sequence, "count": output.count}
                out.events.append(("output.sent", self._member.fields(**fields)))

    def _queue(self, output: Output) -> None:
        self.output_bytes += len(output.raw)
        self.send_window.add_output(output, token=len(output.raw))


class _PrivateFetcher(Fetcher):
    """The fetcher of a private topic, in which every message has an explicit id."""

    def _identified(self, window: Window) -> Window:
        if any(piece.stored.first_sequence >= 0 for piece in window.pieces):
            _, topic, partition = self._place
            raise ProtocolError(f"{topic}/{partition} holds numbered messages: they are not ours")
        return super()._identified(window)
