"""A ledger as one file: whole, checked byte by byte, and written beside whoever is at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from oncemq import App, Harness, Message, Tx
from oncemq.cli.main import cli
from oncemq.codec import records as record_codec
from oncemq.errors import BadInput, CorruptLog, UnsupportedFormat
from oncemq.library.ledgers.export import check_export, export_ledger, find_directory
from oncemq.library.ledgers.reader import NoLedger
from oncemq.records import Committed, LedgerStarted
from oncemq.runtime.os_disk import OsDisk
from oncemq.shells.ledger.files import ledger_directory
from oncemq.storage.log import FencedLog
from oncemq.storage.memory import MemoryDisk

PLACE = ledger_directory("state", "g", "t", 0)


def harness_with(messages: int) -> Harness:
    app = App()

    @app.consumer("t", group="g")
    def handler(message: Message, tx: Tx) -> None:
        tx.state[f"k{message.value}"] = [message.value]
        tx.send("out", message.value)

    harness = Harness(app)
    for number in range(messages):
        harness.send("t", number, **({"id": f"m{number}"} if number % 2 else {}))
    harness.drain()
    return harness


def test_a_file_holds_all_that_the_ledger_holds() -> None:
    """State, offsets, processed ids and output numbers come back as they are."""
    harness = harness_with(9)
    disk = harness._system.disk
    (actor,) = harness._system.actors.values()
    ledger = actor.core.ledger
    about = export_ledger(disk, PLACE, "g.ledger")
    told, found = check_export(disk, "g.ledger")
    assert told == about
    assert (about.group, about.topic, about.partition, about.next_offset) == ("g", "t", 0, 9)
    assert (about.state_keys, about.explicit_ids) == (9, 4)
    assert found.state == ledger.state
    assert found.state_bytes == ledger.state_bytes
    assert b"".join(found.processed.all()) == b"".join(ledger.processed.all())
    assert found.processed.ranges() == ledger.processed.ranges()
    assert found.next_sequence == ledger.next_sequence
    assert (found.next_offset, found.commit_no) == (ledger.next_offset, ledger.commit_no)
    harness.send("t", 9)
    harness.drain()
    assert check_export(disk, "g.ledger")[0] == about


def test_every_changed_byte_and_every_early_end_is_found() -> None:
    """No damage of an exported file passes for a ledger."""
    disk = harness_with(2)._system.disk
    export_ledger(disk, PLACE, "g.ledger")
    file = disk.open("g.ledger")
    data = file.read(0, file.length())
    for at in range(len(data)):
        for other in (data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], data[:at]):
            with pytest.raises(CorruptLog):
                check_export(damaged(other), "x")
    with pytest.raises(CorruptLog, match="digest"):
        check_export(damaged(data + b"\0"), "x")
    assert check_export(damaged(data), "x")[0].next_offset == 2


def damaged(data: bytes) -> MemoryDisk:
    disk = MemoryDisk()
    disk.create("x").write(data, 0)
    return disk


def test_a_newer_format_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a version to come is never guessed at."""
    from oncemq.library.ledgers import export as ledger_export

    disk = harness_with(1)._system.disk
    monkeypatch.setattr(ledger_export, "FORMAT", 2)
    export_ledger(disk, PLACE, "g.ledger")
    monkeypatch.undo()
    with pytest.raises(UnsupportedFormat, match="format 2"):
        check_export(disk, "g.ledger")


def test_nothing_is_overwritten_and_what_is_not_there_is_told() -> None:
    """A file that exists stays; what a killed export has left behind does not hinder the next."""
    disk = harness_with(1)._system.disk
    disk.create("g.ledger.unfinished").write(b"half", 0)
    export_ledger(disk, PLACE, "g.ledger")
    assert not disk.exists("g.ledger.unfinished")
    with pytest.raises(BadInput, match="already"):
        export_ledger(disk, PLACE, "g.ledger")
    for place in ("nowhere", "g/t/x", "g/t"):
        with pytest.raises(NoLedger):
            find_directory(disk, "state", place)
    with pytest.raises(NoLedger):
        export_ledger(disk, find_directory(disk, "state", "g/t/7"), "other")
    assert find_directory(disk, "state", "g/t/0") == PLACE
    assert find_directory(disk, "elsewhere", PLACE) == PLACE


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """export and show print the same facts; a damaged file ends with status 1."""
    monkeypatch.chdir(tmp_path)
    log = FencedLog.open(
        OsDisk(), PLACE, generation=None, owner={"pid": 0}, create_log_id=b"l" * 16
    )
    started = LedgerStarted("g", "t", 0, b"t" * 16, b"b" * 16, b"b" * 16, 0)
    for record in (started, Committed(1, 1, [(b"t" * 16, 5)], [("p", 0, 5)], b"", {})):
        log.append(*record_codec.encode(record))
    log.sync()
    run = CliRunner()
    written = run.invoke(cli, ["ledger", "export", "--state=state", "g/t/0", "g.ledger", "--json"])
    assert written.exit_code == 0, written.output
    assert "note: a consumer is running" in written.stderr
    log.close()
    again = run.invoke(
        cli, ["ledger", "export", "--state=state", "g/t/0", "again.ledger", "--json"]
    )
    assert again.stderr == ""
    shown = run.invoke(cli, ["ledger", "show", "g.ledger", "--json"])
    assert json.loads(shown.output) == json.loads(written.stdout)
    assert json.loads(shown.output)["next_offset"] == 5
    assert "g.ledger" not in run.invoke(cli, ["ledger", "show", "g.ledger"]).output
    Path("g.ledger").write_bytes(Path("g.ledger").read_bytes()[:-1])
    broken = run.invoke(cli, ["ledger", "show", "g.ledger"])
    assert broken.exit_code == 1 or isinstance(broken.exception, CorruptLog)
