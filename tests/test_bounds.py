"""Every bound of limits.py is met by a test: the sentence it gives, or what it does in silence.

A refusal names the number and the way out. What refuses nothing has a kind, and the test that
meets it; waiting times and the sizes of single steps are met all the time.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from oncemq import App, Harness, limits
from oncemq.codec import batch as batch_codec
from oncemq.codec import values, wire
from oncemq.core.broker.id_index import IdIndex
from oncemq.core.broker.membership import _check_size
from oncemq.core.consumer.seeker import MoveOffset
from oncemq.driver import _Decoded
from oncemq.errors import OnceMQError, from_code
from oncemq.ids import check_name, tagged_id
from oncemq.library.consuming.topic_book import TopicBook
from oncemq.library.embedded import queue as embedded
from oncemq.library.producing.accumulator import Accumulator
from oncemq.library.producing.acks import Verdicts
from oncemq.library.producing.parcel import checked_message
from oncemq.limits import LIMITS, Limits
from oncemq.maelstrom import messages as node_messages
from oncemq.maelstrom.lines import LineCutter
from oncemq.protocol import Failure, Fetch, Join, Ping, RetireProducer
from oncemq.records import GroupGranted
from oncemq.runtime.descriptors import allow_descriptors
from oncemq.sim.faults.bounds import SMALL
from tests.core.broker.help import World, batch_of, batch_with_ids
from tests.core.consumer.test_seeker import STARTED, apply_all, seeker
from tests.library.handling.test_tx import call, ledger_with
from tests.maelstrom.cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
Patch = pytest.MonkeyPatch

# --- meeting a bound -----------------------------------------------------------------------------


def broker(**bounds: int) -> World:
    world = World(limits=Limits(**bounds))
    world.hello()
    return world


def refused(answer: Any) -> OnceMQError:
    """The broker's refusal as its client raises it."""
    assert isinstance(answer, Failure), answer
    return from_code(answer.code, answer.reason, answer.hint)


def topics(_: Patch) -> OnceMQError:
    world = broker(topics_max=1)
    world.topic()
    return refused(world.topic("u"))


def partitions(_: Patch) -> OnceMQError:
    return refused(broker().topic(partitions=LIMITS.partitions_max + 1))


def producers(_: Patch) -> OnceMQError:
    world = broker(producers_max=1)
    world.producer()
    return refused(world.producer("q"))


def retired_producers(_: Patch) -> OnceMQError:
    world = broker(producers_retired_max=1)
    for number, name in enumerate("pq"):
        world.producer(name, nonce=bytes([number]) * 16)
        answer = world.ask(RetireProducer(world.n, name, 0))
    return refused(answer)


def grants(_: Patch) -> OnceMQError:
    world = broker(groups_max=1)
    world.topic(partitions=2)
    answers = [
        world.ask(Join(world.n, "g", "t", p, b"A" * 16, b"l", b"", b"", 0, 0, False, "h", "/", "m"))
        for p in range(2)
    ]
    return refused(answers[1])


def grants_of_one_answer(_: Patch) -> OnceMQError:
    grant = GroupGranted("g", "t", 0, 1, b"A" * 16, b"l", 0, "h", "/" * 4000, "m", 0)
    return raised(lambda: _check_size([grant] * 400))


def fetches(_: Patch) -> OnceMQError:
    world = broker(waiting_fetches_max=1)
    world.topic(partitions=2)
    world.take()
    for partition in range(2):
        world.put(Fetch(world.n, "", "t", partition, 0, 0, 1000, 500))
    world.turn()
    return refused(world.take()[-1])


