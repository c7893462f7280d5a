"""The ZeroMQ transports: bounded, never blocking, woken from other threads."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from oncemq.limits import LIMITS, REQUEST_FRAMES_MAX, ROUTING_ID_BYTES, Limits
from oncemq.runtime.zmq_transport import TURN_BUSY_S, CannotBind, DealerTransport, RouterTransport

WAIT_MS = 60_000


class Events:
    """Collects structured events."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.seen.append((event, fields))


@pytest.fixture
def bound() -> Iterator[Callable[[Limits], RouterTransport]]:
    """Make bound routers; `endpoint` and `events` are beside each."""
    with contextlib.ExitStack() as stack:

        def make(limits: Limits) -> RouterTransport:
            router = RouterTransport(Events(), limits=limits)
            stack.callback(router.close)
            router.endpoint = router.bind("tcp://127.0.0.1:0")
            return router

        yield make


@pytest.fixture
def router(bound) -> RouterTransport:
    return bound(LIMITS)


@pytest.fixture
def dealer(router) -> Iterator[DealerTransport]:
    dealer = DealerTransport(router.endpoint)
    yield dealer
    dealer.close()


def receive(transport: Any, count: int) -> list[tuple[bytes, list[bytes]]]:
    """Poll until `count` messages are there."""
    messages: list[tuple[bytes, list[bytes]]] = []
    deadline = time.monotonic() + WAIT_MS / 1000
    while len(messages) < count and time.monotonic() < deadline:
        messages += transport.poll(100)
    assert len(messages) == count
    return messages


def test_there_and_back(router, dealer):
    """Frames arrive as they were sent, and the answer reaches the peer that asked."""
    assert dealer.send(b"", [b"header", memoryview(b"body")])
    ((peer, frames),) = receive(router, 1)
    assert (len(peer), frames) == (ROUTING_ID_BYTES, [b"header", b"body"])
    assert router.send(peer, [b"answer"])
    assert receive(dealer, 1) == [(b"", [b"answer"])]


def test_an_unknown_peer_is_told_at_once(router):
    """A message for an unknown peer is refused, neither queued nor silently lost."""
    assert not router.send(b"x" * ROUTING_ID_BYTES, [b"answer"])
    assert router.refused == 1


def test_a_full_queue_refuses_and_does_not_block():
    """Without a broker the queue fills to its bound; then send returns False at once."""
    dealer = DealerTransport("tcp://127.0.0.1:9", limits=Limits(turn_events_max=5))
    try:
        taken = sum(dealer.send(b"", [b"x"]) for _ in range(1000))
        assert 0 < taken < 1000
    finally:
        dealer.close()


def test_one_poll_takes_one_turn_at_most(router, dealer):
    """What waits beyond a turn's worth stays for the next poll, in order."""
    for number in range(LIMITS.turn_events_max + 10):
        assert dealer.send(b"", [b"%d" % number])
    deadline = time.monotonic() + WAIT_MS / 1000
    got: list[bytes] = []
    while len(got) < LIMITS.turn_events_max + 10 and time.monotonic() < deadline:
        polled = router.poll(100)
        assert len(polled) <= LIMITS.turn_events_max
        got += [frames[0] for _, frames in polled]
    assert got == [b"%d" % number for number in range(LIMITS.turn_events_max + 10)]


def test_a_turn_is_bounded_in_bytes(bound):
    """A poll stops taking messages once a turn's bytes are there."""
    router = bound(Limits(turn_bytes_max=1000))
    dealer = DealerTransport(router.endpoint)
    for _ in range(20):
        dealer.send(b"", [bytes(400)])
    deadline = time.monotonic() + WAIT_MS / 1000
    got = 0
    while got < 20 and time.monotonic() < deadline:
        polled = len(router.poll(100))
        assert polled <= 3
        got += polled
    dealer.close()
    assert got == 20


def test_a_full_turn_that_computed_long_is_followed_by_smaller_ones(bound):
    """And by larger ones again, once the same bytes are little work."""
    router = bound(Limits(turn_bytes_max=4000))
    dealer = DealerTransport(router.endpoint)
    for _ in range(200):
        dealer.send(b"", [bytes(400)])
    time.sleep(0.1)  # all have arrived
    sizes = []
    for busy in [True] * 6 + [False] * 6:
        sizes.append(len(router.poll(100)))
        until = time.thread_time() + TURN_BUSY_S * 1.5
        while busy and time.thread_time() < until:
            pass
    dealer.close()
    assert sizes[:2] == [10, 5]
    assert sizes[5] == 1
    assert sizes[6:] == sorted(sizes[6:])
    assert sizes[-1] == 10


@pytest.mark.parametrize(
    ("frames", "identity"),
    [
        ([b"x"] * REQUEST_FRAMES_MAX, b"i" * ROUTING_ID_BYTES),
        ([b"x"] * 1000, b"i" * ROUTING_ID_BYTES),
        ([bytes(3_000_000), bytes(3_000_000)], b"i" * ROUTING_ID_BYTES),
        ([b"x"], b"short"),
        ([b"x"], b"l" * 255),
    ],
)
def test_what_is_out_of_bounds_is_dropped_and_counted(router, dealer, frames, identity):
    """Too many frames, too many bytes, a foreign routing id: dropped and reported; other peers go on."""
    context = zmq.Context()
    hostile = context.socket(zmq.DEALER)
    hostile.setsockopt(zmq.LINGER, 0)
    hostile.setsockopt(zmq.ROUTING_ID, identity)
    hostile.connect(router.endpoint)
    hostile.send_multipart(frames)
    deadline = time.monotonic() + WAIT_MS / 1000
    while router.dropped == 0 and time.monotonic() < deadline:
        assert router.poll(50) == []
    assert router.dropped == 1
    assert [name for name, _ in router._events.seen] == ["wire.malformed"]
    hostile.close(linger=0)
    context.term()
    dealer.send(b"", [b"hello"])
    assert receive(router, 1)[0][1] == [b"hello"]


