"""Wire messages as frozen values; docs/PROTOCOL.md is the contract.

A request carries a number that its answer repeats. The order of the fields is the order on the
wire. A message with a body (a batch, or fetched records) carries it in a frame of its own. Fields
with a default came with a later version: at their default they are left off the wire, and a sender
sets one only when it knows that the peer speaks that version.
"""

from __future__ import annotations

from dataclasses import dataclass

from .history import Place
from .topic_settings import FOREVER

VERSION_MIN = 1
VERSION_MAX = 4
SETTINGS_VERSION = 4  # peers before it know no settings of topics
LINEAGE_VERSION = 4  # peers before it know no proof of a lineage

# Verdicts of messages in `Produced.runs`.
STORED = 0
DUPLICATE = 1
CONFLICT = 2
# Version 4, in topics with a dedup horizon: not stored, because the id is not known and the message was
# created before the horizon, or in the future.
TOO_OLD = 3
AHEAD = 4

UNKNOWN_OFFSET = -1


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """Opens a connection. A broker refuses every other request before it with HelloRequired."""

    request: int  # number of the request; the answer repeats it
    version_min: int
    version_max: int
    role: str  # for events and people
    incarnation: bytes  # 16 random bytes of this process and actor
    log_id_seen: bytes  # b"" when this incarnation has not met a broker before
    epoch_seen: int  # highest broker epoch seen; a broker that meets a higher one is a zombie
    # Version 3, once a Welcome has named it: the furthest place that the client relies on.
    mark: bytes = b""
    position: int = 0
    # Version 4, once a Welcome with a proof was met: its lineage, and the proof, which is for `epoch_seen`.
    lineage: bytes = b""
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a sign of life."""

    request: int


@dataclass(frozen=True, slots=True)
class DescribeTopic:
    """Asks for one topic; `create` makes it where it does not exist."""

    request: int
    topic: str
    create: bool
    # Version 4: what a topic gets that `create` makes; the texts are those of topic_settings.py,
    # "" the default.
    partitions: int = 1
    dedup: str = ""
    retain: str = ""


@dataclass(frozen=True, slots=True)
class CreateTopic:
    """Makes a topic. The same again is no error."""

    request: int
    topic: str
    partitions: int
    # Version 4, as in DescribeTopic. "" also fits any setting of a topic that exists.
    dedup: str = ""
    retain: str = ""


@dataclass(frozen=True, slots=True)
class ConfigureTopic:
    """Version 4: changes settings of a topic; "" leaves one as it is."""

    request: int
    topic: str
    dedup: str
    retain: str


@dataclass(frozen=True, slots=True)
class ShowTopic:
    """Version 4: asks for what one topic holds, and how far its groups are."""

    request: int
    topic: str


@dataclass(frozen=True, slots=True)
class DeleteTopic:
    """Version 4: deletes a topic with its dead letters. The same again is no error."""

    request: int
    topic: str
    topic_id: bytes  # of the topic that is meant: another one of its name stays


@dataclass(frozen=True, slots=True)
class ListTopics:
    """Asks for all topics."""

    request: int


@dataclass(frozen=True, slots=True)
class ListGroups:
    """Asks for all grants."""

    request: int


@dataclass(frozen=True, slots=True)
class InitProducer:
    """Asks for an epoch. The same nonce gets the same epoch; a superseded one is Fenced."""

    request: int
    producer: str
    nonce: bytes  # of the incarnation: a resent request must not fence its own sender
    label: str  # host and pid, for the message that a fenced owner shows


@dataclass(frozen=True, slots=True)
class Produce:
    """A batch (the body). With sequence ids: producer, epoch, first_sequence, session b"".

    With explicit ids: session and counter, first_sequence -1; a named producer adds its epoch.
    """

    request: int
    topic: str
    partition: int
    producer: str
    epoch: int
    first_sequence: int
    session: bytes  # 16 random bytes of this session of this incarnation
    counter: int  # place of the batch in its session, from 0 without gaps
    digest: bytes  # running digest of a file producer's input after this batch; b"": none
    crc: int  # crc32 of the body


@dataclass(frozen=True, slots=True)
class Fetch:
    """Asks for records from the stored batch that contains `offset`."""

    request: int
    group: str  # "" reads without a grant
    topic: str
    partition: int
    epoch: int  # of the grant; the answer repeats it, so an answer to an older owner is dropped
    offset: int
    max_bytes: int  # the credit: a consumer has one fetch under way and room for its answer
    max_wait_ms: int  # how long the broker holds the request while there is nothing new
    # Version 3: the place of what the reader has read before.
    mark: bytes = b""
    position: int = 0


@dataclass(frozen=True, slots=True)
class Join:
    """Asks for the grant of one partition, and reports the ledger that will continue it.

    The broker refuses a ledger that is not the one of the last owner, or an older copy of it
    (LedgerNotHere): a wrong working directory then handles nothing, instead of everything again.
    """

    request: int
    group: str
    topic: str
    partition: int
    incarnation: bytes
    ledger_id: bytes  # 16 random bytes of the ledger, durable before the first join
    topic_id_seen: bytes  # from the ledger's first record; b"" for a new ledger
    log_id_seen: bytes
    next_offset: int  # what the ledger has committed
    highest_generation: int  # of the ledger, complete or not; the granted epoch will be above it
    lock_held: bool  # the joiner holds the lock of that generation's owner, which is dead
    host: str
    path: str
    label: str
    # Version 2: 16 random bytes of the process, the same for all its partitions. Members with an
    # id share the partitions of a topic evenly; without one a joiner takes what is free.
    member: bytes = b""
    # Version 3: the place that the ledger relies on; empty for a new ledger.
    mark: bytes = b""
    position: int = 0
    # An operator takes the partition to move it onto this log, whatever the ledger relied on.
    accepts: bool = False
    # An operator takes the partition with another ledger, because the group's own is lost.
    replaces: bool = False


@dataclass(frozen=True, slots=True)
class Renew:
    """Keeps a lease while handlers run."""

    request: int
    group: str
    topic: str
    partition: int
    epoch: int
    # Version 2: the member that renews, and what it has durably committed (for the lag).
    member: bytes = b""
    committed: int = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """Gives a grant back, so that the next joiner need not wait for the lease to end."""

    request: int
    group: str
    topic: str
    partition: int
    epoch: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Rewind:
    """Version 2: an operator is about to commit `next_offset`, below what the ledger has reported.

    Only the owner may send it, once its generation of the ledger is open. Without it the broker
    would take the ledger for an old copy at the next join.
    """

    request: int
    group: str
    topic: str
    partition: int
    epoch: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class DescribeGroup:
    """Version 2: asks for the members of a group, and for owner and progress of each partition."""

    request: int
    group: str


@dataclass(frozen=True, slots=True)
class ListProducers:
    """Version 4: asks for the producer names behind `after`, in the order of names."""

    request: int
    after: str


@dataclass(frozen=True, slots=True)
class RetireProducer:
    """Version 4: retires a name that has stored nothing for `idle_ms`; again is no error."""

    request: int
    producer: str
    idle_ms: int


@dataclass(frozen=True, slots=True)
class Survey:
    """Version 4: asks for the rows of topics and grants behind a place: ("", "", 0) is the first."""

    request: int
    topic: str
    group: str
    partition: int


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcome:
    """The connection is open."""

    request: int
    version: int  # the highest that both sides speak; all that follows keeps to it
    log_id: bytes
    lineage: bytes
    epoch: int  # generation of the broker's log: a lower one later is a zombie's
    # Version 3: the mark of the log's history, and its durable end.
    mark: bytes = b""
    durable: int = 0
    # Version 4, of a restored log: shows other copies of the log that this lineage has this epoch.
    proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Pong:
    """A sign of life."""

    request: int
    epoch: int


@dataclass(frozen=True, slots=True)
class TopicDescribed:
    """A topic as it is. `end_offsets` has one durable end for each partition."""

    request: int
    topic: str
    topic_id: bytes
    partitions: int
    end_offsets: tuple[int, ...]
    # Version 4.
    dedup: str = FOREVER
    retain: str = FOREVER
    start_offsets: tuple[int, ...] = ()  # one for each partition; (): 0 for all


@dataclass(frozen=True, slots=True)
class TopicShown:
    """What a topic holds. Times are 0 where there is no message."""

    request: int
    topic: str
    topic_id: bytes
    partitions: int
    dedup: str
    retain: str
    at_ms: int  # when it was made
    ids: int  # explicit ids ever stored
    # Of each partition that was used: number, first offset, end, bytes, times of the oldest and the
    # newest message.
    rows: tuple[tuple[int, int, int, int, int, int], ...]
    # Grants: group, partition, what is committed, whether the lease runs.
    groups: tuple[tuple[str, int, int, bool], ...]
    letters: int  # dead letters of the topic that are there


@dataclass(frozen=True, slots=True)
class TopicGone:
    """There is no such topic any more."""

    request: int
    topic: str


@dataclass(frozen=True, slots=True)
class TopicsListed:
    """All topics: (topic, topic_id, partitions, messages)."""

    request: int
    topics: tuple[tuple[str, bytes, int, int], ...]
    # Version 4: (dedup, retain) of each of them.
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GroupsListed:
    """All grants: (group, topic, partition, epoch, label, host, path, live)."""

    request: int
    groups: tuple[tuple[str, str, int, int, str, str, str, bool], ...]


@dataclass(frozen=True, slots=True)
class ProducerReady:
    """The producer's epoch, and where its numbers go on."""

    request: int
    epoch: int
    # For each partition written before: (topic, partition, next sequence, digest).
    partitions: tuple[tuple[str, int, int, bytes], ...]
    # Version 3: the place of who relies on this answer.
    mark: bytes = b""
    durable: int = 0


