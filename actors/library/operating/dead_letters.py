"""Dead letters after the fact: reading, replaying and dropping them.

An answer to a letter (replay or drop) is a message in the private topic of its group, under an id
made from the letter's place (`ids.replay_id`). The first answer stands: a second replay is a
duplicate, and so is a replay of a dropped letter, or a drop of a replayed one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...batch import Batch
from ...codec import batch as batch_codec
from ...codec.batch import split_body
from ...codec.values import decode_headers, decode_value
from ...core.consumer.inputs import DROPPED_HEADERS
from ...core.consumer.ledger import Ledger
from ...core.consumer.window import kept_indices
from ...errors import Malformed, OnceMQError, UnknownTopic
from ...ids import TEXT_TAG, dead_topic, private_topic, replay_id, tagged_id
from ...protocol import STORED
from ...records import BatchStored
from ..handling.letters import ATTEMPTS, ERROR, GROUP, KIND, PARKED_AT, Origin, origin_in
from .client import AdminClient

PENDING, REPLAYED, DROPPED = "pending", "replayed", "dropped"
PROCESSED = "processed"  # replayed, and the group's ledger is past it
PARKED_AGAIN = "parked again"  # as above, and there is a later letter of the same message
BATCH_LETTERS = 500
BATCH_BYTES = 1024 * 1024


class NoSuchLetter(OnceMQError):
    """There is no dead letter with this id, or it is another group's."""

    code = "no_such_letter"
    default_hint = "list dead letters: oncemq dlq list --topic T"


@dataclass(slots=True)
class Letter:
    """A dead letter, and its status."""

    topic: str  # without the suffix `.dead`
    partition: int
    offset: int  # in the topic of dead letters
    group: str
    kind: str
    attempts: int
    error: str
    parked_at_ms: int
    origin: Origin | None
    body: bytes
    headers: bytes
    created_at_ms: int | None
    status: str = PENDING
    # Offset of the answer in the private topic; None while there is none.
    answered_at: int | None = None

    @property
    def id(self) -> str:
        return f"{dead_topic(self.topic)}:{self.partition}:{self.offset}"

    def replay(self) -> Batch:
        """Return the batch that has the group handle the message again."""
        return _batch([self], drop=False)

    def drop(self) -> Batch:
        """Return the batch that has the group pass over the message for good."""
        return _batch([self], drop=True)

    def as_dict(self) -> dict[str, Any]:
        """Without the value."""
        origin = self.origin
        return {
            "id": self.id,
            "group": self.group,
            "status": self.status,
            "kind": self.kind,
            "attempts": self.attempts,
            "error": self.error,
            "parked_at_ms": self.parked_at_ms,
            "message_id": None if origin is None else _shown(origin.id),
            "topic": self.topic if origin is None else origin.topic,
            "partition": self.partition if origin is None else origin.partition,
            "offset": None if origin is None else origin.offset,
        }

    def content(self) -> dict[str, Any]:
        encoding, key, value = split_body(self.body)
        try:
            shown: Any = decode_value(encoding, value)
        except Malformed:
            shown = value
        headers = _headers(self.headers)
        return {
            "key": None if key is None else _shown(key),
            "value": _shown(shown) if isinstance(shown, bytes) else shown,
            "headers": {name: _shown(header) for name, header in headers.items()},
        }


def letter_at(topic: str, record: BatchStored, index: int, offset: int) -> Letter:
    batch = record.batch
    assert batch is not None, "fetched batches come parsed"
    packed = b"" if batch.headers is None else batch.headers[index]
    headers = _headers(packed)
    return Letter(
        topic,
        record.partition,
        offset,
        headers.get(GROUP, b"").decode(errors="replace"),
        headers.get(KIND, b"").decode(errors="replace"),
        _number(headers, ATTEMPTS),
        headers.get(ERROR, b"").decode(errors="replace"),
        _number(headers, PARKED_AT),
        origin_in(headers),
        batch.body(index),
        packed,
        None if batch.created_at_ms is None else batch.created_at_ms[index],
    )


def _batch(letters: list[Letter], *, drop: bool) -> Batch:
    bodies = [split_body(letter.body) for letter in letters]
    created = [letter.created_at_ms for letter in letters]
    return batch_codec.build(
        [value for _, _, value in bodies],
        encodings=[encoding for encoding, _, _ in bodies],
        keys=[key for _, key, _ in bodies],
        ids=[tagged_id(replay_id(letter.partition, letter.offset)) for letter in letters],
        headers=[DROPPED_HEADERS if drop else letter.headers for letter in letters],
        created_at_ms=[at or 0 for at in created] if any(created) else None,
    )


