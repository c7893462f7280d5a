"""Traffic as clients send it, and what an attacker makes of it.

`recorded` is one message of each kind, some with content that is well formed and impossible.
`mutated` changes bytes, fields, bodies and frames; the same seed gives the same attack.
"""

from __future__ import annotations

import random
import zlib
from typing import Any

import msgpack

from oncemq.codec import batch as batch_codec
from oncemq.codec import wire
from oncemq.protocol import (
    CreateTopic,
    DescribeTopic,
    Failure,
    Fetch,
    Hello,
    InitProducer,
    Join,
    Leave,
    ListGroups,
    ListTopics,
    Ping,
    Produce,
    Produced,
    Renew,
)

Frames = list[bytes]

TOPIC, PRODUCER, GROUP = "enemy-topic", "enemy-producer", "enemy-group"
HONEST_TOPIC, HONEST_PRODUCER = "t", "p"
EVIL_NUMBERS = (-1, -(2**63), 0, 1, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
EVIL_TEXTS = (
    "",
    "..",
    "../../etc/passwd",
    "a/b",
    "a:b",
    "a@b",
    "a\0b",
    "x" * 129,
    "x" * 5000,
    "enemy.dead",
    "@group/topic/0",
    "\ud7ff\U0010ffff",
    "CON",
)
EVIL_VALUES: tuple[Any, ...] = (
    *EVIL_NUMBERS,
    *EVIL_TEXTS,
    None,
    True,
    False,
    1.5,
    float("nan"),
    b"",
    b"\0" * 16,
    b"x" * 100_000,
    [],
    [[[[]]]],
    {},
    {"a": 1},
    [1] * 1000,
)


def batches() -> list[Any]:
    values = [b"one", b"two" * 50, b""]
    return [
        batch_codec.build(values, encodings=0),
        batch_codec.build(values, encodings=[0, 1, 2], keys=[b"k", None, b""]),
        batch_codec.build(values, encodings=0, ids=[b"sone", b"btwo", b"sthree"]),
        batch_codec.build([b"x"], encodings=0, ids=[b"s" + b"i" * 127], headers=[b"\x80"]),
    ]


def recorded() -> list[Frames]:
    """One of each, and some that a client of ours never sends."""
    far = 2**62
    messages: list[tuple[Any, Any]] = [
        (Hello(1, 1, 1, "enemy", b"e" * 16, b"", 0), None),
        (Hello(1, 9, 9, "enemy", b"e" * 16, b"", 0), None),
        (Hello(1, 1, 1, "enemy", b"e" * 16, b"l" * 16, far), None),
        (Ping(2), None),
        (DescribeTopic(3, TOPIC, False), None),
        (CreateTopic(4, TOPIC, 1), None),
        (CreateTopic(4, TOPIC, 2**20), None),
        (ListTopics(5), None),
        (ListGroups(6), None),
        (InitProducer(7, PRODUCER, b"n" * 16, "enemy"), None),
        (Fetch(8, "", TOPIC, 0, 0, 0, 1 << 20, 0), None),
        (Fetch(8, "", TOPIC, 0, 0, far, far, far), None),
        (Fetch(8, GROUP, TOPIC, 0, far, 0, 1 << 20, 0), None),
        (
            Join(9, GROUP, TOPIC, 0, b"e" * 16, b"d" * 16, b"", b"", 0, 0, True, "h", "/p", "l"),
            None,
        ),
        (
            Join(9, GROUP, TOPIC, 0, b"f" * 16, b"d" * 16, b"", b"", far, far, False, "h", "", ""),
            None,
        ),
        (Renew(10, GROUP, TOPIC, 0, far), None),
        (Leave(11, GROUP, TOPIC, 0, far, far), None),
        # Answers, sent to the one who gives them.
        (Failure(12, "fenced", "no", "", -1), None),
        (Produced(13, 0, ((1, 0, 0),)), None),
    ]
    for batch in batches():
        session = b"" if batch.ids is None else b"S" * 16
        for topic, producer, epoch, first in (
            (TOPIC, PRODUCER, 1, 0),
            (TOPIC, PRODUCER, 1, far),
            # Epochs and numbers far ahead of the honest owner must not fence it out.
            (HONEST_TOPIC, HONEST_PRODUCER, far, 0),
            (HONEST_TOPIC, HONEST_PRODUCER, far, far),
            (HONEST_TOPIC, HONEST_PRODUCER, 0, 0),
        ):
            number = -1 if session else first
            # Explicit ids into the honest topic would be honest messages of somebody else.
            to = TOPIC if session else topic
            who = "" if session else producer
            at = 0 if session else epoch
            produce = Produce(14, to, 0, who, at, number, session, 0, b"", batch.crc)
            messages.append((produce, batch.raw))
    return [[bytes(f) for f in wire.encode(message, body)] for message, body in messages]


def mutated(source: random.Random, traffic: list[Frames]) -> Frames:
    frames = list(source.choice(traffic))
    choice = source.random()
    if choice < 0.45:
        return _other_fields(source, frames)
    if choice < 0.75:
        place = source.randrange(len(frames))
        frames[place] = _other_bytes(source, frames[place])
        return frames if source.random() < 0.7 else _with_right_crc(frames)
    if choice < 0.85:
        return _other_frames(source, frames, traffic)
    if choice < 0.90:
        return [source.randbytes(source.randrange(400))]
    return frames


def _other_fields(source: random.Random, frames: Frames) -> Frames:
    """Well-formed msgpack with values that cannot be, too many or too few."""
    fields = msgpack.unpackb(frames[0], strict_map_key=False)
    for _ in range(source.choice((1, 1, 2, 4))):
        place = source.randrange(len(fields))
        act = source.random()
        if act < 0.75 or len(fields) < 2:
            fields[place] = source.choice(EVIL_VALUES)
        elif act < 0.85:
            del fields[place]
        elif act < 0.95:
            fields.insert(place, source.choice(EVIL_VALUES))
        else:
            fields[place] = list(fields)
    return [msgpack.packb(fields), *frames[1:]]


def _other_bytes(source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 8))):
        act = source.random()
        at = source.randrange(len(changed) + 1)
        if act < 0.5 and at < len(changed):
            changed[at] = source.choice((changed[at] ^ (1 << source.randrange(8)), 0, 0xFF))
        elif act < 0.65:
            del changed[at:]
        elif act < 0.8:
            changed[at:at] = source.randbytes(source.randrange(1, 20))
        elif act < 0.9:
            changed[at:at] = changed[: source.randrange(len(changed) + 1)]
        else:
            del changed[at : at + source.randrange(1, 20)]
    return bytes(changed)


def _with_right_crc(frames: Frames) -> Frames:
    """A body that lies under a checksum that does not."""
    if len(frames) != 2:
        return frames
    try:
        fields = msgpack.unpackb(frames[0])
        fields[-1] = zlib.crc32(frames[1])
    except Exception:  # the header was hit: any bytes will do
        return frames
    return [msgpack.packb(fields), frames[1]]


def _other_frames(source: random.Random, frames: Frames, traffic: list[Frames]) -> Frames:
    act = source.randrange(5)
    if act == 0:
        return frames + list(source.choice(traffic))
    if act == 1:
        return [*frames[:1], source.randbytes(50)]
    if act == 2:
        return [b"", *frames]
    if act == 3:
        return [b"x"] * source.choice((3, 30, 300))
    return [frames[-1], frames[0]]
