"""Keyed hashes against the plain sum that they stand for."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncemq.dedup.keyed_hash import ROW_BYTES_MAX, KeyedHash, Rows

PRIME = 2**31 - 1
SECRET = b"secret of a log, 32 bytes of it."


def rows_of(pieces: list[bytes]) -> Rows:
    return Rows(b"".join(pieces), np.array([len(piece) for piece in pieces], np.uint64))


@cache
def keys_of(purpose: bytes, lanes: int, number: int) -> list[int]:
    count = ROW_BYTES_MAX // 2 + 3
    stream = hashlib.shake_256(b"oncemq lanes " + purpose + b"\0" + SECRET).digest(
        count * lanes * 8
    )
    return [
        int.from_bytes(stream[8 * (at * lanes + number) :][:8], "little") % PRIME
        for at in range(count)
    ]


def lane(purpose: bytes, lanes: int, number: int, row: bytes, salt: int) -> int:
    """One lane of one row, by whole numbers of Python."""
    keys = keys_of(purpose, lanes, number)
    even = row + bytes(len(row) % 2)
    words = [int.from_bytes(even[at : at + 2], "little") for at in range(0, len(even), 2)]
    total = sum(word * key for word, key in zip(words, keys, strict=False))
    return (total + len(row) * keys[-3] + salt * keys[-2] + keys[-1]) % PRIME


@given(st.lists(st.binary(min_size=1, max_size=129), min_size=1, max_size=9), st.integers(0, 10**6))
def test_fingerprints_are_the_sums_that_they_stand_for(ids, salt):
    """Matrices in float64 give what whole numbers give: nothing is rounded."""
    high, low = KeyedHash(SECRET).fingerprints(rows_of(ids), salt)
    for row, its_high, its_low in zip(ids, high.tolist(), low.tolist(), strict=True):
        lanes = [lane(b"ids", 5, number, row, salt) for number in range(5)]
        assert its_high == lanes[0] << 33 | lanes[1] << 2 | lanes[4] & 3
        assert its_low == lanes[2] << 33 | lanes[3] << 2 | lanes[4] >> 2 & 3


@given(st.lists(st.sampled_from([3, 40, 1024, 1025, 3000]), min_size=1, max_size=8))
def test_a_row_has_one_hash_in_any_company(sizes):
    """Alone, among rows of its size or of others: the same bytes give the same word."""
    keyed = KeyedHash(SECRET)
    pieces = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    together = keyed.words(rows_of(pieces)).tolist()
    alone = [int(keyed.words(Rows(piece, len(piece), 1))[0]) for piece in pieces]
    assert together == alone


def test_rows_of_one_size_may_be_many():
    """More rows and words than one product takes, with the extreme words."""
    keyed = KeyedHash(SECRET)
    pieces = [bytes([255]) * 1024] * 1025 + [bytes(1024)]
    high, low = keyed.fingerprints(Rows(b"".join(pieces), 1024, 1026), 2**31 - 1)
    lanes = [lane(b"ids", 5, number, pieces[0], 2**31 - 1) for number in range(5)]
    assert set(high[:-1].tolist()) == {lanes[0] << 33 | lanes[1] << 2 | lanes[4] & 3}
    assert low[-1] != low[0]


@pytest.mark.parametrize("pair", [(b"a", b"a\0"), (b"ab", b"ba"), (b"\0", b"\0\0"), (b"a", b"b")])
def test_rows_that_look_alike_differ(pair):
    """Zeros at the end, other order, other length: other hashes."""
    keyed = KeyedHash(SECRET)
    high, low = keyed.fingerprints(rows_of(list(pair)), 0)
    assert high[0] != high[1]
    assert low[0] != low[1]
    words = keyed.words(rows_of(list(pair)))
    assert words[0] != words[1]


def test_salt_and_secret_change_everything():
    """One id in two topics, or two logs, has nothing in common."""
    rows = rows_of([b"sorder-1"])
    keyed, other = KeyedHash(SECRET), KeyedHash(b"x" * 32)
    made = [keyed.fingerprints(rows, 1), keyed.fingerprints(rows, 2), other.fingerprints(rows, 1)]
    for half in (0, 1):
        assert len({int(one[half][0]) for one in made}) == 3
