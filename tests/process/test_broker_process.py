"""The broker as a real process: killed, frozen, stopped, refused; what it acknowledged stays."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from oncemq import App, PendingMany, Producer
from oncemq.chaos import read_topic
from oncemq.chaos.programs import CRASHED, FENCED
from oncemq.codec import batch as batch_codec
from oncemq.protocol import Produce, Produced
from tests.process.house import START_S, House
from tests.process.talker import Talker
from tests.runtime.test_zmq_transport import needs_ipv6

pytestmark = pytest.mark.process


def generations(house: House) -> list[str]:
    return sorted(name for name in os.listdir(house.data) if name.startswith("gen-"))


def test_what_was_acknowledged_survives_sigkill(house):
    """Killed after each of many acknowledgements, the broker has every message once, in order."""
    broker = house.broker()
    with Talker(house.endpoint) as talker:
        talker.become()
        sent = []
        for number in range(6):
            assert talker.store(f"m{number}") == number
            sent.append(f"m{number}")
            broker.kill()
            broker = house.broker()
        assert talker.send("m3", first=3) == ((1, 1, 3),)
        assert talker.stored() == sent


@pytest.mark.parametrize(
    "point",
    [
        "after_append_before_sync:4",
        "after_sync_before_reply:4",
        "during_snapshot:1",
    ],
)
def test_a_crash_inside_a_turn_loses_and_doubles_nothing(house, point):
    """Dead between append, sync and reply: the resend settles it, each message is there once."""
    broker = house.broker("--snapshot-every=4096", ONCEMQ_CRASH_AT=point)
    with Talker(house.endpoint) as talker:
        sent = [f"m{number}-{'x' * 600}" for number in range(12)]
        try:
            talker.become()
            done = 0
            while broker.exit_code is None and done < len(sent):
                batch = sent[done]
                answer = talker_once(talker, batch)
                done += answer
        finally:
            assert broker.wait(START_S) == CRASHED
        house.broker("--snapshot-every=4096")
        talker.become()
        for number, value in enumerate(sent):
            talker.send(value, first=number)
        assert talker.stored() == sent


def talker_once(talker: Talker, value: str) -> int:
    """Send one message once; 1 if it was acknowledged, 0 if the broker died over it."""
    batch = batch_codec.build([value.encode()], encodings=1)
    produce = Produce(0, "t", 0, "p", talker.epoch, talker.next_number, b"", 0, b"", batch.crc)
    received = talker.once(produce, batch.raw, timeout_s=0.5)
    if received is None:
        return 0
    assert isinstance(received.message, Produced)
    talker.next_number += 1
    return 1


@pytest.mark.parametrize("point", ["during_generation_change:1", "during_recovery:2"])
def test_a_crash_while_starting_is_survived(house, point):
    """Dead while taking over the log: the next start finds everything."""
    broker = house.broker()
    with Talker(house.endpoint) as talker:
        talker.become()
        talker.send("a", "b")
        talker.send("c")
        broker.kill()
        assert house.broker(ready=False, ONCEMQ_CRASH_AT=point).wait(START_S) == CRASHED
        house.broker()
        assert talker.stored() == ["a", "b", "c"]


def test_an_unknown_crash_point_is_wrong_usage(house):
    """A typing error must not make a fault test pass without its fault."""
    assert house.broker(ready=False, ONCEMQ_CRASH_AT="nowhere:1").wait(START_S) == 2


def test_sigterm_stops_cleanly(house):
    """Exit 0, and the next start cuts no tail."""
    broker = house.broker()
    with Talker(house.endpoint) as talker:
        talker.become()
        talker.send("a")
        assert broker.stop(START_S, 0) == 0
        again = house.broker()
        assert talker.stored() == ["a"]
    assert house.history.of(again.pid)["log.tail_cut"] == 0


def test_a_second_broker_on_the_data_is_refused_and_told_who_owns_it(house):
    """Exit 1, the owner's pid, and the owner goes on undisturbed."""
    first = house.broker()
    before = generations(house)
    second = house.start("second", "broker.py", f"--data={house.data}", "--bind=tcp://127.0.0.1:0")
    assert second.wait(START_S) == 1
    assert f"pid {first.pid}" in second.stderr()
    assert generations(house) == before
    with Talker(house.endpoint) as talker:
        talker.become()
        talker.send("a")


