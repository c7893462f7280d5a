"""What every contender is given: the same values and the same ids, made in the same way."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import count, repeat

BATCH = 1_000  # messages that a producer hands over at once
KINDS = ("sequence", "explicit", "uuid")

IdMaker = Callable[[int], list[str]]


def values(size: int, seed: int = 1) -> list[bytes]:
    """Return BATCH different values of `size` bytes."""
    source = random.Random(seed)
    return [source.randbytes(size) for _ in range(BATCH)]


def id_maker(kind: str) -> IdMaker:
    """Return a function that makes the next n ids: `order-000000000017`, or random like a UUID."""
    if kind == "explicit":
        numbers = count()
        form = "order-%012d"
        return lambda n: list(map(form.__mod__, (next(numbers) for _ in repeat(None, n))))
    if kind == "uuid":

        def random_ids(n: int) -> list[str]:
            text = os.urandom(16 * n).hex()
            return [text[at : at + 32] for at in range(0, 32 * n, 32)]

        return random_ids
    raise ValueError(f"no ids of kind {kind!r} are made by a sender")
