"""The broker as a process: a data directory, a socket, and the turn between them.

The order of opening is what makes a takeover exact. All that can fail comes first: reading the
log, finding room, binding the socket. Only then does this process take the next generation, which
fences the one before. A broker that finds a live owner of the directory refuses to start.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from ..core.broker.core import BrokerCore, CheckFence
from ..driver import Driver
from ..errors import OnceMQError
from ..limits import SNAPSHOT_EVERY_BYTES
from ..runtime.clock import SystemClock
from ..runtime.crash_points import CrashingDisk, CrashingLog, CrashPoint
from ..runtime.descriptors import keep_descriptors
from ..runtime.events import EventLog, NullEvents
from ..runtime.os_disk import OsDisk, filesystem_warning
from ..runtime.process import end_frozen_owner, owner_facts
from ..runtime.zmq_transport import RouterTransport
from ..storage.log import FencedLog

REPLAY_WORTH_A_SNAPSHOT_BYTES = 8 * 1024 * 1024  # at a clean stop; less is replayed in no time
_LOCAL_HOSTS = frozenset({"localhost", "[::1]"})


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
    host = rest.rpartition(":")[0]
    local = scheme in {"ipc", "inproc"} or host in _LOCAL_HOSTS or host.startswith("127.")
    if not local and not insecure:
        raise UnsafeBind(f"other machines can reach {endpoint}")


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
        snapshot_every_bytes: int = SNAPSHOT_EVERY_BYTES,
    ) -> None:
        """Keep the log in directory `data` and listen at `bind`.

        `takeover` ends a frozen owner of the directory; `insecure` allows a `bind` that other
        machines reach. Raises UnsafeBind.
        """
        check_bind(bind, insecure=insecure)
        self._data = data
        self._bind = bind
        self._events = events
        self._takeover = takeover
        self._snapshot_every = snapshot_every_bytes
        self._transport = RouterTransport(events)
        self._driver: Driver | None = None
        self._log: FencedLog | None = None
        self._stopping = False
        # Where clients find this broker. Known after `open`.
        self.endpoint = ""

    def open(self) -> None:
        """Recover the log, bind and take the next generation.

        Raises LogInUse (another broker owns the directory), CannotBind, CorruptLog, DiskFull,
        UnsupportedFormat, Fenced, OSError; nothing was changed then. Call `run` next.
        """
        keep_descriptors()
        warning = filesystem_warning(self._data)
        if warning is not None:
            self._events.emit("log.filesystem", directory=self._data, reason=warning)
        log = self._open_log()
        self._log = log
        self._tell_recovery(log)
        core = BrokerCore(
            log.log_id,
            log.lineage,
            entropy=lambda: secrets.token_bytes(16),
            message_events=self._events.wants("message.appended"),
        )
        driver = Driver(
            core,
            self._transport,
            SystemClock(),
            self._events,
            perform=self._perform,
            snapshot_every_bytes=self._snapshot_every,
        )
        self._driver = driver
        driver.open_log(log)
        for damage in log.snapshot_damage:
            self._events.emit("snapshot.fallback", reason=str(damage))
        driver.turn(0)
        self._events.emit(
            "broker.ready",
            endpoint=self.endpoint,
            epoch=log.generation,
            log_id=log.log_id.hex(),
            durable_end=log.durable_end,
            directory=self._data,
        )

    def _open_log(self) -> FencedLog:
        point = CrashPoint.from_environment()
        disk = OsDisk() if point is None else CrashingDisk(point)
        kind: type[FencedLog] = FencedLog if point is None else CrashingLog

        def prepare() -> None:
            self.endpoint = self._transport.bind(self._bind)

        log = kind.open(
            disk,
            self._data,
            generation=None,
            owner=owner_facts(),
            prepare=prepare,
            takeover=self._takeover,
            end_owner=end_frozen_owner,
            create_log_id=secrets.token_bytes(16),
        )
        if isinstance(log, CrashingLog):
            assert point is not None
            log.point = point
        return log

    def _tell_recovery(self, log: FencedLog) -> None:
        cut = log.cut_report
        if cut is not None:
            self._events.emit(
                "log.tail_cut",
                directory=self._data,
                from_=cut.from_position,
                to=cut.to_position,
                bytes=cut.nbytes,
                reason=cut.reason,
            )

    def run(self, *, after_turn: Callable[[], None] | None = None) -> None:
        """Answer requests until `stop` is called; `after_turn` is called between two turns.

        Raises Fenced, CorruptLog, OSError: call `close` then, this broker must not go on.
        """
        assert self._driver is not None, "open first"
        while not self._stopping:
            self._driver.turn()
            if after_turn is not None:
                after_turn()

    def stop(self) -> None:
        """Let `run` return after its turn. May be called from signal handlers and threads."""
        self._stopping = True
        self._transport.wake()

    def close(self, *, clean: bool) -> None:
        """Let go of log and socket. `clean`: vouch for all that was synced, save a long replay."""
        try:
            driver = self._driver
            if driver is not None:
                if clean and driver.unsnapshotted_bytes >= REPLAY_WORTH_A_SNAPSHOT_BYTES:
                    driver.write_snapshot()
                driver.close(clean=clean)
            elif self._log is not None:
                self._log.close(clean=clean)
        finally:
            self._transport.close()

    def _perform(self, item: Any) -> None:
        assert isinstance(item, CheckFence), f"not work of a broker: {item}"
        assert self._log is not None
        self._log.check_fence()


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
