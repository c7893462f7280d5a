"""The proof from files: a clean system passes, and every kind of broken promise is named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oncemq.codec import batch as batch_codec
from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.broker.state import BrokerState
from oncemq.core.consumer.ledger import Ledger
from oncemq.errors import CorruptLog, StorageError, UnknownTopic
from oncemq.ids import output_producer, tagged_id
from oncemq.limits import LIMITS, Limits
from oncemq.proof.parse import log as log_module
from oncemq.proof.parse.files import OsFiles
from oncemq.proof.verify.verify import PROVED, find_ledgers, verify
from oncemq.records import (
    AttemptMarked,
    HorizonMarked,
    LedgerEnded,
    LedgerStarted,
    Parked,
    Skipped,
    TopicConfigured,
    TopicCreated,
    TopicDeleted,
    Trimmed,
)
from oncemq.runtime.os_disk import OsDisk
from oncemq.storage.memory import MemoryDisk
from tests.proof import forged_effects
from tests.proof.golden import (
    DATA,
    STATE,
    Broker,
    Consumer,
    compacted,
    explicit,
    ledger_id,
    numbered,
    put,
    shop,
    topic_id,
)

SENDER = output_producer("billing", "orders", 0)


def checks(disk: Any, **more: Any) -> set[str]:
    return set(verify(disk, DATA, STATE, **more).found.counts)


def test_a_clean_system_passes_and_every_message_is_accounted_for() -> None:
    """Accepted is processed plus pending, and nothing is found."""
    disk = MemoryDisk()
    shop(disk)
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    assert report.topics["orders"]["accepted"] == 8
    assert report.topics["orders"]["groups"]["billing"] == {
        "processed": 7,
        "parked": 0,
        "skipped": 0,
        "pending": 1,
        "partitions": 1,
    }
    assert report.outputs_pending == 0
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_one_topic_can_be_asked_for() -> None:
    """Only its messages are reported; an unknown one is an error."""
    disk = MemoryDisk()
    shop(disk)
    assert set(verify(disk, DATA, STATE, topic="invoices").topics) == {"invoices"}
    with pytest.raises(UnknownTopic):
        verify(disk, DATA, STATE, topic="nothing")
    with pytest.raises(UnknownTopic, match="did you mean 'invoices'"):
        verify(disk, DATA, STATE, topic="invoice")


def test_without_a_log_there_is_nothing_to_prove() -> None:
    """An empty directory is an error, not a clean verdict."""
    with pytest.raises(StorageError):
        verify(MemoryDisk(), DATA, None)


def test_rows_may_outgrow_memory() -> None:
    """Tiny runs in temporary files give the same verdicts as sorting in memory."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    assert verify(disk, DATA, STATE, run_records=2).ok
    broker.store("orders", explicit("o-9", "o-2"))
    assert checks(disk, run_records=2) == {"I3-no-duplicate"}


def test_an_id_twice_is_named_with_both_places() -> None:
    """The violation tells the id and where it stands, whatever partitions those are."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("t", 2)
    broker.store("t", explicit("a", "b"))
    broker.store("t", explicit("b"), partition=1)
    (violation,) = verify(disk, DATA, None).found.kept
    assert violation.ids == ("b",)
    assert "t/0 offset 1" in violation.explanation + violation.where
    assert "t/1 offset 0" in violation.explanation + violation.where


def test_the_same_id_in_two_topics_is_two_messages() -> None:
    """Ids are deduplicated in their topic, and not beyond."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("t")
    broker.topic("u")
    broker.store("t", explicit("a"))
    broker.store("u", explicit("a"))
    assert verify(disk, DATA, None).ok


# --- forged logs ---------------------------------------------------------------------------------


