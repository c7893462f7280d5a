"""The queue and consumer inside one process: each id is stored once and handled once."""

from __future__ import annotations

import gc
import itertools
import shelve
import threading
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import BufferFull, DiskFull, IdConflict, InvalidName, ValueNotEncodable
from oncemq.library.embedded.ledger import LedgerStore
from oncemq.library.embedded.queue import ExactlyOnceConsumer, ExactlyOnceQueue
from oncemq.sim.disk.disk import SimDisk
from oncemq.storage.memory import MemoryDisk
from tests.crashes import crashes


def handled(consumer: ExactlyOnceConsumer) -> list[Any]:
    found: list[Any] = []
    count = consumer.poll_and_process(found.append)
    assert count == len(found)
    return found


def test_each_id_is_stored_once() -> None:
    """A second send of an id tells the first offset and stores nothing."""
    queue = ExactlyOnceQueue()
    first = queue.send("a", {"x": 1, "y": 2})
    assert (first.offset, first.duplicate) == (0, False)
    assert queue.send("b", "two").offset == 1
    again = queue.send("a", {"y": 2, "x": 1})
    assert (again.offset, again.duplicate) == (0, True)
    assert len(queue) == 2


def test_one_id_with_another_message_is_refused() -> None:
    """The stored message stays; the caller is told."""
    queue = ExactlyOnceQueue()
    queue.send("a", 1)
    with pytest.raises(IdConflict, match="'a'"):
        queue.send("a", 2)
    assert handled(ExactlyOnceConsumer(queue)) == [1]


def test_ids_of_different_types_are_different() -> None:
    """1, "1" and b"1" name three messages; what is no id is refused."""
    queue = ExactlyOnceQueue()
    ids: list[Any] = [1, "1", b"1", -1, 0]
    for number, one in enumerate(ids):
        assert queue.send(one, number).offset == number
    found: list[tuple[Any, Any]] = []
    ExactlyOnceConsumer(queue).poll_and_process(lambda one, value: found.append((one, value)))
    assert found == [(one, number) for number, one in enumerate(ids)]
    for wrong in (True, None, 1.5, "", b"\0int:1"):
        with pytest.raises(InvalidName):
            queue.send(wrong, "x")  # type: ignore[arg-type]
    with pytest.raises(ValueNotEncodable):
        queue.send("object", object())
    assert len(queue) == len(ids)


def test_the_handler_is_called_once_for_each_id() -> None:
    """Polling again hands over only what came since, in order."""
    queue = ExactlyOnceQueue()
    consumer = ExactlyOnceConsumer(queue)
    for number in range(3):
        queue.send(f"m{number}", number)
    assert handled(consumer) == [0, 1, 2]
    queue.send("m1", 1)
    queue.send("m3", 3)
    assert handled(consumer) == [3]
    assert handled(consumer) == []


def test_a_handler_that_raises_has_not_processed() -> None:
    """The error reaches the caller, earlier messages stay done, the failed one comes again."""
    queue = ExactlyOnceQueue()
    consumer = ExactlyOnceConsumer(queue)
    for number in range(4):
        queue.send(number, number)
    calls: list[int] = []

    def handler(message: int) -> None:
        calls.append(message)
        if message == 2 and calls.count(2) < 3:
            raise RuntimeError("not now")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            consumer.poll_and_process(handler)
    assert consumer.poll_and_process(handler) == 2
    assert calls == [0, 1, 2, 2, 2, 3]


def test_what_a_handler_sends_is_for_the_next_poll() -> None:
    """A handler that feeds its own queue does not keep a poll running for ever."""
    queue = ExactlyOnceQueue()
    consumer = ExactlyOnceConsumer(queue)
    queue.send(0, 0)

    def handler(message: int) -> None:
        queue.send(message + 1, message + 1)

    assert [consumer.poll_and_process(handler) for _ in range(3)] == [1, 1, 1]


