"""A broker: its core on a fenced log behind a transport, turned by its owner.

The order of opening makes a takeover exact. All that can fail comes first: reading the log, finding
room, binding. Only then the shell takes the next generation of the log, which fences the broker
before it; a broker that cannot bind therefore stops nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.broker.core import BrokerCore, CheckFence, Superseded
from ..driver import Driver
from ..errors import Fenced
from ..limits import LIMITS, SNAPSHOT_EVERY_BYTES, Limits
from ..ports import Background, Clock, Events, Transport
from ..storage.disk import Disk
from ..storage.document import Owner
from ..storage.log import FencedLog

_ORIGINAL = "stop this broker for good, or, if the restore was a mistake, stop the copy and restart its clients"
REPLAY_WORTH_A_SNAPSHOT_BYTES = 8 * 1024 * 1024  # at a clean stop; less is replayed in no time


class BrokerShell:
    """One broker with its log open. Not thread-safe: one thread calls all of it."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        *,
        owner: Owner,
        bind: Callable[[], Transport],
        clock: Clock,
        events: Events,
        entropy: Callable[[], bytes],
        open_log: Callable[..., FencedLog] = FencedLog.open,
        takeover: bool = False,
        end_owner: Callable[[Mapping[str, str | int]], None] | None = None,
        message_events: bool = False,
        create_topics: bool = True,
        snapshot_every_bytes: int | None = SNAPSHOT_EVERY_BYTES,
        snapshot_at_close_bytes: int = REPLAY_WORTH_A_SNAPSHOT_BYTES,
        limits: Limits = LIMITS,
        background: Background | None = None,
    ) -> None:
        """Recover the log in `directory`, or make one; bind; take the next generation.

        `bind` returns the transport; the caller closes it. `open_log` has the parameters of
        `FencedLog.open`, where `owner`, `takeover` and `end_owner` are described. `entropy` draws 16
        random bytes. Without `create_topics` a send or a consumer creates no topic.
        `snapshot_every_bytes` None writes no snapshots, also not in `close`. Files are written in
        `background` (None: in the turn); the caller closes it. Raises LogInUse (another broker owns the
        directory), CorruptLog, DiskFull, UnsupportedFormat, Fenced, OSError and what `bind` raises:
        the log is closed then.
        """
        bound: list[Transport] = []
        log = open_log(
            disk,
            directory,
            generation=None,
            owner=owner,
            prepare=lambda: bound.append(bind()),
            takeover=takeover,
            end_owner=end_owner,
            create_log_id=entropy(),
        )
        self.log = log
        self.core = BrokerCore(
            log.log_id,
            log.lineage,
            secret=log.secret(entropy),
            entropy=entropy,
            message_events=message_events,
            create_topics=create_topics,
            limits=limits,
        )
        self._snapshot_at_close = None if snapshot_every_bytes is None else snapshot_at_close_bytes
        self._driver = Driver(
            self.core,
            bound[0],
            clock,
            events,
            perform=self._perform,
            snapshot_every_bytes=snapshot_every_bytes,
            files=self.core.state,
            background=background,
            needed_from=lambda: self.core.state.needed_from,
            look_ahead=self.core.look_ahead,
            turn_read_bytes=limits.turn_read_bytes_max,
            turn_freeze_bytes=limits.turn_freeze_bytes,
        )
        self._recover(directory)

    def _recover(self, directory: str) -> None:
        try:
            self._driver.open_log(self.log, directory)
            self._driver.turn(0)  # the core learns its epoch: before that it cannot answer
        except Exception:
            self.log.close(clean=False)
            raise

    def turn(self, timeout_ms: int | None = None) -> bool:
        """Answer what has come; wait for it at most `timeout_ms`. Returns whether anything happened.

        Raises Fenced, CorruptLog, OSError: call `close(clean=False)` and nothing else.
        """
        return self._driver.turn(timeout_ms)

    def time_left_ms(self) -> int:
        return self._driver.time_left_ms()

    def close(self, *, clean: bool) -> None:
        """`clean` vouches for all that was synced, and spares a long replay."""
        least = self._snapshot_at_close
        if clean and least is not None and self._driver.unsnapshotted_bytes >= least:
            self._driver.write_snapshot()
        self._driver.close(clean=clean)

    def _perform(self, item: Any) -> None:
        if isinstance(item, Superseded):
            raise Fenced(item.reason, hint=_ORIGINAL)
        assert isinstance(item, CheckFence), f"not work of a broker: {item!r}"
        self.log.check_fence()
