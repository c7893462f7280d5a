"""A producer engine wired to the simple broker in this process: no sockets, no processes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from oncemq.library.producing.producer import Producer
from oncemq.runtime.process import draw
from oncemq.shells.producer import ProducerShell
from tests.core.broker.dumb_broker import DumbBroker

ENDPOINT = "tcp://127.0.0.1:7400"
SPEED = 25  # time of the engine runs so much faster, so that resends cost a test little


class FastClock:
    """A clock that runs SPEED times as fast as the world."""

    def now_ms(self) -> int:
        """Return milliseconds that never decrease."""
        return time.monotonic_ns() * SPEED // 1_000_000


class Wire:
    """Connects any number of clients with one broker; `cut` loses all that is said."""

    def __init__(self, **options: Any) -> None:
        self.broker = DumbBroker(**options)
        self.lock = threading.Lock()
        self.cut = False
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    def wants(self, event: str) -> bool:
        return bool(event)

    def engine(self, name: str, endpoint: str = ENDPOINT) -> ProducerShell:
        return ProducerShell(
            name,
            endpoint=endpoint,
            transport=WiredTransport(self),
            clock=FastClock(),
            events=self,
            entropy=draw,
            label="wired",
        )

    def producer(self, name: str | None = None, **options: Any) -> Producer:
        return Producer(name, connect=self.engine, **options)

    def values(self, topic: str, partition: int = 0) -> list[bytes]:
        with self.lock:
            return self.broker.bodies(topic, partition)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.cut = True
        try:
            yield
        finally:
            self.cut = False


class WiredTransport:
    """A socket whose other end answers at once."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._peer = draw()
        self._inbox: list[tuple[bytes, list[bytes]]] = []
        self._woken: SimpleQueue[None] = SimpleQueue()  # a signal handler may put, too
        self.closed = False

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """Return the answers that wait; else sleep until woken."""
        if not self._inbox and timeout_ms > 0:
            with contextlib.suppress(Empty):
                self._woken.get(timeout=timeout_ms / 1000 / SPEED)
        with contextlib.suppress(Empty):
            while True:
                self._woken.get_nowait()
        inbox, self._inbox = self._inbox, []
        return inbox

    def send(self, peer: bytes, frames: Sequence[bytes | memoryview]) -> bool:
        assert peer == b""
        assert not self.closed
        if not self._wire.cut:
            with self._wire.lock:
                answer = self._wire.broker.handle_frames(self._peer, [bytes(f) for f in frames])
            self._inbox.append((b"", answer))
        return True

    def wake(self) -> None:
        self._woken.put(None)

    def reopen(self) -> None:
        self._peer = draw()
        self._inbox.clear()

    def close(self) -> None:
        self.closed = True