@dataclass(frozen=True, slots=True)
class Produced:
    """The verdicts of a batch in order, as runs of (count, verdict, first offset).

    The offset of a run is UNKNOWN_OFFSET after trimming; duplicates whose originals are not
    adjacent make runs of their own.
    """

    request: int
    at_ms: int
    runs: tuple[tuple[int, int, int], ...]
    # Version 3: the place of who relies on this answer.
    mark: bytes = b""
    durable: int = 0


@dataclass(frozen=True, slots=True)
class Fetched:
    """Stored batches (the body: codec.wire.unpack_stored), and how far the partition reaches.

    The body starts with the batch that contains the asked offset. An empty body means that
    nothing came within `max_wait_ms`.
    """

    request: int
    epoch: int  # of the request
    log_id: bytes
    topic_id: bytes
    next_offset: int  # the offset after the last message in the body; the asked one if empty
    end_offset: int  # durable end of the partition
    # Version 3: where each stored batch lies in the log, and (mark, beginning) of all histories in
    # which they lie.
    positions: tuple[int, ...] = ()
    marks: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Granted:
    """The joiner owns the partition under `epoch`, and opens that generation of the ledger next."""

    request: int
    epoch: int  # of the grant, of the ledger's generation and of its output producer: one fence
    topic_id: bytes
    log_id: bytes
    lineage: bytes
    end_offset: int
    lease_ms: int
    shared: bool = False  # version 2: other members own partitions of the topic
    # Version 3: the place of who relies on this answer.
    mark: bytes = b""
    durable: int = 0
    start_offset: int = 0  # version 4: of the partition; a new group begins there


