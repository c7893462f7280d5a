"""Messages over ZeroMQ: ROUTER at the broker, DEALER at the clients.

ZeroMQ loses messages silently in both directions (a peer dies with full queues, a reconnect meets a
full pipe), so no layer above relies on delivery. This module keeps the loss harmless. It refuses a
message at once if the peer is gone or does not read, and so never blocks the broker. A client has a
random routing id of 16 bytes that no other client can guess, and takes a fresh one when it opens a
new connection. Messages are bounded in frames and bytes before they are decoded.

`ZMQ_MAXMSGSIZE` bounds a frame and not a message, so the bound of a message is counted here. There
is no socket monitor on purpose: a monitor that is not drained stops the socket for all peers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import stat
import threading
import time
from typing import Any

import zmq

from ..errors import OnceMQError
from ..limits import (
    FRAME_BYTES_MAX,
    LIMITS,
    REQUEST_BYTES_MAX,
    REQUEST_FRAMES_MAX,
    ROUTING_ID_BYTES,
    Limits,
)
from ..ports import Events, Frames
from .descriptors import reserve_used_up

HEARTBEAT_MS = 1_000
HEARTBEAT_TIMEOUT_MS = 5_000
HANDSHAKE_MS = 5_000  # a peer that connects and sends nothing is disconnected after it
RECONNECT_FIRST_MS = 50
RECONNECT_MAX_MS = 1_000
TURN_BUSY_S = 0.008  # processor time after which a full turn was too long
LISTEN_AGAIN_S = 1.0  # after all connections had to be closed


class CannotBind(OnceMQError):
    """The endpoint cannot be bound. The reason names it, the hint follows the cause."""

    code = "cannot_bind"
    default_hint = "choose another --bind"


_IN_USE = "stop the process that listens there, or choose another --bind"
_NO_SUCH_ADDRESS = "bind an address of this machine, such as 127.0.0.1, or * for all of them"
_NO_DIRECTORY = "make the directory of the socket first, or choose another --bind"
_BIND_HINTS = {
    errno.EADDRINUSE: _IN_USE,
    errno.EADDRNOTAVAIL: _NO_SUCH_ADDRESS,
    errno.ENODEV: _NO_SUCH_ADDRESS,
    errno.ENOENT: _NO_DIRECTORY,
    errno.ENOTDIR: _NO_DIRECTORY,
    errno.EROFS: "the file system is read-only; choose another --bind",
    errno.EACCES: "choose a port above 1023, or a directory that this user may write",
    errno.EPERM: "choose a port above 1023, or a directory that this user may write",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EAFNOSUPPORT: "this machine has no IPv6; bind an IPv4 address",
}


def _answers(path: str) -> bool:
    """Return whether a process accepts connections at a socket in the file system."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _is_other_file(path: str) -> bool:
    """Return whether something that is no socket lies at `path`."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def allow_ipv6(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Let a socket use IPv6 where its endpoint has such an address. Call it before bind or connect.

    Not for names: `localhost` would become ::1, where a broker on 127.0.0.1 is not met.
    """
    socket.setsockopt(zmq.IPV6, endpoint.startswith("tcp://["))