def lookups(_: Patch) -> OnceMQError:
    world = broker(lookups_max=1, read_bytes=1, first_read_extra_bytes=0, reads_per_request_max=1)
    world.topic()
    world.producer()
    for number in range(30):
        world.send(number, f"v{number}")
    row = world.core.state.producers.by_name["p"].rows[0, 0]
    row.sequences[1:], row.positions[1:] = [], []  # as if all but the first were thinned away
    world.take()
    for _ in range(2):
        resend = batch_of("v29")
        world.put(world.numbered(29, resend), resend.raw)
    world.turn()
    return refused(world.take()[-1])


def tables_of_ids(patch: Patch) -> OnceMQError:
    world = broker()
    world.topic()
    patch.setattr(IdIndex, "behind", True)
    batch = batch_with_ids([("a", "v")])
    return refused(world.ask(world.explicit(0, batch), batch.raw))


def in_flight(_: Patch) -> OnceMQError:
    gathered = Accumulator(1000, Verdicts)
    message = checked_message(b"x" * 700, id=None, key=None, headers=None)
    gathered.add_late("t", message, 0, 5)
    return raised(lambda: gathered.add_late("t", message, 0, 5_000))


def no_room(_: Patch) -> OnceMQError:
    with pytest.raises(OnceMQError) as caught:
        producer = App(broker="tcp://127.0.0.1:9").producer(in_flight_bytes=1000, close_timeout=0)
        with producer:
            producer.send("t", b"x" * 900, id="a")
            producer.send("t", b"x" * 900, id="b", timeout=0)
    return caught.value


def frame(index: int, size: int) -> OnceMQError:
    frames = [bytes(f) for f in wire.encode(Ping(1), None)] + [b""]
    frames[index] = b"x" * size
    return raised(lambda: wire.decode(b"peer", frames))


def known_topics(_: Patch) -> OnceMQError:
    book = TopicBook()
    book._counts = dict.fromkeys(map(str, range(limits.TOPICS_KNOWN_MAX)), 1)
    return raised(lambda: book.check_new("one-more"))


def skips(_: Patch) -> OnceMQError:
    core = seeker(STARTED, limits=Limits(skips_max=1), end_offset=50)
    apply_all(core, MoveOffset(10, ""))
    return raised(lambda: core.step(MoveOffset(20, ""), 0))


def descriptors(_: Patch) -> OnceMQError:
    return raised(lambda: allow_descriptors(1 << 40, "the partitions"))


def seed_queue(patch: Patch) -> OnceMQError:
    patch.setattr(embedded, "SEED_BYTES_MAX", 1000)
    queue = embedded.ExactlyOnceQueue()
    return raised(lambda: [queue.send(str(n), "x" * 100) for n in range(20)])


def raised(act: Callable[[], Any]) -> Any:
    with pytest.raises((OnceMQError, ValueError, node_messages.Refusal)) as caught:
        act()
    return caught.value


def in_handler(act: Callable[[Any], Any], **bounds: int) -> Any:
    """What a handler of one message meets."""
    done = call(lambda _, tx: act(tx), [1], ledger_with(Limits(**bounds)))
    assert done.failure is not None
    return done.failure.error


def in_effects(act: Callable[[Any], Any]) -> Any:
    """What a handler with effects meets in its first call."""
    app, met = App(), []

    @app.consumer("t", group="g", retries=0)
    def handle(message: Any, tx: Any) -> None:
        try:
            act(tx)
        except OnceMQError as error:
            met.append(error)
            raise

    harness = Harness(app)
    harness.send("t", 1)
    with contextlib.suppress(OnceMQError):  # a result that was not recorded holds the partition
        harness.drain()
    return met[0]


def decorated(**options: Any) -> Any:
    def take(messages: list[Any], tx: Any) -> None:
        """Nothing."""

    return raised(lambda: App().consumer("t", group="g", **options)(take))


def answered(code: int, body: dict[str, Any], **bounds: int) -> str:
    """The text of a node's refusal; keys of another node are far away."""
    cluster = Cluster(["n1", "n2"], 1, Limits(**bounds))
    keys = {"near": cluster.key_of("n1"), "far": cluster.key_of("n2")}
    cluster.partition("n1", "n2")
    offsets = {keys.get(key, key): offset for key, offset in body["offsets"].items()}
    answer = cluster.ask("c1", "n1", {**body, "offsets": offsets})
    assert answer["code"] == code
    return str(answer["text"])