@dataclass(frozen=True, slots=True)
class Standby:
    """Another consumer has the grant. Ask again later."""

    request: int
    owner: str  # its label
    lease_left_ms: int
    idle: bool = False  # version 2: the owner has committed all that is stored


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease starts again from now."""

    request: int
    epoch: int
    revoke: bool = False  # version 2: commit, then leave: another member waits for the partition
    shared: bool = False  # version 2: other members own partitions of the topic


@dataclass(frozen=True, slots=True)
class Left:
    """The grant is free."""

    request: int


@dataclass(frozen=True, slots=True)
class Rewound:
    """The broker will accept a ledger of this generation at the lower offset."""

    request: int


@dataclass(frozen=True, slots=True)
class GroupDescribed:
    """A group: its partitions by topic and number, and the members heard of lately.

    A partition: (topic, partition, epoch, label, host, path, live, member, committed, end offset,
    label of the next owner). A member: (topic, member, label, partitions, ms since it was heard).
    """

    request: int
    group: str
    partitions: tuple[tuple[str, int, int, str, str, str, bool, bytes, int, int, str], ...]
    members: tuple[tuple[str, bytes, str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ProducersListed:
    """Producer names in order, at most PRODUCERS_LISTED_MAX; `more`: others follow.

    A row: (name, epoch, label, time of the last record, bytes in memory, retired, numbers, partitions
    it has written to). A number: (topic, partition, next sequence), of the first ten partitions.
    """

    request: int
    producers: tuple[
        tuple[str, int, str, int, int, bool, tuple[tuple[str, int, int], ...], int], ...
    ]
    more: bool
    at_ms: int  # broker time


@dataclass(frozen=True, slots=True)
class Retired:
    """Only epoch and next numbers of the name are kept."""

    request: int
    producer: str


@dataclass(frozen=True, slots=True)
class Surveyed:
    """Topics and grants in the order (topic, group, partition), at most SURVEY_ROWS_MAX rows.

    A topic stands before its grants. `more`: other rows follow the last one.
    """

    request: int
    at_ms: int  # broker time
    durable: int  # end of the log
    disk_full: bool  # writes are refused
    # Name, partitions, messages ever stored and still there, bytes of both, explicit ids ever
    # stored; since the broker started: duplicates, conflicts, messages refused.
    topics: tuple[tuple[str, int, int, int, int, int, int, int, int, int], ...]
    # Group, topic, partition, epoch, label, whether the lease runs, what is committed, end of the
    # partition, age in ms of the first message that is not committed (0: there is none).
    grants: tuple[tuple[str, str, int, int, str, bool, int, int, int], ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """The broker refused a request."""

    request: int
    code: str  # of an OnceMQError in errors.py, which the client raises again
    reason: str
    hint: str
    expected: int  # the number that a Gap asks for, else -1


Request = (
    Hello
    | Ping
    | DescribeTopic
    | CreateTopic
    | ConfigureTopic
    | ListTopics
    | ShowTopic
    | DeleteTopic
    | ListProducers
    | RetireProducer
    | ListGroups
    | InitProducer
    | Produce
    | Fetch
    | Join
    | Renew
    | Leave
    | Rewind
    | DescribeGroup
    | Survey
)
Answer = (
    Welcome
    | Pong
    | TopicDescribed
    | TopicsListed
    | TopicShown
    | TopicGone
    | ProducersListed
    | Retired
    | GroupsListed
    | ProducerReady
    | Produced
    | Fetched
    | Granted
    | Standby
    | Renewed
    | Left
    | Rewound
    | GroupDescribed
    | Surveyed
    | Failure
)
Message = Request | Answer

# Answers with `mark` and `durable`: the place of who relies on them.
Placed = Welcome | ProducerReady | Produced | Granted


def place_in(answer: Placed) -> Place:
    return Place(answer.mark, answer.durable)


# The first number of a message on the wire. Numbers are never used twice.
KINDS: dict[int, type[Message]] = {
    1: Hello,
    2: Ping,
    3: DescribeTopic,
    4: CreateTopic,
    5: ListTopics,
    6: ListGroups,
    7: InitProducer,
    8: Produce,
    9: Fetch,
    10: Join,
    11: Renew,
    12: Leave,
    13: Rewind,
    14: DescribeGroup,
    15: ConfigureTopic,
    20: ShowTopic,
    21: DeleteTopic,
    22: ListProducers,
    23: RetireProducer,
    24: Survey,
    33: Welcome,
    34: Pong,
    35: TopicDescribed,
    36: TopicsListed,
    37: GroupsListed,
    38: ProducerReady,
    39: Produced,
    40: Fetched,
    41: Granted,
    42: Standby,
    43: Renewed,
    44: Left,
    45: Failure,
    46: Rewound,
    47: GroupDescribed,
    50: TopicShown,
    51: TopicGone,
    52: ProducersListed,
    53: Retired,
    54: Surveyed,
}
