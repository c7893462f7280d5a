"""`oncemq dump` as a person calls it: every record has a name, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from oncemq.cli.dump import command
from oncemq.codec import records as record_codec
from oncemq.records import EffectEnded, LedgerStarted, TopicCreated
from oncemq.runtime.os_disk import OsDisk
from oncemq.storage.creation import create
from oncemq.storage.log import FencedLog

RECORDS = [
    TopicCreated("orders", b"t" * 16, 1, 5),
    LedgerStarted("g", "orders", 0, b"t" * 16, b"l" * 16, b"l" * 16, 0),
]


def test_records_are_named(tmp_path: Path) -> None:
    """By the number alone nobody could tell a grant from a commit."""
    disk, directory = OsDisk(), str(tmp_path / "log")
    create(disk, directory, log_id=b"l" * 16, owner={})
    log = FencedLog.open(disk, directory, generation=2, owner={})
    for record in RECORDS:
        log.append(*record_codec.encode(record))
    log.append(99, b"", b"of a later version")
    log.sync()
    log.close()
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    told = CliRunner().invoke(command, [directory, "--json"])
    assert told.exit_code == 0, told.output
    lines = [json.loads(line) for line in told.output.splitlines()]
    names = [line["name"] for line in lines if line["kind"] == "record"]
    assert names == ["TopicCreated", "LedgerStarted", ""]
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) == before
    assert "type=1 name=TopicCreated" in CliRunner().invoke(command, [directory]).output


def test_every_type_has_a_name() -> None:
    """Also those that a record is written under when it has more parts."""
    numbers = {
        value for key, value in vars(record_codec).items() if key.isupper() and key[0] != "_"
    }
    assert {record_codec.type_name(number) for number in numbers} >= {EffectEnded.__name__}
    assert all(map(record_codec.type_name, numbers))
