"""What simulated processes have of the library: doors to ledgers, in files and tables; the relay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ..shells.consumer import LedgerDoor, LentConnection
from .database.client import Client
from .processes.relay import MakeRelay


class TableSession(LentConnection, Protocol):
    """The connection as handlers use it (shells/tables/session.py)."""

    @property
    def solo(self) -> bool:
        """Whether a call is to end after its first message."""

    def start_call(self, call: tuple[int, bool, int], /) -> None:
        """Begin to lend the connection to a call."""

    def sql(self, query: Any, parameters: Sequence[Any], /) -> Any:
        """Execute a handler's statement."""

    def accept(self) -> None:
        """The handler has returned."""

    def reject(self, error: Exception, /) -> Exception:
        """The handler raised."""

    def settle(self, handled: int, /) -> None:
        """All messages are handled."""

    def end_call(self, *, keep: bool) -> None:
        """Give the connection back."""

    def abandon(self) -> None:
        """The call ends without an answer."""


class TableDoor(LedgerDoor, Protocol):
    """A ledger in tables (shells/tables/ledger.py)."""

    name: str

    @property
    def session(self) -> TableSession:
        """Where handlers write."""


class MakeTableDoor(Protocol):
    """How the door to a ledger in tables is made."""

    def __call__(
        self,
        client: Client,
        shown: str,
        place: tuple[str, str, int],
        *,
        host: str,
        lost: str,
        draw: Callable[[], bytes],
    ) -> TableDoor:
        """Return the door to the ledger of a place; `lost` is the name of the one before."""


class Doors(NamedTuple):
    """All of it."""

    tables: MakeTableDoor
    relay: MakeRelay
