"""`explain` on a log that retention has shortened."""

from __future__ import annotations

from oncemq.proof.story.explain import explain
from oncemq.proof.story.story import Story
from oncemq.protocol import DeleteTopic, DescribeTopic
from tests.core.broker.test_kept import Pinned


def story(world: Pinned, message_id: str, topic: str) -> Story:
    return explain(world.disk, message_id, topic=topic, data="data", state=None)


def test_messages_in_kept_parts_are_found_and_deleted_ones_named() -> None:
    """What is left has its offset; of what is gone the story says that it may be so."""
    world = Pinned()
    world.churn(300)
    assert world.log.start > 0
    found = story(world, "s-20", "slow").accepted
    assert found is not None
    assert (found["offset"], found["value"]) == (2, "0020")
    newest = story(world, "t/p:0:299", "t").accepted
    assert newest is not None
    assert newest["offset"] == 299
    gone = story(world, "t/p:0:3", "t")
    assert gone.accepted is None
    assert "deleted by retention" in gone.notes[-1]


def test_a_deleted_topic_has_no_messages() -> None:
    """Nor has a later topic of its name those of the first."""
    world = Pinned("forever")
    world.churn(20)
    topic_id = world.ask(DescribeTopic(world.n, "slow", create=False)).topic_id
    world.ask(DeleteTopic(world.n, "slow", topic_id))
    world.topic("slow")
    told = story(world, "s-10", "slow")
    assert told.accepted is None
    assert any("was deleted" in note for note in told.notes)
