"""A consumer's process whose ledger is a table of a simulated database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.consumer.grant import RUNNING
from ...core.consumer.work import RunHandler
from ...errors import Fenced, SinkUnavailable
from ...ids import IN_DATABASE
from ...shells.consumer import LedgerDoor
from ...shells.tables.ledger import SqlLedger
from ...shells.tables.session import Session
from ..database.client import Client
from ..database.database import Database
from ..database.session import open_tables
from ..disk.disk import SimProcess
from ..environment import Environment, Host
from ..plan import FILE, SERVER
from ..trace import Violation
from .consumer import CheckedEvents, SimConsumer
from .handler import Group
from .handler_run import HandlerRun
from .role import SimEvents
from .table_run import TableRun

AT_ONCE = 0.3  # odds that a call begins before the turn that makes it is over
QUICK_MS = 100


class TableEvents(CheckedEvents):
    """Events of a consumer: what it takes for durable is committed."""

    def __init__(self, consumer: SimTableConsumer) -> None:
        super().__init__(consumer)
        self._name, self._place = consumer.name, consumer.place
        self._database = consumer.database

    def emit(self, event: str, **fields: Any) -> None:
        super().emit(event, **fields)
        if event == "log.synced":
            end = self._database.oracle.end_of(self._place)
            if fields["durable_end"] > end:
                raise Violation("not committed", f"{self._name}: {fields}, the table has {end}")


class SimTableConsumer(SimConsumer):
    def __init__(
        self,
        world: Environment,
        name: str,
        host: Host,
        group: Group,
        partition: int,
        path: str,
        database: Database,
    ) -> None:
        super().__init__(world, name, host, group, partition, path + IN_DATABASE)
        self._path = path
        self.database = database
        self.may_be_kept_waiting = database.kind == FILE
        # What happens at a step of the next handler run, which may be the last one.
        self.interlude: Callable[[], None] | None = None
        self._door: SqlLedger | None = None
        self._client: Client | None = None
        self._lost = ""  # who its last owner was, if its database failed under it

    @property
    def may_have_effects(self) -> bool:
        return False

    @property
    def alone(self) -> bool:
        """Whether nobody else has locks that it wants, once all goes well."""
        return self.database.kind == SERVER

    @property
    def holds_ledger(self) -> bool:
        """Whether its session could still commit: the database may have ended it."""
        session = None if self._client is None else self._client.session
        return super().holds_ledger and session is not None and not session.over

    @property
    def owns(self) -> bool:
        return self.core is not None and self.core.phase == RUNNING

    def _make_door(self, process: SimProcess) -> LedgerDoor:
        client = self._client = Client(self.database, self, self.member, process)
        lost, self._lost = self._lost, ""
        host, draw = self.host.name, self.world.draw
        self._door = open_tables(client, self._path, self.place, host=host, lost=lost, draw=draw)
        return self._door

    def _make_events(self) -> SimEvents:
        return TableEvents(self)

    def finish(self, error: BaseException | None) -> None:
        """The successor of a consumer that lost its database knows of the loss."""
        if isinstance(error, SinkUnavailable) and self.core is not None and not self.core.shared:
            assert self._door is not None, "a process has a door"
            self._lost = self._door.name
        if isinstance(error, SinkUnavailable) and self._consumer is not None:
            self._outlived = self._consumer.last_epoch
            self.model.deaths.outlived.add(self._outlived)
        if isinstance(error, Fenced):
            self.world.trace.add(self.name, "sql.fenced")
        super().finish(error)

    def gone(self) -> None:
        super().gone()
        if self._client is not None:
            self._client.process_ended()
        self._client = self._door = None

    def _handler_ms(self) -> int:
        """A handler that holds a file's lock for seconds would exceed the budget of all others."""
        takes_ms = super()._handler_ms()
        mended = self.may_be_kept_waiting and self.world.healing
        return min(takes_ms, QUICK_MS) if mended else takes_ms

    @property
    def _session(self) -> Session:
        assert self._door is not None, "a process has a door"
        return self._door.session

    def _begin_call(self, run: RunHandler) -> None:
        super()._begin_call(run)
        if self.rng.random() < AT_ONCE:
            self._answer_call()  # the thread of handlers is quicker than this one

    def _make_run(self, run: RunHandler) -> HandlerRun:
        return TableRun(self, self._session, run, self._takes_ms)