class _Socket:
    """What both ends share: bounded receiving, refused sends, waking up from another thread."""

    def __init__(
        self, kind: int, context: zmq.Context[zmq.Socket[bytes]] | None, limits: Limits
    ) -> None:
        self._kind = kind
        self._turn_events = limits.turn_events_max
        self._turn_bytes = limits.turn_bytes_max
        self._context = context or zmq.Context.instance()
        self._socket = self._open()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._poller = self._watch()
        # A wake must never write to a descriptor that was closed and is another file's by now.
        # Reentrant, because a signal handler may wake the thread that it interrupts.
        self._wake_lock = threading.RLock()
        self._closed = False

    def wake(self) -> None:
        """Make a waiting `poll`, or else the next one, return at once. Any thread may call this."""
        with self._wake_lock:
            if not self._closed:
                with contextlib.suppress(BlockingIOError):  # full: woken already
                    os.write(self._wake_write, b"w")

    def close(self) -> None:
        """Drops what was not sent yet. Closing twice does nothing."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._socket.close(linger=0)

    def _open(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(self._kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        # All answers of one turn, twice, may wait for one peer. That is also more than the partitions
        # of a topic, whose fetches one consumer may have on their way.
        queued = 2 * self._turn_events
        socket.setsockopt(zmq.SNDHWM, queued)
        socket.setsockopt(zmq.RCVHWM, queued)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        return socket

    def _watch(self) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        return poller

    def _wait(self, timeout_ms: int) -> None:
        """Wait for a message or a wake-up; consume the wake-ups."""
        for what, _ in self._poller.poll(timeout_ms):
            if what == self._wake_read:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)

    def _receive(self, frames_max: int, bytes_max: int) -> tuple[list[bytes], int, int] | None:
        """Return (frames, how many came, their bytes), or None if nothing waits.

        Frames beyond the bounds are taken off the socket and not kept.
        """
        socket = self._socket
        try:
            frame = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        frames = [frame]
        count, size = 1, len(frame)
        while socket.getsockopt(zmq.RCVMORE):
            frame = socket.recv(zmq.NOBLOCK)
            count += 1
            size += len(frame)
            if count <= frames_max and size <= bytes_max:
                frames.append(frame)
        return frames, count, size

    def _send(self, frames: list[Any]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # EAGAIN: the peer does not read. EHOSTUNREACH: it is gone.
            if error.errno not in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
                raise
            return False
        return True


class RouterTransport(_Socket):
    """The broker's end: many peers, each known by its routing id."""

    def __init__(
        self,
        events: Events,
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Open the socket without binding it. Drops are counted and reported to `events`."""
        super().__init__(zmq.ROUTER, context, limits)
        self._events = events
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A peer that reconnects before its old connection is known to be dead takes it over. No
        # other peer can, since routing ids are random.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        # Messages dropped at a bound. Only powers of two are reported, so that a flood of messages
        # does not become a flood of events.
        self.dropped = 0
        self.refused = 0  # sends to peers that are gone or do not read
        # What the next turn takes at most, and the processor time when the last poll returned.
        self._bytes_now = self._turn_bytes
        self._was_full = False
        self._busy_since_s = 0.0
        self._endpoint = ""  # with the real port; "" before `bind`
        self._listening = False  # False also while descriptors are short
        self._closed_s = 0.0  # when listening stopped, or was last tried again

    def bind(self, endpoint: str) -> str:
        """Listen at `endpoint` and return it with the real port. Raises CannotBind."""
        if endpoint.startswith("ipc://") and _answers(endpoint.removeprefix("ipc://")):
            # ZeroMQ would take the path away from the process that listens there.
            raise CannotBind(f"{endpoint}: another process listens there", hint=_IN_USE)
        if endpoint.startswith("ipc://") and _is_other_file(endpoint.removeprefix("ipc://")):
            # ZeroMQ would delete it.
            raise CannotBind(f"{endpoint}: a file that is no socket lies there")
        allow_ipv6(self._socket, endpoint)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            code = error.errno or 0
            reason = f"{endpoint}: {zmq.strerror(code).lower()}"
            raise CannotBind(reason, hint=_BIND_HINTS.get(code)) from None
        bound = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self._endpoint = bound.rstrip(b"\0").decode()
        self._listening = True
        return self._endpoint

    def _mind_descriptors(self) -> None:
        """Close all connections and listen again, if they take descriptors kept for the disk.

        That loses nothing: clients reconnect by themselves and resend what was not answered.
        """
        if self._listening:
            if reserve_used_up():
                self._socket.unbind(self._endpoint)  # closes what was accepted there
                self._listening = False
                self._closed_s = time.monotonic()
                self._events.emit("wire.closed", endpoint=self._endpoint)
        elif self._endpoint and time.monotonic() - self._closed_s >= LISTEN_AGAIN_S:
            self._closed_s = time.monotonic()
            try:
                self._socket.bind(self._endpoint)
            except zmq.ZMQError as error:
                reason = zmq.strerror(error.errno or 0).lower()
                self._events.emit("wire.closed", endpoint=self._endpoint, reason=reason)
                return
            self._listening = True
            self._events.emit("wire.opened", endpoint=self._endpoint)

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """Wait up to `timeout_ms`; return waiting messages as (peer, frames), one turn at most."""
        self._fit_to_work()
        if timeout_ms > 0:
            self._wait(timeout_ms)
        self._mind_descriptors()
        messages: list[tuple[bytes, list[bytes]]] = []
        left = self._bytes_now
        for _ in range(self._turn_events):
            received = self._receive(REQUEST_FRAMES_MAX, REQUEST_BYTES_MAX)
            if received is None:
                break
            frames, count, size = received
            left -= size
            if len(frames[0]) != ROUTING_ID_BYTES:
                self._drop("a routing id that is not ours")
            elif not 1 < count <= REQUEST_FRAMES_MAX:
                self._drop("a wrong number of frames")
            elif size > REQUEST_BYTES_MAX:
                self._drop("a message above its limit")
            else:
                messages.append((frames[0], frames[1:]))
            if left <= 0:
                break
        self._was_full = left <= 0
        self._busy_since_s = time.thread_time()
        return messages

    def _fit_to_work(self) -> None:
        """Let a full turn take fewer bytes if the last one computed for long, else more again.

        The same bytes are ten times the work as small messages with ids of their own, and who sends
        a single message waits for two turns. Processor time: a slow disk wants large turns.
        """
        if not self._was_full:
            return
        busy_s = time.thread_time() - self._busy_since_s
        if busy_s > TURN_BUSY_S:
            self._bytes_now = max(self._bytes_now // 2, self._turn_bytes // 16)
        elif busy_s < TURN_BUSY_S / 4:
            self._bytes_now = min(self._bytes_now * 2, self._turn_bytes)

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Hand over a message; False if the peer is gone or does not read."""
        sent = self._send([peer, *frames])
        self.refused += not sent
        return sent

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:
            self._events.emit("wire.malformed", code="dropped", reason=reason, count=self.dropped)


class DealerTransport(_Socket):
    """A client's end: one peer, the broker, which is b""."""

    def __init__(
        self,
        endpoint: str,
        *,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Connect to `endpoint` in the background; an absent broker is no error."""
        self._endpoint = endpoint
        super().__init__(zmq.DEALER, context, limits)
        self._connect()

    def _connect(self) -> None:
        self._socket.setsockopt(zmq.ROUTING_ID, b"\x01" + secrets.token_bytes(ROUTING_ID_BYTES - 1))
        allow_ipv6(self._socket, self._endpoint)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_FIRST_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._socket.connect(self._endpoint)

    def reopen(self) -> None:
        """Connect again under a fresh routing id. Messages queued in either direction are lost.

        The fresh id keeps late answers to the old connection from arriving here.
        """
        self._poller.unregister(self._socket)
        self._socket.close(linger=0)
        self._socket = self._open()
        self._connect()
        self._poller.register(self._socket, zmq.POLLIN)

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """Wait up to `timeout_ms`; return waiting messages as (b"", frames), one turn at most."""
        if timeout_ms > 0:
            self._wait(timeout_ms)
        messages: list[tuple[bytes, list[bytes]]] = []
        left = self._turn_bytes
        for _ in range(self._turn_events):
            received = self._receive(REQUEST_FRAMES_MAX - 1, REQUEST_BYTES_MAX)
            if received is None:
                break
            frames, count, size = received
            left -= size
            if count == len(frames):  # OnceMQ's broker never sends more
                messages.append((b"", frames))
            if left <= 0:
                break
        return messages

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Hand over a message; False if the queue to the broker is full."""
        del peer
        return self._send(list(frames))
