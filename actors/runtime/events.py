"""Structured events: one JSON object a line, numbered without holes, one `write` a line.

A reader of the lines (a checker, `explain`, a person) must be able to trust them: a line is whole
or absent, and a hole in `n` shows an absent one. Writing never fails the caller, since a full log
disk must not stop a queue; `lines_lost` counts the lines that could not be written.

The standard encoder makes the JSON lines, because importing structlog costs 0.15 s of every start
(it imports asyncio and rich). Only a terminal, where a person reads, loads structlog.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from .event_names import EVENTS, Level

_LEVELS: dict[str, int] = {"debug": logging.DEBUG, "info": logging.INFO}
_COMMON = frozenset({"event", "ts", "mono_ns", "role", "pid", "incarnation", "n"})


def _plain(value: Any) -> Any:
    """Return text, or a list of text, for a value that JSON cannot carry."""
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(value)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "0x" + raw.hex()
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return str(value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain).encode


def _console() -> Callable[[dict[str, Any]], str]:
    """Only a terminal pays for importing structlog's renderer."""
    import structlog

    render = structlog.dev.ConsoleRenderer(pad_event_to=22)
    add_level = structlog.processors.add_log_level

    def render_line(line: dict[str, Any]) -> str:
        name = line["event"]
        level = EVENTS[name].level
        hidden = {"mono_ns", "incarnation", "n", "ts"}
        shown = {key: _shown(value) for key, value in line.items() if key not in hidden}
        shown["timestamp"] = line["ts"][11:23]
        return str(render(None, level, add_level(None, level, shown)))

    return render_line


def _shown(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else _plain(value)


class EventLog:
    """The events of one process. Threads may share it; a forked child must make its own.

    `emit` finds the level of an event in the registry; an unknown name is an assertion error.
    Do not call it from a signal handler.
    """

    def __init__(
        self,
        role: str,
        *,
        log_dir: str | None = None,
        level: str = "info",
        stream: TextIO | None = None,
        incarnation: str | None = None,
    ) -> None:
        """Write to `log_dir`/role-pid.jsonl, or without `log_dir` to `stream` (default: stderr).

        Raises OSError when the directory cannot be made or written.
        """
        self.role = role
        self.incarnation = incarnation or secrets.token_hex(8)
        self.lines_lost = 0
        self._pid = os.getpid()
        self._lowest = _LEVELS[level]
        self._lock = threading.RLock()
        self._n = 0  # number of the next line
        self._broken_line = False  # whether the last write ended inside a line
        self._stream: TextIO | None = None  # a stream without a descriptor
        self._owned_fd: int | None = None  # opened here, so closed here
        self._console: Callable[[dict[str, Any]], str] | None = None
        if log_dir is not None:
            os.makedirs(log_dir, exist_ok=True)
            self.path: str | None = os.path.join(log_dir, f"{role}-{self._pid}.jsonl")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = self._owned_fd = os.open(self.path, flags, 0o644)
        else:
            self.path = None
            stream = sys.stderr if stream is None else stream
            try:
                self._fd = stream.fileno()
            except (OSError, ValueError):  # a stream in memory, as test runners put in place
                self._fd, self._stream = -1, stream
            if stream.isatty():
                self._console = _console()

    def wants(self, event: str) -> bool:
        """Ask before gathering fields that cost time."""
        return _LEVELS[EVENTS[event].level] >= self._lowest

    def emit(self, event: str, **fields: Any) -> None:
        """Write `event` at the level of the registry.

        A field `from_` is written as `from`, which is a word of Python; None is left out.
        """
        kind = EVENTS.get(event)
        assert kind is not None, f"unknown event {event!r}: add it to runtime/event_names.py"
        if _LEVELS[kind.level] >= self._lowest:
            self._write(event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._emit_as("info", event, fields)

    def debug(self, event: str, **fields: Any) -> None:
        self._emit_as("debug", event, fields)

    def close(self) -> None:
        """Later events are counted as lost."""
        with self._lock:
            if self._owned_fd is not None:
                os.close(self._owned_fd)
                self._owned_fd = None
            self._fd = -1

    def _emit_as(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        kind = EVENTS.get(event)
        assert kind is not None and kind.level == level, f"{event!r} is not a {level} event"  # noqa: PT018
        self.emit(event, **fields)

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        with self._lock:
            line: dict[str, Any] = {
                "event": event,
                "ts": datetime.now(UTC).isoformat(timespec="microseconds"),
                "mono_ns": time.monotonic_ns(),
                "role": self.role,
                "pid": self._pid,
                "incarnation": self.incarnation,
                "n": self._n,
            }
            self._n += 1
            for name, value in fields.items():
                key = name.rstrip("_")
                assert key not in _COMMON, f"field {key!r} of {event} is taken"
                if value is not None:
                    line[key] = value
            text = self._console(line) if self._console is not None else _encode(line)
            if self._stream is not None:
                self._stream.write(text + "\n")
                return
            data = text.encode("utf-8", "backslashreplace") + b"\n"
            if self._broken_line:  # never glue a whole line to a half one
                data = b"\n" + data
            try:
                self._broken_line = os.write(self._fd, data) < len(data)
            except OSError:
                self.lines_lost += 1
            else:
                self.lines_lost += self._broken_line


class NullEvents:
    """Events of an actor inside a user's own program: they go to the stdlib logger `oncemq`.

    The library configures no logging: without a handler of the user, Python prints warnings alone,
    and events are none.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("oncemq")

    def wants(self, event: str) -> bool:
        return self._logger.isEnabledFor(_LEVELS[EVENTS[event].level])

    def emit(self, event: str, **fields: Any) -> None:
        """Log `event`; its fields stand in the text and, as a mapping, in `record.fields`."""
        kind = EVENTS.get(event)
        assert kind is not None, f"unknown event {event!r}: add it to runtime/event_names.py"
        level = _LEVELS[kind.level]
        if self._logger.isEnabledFor(level):
            plain = {name.rstrip("_"): value for name, value in fields.items()}
            text = " ".join(f"{name}={_shown(value)}" for name, value in plain.items())
            self._logger.log(level, "%s %s", event, text, extra={"fields": plain})