def long_line() -> str:
    told: list[str] = []
    LineCutter(told.append, 1000).cut(b"x" * 2000 + b"\n")
    return told[0]


def forwards(**bounds: int) -> str:
    return answered(11, {"type": "commit_offsets", "offsets": {"far": 1}}, **bounds)


def big(count: int) -> dict[str, Any]:
    return {"node_id": "n0", "node_ids": [f"n{number}" for number in range(count)]}


HELD = "x" * limits.EFFECT_RESULT_BYTES_MAX


def parked_in_a_row(_: Patch) -> Any:
    app = App()

    @app.consumer("t", group="g", retries=0)
    def handler(message: Any, tx: Any) -> None:
        raise LookupError

    with Harness(app) as harness:
        for number in range(limits.PARK_LIMIT_DEFAULT + 1):
            harness.send("t", number)
        return raised(harness.drain)


# Name of the bound: the number that its sentence names, and how it is met.
SPEAKS: dict[str, tuple[float, Callable[[Patch], Any]]] = {
    "NAME_BYTES_MAX": (128, lambda _: raised(lambda: check_name("x" * 129))),
    "MESSAGE_ID_BYTES_MAX": (128, lambda _: raised(lambda: tagged_id("x" * 129))),
    "KEY_BYTES_MAX": (1024, lambda _: raised(lambda: values.encode_key("x" * 1025))),
    "HEADERS_BYTES_MAX": (
        8192,
        lambda _: raised(lambda: values.encode_headers({"a": b"x" * 8192})),
    ),
    "MESSAGE_BYTES_MAX": (
        limits.MESSAGE_BYTES_MAX,
        lambda _: raised(
            lambda: checked_message(b"x" * (1 << 20) + b"x", id=None, key=None, headers=None)
        ),
    ),
    "BATCH_BYTES_MAX": (
        limits.BATCH_BYTES_MAX,
        lambda _: raised(lambda: batch_codec.build([b"x" * 1_000_000] * 5, encodings=0)),
    ),
    "BATCH_MESSAGES_MAX": (
        limits.BATCH_MESSAGES_MAX,
        lambda _: raised(lambda: batch_codec.build([b""] * 16_385, encodings=0)),
    ),
    "FRAME_BYTES_MAX": (limits.FRAME_BYTES_MAX, grants_of_one_answer),
    "a body frame": (limits.FRAME_BYTES_MAX, lambda _: frame(1, limits.FRAME_BYTES_MAX + 1)),
    "HEADER_FRAME_BYTES_MAX": (65_536, lambda _: frame(0, 65_537)),
    "HANDLER_DESCRIPTORS": (1 << 40, descriptors),
    "IN_FLIGHT_BYTES_DEFAULT": (1000, in_flight),
    "no room in time": (1000, no_room),
    "CONCURRENCY_MAX": (1024, lambda _: decorated(concurrency=1025, state_by="key")),
    "STATE_KEY_BYTES_MAX": (
        1024,
        lambda _: in_handler(lambda tx: tx.state.__setitem__("k" * 1025, 1)),
    ),
    "MESSAGE_EFFECTS_BYTES_MAX": (
        limits.MESSAGE_EFFECTS_BYTES_MAX,
        lambda _: in_handler(lambda tx: [tx.send("one", b"x" * 1_000_000) for _ in range(9)]),
    ),
    "state of one message": (
        limits.MESSAGE_EFFECTS_BYTES_MAX,
        lambda _: in_handler(
            lambda tx: tx.state.update({str(n): b"x" * 1_000_000 for n in range(9)})
        ),
    ),
    "EFFECTS_MAX": (
        32,
        lambda _: in_effects(lambda tx: [tx.effect(f"e{n}", int) for n in range(33)]),
    ),
    "EFFECT_RESULT_BYTES_MAX": (
        limits.EFFECT_RESULT_BYTES_MAX,
        lambda _: in_effects(lambda tx: tx.effect("e", lambda: HELD + "x")),
    ),
    "EFFECT_RESULTS_BYTES_MAX": (
        limits.EFFECT_RESULTS_BYTES_MAX,
        lambda _: in_effects(lambda tx: [tx.effect(f"e{n}", lambda: HELD[:-5]) for n in range(3)]),
    ),
    "PARK_LIMIT_DEFAULT": (100, parked_in_a_row),
    "TOPIC_LOOKUP_MS": (0.01, lambda _: raised(lambda: TopicBook().wait("t", 10))),
    "TOPICS_KNOWN_MAX": (limits.TOPICS_KNOWN_MAX, known_topics),
    "NODE_KEY_BYTES_MAX": (1024, lambda _: raised(lambda: node_messages._keys(["x" * 1025]))),
    "NODE_KEYS_PER_REQUEST_MAX": (
        1000,
        lambda _: raised(lambda: node_messages._keys(map(str, range(1001)))),
    ),
    "NODE_MEMBERS_MAX": (1000, lambda _: raised(lambda: node_messages.read_init(big(1001)))),
    "SEED_BYTES_MAX": (1000, seed_queue),
    "topics_max": (1, topics),
    "partitions_max": (1000, partitions),
    "producers_max": (1, producers),
    "producers_retired_max": (1, retired_producers),
    "groups_max": (1, grants),
    "waiting_fetches_max": (1, fetches),
    "lookups_max": (1, lookups),
    "id_tables_waiting_max": (LIMITS.id_tables_waiting_max, tables_of_ids),
    "state_bytes_max": (
        1000,
        lambda _: in_handler(
            lambda tx: tx.state.__setitem__("k", "x" * 1000), state_bytes_max=1000
        ),
    ),
    "commit_messages_max": (65_536, lambda _: decorated(batch=True, batch_size=65_537)),
    "skips_max": (1, skips),
    "node_line_bytes_max": (1000, lambda _: long_line()),
    "node_forwards_max": (0, lambda _: forwards(node_forwards_max=0)),
    "node_forwards_bytes_max": (7, lambda _: forwards(node_forwards_bytes_max=7)),
    "node_committed_keys_max": (
        0,
        lambda _: answered(
            11, {"type": "commit_offsets", "offsets": {"near": 1}}, node_committed_keys_max=0
        ),
    ),
}