def test_takeover_is_for_a_frozen_owner_only(house):
    """--takeover leaves a running owner alone, ends a frozen one, and frees its port."""
    first = house.broker()
    with Talker(house.endpoint) as talker:
        talker.become()
        talker.send("a")
        assert house.broker("--takeover", ready=False).wait(START_S) == 1
        assert first.exit_code is None
        first.freeze()
        house.broker("--takeover")
        assert first.wait(START_S) == -signal.SIGKILL
        assert talker.stored() == ["a"]


def test_a_superseded_broker_ends_fenced(house):
    """A higher generation appears (a takeover it did not see): exit 3 within about a second."""
    broker = house.broker()
    highest = generations(house)[-1]
    (house.data / f"gen-{int(highest[4:]) + 1:020d}").mkdir()
    assert broker.wait(START_S) == FENCED


def test_a_port_in_use_takes_no_generation(house, tmp_path):
    """All that can fail comes first: the log of a broker that cannot bind is untouched."""
    house.broker()
    data = tmp_path / "other"
    shutil.copytree(house.data, data)
    before = sorted(os.listdir(data))
    second = house.start("second", "broker.py", f"--data={data}", f"--bind={house.endpoint}")
    assert second.wait(START_S) == 1
    assert "in use" in second.stderr()
    assert [name for name in sorted(os.listdir(data)) if name.startswith("gen-")] == [
        name for name in before if name.startswith("gen-")
    ]


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://127.evil.example:0"]
)
def test_other_machines_need_insecure(house, bind):
    """Without keys nobody proves who connects: a bind for other machines is wrong usage."""
    broker = house.start("second", "broker.py", f"--data={house.data}", f"--bind={bind}")
    assert broker.wait(START_S) == 2
    assert "--insecure" in broker.stderr()
    assert not Path(house.data).exists()


@pytest.mark.parametrize("asked", ["flag", "environment"])
def test_a_mistyped_topic_is_refused_where_topics_are_made_on_purpose(house, asked):
    """Producer, consumer and tx.send are told; dead letters and the right topic work."""
    (house.directory / "lines").write_text("1\n")
    (house.directory / "typo.py").write_text(
        "from oncemq import App\napp = App()\n"
        "@app.consumer('orders', group='g', retries=0)\n"
        "def take(message, tx): tx.send('invoice', message.value)\n"
        "@app.consumer('ordres', group='other')\n"
        "def typo(message, tx): pass\n"
    )
    if asked == "flag":
        house.broker("--no-create-topics")
    else:
        house.broker(ONCEMQ_CREATE_TOPICS="no")
    for topic in ("orders", "invoices"):
        house.command("topics", "create", topic)
    typo = house.producer("--topic=order", "--name=p", str(house.directory / "lines"))
    typo.wait(START_S, 1)
    assert "did you mean 'orders'?" in typo.stderr()
    house.producer("--topic=orders", "--name=p", str(house.directory / "lines")).wait(START_S, 0)
    wrong = house.consumer("typo:app", "--group=other", "--until-idle=0.5")
    wrong.wait(START_S, 1)
    assert "did you mean 'orders'?" in wrong.stderr()
    house.consumer("typo:app", "--group=g", "--until-idle=0.5").wait(START_S, 4)
    [letter] = house.command("dlq", "list", "--topic=orders")["letters"]
    assert "did you mean 'invoices'?" in str(letter)
    topics = {row["topic"] for row in house.command("topics", "list")["topics"]}
    assert topics == {"orders", "invoices", "orders.dead"}


