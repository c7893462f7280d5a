"""What a first user will try, with the real commands, and with `kill -9` in between."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from examples.flights import expected
from oncemq.chaos import StoredMessage, read_topic
from tests.process.house import FLIGHT_ID, FLIGHTS, START_S, House

pytestmark = pytest.mark.process

ALL = 27_004
APPLICATION = "examples.flights.app:app"
FINISH_S = 300.0


def stored(house: House, topic: str = "flights") -> list[StoredMessage]:
    return list(read_topic(house.endpoint, topic))


def state(house: House, group: str) -> dict[str, object]:
    """What a group has committed, by `oncemq state`."""
    command = house.start("state", "-m", "oncemq", "state", f"--state={house.state}",
                          f"--group={group}", "--json")  # fmt: skip
    command.wait(START_S, 0)
    return dict(json.loads(command.stdout()))


def test_the_same_ids_under_another_name_are_duplicates(house: House) -> None:
    """With ids from the rows a second name stores nothing: each is known already."""
    house.broker()
    first = house.flights("--name=a", f"--id-field={FLIGHT_ID}")
    first.wait(FINISH_S, 0)
    house.check_summary(first, sent=ALL, appended=ALL)
    second = house.flights("--name=b", f"--id-field={FLIGHT_ID}")
    second.wait(FINISH_S, 0)
    house.check_summary(second, sent=ALL, appended=0, duplicates=ALL)
    messages = stored(house)
    assert [message.value for message in messages] == list(expected.rows())
    assert len({message.message_id for message in messages}) == ALL


def test_a_producer_killed_twenty_times_stores_each_line_once(house: House, tmp_path: Path) -> None:
    """Killed -9 twenty times on the way, without ids in the rows: every row once, in order."""
    house.broker()
    lines = expected.lines()
    feed = tmp_path / "flights.csv"
    feed.write_text(lines[0], "utf-8")
    arguments = ("--topic=flights", "--format=csv", "--name=a", str(feed))
    share = len(lines) // 21 + 1
    before = 0
    for kill in range(20):
        producer = house.producer("--follow", *arguments)
        with feed.open("a", encoding="utf-8") as stream:
            stream.writelines(lines[1 + kill * share : 1 + (kill + 1) * share])
        house.wait_for(producer, "client.connected")
        house.wait_for_appended(before + 1)
        assert producer.kill() == -9, producer.told()
        before = house.appended()
    with feed.open("a", encoding="utf-8") as stream:
        stream.writelines(lines[1 + 20 * share :])
    last = house.producer(*arguments)
    last.wait(FINISH_S, 0)
    messages = stored(house)
    assert [message.sequence for message in messages] == list(range(ALL))
    assert [message.value for message in messages] == list(expected.rows())
    assert last.summary()["sent"] == ALL


def test_another_file_under_the_same_name_is_refused(house: House, tmp_path: Path) -> None:
    """A changed file under a known name ends with 1 before anything is sent."""
    house.broker()
    lines = expected.lines()[:200]
    file = tmp_path / "flights.csv"
    file.write_text("".join(lines[:100]), "utf-8")
    arguments = ("--topic=flights", "--format=csv", "--name=a", str(file))
    house.producer(*arguments).wait(FINISH_S, 0)
    assert len(stored(house)) == 99
    file.write_text("".join([lines[0], *lines[50:]]), "utf-8")
    other = house.producer(*arguments)
    other.wait(FINISH_S, 1)
    assert "another file" in other.stderr().lower(), other.told()
    assert len(stored(house)) == 99


def test_a_gz_file_is_read_as_it_is(house: House, tmp_path: Path) -> None:
    """A compressed file gives the same messages under the same name as the plain one."""
    house.broker()
    with gzip.open(FLIGHTS, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))[:51]
    plain, packed = tmp_path / "few.csv", tmp_path / "few.csv.gz"
    text = "".join(",".join(row) + "\n" for row in rows)
    plain.write_text(text, "utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    arguments = ("--topic=flights", "--format=csv", "--name=a")
    house.producer(*arguments, str(packed)).wait(FINISH_S, 0)
    house.producer(*arguments, str(plain)).wait(FINISH_S, 0)
    assert len(stored(house)) == 50


def test_a_web_order_sent_twice_is_already_there(house: House) -> None:
    """The same id again, after the broker was killed: recognised, at the same offset."""
    broker = house.broker()
    shop = str(Path(__file__).resolve().parents[2] / "examples" / "shop.py")
    first = house.start("shop", shop)
    first.wait(FINISH_S, 0)
    assert "o-1 stored at 0" in first.stdout()
    assert broker.kill() == -9
    house.broker()
    second = house.start("shop", shop)
    second.wait(FINISH_S, 0)
    assert "o-1 was there already" in second.stdout()
    assert [message.message_id for message in stored(house, "orders")] == ["o-1", "o-2", "o-3"]


def test_a_second_consumer_waits_and_goes_on_after_a_kill(house: House) -> None:
    """One of two works; when it is killed -9 the other goes on where it was committed."""
    house.broker()
    first = house.consumer(APPLICATION, "--group=totals")
    house.wait_for(first, "consumer.granted")
    second = house.consumer(APPLICATION, "--group=totals")
    house.wait_for(second, "consumer.standby")
    producer = house.flights("--name=a")
    house.wait_for(first, "commit.synced")
    assert first.kill() == -9
    house.wait_for(second, "consumer.granted")
    assert house.history.events["group.lease_expired"] == 0, "a dead owner's lock is free at once"
    producer.wait(FINISH_S, 0)
    house.wait_for_committed("totals", "flights", ALL)
    second.stop(START_S, 0)
    assert state(house, "totals") == expected.totals_of(expected.rows())


def test_a_frozen_consumer_that_was_replaced_has_no_effect(house: House, tmp_path: Path) -> None:
    """SIGSTOP, takeover, SIGCONT: the zombie ends as fenced (3), and nothing counts twice."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "from examples.flights.app import add_flight\n"
        "from oncemq import App\n"
        "app = App()\n"
        "@app.consumer('flights', group='totals')\n"
        "def slow(flight, tx):\n"
        "    time.sleep(0.0001)\n"
        "    add_flight(flight, tx)\n",
        "utf-8",
    )
    house.broker()
    first = house.consumer("slow:app")
    house.wait_for(first, "consumer.granted")
    producer = house.flights("--name=a")
    house.wait_for(first, "commit.synced")
    assert first.freeze()
    second = house.consumer("slow:app")
    house.wait_for(second, "consumer.granted")
    assert first.exit_code is None
    assert first.thaw()
    first.wait(FINISH_S, 3)
    assert "superseded" in first.stderr(), first.told()
    producer.wait(FINISH_S, 0)
    second.stop(START_S, 0)
    house.consumer("slow:app", "--until-idle=1").wait(FINISH_S, 0)
    assert state(house, "totals") == expected.totals_of(expected.rows())
    outputs = stored(house, "cancelled")
    assert len(outputs) == 521
    assert [message.sequence for message in outputs] == list(range(521))


