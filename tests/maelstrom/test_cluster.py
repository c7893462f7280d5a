"""Several nodes: who owns a key, what a lossy network may and may not do, what is answered then."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from oncemq.limits import Limits
from oncemq.outcome import DiskSpace
from tests.maelstrom.cluster import Body, Cluster

NODES = ["n3", "n1", "n2"]


@pytest.fixture
def cluster(seed: int) -> Cluster:
    return Cluster(NODES, seed)


def forwards(cluster: Cluster, node: str) -> list[Body]:
    """What one node has written to the others and the network has not delivered."""
    return [message for message in cluster.flying if message["src"] == node]


def test_every_node_serves_every_key(cluster: Cluster) -> None:
    """A key has one log, whichever node is asked; replies to clients have no extra fields."""
    key = cluster.key_of("n2")
    for number, node in enumerate(NODES * 2):
        reply = cluster.send(node, key, number)
        assert set(reply) == {"type", "in_reply_to", "msg_id", "offset"}
        assert reply["offset"] == number
    for node in NODES:
        assert cluster.values(node, key) == list(range(6))


def test_polls_commits_and_lists_are_gathered_from_all_owners(cluster: Cluster) -> None:
    """One request about keys of three owners gets one whole answer."""
    keys = [cluster.key_of(owner, n) for owner in NODES for n in range(3)]
    for key in keys:
        cluster.send("n1", key, {"key": key})
    assert cluster.poll("n2", **dict.fromkeys(keys, 0)) == {k: [[0, {"key": k}]] for k in keys}
    offsets = {key: number for number, key in enumerate(keys)}
    commit = cluster.ask("c1", "n3", {"type": "commit_offsets", "offsets": offsets})
    assert commit["type"] == "commit_offsets_ok"
    asked = {"type": "list_committed_offsets", "keys": [*keys, "unknown"]}
    assert cluster.ask("c1", "n1", asked)["offsets"] == offsets


def test_requests_about_nothing_are_answered(cluster: Cluster) -> None:
    """Without keys there is no owner to wait for."""
    assert cluster.poll("n1") == {}
    for body in (
        {"type": "commit_offsets", "offsets": {}},
        {"type": "list_committed_offsets", "keys": []},
    ):
        assert cluster.ask("c1", "n1", body)["type"] == f"{body['type']}_ok"


def test_message_ids_hold_whichever_node_is_asked(cluster: Cluster) -> None:
    """The owner judges an id; duplicates and conflicts come back through the other node."""
    key = cluster.key_of("n2")
    assert cluster.send("n1", key, "x", "m")["duplicate"] is False
    again = cluster.send("n3", key, "x", "m")
    assert (again["offset"], again["duplicate"]) == (0, True)
    assert cluster.send("n1", key, "y", "m")["code"] == 22
    assert cluster.send("n3", key, "z", 7)["duplicate"] is False
    assert cluster.send("n2", key, "z", 7)["duplicate"] is True


def test_a_lost_answer_does_not_store_twice(cluster: Cluster) -> None:
    """The owner stored it, the answer got lost: the resent forward gets the first offset."""
    key = cluster.key_of("n2")
    cluster.cut.add(("n2", "n1"))
    number = cluster.post("c1", "n1", {"type": "send", "key": key, "msg": "x"})
    cluster.run()
    assert cluster.answers("c1", number) == []
    cluster.heal()
    cluster.clock.advance(400)
    cluster.run()
    cluster.run()
    (reply,) = cluster.answers("c1", number)
    assert (reply["type"], reply["offset"]) == ("send_ok", 0)
    assert cluster.values("n2", key) == ["x"]


def test_a_lost_answer_and_a_restart_of_the_owner_do_not_store_twice(cluster: Cluster) -> None:
    """What the owner knows of a forward survives it: its memory of requests is not enough."""
    key = cluster.key_of("n2")
    cluster.cut.add(("n2", "n1"))
    number = cluster.post("c1", "n1", {"type": "send", "key": key, "msg": "x"})
    cluster.run()
    cluster.restart("n2")
    cluster.heal()
    cluster.clock.advance(400)
    cluster.run()
    cluster.run()
    (reply,) = cluster.answers("c1", number)
    assert reply["offset"] == 0
    assert cluster.values("n2", key) == ["x"]


def test_a_client_that_asks_again_starts_no_second_forward(cluster: Cluster) -> None:
    """A request under way is waited for, and answered as often as it was asked."""
    key = cluster.key_of("n2")
    cluster.partition("n1", "n2")
    body = {"type": "send", "key": key, "msg": "x"}
    number = cluster.post("c1", "n1", body)
    cluster.post("c1", "n1", body, number)
    cluster.run()
    assert cluster.counts["forwards"] == 1
    cluster.heal()
    cluster.clock.advance(400)
    cluster.run()
    cluster.run()
    first, second = cluster.answers("c1", number)
    assert first == second
    assert cluster.values("n2", key) == ["x"]


def test_a_new_life_of_the_forwarder_does_not_meet_answers_to_the_old_one(
    cluster: Cluster,
) -> None:
    """Numbers begin again at 0 after a restart: a late answer must not settle another request."""
    old_key, new_key = cluster.key_of("n2", 0), cluster.key_of("n2", 1)
    for _ in range(5):
        cluster.send("n2", old_key, "before")
    cluster.cut.add(("n2", "n1"))
    cluster.post("c1", "n1", {"type": "send", "key": old_key, "msg": "old"})
    cluster.run()
    late = cluster.stations["n2"].node._replies
    (reply,) = [one.reply for one in late._kept.values() if one.forwarded]
    cluster.restart("n1")
    cluster.stations["n2"].node.feed([])
    number = cluster.post("c1", "n1", {"type": "send", "key": new_key, "msg": "new"})
    cluster.cut = {("n1", "n2")}
    cluster.run()
    assert reply is not None
    old = json.loads(reply)
    assert old["body"]["in_reply_to"] in cluster.stations["n1"].node._forwards._by_number
    cluster.flying.append(old)
    cluster.run()
    assert cluster.answers("c1", number) == []
    cluster.heal()
    cluster.clock.advance(400)
    cluster.run()
    cluster.run()
    assert cluster.answers("c1", number)[0]["offset"] == 0


def test_the_same_numbers_after_an_init_are_new_messages(cluster: Cluster) -> None:
    """Clients of a new run use their numbers again; the owner must not take them for old ones."""
    key = cluster.key_of("n2")
    assert cluster.send("n1", key, "first run", number=5)["offset"] == 0
    cluster.restart("n1")
    assert cluster.send("n1", key, "first run", number=5)["offset"] == 1


def test_a_number_reused_after_it_was_forgotten_is_not_stored(seed: int) -> None:
    """The owner remembers the origin longer than the forwarder: same is same, other is refused."""
    cluster = Cluster(NODES, seed, Limits(node_replies_kept_max=0))
    key = cluster.key_of("n2")
    assert cluster.send("n1", key, "x", number=5)["offset"] == 0
    assert cluster.send("n1", key, "x", number=5)["offset"] == 0
    assert cluster.send("n1", key, "y", number=5)["code"] == 12
    assert cluster.values("n2", key) == ["x"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"type": "send", "key": "far", "msg": 1}, 0),
        ({"type": "poll", "offsets": {"far": 0}}, 11),
        ({"type": "poll", "offsets": {"far": 0, "near": 0}}, 11),
        ({"type": "commit_offsets", "offsets": {"far": 0}}, 0),
        ({"type": "commit_offsets", "offsets": {"far": 0, "near": 0}}, 13),
        ({"type": "list_committed_offsets", "keys": ["near", "far"]}, 11),
    ],
)
def test_an_unreachable_owner_is_told_with_the_truth(
    cluster: Cluster, body: dict[str, Any], code: int
) -> None:
    """11 promises that nothing was written; what may still arrive is 0, in parts 13."""
    names = {"near": cluster.key_of("n1"), "far": cluster.key_of("n2")}
    text = json.dumps(body)
    for short, key in names.items():
        text = text.replace(f'"{short}"', f'"{key}"')
    cluster.partition("n1", "n2")
    reply = cluster.ask("c1", "n1", json.loads(text))
    assert (reply["type"], reply["code"]) == ("error", code)
    assert len(cluster.stations["n1"].node._forwards) == 0


def test_a_definite_refusal_of_a_part_is_not_definite_for_the_whole(cluster: Cluster) -> None:
    """One owner kept its offsets, the other refused: 11 would be a lie, 13 is true."""
    near, far = cluster.key_of("n1"), cluster.key_of("n2")
    cluster.stations["n2"].store._offsets.step(DiskSpace(full=True), 0)
    both: Body = {"type": "commit_offsets", "offsets": {near: 1, far: 1}}
    assert cluster.ask("c1", "n1", both)["code"] == 13
    single: Body = {"type": "commit_offsets", "offsets": {far: 1}}
    assert cluster.ask("c1", "n1", single)["code"] == 11


def test_a_refusal_of_a_resent_forward_is_not_definite(cluster: Cluster) -> None:
    """Another copy of the line may still be on its way and meet a disk with room."""
    far = cluster.key_of("n2")
    owner = cluster.stations["n2"]
    owner.store._offsets.step(DiskSpace(full=True), 0)
    cluster.partition("n1", "n2")
    number = cluster.post("c1", "n1", {"type": "commit_offsets", "offsets": {far: 1}})
    cluster.run()
    cluster.clock.advance(400)
    cluster.run()
    cluster.heal()
    cluster.clock.advance(400)
    cluster.run()
    cluster.run()
    assert cluster.answers("c1", number)[0]["code"] == 0


def test_too_many_requests_under_way_are_refused(seed: int) -> None:
    """At the bound a request is refused definitely, before anything of it is done."""
    cluster = Cluster(NODES, seed, Limits(node_forwards_max=2))
    near, far = cluster.key_of("n1"), cluster.key_of("n2")
    cluster.partition("n1", "n2")
    for number in range(2):
        cluster.post("c1", "n1", {"type": "send", "key": far, "msg": number})
    cluster.run()
    body = {"type": "commit_offsets", "offsets": {near: 1, far: 1}}
    assert cluster.ask("c1", "n1", body)["code"] == 11
    listed = cluster.ask("c1", "n1", {"type": "list_committed_offsets", "keys": [near]})
    assert listed["offsets"] == {}


def test_the_end_of_input_answers_what_waits(cluster: Cluster) -> None:
    """No answer can come any more: the outcome of what is under way is unknown."""
    far = cluster.key_of("n2")
    cluster.partition("n1", "n2")
    number = cluster.post("c1", "n1", {"type": "send", "key": far, "msg": 1})
    cluster.run()
    cluster.stations["n1"].node.finish()
    (reply,) = cluster.stations["n1"].take()
    assert (reply["body"]["in_reply_to"], reply["body"]["code"]) == (number, 0)


def test_a_stranger_cannot_speak_as_a_node(cluster: Cluster) -> None:
    """Forwards and their answers count only from nodes of the cluster."""
    far = cluster.key_of("n2")
    body = {"type": "forward_send", "session": "s", "origin": ["c1", 1], "key": far, "msg": 1}
    assert cluster.ask("c9", "n2", body)["code"] == 10
    cluster.partition("n1", "n2")
    number = cluster.post("c1", "n1", {"type": "send", "key": far, "msg": 1})
    cluster.run()
    node = cluster.stations["n1"].node
    (waiting,) = node._forwards._by_number
    answer = {"type": "forward_send_ok", "in_reply_to": waiting, "offset": 9, "duplicate": False}
    answer["session"] = node._session
    cluster.flying.append({"src": "c9", "dest": "n1", "body": answer})
    cluster.run()
    assert cluster.answers("c1", number) == []


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "forward_send_ok"},
        {"type": "forward_send_ok", "offset": "0", "duplicate": False},
        {"type": "nonsense"},
        {"type": "error", "code": "x"},
        {"type": "error", "code": 13, "text": "broken"},
    ],
)
def test_a_strange_answer_of_an_owner_leaves_the_outcome_unknown(
    cluster: Cluster, answer: Body
) -> None:
    """Whatever another node says, the client is not told more than is known."""
    far = cluster.key_of("n2")
    cluster.partition("n1", "n2")
    number = cluster.post("c1", "n1", {"type": "send", "key": far, "msg": 1})
    cluster.run()
    node = cluster.stations["n1"].node
    (waiting,) = node._forwards._by_number
    body = {**answer, "in_reply_to": waiting, "session": node._session}
    cluster.flying.append({"src": "n2", "dest": "n1", "body": body})
    cluster.run()
    assert cluster.answers("c1", number)[0]["code"] == 0


@pytest.mark.parametrize("run", range(8))
def test_everything_holds_on_a_bad_network_with_restarts(seed: int, run: int) -> None:
    """Lost, doubled and late messages, cuts and kills: each key's log is exactly what was told.

    A message that was acknowledged is there once, at its offset; one refused definitely is not
    there; one with an unknown outcome is there once or not at all. Committed offsets never fall
    below what was acknowledged.
    """
    rng = random.Random(seed * 1_000 + run)
    cluster = Cluster(NODES, seed * 1_000 + run)
    cluster.drop, cluster.duplicate, cluster.delay = 0.25, 0.25, 0.3
    keys = [cluster.key_of(owner, n) for owner in NODES for n in range(2)]
    sends: dict[int, tuple[str, str]] = {}
    commits: dict[int, tuple[str, int]] = {}
    for number in range(120):
        if number in {40, 80} or rng.random() < 0.03:
            cluster.restart(rng.choice(NODES))
        if rng.random() < 0.1:
            cluster.partition(*rng.sample(NODES, 2))
        elif rng.random() < 0.3:
            cluster.heal()
        key, node = rng.choice(keys), rng.choice(NODES)
        body: Body = {"type": "send", "key": key, "msg": f"v{number}"}
        if rng.random() < 0.2:
            body = {"type": "commit_offsets", "offsets": {key: number}}
        elif rng.random() < 0.5:
            body["message_id"] = f"m{number}"
        request = cluster.post("c1", node, body)
        if rng.random() < 0.2:
            cluster.post("c1", node, body, request)
        if body["type"] == "send":
            sends[request] = (key, body["msg"])
        else:
            commits[request] = (key, number)
        if rng.random() < 0.5:
            cluster.run()
            cluster.clock.advance(rng.choice([10, 100, 400]))
    cluster.drop = cluster.duplicate = cluster.delay = 0.0
    cluster.heal()
    for _ in range(20):
        cluster.run()
        cluster.clock.advance(400)
    check_logs(cluster, keys, sends)
    check_committed(cluster, keys, commits)
    assert min(cluster.counts.values()) > 0, cluster.counts


def check_logs(cluster: Cluster, keys: list[str], sends: dict[int, tuple[str, str]]) -> None:
    """Assert that the logs are exactly what the replies say."""
    logs = {key: cluster.values("n1", key) for key in keys}
    assert {key: cluster.values("n3", key) for key in keys} == logs
    stored = [(value, key, offset) for key in keys for offset, value in enumerate(logs[key])]
    assert len({value for value, _, _ in stored}) == len(stored), "a message is there twice"
    place_of = {value: (key, offset) for value, key, offset in stored}
    acknowledged = 0
    for request, (key, value) in sends.items():
        for reply in cluster.answers("c1", request):
            if reply["type"] == "send_ok":
                assert place_of[value] == (key, reply["offset"])
                acknowledged += 1
            elif reply["code"] not in {0, 13}:
                assert value not in place_of, f"refused definitely with {reply}"
    assert acknowledged > len(sends) // 4


def check_committed(cluster: Cluster, keys: list[str], commits: dict[int, tuple[str, int]]) -> None:
    """Assert that no acknowledged commit is forgotten and none is invented."""
    listed = cluster.ask("c1", "n2", {"type": "list_committed_offsets", "keys": keys})["offsets"]
    assert all((key, offset) in commits.values() for key, offset in listed.items())
    told = [request for request in commits if cluster.answers("c1", request)]
    for request in told:
        if cluster.answers("c1", request)[0]["type"] == "commit_offsets_ok":
            key, offset = commits[request]
            assert listed[key] >= offset
    assert told
