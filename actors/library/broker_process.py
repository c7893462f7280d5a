"""The broker as a process: a data directory, a socket, and the loop that turns the shell.

A broker that finds a live owner of the directory refuses to start.
"""

from __future__ import annotations

import importlib
import ipaddress
import os
from collections.abc import Callable

from ..errors import OnceMQError
from ..limits import SNAPSHOT_EVERY_BYTES
from ..runtime.background import BackgroundThreads
from ..runtime.clock import SystemClock
from ..runtime.crash_points import CrashingDisk, CrashPoint, log_opener
from ..runtime.descriptors import keep_descriptors
from ..runtime.events import EventLog, NullEvents
from ..runtime.os_disk import OsDisk, filesystem_warning
from ..runtime.process import draw, end_frozen_owner, owner_facts
from ..runtime.zmq_transport import RouterTransport
from ..shells.broker import BrokerShell


class UnsafeBind(OnceMQError):
    """The endpoint can be reached from other machines, and nothing proves who connects."""

    code = "unsafe_bind"
    default_hint = (
        "bind a loopback address, or accept the risk with --insecure; "
        "encryption (CURVE) is not available yet"
    )


def check_bind(endpoint: str, *, insecure: bool) -> None:
    """Accept endpoints that only this machine reaches; others need `insecure`. Raises UnsafeBind."""
    scheme, _, rest = endpoint.partition("://")
    if insecure or scheme in {"ipc", "inproc"} or _is_loopback(rest.rpartition(":")[0]):
        return
    raise UnsafeBind(f"other machines can reach {endpoint}")


def _is_loopback(host: str) -> bool:
    """Return whether `host` is this machine; of names only localhost is known to be."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class BrokerProcess:
    """One broker. `open`, then `run` until `stop`, then `close`; not thread-safe but for `stop`."""

    def __init__(
        self,
        data: str,
        bind: str,
        events: EventLog | NullEvents,
        *,
        takeover: bool = False,
        insecure: bool = False,
        create_topics: bool = True,
        snapshot_every_bytes: int = SNAPSHOT_EVERY_BYTES,
    ) -> None:
        """Keep the log in directory `data` and listen at `bind`.

        `takeover` ends a frozen owner of the directory; `insecure` allows a `bind` that other
        machines reach. Without `create_topics` only `oncemq topics create` makes topics. Raises
        UnsafeBind.
        """
        check_bind(bind, insecure=insecure)
        self._data = os.path.abspath(data)
        self._bind = bind
        self._events = events
        self._takeover = takeover
        self._create_topics = create_topics
        self._snapshot_every = snapshot_every_bytes
        self._transport = RouterTransport(events)
        self._background = BackgroundThreads()
        self._shell: BrokerShell | None = None
        self._stopping = False
        # Where clients find this broker. Known after `open`.
        self.endpoint = ""

    def open(self) -> None:
        """Recover the log, bind and take the next generation.

        Raises LogInUse (another broker owns the directory), CannotBind, CorruptLog, DiskFull,
        UnsupportedFormat, Fenced, OSError; nothing was changed then. Call `run` next.
        """
        keep_descriptors()
        # Loads numpy, which takes a while: the first explicit id must not wait for it, and nobody
        # else in its turn.
        importlib.import_module("oncemq.core.broker.id_index")
        warning = filesystem_warning(self._data)
        if warning is not None:
            self._events.emit("log.filesystem", directory=self._data, reason=warning)
        point = CrashPoint.from_environment()
        self._shell = BrokerShell(
            OsDisk() if point is None else CrashingDisk(point),
            self._data,
            owner=owner_facts(),
            bind=self._bind_socket,
            clock=SystemClock(),
            events=self._events,
            entropy=draw,
            open_log=log_opener(point),
            takeover=self._takeover,
            end_owner=end_frozen_owner,
            message_events=self._events.wants("message.appended"),
            create_topics=self._create_topics,
            snapshot_every_bytes=self._snapshot_every,
            background=self._background,
        )
        log = self._shell.log
        self._events.emit(
            "broker.ready",
            endpoint=self.endpoint,
            epoch=log.generation,
            log_id=log.log_id.hex(),
            durable_end=log.durable_end,
            directory=self._data,
        )

    def _bind_socket(self) -> RouterTransport:
        self.endpoint = self._transport.bind(self._bind)
        return self._transport

    def run(self, *, after_turn: Callable[[], None] | None = None) -> None:
        """Answer requests until `stop` is called; `after_turn` is called between two turns.

        Raises Fenced, CorruptLog, OSError: call `close` then, this broker must not go on.
        """
        assert self._shell is not None, "open first"
        while not self._stopping:
            self._shell.turn()
            if after_turn is not None:
                after_turn()

    def stop(self) -> None:
        """Let `run` return after its turn. May be called from signal handlers and threads."""
        self._stopping = True
        self._transport.wake()

    def close(self, *, clean: bool) -> None:
        """Let go of log and socket. `clean`: the broker ends in good order, not by an error."""
        try:
            if self._shell is not None:
                self._shell.close(clean=clean)
        finally:
            self._background.close()
            self._transport.close()


def serve(process: BrokerProcess, on_ready: Callable[[str], None]) -> None:
    """Open `process`, tell its endpoint to `on_ready`, run it until it is stopped, close it."""
    clean = False
    try:
        process.open()
        on_ready(process.endpoint)
        process.run()
        clean = True
    finally:
        process.close(clean=clean)
