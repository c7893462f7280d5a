"""One connection to the broker for many clients of a process: each has a channel of it.

Theory of operation. A consumer process has a client for each partition. A socket for each would
take four descriptors, a thread's attention and heartbeats of its own, so they share one. Nothing of
it is on the wire: a channel is a range of request numbers, and an answer repeats the number of its
request. The first number of a channel lies above all that an earlier client of that range has used,
so a late answer reaches no one else.

What a client relies on when it has a connection of its own must stay true: the broker that answers
is the one that it said hello to. A broker knows a connection and not its channels, so a hello of one
client would open it for the others too, after a restart of the broker also. The channels keep that
apart. What they send before their own Welcome is dropped, and so is what comes for them. When the
connection is another one (one of them gave it up, or the broker does not know it), or a Welcome
names another epoch or history of the broker, every other channel is told so: `reopened`. Its client then says
hello again.

One client that hears nothing does not take the connection from the others: it is opened anew only
if none of them has heard anything since.
"""

from __future__ import annotations

from ..codec import wire
from ..errors import OnceMQError
from ..ports import Events, Frames
from ..protocol import Failure, Hello, Welcome
from .consumer import ReopenedTransport

_RANGE_BITS = 43  # of the numbers of a channel: a million requests a second for three months
_CHANNELS_MAX = 1 << (63 - _RANGE_BITS)  # numbers on the wire have 63 bits


class Channel:
    """The transport of one client. Made by `Channels.open`."""

    def __init__(self, shared: Channels, first_request: int) -> None:
        self._shared = shared
        self.first_request = first_request  # what its client begins to count with
        # Whether its client must say hello again. The owner of the client tells it, and clears this.
        self.reopened = False
        self.inbox: list[tuple[bytes, list[bytes]]] = []
        # Number of the last request, and of the last hello.
        self.last_request = first_request - 1
        self.hello_request = 0
        # The connection, by its number, in which it said hello last, and that in which the answer
        # came; 0: in none.
        self.greeted = 0
        self.welcomed = 0
        # How much the connection had received when something came for this channel.
        self.heard_at = shared.received

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        """Return what has come for this client; never waits."""
        del timeout_ms
        taken, self.inbox = self.inbox, []
        return taken

    def send(self, peer: bytes, frames: Frames) -> bool:
        """Hand over a message; False: the queue is full, or the client must say hello first."""
        del peer
        return self._shared.send(self, frames)

    def reopen(self) -> None:
        """The client has heard nothing for long; it says hello next."""
        self._shared.give_up(self)

    def lose(self) -> None:
        """What this channel knows of the connection does not count any more."""
        self.reopened = True
        self.welcomed = 0
        self.inbox.clear()

    def close(self) -> None:
        """Answers that are still on their way are dropped."""
        self._shared.leave(self)


