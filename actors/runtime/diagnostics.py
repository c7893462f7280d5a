"""Text for people, and ways to tell it that neither wait nor fail.

What people read often comes from others: ids, keys, labels, errors of handlers. `escaped` is the one
function that makes such text harmless, so that it cannot end a line, forge a row of a table, move
the cursor or turn the direction of reading.

A queue must not stop because the reader of its diagnostics has stopped. `Outlet` drops what a full
pipe does not take at once, `tell` is the way to stderr, and `log` the way to the loggers of a user's
program, whose handlers may raise anything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import socket
import stat
import sys
import time
from typing import Any, TextIO

# C0, DEL, C1, marks without width and marks of direction, line separators, halves of surrogates.
_HARMFUL = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff"
)
_IN_A_LINE = re.compile(f"[{_HARMFUL}]")
_IN_A_BLOCK = re.compile(f"(?![\n\t])[{_HARMFUL}]")
_IN_JSON = re.compile(f"(?!\n)[{_HARMFUL}]")
ERASE_LINE = "\r\x1b[K"  # what a progress line on a terminal needs before other text
_PIPE_BYTES = 512  # what every pipe that is ready takes without waiting (POSIX)


def escaped(text: object, *, block: bool = False) -> str:
    """Return `text` as one harmless line; as a `block` it keeps its line ends and tabs."""
    harmful = _IN_A_BLOCK if block else _IN_A_LINE
    return harmful.sub(lambda found: ascii(found.group())[1:-1], text_of(text))


def escaped_json(text: str) -> str:
    """Return encoded JSON with the same characters escaped as JSON escapes them."""
    return _IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def text_of(value: object) -> str:
    """Return `str(value)`, or the name of its type: the `__str__` of a user may raise anything."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever it is, the text is not worth a queue
        return f"<{type(value).__name__} without text>"


def log(
    level: int,
    text: str,
    *values: object,
    logger: logging.Logger = logging.getLogger("oncemq"),  # noqa: B008 - always the same one
    **options: Any,
) -> None:
    """Log as `logging` does. What handlers and filters of the user raise is dropped."""
    with contextlib.suppress(Exception, SystemExit):
        logger.log(level, text, *values, **options)


class Outlet:
    """Writes to a descriptor without waiting for its reader. Threads may share it.

    O_NONBLOCK belongs to an open file, not to a descriptor, so other processes would suffer if it
    were set on a stream that they share. A pipe or terminal is therefore opened again.
    """

    def __init__(self, descriptor: int) -> None:
        """Close it with `close`; `descriptor` stays open."""
        self._descriptor = descriptor
        self._own: int | None = None
        self._socket: socket.socket | None = None
        self._waits = False  # whether a write may wait for a reader, because nothing else helps
        with contextlib.suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(descriptor))
            elif not stat.S_ISREG(mode):
                self._waits = True
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{descriptor}", flags)
                self._waits = False

    def write(self, data: bytes) -> int:
        """Return how many bytes were written; the rest is dropped. Never raises an OSError."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._own is not None:
                return os.write(self._own, data)
            return self._write_ready(data) if self._waits else os.write(self._descriptor, data)
        except OSError:
            return 0

    def _write_ready(self, data: bytes) -> int:
        written = 0
        while written < len(data) and select.select([], [self._descriptor], [], 0)[1]:
            written += os.write(self._descriptor, data[written : written + _PIPE_BYTES])
        return written

    def close(self) -> None:
        """Give back what was opened here."""
        if self._own is not None:
            os.close(self._own)
            self._own = None
            self._waits = True
        if self._socket is not None:
            self._socket.close()


def descriptor_of(stream: TextIO | None) -> int:
    """Return the descriptor of a stream; -1 for a closed one and for a stream in memory."""
    try:
        return -1 if stream is None else stream.fileno()
    except (OSError, ValueError, AttributeError):
        return -1


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a person looks at the stream."""
    with contextlib.suppress(Exception):  # a closed stream raises
        return stream is not None and stream.isatty()
    return False


def tell(text: object, *, block: bool = False, patience_s: float = 0) -> None:
    """Write a line for people to stderr, or several as a `block`: escaped, at most so patient."""
    erase = ERASE_LINE if is_terminal(sys.stderr) else ""
    put(f"{erase}{escaped(text, block=block)}\n", patience_s)


def put(text: str, patience_s: float = 0) -> None:
    """Write `text` to stderr as it is; what its reader does not take in time is dropped."""
    stream = sys.stderr
    descriptor = descriptor_of(stream)
    if descriptor < 0:
        with contextlib.suppress(Exception):  # a stream of the user's program
            stream.write(text)
        return
    outlet = Outlet(descriptor)
    data = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
    deadline_s = time.monotonic() + patience_s
    while data := data[outlet.write(data) :]:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([], [descriptor], [], left_s)[1]:
            break
    outlet.close()


class TellingHandler(logging.Handler):
    """A logging handler that tells records on stderr: `logging.StreamHandler` waits and tears."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record; its traceback keeps its lines."""
        try:
            tell(self.format(record), block=True)
        except Exception:  # noqa: BLE001 - arguments of the user that do not fit the format
            tell(f"a line of {record.name} could not be formatted: {text_of(record.msg)}")