def batches(letters: list[Letter], *, drop: bool) -> Iterator[tuple[int, Batch]]:
    """Yield (partition, batch), in batches of a good size."""
    chosen: dict[tuple[int, bool], list[Letter]] = {}
    for letter in letters:
        place = (letter.partition, letter.created_at_ms is None)  # the column is all or nothing
        some = chosen.setdefault(place, [])
        size = sum(len(chosen.body) + len(chosen.headers) for chosen in some)
        if len(some) >= BATCH_LETTERS or size >= BATCH_BYTES:
            yield letter.partition, _batch(some, drop=drop)
            some.clear()
        some.append(letter)
    for (partition, _), some in chosen.items():
        yield partition, _batch(some, drop=drop)


@dataclass(slots=True)
class DeadLetters:
    """The dead letters of one topic, read through a broker."""

    client: AdminClient
    topic: str
    partitions: int = 0
    letters: dict[str, Letter] = field(default_factory=dict)

    def load(self, group: str | None = None) -> list[Letter]:
        """Return all letters, or those of one group, with their status.

        Raises UnknownTopic if the topic itself does not exist.
        """
        self.partitions = self.client.describe_topic(self.topic).partitions
        self.letters.clear()
        for record in _stored(self.client, dead_topic(self.topic)):
            for offset, index in enumerate(kept_indices(record), record.first_offset):
                letter = letter_at(self.topic, record, index, offset)
                if group in {None, letter.group}:
                    self.letters[letter.id] = letter
        for name in sorted({letter.group for letter in self.letters.values()}):
            self._answers(name)
        return list(self.letters.values())

    def answer(self, letters: list[Letter], group: str, *, drop: bool) -> int:
        """Replay or drop letters of a group. Returns how many answers are new.

        An earlier answer to a letter stands: look at `status` after another `load`. May be
        interrupted and repeated. Raises InvalidName, DiskFull, Busy, NoAnswer.
        """
        topic = private_topic(self.topic, group)
        self.client.create_topic(topic, self.partitions)
        new = 0
        for partition, batch in batches(letters, drop=drop):
            produced = self.client.produce(topic, partition, batch)
            new += sum(count for count, verdict, _ in produced.runs if verdict == STORED)
        return new

    def follow(self, group: str, ledgers: dict[int, Ledger]) -> None:
        """Update the status of replayed letters from ledgers by partition."""
        try:
            topic_id = self.client.describe_topic(private_topic(self.topic, group)).topic_id
        except UnknownTopic:
            return
        last: dict[Origin, Letter] = {}
        for letter in self.letters.values():
            if letter.group == group and letter.origin is not None:
                last[letter.origin] = letter
        for letter in self.letters.values():
            ledger = ledgers.get(letter.partition)
            if letter.group != group or letter.status != REPLAYED or ledger is None:
                continue
            if ledger.next_offset_of(topic_id) > (letter.answered_at or 0):
                again = letter.origin is not None and last[letter.origin] is not letter
                letter.status = PARKED_AGAIN if again else PROCESSED

    def named(self, ids: list[str], group: str | None) -> list[Letter]:
        """Raises NoSuchLetter; call `load` first."""
        missing = [name for name in ids if name not in self.letters]
        if missing:
            of_group = "" if group is None else f" of group {group}"
            raise NoSuchLetter(f"{self.topic} has no dead letter {missing[0]}{of_group}")
        return [self.letters[name] for name in ids]

    def _answers(self, group: str) -> None:
        """Update the status of letters from the answers in the private topic of a group."""
        by_id = {
            replay_id(letter.partition, letter.offset): letter
            for letter in self.letters.values()
            if letter.group == group
        }
        for record in _stored(self.client, private_topic(self.topic, group)):
            batch = record.batch
            assert batch is not None, "fetched batches come parsed"
            for offset, index in enumerate(kept_indices(record), record.first_offset):
                tagged = b"" if batch.ids is None else batch.ids[index]
                letter = by_id.get(tagged[1:].decode(errors="replace"))
                if letter is None or tagged[:1] != TEXT_TAG:
                    continue
                dropped = batch.headers is not None and batch.headers[index] == DROPPED_HEADERS
                letter.status = DROPPED if dropped else REPLAYED
                letter.answered_at = offset


def _stored(client: AdminClient, topic: str) -> Iterator[BatchStored]:
    """A topic that does not exist has none."""
    try:
        described = client.describe_topic(topic)
    except UnknownTopic:
        return
    starts = described.start_offsets or (0,) * described.partitions
    for partition, offset in enumerate(starts):
        while True:
            fetched, stored = client.fetch(topic, partition, offset)
            yield from stored
            if fetched.next_offset <= offset or fetched.next_offset >= fetched.end_offset:
                break
            offset = fetched.next_offset


def _headers(packed: bytes) -> dict[str, bytes]:
    try:
        return decode_headers(packed)
    except Malformed:
        return {}


def _number(headers: dict[str, bytes], name: str) -> int:
    try:
        return int(headers[name])
    except (KeyError, ValueError):
        return 0


def _shown(data: str | bytes) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "0x" + data.hex()
