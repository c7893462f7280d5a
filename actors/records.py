"""The records of a log: the broker's and the ledger's.

Only these change what must survive. `apply(record, position)` of a core meets the same values live
and on replay, so a record holds everything that must be equal then: times, ids, epochs. Positions
are byte positions in the fenced log; times are milliseconds since 1970 of broker time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .batch import Batch
from .history import NO_PLACE, Place
from .topic_settings import TopicSettings

# Around a stored batch: its head, and the frame that closes its group; rounded up.
_STORED_HEAD_BYTES = 160

# --- the broker's log ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HistoryBegun:
    """The first record that a generation of the broker writes: its history has this mark."""

    mark: bytes  # 16 random bytes
    generation: int
    at_ms: int


@dataclass(slots=True)
class TopicCreated:
    """A topic with a fixed partition count. Its number is the count of topics before it."""

    topic: str
    topic_id: bytes  # 16 random bytes
    partitions: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class TopicConfigured:
    """A topic has these settings from here on; one without such a record has the defaults."""

    topic_number: int
    dedup_ms: int | None
    retain_ms: int | None
    retain_bytes: int | None
    retain_processed: bool
    at_ms: int

    @property
    def settings(self) -> TopicSettings:
        return TopicSettings(
            self.dedup_ms, self.retain_ms, self.retain_bytes, self.retain_processed
        )


@dataclass(frozen=True, slots=True)
class HorizonMarked:
    """How much a topic with a dedup horizon has forgotten, and how far it reached at this moment.

    Messages created before `floor_ms` are refused unless their ids are known; ids of messages that
    were stored up to `forgotten_ms` are not known any more. Neither ever goes back.
    """

    topic_number: int
    floor_ms: int
    forgotten_ms: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class TopicDeleted:
    """A topic, its messages and its ids are gone, and the grants of its groups."""

    topic_number: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Messages below an offset are deleted: readers are refused there from here on."""

    topic_number: int
    partition: int
    below: int  # the first offset of a batch, or the end
    why: str  # age | size | processed
    at_ms: int


@dataclass(slots=True)
class ProducerGranted:
    """A producer name got a new epoch: older incarnations are fenced from here on."""

    producer: str
    epoch: int
    nonce: bytes  # 16 random bytes of the incarnation: asking twice gets the same epoch
    label: str  # host and pid, for messages to people
    at_ms: int


@dataclass(frozen=True, slots=True)
class ProducerRetired:
    """Of an idle producer name only its epoch and its next numbers are kept from here on."""

    producer: str
    at_ms: int


@dataclass(slots=True)
class BatchStored:
    """The messages of one batch that were new, at dense offsets of one partition."""

    topic_number: int
    partition: int
    first_offset: int
    kept: int  # messages that got an offset
    at_ms: int
    producer: str  # "" for an anonymous producer
    epoch: int
    first_sequence: int  # of the first message of the batch; -1 with explicit ids
    mask: bytes  # bit i (little endian in each byte) set: message i is kept; b"": all kept
    digest: bytes  # running digest of a file producer after this batch; b"": none
    raw: bytes | memoryview  # the batch as it arrived
    crc: int  # crc32 of `raw`
    count: int  # messages in the batch, kept or not
    batch: Batch | None = None  # parsed columns; None where a record is only passed on

    @property
    def size(self) -> int:
        """An upper bound of what it adds to the log, or to an answer."""
        around = _STORED_HEAD_BYTES + 4 * len(self.producer) + len(self.digest) + len(self.mask)
        return around + len(self.raw)


@dataclass(slots=True)
class GroupGranted:
    """(group, topic, partition) belongs to one consumer incarnation under a new epoch."""

    group: str
    topic: str
    partition: int
    epoch: int  # also the ledger's next generation and the output producer's epoch
    incarnation: bytes
    ledger_id: bytes
    next_offset: int  # what the ledger reported: it must never report less again
    host: str  # where the ledger lies: LedgerNotHere names host and path
    path: str
    label: str
    at_ms: int
    seen: Place = NO_PLACE  # what the ledger relied on: from then on none without a place follows


@dataclass(slots=True)
class GroupRewound:
    """An operator, as the owner of the partition, goes back to an earlier offset."""

    group: str
    topic: str
    partition: int
    epoch: int  # of the operator's grant: a ledger without that generation is an older copy
    next_offset: int
    at_ms: int


@dataclass(slots=True)
class LedgerReplaced:
    """An operator gives a partition another ledger, because the group's own is lost.

    It changes nothing: the grant after it does. It says that this was meant.
    """

    group: str
    topic: str
    partition: int
    epoch: int  # of the grant that follows
    ledger_id: bytes  # of the ledger that was known
    at_ms: int


# --- the ledger ----------------------------------------------------------------------------------


