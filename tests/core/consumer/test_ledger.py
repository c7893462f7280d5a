"""The ledger's state: what records make, and what snapshots keep of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.codec import records as record_codec
from oncemq.codec import wire
from oncemq.core.consumer.ledger import Ledger
from oncemq.limits import LIMITS
from oncemq.records import Committed, LedgerStarted, Output

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
        "fingerprints": ledger.processed.fingerprints,
        "next_sequence": ledger.next_sequence,
        "unacked": {target: list(outputs) for target, outputs in ledger.unacked.items()},
    }


def begun() -> Ledger:
    ledger = Ledger()
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
        st.sampled_from(["", "", "snapshot", "full disk", "restart"]),
    ),
    max_size=20,
)


@given(commits)
def test_a_snapshot_and_the_records_after_it_are_the_whole(steps: Any) -> None:
    """Restored from the last snapshot that was written, and replayed, a ledger is what it was."""
    ledger = begun()
    disk: dict[str, bytes] = {}  # parts of the last snapshot that was written
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
            assert snapshot.keep <= disk.keys(), "only what is on disk is kept by name"
            assert not snapshot.keep & packed.keys()
            if after == "snapshot":
                disk = {**{name: disk[name] for name in snapshot.keep}, **packed}
                ledger.snapshot_written()
                since = []
        elif after == "restart":
            ledger = restored(disk, since)
        again = restored(disk, since)
        assert facts(again) == facts(ledger)
        assert ledger.state_bytes == sum(len(k.encode()) + len(v) for k, v in ledger.state.items())


def restored(disk: dict[str, bytes], since: list[Committed]) -> Ledger:
    ledger = Ledger()
    if disk:
        ledger.restore({name: wire.unpack_plain(part) for name, part in disk.items()})
    else:
        ledger.apply(STARTED, 0)
    for record in since:
        ledger.apply(copy.deepcopy(record), 0)
    return ledger


def test_parts_of_processed_ids_stay_few() -> None:
    """Each snapshot adds one part with what is new; many become one, and none is ever lost."""
    ledger = begun()
    disk: dict[str, Any] = {}
    most = 0
    for number in range(LIMITS.ledger_parts_max * 2 + 5):
        commit(ledger, fingerprints=print16(number))
        snapshot = ledger.snapshot()
        fresh = [part for name, part in snapshot.parts.items() if name.startswith("ids-")]
        if snapshot.keep or number == 0:
            assert fresh == [print16(number)], "only what is new is written"
        disk = {**{name: disk[name] for name in snapshot.keep}, **snapshot.parts}
        ledger.snapshot_written()
        most = max(most, len(disk) - 3)
    assert most == LIMITS.ledger_parts_max
    again = Ledger()
    again.restore(disk)
    assert again.processed.fingerprints == ledger.processed.fingerprints
    assert len(again.processed.fingerprints) == LIMITS.ledger_parts_max * 2 + 5


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