def test_a_path_remembers_over_processes(tmp_path: Path) -> None:
    """A new queue is fed the same ids again: what the store knows is not handled again."""
    store = tmp_path / "deep" / "processed"
    queue = ExactlyOnceQueue()
    queue.send("a", "a")
    queue.send("b", "b")
    with ExactlyOnceConsumer(queue, store) as consumer:
        seen: list[str] = []

        def handler(message: str) -> None:
            seen.append(message)
            if message == "b":
                raise RuntimeError("killed in here")

        with pytest.raises(RuntimeError):
            consumer.poll_and_process(handler)
    again = ExactlyOnceQueue()
    for one in ("b", "a", "c"):
        again.send(one, one)
    with ExactlyOnceConsumer(again, str(store)) as consumer:
        assert handled(consumer) == ["b", "c"]


def test_a_kill_keeps_what_was_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is closed after the last message: its id is durable all the same."""
    disk = MemoryDisk()
    monkeypatch.setattr(LedgerStore, "in_directory", lambda path: LedgerStore(disk, path))
    queue = ExactlyOnceQueue()
    for number in range(100):
        queue.send(number, number)
    assert len(handled(ExactlyOnceConsumer(queue, "ledger"))) == 100
    disk.drop_locks()
    queue.send(100, 100)
    assert handled(ExactlyOnceConsumer(queue, "ledger")) == [100]


@pytest.mark.slow
def test_a_power_cut_at_every_disk_call_repeats_one_message_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a cut only the message that was being handled may come again; none is passed over."""
    repeated = []
    for fail_at in itertools.count(1):
        disk: list[SimDisk] = [SimDisk()]
        disk[0].fail_at = fail_at
        monkeypatch.setattr(
            LedgerStore, "in_directory", lambda path, disk=disk: LedgerStore(disk[0], path)
        )
        queue = ExactlyOnceQueue()
        for number in range(5):
            queue.send(number, number)
        calls: list[int] = []

        def run(queue: ExactlyOnceQueue = queue, calls: list[int] = calls) -> None:
            consumer = ExactlyOnceConsumer(queue, "ledger")
            consumer.poll_and_process(calls.append)
            consumer.close()

        if not crashes(run):
            assert calls == list(range(5)), "without a crash each is handled, once"
            break
        assert disk[0].calls == fail_at, "it crashed at the chosen call"
        before = list(calls)
        disk[0] = disk[0].power_cut()
        ExactlyOnceConsumer(queue, "ledger").poll_and_process(calls.append)
        assert sorted(set(calls)) == list(range(5))
        assert len(calls) <= 6
        assert calls[len(before) :] in (
            list(range(len(before), 5)),
            list(range(len(before) - 1, 5)),
        )
        repeated.append(len(calls) == 6)
    assert len(repeated) > 30
    assert True in repeated
    assert False in repeated


def test_a_full_disk_calls_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be remembered is not begun; it goes on when there is room."""
    disk = MemoryDisk()
    monkeypatch.setattr(LedgerStore, "in_directory", lambda path: LedgerStore(disk, path))
    queue = ExactlyOnceQueue()
    consumer = ExactlyOnceConsumer(queue, "ledger")
    monkeypatch.setattr("oncemq.library.embedded.ledger._COMMIT_BYTES", 5 * 1024 * 1024)
    disk.capacity = disk.used()
    queue.send("a", "a")
    found: list[Any] = []
    with pytest.raises(DiskFull):
        consumer.poll_and_process(found.append)
    assert found == []
    disk.capacity = None
    assert handled(consumer) == ["a"]


def test_a_mapping_or_a_set_of_the_user_remembers(tmp_path: Path) -> None:
    """The ids stand in the user's own store, under the ids that were given."""
    queue = ExactlyOnceQueue()
    queue.send("a", 1)
    queue.send("b", 2)
    known: dict[Any, Any] = {"a": True}
    assert handled(ExactlyOnceConsumer(queue, known)) == [2]
    assert known == {"a": True, "b": True}
    names: set[Any] = {"b"}
    assert handled(ExactlyOnceConsumer(queue, names)) == [1]
    assert names == {"a", "b"}
    with shelve.open(tmp_path / "store") as store:
        assert handled(ExactlyOnceConsumer(queue, store)) == [1, 2]
        assert handled(ExactlyOnceConsumer(queue, store)) == []
    with pytest.raises(TypeError):
        ExactlyOnceConsumer(queue, 5)  # type: ignore[arg-type]


