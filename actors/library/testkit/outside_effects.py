"""What handlers do to the world outside of `tx`, as far as Python's audit events tell it.

Files opened for writing or changed by name, connections, and other programs started. Nothing is
hindered: a test learns what would happen again if the process died before the commit. Seen is what
happens in the handler's own call, its tasks and its `asyncio.to_thread`; not what threads of its
own do, and not what C code does without telling.

An audit hook cannot be taken away again, so it is installed at the first use and looks away while
no handler runs.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..handling.call import current

FILE, CONNECTION, PROGRAM = "file", "connection", "program"
KINDS = (FILE, CONNECTION, PROGRAM)

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_BY_NAME = frozenset(
    {
        "sqlite3.connect",
        "os.link",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.symlink",
        "os.truncate",
    }
)
_PROGRAMS = frozenset(
    {"os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}
    | {"subprocess.Popen"}
)
_CONNECTIONS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_NOT_THE_USERS = tuple(
    {
        os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
        *map(sysconfig.get_path, ("stdlib", "purelib")),
    }
)


@dataclass(frozen=True, slots=True)
class OutsideEffect:
    """One thing that a handler did outside of `tx`."""

    kind: str  # one of KINDS
    what: str
    where: str  # file and line in the user's code
    topic: str
    message_id: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} at {self.where}, for message {self.message_id}"


class OutsideEffects:
    """Collects what handlers do while `watched`."""

    def __init__(self) -> None:
        """Install the hook of this process if it is not there yet."""
        self.found: list[OutsideEffect] = []
        if not _Watch.installed:
            _Watch.installed = True
            sys.addaudithook(_hook)

    @contextmanager
    def watched(self) -> Iterator[None]:
        before, _Watch.now = _Watch.now, self
        try:
            yield
        finally:
            _Watch.now = before

    def note(self, kind: str, what: str) -> None:
        unit = current.get()
        message = None if unit is None else unit.message
        if message is not None:
            where = _where(sys._getframe(2))  # noqa: SLF001 - the only way to the caller's frame
            self.found.append(OutsideEffect(kind, what, where, message.topic, str(message.id)))


class _Watch:
    """What the hook of this process knows."""

    installed = False
    now: OutsideEffects | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    watch = _Watch.now
    unit = current.get()
    if watch is None or unit is None or unit.calls_outside:
        return
    if event == "open":
        path, mode, flags = arguments
        if _is_effect(path) and _opens_for_writing(mode, flags):
            watch.note(FILE, f"open {os.fsdecode(path)!r} for writing")
    elif event in _BY_NAME:
        if _is_effect(arguments[0]):
            watch.note(FILE, f"{event} {arguments[0]!r}")
    elif event in _CONNECTIONS:
        watch.note(CONNECTION, f"{event} {arguments[-1]!r}")
    elif event in _PROGRAMS:
        watch.note(PROGRAM, f"{event} {arguments[0] if arguments else ''!r}")


def _is_effect(path: Any) -> bool:
    """Whether writing there is an effect of the handler: not where an import keeps its code."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False  # a descriptor that somebody has opened already
    name = os.fsdecode(path)
    return name not in {os.devnull, ":memory:"} and "__pycache__" not in name


def _opens_for_writing(mode: str | None, flags: int) -> bool:
    return any(sign in mode for sign in "wax+") if mode is not None else bool(flags & _WRITING)


def _where(frame: FrameType | None) -> str:
    """The innermost place in code that is neither ours nor a library's."""
    while frame is not None and frame.f_code.co_filename.startswith((*_NOT_THE_USERS, "<")):
        frame = frame.f_back
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
