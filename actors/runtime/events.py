"""Structured events: one JSON object a line, numbered without holes, one `write` a line.

A reader of the lines (a checker, `explain`, a person) must be able to trust them: a line is whole
or absent, and a hole in `n` shows an absent one. Writing neither fails nor delays the caller, since
a full log disk or a pipe that nobody reads must not stop a queue; `lines_lost` counts the lines that
could not be written, and `events.lost` tells their number as soon as a line can be written again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from .diagnostics import ERASE_LINE, Outlet, descriptor_of, escaped, is_terminal, log, text_of
from .event_names import EVENTS, Level

if TYPE_CHECKING:
    import structlog

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
        return sorted(map(text_of, value))
    return text_of(value)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain).encode


@cache
def _console(*, color: bool) -> structlog.dev.ConsoleRenderer:
    """Return the renderer of lines for people: time, name, fields; one short line an event."""
    import structlog  # 0.15 s of a start: only processes that a person watches pay it

    def column(name: str, key: str | None, value: str, prefix: str = "") -> structlog.dev.Column:
        formatter = structlog.dev.KeyValueColumnFormatter(
            key_style=key if key is None or color else "",
            value_style=value if color else "",
            reset_style="\x1b[0m" if color else "",
            value_repr=str,
            prefix=prefix,
        )
        return structlog.dev.Column(name, formatter)

    return structlog.dev.ConsoleRenderer(
        columns=[
            column("timestamp", None, "\x1b[2m"),
            column("event", None, "\x1b[1m"),
            column("", "\x1b[36m", "", prefix=" "),
        ],
        sort_keys=False,
    )


def _for_people(line: dict[str, Any], *, color: bool) -> str:
    """Return an event as one short line. What only a checker needs is left out."""
    hidden = _COMMON | {"argv", "settings"}
    fields = {key: escaped(_shown(value)) for key, value in line.items() if key not in hidden}
    shown = {**fields, "timestamp": line["ts"][11:23], "event": line["event"]}
    return ERASE_LINE + _console(color=color)(None, "", shown).rstrip()


def _shown(value: Any) -> Any:
    """Return a value for people: an exit code as its number, a list with commas."""
    if isinstance(value, list | tuple):
        return ", ".join(str(_shown(item)) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value if isinstance(value, str | float | None) else _plain(value)


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
        self._untold = 0  # lines lost that no `events.lost` has told
        self._broken_line = False  # whether the last write ended inside a line
        self._stream: TextIO | None = None  # a stream without a descriptor
        self._outlet: Outlet | None = None
        self._owned_fd: int | None = None  # opened here, so closed here
        self._terminal = False
        if log_dir is not None:
            os.makedirs(log_dir, exist_ok=True)
            self.path: str | None = os.path.join(log_dir, f"{role}-{self._pid}.jsonl")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._owned_fd = os.open(self.path, flags, 0o644)
            self._outlet = Outlet(self._owned_fd)
        else:
            self.path = None
            stream = sys.stderr if stream is None else stream
            descriptor = descriptor_of(stream)
            if descriptor >= 0:
                self._outlet = Outlet(descriptor)
            else:  # a stream in memory, as test runners put in place, or none at all
                self._stream = stream
            self._terminal = is_terminal(stream)
        self._color = self._terminal and not os.environ.get("NO_COLOR")

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
            if self._outlet is not None:
                self._outlet.close()
                self._outlet = None
            if self._owned_fd is not None:
                os.close(self._owned_fd)
                self._owned_fd = None
            self._stream = None

    def _emit_as(self, level: Level, event: str, fields: dict[str, Any]) -> None:
        kind = EVENTS.get(event)
        assert kind is not None and kind.level == level, f"{event!r} is not a {level} event"  # noqa: PT018
        self.emit(event, **fields)

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        with self._lock:
            if self._untold:
                if not self._put("events.lost", {"count": self._untold}):
                    return  # that line is lost in the place of this one: one number, one loss
                self._untold = 0
            self._put(event, fields)

    def _put(self, event: str, fields: dict[str, Any]) -> bool:
        """Write one line under the next number; return whether its reader took it whole."""
        line: dict[str, Any] = {
            "event": event,
            "ts": datetime.now(UTC).isoformat(timespec="microseconds"),
            "mono_ns": time.monotonic_ns(),
            "role": self.role,
            "pid": self._pid,
            "incarnation": self.incarnation,
            "n": self._n,
        }
        for name, value in fields.items():
            key = name.rstrip("_")
            assert key not in _COMMON, f"field {key!r} of {event} is taken"
            if value is not None:
                line[key] = value
        text = _for_people(line, color=self._color) if self._terminal else _encode(line)
        self._n += 1
        whole = self._put_stream(text) if self._outlet is None else self._put_bytes(text)
        if not whole:
            self.lines_lost += 1
            self._untold += 1
        return whole

    def _put_bytes(self, text: str) -> bool:
        assert self._outlet is not None
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        if self._broken_line:  # never glue a whole line to a half one
            data = b"\n" + data
        written = self._outlet.write(data)
        if written:
            self._broken_line = written < len(data)
        return written == len(data)

    def _put_stream(self, text: str) -> bool:
        if self._stream is None:
            return False
        try:
            self._stream.write(text + "\n")
        except Exception:  # noqa: BLE001 - a stream of the user's program may raise anything
            return False
        return True


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
            log(level, "%s %s", event, text, extra={"fields": plain}, logger=self._logger)
