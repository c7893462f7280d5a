"""The handle that a send returns, on verdicts that many messages share.

A Future for each message would cost more than all other work on the message. So the messages of a
send call (or of several gathered sends) share one `Verdicts`; a `Pending` is that and an index.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ...errors import OnceMQError
from ...protocol import DUPLICATE, STORED
from .acks import Ack, Patience, Verdicts

if TYPE_CHECKING:
    import asyncio  # loaded by the first await; other programs do not pay for it

Result = TypeVar("Result")


class AckMany(Sequence[Ack]):
    """The acknowledgements of one `send_many`, in its order; each `Ack` is made when asked for."""

    __slots__ = ("_verdicts",)

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    @property
    def appended(self) -> int:
        """How many messages were new."""
        return self._verdicts.counted(STORED)

    @property
    def duplicates(self) -> int:
        """How many messages were there before."""
        return self._verdicts.counted(DUPLICATE)

    def __len__(self) -> int:
        return self._verdicts.count

    @overload
    def __getitem__(self, index: int) -> Ack: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ack]: ...
    def __getitem__(self, index: int | slice) -> Ack | list[Ack]:
        """Return one acknowledgement. Raises IdConflict for a message that was refused."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        verdict = self._verdicts.verdict(place)
        if isinstance(verdict, OnceMQError):
            raise verdict.with_traceback(None)
        return verdict

    def __iter__(self) -> Iterator[Ack]:
        for verdict in self._verdicts.all_verdicts():
            if isinstance(verdict, OnceMQError):
                raise verdict.with_traceback(None)
            yield verdict

    def __repr__(self) -> str:
        return f"<AckMany {len(self)}: {self.appended} appended, {self.duplicates} duplicates>"


class Pending(Generic[Result]):
    """A send that is on its way. Wait with `result`, or await it in any running event loop."""

    __slots__ = ("_verdicts",)

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    def done(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._verdicts.settled

    def result(self, timeout: float | EllipsisType | None = ...) -> Result:
        """Wait up to `timeout` seconds (None: for ever) and return the acknowledgement.

        Without it the producer's `ack_timeout` counts: seconds in which the broker acknowledges
        nothing. Raises ResultTimeout (the outcome is unknown, the message still being sent: call
        again), IdConflict (the id is stored with another body),
        TooOld, or the error that ended the producer: then the outcome is unknown.
        """
        self._verdicts.wait(timeout)
        return self._read()

    def add_done_callback(self, callback: Callable[[Pending[Result]], Any]) -> None:
        """Call `callback(self)` once settled, in the I/O thread: be brief, never wait there."""
        self._verdicts.when_settled(lambda: callback(self))

    def __await__(self) -> Generator[Any, None, Result]:
        """Wait as `result()` does, without blocking the event loop."""
        if not self._verdicts.settled:
            import asyncio

            loop = asyncio.get_running_loop()
            future = loop.create_future()

            def wake() -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits
                    loop.call_soon_threadsafe(_release, future)

            self._verdicts.when_settled(wake)
            watch = _Watch(loop, future, self._verdicts.patience)
            try:
                yield from future
            finally:
                watch.end()
        return self._read()

    def _read(self) -> Result:
        raise AssertionError("a Pending is of one message or of many")


class _Watch:
    """Ends the wait of a task when the producer's patience is over."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], patience: Patience
    ) -> None:
        self._loop = loop
        self._future = future
        self._patience = patience
        self._since_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def _look(self) -> None:
        left_s = self._patience.left_s(self._since_s)
        if left_s is None or self._future.done():
            return
        if left_s <= 0:
            self._future.set_exception(self._patience.over())
        else:
            self._timer = self._loop.call_later(left_s, self._look)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class PendingOne(Pending[Ack]):
    """One message."""

    __slots__ = ("_index",)

    def __init__(self, verdicts: Verdicts, index: int) -> None:
        super().__init__(verdicts)
        self._index = index

    def _read(self) -> Ack:
        verdict = self._verdicts.verdict(self._index)
        if isinstance(verdict, OnceMQError):
            raise verdict.with_traceback(None)
        return verdict


class PendingMany(Pending[AckMany]):
    """All messages of one `send_many`. Fails if one of them was refused; see `acks`."""

    __slots__ = ()

    def acks(self, timeout: float | EllipsisType | None = ...) -> AckMany:
        """Wait as `result` does and return all verdicts even if some message was refused.

        Indexing a refused message raises its error. Raises only what concerns all of them.
        """
        self._verdicts.wait(timeout)
        if self._verdicts.error is not None:
            raise self._verdicts.error.with_traceback(None)
        self._verdicts.asked()
        return AckMany(self._verdicts)

    def _read(self) -> AckMany:
        error = self._verdicts.first_error()
        if error is not None:
            raise error.with_traceback(None)
        return AckMany(self._verdicts)
