"""One node of the bench: what it says, byte for byte where that is promised."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from oncemq.limits import LIMITS, Limits
from oncemq.maelstrom import replies as maelstrom_replies
from oncemq.maelstrom import store as maelstrom_store
from oncemq.maelstrom.lines import LineCutter
from oncemq.maelstrom.messages import topic_of
from oncemq.sim.disk.disk import SimDisk
from tests.crashes import crashes
from tests.maelstrom.cluster import Cluster, Station

INIT = (
    b'{"src":"c0","dest":"n1","body":{"type":"init","msg_id":1,"node_id":"n1","node_ids":["n1"]}}'
)
INIT_OK = b'{"src":"n1","dest":"c0","body":{"type":"init_ok","in_reply_to":1,"msg_id":0}}\n'


@pytest.fixture
def cluster(seed: int) -> Cluster:
    return Cluster(["n1"], seed)


@pytest.fixture
def station(cluster: Cluster) -> Station:
    return cluster.stations["n1"]


def line(number: int, **body: Any) -> bytes:
    body["msg_id"] = number
    return json.dumps({"src": "c1", "dest": "n1", "body": body}).encode()


def turn(station: Station, *lines: bytes) -> list[dict[str, Any]]:
    """Feed lines as one turn; return the bodies of the replies."""
    station.node.feed(list(lines))
    return [message["body"] for message in station.take()]


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """A body without the node's own msg_id."""
    return {name: value for name, value in body.items() if name != "msg_id"}


def test_init_is_answered_byte_for_byte(cluster: Cluster) -> None:
    """The first line of every conversation has exactly one right answer."""
    fresh = Station("n1", cluster.clock, cluster.rng)
    fresh.node.feed([INIT])
    assert fresh.written == INIT_OK


def test_the_kafka_workload_in_one_conversation(cluster: Cluster) -> None:
    """Offsets are dense per key, polls start where asked, commits are listed; no extra fields."""
    assert plain(cluster.send("n1", "k1", 123))["offset"] == 0
    reply = cluster.send("n1", "k1", {"b": [1, None], "a": "ä"})
    assert set(reply) == {"type", "in_reply_to", "msg_id", "offset"}
    assert (reply["type"], reply["offset"]) == ("send_ok", 1)
    assert cluster.send("n1", "k2", "x")["offset"] == 0
    assert cluster.poll("n1", k1=0, k2=1, k3=0) == {
        "k1": [[0, 123], [1, {"b": [1, None], "a": "ä"}]],
        "k2": [],
        "k3": [],
    }
    assert cluster.poll("n1", k1=1) == {"k1": [[1, {"b": [1, None], "a": "ä"}]]}
    commit = cluster.ask("c1", "n1", {"type": "commit_offsets", "offsets": {"k1": 1}})
    assert set(commit) == {"type", "in_reply_to", "msg_id"}
    assert commit["type"] == "commit_offsets_ok"
    listed = cluster.ask("c1", "n1", {"type": "list_committed_offsets", "keys": ["k1", "k2"]})
    assert listed["type"] == "list_committed_offsets_ok"
    assert listed["offsets"] == {"k1": 1}


def test_own_msg_ids_count_without_holes(station: Station) -> None:
    """0 was the answer to init; each further message has the next number."""
    bodies = turn(station, line(1, type="send", key="k", msg=1), line(2, type="nonsense"))
    assert [body["msg_id"] for body in bodies] == [1, 2]


def test_a_read_sees_what_stood_before_it_in_the_same_turn(station: Station) -> None:
    """Lines that come together are answered as if they had come one after the other."""
    bodies = turn(
        station,
        line(1, type="poll", offsets={"k": 0}),
        line(2, type="send", key="k", msg="a"),
        line(3, type="poll", offsets={"k": 0}),
        line(4, type="list_committed_offsets", keys=["k"]),
        line(5, type="commit_offsets", offsets={"k": 0}),
        line(6, type="list_committed_offsets", keys=["k"]),
        line(7, type="send", key="k", msg="b"),
        line(8, type="commit_offsets", offsets={"k": 1}),
    )
    assert [body["in_reply_to"] for body in bodies] == list(range(1, 9))
    assert bodies[0]["msgs"] == {"k": []}
    assert bodies[2]["msgs"] == {"k": [[0, "a"]]}
    assert bodies[3]["offsets"] == {}
    assert bodies[5]["offsets"] == {"k": 0}


