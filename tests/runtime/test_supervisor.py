"""The supervisor: what it restarts, when it gives up, and that a stop goes through it once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import LogInUse
from oncemq.runtime.process import end_frozen_owner, owner_alive, owner_facts, stop_signals
from oncemq.runtime.supervisor import RestartPolicy, Supervisor

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """Events kept in memory; `react` may answer one of them."""

    def __init__(self, react: Any = None) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.react = react

    def emit(self, event: str, **fields: Any) -> None:
        self.seen.append((event, fields))
        if self.react is not None:
            self.react(event, fields)

    def names(self) -> list[str]:
        return [event.removeprefix("supervise.") for event, _ in self.seen]


def policy(**changes: Any) -> RestartPolicy:
    return RestartPolicy(rng=random.Random(1), **changes)


def test_pauses_grow_to_their_bound(rng: random.Random) -> None:
    """Each crash doubles the pause; jitter only shortens it, by half at most."""
    rule = RestartPolicy(limit=100, backoff_first_s=0.1, backoff_max_s=1.0, rng=rng)
    pauses = [rule.after_crash(float(n) / 10) for n in range(8)]
    for pause, full in zip(pauses, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], strict=True):
        assert pause is not None
        assert full / 2 <= pause <= full


def test_too_many_crashes_in_the_window_end_it() -> None:
    """The limit counts within the window only."""
    rule = policy(limit=3, window_s=60.0)
    assert rule.after_crash(0.0) is not None
    assert rule.after_crash(30.0) is not None
    assert rule.after_crash(61.0) is not None, "the first one has left the window"
    assert rule.after_crash(62.0) is None


def test_a_long_quiet_run_starts_the_pauses_anew() -> None:
    """A crash a day is not a crash loop."""
    rule = policy(limit=3, window_s=60.0, backoff_first_s=0.1)
    for day in range(10):
        pause = rule.after_crash(day * 86_400.0)
        assert pause is not None
        assert pause <= 0.1


@pytest.mark.process
@pytest.mark.parametrize("code", [0, 2, 3])
def test_final_exit_codes_are_not_restarted(code: int) -> None:
    """Done, wrong usage and fenced: starting again would change nothing, or do harm."""
    events = Recorder()
    assert Supervisor(["sh", "-c", f"exit {code}"], events, policy()).run() == code
    assert events.names() == ["started", "exited"]


@pytest.mark.process
def test_crashes_are_restarted_until_the_limit() -> None:
    """When it gives up, the child's own exit code comes out."""
    events = Recorder()
    rule = policy(limit=3, backoff_first_s=0.001)
    assert Supervisor(["sh", "-c", "exit 7"], events, rule).run() == 7
    assert events.names() == ["started", "exited", "restarting"] * 2 + [
        "started",
        "exited",
        "gave_up",
    ]