def test_a_frozen_producer_that_was_replaced_has_no_effect(house: House, tmp_path: Path) -> None:
    """The second owner of a name fences the first, wherever that one was paused."""
    house.broker()
    lines = expected.lines()
    feed = tmp_path / "flights.csv"
    feed.write_text("".join(lines[:5_000]), "utf-8")
    arguments = ("--topic=flights", "--format=csv", "--name=a", str(feed))
    first = house.producer("--follow", *arguments)
    house.wait_for_appended(1)
    assert first.freeze()
    with feed.open("a", encoding="utf-8") as stream:
        stream.writelines(lines[5_000:9_001])
    second = house.producer(*arguments)
    second.wait(FINISH_S, 0)
    assert first.thaw()
    with feed.open("a", encoding="utf-8") as stream:
        stream.writelines(lines[9_001:9_101])
    first.wait(FINISH_S, 3)
    messages = stored(house)
    assert [message.value for message in messages] == list(expected.rows())[: len(messages)]
    assert len(messages) == 9_000


def test_a_live_broker_is_not_taken_over_by_accident(house: House) -> None:
    """A second broker on the same directory is refused and names the owner's pid."""
    first = house.broker()
    second = house.broker(ready=False)
    second.wait(START_S, 1)
    assert str(first.pid) in second.stderr(), second.told()
    assert first.exit_code is None


def test_a_frozen_broker_is_replaced(house: House) -> None:
    """`--takeover` ends a frozen owner of this host; what was acknowledged is there."""
    first = house.broker()
    house.flights("--name=a").wait(FINISH_S, 0)
    assert first.freeze()
    second = house.broker("--takeover")
    assert first.wait(START_S, -9, 3) in {-9, 3}
    assert len(stored(house)) == ALL
    second.stop(START_S, 0)


def test_wrong_usage_ends_with_two(house: House) -> None:
    """A mistake in the command line is told apart from a failure of the work."""
    assert house.producer().wait(START_S) == 2
    assert house.broker("--no-such-option", ready=False).wait(START_S) == 2