@pytest.mark.parametrize("name", SPEAKS)
def test_a_bound_speaks(name: str, monkeypatch: Patch) -> None:
    """The sentence names the number; an error of OnceMQ says besides what to do."""
    number, meet = SPEAKS[name]
    met = meet(monkeypatch)
    sentence = str(met)
    assert f"{number:g}" in re.findall(r"\d+(?:\.\d+)?", sentence) or str(number) in sentence
    if isinstance(met, OnceMQError):
        assert met.hint
        assert met.hint in sentence
        assert len(met.reason.split()) > 3


# What refuses nothing. Waiting times and the sizes of single steps are met by every run, some of
# them small in the simulator; of the others the test that meets the bound is named.
TIME = "how long something waits"
STEP = "how much is done at once, or a default that users set"
SIMULATED = "met by every second simulated run, made small by TightBounds"
CORE, BROKER, ZMQ = (
    "tests/core/consumer/",
    "tests/core/broker/",
    "tests/runtime/test_zmq_transport.py::",
)
NODE, QUEUE = "tests/maelstrom/test_node.py::", "tests/library/embedded/test_queue.py::"
QUIET: dict[str, str] = {
    "SYSTEM_HEADERS_BYTES_MAX": CORE
    + "test_dead_letters.py::test_headers_of_a_letter_are_within_their_room",
    "REQUEST_FRAMES_MAX": ZMQ + "test_what_is_out_of_bounds_is_dropped_and_counted",
    "REQUEST_BYTES_MAX": ZMQ + "test_what_is_out_of_bounds_is_dropped_and_counted",
    "ROUTING_ID_BYTES": ZMQ + "test_what_is_out_of_bounds_is_dropped_and_counted",
    "DESCRIPTORS_SPARE": "tests/hostile/test_descriptors.py::"
    "test_when_the_reserve_is_taken_all_connections_are_closed_and_taken_again",
    "LABEL_CHARS_MAX": "tests/test_bounds.py::test_a_long_label_is_cut",
    "FETCH_BYTES_MAX": "tests/test_bounds.py::test_no_answer_is_longer_than_the_longest",
    "PRODUCERS_LISTED_MAX": BROKER + "test_retired_producers.py::test_a_list_has_a_bound",
    "SURVEY_ROWS_MAX": BROKER + "test_survey.py::test_pages_are_bounded_and_bring_every_row_once",
    "survey_reads_max": BROKER + "test_survey.py::test_a_page_reads_a_bounded_number_of_batches",
    "created_ahead_ms_max": BROKER
    + "test_horizon.py::test_a_message_without_a_time_or_from_the_future_is_refused",
    "FETCH_WAIT_MS_DEFAULT": TIME,
    "FETCH_WAIT_MS_MAX": BROKER + "test_fetch.py::test_waits_are_bounded",
    "SEGMENT_BYTES": STEP,
    "RECORD_BYTES_MAX": "tests/storage/test_log.py::test_impossible_records_are_refused",
    "RECORD_META_BYTES_MAX": "tests/storage/test_log.py::test_impossible_records_are_refused",
    "RESERVE_STEP_BYTES": STEP,
    "RESERVE_MARGIN_BYTES": "tests/storage/test_log.py::"
    "test_the_margin_serves_control_records_on_a_full_disk",
    "DECODED_BYTES_MAX": "tests/test_bounds.py::test_what_stays_decoded_is_bounded",
    "ATTEST_IDLE_MS": TIME,
    "FENCE_CHECK_IDLE_MS": TIME,
    "SNAPSHOT_EVERY_BYTES": STEP,
    "LEDGER_SNAPSHOT_EVERY_BYTES": STEP,
    "SNAPSHOTS_KEPT": "tests/storage/test_snapshots.py::test_the_two_newest_snapshots_are_kept",
    "FEED_BATCHES_MAX": STEP,
    "LINGER_MS": TIME,
    "SEND_TIMEOUT_MS": TIME,
    "ACK_TIMEOUT_S": TIME,
    "NO_BROKER_WARNING_MS": TIME,
    "RELAY_ROUND_MESSAGES": "tests/library/outbox/test_relay.py::"
    "test_a_long_outbox_is_read_in_bounded_rounds",
    "RELAY_ROUND_BYTES": "tests/library/outbox/test_relay.py::"
    "test_a_long_outbox_is_read_in_bounded_rounds",
    "RELAY_POLL_S_DEFAULT": TIME,
    **dict.fromkeys(("PING_MS", "SILENCE_MS", "RESEND_MS", "LEASE_MS", "LEASE_RENEW_MS"), TIME),
    **dict.fromkeys(("JOIN_RETRY_MS", "MEMBER_MS", "ASKED_MS", "KEEP_MS", "SETTLE_MS"), TIME),
    **dict.fromkeys(("COUNT_MS", "STEADY_MS", "MOVE_PAUSE_MS", "PRIVATE_LOOK_MS"), TIME),
    "RETRIES_DEFAULT": STEP,
    "CRASH_RETRIES_DEFAULT": STEP,
    "PARKED_ERROR_BYTES_MAX": CORE
    + "test_dead_letters.py::test_a_letter_keeps_key_value_headers_and_order",
    "BACKOFF_FIRST_MS": TIME,
    "BACKOFF_MAX_MS": TIME,
    "CONFLICT_FIRST_MS": TIME,
    "BATCH_SIZE_DEFAULT": STEP,
    "EFFECT_LOOK_MS": TIME,
    "STANDBY_RETRY_MS": TIME,
    "LEAVE_WAIT_MS": TIME,
    "DRAIN_S_DEFAULT": TIME,
    "NODE_TURN_BYTES_MAX": STEP,
    "NODE_POLL_MESSAGES_MAX": NODE + "test_a_poll_is_bounded_and_goes_on",
    "NODE_POLL_BYTES_MAX": NODE + "test_an_answer_about_many_keys_is_bounded",
    "NODE_FORWARD_RESEND_MS": TIME,
    "NODE_FORWARD_TIMEOUT_MS": TIME,
    "SEED_WINDOW_DEFAULT": QUEUE + "test_a_window_remembers_at_least_so_many_ids",
    "SEED_READ_BYTES": STEP,
    "producer_nonces_kept": BROKER + "test_sequences.py::test_nonces_are_bounded",
    "sessions_max": BROKER + "test_explicit_ids.py::test_the_session_table_is_bounded",
    "peers_max": BROKER + "test_core.py::test_the_table_of_peers_is_bounded",
    "turn_events_max": ZMQ + "test_one_poll_takes_one_turn_at_most",
    "turn_bytes_max": BROKER + "test_fetch.py::test_one_turn_serves_a_bounded_number_of_bytes",
    "turn_read_bytes_max": BROKER
    + "test_fetch.py::test_readers_of_many_partitions_share_what_is_read",
    "turn_freeze_bytes": BROKER + "test_freezing.py::test_a_snapshot_of_many_rows_takes_many_turns",
    "offset_index_step_bytes": BROKER + "test_tables.py::test_an_offset_is_found_within_one_step",
    "producer_index_entries_max": BROKER
    + "test_sequences.py::test_old_numbers_are_found_although_places_are_thinned",
    "cursors_per_partition": SIMULATED,
    "reads_per_request_max": BROKER + "test_sequences.py::test_a_long_lookup_goes_on_over_turns",
    "read_bytes": SIMULATED,
    "first_read_extra_bytes": STEP,
    "id_table_ids": BROKER + "test_core.py::test_files_of_ids_are_written_once",
    "id_table_ids_max": BROKER + "test_core.py::test_tables_grow_with_the_number_of_ids",
    "offset_part_bytes": SIMULATED,
    "RETENTION_EVERY_MS": TIME,
    "TRIMS_WITHOUT_ROOM_MAX": BROKER
    + "test_retention.py::test_on_a_full_disk_messages_go_on_being_deleted_for_a_while",
    "keep_bytes_min": SIMULATED,
    "retention_partitions_per_turn": BROKER
    + "test_retention.py::test_a_sweep_of_many_partitions_takes_several_turns",
    "fetch_bytes_default": SIMULATED,
    "in_flight_batches_max": "tests/core/client/test_send_window.py::"
    "test_the_window_bounds_batches_in_flight",
    "members_max": BROKER + "test_balance.py::test_members_are_bounded",
    "asked_max": BROKER + "test_balance.py::test_members_are_bounded",
    "solitary_messages_max": STEP,
    "keys_ahead_max": SIMULATED,
    "outputs_unacked_max": CORE
    + "test_core.py::test_calls_wait_while_too_many_outputs_are_unacknowledged",
    "outputs_unacked_bytes_max": CORE
    + "test_core.py::test_calls_wait_while_too_many_bytes_are_unacknowledged",
    "fetches_held_max": CORE + "test_core.py::test_no_more_replies_are_held_than_allowed",
    "commit_every_ms": SIMULATED,
    "commit_bytes": "tests/library/handling/test_tx.py::"
    "test_a_commit_is_cut_before_it_grows_too_large",
    "ledger_table_ids": CORE + "test_ledger.py::test_files_of_processed_ids_are_written_once",
    "ledger_table_ids_max": CORE + "test_ledger.py::test_tables_of_a_ledger_grow_with_it",
    "ledger_tables_waiting_max": CORE
    + "test_core.py::test_calls_wait_while_too_many_ids_wait_for_a_file",
    "LEDGER_FILES_LOOK_MS": CORE
    + "test_core.py::test_calls_wait_while_too_many_ids_wait_for_a_file",
    "node_replies_kept_max": NODE + "test_remembered_requests_are_bounded",
    "node_replies_kept_bytes_max": STEP,
}