def test_one_sync_serves_all_lines_that_wait(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand sends to three keys in one turn cost one sync of the log."""
    log = station.store._broker._shell.log
    syncs = []
    sync = log.sync
    monkeypatch.setattr(log, "sync", lambda: (syncs.append(1), sync())[1])
    lines = [line(n, type="send", key=f"k{n % 3}", msg=n) for n in range(1_000)]
    bodies = turn(station, *lines)
    assert [body["offset"] for body in bodies] == [n // 3 for n in range(1_000)]
    assert len(syncs) == 1


def test_nothing_is_answered_before_the_sync(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply on stdout is a promise: it must not leave while its message may still be lost."""
    log = station.store._broker._shell.log
    sync = log.sync
    seen = []
    monkeypatch.setattr(log, "sync", lambda: (seen.append(station.written), sync())[1])
    turn(station, line(1, type="send", key="k", msg=1))
    assert seen == [b""]


def test_message_ids_are_remembered_for_their_key(cluster: Cluster) -> None:
    """The same id and message again is a duplicate at the old offset; the id is scoped to a key."""
    first = cluster.send("n1", "k", {"a": 1, "b": 2}, "m-1")
    again = cluster.send("n1", "k", {"b": 2, "a": 1}, "m-1")
    elsewhere = cluster.send("n1", "other", {"a": 1, "b": 2}, "m-1")
    assert (first["offset"], first["duplicate"]) == (0, False)
    assert (again["offset"], again["duplicate"]) == (0, True)
    assert (elsewhere["offset"], elsewhere["duplicate"]) == (0, False)
    assert cluster.values("n1", "k") == [{"a": 1, "b": 2}]


def test_numbers_and_text_are_different_message_ids(cluster: Cluster) -> None:
    """17 and "17" name two messages."""
    assert cluster.send("n1", "k", "x", 17)["duplicate"] is False
    assert cluster.send("n1", "k", "y", "17")["offset"] == 1
    assert cluster.send("n1", "k", "x", 17)["duplicate"] is True


def test_one_message_id_with_another_message_is_refused(cluster: Cluster) -> None:
    """One id, one body: error 22, and the stored message stays as it is."""
    cluster.send("n1", "k", "x", "m")
    refused = cluster.send("n1", "k", "y", "m")
    assert (refused["type"], refused["code"]) == ("error", 22)
    assert cluster.values("n1", "k") == ["x"]


def test_sends_with_and_without_ids_keep_their_order(station: Station) -> None:
    """Kinds of sends that take turns within one turn are stored in the order of their lines."""
    lines = [
        line(n, type="send", key="k", msg=n, **({"message_id": f"m{n}"} if n % 3 else {}))
        for n in range(30)
    ]
    bodies = turn(station, *lines)
    assert [body["offset"] for body in bodies] == list(range(30))
    found = turn(station, line(99, type="poll", offsets={"k": 0}))[0]["msgs"]["k"]
    assert found == [[n, n] for n in range(30)]
    again = [
        line(100 + n, type="send", key="k", msg=n, message_id=f"m{n}") for n in range(30) if n % 3
    ]
    assert {body["duplicate"] for body in turn(station, *again)} == {True}


def test_a_repeated_id_inside_one_turn_is_a_duplicate(station: Station) -> None:
    """The second line of two that wait together gets the offset of the first."""
    bodies = turn(
        station,
        line(1, type="send", key="k", msg="x", message_id="m"),
        line(2, type="send", key="k", msg="x", message_id="m"),
        line(3, type="send", key="k", msg="y", message_id="m"),
        line(4, type="send", key="k", msg="z", message_id="n"),
    )
    assert [body.get("offset", body.get("code")) for body in bodies] == [0, 0, 22, 1]
    assert [body.get("duplicate") for body in bodies] == [False, True, None, False]
    (found,) = turn(station, line(5, type="poll", offsets={"k": 0}))
    assert found["msgs"] == {"k": [[0, "x"], [1, "z"]]}


def test_a_request_seen_twice_is_executed_once(station: Station) -> None:
    """Same src, msg_id and body: the same bytes are answered, nothing is stored again."""
    send = line(7, type="send", key="k", msg={"b": 1, "a": 2})
    station.node.feed([send, send])
    twice = station.written.splitlines()
    turn(station)
    reordered = line(7, key="k", msg={"a": 2, "b": 1}, type="send")
    station.node.feed([reordered])
    assert [twice[0], twice[0]] == twice
    assert station.written.splitlines() == [twice[0]]
    turn(station)
    (found,) = turn(station, line(8, type="poll", offsets={"k": 0}))
    assert len(found["msgs"]["k"]) == 1


def test_a_number_that_comes_again_with_another_body_is_malformed(station: Station) -> None:
    """A client that reuses a msg_id is told so, and the first answer stands."""
    first = turn(station, line(7, type="send", key="k", msg=1))
    other = turn(station, line(7, type="send", key="k", msg=2))
    again = turn(station, line(7, type="send", key="k", msg=1))
    assert other[0]["code"] == 12
    assert again == first


def test_init_begins_a_new_life_of_the_clients(station: Station) -> None:
    """After init the same src and msg_id name a new request."""
    turn(station, line(7, type="send", key="k", msg=1))
    station.node.feed([INIT])
    turn(station)
    assert turn(station, line(7, type="send", key="k", msg=1))[0]["offset"] == 1


def test_remembered_requests_are_bounded(seed: int) -> None:
    """At the bound the oldest answered request is forgotten, the newest are not."""
    station = Cluster(["n1"], seed, Limits(node_replies_kept_max=10)).stations["n1"]
    for number in range(20):
        turn(station, line(number, type="send", key="k", msg=number))
    replies = station.node._replies
    assert len(replies._kept) == 10
    assert replies._bytes == sum(
        len(one.reply or b"") + maelstrom_replies._ENTRY_BYTES for one in replies._kept.values()
    )
    assert turn(station, line(19, type="send", key="k", msg=19))[0]["offset"] == 19
    assert turn(station, line(0, type="send", key="k", msg=0))[0]["offset"] == 20


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "send", "key": "k"}, 12),
        ({"type": "send", "msg": 1}, 12),
        ({"type": "send", "key": 5, "msg": 1}, 12),
        ({"type": "send", "key": "k" * 1025, "msg": 1}, 12),
        ({"type": "send", "key": "k", "msg": "x" * (1024 * 1024 + 1)}, 12),
        ({"type": "send", "key": "k", "msg": 1, "message_id": ""}, 12),
        ({"type": "send", "key": "k", "msg": 1, "message_id": True}, 12),
        ({"type": "send", "key": "k", "msg": 1, "message_id": "m" * 129}, 12),
        ({"type": "poll"}, 12),
        ({"type": "poll", "offsets": [1]}, 12),
        ({"type": "poll", "offsets": {"k": -1}}, 12),
        ({"type": "poll", "offsets": {"k": True}}, 12),
        ({"type": "poll", "offsets": {"k": 1.0}}, 12),
        ({"type": "poll", "offsets": {"k": 2**63}}, 12),
        ({"type": "poll", "offsets": {f"k{n}": 0 for n in range(1_001)}}, 12),
        ({"type": "commit_offsets", "offsets": {"k": "1"}}, 12),
        ({"type": "list_committed_offsets", "keys": "k"}, 12),
        ({"type": "list_committed_offsets", "keys": [1]}, 12),
        ({"type": "explode"}, 10),
        ({"type": "forward_send", "key": "k", "msg": 1}, 10),
        ({"type": 5}, 12),
        ({}, 12),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    station: Station, body: dict[str, Any], code: int
) -> None:
    """Malformed is 12, unknown is 10; both are definite, so the log must be as before."""
    before = station.store._broker._shell.log.end
    (reply,) = turn(station, line(1, **body))
    assert (reply["type"], reply["code"], reply["in_reply_to"]) == ("error", code, 1)
    assert station.store._broker._shell.log.end == before


