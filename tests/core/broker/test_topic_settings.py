"""Settings of topics: set at the creation or later, kept over crashes, told to who knows them."""

from __future__ import annotations

import pytest

from oncemq.core.broker import state
from oncemq.protocol import (
    ConfigureTopic,
    CreateTopic,
    DescribeTopic,
    ListTopics,
    TopicDescribed,
)
from oncemq.topic_settings import TopicSettings
from tests.core.broker.help import OTHER, World, refuse

DAY = 86_400_000


@pytest.fixture
def world() -> World:
    world = World()
    world.hello(version_max=4)
    return world


def texts(answer):
    assert isinstance(answer, TopicDescribed), answer
    return answer.dedup, answer.retain


def test_a_topic_is_made_with_settings_and_keeps_them(world):
    """By both requests that make topics; settings and topic survive together."""
    made = world.ask(CreateTopic(world.n, "orders", 2, "7d", "1GB"))
    assert texts(made) == ("1w", "1GB")
    described = world.ask(DescribeTopic(world.n, "logs", True, 3, "", "30d,processed"))
    assert (described.partitions, *texts(described)) == (3, "forever", "30d,processed")
    world.crash()
    world.hello(version_max=4)
    topics = world.core.state.topics.by_name
    assert topics["orders"].settings == TopicSettings(7 * DAY, None, 10**9)
    assert topics["logs"].settings == TopicSettings(None, 30 * DAY, None, retain_processed=True)
    assert texts(world.ask(DescribeTopic(world.n, "orders", False))) == ("1w", "1GB")


def test_settings_change_one_by_one(world):
    """What is not named stays; the same again writes nothing."""
    world.topic()
    assert texts(world.ask(ConfigureTopic(world.n, "t", "12h", ""))) == ("12h", "forever")
    assert texts(world.ask(ConfigureTopic(world.n, "t", "", "2d"))) == ("12h", "2d")
    end = world.log.end
    assert texts(world.ask(ConfigureTopic(world.n, "t", "12h", "2d"))) == ("12h", "2d")
    assert world.log.end == end
    assert texts(world.ask(ConfigureTopic(world.n, "t", "forever", "forever"))) == (
        "forever",
        "forever",
    )
    assert [told["dedup"] for told in world.events.named("topic.configured")] == [
        "12h", "12h", "forever",
    ]  # fmt: skip


def test_a_topic_that_exists_is_not_changed_by_its_creation(world):
    """Other settings are an error that names the command; no setting at all fits any."""
    world.ask(CreateTopic(world.n, "t", 1, "12h", ""))
    refused = world.ask(CreateTopic(world.n, "t", 1, "7d", ""))
    assert refused.code == "topic_exists"
    assert "dedup 12h" in refused.reason
    assert "topics set" in refused.hint
    for dedup in ("12h", "720m", ""):
        assert texts(world.ask(CreateTopic(world.n, "t", 1, dedup, ""))) == ("12h", "forever")
    assert texts(world.ask(DescribeTopic(world.n, "t", True, 9, "1d", "1d"))) == ("12h", "forever")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda n: ConfigureTopic(n, "t", "soon", ""),
        lambda n: ConfigureTopic(n, "t", "", "1gb"),
        lambda n: CreateTopic(n, "new", 1, "soon", ""),
        lambda n: CreateTopic(n, "t.dead", 1, "7d", ""),
        lambda n: DescribeTopic(n, "t@g", True, 1, "7d", ""),
    ],
)
def test_settings_that_cannot_be_are_refused_and_change_nothing(world, request_of):
    """A text that says nothing, and a horizon for ids that OnceMQ itself relies on."""
    world.topic()
    end = world.log.end
    assert world.ask(request_of(world.n)).code == "invalid_setting"
    assert world.log.end == end


def test_a_topic_of_oncemq_may_be_bounded(world):
    """Only its ids must stay."""
    assert texts(world.ask(CreateTopic(world.n, "t.dead", 1, "", "30d"))) == ("forever", "30d")


def test_a_full_disk_and_a_missing_topic_refuse_a_change(world):
    """Nothing is set in memory that is not written."""
    assert world.ask(ConfigureTopic(world.n, "t", "7d", "")).code == "unknown_topic"
    world.topic()
    world.log.reserve = refuse
    assert world.ask(ConfigureTopic(world.n, "t", "7d", "")).code == "disk_full"
    assert texts(world.ask(DescribeTopic(world.n, "t", False)))[0] == "forever"
    del world.log.reserve
    world.clock.ms += 1000
    world.turn()
    assert texts(world.ask(ConfigureTopic(world.n, "t", "7d", "")))[0] == "1w"


def test_clients_of_earlier_versions_meet_no_field_that_they_do_not_know(world):
    """Their headers stay those of their version."""
    world.ask(CreateTopic(world.n, "t", 1, "7d", "1GB"))
    assert world.ask(ListTopics(world.n)).settings == (("1w", "1GB"),)
    world.hello(OTHER, version_max=3)
    assert texts(world.ask(DescribeTopic(world.n, "t", False), peer=OTHER)) == ("forever",) * 2
    assert world.ask(ListTopics(world.n), peer=OTHER).settings == ()


def test_a_snapshot_keeps_settings(world):
    """After a restart a topic has the settings that it had."""
    world.ask(CreateTopic(world.n, "t", 1, "7d", ""))
    parts = dict(world.core.state.snapshot().whole())
    again = state.BrokerState(b"S" * 32)
    again.restore(parts)
    assert again.topics.by_name["t"].settings == TopicSettings(7 * DAY)
