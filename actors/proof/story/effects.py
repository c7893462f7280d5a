"""The effects of one message in the story of it: each call, why it was made, and how it ended."""

from __future__ import annotations

from typing import Any

from ..parse.records import EffectEnded, EffectIntended
from .story import Wanted


class EffectStory:
    """The calls of one message that one ledger tells of, oldest first."""

    def __init__(self, wanted: Wanted, message_id: str) -> None:
        self._ids = {message_id}
        for tagged in wanted.tagged:
            text = tagged[1:].decode(errors="replace") if tagged[:1] == b"s" else tagged[1:].hex()
            self._ids.add(f"{wanted.topic}:{tagged[:1].decode()}:{text}")
        self.calls: list[dict[str, Any]] = []
        self._open: dict[tuple[bytes, int, str], dict[str, Any]] = {}

    def take(self, record: EffectIntended | EffectEnded) -> None:
        place = (record.topic_id, record.offset, record.name)
        if isinstance(record, EffectIntended):
            if record.key.partition("@")[2] in self._ids:
                call = {
                    "name": record.name,
                    "number": record.number,
                    "policy": record.policy,
                    "epoch": record.epoch,
                    "at_ms": record.at_ms,
                    "how": "",
                }
                self._open[place] = call
                self.calls.append(call)
        elif place in self._open:
            told = {"how": record.how, "ended_at_ms": record.at_ms}
            if record.how == "unknown":
                told["why"] = record.value.decode(errors="replace")
            self._open[place].update(told)

    def restore(self, fields: dict[str, Any]) -> None:
        """Take what a snapshot says of messages that were not committed then."""
        for row in fields.get("effects", ()):
            topic_id, offset, key, name, number, epoch, policy, at_ms, how, encoding, value = row
            place = (epoch, topic_id, offset)
            self.take(EffectIntended(*place, key, name, number, policy, at_ms))
            if how:
                self.take(EffectEnded(*place, name, number, how, policy, encoding, value, at_ms))


def line_of(call: dict[str, Any]) -> str:
    how = {
        "": "unknown whether it happened",
        "returned": "returned",
        "not_done": "did not happen",
        "answered": "an operator gave its result",
        "again": "an operator ordered a new call",
    }.get(call["how"], f"unknown whether it happened: {call.get('why', '')}")
    where = f"under epoch {call['epoch']}, policy {call['policy']}"
    return f"effect {call['name']}, call {call['number']} {where}: {how}"
