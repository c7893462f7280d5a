"""State by key as bytes: what is in ledgers stays readable."""

from __future__ import annotations

from oncemq.codec.entries import KEYED, change_entry, entry_name, pack_entry, unpack_entry


def test_an_entry_is_a_byte_and_a_sorted_map() -> None:
    """The bytes that ledgers hold."""
    entry = pack_entry({"n": b"\x02\x07", "a": b"\x01x"})
    assert entry == b"\x03\x82\xa1a\xc4\x02\x01x\xa1n\xc4\x02\x02\x07"
    assert unpack_entry(entry) == {"a": b"\x01x", "n": b"\x02\x07"}
    assert entry[0] == KEYED


def test_nothing_is_no_entry() -> None:
    """A key without values costs nothing, and reads as an empty mapping."""
    assert pack_entry({}) is None
    assert unpack_entry(None) == {}


def test_changes_leave_the_rest_as_it_is() -> None:
    """None takes a value out, the last one takes the entry away, no change leaves the very bytes."""
    entry = pack_entry({"a": b"1", "b": b"2"})
    assert change_entry(entry, {"a": None, "c": b"3"}) == pack_entry({"b": b"2", "c": b"3"})
    assert change_entry(entry, {"a": None, "b": None}) is None
    assert change_entry(None, {"a": b"1"}) == pack_entry({"a": b"1"})
    assert change_entry(entry, {}) is entry


def test_names_tell_text_bytes_and_nothing_apart() -> None:
    """The names under which ledgers keep entries."""
    assert [entry_name(key) for key in (None, "", "n:", b"\xff\x00")] == [
        "n:",
        "s:",
        "s:n:",
        "b:ff00",
    ]
