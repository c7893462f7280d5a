"""State by key, as the ledger's oracle understands it, and the handler that has such a state.

The oracle takes entries apart and puts them together by itself: it shares neither names nor bytes
with codec/entries.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import msgpack

from ...codec import batch as batch_codec
from ..processes.handler import Effects, Group, Target, handle

Outgoing = tuple[Target, bytes | None, bytes]  # target, key, value

CLEARED = 17  # of so many messages one takes all of its key's state away


def handle_by_key(
    group: Group,
    partition: int,
    identity: bytes,
    body: bytes,
    values: Mapping[str, bytes],
    partitions: Mapping[str, int],
) -> Effects:
    """`values` is the state of the message's key. Deterministic."""
    effects = handle(group, partition, identity, body, values.get, partitions)
    if crc32(b"clear" + identity) % CLEARED:
        return effects
    return Effects(dict.fromkeys((*values, *effects.state)), effects.outputs)


class KeyedModel:
    """The state of one message's key, in the state of a ledger as its oracle has it."""

    def __init__(self, state: dict[str, bytes], body: bytes) -> None:
        key = batch_codec.split_body(body)[1]
        self.name = "n:" if key is None else "s:" + key.decode()  # simulated keys are text
        self._state = state
        self._body = body
        entry = state.get(self.name)
        self._values: dict[str, bytes] = {} if entry is None else msgpack.unpackb(entry[1:])

    def handle(
        self, group: Group, partition: int, identity: bytes, partitions: Mapping[str, int]
    ) -> list[Outgoing]:
        effects = handle_by_key(group, partition, identity, self._body, self._values, partitions)
        merged = {**self._values, **effects.state}
        values = {name: value for name, value in sorted(merged.items()) if value is not None}
        if values:
            self._state[self.name] = b"\x03" + msgpack.packb(values)
        else:
            self._state.pop(self.name, None)
        return effects.outputs
