"""Bytes from stdin cut into lines, however they come."""

from __future__ import annotations

from collections.abc import Callable

from ..limits import LIMITS


class LineCutter:
    """Cuts a stream at its newlines. An over-long line is reported once and passed over.

    Invariant: what is held is no longer than `bytes_max`.
    """

    def __init__(
        self, report: Callable[[str], None], bytes_max: int = LIMITS.node_line_bytes_max
    ) -> None:
        self._bytes_max = bytes_max
        self._report = report
        self._rest: list[bytes] = []  # the line that has no end yet, in pieces
        self._rest_bytes = 0
        self._skipping = False  # the line is too long: drop its rest up to the newline

    def cut(self, data: bytes) -> list[bytes]:
        """Blank lines do not count."""
        head, newline, tail = data.partition(b"\n")
        if not newline:
            self._hold(data)
            return []
        *whole, rest = tail.split(b"\n")
        first = self._complete(head)
        lines = [line for line in (first, *whole) if line.strip()]
        self._hold(rest)
        return [line for line in lines if self._fits(line)]

    def end(self) -> list[bytes]:
        """Return the last line if it has no newline, else nothing."""
        last = self._complete(b"")
        return [last] if last.strip() and self._fits(last) else []

    def _hold(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        self._rest.append(piece)
        self._rest_bytes += len(piece)
        if self._rest_bytes > self._bytes_max:
            self._too_long()
            self._rest.clear()
            self._rest_bytes = 0
            self._skipping = True

    def _complete(self, piece: bytes) -> bytes:
        if self._skipping:
            self._skipping = False
            return b""
        line = b"".join((*self._rest, piece))
        self._rest.clear()
        self._rest_bytes = 0
        return line

    def _fits(self, line: bytes) -> bool:
        if len(line) <= self._bytes_max:
            return True
        self._too_long()
        return False

    def _too_long(self) -> None:
        self._report(f"line passed over: longer than {self._bytes_max} bytes")