def all_bounds() -> set[str]:
    constants = {
        name
        for name, value in vars(limits).items()
        if name.isupper() and type(value) in {int, float}
    }
    return constants | {field.name for field in fields(Limits)}


def test_every_bound_is_in_a_table() -> None:
    """A new bound needs a sentence that a test sees, or a test of what it does in silence."""
    names = all_bounds()
    assert names - SPEAKS.keys() - QUIET.keys() == set(), "no test meets these bounds"
    assert QUIET.keys() - names == set(), "no bounds any more"
    assert not SPEAKS.keys() & QUIET.keys()


@pytest.mark.parametrize("name", [n for n, how in QUIET.items() if "::" in how])
def test_the_test_of_a_quiet_bound_is_there(name: str) -> None:
    path, _, wanted = QUIET[name].partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert wanted in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_times_and_simulated_bounds_are_what_they_are_called() -> None:
    """No bound on what a user may do hides among the waiting times."""
    for name, how in QUIET.items():
        if how == TIME:
            assert re.search(r"_(MS|S)(_|$)", name), name
        if how == SIMULATED:
            assert name in SMALL, name
        if how == STEP:
            assert "_max" not in name.lower() or name in STEPS, name


# Bounds of single steps whose names sound like more.
STEPS = {
    "FEED_BATCHES_MAX",
    "NODE_TURN_BYTES_MAX",
    "solitary_messages_max",
    "node_replies_kept_bytes_max",
}


