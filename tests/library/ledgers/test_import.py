"""An exported ledger imported again: whole or not at all, and never over another one."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from oncemq.cli.main import cli
from oncemq.codec import records as record_codec
from oncemq.errors import BadInput, CorruptLog, LogInUse
from oncemq.library.ledgers.export import check_export, export_ledger
from oncemq.library.ledgers.import_ import import_ledger
from oncemq.library.ledgers.reader import read_ledger
from oncemq.records import Committed
from oncemq.shells.ledger.files import LedgerFiles, ledger_directory
from oncemq.sim.disk.crash import Selection, sweep
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage import layout
from oncemq.storage.disk import Disk
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk
from tests.library.ledgers.test_export import PLACE, harness_with

ELSEWHERE = ledger_directory("elsewhere", "g", "t", 0)


def exported(messages: int = 9) -> MemoryDisk:
    """A disk with a ledger in `state` that has outputs, state and ids, and its file `g.ledger`."""
    harness = harness_with(messages)
    disk: MemoryDisk = harness._system.disk
    harness.close()
    export_ledger(disk, PLACE, "g.ledger")
    return disk


def bytes_of(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        return file.read(0, file.length())
    finally:
        file.close()


def test_what_was_exported_is_there_again() -> None:
    """Ids, offsets, state, processed set and output numbers: the new export is the same file."""
    disk = exported()
    about = import_ledger(disk, "g.ledger", "elsewhere")
    assert about == check_export(disk, "g.ledger")[0]
    export_ledger(disk, ELSEWHERE, "again.ledger")
    assert bytes_of(disk, "again.ledger") == bytes_of(disk, "g.ledger")
    facts = LedgerFiles(disk, ELSEWHERE, {}, draw=lambda: b"x" * 16).peek()
    assert facts.ledger_id.hex() == about.ledger_id
    assert (facts.next_offset, facts.highest_generation) == (9, about.epoch)


def test_a_free_lock_of_an_imported_ledger_proves_nobody_dead() -> None:
    """The last owner may live elsewhere; once a consumer has opened it, the lock is proof again."""
    disk = exported()
    import_ledger(disk, "g.ledger", "elsewhere")
    files = LedgerFiles(disk, ELSEWHERE, {}, draw=lambda: b"x" * 16)
    facts = files.peek()
    assert not facts.lock_held
    log = files.open(facts.highest_generation + 1)
    assert not LedgerFiles(disk, ELSEWHERE, {}, draw=lambda: b"x" * 16).peek().lock_held
    log.close()
    assert files.peek().lock_held
    files.close()


def test_work_goes_on_behind_the_snapshot() -> None:
    """Commits, a new generation and another export: all of it builds on what was imported."""
    disk = exported()
    about = import_ledger(disk, "g.ledger", "elsewhere")
    for number in (1, 2):
        log = FencedLog.open(disk, ELSEWHERE, generation=about.epoch + number, owner={})
        inputs = [(bytes.fromhex(about.topic_id), 9 + number)]
        commit = Committed(about.epoch + number, about.commit_no + number, inputs, [], b"", {})
        log.append(*record_codec.encode(commit))
        log.sync()
        log.close()
    ledger = read_ledger(disk, ELSEWHERE)
    assert (ledger.next_offset, ledger.commit_no) == (11, about.commit_no + 2)
    assert len(ledger.state) == 9
    export_ledger(disk, ELSEWHERE, "later.ledger")
    assert check_export(disk, "later.ledger")[0].next_offset == 11


def test_without_its_snapshot_it_is_damage_and_no_empty_ledger() -> None:
    """Nothing below the snapshot can be replayed: a lost one stops whoever opens the ledger."""
    disk = exported()
    import_ledger(disk, "g.ledger", "elsewhere")
    (generation,) = layout.generations(disk, ELSEWHERE)
    path = posixpath.join(ELSEWHERE, layout.generation_name(generation))
    for name in disk.list(path):
        if name.endswith(".snapshot"):
            disk.unlink(posixpath.join(path, name))
    for look in (
        lambda: read_ledger(disk, ELSEWHERE),
        lambda: FencedLog.open(disk, ELSEWHERE, generation=None, owner={}),
        lambda: LedgerFiles(disk, ELSEWHERE, {}, draw=lambda: b"x" * 16).peek(),
    ):
        with pytest.raises(CorruptLog, match="no snapshot"):
            look()


def test_no_ledger_is_replaced() -> None:
    """The same import again is fine; another commit, another ledger and one in use are refused."""
    disk = exported()
    about = import_ledger(disk, "g.ledger", "elsewhere")
    assert import_ledger(disk, "g.ledger", "elsewhere") == about
    log = FencedLog.open(disk, ELSEWHERE, generation=None, owner={})
    with pytest.raises(LogInUse, match="a running consumer owns the ledger"):
        import_ledger(disk, "g.ledger", "elsewhere")
    inputs = [(bytes.fromhex(about.topic_id), 10)]
    commit = Committed(log.generation, about.commit_no + 1, inputs, [], b"", {})
    log.append(*record_codec.encode(commit))
    log.sync()
    log.close()
    with pytest.raises(BadInput, match=r"offset 10; the file is at .* offset 9"):
        import_ledger(disk, "g.ledger", "elsewhere")
    third = ledger_directory("third", "g", "t", 0)
    started_early = LedgerFiles(disk, third, {}, draw=lambda: b"x" * 16)
    started_early.peek()
    started_early.close()
    with pytest.raises(BadInput, match="another ledger"):
        import_ledger(disk, "g.ledger", "third")
    assert read_ledger(disk, ELSEWHERE).next_offset == 10


def test_a_damaged_file_leaves_nothing() -> None:
    """A file is read to its end before anything is made."""
    disk = exported(2)
    data = bytes_of(disk, "g.ledger")
    for at in range(0, len(data), 7):
        layout.remove(disk, "bad.ledger")
        layout.write_new(disk, "bad.ledger", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CorruptLog):
            import_ledger(disk, "bad.ledger", "elsewhere")
    assert not disk.exists("elsewhere")


class Imported:
    """An import that is crashed, and repeated."""

    def __init__(self) -> None:
        self.file = bytes_of(exported(5), "g.ledger")

    def run(self, disk: SimDisk, promise: Callable[[bool], None]) -> None:
        layout.write_new(disk, "g.ledger", self.file)
        import_ledger(disk, "g.ledger", "state")
        promise(True)

    def nothing(self) -> bool:
        return False

    def recover(self, disk: SimDisk, promised: bool) -> bool:
        if promised:
            self.check(disk, promised)
        layout.remove(disk, "again.ledger")
        layout.write_new(disk, "again.ledger", self.file)
        import_ledger(disk, "again.ledger", "state")
        return True

    def check(self, disk: SimDisk, promised: bool) -> None:
        if not promised:
            return
        layout.remove(disk, "out.ledger")
        export_ledger(disk, PLACE, "out.ledger")
        assert bytes_of(disk, "out.ledger") == self.file


@pytest.mark.slow
def test_a_crash_at_any_call_leaves_all_or_nothing() -> None:
    """Killed or without power in the middle: the import is there as a whole, or done once more."""
    few = Selection(seeds=4, prefixes=8)
    report = sweep(Imported(), selection=few, second=few, second_every=5)
    assert report.violations == []
    assert report.crashes > 200
    assert report.second_crashes > 2_000


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ledger import` prints what `show` prints, and says what is in its way."""
    monkeypatch.chdir(tmp_path)
    Path("g.ledger").write_bytes(bytes_of(exported(), "g.ledger"))
    run = CliRunner()
    done = run.invoke(cli, ["ledger", "import", "g.ledger", "--state=there", "--json"])
    assert done.exit_code == 0, done.output
    shown = run.invoke(cli, ["ledger", "show", "g.ledger", "--json"])
    assert json.loads(done.output) == json.loads(shown.output)
    state = run.invoke(cli, ["state", "--state=there", "--group=g", "--json"])
    assert json.loads(state.output) == {f"k{number}": [number] for number in range(9)}
    dumped = run.invoke(cli, ["dump", ledger_directory("there", "g", "t", 0)])
    assert dumped.exit_code == 0, dumped.output
