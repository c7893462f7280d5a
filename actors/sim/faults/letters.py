"""What operators do with dead letters, again and again and never sure that it has arrived."""

from __future__ import annotations

from ...codec import batch as batch_codec
from ...codec import wire
from ...codec.values import encode_letter_headers
from ...core.consumer.inputs import DROPPED_HEADERS
from ...ids import dead_topic, private_topic, replay_id, tagged_id
from ...protocol import VERSION_MAX, VERSION_MIN, CreateTopic, Hello, Produce
from ..oracles.log import StoredMessage
from ..processes.handler import IDENTITY, Group
from .base import Fault

CLOSE_MS = 2_000
DROPS = 0.2  # odds that a letter is dropped


class Replays(Fault):
    """Dead letters are sent to their group's private topic, each perhaps several times."""

    name = "replays"

    def strike(self) -> bool:
        if "copied ledger" in self.world.plan.faults:
            return False  # a copy knows nothing of what came to its original alone; see plan.py
        known = self.world.oracle.messages
        letters = [
            (group, partition, offset, letter)
            for group in self.world.plan.groups
            for partition in range(self.world.plan.partitions[group.topic])
            for offset, letter in enumerate(known.get((dead_topic(group.topic), partition), ()))
            if letter.producer == f"@{group.name}/{group.topic}/{partition}"
        ]
        if not letters:
            return False
        self._send(*self.rng.choice(letters))
        return True

    def _send(self, group: Group, partition: int, offset: int, letter: StoredMessage) -> None:
        encoding, key, value = batch_codec.split_body(letter.body)
        headers = encode_letter_headers({}, {IDENTITY: letter.original})
        if self.rng.random() < DROPS:
            headers = DROPPED_HEADERS
        batch = batch_codec.build(
            [value],
            encodings=encoding,
            keys=None if key is None else [key],
            ids=[tagged_id(replay_id(partition, offset))],
            headers=[headers],
        )
        world, topic = self.world, private_topic(group.topic, group.name)
        hello = Hello(1, VERSION_MIN, VERSION_MAX, "admin", world.draw(), b"", 0)
        create = CreateTopic(2, topic, world.plan.partitions[group.topic])
        produce = Produce(3, topic, partition, "", 0, -1, world.draw(), 0, b"", batch.crc)
        client = world.connect()
        for message in (hello, create):
            client.send(b"", wire.encode(message, None))
        client.send(b"", wire.encode(produce, batch.raw))
        world.after(CLOSE_MS, client.endpoint.close)