@pytest.mark.parametrize("number", [None, "1", -1, True, 1.5])
def test_a_request_without_a_number_is_malformed(station: Station, number: object) -> None:
    """Without a msg_id a request could not be known again: it is refused, not executed."""
    body = {"type": "send", "key": "k", "msg": 1, "msg_id": number}
    text = json.dumps({"src": "c1", "dest": "n1", "body": body}).encode()
    (reply,) = turn(station, text)
    assert reply["code"] == 12
    assert "in_reply_to" not in reply
    assert turn(station, line(2, type="poll", offsets={"k": 0}))[0]["msgs"] == {"k": []}


@pytest.mark.parametrize(
    "text",
    [
        b"hello",
        b"[1,2]",
        b'{"src":"c1","dest":"n1"}',
        b'{"src":1,"dest":"n1","body":{}}',
        b'{"src":"c1","dest":"n2","body":{"type":"send","msg_id":1}}',
        b'{"src":"c1","dest":"n1","body":{"type":"send","msg_id":1,"key":"k","msg":NaN}}',
        b'{"src":"c1","dest":"n1","body":{"type":"x_ok","in_reply_to":3}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_message_is_reported_and_passed_over(
    station: Station, text: bytes
) -> None:
    """Nobody can be answered; the next line is served as ever."""
    bodies = turn(station, text, line(2, type="send", key="k", msg=1))
    assert [body["type"] for body in bodies] == ["send_ok"]
    assert len(station.reports) == 1


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
@pytest.mark.parametrize(
    "body",
    [
        '"type":"send","key":"k","msg":{}',
        '"type":"send","key":"k","msg":[{{"deep":{}}}]',
        '"type":"send","key":"k","msg":1,"message_id":{}',
        '"type":"poll","offsets":{{"k":{}}}',
        '"type":"poll","offsets":{{"k":0}},"unknown":{}',
        '"type":"forward_send","key":"k","msg":1,"session":{}',
    ],
)
def test_a_number_beyond_a_double_is_refused(station: Station, body: str, number: str) -> None:
    """It is JSON, so its sender is answered; Python reads it as infinity, which JSON cannot carry."""
    text = body.format(number)
    bodies = turn(
        station,
        f'{{"src":"c1","dest":"n1","body":{{{text},"msg_id":7}}}}'.encode(),
        f'{{"src":"n1","dest":"n1","body":{{{text},"msg_id":7}}}}'.encode(),
        line(8, type="poll", offsets={"k": 0}),
    )
    assert [(body["type"], body.get("code")) for body in bodies] == [
        ("error", 12),
        ("error", 12),
        ("poll_ok", None),
    ]
    assert bodies[-1]["msgs"] == {"k": []}


def test_before_init_nothing_is_done(cluster: Cluster) -> None:
    """A node that does not know who it is refuses definitely."""
    fresh = Station("n1", cluster.clock, cluster.rng)
    (reply,) = turn(fresh, line(1, type="send", key="k", msg=1))
    assert reply["code"] == 11


def test_committed_offsets_never_move_backwards(cluster: Cluster) -> None:
    """A late commit of a lower offset is answered and changes nothing."""
    for offset in (5, 3):
        cluster.ask("c1", "n1", {"type": "commit_offsets", "offsets": {"k": offset}})
    listed = cluster.ask("c1", "n1", {"type": "list_committed_offsets", "keys": ["k"]})
    assert listed["offsets"] == {"k": 5}


def test_a_restart_keeps_everything(cluster: Cluster) -> None:
    """After kill -9 messages, ids and committed offsets are as they were; offsets go on."""
    for number in range(5):
        cluster.send("n1", "k", number)
    cluster.send("n1", "k", "five", "m-5")
    cluster.ask("c1", "n1", {"type": "commit_offsets", "offsets": {"k": 3, "é/:": 9}})
    cluster.restart("n1")
    assert cluster.values("n1", "k") == [0, 1, 2, 3, 4, "five"]
    assert cluster.send("n1", "k", "five", "m-5")["duplicate"] is True
    assert cluster.send("n1", "k", "six", "m-5")["code"] == 22
    assert cluster.send("n1", "k", 6)["offset"] == 6
    listed = cluster.ask("c1", "n1", {"type": "list_committed_offsets", "keys": ["k", "é/:"]})
    assert listed["offsets"] == {"k": 3, "é/:": 9}


def test_keys_of_any_kind_stay_apart(cluster: Cluster) -> None:
    """Empty, long, reserved and unprintable keys each have a log of their own."""
    keys = ["", "a", "A", "a/b", "a:b", "k.dead", "..", "x" * 96, "x" * 97, "\ud800", "\ud801", "é"]
    assert len({topic_of(key) for key in keys}) == len(keys)
    for key in keys:
        assert cluster.send("n1", key, key)["offset"] == 0
    for key in keys:
        assert cluster.values("n1", key) == [key]
    cluster.ask("c1", "n1", {"type": "commit_offsets", "offsets": dict.fromkeys(keys, 1)})
    listed = cluster.ask("c1", "n1", {"type": "list_committed_offsets", "keys": keys})
    assert listed["offsets"] == dict.fromkeys(keys, 1)


def test_a_poll_is_bounded_and_goes_on(cluster: Cluster) -> None:
    """A long log comes in pieces without holes, a large message comes whole."""
    station = cluster.stations["n1"]
    turn(station, *[line(n, type="send", key="k", msg=n) for n in range(2_500)])
    (found,) = cluster.poll("n1", k=10).values()
    assert [offset for offset, _ in found] == list(range(10, 1_010))
    assert cluster.values("n1", "k") == list(range(2_500))
    for size in (700_000, 800_000, 900_000):
        cluster.send("n1", "large", "x" * size)
    assert [len(value) for _, value in cluster.poll("n1", large=0)["large"]] == [700_000]
    assert [len(value) for value in cluster.values("n1", "large")] == [700_000, 800_000, 900_000]


def test_an_answer_about_many_keys_is_bounded(cluster: Cluster) -> None:
    """Large messages of many keys come over several polls; none is passed over."""
    keys = [f"k{number}" for number in range(6)]
    for key in keys:
        cluster.send("n1", key, "x" * 400_000)
    seen: list[str] = []
    offsets = dict.fromkeys(keys, 0)
    while offsets:
        found = cluster.poll("n1", **offsets)
        assert set(found) == set(offsets)
        got = [key for key, messages in found.items() if messages]
        assert 0 < len(got) <= 3
        seen += got
        offsets = {key: 0 for key in offsets if key not in got}
    assert sorted(seen) == keys


def test_a_full_disk_refuses_definitely_and_work_goes_on_after_it(cluster: Cluster) -> None:
    """Error 11 while there is no room, for sends and commits; what was refused is not there."""
    station = cluster.stations["n1"]
    cluster.send("n1", "k", "kept")
    cluster.send("n1", "k", "by id", "m0")
    station.disk.capacity = station.disk.used()
    lines = [line(n, type="send", key="k", msg="x" * 1_000_000) for n in range(1, 6)]
    lines.append(line(6, type="send", key="k", msg="y" * 1_000_000, message_id="m6"))
    refused = turn(station, *lines)
    assert {reply["code"] for reply in refused} == {11}
    assert cluster.values("n1", "k") == ["kept", "by id"]
    station.disk.capacity = None
    cluster.clock.advance(1_000)
    station.node.tick()
    assert cluster.send("n1", "k", "after")["offset"] == 2
    assert cluster.send("n1", "k", "after by id", "m6")["offset"] == 3
    assert cluster.values("n1", "k") == ["kept", "by id", "after", "after by id"]


def test_too_many_keys_are_refused_and_nothing_is_left_behind(cluster: Cluster) -> None:
    """At the bound of topics a send is refused definitely; a later one is judged afresh."""
    cluster.send("n1", "k", 1)
    topics = cluster.stations["n1"].store._broker._shell.core._topics
    topics._limits = Limits(topics_max=1)
    assert cluster.send("n1", "new", 1)["code"] == 11
    assert cluster.send("n1", "other", 1, "m")["code"] == 11
    assert cluster.send("n1", "k", 2)["offset"] == 1
    topics._limits = LIMITS
    assert cluster.send("n1", "new", 1)["offset"] == 0
    reply = cluster.send("n1", "other", 1, "m")
    assert (reply.get("offset"), reply.get("duplicate")) == (0, False)


def test_too_many_committed_keys_are_refused(seed: int) -> None:
    """The table of committed offsets is bounded; known keys go on, and a list tells no lie."""
    cluster = Cluster(["n1"], seed, Limits(node_committed_keys_max=2))
    bodies = turn(
        cluster.stations["n1"],
        line(1, type="commit_offsets", offsets={"a": 1, "b": 1}),
        line(2, type="commit_offsets", offsets={"a": 7, "c": 1}),
        line(3, type="list_committed_offsets", keys=["a", "b", "c"]),
        line(4, type="commit_offsets", offsets={"b": 2}),
    )
    assert [body.get("code") for body in bodies] == [None, 11, None, None]
    assert bodies[2]["offsets"] == {"a": 1, "b": 1}


def test_a_store_of_many_keys_opens_again(cluster: Cluster) -> None:
    """Hundreds of keys are known after a restart with their ends and sequence numbers."""
    station = cluster.stations["n1"]
    count = 400
    turn(station, *[line(n, type="send", key=f"k{n}", msg=n) for n in range(count)])
    cluster.restart("n1")
    bodies = turn(station, *[line(n, type="send", key=f"k{n}", msg=-n) for n in range(count)])
    assert {body["offset"] for body in bodies} == {1}


@pytest.mark.slow
def test_a_power_cut_at_every_disk_call_takes_back_no_reply(cluster: Cluster) -> None:
    """Whatever call the power fails in, all that was answered by then is there afterwards."""
    turns = [
        [line(11, type="send", key="k", msg="a"), line(12, type="send", key="k", msg="b")],
        [line(13, type="commit_offsets", offsets={"k": 1})],
        [line(14, type="send", key="k", msg="c", message_id="m")],
        [
            line(15, type="send", key="new", msg="d"),
            line(16, type="commit_offsets", offsets={"k": 2}),
        ],
    ]
    replies_seen = []
    for fail_at in itertools.count(1):
        disk = SimDisk()
        station: Station | None = None
        replies: dict[int, Any] = {}
        disk.fail_at = fail_at

        def run(disk: SimDisk = disk) -> None:
            nonlocal station
            station = Station("n1", cluster.clock, cluster.rng, disk)
            station.node.feed([INIT])
            for lines in turns:
                station.node.feed(lines)
                station.node.tick()
            station.store.close()

        if not crashes(run):
            break
        assert disk.calls == fail_at, "it crashed at the chosen call"
        for reply in station.take() if station is not None else []:
            replies[reply["body"]["in_reply_to"]] = reply["body"]
        replies_seen.append(len(replies))
        check_after_power_cut(Station("n1", cluster.clock, cluster.rng, disk.power_cut()), replies)
    assert len(replies_seen) > 50
    assert {0, 1, 3, 4, 5, 7} == set(replies_seen)


def check_after_power_cut(station: Station, replies: dict[int, Any]) -> None:
    """Assert that what was answered holds, and that the node goes on."""
    _, found, listed = turn(
        station,
        INIT,
        line(7, type="poll", offsets={"k": 0, "new": 0}),
        line(8, type="list_committed_offsets", keys=["k"]),
    )
    values = [value for _, value in found["msgs"]["k"]]
    assert values == ["a", "b", "c"][: len(values)]
    assert len(values) >= (3 if 14 in replies else 2 if 11 in replies else 0)
    assert found["msgs"]["new"] == ([[0, "d"]] if 15 in replies else found["msgs"]["new"])
    assert listed["offsets"].get("k", -1) >= (2 if 16 in replies else 1 if 13 in replies else -1)
    (again,) = turn(station, line(9, type="send", key="k", msg="c", message_id="m"))
    assert again["duplicate"] is (len(values) == 3)
    (more,) = turn(station, line(10, type="send", key="k", msg="e"))
    assert more["offset"] == max(len(values), again["offset"] + 1)


def test_lines_are_cut_wherever_the_bytes_break() -> None:
    """One byte at a time gives the same lines as one large chunk."""
    data = b'{"a":1}\n\n  \n{"b":2}\r\nlast'
    for size in (1, 2, 3, 7, 100):
        cutter = LineCutter(pytest.fail)
        lines = []
        for at in range(0, len(data), size):
            lines += cutter.cut(data[at : at + size])
        assert [*lines, *cutter.end()] == [b'{"a":1}', b'{"b":2}\r', b"last"]


def test_an_over_long_line_is_passed_over() -> None:
    """Memory is bounded whatever comes, and the line behind is served."""
    for size in (1, 5, 1_000):
        reports: list[str] = []
        cutter = LineCutter(reports.append, 10)
        data = b"x" * 11 + b"\nshort\n" + b"y" * 50 + b"\nend"
        lines = []
        for at in range(0, len(data), size):
            lines += cutter.cut(data[at : at + size])
            assert cutter._rest_bytes <= 10
        assert [*lines, *cutter.end()] == [b"short", b"end"]
        assert len(reports) == 2


def test_a_producer_of_the_node_is_named(station: Station) -> None:
    """Sends without an id are numbered by the producer `main` under a granted epoch."""
    turn(station, line(1, type="send", key="k", msg=1))
    sender = station.store._senders[topic_of("k")]
    assert (maelstrom_store.PRODUCER, sender.next_sequence) == ("main", 1)
    assert station.store._epoch >= 1
