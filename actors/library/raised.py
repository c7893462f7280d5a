"""What code of a user has raised, told apart from what ends the process around it.

`sys.exit()` in a handler (argparse and click call it), a CancelledError or GeneratorExit that escapes,
and a KeyboardInterrupt that code raises concern the message at hand, as any exception does. Not so a
Ctrl-C of the user, a cancellation of the task around the handler, and the death of a simulated process.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextvars import ContextVar
from types import TracebackType

from ..errors import Fenced, HandlerLeft, ProcessGone
from ..runtime.process import StopHandler

# Whether the task around a handler is ours and nothing outside of the handler cancels it.
task_is_ours: ContextVar[bool] = ContextVar("task_is_ours", default=False)


def raised_by_code(error: BaseException, *, awaited: bool = False) -> bool:
    """Whether `error` is a failure of the code that raised it. Call it where `error` was caught.

    `awaited`: that code was awaited by `in_order.returned`, which turns a GeneratorExit of its own
    into another error. One that still comes closes the coroutine of the caller.
    """
    if isinstance(error, Exception):
        return True
    if isinstance(error, HandlerLeft | ProcessGone) or (
        awaited and isinstance(error, GeneratorExit)
    ):
        return False
    if isinstance(error, KeyboardInterrupt):
        return not _interrupts_raise()
    return not (is_cancellation(error) and _task_is_cancelled())


def in_task() -> bool:
    """Whether a task runs here; not while a coroutine is closed because its loop has ended."""
    asyncio = sys.modules.get("asyncio")
    return (
        asyncio is not None
        and asyncio._get_running_loop() is not None  # noqa: SLF001 - the one without an exception
        and asyncio.current_task() is not None
    )


def is_cancellation(error: BaseException) -> bool:
    """Whether `error` is the CancelledError of asyncio. Plain handlers may never have loaded that."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def _interrupts_raise() -> bool:
    """Whether Ctrl-C arrives in this thread as KeyboardInterrupt: not where OnceMQ takes signals."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    return handler is not signal.SIG_IGN and not isinstance(handler, StopHandler)


def _task_is_cancelled() -> bool:
    """Whether a cancellation came from outside of the handler."""
    import asyncio

    if task_is_ours.get() or not in_task():
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def end_fenced_programs_with_their_status() -> None:
    """Have a program that ends with an uncaught Fenced end with status 3 instead of 1.

    A supervisor must not start it again: two supervisors would fence each other's program for ever.
    The traceback is printed as before. An interactive interpreter goes on.
    """
    before = sys.excepthook
    if getattr(before, "ends_fenced_programs", False):
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        before(kind, error, traceback)
        if _is_fenced(error) and not hasattr(sys, "ps1") and not sys.flags.inspect:
            raise SystemExit(Fenced.exit_status)

    hook.ends_fenced_programs = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _is_fenced(error: BaseException) -> bool:
    """Whether `error` is Fenced, or a group (of a TaskGroup, say) that holds one."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(Fenced) is not None
    return isinstance(error, Fenced)
