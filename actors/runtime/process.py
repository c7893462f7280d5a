"""This process among others: stop signals, and proof of the process that owns a directory.

A process id alone proves nothing, because the kernel uses ids again. Together with the start time
of the process, the boot id of the kernel, the host name and the pid namespace it names one process
for ever. Start times and boot ids come from /proc. Without /proc they stay empty and nothing can be
proved: such an owner counts as alive, and OnceMQ never kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType

from ..errors import LogInUse

Facts = Mapping[str, str | int]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_PRCTL = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals = signal.SIGKILL, *, parent: int = 0) -> None:
    """Have the kernel send `number` to this process when its parent dies.

    Call it in a child, at its start or before exec. A child that takes long to get here names the
    process `parent`, which may be dead by then: the child exits. Works on Linux only, elsewhere it
    does nothing. The kernel watches the thread that made the child, not the process.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, int(number))
        if parent and os.getppid() != parent:
            os._exit(1)  # not by a signal: before exec the parent's handlers are still in place


@contextlib.contextmanager
def stop_signals(on_stop: Callable[[int], None]) -> Iterator[None]:
    """Call `on_stop(signal number)` at the first SIGTERM or SIGINT; a second exits at once.

    `on_stop` runs in the main thread between two bytecodes: it may set a flag or wake a socket,
    never take a lock. The immediate exit has the status 128 + signal, runs no handlers and flushes
    nothing, as safe here as any crash. A signal that the process was started to ignore stays ignored.
    Must be called in the main thread.
    """
    handler = StopHandler(on_stop)
    before = {number: signal.signal(number, handler) for number in heeded(STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def heeded(numbers: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return those of `numbers` that the process was not started to ignore.

    nohup has a process ignore SIGHUP; a shell without job control has its background jobs ignore
    SIGINT. Who started the process meant it.
    """
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class StopHandler:
    """The signal handler of `stop_signals`."""

    def __init__(self, on_stop: Callable[[int], None]) -> None:
        self._on_stop = on_stop
        self._stopping = False

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            os._exit(128 + number)
        self._stopping = True
        self._on_stop(number)


@contextlib.contextmanager
def stop_check() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt once SIGTERM or SIGINT has come.

    For programs that start processes and end them again. An exception of a signal handler is lost
    where Python ignores exceptions (in the hooks around a fork, in `__del__`), or comes in the
    middle of a clean-up. So the caller asks, often, at places where it can take the exception. A
    second signal exits at once, see `stop_signals`.
    """
    stopped = False

    def stop(_number: int) -> None:
        nonlocal stopped
        stopped = True

    def check() -> None:
        if stopped:
            raise KeyboardInterrupt

    with stop_signals(stop):
        yield check


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """(state letter, start time in clock ticks since boot), or two empty texts."""
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    _, _, rest = _read(f"/proc/{pid}/stat").rpartition(") ")
    fields = rest.split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _here() -> dict[str, str | int]:
    return {
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "host": socket.gethostname(),
        "pid_namespace": _pid_namespace(),
    }


def own_label() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def draw() -> bytes:
    """16 random bytes for a log, an incarnation or a session."""
    return secrets.token_bytes(16)


def owner_facts() -> dict[str, str | int]:
    return {"pid": os.getpid(), "start_time": _stat(os.getpid())[1], **_here()}


def _seen_from_here(facts: Facts) -> bool:
    """Whether `facts` were written on this host, since its last boot, in our pid namespace."""
    return all(value and facts.get(name, value) == value for name, value in _here().items())


def _state(facts: Facts) -> str:
    """Return the state letter of the very process that wrote `facts`; empty if it is gone."""
    state, start_time = _stat(int(facts["pid"]))
    return state if start_time and start_time == str(facts.get("start_time", "")) else ""


def owner_alive(facts: Facts) -> bool:
    """Return False only if the process that wrote `facts` is proved gone.

    Proof is: another boot of this host, no such process, another process under its pid, or a zombie
    (which holds no files). For another host, and without /proc, there is no proof.
    """
    here = _here()
    if not here["boot_id"] or facts.get("host") != here["host"]:
        return True
    if facts.get("boot_id") != here["boot_id"]:
        return False
    if not _seen_from_here(facts) or not facts.get("start_time"):
        return True
    return _state(facts) not in {"", "Z", "X"}


def end_frozen_owner(facts: Facts, timeout_s: float = 10.0) -> None:
    """Kill the frozen process that wrote `facts` and wait until it is gone.

    Returns at once if it is gone already. Kills only a process that is proved to be the one and is
    stopped (SIGSTOP, state T). Raises LogInUse for a running process, and without proof.
    """
    owner = f"process {facts.get('pid')} on {facts.get('host')}"
    if not owner_alive(facts):
        return
    if not _seen_from_here(facts) or not facts.get("start_time") or not hasattr(os, "pidfd_open"):
        raise LogInUse(
            f"the owner, {owner}, cannot be checked from this host",
            hint="stop it on its own host; --takeover ends only a frozen owner on this host",
        )
    pid = int(facts["pid"])
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The descriptor pins the process: what _state proves now cannot become another one's pid.
        state = _state(facts)
        if state in {"", "Z", "X"}:
            return
        if state != "T":
            raise LogInUse(
                f"the owner, {owner}, is running and not frozen",
                hint="stop it (SIGTERM); --takeover ends only a frozen owner",
            )
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not select.select([pidfd], [], [], timeout_s)[0]:
            raise LogInUse(f"the owner, {owner}, was killed but still exists")
    finally:
        os.close(pidfd)
