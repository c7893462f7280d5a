"""The ledger's state: what records make, and what snapshots keep of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.driver import unpacked
from oncemq.errors import CorruptLog, UnsupportedFormat
from oncemq.limits import Limits
from oncemq.records import Committed, LedgerStarted, Output
from oncemq.storage.log import Mapped

SMALL = Limits(ledger_table_ids=3)
STARTED = LedgerStarted("g", "t", 0, b"topic", b"log", b"log", 3)


def commit(ledger: Ledger, **fields: Any) -> Committed:
    """The next commit of a ledger, all defaults empty."""
    record = Committed(
        fields.pop("epoch", max(ledger.epoch, 1)),
        ledger.commit_no + 1,
        fields.pop("inputs", []),
        fields.pop("ranges", []),
        fields.pop("fingerprints", b""),
        fields.pop("state", {}),
        **fields,
    )
    type_number, meta, body, crc = record_codec.encode(record)
    decoded = record_codec.decode(type_number, meta, body, crc or 0)
    assert isinstance(decoded, Committed)
    ledger.apply(decoded, 0)
    return record


def facts(ledger: Ledger) -> dict[str, Any]:
    """All that must survive."""
    return {
        "started": ledger.started,
        "next_offset": ledger.next_offset,
        "commit_no": ledger.commit_no,
        "epoch": ledger.epoch,
        "state": ledger.state,
        "state_bytes": ledger.state_bytes,
        "ranges": ledger.processed.ranges(),
        "fingerprints": prints_of(ledger),
        "next_sequence": ledger.next_sequence,
        "unacked": {target: list(outputs) for target, outputs in ledger.unacked.items()},
    }


def prints_of(ledger: Ledger) -> list[bytes]:
    whole = b"".join(ledger.processed.all())
    return sorted(whole[at : at + 16] for at in range(0, len(whole), 16))


def begun() -> Ledger:
    ledger = Ledger(SMALL)
    ledger.apply(STARTED, 0)
    return ledger


def print16(number: int) -> bytes:
    return number.to_bytes(16, "big")


commits = st.lists(
    st.tuples(
        st.integers(0, 3),  # messages
        st.dictionaries(st.sampled_from("abcé"), st.none() | st.binary(max_size=3), max_size=3),
        st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(1, 3)), max_size=2),
        st.booleans(),  # acknowledge what is there
        st.sampled_from(["", "", "snapshot", "full disk", "restart", "files"]),
    ),
    max_size=20,
)


@given(commits)
def test_a_snapshot_and_the_records_after_it_are_the_whole(steps: Any) -> None:
    """Restored from the last snapshot that was written, and replayed, a ledger is what it was."""
    ledger = begun()
    disk: dict[str, Any] = {}  # parts of the last snapshot that was written
    ahead: dict[str, Any] = {}  # files that were made since
    since: list[Committed] = []  # records after it
    number = 0
    for messages, state, outputs, ack, after in steps:
        following = dict(ledger.next_sequence)
        made = []
        for topic, count in outputs:
            first = following.get((topic, 0), 0)
            following[topic, 0] = first + count
            made.append(Output(topic, 0, first, count, b"raw", 7))
        acked = [(t, p, n) for (t, p), n in ledger.next_sequence.items()] if ack else []
        since.append(
            commit(
                ledger,
                inputs=[(b"topic", ledger.next_offset + messages)],
                ranges=[("p", ledger.next_offset, messages)],
                fingerprints=b"".join(print16(number + i) for i in range(messages)),
                state=state,
                outputs=made,
                acked=acked,
            )
        )
        number += messages
        if after in {"snapshot", "full disk"}:
            snapshot = ledger.snapshot()
            packed = {name: wire.pack_plain(part) for name, part in snapshot.parts.items()}
            assert snapshot.keep <= disk.keys() | ahead.keys(), "only what is on disk is kept"
            assert not snapshot.keep & packed.keys()
            if after == "snapshot":
                there = {**disk, **ahead}
                disk = {**{name: there[name] for name in snapshot.keep}, **packed}
                since, ahead = [], {}
        elif after == "files":
            for new in ledger.processed.due():
                content = b"".join(new.pieces())
                ahead[new.name] = Mapped(content, new.name)
                ledger.processed.made(new.name, content, new.name)
        elif after == "restart":
            ledger, ahead = restored(disk, since), {}
        again = restored(disk, since)
        assert facts(again) == facts(ledger)
        assert ledger.state_bytes == sum(len(k.encode()) + len(v) for k, v in ledger.state.items())


def restored(disk: dict[str, Any], since: list[Committed]) -> Ledger:
    ledger = Ledger(SMALL)
    if disk:
        ledger.restore(unpacked(disk))
    else:
        ledger.apply(STARTED, 0)
    for record in since:
        ledger.apply(copy.deepcopy(record), 0)
    return ledger


def test_files_of_processed_ids_are_written_once() -> None:
    """A snapshot names the files in which most ids lie, holds the newest, and is restored from both."""
    limits = Limits(ledger_table_ids=4, ledger_table_ids_max=4)
    ledger = Ledger(limits)
    ledger.apply(STARTED, 0)
    disk: dict[str, Any] = {}
    written: list[str] = []
    for number in range(200):
        commit(ledger, fingerprints=print16(number))
        for new in ledger.processed.due():
            written.append(new.name)
            content = b"".join(new.pieces())
            disk[new.name] = Mapped(content, new.name)
            ledger.processed.made(new.name, content, new.name)
        snapshot = ledger.snapshot()
        assert len(snapshot.parts["processed"][3]) <= 4 * 2 * 16, "the newest alone are in it"
        assert snapshot.keep <= disk.keys()
        again = Ledger(limits)
        again.restore({**{name: disk[name] for name in snapshot.keep}, **snapshot.parts})
        assert facts(again) == facts(ledger)
    assert len(written) == len(set(written)), "a name stands for one content for ever"
    assert len(snapshot.keep) < len(written) < 200 / 4 * 2, "files are merged, and written once"


def test_tables_of_a_ledger_grow_with_it() -> None:
    """Many ledgers of few ids cost little; a large one has few runs, and a bounded table."""
    ledger = Ledger(Limits(ledger_table_ids=4, ledger_table_ids_max=50))
    ledger.apply(STARTED, 0)
    tree = ledger.processed.explicit._tree
    sizes = []
    for number in range(1000):
        commit(ledger, fingerprints=print16(number))
        for new in ledger.processed.due():
            ledger.processed.made(new.name, b"".join(new.pieces()), new.name)
        sizes.append(tree._table.room + tree._table.count)
    assert (sizes[0], sizes[-1]) == (4, 50)
    assert sizes == sorted(sizes)
    assert prints_of(ledger) == sorted(map(print16, range(1000)))


def test_parts_of_older_versions_are_taken_up() -> None:
    """Ids that a snapshot held as parts of their own move to files."""
    ledger = begun()
    commit(ledger, fingerprints=b"".join(map(print16, range(30))))
    old = ledger.snapshot().parts
    del old["processed"], old["ledger"]["format"]
    old["ids-00000000000000000001"] = b"".join(map(print16, range(7)))
    old["ids-00000000000000000002"] = b"".join(map(print16, range(7, 30)))
    again = Ledger(Limits(ledger_table_ids=8))
    again.restore(old)
    assert facts(again) == facts(ledger)
    (new,) = again.processed.due()
    again.processed.made(new.name, b"".join(new.pieces()), new.name)
    assert again.snapshot().keep == {new.name}
    assert facts(again) == facts(ledger)


def test_a_newer_snapshot_is_refused_by_name() -> None:
    """Nothing of it is taken: an older snapshot, or the records, may still be read."""
    parts = begun().snapshot().parts
    parts["ledger"]["format"] += 1
    fresh = Ledger()
    with pytest.raises(UnsupportedFormat, match="format 3"):
        fresh.restore(parts)
    fresh.apply(STARTED, 0)
    assert facts(fresh) == facts(begun())


def test_a_file_of_another_ledger_is_damage() -> None:
    """Its fingerprints were made under another key: it would answer "new" for what is known."""
    disk: dict[str, Any] = {}
    for group in ("g", "other"):
        ledger = Ledger(Limits(ledger_table_ids=2))
        ledger.apply(replace(STARTED, group=group), 0)
        commit(ledger, fingerprints=print16(1) + print16(2) + print16(3))
        (new,) = ledger.processed.due()
        content = b"".join(new.pieces())
        disk.setdefault(new.name, Mapped(content, "the file of g"))
        ledger.processed.made(new.name, content, new.name)
    with pytest.raises(CorruptLog, match="made under another secret"):
        Ledger().restore({**disk, **ledger.snapshot().parts})


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": [(b"topic", 2)]},
        {"outputs": [Output("x", 0, 1, 1, b"", 0)]},
        {"epoch": 0},
    ],
)
def test_a_record_that_cannot_follow_is_a_bug(wrong: dict[str, Any]) -> None:
    """Offsets, numbers and epochs never go back and leave no hole."""
    ledger = begun()
    commit(ledger, inputs=[(b"topic", 5)], epoch=1)
    with pytest.raises(AssertionError):
        commit(ledger, **wrong)
