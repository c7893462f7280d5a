"""Ledger directories: names, the facts that a join reports, and what `oncemq state` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.cli.main import main
from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.ids import check_name
from oncemq.library.handling.state import encode_state
from oncemq.library.ledgers.reader import NoLedger, read_group, read_ledger
from oncemq.records import Committed, LedgerStarted
from oncemq.runtime.os_disk import OsDisk
from oncemq.shells.ledger.file_names import file_name
from oncemq.shells.ledger.files import LedgerFiles, ledger_directory
from oncemq.storage import layout
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from oncemq.storage.recovery import make_lock

OWNER: dict[str, str | int] = {"host": "here", "pid": 1}

names = st.text(min_size=1, max_size=128).filter(
    lambda name: len(name.encode("utf-8", "replace")) <= 128 and _allowed(name)
)


def _allowed(name: str) -> bool:
    try:
        check_name(name)
    except Exception:
        return False
    return True


@given(names, names)
def test_two_names_never_share_a_file(one: str, other: str) -> None:
    """Also where case is ignored, and however long the names are; nothing leaves the directory."""
    for name in (one, other):
        made = file_name(name)
        assert len(made.encode()) <= 255
        assert "/" not in made
        assert made not in {".", ".."}
        assert made == made.lower()
    assert (file_name(one) == file_name(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Orders", "orders"), ("%41", "A"), ("É" * 64, "é" * 64), ("A" * 127 + "B", "A" * 128)],
)
def test_names_that_look_alike_have_files_of_their_own(one: str, other: str) -> None:
    """Case, the escape itself, and names too long to be spelled out."""
    assert file_name(one) != file_name(other)


class Owner:
    """Somebody who writes to a ledger."""

    def __init__(self, disk: Any, directory: str, generation: int, topic: str = "t") -> None:
        self.log = FencedLog.open(disk, directory, generation=generation, owner=OWNER)
        self.ledger = read_ledger(disk, directory)
        self.topic = topic

    def write(self, record: Any) -> None:
        type_number, meta, body, crc = record_codec.encode(record)
        position = self.log.append(type_number, meta, body, crc)
        self.ledger.apply(record, position)
        self.log.sync()

    def start(self, partition: int = 0) -> None:
        self.write(LedgerStarted("g", self.topic, partition, b"T" * 16, b"l" * 16, b"l" * 16, 0))

    def commit(self, next_offset: int, **state: Any) -> None:
        encoded = {k: None if v is None else encode_state(v) for k, v in state.items()}
        number = self.ledger.commit_no + 1
        inputs = [(b"T" * 16, next_offset)]
        self.write(Committed(1, number, inputs, [], next_offset.to_bytes(16, "big"), encoded))

    def snapshot(self) -> None:
        snapshot = self.ledger.snapshot()
        parts = {name: wire.pack_plain(part) for name, part in snapshot.parts.items()}
        self.log.write_snapshot(self.log.durable_end, parts, snapshot.keep)
        self.log.discard(self.log.durable_end)


def files(disk: Any, directory: str) -> LedgerFiles:
    return LedgerFiles(disk, directory, OWNER, draw=lambda: b"n" * 16)


def test_the_facts_follow_a_ledger_that_another_process_writes() -> None:
    """Made once, then read on: start, commits, snapshots, a new generation; all without writing."""
    disk, directory = MemoryDisk(), "/s/g/t/0"
    peeker = files(disk, directory)
    first = peeker.peek()
    assert (first.topic_id_seen, first.log_id_seen, first.next_offset) == (b"", b"", 0)
    assert first.lock_held
    assert first.highest_generation == 1
    peeker.release()
    owner = Owner(disk, directory, 5)
    assert not peeker.peek().lock_held, "its owner lives"
    owner.start()
    owner.commit(3)
    found = peeker.peek()
    assert (found.topic_id_seen, found.log_id_seen) == (b"T" * 16, b"l" * 16)
    assert (found.next_offset, found.highest_generation) == (3, 5)
    assert found.ledger_id == first.ledger_id == owner.log.log_id
    owner.commit(4)
    owner.snapshot()
    assert peeker.peek().next_offset == 4
    assert files(disk, directory).peek().next_offset == 4, "read from the snapshot"
    owner.log.close(clean=True)
    again = Owner(disk, directory, 9)
    again.commit(8)
    found = peeker.peek()
    assert (found.next_offset, found.highest_generation, found.lock_held) == (8, 9, False)
    again.log.close(clean=True)
    assert peeker.peek().lock_held


def test_the_lock_is_proof_only_while_nobody_opens() -> None:
    """A live process that is making a newer generation has not been proved dead.

    It may stand still before it has made its lock file, or before that file says whose it is.
    """
    disk, directory = MemoryDisk(), "/s/g/t/0"
    peeker = files(disk, directory)
    peeker.peek()
    peeker.release()
    path = f"{directory}/{layout.generation_name(7)}"
    disk.make_directory(path)
    facts = peeker.peek()
    assert (facts.highest_generation, facts.lock_held) == (7, False)
    disk.create(f"{path}/{layout.LOCK}").close()
    assert not peeker.peek().lock_held
    disk.unlink(f"{path}/{layout.LOCK}")
    held = make_lock(disk, path, OWNER)
    assert not peeker.peek().lock_held
    held.release()
    assert peeker.peek().lock_held


def copied(disk: MemoryDisk, source: str, target: str) -> None:
    """Copy a directory, as `cp -r` does."""
    layout.make_directories(disk, target)
    for name in disk.list(source):
        old, new = f"{source}/{name}", f"{target}/{name}"
        try:
            data = layout.read_file(disk, old)
        except IsADirectoryError:
            copied(disk, old, new)
        else:
            layout.write_new(disk, new, data)


def moved(disk: MemoryDisk, source: str, target: str) -> None:
    """Rename a directory: its files stay the same files."""
    layout.make_directories(disk, target)
    for name in disk.list(source):
        old, new = f"{source}/{name}", f"{target}/{name}"
        if disk.exists(f"{old}/") and name.startswith("gen-"):
            moved(disk, old, new)
        else:
            disk.link(old, new)
            disk.unlink(old)
    disk.remove_directory(source)


def test_the_lock_file_of_a_copy_proves_nothing() -> None:
    """Its owner may live: in another directory, in the place of the original, half opened, or whole."""
    disk, home = MemoryDisk(), "/s/g/t/0"
    files(disk, home).peek()
    owner = Owner(disk, home, 5)
    owner.start()
    copied(disk, home, "/copy/g/t/0")
    elsewhere = files(disk, "/copy/g/t/0")
    assert not elsewhere.peek().lock_held
    elsewhere.release()
    moved(disk, home, "/away/g/t/0")
    copied(disk, "/away/g/t/0", home)
    in_its_place = files(disk, home)
    facts = in_its_place.peek()
    assert (facts.highest_generation, facts.lock_held) == (5, False)
    in_its_place.release()
    moved_back = files(disk, "/away/g/t/0")
    assert not moved_back.peek().lock_held, "its owner lives"
    owner.log.close()
    assert not moved_back.peek().lock_held, "the lock file was made in another place"
    assert not elsewhere.peek().lock_held


def test_a_copy_of_an_unfinished_generation_proves_nothing() -> None:
    """Its maker may live where the copy was taken."""
    disk, home = MemoryDisk(), "/s/g/t/0"
    peeker = files(disk, home)
    peeker.peek()
    peeker.release()
    path = f"{home}/{layout.generation_name(7)}"
    disk.make_directory(path)
    held = make_lock(disk, path, OWNER)
    data = layout.read_file(disk, f"{path}/{layout.LOCK}")
    disk.unlink(f"{path}/{layout.LOCK}")
    layout.write_new(disk, f"{path}/{layout.LOCK}", data)
    assert not peeker.peek().lock_held
    held.release()
    assert not peeker.peek().lock_held


@pytest.mark.parametrize("name", ["host", "boot_id"])
def test_the_lock_of_another_machine_proves_nothing(name: str) -> None:
    """A disk that was moved, or shared: whether that owner lives cannot be seen from here."""
    disk, home = MemoryDisk(), "/s/g/t/0"
    here = {"host": "here", "boot_id": "one"}
    first = LedgerFiles(disk, home, here, draw=lambda: b"n" * 16)
    first.peek()
    first.release()
    FencedLog.open(disk, home, generation=5, owner=here).close()
    assert first.peek().lock_held
    first.release()
    there = LedgerFiles(disk, home, {**here, name: "other"}, draw=lambda: b"n" * 16)
    assert not there.peek().lock_held


def test_a_lock_of_an_older_generation_than_was_read_proves_nothing() -> None:
    """The next owner opens between the joiner's lock and its look."""
    disk, home = MemoryDisk(), "/s/g/t/0"
    peeker = files(disk, home)
    peeker.peek()
    peeker.release()
    locked = disk.lock
    opened = []

    def lock(path: str) -> Any:
        taken = locked(path)
        if not opened:
            opened.append(True)
            opened.append(FencedLog.open(disk, home, generation=5, owner=OWNER))
        return taken

    disk.lock = lock  # type: ignore[method-assign]
    facts = peeker.peek()
    assert (facts.highest_generation, facts.lock_held) == (5, False)


