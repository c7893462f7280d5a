"""Requests a node has seen: each is executed once and answered the same every time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from ..limits import Limits

_ENTRY_BYTES = 400  # estimated memory of an entry besides its reply


@dataclass(slots=True)
class Question:
    """A request, from its arrival to its reply."""

    asker: str  # `src` of the request
    number: int | None  # msg_id of the request; None if it has none that can be read
    key: tuple[object, ...] | None = None  # the reply is kept under it; None: not kept
    digest: bytes = b""  # of the body
    echo: str = ""  # further fields of the reply, as JSON text that begins with a comma
    forwarded: bool = False  # by another node
    reply: bytes | None = None  # the line; None until answered
    copies: int = 1  # times that it arrived before its reply: each gets one


class Replies:
    """A bounded memory of answered requests, and of all that are not answered yet.

    Invariant: `_kept` holds at most `node_replies_kept_max` replies of at most
    `node_replies_kept_bytes_max` bytes; at the bound the oldest is forgotten. Open questions are
    bounded by one turn's input and by the table of forwards.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: OrderedDict[tuple[object, ...], Question] = OrderedDict()
        self._bytes = 0
        self._open: dict[tuple[object, ...], Question] = {}

    def find(self, key: tuple[object, ...]) -> Question | None:
        return self._open.get(key) or self._kept.get(key)

    def open(self, question: Question) -> None:
        assert question.key is not None
        self._open[question.key] = question

    def keep(self, question: Question) -> None:
        """Keep a question with its reply, unless `clear` has forgotten it meanwhile."""
        assert question.reply is not None
        if question.key is None or self._open.get(question.key) is not question:
            return
        del self._open[question.key]
        self._kept[question.key] = question
        self._bytes += len(question.reply) + _ENTRY_BYTES
        while self._kept and (
            len(self._kept) > self._limits.node_replies_kept_max
            or self._bytes > self._limits.node_replies_kept_bytes_max
        ):
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest.reply or b"") + _ENTRY_BYTES

    def clear(self) -> None:
        """Forget everything: after an init clients use their numbers again."""
        self._kept.clear()
        self._open.clear()
        self._bytes = 0
