"""The filter of a run: "certainly not in it" for nearly every fingerprint that is not.

Theory of operation. A blocked Bloom filter (Putze, Sanders, Singler 2007) whose blocks are single
64-bit words: four bits of one word stand for a fingerprint, so a question costs one read. At
sixteen bits a fingerprint, one in two hundred questions about a stranger is let through; with ten
it would be one in forty, and a search of a block costs as much as twenty questions. The word
follows the high half and the bits the low half, so a run, which is sorted, fills its filter from
front to back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

BITS_EACH = 16
_SIX = np.uint64(63)
_HALF = np.uint64(32)


def word_count(entries: int) -> int:
    return max(1, -(-entries * BITS_EACH // 64))


def bits_of(low: Words) -> Words:
    """Return the four bits of each fingerprint, in one word."""
    one = np.uint64(1)
    bits = one << (low & _SIX)
    for shift in (6, 12, 18):
        bits |= one << (low >> np.uint64(shift) & _SIX)
    return bits


def word_of(high: Words, words: int) -> NDArray[np.intp]:
    return ((high >> _HALF) * np.uint64(words) >> _HALF).view(np.intp)


def word_below(bound: int, words: int) -> int:
    """Return the number of words that no high half from `bound` on follows; `bound` may be 2^64."""
    return (bound >> 32) * words >> 32


def put(window: Words, first: int, words: int, high: Words, low: Words) -> None:
    """Put sorted fingerprints into a window of a filter of so many words, from its word `first` on."""
    if not high.size:
        return
    places, bits = word_of(high, words) - first, bits_of(low)
    # Several for one word stand side by side: their bits come together before they go in.
    starts = np.flatnonzero(np.concatenate(([True], places[1:] != places[:-1])))
    window[places.take(starts)] |= np.bitwise_or.reduceat(bits, starts)


def may_hold(table: Words, high: Words, bits: Words) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = table.take(word_of(high, len(table))) & bits == bits
    return found
