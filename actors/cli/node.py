"""`python main.py`: a node of the Maelstrom test bench on stdin and stdout."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from ..limits import NODE_TURN_BYTES_MAX
from ..maelstrom.lines import LineCutter
from ..maelstrom.node import MaelstromNode
from ..maelstrom.store import NodeStore
from ..ports import Events
from ..runtime.clock import SystemClock
from ..runtime.diagnostics import tell
from ..runtime.events import EventLog
from ..runtime.os_disk import OsDisk
from ..runtime.process import draw, owner_facts, stop_signals
from ..storage.disk import Disk
from ..storage.memory import MemoryDisk

_READ_BYTES = 256 * 1024
_WORTH_A_LINE = frozenset({"log.tail_cut", "log.disk_full", "log.disk_ok", "snapshot.fallback"})


class _FewEvents:
    """Events of a node whose stderr may have no reader: only what a person must know."""

    def __init__(self) -> None:
        self._log = EventLog("node")

    def emit(self, event: str, **fields: Any) -> None:
        if event in _WORTH_A_LINE:
            self._log.emit(event, **fields)


@click.command()
@click.option("--data", metavar="DIR", help="Directory for the logs [default: memory only].")
@click.option(
    "--log-dir", metavar="DIR", help="Write all events to node-PID.jsonl in this directory."
)
def node(data: str | None, log_dir: str | None) -> None:
    """Speak JSON lines on stdin and stdout as a node of the Maelstrom test bench.

    Replies leave after the fsync that covers them; all lines that wait share one. Ends with the
    input. Lines that are no messages, and errors, are reported on stderr.
    """
    events: Events = _FewEvents() if log_dir is None else EventLog("node", log_dir=log_dir)
    disk: Disk = MemoryDisk() if data is None else OsDisk()
    clock = SystemClock()

    store = NodeStore(
        disk, data or "node", clock=clock, events=events, entropy=draw, owner=owner_facts()
    )
    speaker = MaelstromNode(store, clock, entropy=draw, write=_write, report=_report)
    with _stopping() as stop:
        _run(speaker, stop)
    store.close()


def _report(text: str) -> None:
    tell(f"main: {text}")


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


@contextlib.contextmanager
def _stopping() -> Iterator[int]:
    """Yield a descriptor that becomes readable when the process is asked to stop."""
    readable, writable = os.pipe()
    try:
        with stop_signals(lambda _number: _wake(writable)):
            yield readable
    finally:
        os.close(readable)
        os.close(writable)


def _wake(descriptor: int) -> None:
    os.write(descriptor, b"!")


def _run(speaker: MaelstromNode, stop: int) -> None:
    cutter = LineCutter(_report)
    stdin = sys.stdin.fileno()
    while True:
        ready, _, _ = select.select([stdin, stop], [], [], speaker.time_left_ms() / 1000)
        if stop in ready:
            break
        if stdin in ready:
            lines, ended = _take(stdin, cutter.cut)
            if ended:
                lines += cutter.end()
            if lines:
                speaker.feed(lines)
            if ended:
                break
        if speaker.time_left_ms() <= 0:
            speaker.tick()
    speaker.finish()


def _take(stdin: int, cut: Callable[[bytes], list[bytes]]) -> tuple[list[bytes], bool]:
    """Return all waiting lines, up to a bound, and whether the input ended."""
    lines: list[bytes] = []
    taken = 0
    while taken < NODE_TURN_BYTES_MAX:
        data = os.read(stdin, _READ_BYTES)
        if not data:
            return lines, True
        taken += len(data)
        lines += cut(data)
        if not select.select([stdin], [], [], 0)[0]:
            break
    return lines, False