def _gap(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", explicit("x"), first_offset=9)


def _offset_again(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", explicit("x"), first_offset=6)


def _number_twice(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", numbered(1), producer="importer", first_sequence=3)


def _number_gap(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", numbered(1), producer="importer", first_sequence=9)


def _old_epoch(broker: Broker, consumer: Consumer) -> None:
    broker.producer("importer")
    broker.store("orders", numbered(1), producer="importer", epoch=1)


def _old_output_epoch(broker: Broker, consumer: Consumer) -> None:
    broker.grant("billing", "orders", 0, 3, next_offset=7)
    broker.store("invoices", numbered(1), producer=SENDER, epoch=2)


def _horizon_unset(broker: Broker, consumer: Consumer) -> None:
    put(broker.log, HorizonMarked(0, 0, 0, 9_000))


def _with_horizon(broker: Broker, *marks: tuple[int, int, int]) -> None:
    put(broker.log, TopicConfigured(0, 1_000, None, None, False, 1))
    for floor_ms, forgotten_ms, at_ms in marks:
        put(broker.log, HorizonMarked(0, floor_ms, forgotten_ms, at_ms))


def _horizon_back(broker: Broker, consumer: Consumer) -> None:
    _with_horizon(broker, (3_000, 0, 4_000), (2_999, 0, 5_000))


def _horizon_ahead(broker: Broker, consumer: Consumer) -> None:
    _with_horizon(broker, (3_001, 0, 4_000))


def _horizon_forgets_unseen(broker: Broker, consumer: Consumer) -> None:
    _with_horizon(broker, (3_000, 0, 4_000), (6_000, 4_001, 7_000))


def _horizon_forgets_young(broker: Broker, consumer: Consumer) -> None:
    _with_horizon(broker, (3_000, 0, 4_000), (4_000, 4_000, 5_000))


def _uncommitted_output(broker: Broker, consumer: Consumer) -> None:
    broker.store("invoices", numbered(3), producer=SENDER)


def _other_ledger(broker: Broker, consumer: Consumer) -> None:
    broker.grant("billing", "orders", 0, 3, next_offset=7, ledger_id=b"?" * 16)


def _granted_below(broker: Broker, consumer: Consumer) -> None:
    broker.grant("billing", "orders", 0, 3, next_offset=9)
    broker.grant("billing", "orders", 0, 4, next_offset=7)


# --- forged ledgers ------------------------------------------------------------------------------


def _processed_twice(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-2"])


def _not_processed(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, [])


def _invented(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4x"])


def _numbers_again(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], ranges=[("importer", 2, 1)])


def _numbers_invented(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, [], ranges=[("importer", 4, 1)])


def _numbers_missing(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", numbered(2), producer="importer")
    consumer.commit(10, ["o-4"], ranges=[("importer", 4, 1)])


def _beyond_the_log(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(9, ["o-4"])


def _backwards(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(5, [])


def _number_skipped(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], commit_no=9)


def _zombie_commit(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], epoch=1)


def _too_many(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4", "o-5"])


def _output_changed(broker: Broker, consumer: Consumer) -> None:
    output = consumer.output("invoices", numbered(1, b"one"))
    consumer.commit(8, ["o-4"], outputs=[output])
    broker.store("invoices", numbered(1, b"two"), producer=SENDER)


def _output_gap(broker: Broker, consumer: Consumer) -> None:
    output = consumer.output("invoices", numbered(1))
    output.first_sequence += 1
    consumer.commit(8, ["o-4"], outputs=[output])


def _output_damaged(broker: Broker, consumer: Consumer) -> None:
    output = consumer.output("invoices", numbered(1))
    output.crc ^= 1
    consumer.commit(8, ["o-4"], outputs=[output])


def _parked(consumer: Consumer, offset: int, attempts: int = 1) -> Parked:
    return Parked(topic_id(consumer.place[1]), offset, "raised", attempts)


def _parked_without_letter(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], parked=[_parked(consumer, 7)])


def _letter_without_parking(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], outputs=[consumer.output("orders.dead", numbered(1))])


def _parked_not_passed(broker: Broker, consumer: Consumer) -> None:
    letter = consumer.output("orders.dead", numbered(1))
    consumer.commit(7, [], outputs=[letter], parked=[_parked(consumer, 7)])


def _skipped_not_passed(broker: Broker, consumer: Consumer) -> None:
    skipped = Skipped(topic_id("orders"), 7, 9, "seek")
    consumer.commit(8, [], skipped=[skipped])


def _zombie_mark(broker: Broker, consumer: Consumer) -> None:
    put(consumer.log, AttemptMarked(1, topic_id("orders"), 7, 0, returned=False))


def _marked_what_is_passed(broker: Broker, consumer: Consumer) -> None:
    put(consumer.log, AttemptMarked(2, topic_id("orders"), 3, 0, returned=False))


def _zombie_end(broker: Broker, consumer: Consumer) -> None:
    put(consumer.log, LedgerEnded(3))


def _foreign_input(broker: Broker, consumer: Consumer) -> None:
    consumer.place = ("billing", "invoices", 0)
    consumer.commit(1, ["i"])


def _acked_output_lost(broker: Broker, consumer: Consumer) -> None:
    output = consumer.output("invoices", numbered(1))
    consumer.commit(8, ["o-4"], outputs=[output])
    consumer.commit(8, [], acked=[("invoices", 0, 3)])


def _acked_unmade(broker: Broker, consumer: Consumer) -> None:
    consumer.commit(8, ["o-4"], acked=[("invoices", 0, 9)])


def _starts_twice(broker: Broker, consumer: Consumer) -> None:
    consumer.start(7)


def _not_granted(broker: Broker, consumer: Consumer) -> None:
    other = Consumer(broker.disk, "mailing", "orders")
    other.start()
    other.commit(1, ["o-1"])


def _another_log(broker: Broker, consumer: Consumer) -> None:
    other = Consumer(broker.disk, "mailing", "orders")
    put(other.log, LedgerStarted("mailing", "orders", 0, topic_id("orders"), b"?" * 16, b"", 0))


def _second_directory(broker: Broker, consumer: Consumer) -> None:
    other = Consumer(broker.disk, "elsewhere", "orders")
    other.place = ("billing", "orders", 0)
    other.start()


def _wrong_commit(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", explicit("o-5"))
    consumer.commit(8, ["o-5"])
    consumer.commit(9, ["o-4"])


def _wrong_commit_numbers(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", numbered(2), producer="importer")
    consumer.commit(9, ["o-4"], ranges=[("importer", 5, 1)])
    consumer.commit(10, ranges=[("importer", 4, 1)])


def _committed_below_the_grant(broker: Broker, consumer: Consumer) -> None:
    broker.grant("mailing", "orders", 0, 2, next_offset=1)
    other = Consumer(broker.disk, "mailing", "orders")
    other.start()
    other.commit(1, ["o-1"])


def _broker_record(broker: Broker, consumer: Consumer) -> None:
    put(consumer.log, TopicCreated("t", b"", 1, 1))


def _ledger_record(broker: Broker, consumer: Consumer) -> None:
    put(broker.log, LedgerStarted("g", "t", 0, b"", b"", b"", 0))


def _unknown_partition(broker: Broker, consumer: Consumer) -> None:
    broker.store("orders", explicit("x"), partition=7)


def _deleted_unprocessed(broker: Broker, consumer: Consumer) -> None:
    put(broker.log, Trimmed(0, 0, 8, "processed", 1))


def _start_goes_back(broker: Broker, consumer: Consumer) -> None:
    put(broker.log, Trimmed(0, 0, 5, "age", 1), Trimmed(0, 0, 4, "age", 1))


def _topic_deleted_twice(broker: Broker, consumer: Consumer) -> None:
    put(broker.log, TopicDeleted(1, 1), TopicDeleted(1, 1))


FORGED: list[tuple[Callable[[Broker, Consumer], None], str]] = [
    (_gap, "I6-offsets"),
    (_offset_again, "I6-offsets"),
    (_number_twice, "I3-no-duplicate"),
    (_number_gap, "I5-producer-order"),
    (_old_epoch, "I10-zombie-fenced"),
    (_old_output_epoch, "I10-zombie-fenced"),
    (_horizon_unset, "horizon"),
    (_horizon_back, "horizon"),
    (_horizon_ahead, "horizon"),
    (_horizon_forgets_unseen, "horizon"),
    (_horizon_forgets_young, "horizon"),
    (_uncommitted_output, "I11-outputs-once"),
    (_other_ledger, "one-ledger"),
    (_granted_below, "I8-commit-monotone"),
    (_processed_twice, "I7-effect-once"),
    (_not_processed, "I8-commit-covers"),
    (_invented, "I4-no-invention"),
    (_numbers_again, "I7-effect-once"),
    (_numbers_invented, "I4-no-invention"),
    (_numbers_missing, "I8-commit-covers"),
    (_committed_below_the_grant, "I8-commit-monotone"),
    (_beyond_the_log, "I8-commit-monotone"),
    (_backwards, "I8-commit-monotone"),
    (_number_skipped, "I8-commit-monotone"),
    (_zombie_commit, "I10-zombie-fenced"),
    (_too_many, "I7-effect-once"),
    (_output_changed, "I11-outputs-once"),
    (_output_gap, "I11-outputs-once"),
    (_output_damaged, "I11-outputs-once"),
    (_parked_without_letter, "P9-parked"),
    (_letter_without_parking, "P9-parked"),
    (_parked_not_passed, "P9-parked"),
    (_skipped_not_passed, "P9-parked"),
    (_zombie_mark, "I10-zombie-fenced"),
    (_marked_what_is_passed, "I10-zombie-fenced"),
    (_zombie_end, "I10-zombie-fenced"),
    (_foreign_input, "ledger-shape"),
    (_acked_output_lost, "I1-acked-not-lost"),
    (_acked_unmade, "I11-outputs-once"),
    (_starts_twice, "ledger-shape"),
    (_broker_record, "ledger-shape"),
    (_ledger_record, "log-shape"),
    (_unknown_partition, "log-shape"),
    (_wrong_commit, "I12-order"),
    (_wrong_commit_numbers, "I12-order"),
    (_not_granted, "I10-zombie-fenced"),
    (_another_log, "one-log"),
    (_deleted_unprocessed, "retained"),
    (_start_goes_back, "log-shape"),
    (_topic_deleted_twice, "log-shape"),
    (_second_directory, "one-ledger"),
    *forged_effects.FORGED,
]


@pytest.mark.parametrize(("forge", "check"), FORGED, ids=[f.__name__[1:] for f, _ in FORGED])
def test_a_broken_promise_is_found(forge: Callable[..., None], check: str) -> None:
    """Whatever broker or consumer got wrong, the check of that promise says so."""
    disk = MemoryDisk()
    broker, consumer = shop(disk)
    assert checks(disk) == set()
    forge(broker, consumer)
    assert check in checks(disk)


def test_everything_that_is_proved_is_shown_to_be_found() -> None:
    """Each name of the list has its forged log or ledger; snapshots have tests of their own."""
    assert {check for _, check in FORGED} | {"I13-atomicity"} == set(PROVED)


def test_a_copied_ledger_of_the_same_partition_is_found() -> None:
    """A commit under an epoch that was granted to another ledger does not count."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("t")
    broker.store("t", explicit("a"))
    broker.grant("g", "t", 0, 2, ledger_id=ledger_id("g", "t", 9))
    consumer = Consumer(disk, "g", "t")
    consumer.start()
    consumer.commit(1, ["a"])
    assert checks(disk) == {"one-ledger"}


def test_damage_is_an_error_with_file_and_offset() -> None:
    """A flipped byte in a body stops the proof; it is never counted as something else."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    broker.log.attest()
    path = f"{DATA}/gen-{broker.log.generation:020d}/{0:020d}.log"
    file = disk.open(path, write=True)
    byte = file.read(300, 1)
    file.write(bytes([byte[0] ^ 1]), 300)
    with pytest.raises(CorruptLog) as error:
        verify(disk, DATA, STATE)
    assert path in str(error.value)


def test_ledgers_are_found_below_a_state_directory(tmp_path: Path) -> None:
    """Files and empty directories beside ledgers are passed over, also on the real disk."""
    disk = MemoryDisk()
    shop(disk)
    assert find_ledgers(disk, STATE) == [f"{STATE}/billing/orders/0"]
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "g" / "t" / "0").mkdir(parents=True)
    assert find_ledgers(OsFiles(), str(tmp_path)) == []


def test_the_real_disk_is_read_through_the_same_door(tmp_path: Path) -> None:
    """What an operating-system disk holds gives the same report as one in memory."""
    data, state = f"{tmp_path}/{DATA}", f"{tmp_path}/{STATE}"
    broker = Broker(OsDisk(), data)
    broker.topic("t")
    broker.store("t", explicit("a", "b"))
    broker.grant("g", "t", 0, 2)
    consumer = Consumer(OsDisk(), "g", "t", state=state)
    consumer.start()
    consumer.commit(1, ["a"])
    report = verify(OsFiles(), data, state)
    broker.log.close()
    consumer.log.close()
    assert report.ok, report.found.kept
    assert report.topics["t"]["groups"]["g"]["pending"] == 1


# --- compacted and live systems ------------------------------------------------------------------


def compacted_shop(disk: MemoryDisk) -> tuple[Broker, Consumer]:
    """A system whose ledger starts at a snapshot and has one more behind it."""
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    return broker, compacted(broker)


def test_a_compacted_ledger_is_proved_from_its_snapshot() -> None:
    """What only the snapshot holds counts as processed, and nothing is found."""
    disk = MemoryDisk()
    compacted_shop(disk)
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    assert report.topics["orders"]["groups"]["billing"]["processed"] == 120


def test_outputs_that_only_a_snapshot_holds_may_still_be_on_their_way() -> None:
    """Unacknowledged outputs of a compacted ledger are pending, not lost."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    compacted(broker, stored=5)
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    assert report.outputs_pending == 55


def test_a_group_that_began_later_owes_nothing_below() -> None:
    """What lies below the start of a group is skipped by it, in both kinds of ids."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    broker.grant("late", "orders", 0, 2, next_offset=4)
    late = Consumer(disk, "late", "orders")
    late.start(4)
    late.commit(8, ["o-4"], ranges=[("importer", 1, 3)])
    broker.grant("later", "orders", 0, 2, next_offset=2)
    later = Consumer(disk, "later", "orders")
    later.start(2)
    later.commit(3, ["o-3"])
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    assert report.topics["orders"]["groups"]["late"]["skipped"] == 4
    assert report.topics["orders"]["groups"]["later"]["pending"] == 5


def test_an_id_of_the_snapshot_processed_again_is_found() -> None:
    """The set that a snapshot carries forbids a second time like any commit."""
    disk = MemoryDisk()
    broker, consumer = compacted_shop(disk)
    broker.store("orders", explicit("c"))
    consumer.commit(121, ["a3"])
    assert "I7-effect-once" in checks(disk)


def test_a_damaged_snapshot_is_noted_and_the_other_one_taken() -> None:
    """Either of two stands for what was discarded; without both that is damage."""
    disk = MemoryDisk()
    _, consumer = compacted_shop(disk)
    path = f"{consumer.directory}/gen-{consumer.log.generation:020d}"
    parts = [name for name in disk.list(path) if name.endswith(".part")]
    heads = [name for name in disk.list(path) if name.endswith(".snapshot")]
    assert len(heads) == 2
    first = [name for name in parts if name.split("-")[1] == min(parts).split("-")[1]]
    damage(disk, f"{path}/{first[0]}")
    report = verify(disk, DATA, STATE)
    assert report.ok, report.found.kept
    assert "wrong checksum of a part" in report.found.notes[0]
    assert report.topics["orders"]["groups"]["billing"]["processed"] == 120
    for name in parts:
        if name not in first:
            damage(disk, f"{path}/{name}")
    with pytest.raises(CorruptLog):
        verify(disk, DATA, STATE)


def damage(disk: MemoryDisk, path: str) -> None:
    """Flip a bit of the first byte of a file."""
    file = disk.open(path, write=True)
    file.write(bytes([file.read(0, 1)[0] ^ 1]), 0)
    file.close()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("ledger", lambda part: part | {"next_offset": part["next_offset"] - 2}),
        ("ledger", lambda part: part | {"next_sequence": []}),
        ("ledger", lambda part: part | {"ranges": [["p", 0, 1]]}),
        ("state", lambda part: {**part, "k": b"v"}),
        ("processed", lambda part: [*part[:3], _without_last_column(part[3])]),
    ],
)
def test_a_snapshot_that_says_something_else_is_found(part: str, change: Any) -> None:
    """Snapshot and records below it must be the same state, in every field."""
    disk = MemoryDisk()
    consumer = shop(disk)[1]
    snapshot = core_of(consumer).snapshot()
    parts = dict(snapshot.parts)
    name = next(name for name in parts if name.startswith(part))
    parts[name] = change(parts[name])
    packed = {name: wire.pack_plain(content) for name, content in parts.items()}
    consumer.log.write_snapshot(consumer.log.durable_end, packed)
    assert checks(disk) == {"I13-atomicity"}


def _without_last_column(entries: bytes) -> bytes:
    return np.frombuffer(entries, np.uint64).reshape(2, -1)[:, :-1].tobytes()


@pytest.mark.parametrize("harm", ["", "a run less", "another ledger", "a changed bit"])
@pytest.mark.parametrize("discard", [False, True])
def test_runs_of_a_ledger_count_as_what_they_hold(*, discard: bool, harm: str) -> None:
    """With the records below the snapshot and without: what the runs hold is proved, damage is named."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    limits = Limits(ledger_table_ids=4)
    consumer = compacted(broker, discard=discard, limits=limits, harm=harm)
    if harm == "another ledger" or (harm == "a changed bit" and discard):
        with pytest.raises(CorruptLog, match=r"checksum|another ledger"):
            verify(disk, DATA, STATE)
    else:
        report = verify(disk, DATA, STATE)
        assert report.ok == (harm != "a run less")
        passed_over = any("wrong checksum of a part" in note for note in report.found.notes)
        assert passed_over == (harm == "a changed bit"), "the records say the same"
    assert any(name.endswith(".map") for name in disk.list(consumer.log._view.path))


def core_of(consumer: Consumer) -> Ledger:
    """The state that a ledger's records make."""
    core = Ledger()
    for stored in consumer.log.replay(0):
        record = record_codec.decode(stored.type, stored.meta, stored.body, stored.body_crc)
        core.apply(record, stored.position)
    return core


def broker_snapshot(broker: Broker) -> dict[str, Any]:
    """The parts of a snapshot of what a broker's log says."""
    return dict(_state_of(broker, LIMITS).snapshot().whole())


def _state_of(broker: Broker, limits: Limits) -> BrokerState:
    state = BrokerState(b"S" * 32, limits)
    for stored in broker.log.replay(0):
        record = record_codec.decode(
            stored.type, stored.meta, stored.body, stored.body_crc, columns=True
        )
        state.apply(record, stored.position)
    return state


def _write(broker: Broker, parts: dict[str, Any]) -> None:
    packed = {name: wire.pack_plain(content) for name, content in parts.items()}
    broker.log.write_snapshot(broker.log.durable_end, packed)


def test_a_true_snapshot_of_the_broker_passes() -> None:
    """Topics, numbers, epochs, ids and grants of a snapshot are those of the records."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    _write(broker, broker_snapshot(broker))
    assert verify(disk, DATA, STATE).ok


def test_an_id_may_come_again_once_it_is_forgotten() -> None:
    """With another time; under one time it is one message for ever."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("t")
    _with_horizon(broker)
    columns: dict[str, Any] = {"encodings": 0, "ids": [tagged_id("x")]}
    for created in (500, 9_000):
        broker.store(
            "t", batch_codec.build([b"v"], **columns, created_at_ms=[created]), at_ms=created
        )
    assert verify(disk, DATA, None).ok
    broker.store("t", batch_codec.build([b"v"], **columns, created_at_ms=[9_000]), at_ms=9_500)
    assert set(verify(disk, DATA, None).found.counts) == {"I3-no-duplicate"}


def test_hashes_of_a_client_that_lies_accuse_nobody() -> None:
    """The column is the client's word: the broker makes its own, and the proof does not look."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("t")
    batch = batch_codec.build([b"abc"], encodings=0, ids=[tagged_id("x")])
    raw = bytes(batch.raw).replace(b"abc", b"abd")
    broker.store("t", batch_codec.parse(raw, 0, check=False), crc=None)
    assert verify(disk, DATA, None).ok


@pytest.mark.parametrize("settings", [[3_600_000, None, None, False], [None, None, None, True]])
def test_a_snapshot_with_other_settings_than_the_log_is_found(settings: list[Any]) -> None:
    """Whoever starts from it would forget, or delete, by a rule that nobody has set."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    parts = broker_snapshot(broker)
    parts["topics"][0][5] = settings
    _write(broker, parts)
    assert checks(disk) == {"I13-atomicity"}


@pytest.mark.parametrize("part", ["topics", "producers", "groups", "ids"])
def test_a_snapshot_of_the_broker_that_lacks_something_is_found(part: str) -> None:
    """A dedup state that forgot anything would store a message twice: it is named before that."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    parts = broker_snapshot(broker)
    name = next(name for name in parts if name.startswith(part))
    content = parts[name]
    if part == "ids":
        mark, [[kind, number, runs, recent, *origin]] = content
        less = np.frombuffer(recent, np.uint64).reshape(4, -1)[:, :-1].tobytes()
        parts[name] = [mark, [[kind, number, runs, less, *origin]]]
    else:
        parts[name] = content[:-1]
    _write(broker, parts)
    assert checks(disk) == {"I13-atomicity"}


@pytest.mark.parametrize("lost", [False, True])
def test_runs_of_ids_count_as_what_they_hold(lost: bool) -> None:
    """Ids in runs and the newest ids are together those of the log; a run less is named."""
    disk = MemoryDisk()
    broker, _ = shop(disk)
    state = _state_of(broker, Limits(id_table_ids=1))
    while due := state.due():
        for new in due:
            writer = broker.log.part_writer(new.name)
            writer.write(new.pieces())
            made = writer.finish()
            assert made is not None
            state.made(new.name, made.buffer, made.path)
    snapshot = state.snapshot()
    mark, [[kind, number, held, *recent]] = snapshot.parts["ids"]
    assert held
    parts = {**snapshot.whole(), "ids": [mark, [[kind, number, held[lost:], *recent]]]}
    packed = {name: wire.pack_plain(content) for name, content in parts.items()}
    broker.log.write_snapshot(broker.log.durable_end, packed, snapshot.keep)
    assert checks(disk) == ({"I13-atomicity"} if lost else set())


def test_a_system_that_goes_on_meanwhile_gives_a_true_picture() -> None:
    """Ledgers, log and outputs move between the steps of the proof, and nothing is found."""
    disk = MemoryDisk()
    broker, consumer = shop(disk)
    numbers = itertools.count()

    def go_on(phase: str, done: int, whole: int) -> None:
        number = next(numbers)
        broker.store("orders", explicit(f"live-{number}"))
        if number == 0:
            consumer.commit(8, ["o-4"])
        batch = numbered(1, b"%d" % number)
        output = consumer.output("invoices", batch)
        consumer.commit(9 + number, [f"live-{number}"], outputs=[output])
        broker.store("invoices", batch, producer=SENDER)

    for _ in range(4):
        report = verify(disk, DATA, STATE, tell=go_on)
        assert report.ok, report.found.kept
    assert next(numbers) > 8


def test_a_ledger_compacted_meanwhile_is_read_again() -> None:
    """Files that its owner takes away while they are read are no violation."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    consumer = compacted(broker, discard=False)
    opened = disk.open
    times = iter([True])

    def open_once(path: str, **more: Any) -> Any:
        if STATE in path and path.endswith(f"{0:020d}.log") and next(times, False):
            consumer.log.discard(consumer.log.durable_end)
        return opened(path, **more)

    disk.open = open_once  # type: ignore[method-assign]
    report = verify(disk, DATA, STATE)
    assert consumer.log.start > 0
    assert report.ok, report.found.kept
    assert report.topics["orders"]["groups"]["billing"]["processed"] == 120


def test_bytes_of_a_replaced_consumer_behind_the_cut_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look that a successor left part of behind is thrown away and taken anew."""
    monkeypatch.setattr(log_module, "SUCCESSOR_WAIT_S", 0.3)
    disk = MemoryDisk()
    broker, consumer = shop(disk)
    disk.drop_locks()
    looked = []

    def take_over(phase: str, done: int, whole: int) -> None:
        if phase == "log" and not looked:
            looked.append(phase)
            broker.grant("billing", "orders", 0, 3, next_offset=7)
            successor = Consumer(disk, "billing", "orders", epoch=3)
            successor.number = 3
            successor.commit(8, ["o-4"])

    report = verify(disk, DATA, STATE, tell=take_over)
    assert looked
    assert report.ok, report.found.kept
    del consumer
