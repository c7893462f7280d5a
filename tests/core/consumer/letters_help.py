"""What tests of dead letters share: members that cannot handle a message, and what came of it."""

from __future__ import annotations

from typing import Any

from oncemq.codec import records as codec
from oncemq.ids import dead_topic, private_topic
from oncemq.library.operating.dead_letters import Letter, letter_at
from oncemq.library.testkit.actors import create_topic, stored_batches
from oncemq.shells.ledger.files import ledger_directory
from oncemq.storage.outside_reader import LogReader
from tests.core.consumer.world import GROUP, TOPIC, Member, World

DEAD, PRIVATE = dead_topic(TOPIC), private_topic(TOPIC, GROUP)


def letters(world: World) -> list[Letter]:
    topic = world.broker.core.state.topics.by_name.get(DEAD)
    if topic is None:
        return []
    return [
        letter_at(TOPIC, stored, index, stored.first_offset + index)
        for stored in stored_batches(world.broker, topic.number)
        for index in range(stored.kept)
    ]


def poisoned(member: Member, what: Any, *ids: str) -> Any:
    """The member's own handler, but messages under `ids` raise `what`."""

    def handle(message: Any, tx: Any) -> None:
        if message.id in ids:
            member.seen.append((message.id, message.attempt))
            raise what
        member.handle(message, tx)

    return handle


def with_poison(world: World, what: Any, *ids: str, **options: Any) -> Member:
    """A member whose handler raises `what` for messages under `ids`."""
    holder: list[Member] = []
    member = world.member(lambda m, tx: poisoned(holder[0], what, *ids)(m, tx), **options)
    holder.append(member)
    return member


def records(world: World, kind: type) -> list[Any]:
    """Records of the ledger, in order, as a reader of the files finds them."""
    directory = ledger_directory(world.state, GROUP, TOPIC, 0)
    reader = LogReader.open(world.disk.process("reader"), directory, wait=lambda: None)
    try:
        found = [codec.decode(s.type, s.meta, s.body, s.body_crc) for s in reader.replay(0)]
    finally:
        reader.close()
    return [record for record in found if isinstance(record, kind)]


def send_private(world: World, batch: Any) -> None:
    if PRIVATE not in world.broker.core.state.topics.by_name:
        create_topic(world.network, world.loop, PRIVATE, 1)
    world.producers[""].store(world.loop, PRIVATE, 0, batch)


def private_done(world: World, member: Member) -> bool:
    topic = world.broker.core.state.topics.by_name[PRIVATE]
    end = topic.partition(0).end_offset
    return member.core.ledger.next_offset_of(topic.topic_id) == end and bool(
        member.core.idle_since_ms
    )