def test_settings_of_topics_are_set_shown_and_proved(house):
    """At the creation and later; a restart keeps them, and the files say so to `verify`."""
    broker = house.broker()
    made = house.command("topics", "create", "orders", "--dedup=7d", "--retain=1GB,processed")
    assert (made["dedup"], made["retain"]) == ("1w", "1GB,processed")
    house.command("topics", "create", "logs")
    assert house.command("topics", "set", "orders", "--retain=30d")["dedup"] == "1w"
    broker.send_signal(signal.SIGTERM)
    broker.wait(START_S, 0)
    assert house.command("verify", f"--data={house.data}")["ok"]
    house.broker()
    rows = {row.pop("topic"): row for row in house.command("topics", "list")["topics"]}
    assert (rows["orders"]["dedup"], rows["orders"]["retain"]) == ("1w", "30d")
    assert (rows["logs"]["dedup"], rows["logs"]["retain"]) == ("forever", "forever")
    for wrong, said in (
        (("create", "orders", "--dedup=forever"), "exists with dedup 1w, retain 30d"),
        (("set", "orders", "--retain=1gb"), "no age, no size"),
        (("set", "order", "--dedup=1d"), "did you mean 'orders'?"),
    ):
        assert said in house.command("topics", *wrong, code=1)["error"]
    assert "--dedup or --retain" in house.command("topics", "set", "orders", code=2)["error"]


def test_a_topic_with_a_horizon_takes_rows_with_times(house):
    """From a file, by --time-field; without it, and from before the horizon, the line is named."""
    house.broker()
    house.command("topics", "create", "orders", "--dedup=1d")
    now = int(time.time() * 1000)
    rows = "".join(f'{{"id": "o-{n}", "at": {now - n}}}\n' for n in range(3))
    path = house.directory / "orders.jsonl"
    path.write_text(rows)
    argv = ("--topic=orders", "--format=jsonl", "--id-field=id")
    for appended in (3, 0):
        sender = house.producer(*argv, "--time-field=at", str(path))
        sender.wait(START_S, 0)
        assert sender.summary() == {"sent": 3, "appended": appended, "duplicates": 3 - appended}
    bare = house.producer(*argv, str(path))
    bare.wait(START_S, 1)
    assert "created_at" in bare.stderr()
    path.write_text('{"id": "o-9", "at": "2026-01-31 12:00"}\n')
    naive = house.producer(*argv, "--time-field=at", str(path))
    naive.wait(START_S, 1)
    assert "line 1: field 'at' has no offset" in naive.stderr()


def test_idle_producers_are_listed_and_retired(house):
    """Asked for and by name; the next run of the file goes on with its numbers."""
    house.broker()
    path = house.directory / "lines"
    path.write_text("a\nb\n")
    house.producer("--topic=t", "--name=p", str(path)).wait(START_S, 0)
    [row] = house.command("producers", "list")["producers"]
    assert (row["producer"], row["retired"]) == ("p", False)
    assert row["numbers"] == [{"topic": "t", "partition": 0, "next": 2}]
    assert "stored something" in house.command("producers", "retire", "p", "--yes", code=1)["error"]
    assert house.command("producers", "retire", "--idle=1h", "--yes")["retired"] == []
    assert "--force" in house.command("producers", "retire", "--idle=1s", code=2)["error"]
    forced = house.command("producers", "retire", "p", "--force", "--yes")
    assert forced["retired"] == ["p"]
    [row] = house.command("producers", "list")["producers"]
    assert row["retired"]
    path.write_text("a\nb\nc\n")
    again = house.producer("--topic=t", "--name=p", str(path))
    again.wait(START_S, 0)
    assert again.summary() == {"sent": 3, "appended": 1, "duplicates": 0}
    assert [message.value for message in read_topic(house.endpoint, "t")] == ["a", "b", "c"]
    assert house.command("verify", f"--data={house.data}")["ok"]


