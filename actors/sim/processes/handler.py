"""The handler of simulated consumers: what it does follows from state and message alone.

Some messages it cannot handle: it raises each time, rejects them, or kills its process. A replay of
one of them mostly succeeds: somebody has mended the handler meanwhile. Of the others it counts by key, keeps a checksum over all messages in order (so an effect that comes twice, not
at all or at another place shows in every later state), adds and removes a key now and then, and
sends none, one or two messages on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from zlib import crc32

from ...batch import Batch
from ...codec import batch as batch_codec
from ...codec.values import BYTES, decode_headers, encode_letter_headers
from ...core.consumer.work import CRASHED, RAISED, REJECTED
from ...ids import dead_topic, partition_of, sequence_id
from ...records import BatchStored, Output

Target = tuple[str, int]
UNNUMBERED = -1

# What handlers with a database do for each message: a row of its own, and a sum.
TABLES = (
    "CREATE TABLE paid (place TEXT NOT NULL, identity BLOB NOT NULL, amount INTEGER NOT NULL)",
    "CREATE TABLE balance (place TEXT PRIMARY KEY, cents INTEGER, payments INTEGER)",
)
OPEN_ACCOUNT = "INSERT INTO balance (place, cents, payments) VALUES (?, 0, 0)"
PAY = "INSERT INTO paid (place, identity, amount) VALUES (?, ?, ?)"
ADD_UP = "UPDATE balance SET cents = cents + ?, payments = payments + 1 WHERE place = ?"
# What a constraint that is checked at the end finds.
REFUSED = "SELECT count(*) FROM paid WHERE amount < 0"
IDENTITY = "oncemq-id"


@dataclass(frozen=True, slots=True)
class Group:
    """A group that handles `topic` and sends to `output`, unless that is ""."""

    name: str
    topic: str
    output: str
    concurrency: int = 0  # messages at the same time, with state by key; 0: one state, in order


@dataclass(frozen=True, slots=True)
class Effects:
    """What handling one message does."""

    state: dict[str, bytes | None]
    outputs: list[tuple[Target, bytes | None, bytes]]  # target, key, value


def identity_of(topic: str, record: BatchStored, batch: Batch, index: int) -> bytes:
    """No two messages of any topic have the same bytes."""
    if batch.ids is not None:
        return topic.encode() + b"?" + batch.ids[index]
    number = record.first_sequence + index
    return sequence_id(topic, record.producer, record.partition, number).encode()


def fate_of(identity: bytes, *, replayed: bool) -> str:
    """Return how handling this message ends every time: a kind of dead letter, or "" for well."""
    weight = crc32(identity) >> 4
    kind = next(
        (k for k, odds in ((CRASHED, 53), (REJECTED, 43), (RAISED, 47)) if not weight % odds), ""
    )
    return kind if not replayed or weight % 3 == 0 else ""


def failures_of(identity: bytes) -> int:
    weight = crc32(identity) >> 8
    return 0 if weight % 13 else 1 + weight % 2


def amount_of(identity: bytes) -> int:
    return crc32(b"pay" + identity) % 1_000


def handle(
    group: Group,
    partition: int,
    identity: bytes,
    body: bytes,
    look: Callable[[str], bytes | None],
    partitions: Mapping[str, int],
    result: bytes | None = None,
) -> Effects:
    """Handle one message; `look` reads the state. Calls with the same arguments do the same.

    `result` is that of its call of the world outside, if it makes one.
    """
    weight = crc32(identity)
    key = batch_codec.split_body(body)[1]
    count = f"n:{(key or b'').decode()}"
    state: dict[str, bytes | None] = {
        count: b"%d" % (1 + int(look(count) or b"0")),
        "chain": b"%d" % crc32(identity + body, int(look("chain") or b"0")),
    }
    if result is not None:
        state["called"] = result
    if weight % 5 == 0:
        state["seen"] = None if look("seen") else identity
    outputs: list[tuple[Target, bytes | None, bytes]] = []
    for number in range(weight % 3 if group.output else 0):
        out_key = key if number else None
        to = partition_of(out_key, None, partition, partitions[group.output])
        value = b"%s>%s#%d" % (identity, group.name.encode(), number)
        outputs.append(((group.output, to), out_key, value))
    return Effects(state, outputs)


def encoded_body(key: bytes | None, value: bytes) -> bytes:
    built = batch_codec.build([value], encodings=BYTES, keys=[key] if key is not None else None)
    return built.body(0)


def dead_letter(topic: str, partition: int, identity: bytes, body: bytes, kind: str) -> Output:
    """Return the dead letter of a message, without a number."""
    encoding, key, value = batch_codec.split_body(body)
    built = batch_codec.build(
        [value],
        encodings=encoding,
        keys=None if key is None else [key],
        headers=[encode_letter_headers({}, {IDENTITY: identity, "oncemq-kind": kind.encode()})],
    )
    raw = bytes(built.raw)
    return Output(dead_topic(topic), partition, UNNUMBERED, 1, raw, built.crc)


def original_of(batch: Batch, index: int) -> bytes:
    assert batch.headers is not None, "letters and replays have headers"
    return decode_headers(batch.headers[index])[IDENTITY]


def build_outputs(outgoing: list[tuple[Target, bytes | None, bytes]]) -> list[Output]:
    """Return messages as batches without numbers, in order for each target."""
    by_target: dict[Target, list[tuple[bytes | None, bytes]]] = {}
    for target, key, value in outgoing:
        by_target.setdefault(target, []).append((key, value))
    outputs = []
    for (topic, partition), messages in by_target.items():
        keys = [key for key, _ in messages]
        built = batch_codec.build(
            [value for _, value in messages],
            encodings=BYTES,
            keys=keys if any(key is not None for key in keys) else None,
        )
        raw = bytes(built.raw)
        outputs.append(Output(topic, partition, UNNUMBERED, built.count, raw, built.crc))
    return outputs