@pytest.mark.process
def test_a_killed_child_is_restarted(tmp_path: Path) -> None:
    """SIGKILL is a crash; the next run may well succeed."""
    script = f"test -e {tmp_path}/again && exit 0; touch {tmp_path}/again; kill -9 $$"
    events = Recorder()
    assert Supervisor(["sh", "-c", script], events, policy(backoff_first_s=0.001)).run() == 0
    assert events.names() == ["started", "exited", "restarting", "started", "exited"]
    assert events.seen[1][1]["signal"] == "SIGKILL"


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_the_child_once(number: signal.Signals, tmp_path: Path) -> None:
    """Even when the whole process group is signalled, as terminals and runners do.

    Twice would mean "exit at once". The child ends in its own way and is not started again.
    """
    child = (
        "import signal, sys, time\n"
        "heard = []\n"
        "def on(number, frame):\n"
        "    heard.append(number)\n"
        f"signal.signal({int(number)}, on)\n"
        "print('ready', flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.1)\n"
        "sys.exit(40 + len(heard))\n"
    )
    logs = ["--log-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "oncemq", "supervise", *logs, "--", sys.executable, "-c", child],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    ) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"ready\n"
        os.killpg(supervisor.pid, number)
        assert supervisor.stdout.read() == b"", "it was not started again"
    assert supervisor.returncode == 41
    events = (tmp_path / f"supervise-{supervisor.pid}.jsonl").read_text("utf-8")
    assert [json.loads(line)["event"] for line in events.splitlines()] == [
        "process.start",
        "supervise.started",
        "supervise.exited",
        "process.stop",
    ]


@pytest.mark.process
def test_a_stop_during_the_pause_ends_it() -> None:
    """Nothing is started after a stop."""

    def react(event: str, _fields: dict[str, Any]) -> None:
        if event == "supervise.restarting":
            os.kill(os.getpid(), signal.SIGTERM)

    events = Recorder(react)
    rule = policy(backoff_first_s=3600.0, backoff_max_s=3600.0)
    assert Supervisor(["sh", "-c", "exit 9"], events, rule).run() == 9
    assert events.names() == ["started", "exited", "restarting"]


@pytest.mark.process
def test_the_command_ends_as_its_child_did() -> None:
    """Status and last event agree; a command that cannot be started is wrong usage."""
    supervise = [sys.executable, "-m", "oncemq", "supervise", "--"]
    done = subprocess.run(
        [*supervise, "sh", "-c", "exit 3"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    last = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, last["event"], last["exit_code"]) == (3, "process.stop", 3)
    done = subprocess.run(
        [*supervise, "no-such-command"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.endswith(
        "cannot start no-such-command: no such file or directory: no-such-command\n"
    )


@pytest.mark.process
def test_staying_outlasts_a_child_that_is_done() -> None:
    """A runner that ends all when one process ends does not see the end of a producer."""

    def react(event: str, _fields: dict[str, Any]) -> None:
        if event == "supervise.staying":
            os.kill(os.getpid(), signal.SIGTERM)

    events = Recorder(react)
    assert Supervisor(["true"], events, policy(), stay=True).run() == 0
    assert events.names() == ["started", "exited", "staying"]
    events = Recorder(react)
    assert Supervisor(["sh", "-c", "exit 3"], events, policy(), stay=True).run() == 3
    assert events.names() == ["started", "exited"]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_a_child_does_not_outlive_a_killed_supervisor() -> None:
    """Nobody is left behind to hold a port or a lock."""
    with subprocess.Popen(
        [sys.executable, "-m", "oncemq", "supervise", "--", "sh", "-c", "echo $$; exec sleep 3600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as supervisor:
        assert supervisor.stdout is not None
        child = os.pidfd_open(int(supervisor.stdout.readline()))
        supervisor.kill()
        try:
            assert supervisor.stdout.read() == b"", "end of file: every holder of the pipe is gone"
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


@pytest.fixture
def sleeper() -> Iterator[tuple[subprocess.Popen[bytes], dict[str, str | int]]]:
    """A process that has printed its facts and now sleeps."""
    code = (
        "import json, time\n"
        "from oncemq.runtime.process import owner_facts\n"
        "print(json.dumps(owner_facts()), flush=True)\n"
        "time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.kill()


def test_this_process_is_alive_and_another_boot_is_not() -> None:
    """Facts prove life and death; what they cannot prove counts as life."""
    facts = owner_facts()
    assert owner_alive(facts)
    assert not owner_alive({**facts, "boot_id": "of yesterday"})
    assert not owner_alive({**facts, "start_time": "1"}), "our pid, but another process"
    assert owner_alive({**facts, "host": "elsewhere", "boot_id": "other"})
    assert owner_alive({**facts, "pid_namespace": "pid:[1]", "pid": 999_999_999})


def test_takeover_leaves_alone_what_it_cannot_prove() -> None:
    """A running owner, or one of another host, is never killed."""
    facts = owner_facts()
    with pytest.raises(LogInUse, match="not frozen"):
        end_frozen_owner(facts)
    with pytest.raises(LogInUse, match="elsewhere"):
        end_frozen_owner({**facts, "host": "elsewhere"})
    end_frozen_owner({**facts, "start_time": "1"})  # gone: nothing to end, and we still run


@pytest.mark.process
def test_takeover_ends_a_frozen_owner(
    sleeper: tuple[subprocess.Popen[bytes], dict[str, str | int]],
) -> None:
    """Running: refused. Stopped: killed, and gone when the call returns."""
    process, facts = sleeper
    with pytest.raises(LogInUse):
        end_frozen_owner(facts)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert owner_alive(facts)
    end_frozen_owner(facts)
    assert not owner_alive(facts), "a zombie holds nothing"
    assert process.wait() == -signal.SIGKILL
    assert not owner_alive(facts)


def test_the_first_stop_signal_calls_back() -> None:
    """One call, and the handlers of before are put back."""
    heard: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals(heard.append):
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.process
def test_a_second_stop_signal_exits_at_once() -> None:
    """Whoever asks twice does not want to wait; no clean-up runs."""
    code = (
        "import signal\n"
        "from oncemq.runtime.process import stop_signals\n"
        "with stop_signals(lambda number: print('first', flush=True)):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('not reached', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (143, "first\n")


@pytest.mark.process
def test_a_stop_signal_during_a_fork_is_not_lost() -> None:
    """Where Python ignores exceptions a stop signal is kept, and raised at the next check."""
    code = (
        "import os, signal, subprocess, sys\n"
        "from oncemq.runtime.process import stop_check\n"
        "os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))\n"
        "with stop_check() as check:\n"
        "    check()\n"
        "    subprocess.run([sys.executable, '-c', ''], preexec_fn=lambda: None, check=True)\n"
        "    print('started', flush=True)\n"
        "    try:\n"
        "        check()\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\nstopped\n", "")
