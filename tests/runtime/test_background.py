"""Work beside the turn: results come back to the thread of the turn, errors too."""

from __future__ import annotations

import threading
import time

import pytest

from oncemq.runtime.background import BackgroundThreads

PATIENCE_S = 20.0


def finished(threads: BackgroundThreads) -> None:
    """Wait until something is done, and do what it wants done in the turn."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if done := threads.finished():
            for one in done:
                one()
            return
        time.sleep(0.005)
    raise AssertionError("nothing was ever done")


def test_the_job_runs_elsewhere_and_its_end_runs_here():
    """Only the work leaves the thread of the turn."""
    threads, seen = BackgroundThreads(), []

    def job(stop):
        assert not stop()
        seen.append(threading.current_thread())
        return lambda: seen.append(threading.current_thread())

    threads.start(job)
    finished(threads)
    threads.close()
    assert seen[0] is not threading.current_thread()
    assert seen[1] is threading.current_thread()
    assert threads.finished() == []


def test_what_a_job_raises_is_raised_in_the_turn():
    """A failed sync in a thread ends the actor as one in the turn does."""
    threads = BackgroundThreads()

    def job(stop):
        raise OSError(5, "input/output error")

    threads.start(job)
    with pytest.raises(OSError, match="input/output"):
        finished(threads)
    threads.close()


def test_settle_tells_jobs_to_stop_and_waits():
    """A long merge does not keep a process from ending; what must be whole is waited for."""
    threads, ends = BackgroundThreads(), []

    def until_told(stop):
        while not stop():
            time.sleep(0.001)
        return lambda: ends.append("stopped")

    threads.start(until_told)
    for done in threads.settle():
        done()
    assert ends == ["stopped"]

    threads.start(lambda stop: (time.sleep(0.05), lambda: ends.append(stop()))[1])
    for done in threads.settle(stop=False):
        done()
    assert ends == ["stopped", False]
    threads.start(until_told)
    threads.close()


def test_a_long_job_leaves_room_for_a_short_one():
    """Two threads: a file that is due is written while a large merge goes on."""
    threads, release = BackgroundThreads(), threading.Event()
    threads.start(lambda stop: (release.wait(PATIENCE_S), lambda: None)[1])
    done = []
    threads.start(lambda stop: lambda: done.append("short"))
    finished(threads)
    assert done == ["short"]
    release.set()
    threads.close()