def test_a_flood_of_drops_is_told_in_few_events(router):
    """Drops are reported at powers of two."""
    for _ in range(1000):
        router._drop("test")
    assert [fields["count"] for _, fields in router._events.seen] == [2**n for n in range(10)]


def test_wake_ends_a_poll_from_another_thread(dealer):
    """A thread that waits for messages is woken long before its time."""
    timer = threading.Timer(0.05, dealer.wake)
    started = time.monotonic()
    timer.start()
    assert dealer.poll(WAIT_MS) == []
    assert time.monotonic() - started < WAIT_MS / 2000
    timer.join()


def test_a_wake_before_the_poll_is_not_lost(dealer):
    """The next poll returns at once, and later ones wait again."""
    dealer.wake()
    started = time.monotonic()
    assert dealer.poll(WAIT_MS) == []
    assert time.monotonic() - started < WAIT_MS / 2000
    started = time.monotonic()
    assert dealer.poll(100) == []
    assert time.monotonic() - started >= 0.09


def test_many_wakes_never_block(dealer):
    """A full pipe means woken already."""
    for _ in range(100_000):
        dealer.wake()
    assert dealer.poll(WAIT_MS) == []


def test_reopen_takes_a_fresh_routing_id(router, dealer):
    """A client that gave up a connection comes back under a fresh routing id."""
    dealer.send(b"", [b"1"])
    ((first, _),) = receive(router, 1)
    dealer.reopen()
    dealer.send(b"", [b"2"])
    ((second, frames),) = receive(router, 1)
    assert (frames, first != second, len(second)) == ([b"2"], True, ROUTING_ID_BYTES)
    assert router.send(second, [b"answer"])
    assert receive(dealer, 1) == [(b"", [b"answer"])]


def test_two_routers_cannot_share_an_endpoint(router):
    """The second bind names the endpoint and the reason."""
    second = RouterTransport(Events())
    try:
        with pytest.raises(CannotBind, match=r"address already in use \(stop the process that"):
            second.bind(router.endpoint)
    finally:
        second.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
def test_an_ipv6_address_is_bound_and_met() -> None:
    """Both ends speak IPv6 where the endpoint has such an address, after a reopening too."""
    router = RouterTransport(Events())
    dealer = None
    try:
        endpoint = router.bind("tcp://[::1]:0")
        assert endpoint.startswith("tcp://[::1]:")
        dealer = DealerTransport(endpoint)
        dealer.send(b"", [b"one"])
        assert [frames for _, frames in receive(router, 1)] == [[b"one"]]
        dealer.reopen()
        dealer.send(b"", [b"two"])
        assert [frames for _, frames in receive(router, 1)] == [[b"two"]]
    finally:
        router.close()
        if dealer is not None:
            dealer.close()


def test_localhost_is_still_met_at_an_ipv4_address(router) -> None:
    """A name is not looked up as IPv6: a broker on 127.0.0.1 would not be met."""
    dealer = DealerTransport(router.endpoint.replace("127.0.0.1", "localhost"))
    try:
        dealer.send(b"", [b"one"])
        assert [frames for _, frames in receive(router, 1)] == [[b"one"]]
    finally:
        dealer.close()


@pytest.mark.parametrize(
    ("endpoint", "hint"),
    [
        ("ipc://{tmp}/absent/s", "make the directory"),
        ("ipc://{tmp}/file/s", "make the directory"),
        ("ipc://{tmp}/" + "a" * 200, "a shorter path"),
        ("ipc://{tmp}/file", "choose another --bind"),
        ("tcp://192.0.2.1:7400", "an address of this machine"),
        ("tcp://no-such-device:7400", "an address of this machine"),
        ("ipc:///proc/s", "choose a|make the directory"),
    ],
)
def test_the_hint_follows_the_cause(tmp_path, endpoint: str, hint: str) -> None:
    """Only an address in use has another process to be stopped; no file is taken away."""
    (tmp_path / "file").write_text("mine")
    router = RouterTransport(Events())
    try:
        with pytest.raises(CannotBind) as caught:
            router.bind(endpoint.format(tmp=tmp_path))
    finally:
        router.close()
    assert re.search(hint, caught.value.hint), caught.value
    assert "process" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_path_that_somebody_listens_at_is_not_taken_away(tmp_path):
    """ZeroMQ would steal the path of a live listener; one that was left behind is free."""
    endpoint = f"ipc://{tmp_path}/s"
    first, second, third = (RouterTransport(Events()) for _ in range(3))
    try:
        first.bind(endpoint)
        with pytest.raises(CannotBind, match="another process listens there"):
            second.bind(endpoint)
        left_behind = tmp_path / "left"
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(left_behind))
        assert third.bind(f"ipc://{left_behind}") == f"ipc://{left_behind}"
    finally:
        for transport in (first, second, third):
            transport.close()


def test_closing_twice_is_closing_once(router):
    """Close may be called from a finally; a wake after it does nothing."""
    transport = DealerTransport(router.endpoint)
    transport.close()
    transport.close()
    transport.wake()
    assert transport._socket.closed