class Channels:
    """The connection. One thread calls all of it."""

    def __init__(self, transport: ReopenedTransport, events: Events) -> None:
        """The caller closes `transport`."""
        self._transport = transport
        self._events = events
        # Invariant: the numbers of a channel have its place in their upper bits.
        self._channels: dict[int, Channel] = {}
        # First numbers for new channels in places that were used before.
        self._free: list[int] = []
        self._places = 0
        # Counts the connections, also those that a restarted broker has forgotten. From 1.
        self._connection = 1
        # Which broker has answered on this connection: epoch and history of its log; None: none yet.
        self._broker: tuple[int, bytes, bytes] | None = None
        self.received = 0  # messages
        self._malformed = 0

    def open(self) -> Channel:
        """Return a channel that nobody has used."""
        if self._free:
            first = self._free.pop()
        else:
            assert self._places < _CHANNELS_MAX, "far above the bound on partitions"
            first = (self._places << _RANGE_BITS) + 1
            self._places += 1
        channel = Channel(self, first)
        self._channels[first >> _RANGE_BITS] = channel
        return channel

    def leave(self, channel: Channel) -> None:
        place = channel.first_request >> _RANGE_BITS
        if self._channels.get(place) is channel:
            del self._channels[place]
            self._free.append(channel.last_request + 1)

    def poll(self, timeout_ms: int) -> list[Channel]:
        """Wait up to `timeout_ms`; return the channels whose clients have something to do."""
        touched: dict[Channel, None] = {}
        for _, frames in self._transport.poll(timeout_ms):
            channel = self._take(frames)
            if channel is not None:
                touched[channel] = None
        told = [channel for channel in self._channels.values() if channel.reopened]
        return list(touched | dict.fromkeys(told))

    # --- of the channels -------------------------------------------------------------------------

    def send(self, channel: Channel, frames: Frames) -> bool:
        head = wire.peek(frames)
        assert head is not None, "what a client sends has a number"
        kind, request = head
        channel.last_request = max(channel.last_request, request)
        if kind is Hello:
            channel.greeted, channel.hello_request = self._connection, request
            channel.welcomed = 0
        elif channel.welcomed != self._connection:
            return False
        return self._transport.send(b"", frames)

    def give_up(self, channel: Channel) -> None:
        """Open the connection anew, unless it is not the one that was silent."""
        others_heard = self.received > channel.heard_at
        channel.heard_at = self.received
        if channel.greeted == self._connection and not others_heard:
            self._transport.reopen()
            self._begin(channel)

    # --- inside ----------------------------------------------------------------------------------

    def _begin(self, cause: Channel) -> None:
        """The connection is another one: all but the client that found out must be told."""
        self._connection += 1
        self._broker = None
        for channel in self._channels.values():
            if channel is not cause and channel.greeted:
                channel.lose()

    def _take(self, frames: list[bytes]) -> Channel | None:
        """Put a message where it belongs; return the channel, or None if it was dropped."""
        self.received += 1
        head = wire.peek(frames)
        if head is None:
            self._malformed += 1
            if self._malformed & (self._malformed - 1) == 0:
                reason = "an answer without a number"
                self._events.emit(
                    "wire.malformed", code="dropped", reason=reason, count=self._malformed
                )
            return None
        kind, request = head
        channel = self._channels.get(request >> _RANGE_BITS)
        if channel is None or request < channel.first_request:
            return None  # for a client that has ended
        channel.heard_at = self.received
        if not self._belongs(channel, kind, request, frames):
            return None
        channel.inbox.append((b"", frames))
        return channel

    def _belongs(
        self, channel: Channel, kind: type | None, request: int, frames: list[bytes]
    ) -> bool:
        """Return whether an answer comes from the broker that the client said hello to."""
        if kind is Welcome:
            if channel.greeted != self._connection:
                return False
            self._welcomed(channel, frames)
            return True
        if kind is Failure and request == channel.hello_request:
            return channel.greeted == self._connection
        if channel.welcomed != self._connection:
            return False
        if kind is Failure and _is_stranger(frames):
            if request < channel.hello_request:
                return False  # about what was before its last hello
            channel.welcomed = 0
            self._begin(channel)
        return True

    def _welcomed(self, channel: Channel, frames: list[bytes]) -> None:
        welcome = _decoded(frames)
        if not isinstance(welcome, Welcome):
            return  # it cannot be read: the client reports that
        broker = (welcome.epoch, welcome.log_id, welcome.mark)
        if self._broker not in {None, broker}:
            # The broker was restarted, and this hello has made the connection known to the new one.
            for other in self._channels.values():
                if other is not channel and other.welcomed == self._connection:
                    other.lose()
        self._broker = broker
        channel.welcomed = self._connection


def _decoded(frames: list[bytes]) -> object:
    try:
        return wire.decode(b"", frames).message
    except OnceMQError:
        return None


def _is_stranger(frames: list[bytes]) -> bool:
    """Return whether the broker does not know the connection."""
    failure = _decoded(frames)
    return isinstance(failure, Failure) and failure.code == "hello_required"