def test_two_consumers_each_process_everything() -> None:
    """Consumers with stores of their own do not take messages from each other."""
    queue = ExactlyOnceQueue()
    one, other = ExactlyOnceConsumer(queue), ExactlyOnceConsumer(queue)
    queue.send("a", 1)
    assert handled(one) == [1]
    assert handled(other) == [1]


@pytest.mark.parametrize("window", [1, 3, 10])
def test_a_window_remembers_at_least_so_many_ids(window: int) -> None:
    """Old ids may be forgotten, the last `window` never; memory stays bounded meanwhile."""
    queue = ExactlyOnceQueue(dedup_window=window)
    consumer = ExactlyOnceConsumer(queue)
    for number in range(100):
        assert queue.send(number, number).duplicate is False
        assert handled(consumer) == [number]
        for known in range(max(0, number - window + 1), number + 1):
            ack = queue.send(known, known)
            assert (ack.offset, ack.duplicate) == (known, True)
        assert len(queue._shelves) <= 3
    with pytest.raises(IdConflict):
        queue.send(99, "other")
    assert queue.send(0, 0).duplicate is False
    assert handled(consumer) == []


def test_a_window_never_drops_what_is_not_processed() -> None:
    """Messages wait for every living consumer, whatever the window; order holds throughout."""
    queue = ExactlyOnceQueue(dedup_window=2)
    fast, slow = ExactlyOnceConsumer(queue), ExactlyOnceConsumer(queue)
    for number in range(20):
        queue.send(number, number)
        handled(fast)
    assert handled(slow) == list(range(20))
    del slow
    gc.collect()
    for number in range(20, 40):
        queue.send(number, number)
        handled(fast)
    assert len(queue._shelves) <= 3
    late = ExactlyOnceConsumer(queue)
    assert handled(late)[-1] == 39


def test_without_a_window_all_ids_are_remembered() -> None:
    """None means all."""
    queue = ExactlyOnceQueue(dedup_window=None)
    consumer = ExactlyOnceConsumer(queue)
    for number in range(300):
        queue.send(number, number)
    assert len(handled(consumer)) == 300
    assert queue.send(0, 0).duplicate is True


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "10"])
def test_a_window_that_is_no_number_is_refused(window: Any) -> None:
    """A wrong argument is found when the queue is made."""
    with pytest.raises(ValueError, match="dedup_window"):
        ExactlyOnceQueue(dedup_window=window)


def test_a_queue_that_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound a send is refused and nothing is stored; after reading it goes on."""
    monkeypatch.setattr("oncemq.library.embedded.queue.SEED_BYTES_MAX", 20_000)
    queue = ExactlyOnceQueue(dedup_window=2)
    consumer = ExactlyOnceConsumer(queue)
    sent = 0
    with pytest.raises(BufferFull):
        while sent < 1_000:
            queue.send(sent, b"x" * 1_000)
            sent += 1
    assert 10 < sent < 20
    assert len(handled(consumer)) == sent
    assert queue.send(sent, b"x").offset == sent


def test_threads_may_share_a_queue() -> None:
    """Four threads send the same ids: each is stored and handled once."""
    queue = ExactlyOnceQueue()
    new: list[int] = []

    def send() -> None:
        new.extend(n for n in range(100) if not queue.send(n, n).duplicate)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == list(range(100))
    assert sorted(handled(ExactlyOnceConsumer(queue))) == list(range(100))
