"""Connections that use up all descriptors: the broker goes on, and so do those it knows."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from oncemq.limits import DESCRIPTORS_SPARE
from oncemq.runtime.descriptors import keep_descriptors, reserve_used_up, with_descriptor
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.zmq_transport import DealerTransport, RouterTransport
from tests.process.house import ROOT, START_S, House
from tests.process.talker import Talker

ALLOWED = 400
FULL = ALLOWED * 3 // 4 - 5  # descriptors in use: the connections have used up what they may
SIEGE_S = 3.0  # how long the broker serves beside them
LIMITED = (
    "import resource, runpy, sys;"
    f"resource.setrlimit(resource.RLIMIT_NOFILE, ({ALLOWED}, {ALLOWED}));"
    f"sys.argv[0] = {str(ROOT / 'broker.py')!r};"
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@contextmanager
def limited(soft: int) -> Iterator[None]:
    """Lower the limit of this process for a moment. Its hard limit stays: it cannot be raised."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_disk_works_without_a_free_descriptor(tmp_path: Path) -> None:
    """Listing, creating, opening, locking and syncing directories use what is kept in reserve."""
    disk = OsDisk()
    in_use = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    taken: list[int] = []
    with limited(in_use + 20):
        try:
            with pytest.raises(OSError) as full:
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            assert full.value.errno == errno.EMFILE
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            path = str(tmp_path / "a")
            disk.create(path).close()
            disk.open(path).close()
            lock = disk.lock(path)
            assert lock is not None
            lock.release()
            disk.sync_directory(str(tmp_path))
            assert disk.list(str(tmp_path)) == ["a"]
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
            with pytest.raises(OSError):
                os.open("/dev/null", os.O_RDONLY)
        finally:
            for descriptor in taken:
                os.close(descriptor)


def test_others_take_one_descriptor_at_a_time() -> None:
    """Whoever opens at the same moment gets what one attempt uncovered, never the whole reserve."""
    in_use = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    taken: list[int] = []

    def take_all() -> None:
        with pytest.raises(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))

    quick = iter([True, True, True, False])

    def opening() -> int:
        if next(quick):  # a connection comes first, as many as there is room for
            take_all()
        return os.open("/dev/null", os.O_RDONLY)

    with limited(in_use + 20):
        try:
            take_all()
            before = len(taken)
            taken.append(with_descriptor(opening))
            assert len(taken) - before == 2 + 1  # the first attempt is below the limit
        finally:
            for descriptor in taken:
                os.close(descriptor)


def test_other_errors_are_not_tried_again() -> None:
    """Only a missing descriptor is a reason for a second attempt."""
    calls = []

    def opening() -> None:
        calls.append(1)
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"):
        with_descriptor(opening)
    assert calls == [1]


def test_a_limit_that_leaves_room_stays() -> None:
    """Who may raise the limit anyway has a reserve."""
    with limited(100):
        keep_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 100


def test_when_the_reserve_is_taken_all_connections_are_closed_and_taken_again() -> None:
    """Half of the reserve gone: the socket listens anew, and a client is served again."""
    events = Told()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = RouterTransport(events, context=context)
    endpoint = router.bind("tcp://127.0.0.1:*")
    dealer = DealerTransport(endpoint, context=context)
    taken: list[int] = []
    try:
        dealer.send(b"", [b"one"])
        assert [frames for _, frames in router.poll(60_000)] == [[b"one"]]
        in_use = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        with limited(in_use + 10 + DESCRIPTORS_SPARE // 2 + 1):
            with pytest.raises(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            with limited(in_use + 10):
                assert reserve_used_up()
                router.poll(0)
                assert events.names == ["wire.closed"]
        for descriptor in taken:
            os.close(descriptor)
        taken.clear()
        assert not reserve_used_up()
        deadline = time.monotonic() + 60
        got: list[list[bytes]] = []
        while not got and time.monotonic() < deadline:
            dealer.send(b"", [b"two"])
            got = [frames for _, frames in router.poll(100)]
        assert got[:1] == [[b"two"]]
        assert events.names == ["wire.closed", "wire.opened"]
    finally:
        for descriptor in taken:
            os.close(descriptor)
        dealer.close()
        router.close()
        context.term()


class Told:
    """Events by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def emit(self, event: str, **_fields: Any) -> None:
        self.names.append(event)


@pytest.mark.process
def test_connections_beyond_the_limit_stop_nobody(house: House) -> None:
    """More silent connections than descriptors: who is connected is served, the broker lives."""
    broker = house.start(
        "broker", "-c", LIMITED, f"--data={house.data}", f"--bind={house.endpoint}"
    )
    house.wait_for(broker, "broker.ready")
    host, _, port = house.endpoint.removeprefix("tcp://").rpartition(":")
    peers: list[socket.socket] = []
    with Talker(house.endpoint) as talker:
        talker.become()
        sent = used = 0
        try:
            for number in range(3 * ALLOWED):
                peer = socket.socket()
                peers.append(peer)
                peer.setblocking(False)
                peer.connect_ex((host, int(port)))
                if number % 50 == 0:
                    assert talker.store(f"m{sent}") == sent
                    sent += 1
                    used = max(used, len(os.listdir(f"/proc/{broker.pid}/fd")))
            started = time.monotonic()
            while used < FULL or time.monotonic() < started + SIEGE_S:
                assert talker.store(f"m{sent}") == sent
                sent += 1
                used = max(used, len(os.listdir(f"/proc/{broker.pid}/fd")))
                assert time.monotonic() < started + START_S, f"only {used} descriptors are used"
        finally:
            for peer in peers:
                peer.close()
        assert broker.exit_code is None, broker.told()
        assert talker.stored() == [f"m{number}" for number in range(sent)]
    with Talker(house.endpoint) as another:
        assert another.stored() == [f"m{number}" for number in range(sent)]
    broker.stop(START_S, 0)