def test_topics_declared_in_code_are_made_so_and_never_changed(house, caplog):
    """By producer and consumer, also for targets of handlers; another topic is a warning."""
    (house.directory / "declared.py").write_text(
        "from oncemq import App\napp = App()\n"
        "app.topic('orders', partitions=2, retain='30d')\n"
        "app.topic('out', partitions=3, dedup='7d')\n"
        "@app.consumer('orders', group='g')\n"
        "def take(message, tx): tx.send('out', message.value)\n"
    )
    house.broker()
    app = App(house.endpoint)
    app.topic("sent", partitions=2, dedup="1d")
    app.topic("there", dedup="1d")
    house.command("topics", "create", "there", "--partitions=2")
    with app.producer("p") as producer:
        producer.send("sent", "1").result()
        with caplog.at_level(logging.WARNING, "oncemq"):
            producer.send("there", "1").result()
    assert "topic there has 2 partition(s), dedup forever" in caplog.text
    assert "declares dedup 1d" in caplog.text
    house.consumer("declared:app", "--until-idle=0.5").wait(START_S, 0)
    (house.directory / "lines").write_text("1\n")
    house.producer("--topic=orders", "--name=f", str(house.directory / "lines")).wait(START_S, 0)
    house.command("topics", "set", "orders", "--retain=1h")
    consumer = house.consumer("declared:app", "--until-idle=0.5")
    consumer.wait(START_S, 0)
    rows = {row["topic"]: row for row in house.command("topics", "list")["topics"]}
    shown = {name: (row["partitions"], row["dedup"], row["retain"]) for name, row in rows.items()}
    assert shown == {
        "sent": (2, "1d", "forever"),
        "there": (2, "forever", "forever"),
        "orders": (2, "forever", "1h"),
        "out": (3, "1w", "forever"),
    }
    house.refresh()
    assert house.history.events["topic.differs"] == 1  # orders, once for both partitions


@needs_ipv6
def test_all_actors_meet_at_an_ipv6_address(house):
    """Broker, producer, consumer and an operator's command; loopback needs no --insecure."""
    house.endpoint = house.endpoint.replace("127.0.0.1", "[::1]")
    house.environ["ONCEMQ_BROKER"] = house.endpoint
    (house.directory / "lines").write_text("1\n2\n")
    (house.directory / "app6.py").write_text(
        "from oncemq import App\napp = App()\n"
        "@app.consumer('t', group='g')\ndef take(message, tx): tx.send('out', message.value)\n"
    )
    house.broker()
    house.producer("--topic=t", "--name=p", str(house.directory / "lines")).wait(START_S, 0)
    consumer = house.consumer("app6:app", "--until-idle=0.5")
    consumer.wait(START_S, 0)
    assert consumer.summary()["processed"] == 2
    topics = {row["topic"]: row["messages"] for row in house.command("topics", "list")["topics"]}
    assert topics == {"t": 2, "out": 2}
    assert [message.value for message in read_topic(house.endpoint, "out")] == ["1", "2"]


def test_damage_stops_the_broker(house):
    """A flipped byte in what was attested is named, with file and offset, and nothing is changed."""
    broker = house.broker()
    with Talker(house.endpoint) as talker:
        talker.become()
        talker.send("a" * 500)
        talker.send("b" * 500)
    broker.stop(START_S, 0)
    folder = Path(house.data) / generations(house)[-1]
    (segment,) = [path for path in folder.iterdir() if b"a" * 500 in path.read_bytes()]
    data = bytearray(segment.read_bytes())
    data[data.index(b"a" * 500)] ^= 1
    segment.write_bytes(data)
    again = house.broker(ready=False)
    assert again.wait(START_S) == 1
    assert segment.name in again.stderr()
    assert segment.read_bytes() == data


def test_ids_in_files_survive_sigkill(house):
    """Killed while runs of ids are written, again and again: every id is known, at its first offset."""
    total, each = 300_000, 5_000
    house.broker("--snapshot-every=3000000")

    def send(first: int) -> PendingMany:
        values = [str(number) for number in range(first, first + each)]
        return producer.send_many("t", values, ids=[f"order-{value}" for value in values])

    with Producer(broker=house.endpoint) as producer:
        pending = []
        for first in range(0, total, each):
            pending.append((first, send(first)))
            if first % 100_000 == 50_000:
                house.running[-1].kill()
                house.broker("--snapshot-every=3000000")
        offsets = {}
        for first, sent in pending:
            for number, ack in enumerate(sent.result(START_S), first):
                offsets[number] = ack.offset
        assert sorted(offsets.values()) == list(range(total))
        house.running[-1].kill()
        house.broker()
        for first in range(0, total, 10 * each):
            acks = list(send(first).result(START_S))
            assert all(ack.duplicate for ack in acks)
            assert [ack.offset for ack in acks] == [offsets[first + at] for at in range(each)]
    names = [path.name for path in house.data.glob("gen-*/map-*")]
    assert names, "no run was ever written: the test tries nothing"
