"""What `oncemq sim` exercises of the library: its relay, over a simulated outbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import DatabaseAway
from ..library.outbox.database import Failed, Visit
from ..library.outbox.relay import Relay
from ..library.outbox.table import FailedRow, Row
from ..limits import Limits
from ..ports import Clock, Events
from ..runtime.crash_points import RELAY_BEFORE_COMMIT
from ..shells.producer import ProducerShell
from ..sim.processes.outbox import Outbox, OutboxLost
from ..sim.processes.relay import RelaySocket


class SimulatedOutbox:
    """A simulated outbox as a relay sees one."""

    name = "simulated outbox"

    def __init__(self, outbox: Outbox, visit: Visit) -> None:
        """`visit` is called before rows are taken out."""
        self._outbox = outbox
        self._visit = visit

    def read(self) -> list[Row]:
        try:
            rows = self._outbox.read()
        except OutboxLost as error:
            raise DatabaseAway(str(error)) from error
        return [
            Row(r.place, r.topic, r.message_id, r.key, r.encoding, r.value, r.headers) for r in rows
        ]

    def settle(self, acked: Sequence[Row], failed: Failed, *, keep: bool) -> int:
        assert not keep, "a simulated relay keeps nothing"
        self._visit(RELAY_BEFORE_COMMIT)
        try:
            return self._outbox.settle([r.place for r in acked], [r.place for r, _ in failed])
        except OutboxLost as error:
            raise DatabaseAway(str(error)) from error

    def failed(self) -> list[FailedRow]:
        return []

    def retry_failed(self) -> int:
        return 0

    def close(self) -> None: ...


def make_relay(
    socket: RelaySocket,
    clock: Clock,
    events: Events,
    outbox: Outbox,
    *,
    draw: Callable[[], bytes],
    label: str,
    limits: Limits,
    visit: Callable[[str], None],
) -> Callable[[], None]:
    """Return what runs the relay of production over a simulated socket and database."""

    def run() -> None:
        engine = ProducerShell(
            "",
            endpoint="sim",
            transport=socket,
            clock=clock,
            events=events,
            entropy=draw,
            label=label,
            limits=limits,
        )
        try:
            Relay(SimulatedOutbox(outbox, visit), engine, events, visit=visit).run()
        finally:
            engine.close()

    return run