@dataclass(slots=True)
class LedgerStarted:
    """The first record of a ledger: which log and topic it belongs to and where it began."""

    group: str
    topic: str
    partition: int
    topic_id: bytes
    log_id: bytes
    lineage: bytes
    start_offset: int


@dataclass(slots=True)
class Output:
    """Outgoing messages of one commit to one partition, numbered and ready to be sent."""

    topic: str
    partition: int
    first_sequence: int
    count: int
    raw: bytes
    crc: int


@dataclass(frozen=True, slots=True)
class Parked:
    """A message that a commit passes as a dead letter.

    The dead letter itself is an output of the same commit, to `<topic>.dead`.
    """

    topic_id: bytes  # of the input: the topic, or the group's private topic
    offset: int  # in that input
    kind: str  # raised | rejected | crashed
    attempts: int
    error: str = ""  # its type, by which a row of parked messages is told; "" in older ledgers


@dataclass(frozen=True, slots=True)
class Skipped:
    """Offsets of an input that the group passes over by an operator's order.

    With `next_offset` below `first_offset` the group goes back: it reads what lies between again.
    """

    topic_id: bytes
    first_offset: int
    next_offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Renumbered:
    """Unacknowledged and later outputs to a target get numbers from `first_sequence` on.

    An operator has accepted a log that lacks outputs which it had acknowledged: it expects lower
    numbers than the ledger would give. Or it holds outputs of a copy of the ledger.
    """

    topic: str
    partition: int
    first_sequence: int


@dataclass(slots=True)
class Committed:
    """The one commit: all of it becomes durable together or not at all."""

    epoch: int  # of the grant; equal to the ledger's generation
    commit_no: int  # one more than that of the commit before
    inputs: list[tuple[bytes, int]]  # (topic_id, next offset)
    ranges: list[tuple[str, int, int]]  # processed sequence ids: (producer, first, count)
    fingerprints: bytes  # processed explicit ids: 16 bytes each
    state: dict[str, bytes | None]  # encoded values; None removes the key
    outputs: list[Output] = field(default_factory=list)
    # (topic, partition, next sequence): outputs below it are acknowledged and may be forgotten.
    acked: list[tuple[str, int, int]] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    # The furthest place of the broker's log that the ledger relies on from this commit on: inputs
    # that it has passed, acknowledged outputs, or an operator's decision. NO_PLACE: as before.
    seen: Place = NO_PLACE
    renumbered: list[Renumbered] = field(default_factory=list)
    # What an operator gave up with this commit: the place that the ledger relied on before. Deaths and
    # open effects are of messages of that past. NO_PLACE: nothing.
    accepted: Place = NO_PLACE


@dataclass(frozen=True, slots=True)
class AttemptMarked:
    """An attempt at a single message, after a generation that did not end cleanly.

    It is synced before the handler starts. If no later record says how the attempt ended, the
    process died in it: so a message that kills its process is found, and its neighbours are not
    blamed.
    """

    epoch: int
    topic_id: bytes  # of the input
    offset: int
    deaths: int  # processes that died before in such an attempt at this message
    returned: bool  # False: the handler starts now; True: it returned or raised


@dataclass(frozen=True, slots=True)
class EffectIntended:
    """A handler is about to make a call that no transaction covers. Synced before the call.

    Without a later EffectEnded only the remote service knows whether the call happened.
    """

    epoch: int
    topic_id: bytes  # of the input
    offset: int
    key: str  # idempotency key of the message, for people
    name: str  # of the effect; the message has at most one of this name
    number: int  # 1 for the first call, one more for each that follows
    policy: str  # what happens if the outcome is unknown: retry | park | ask
    at_ms: int


@dataclass(frozen=True, slots=True)
class EffectEnded:
    """The outcome of the call that was intended under the same number, as far as it is known."""

    epoch: int
    topic_id: bytes
    offset: int
    name: str
    number: int
    how: str  # returned | not_done | unknown, or by an operator: answered | again
    policy: str  # of the intent, or what an operator has set instead
    encoding: int  # of the result
    value: bytes  # the result; for an unknown outcome the error as text
    at_ms: int


@dataclass(frozen=True, slots=True)
class LedgerEnded:
    """A generation ended on purpose: no handler died in it, so its successor needs no marks."""

    epoch: int


Record = (
    HistoryBegun
    | TopicCreated
    | TopicConfigured
    | HorizonMarked
    | TopicDeleted
    | Trimmed
    | ProducerGranted
    | ProducerRetired
    | BatchStored
    | GroupGranted
    | GroupRewound
    | LedgerReplaced
    | LedgerStarted
    | Committed
    | AttemptMarked
    | EffectIntended
    | EffectEnded
    | LedgerEnded
)

Plain = Any  # what a snapshot part is made of: None, bool, int, text, bytes, lists, dicts of these
