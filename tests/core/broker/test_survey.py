"""What operators watch: one question brings topics, counts, owners and lag, also in time."""

from __future__ import annotations

import pytest

from oncemq.core.broker.survey import SurveyMade, SurveyWanted
from oncemq.library.operating.overview import Overview, gathered
from oncemq.limits import Limits
from oncemq.protocol import DescribeGroup, Fetch, Join, ListTopics, Renew, ShowTopic, Survey
from tests.core.broker.help import World


def opened(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello(version_max=4)
    world.topic()
    world.producer()
    return world


def look(world: World) -> Overview:
    return gathered(lambda after: world.ask(Survey(world.n, *after)))


def join(world: World, topic: str = "t", group: str = "g", committed: int = 0) -> None:
    """Own partition 0, and report what is committed."""
    who = (b"A" * 16, f"{group}{topic}".encode(), b"", b"", 0, 0, False, "host", "/state", "one")
    granted = world.ask(Join(world.n, group, topic, 0, *who, b"M" * 16))
    world.ask(Renew(world.n, group, topic, 0, granted.epoch, b"M" * 16, committed))


def test_figures_are_those_of_the_single_questions():
    """Topics, what they hold, owner, epoch, committed and end."""
    world = opened()
    world.send(0, *"abcde")
    world.topic("u")
    join(world, committed=2)
    seen = look(world)
    assert [(line.topic, line.messages) for line in seen.topics] == [
        (row[0], row[3]) for row in sorted(world.ask(ListTopics(world.n)).topics)
    ]
    (rows,) = world.ask(ShowTopic(world.n, "t")).rows
    assert (seen.topics[0].stored, seen.topics[0].bytes_held) == (rows[2], rows[3])
    (told,) = world.ask(DescribeGroup(world.n, "g")).partitions
    (line,) = seen.grants
    assert (line.topic, line.partition, line.epoch, line.consumer, line.live) == (
        *told[:4],
        told[6],
    )
    assert (line.committed, line.end, line.lag) == (told[8], told[9], 3)
    assert seen.durable == world.log.durable_end


def test_what_was_not_stored_is_counted():
    """Duplicates and conflicts of both kinds of ids, and what is refused for good."""
    world = opened()
    world.send(0, *"abc")
    world.send(0, *"abc")
    world.send(0, "x", "b", "c", "d")
    world.send_ids(0, {"1": "a", "2": "b"})
    world.send_ids(1, {"2": "b", "3": "c"})
    world.send_ids(2, {"3": "other", "1": "a"})
    world.send(9, "gap")  # sent again by itself: nothing was refused for good
    world.send(0, "a", producer="nobody")
    (topic,) = look(world).topics
    assert (topic.duplicates, topic.conflicts, topic.refused) == (3 + 2 + 1 + 1, 1 + 1, 1)
    assert (topic.stored, topic.ids) == (4 + 3, 3)


def test_pages_are_bounded_and_bring_every_row_once(monkeypatch):
    """Also where a topic has more grants than a page has rows."""
    monkeypatch.setattr("oncemq.core.broker.survey.SURVEY_ROWS_MAX", 3)
    world = opened()
    for topic in ("a", "t", "z"):
        world.topic(topic)
        for number in range(4):
            join(world, topic, f"g{number}")
    pages = []

    def page(after):
        pages.append(world.ask(Survey(world.n, *after)))
        return pages[-1]

    seen = gathered(page)
    assert all(len(one.topics) + len(one.grants) <= 3 for one in pages)
    assert len(pages) == 5
    assert [line.topic for line in seen.topics] == ["a", "t", "z"]
    assert [(line.topic, line.group) for line in seen.grants] == [
        (topic, f"g{number}") for topic in ("a", "t", "z") for number in range(4)
    ]


@pytest.mark.parametrize("committed", range(5))
def test_a_lag_is_as_old_as_the_first_message_that_is_not_committed(committed):
    """Exactly, although the index has one entry for all of them; asking again reads nothing."""
    world = opened()
    for number in range(4):
        world.clock.ms += 10_000
        world.send(number, "v")
    join(world, committed=committed)
    world.clock.ms += 500
    (line,) = look(world).grants
    waited = (3 - committed) * 10_000 + 500 if committed < 4 else 0
    assert line.age_ms == waited
    world.log.read = None  # type: ignore[assignment]
    world.clock.ms += 1_000
    (line,) = look(world).grants
    assert line.age_ms == (waited + 1_000 if waited else 0)


def test_a_page_reads_a_bounded_number_of_batches():
    """What it did not read looks older, and a later page tells it."""
    world = opened(survey_reads_max=2)
    for number in range(3):
        world.send(number, "v")
        world.clock.ms += 10_000
    for number in range(5):
        join(world, group=f"g{number}", committed=2)
    ages = [sorted(line.age_ms for line in look(world).grants) for _ in range(3)]
    assert ages == [[10_000] * exact + [30_000] * (5 - exact) for exact in (2, 4, 5)]


def test_a_process_may_ask_its_own_broker():
    """The page comes as work of the same turn; no peer gets anything."""
    world = opened()
    world.driver.post(SurveyWanted(Survey(0, "", "", 0)))
    world.turn()
    (made,) = [item for item in world.work if isinstance(item, SurveyMade)]
    assert [row[0] for row in made.page.topics] == ["t"]
    assert world.wire.sent == []


def test_fetches_go_on_beside_a_survey_that_reads():
    """Their tokens are their own."""
    world = opened()
    for number in range(3):
        world.clock.ms += 10_000
        world.send(number, "v")
    join(world, committed=1)
    world.put(Survey(world.n, "", "", 0))
    world.put(Fetch(world.n, "", "t", 0, 0, 0, 1 << 20, 0))
    world.put(Survey(world.n, "", "", 0))
    world.turn()
    first, fetched, second = world.take()
    assert fetched.next_offset == 3
    assert first.grants == second.grants