def group_on_disk(state: Path, topic: str = "t", partitions: int = 2, **shared: Any) -> None:
    """A group with a ledger for each partition; partition n has the key `only<n>`."""
    disk = OsDisk()
    for partition in range(partitions):
        directory = ledger_directory(str(state), "g", topic, partition)
        files(disk, directory).peek()
        owner = Owner(disk, directory, 2, topic)
        owner.start(partition)
        owner.commit(1, **{f"only{partition}": partition, "raw": b"\xff", **shared})
        owner.commit(2, raw=None)
        owner.log.close(clean=True)


def test_state_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All partitions merged, as JSON, from the files."""
    group_on_disk(tmp_path)
    assert main(["state", f"--state={tmp_path}", "--group=g", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"only0": 0, "only1": 1}
    assert main(["state", f"--state={tmp_path}", "--group=g", "--by-partition", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"t/0": {"only0": 0}, "t/1": {"only1": 1}}
    assert main(["state", f"--state={tmp_path}", "--group=g"]) == 0
    assert capsys.readouterr().out == "KEY\tVALUE\nonly0\t0\nonly1\t1\n"


def test_state_refuses_to_merge_the_same_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two partitions with one key: status 1, naming the key and --by-partition."""
    group_on_disk(tmp_path, n=1)
    assert main(["state", f"--state={tmp_path}", "--group=g", "--json"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "'n'" in told.err
    assert "--by-partition" in told.err


def test_state_of_one_topic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--topic leaves the other topics of the group out."""
    group_on_disk(tmp_path, "t", 1, x=1)
    group_on_disk(tmp_path, "u", 1, y=b"\xff\x00")
    command = ["state", f"--state={tmp_path}", "--group=g", "--topic=u", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"only0": 0, "y": "0xff00"}


def test_a_group_without_ledgers_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong directory or group is an error, not an empty state."""
    assert main(["state", f"--state={tmp_path}", "--group=nobody", "--json"]) == 1
    assert "no ledger of group 'nobody'" in capsys.readouterr().err
    files(OsDisk(), ledger_directory(str(tmp_path), "begun", "t", 0)).peek()
    with pytest.raises(NoLedger, match="are still empty"):
        read_group(OsDisk(), str(tmp_path), "begun")


def test_reading_needs_no_snapshot() -> None:
    """A ledger is its records; a snapshot only saves time."""
    disk, directory = MemoryDisk(), "/s/g/t/0"
    files(disk, directory).peek()
    owner = Owner(disk, directory, 2)
    owner.start()
    owner.commit(1, a=1)
    plain = read_ledger(disk, directory)
    owner.snapshot()
    owner.commit(2, b=2)
    snapshotted = read_ledger(disk, directory)
    assert isinstance(plain, Ledger)
    assert (plain.next_offset, sorted(plain.state)) == (1, ["a"])
    assert (snapshotted.next_offset, sorted(snapshotted.state)) == (2, ["a", "b"])
    assert snapshotted.processed.explicit_count == 2
