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

from oncemq import App
from oncemq.limits import DESCRIPTORS_SPARE, HANDLER_DESCRIPTORS
from oncemq.runtime.descriptors import (
    TooFewDescriptors,
    allow_descriptors,
    descriptors_in_use,
    keep_descriptors,
    reserve_used_up,
    with_descriptor,
)
from oncemq.runtime.os_disk import OsDisk
from oncemq.runtime.zmq_transport import DealerTransport, RouterTransport
from tests.process.house import ROOT, START_S, House
from tests.process.talker import Talker

ALLOWED = 400
FULL = ALLOWED * 3 // 4 - 5  # descriptors in use: the connections have used up what they may
SIEGE_S = 3.0  # how long the broker serves beside them
PARTITIONS = 60


def script_under(name: str, soft: int, hard: int) -> str:
    """Return a program that runs a script of the project with a limit on its descriptors."""
    return (
        "import resource, runpy, sys;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}));"
        f"sys.argv[0] = {str(ROOT / name)!r};"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )


LIMITED = script_under("broker.py", ALLOWED, ALLOWED)


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


def test_descriptors_are_counted_and_allowed_beforehand() -> None:
    """The limit is raised as far as needed; above the allowed maximum the sentence names both."""
    in_use = descriptors_in_use()
    reader, writer = os.pipe()
    try:
        assert descriptors_in_use() == in_use + 2
    finally:
        os.close(reader)
        os.close(writer)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with limited(in_use + 50):
        assert allow_descriptors(in_use + 50, "these") == (in_use + 50, in_use + 50)
        assert allow_descriptors(in_use + 90, "these") == (in_use + 50, in_use + 90)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (in_use + 90, hard)
        with pytest.raises(TooFewDescriptors) as refused:
            allow_descriptors(hard + 1, "the 9 partitions of topic t")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (in_use + 90, hard)
    assert str(refused.value) == (
        f"the 9 partitions of topic t need up to {hard + 1} open files in this process, which may "
        f"open {hard} (allow more before it starts: ulimit -n {hard + 1}; or use fewer partitions)"
    )


MANY = """
from oncemq import App
app = App()

@app.consumer("many", group="g")
def take(message, tx):
    pass
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("soft", "hard"), [(230, 230), (100, 300)], ids=["one connection", "a soft limit is raised"]
)
def test_many_partitions_take_two_descriptors_each(house: House, soft: int, hard: int) -> None:
    """60 partitions within 230 descriptors: one connection for all, and two files for a ledger.

    No work is left when the drain begins, so its bound ends nothing, short as it is.
    """
    (house.directory / "many.py").write_text(MANY)
    house.broker()
    house.command("topics", "create", "many", f"--partitions={PARTITIONS}")
    with App(broker=house.endpoint).producer("p") as producer:
        producer.send_many("many", range(3 * PARTITIONS)).result(START_S)
    script = script_under("consumer.py", soft, hard)
    arguments = ("many:app", f"--state={house.state}", "--until-idle=5", "--drain=0.001")
    consumer = house.start("consumer", "-c", script, *arguments)
    house.wait_for(consumer, "consumer.granted", PARTITIONS)
    used = len(os.listdir(f"/proc/{consumer.pid}/fd"))
    assert 2 * PARTITIONS < used < 2 * PARTITIONS + HANDLER_DESCRIPTORS
    consumer.wait(START_S, 0)
    assert consumer.summary()["processed"] == 3 * PARTITIONS
    house.refresh()
    assert house.history.of(consumer.pid)["process.descriptors"] == (soft != hard)


@pytest.mark.process
def test_too_few_descriptors_are_one_sentence(house: House) -> None:
    """A limit that no raising mends: exit 1 with the numbers and what to type, no traceback."""
    (house.directory / "many.py").write_text(MANY)
    house.broker()
    house.command("topics", "create", "many", f"--partitions={PARTITIONS}")
    script = script_under("consumer.py", 120, 120)
    consumer = house.start("consumer", "-c", script, "many:app", f"--state={house.state}")
    consumer.wait(START_S, 1)
    told = consumer.stderr()
    assert "the 60 partitions of topic many need up to" in told
    assert "which may open 120" in told
    assert "ulimit -n" in told
    assert "Traceback" not in told
    assert "ZMQError" not in told
