"""The durable state of a node: a log for each key, and the committed offsets.

The logs live in the broker core of a broker process, on the same fenced log, driven by the same
turn; only the transport is a pair of lists. Each key is a topic. A message without an id gets the
next sequence number of the producer `main`, which InitProducer grants to each start of this process;
a message with an id is judged by the id. All waiting requests share one turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .. import protocol as say
from ..codec import batch as batch_codec
from ..codec import values as value_codec
from ..driver import Driver, Silence
from ..errors import OnceMQError, from_code
from ..library.embedded.broker import Entropy, InlineBroker
from ..limits import BATCH_MESSAGES_MAX, LEDGER_SNAPSHOT_EVERY_BYTES, LIMITS, Limits
from ..ports import Clock, Events
from ..protocol import Message
from ..storage.disk import Disk
from ..storage.log import FencedLog
from .messages import CRASH, PRECONDITION_FAILED, UNAVAILABLE, Refusal, topic_of
from .offsets import KeepOffsets, OffsetsCore, OffsetsKept, OffsetsRefused

PRODUCER = "main"
_BATCH_BYTES = 1024 * 1024


@dataclass(slots=True)
class Write:
    """A message to store; `flush` sets the fields below the line."""

    topic: str
    value: bytes
    message_id: bytes | None
    # ---
    offset: int = -1
    duplicate: bool = False
    refusal: Refusal | None = None
    end_after: int = 0  # end of the topic right behind this message


@dataclass(slots=True)
class Commit:
    """Offsets to store; `flush` sets `refusal`."""

    offsets: dict[str, int]
    refusal: Refusal | None = None


class _Sender:
    """The next sequence number and the session of one topic."""

    def __init__(self, next_sequence: int, session: bytes) -> None:
        self.next_sequence = next_sequence  # of `main`; invariant: what the broker expects
        self.session = session
        self.counter = 0  # of the next batch with ids in this session


@dataclass(slots=True)
class _Run:
    """Consecutive writes to one topic that share a batch: all with ids, or all without."""

    sender: _Sender
    topic: str
    explicit: bool
    writes: list[Write]
    size: int = 0


class NodeStore:
    """The broker core and the table of offsets of one node, on one disk."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        *,
        clock: Clock,
        events: Events,
        entropy: Entropy,
        owner: Mapping[str, str | int],
        limits: Limits = LIMITS,
    ) -> None:
        """Open or make both logs below `directory`.

        Raises LogInUse, CorruptLog, UnsupportedFormat, DiskFull, OSError.
        """
        self._entropy = entropy
        self._offsets = OffsetsCore(limits.node_committed_keys_max)
        self._results: list[OffsetsKept | OffsetsRefused] = []
        self._broker = InlineBroker(
            disk,
            f"{directory}/broker",
            owner=owner,
            clock=clock,
            events=events,
            entropy=entropy,
            limits=limits,
        )
        self._ledger = Driver(
            self._offsets,
            Silence(),
            clock,
            events,
            perform=self._results.append,
            snapshot_every_bytes=LEDGER_SNAPSHOT_EVERY_BYTES,
            compacts=True,
        )
        committed = f"{directory}/committed"
        log = FencedLog.open(
            disk,
            committed,
            generation=None,
            owner=owner,
            create_log_id=entropy(),
        )
        self._ledger.open_log(log, committed)
        self._ledger.turn(0)
        self._ends: dict[str, int] = {}  # topic -> offset of the next message
        self._senders: dict[str, _Sender] = {}
        self._epoch = 0
        self._greet(str(owner.get("pid", "")))
        self._writes: list[Write] = []
        self._last_write: dict[str, Write] = {}  # of this turn, by topic
        self._commits: list[Commit] = []
        # topic -> commits of this turn in order, each with the highest offset up to it
        self._waiting: dict[str, list[tuple[int, Commit]]] = {}
        self._refused = False  # the last flush refused a commit

    # --- what a turn of the node gathers ---------------------------------------------------------

    def append(self, key: str, value: bytes, message_id: bytes | None) -> Write:
        write = Write(topic_of(key), value, message_id)
        self._writes.append(write)
        self._last_write[write.topic] = write
        return write

    def commit(self, offsets: Mapping[str, int]) -> Commit:
        """Take committed offsets for the next `flush`."""
        commit = Commit({topic_of(key): offset for key, offset in offsets.items()})
        self._commits.append(commit)
        for topic, offset in commit.offsets.items():
            waiting = self._waiting.setdefault(topic, [])
            highest = max(offset, waiting[-1][0]) if waiting else offset
            waiting.append((highest, commit))
        return commit

    def flush(self) -> None:
        """Store all taken messages and offsets; on return, all that were not refused are durable.

        Raises Fenced, CorruptLog, OSError: the process must end and answer nothing more.
        """
        if self._writes:
            writes, self._writes = self._writes, []
            self._last_write = {}
            self._store(writes)
        self._refused = False
        self._waiting = {}
        if self._commits:
            commits, self._commits = self._commits, []
            for number, commit in enumerate(commits):
                self._ledger.post(KeepOffsets(number, commit.offsets))
            self._ledger.turn(0)
            for result in self._results:
                if isinstance(result, OffsetsRefused):
                    commits[result.number].refusal = Refusal(UNAVAILABLE, result.reason)
                    self._refused = True
            assert len(self._results) == len(commits)
            self._results.clear()

    # --- reading ---------------------------------------------------------------------------------

    def end(self, key: str) -> Callable[[], int]:
        """Return a function that, after the next `flush`, gives the end of a key's log as of now.

        It counts the messages taken before this call, and none taken later.
        """
        topic = topic_of(key)
        write = self._last_write.get(topic)
        if write is not None:
            return lambda: write.end_after
        end = self._ends.get(topic, 0)
        return lambda: end

    def committed(self, key: str) -> Callable[[], int | None]:
        """Return a function that, after the next `flush`, gives a key's committed offset as of now.

        It counts the commits taken before this call, and none taken later.
        """
        topic = topic_of(key)
        kept = self._offsets.committed.get(topic, -1)
        waiting = self._waiting.get(topic, [])
        ahead = len(waiting)
        highest = max(kept, waiting[-1][0]) if waiting else kept

        def read() -> int | None:
            found = highest
            if self._refused:  # rare: leave out the commits that were refused
                kept_now = [commit for _, commit in waiting[:ahead] if commit.refusal is None]
                found = max([kept, *(commit.offsets[topic] for commit in kept_now)])
            return None if found < 0 else found

        return read

    def read(
        self, key: str, first: int, end: int, *, messages_max: int, bytes_max: int
    ) -> list[tuple[int, bytes]]:
        """Return (offset, value) from `first` up to `end`: within the bounds, but at least one."""
        found: list[tuple[int, bytes]] = []
        size = 0
        at = first
        while at < end:
            before = at
            for offset, value in self._broker.values(topic_of(key), at, bytes_max):
                if offset >= end or len(found) == messages_max:
                    return found
                if found and size + len(value) > bytes_max:
                    return found
                found.append((offset, value))
                size += len(value)
                at = offset + 1
            assert at > before, f"{key!r} holds nothing at {at} of {end}"
        return found

    # --- turns -----------------------------------------------------------------------------------

    def time_left_ms(self) -> int:
        return min(self._broker.time_left_ms(), self._ledger.time_left_ms())

    def rest(self) -> None:
        """Use an idle moment: attest the last group, look at the fence. Raises Fenced."""
        self._broker.rest()
        self._ledger.turn(0)

    def close(self) -> None:
        """Attest what was stored and close both logs."""
        self._broker.close()
        self._ledger.close()

    def _greet(self, label: str) -> None:
        """Become the producer `main`, and learn ends and next sequences of the topics."""
        broker = self._broker
        asked = say.InitProducer(broker.number(), PRODUCER, self._entropy(), label)
        ready = broker.ask_one(asked).message
        listed = broker.ask_one(say.ListTopics(broker.number())).message
        assert isinstance(ready, say.ProducerReady)
        assert isinstance(listed, say.TopicsListed)
        self._epoch = ready.epoch
        next_of = {topic: number for topic, _, number, _ in ready.partitions}
        for topic, _, _, messages in listed.topics:
            self._ends[topic] = messages
            self._senders[topic] = _Sender(next_of.get(topic, 0), self._entropy())

    # --- storing ---------------------------------------------------------------------------------

    def _store(self, writes: list[Write]) -> None:
        messages: list[tuple[Message, bytes | memoryview | None]] = []
        runs: dict[int, _Run] = {}
        last: dict[str, _Run] = {}
        planned: list[_Run] = []
        for write in writes:
            sender = self._senders.get(write.topic)
            if sender is None:
                sender = self._senders[write.topic] = _Sender(0, self._entropy())
            if write.topic not in self._ends and write.topic not in last:
                messages.append(
                    (say.DescribeTopic(self._broker.number(), write.topic, create=True), None)
                )
            run = last.get(write.topic)
            explicit = write.message_id is not None
            if (
                run is None
                or run.explicit != explicit
                or len(run.writes) == BATCH_MESSAGES_MAX
                or run.size + len(write.value) > _BATCH_BYTES
            ):
                run = last[write.topic] = _Run(sender, write.topic, explicit, [])
                planned.append(run)
            run.writes.append(write)
            run.size += len(write.value)
        ahead: dict[str, list[int]] = {}  # topic -> [numbers, counters] used by runs of this turn
        for run in planned:
            produce, body = self._produce(run, ahead.setdefault(run.topic, [0, 0]))
            messages.append((produce, body))
            runs[produce.request] = run
        answers = self._broker.ask(messages)
        for number, run in runs.items():
            self._settle(run, answers[number].message)

    def _produce(self, run: _Run, ahead: list[int]) -> tuple[say.Produce, bytes | memoryview]:
        ids = [write.message_id for write in run.writes if write.message_id is not None]
        batch = batch_codec.build(
            [write.value for write in run.writes],
            encodings=value_codec.TEXT,
            ids=ids if run.explicit else None,
        )
        sender = run.sender
        first = -1 if run.explicit else sender.next_sequence + ahead[0]
        counter = sender.counter + ahead[1] if run.explicit else 0
        ahead[run.explicit] += 1 if run.explicit else batch.count
        return (
            say.Produce(
                self._broker.number(),
                run.topic,
                0,
                PRODUCER,
                self._epoch,
                first,
                sender.session if run.explicit else b"",
                counter,
                b"",
                batch.crc,
            ),
            batch.raw,
        )

    def _settle(self, run: _Run, answer: Message) -> None:
        end = self._ends.get(run.topic, 0)
        if isinstance(answer, say.Failure):
            refusal = _refusal_of(from_code(answer.code, answer.reason, answer.hint))
            for write in run.writes:
                write.refusal, write.end_after = refusal, end
            run.sender.session, run.sender.counter = self._entropy(), 0
            return
        assert isinstance(answer, say.Produced)
        if run.explicit:
            run.sender.counter += 1
        else:
            run.sender.next_sequence += len(run.writes)
        verdicts = (
            (verdict, -1 if first == say.UNKNOWN_OFFSET else first + place)
            for count, verdict, first in answer.runs
            for place in range(count)
        )
        for write, (verdict, offset) in zip(run.writes, verdicts, strict=True):
            if verdict == say.CONFLICT:
                write.refusal = Refusal(PRECONDITION_FAILED, "this message_id has another msg")
            else:
                write.offset, write.duplicate = offset, verdict == say.DUPLICATE
            if verdict == say.STORED:
                assert offset == end, "offsets of a key are dense"
                end += 1
            write.end_after = end
        self._ends[run.topic] = end


def _refusal_of(error: OnceMQError) -> Refusal:
    """A retriable refusal stored nothing and will not; of any other the outcome is not told."""
    if error.retriable or error.code == "unknown_topic":  # the topic could not be made just before
        return Refusal(UNAVAILABLE, error.reason)
    return Refusal(CRASH, str(error))
