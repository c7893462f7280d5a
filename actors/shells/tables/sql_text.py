"""Which statements a text of SQL holds, as far as the words they begin with.

PostgreSQL has no authorizer, so handlers' texts are looked at before they are sent. Quotes, dollar
quotes and comments are passed over; a text that this reading takes wrongly is still met by the
check behind the handler, which finds that the savepoint is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*)
    |(?P<comment>/\*)
    |(?P<text>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<dollar>\$(?:[A-Za-z_]\w*)?\$)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<end>;)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTROL = frozenset(
    {"ABORT", "BEGIN", "COMMIT", "DISCARD", "END", "RELEASE", "ROLLBACK", "SAVEPOINT", "START"}
)
_SETTINGS = frozenset({"TRANSACTION", "CHARACTERISTICS", "SYNCHRONOUS_COMMIT"})
_WORDS_SEEN = 5  # of a statement; SET SESSION CHARACTERISTICS AS TRANSACTION


def statements(text: str) -> Iterator[list[str]]:
    """Yield the first words of each statement, in capitals."""
    words: list[str] = []
    at = 0
    open_ended = True  # whether words still follow each other from the beginning
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None, "any character is a token"
        at = token.end()
        if token["comment"]:
            at = _comment_end(text, at)
        elif token["dollar"]:
            end = text.find(token["dollar"], at)
            at = len(text) if end < 0 else end + len(token["dollar"])
            open_ended = False
        elif token["end"]:
            if words:
                yield words
            words, open_ended = [], True
        elif token["word"] and open_ended and len(words) < _WORDS_SEEN:
            words.append(token["word"].upper())
        elif not token["skip"]:
            open_ended = open_ended and bool(words) and token["other"] == "="
    if words:
        yield words


def _comment_end(text: str, at: int) -> int:
    """Return the place behind a comment, in which others may stand."""
    depth = 1
    while depth and at < len(text):
        if text.startswith("*/", at):
            depth, at = depth - 1, at + 2
        elif text.startswith("/*", at):
            depth, at = depth + 1, at + 2
        else:
            at += 1
    return at


def refused(text: str) -> str | None:
    """Return what the text would do that a handler may not; None: nothing."""
    for words in statements(text):
        first, rest = words[0], words[1:]
        if first in _CONTROL or (first == "PREPARE" and rest[:1] == ["TRANSACTION"]):
            return " ".join(words[:2] if first in {"PREPARE", "START"} else words[:1])
        if first in {"SET", "RESET"} and _SETTINGS & set(rest):
            return f"{first} {next(word for word in rest if word in _SETTINGS)}"
    return None


def bound(parameters: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a driver's `execute` gets behind the query; a single mapping has the names."""
    if len(parameters) == 1 and isinstance(parameters[0], Mapping):
        return (parameters[0],)
    return (parameters,) if parameters else ()


def first_line(error: BaseException) -> str:
    """Return what a driver says of an error, without the statement and its parameters."""
    return next(iter(str(error).splitlines()), type(error).__name__)