def test_a_long_label_is_cut() -> None:
    """What tells people who somebody is has a bounded length everywhere."""
    world = broker()
    world.topic()
    label = "m" * (limits.LABEL_CHARS_MAX + 50)
    world.ask(Join(world.n, "g", "t", 0, b"A" * 16, b"l", b"", b"", 0, 0, False, label, "/", label))
    grant = world.core.state.groups.grants["g", "t", 0]
    assert grant.label == grant.host == "m" * limits.LABEL_CHARS_MAX


def test_no_answer_is_longer_than_the_longest() -> None:
    """Who asks for more than a fetch may hold gets as much as it may hold, and asks on."""
    world = broker(turn_read_bytes_max=1 << 30)
    world.topic()
    world.producer()
    for number in range(7):
        world.send(number, "x" * 900_000)
    received = world.fetch(0, max_bytes=1 << 40)
    size = sum(len(record.raw) for record in received.stored)
    assert limits.FETCH_BYTES_MAX - 900_100 < size <= limits.FETCH_BYTES_MAX
    world.clock.ms += 1
    assert world.fetch(received.message.next_offset).message.next_offset > len(received.stored)


def test_what_stays_decoded_is_bounded() -> None:
    """The oldest goes; what is left is found, up to the gap."""
    decoded = _Decoded(100)
    for position in range(0, 500, 10):
        decoded.add(position, position + 10, None)
    assert decoded.walk(0, 1000) == ([], 0)
    assert decoded.walk(400, 50) == ([], 450)
    assert decoded.walk(400, 1000) == ([], 500)
    assert len(decoded._at) == 10
