"""What each kind of database says for itself: how a session connects, begins, ends and fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ...errors import SinkUnavailable
from .sql_text import first_line

if TYPE_CHECKING:
    from .awaited import Statements

_T = TypeVar("_T")


class Database(ABC):
    """One connection to a database of one kind. A Session says who may use it when."""

    def __init__(self, shown: str) -> None:
        """`shown` is the address as people may see it."""
        self.shown = shown

    @abstractmethod
    def _connect(self) -> None:
        """Open the connection and make its settings safe. Raises SinkUnavailable, BadSink."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Say it for this kind of database."""

    @abstractmethod
    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Execute a statement of ours; return the driver's cursor. Raises its errors."""

    @abstractmethod
    def _begin(self, *, waits: bool) -> None:
        """Open a transaction that may write; `waits`: in the thread of handlers."""

    @abstractmethod
    def _end(self, verb: str) -> None:
        """COMMIT or ROLLBACK."""

    def _ended(self) -> None:
        """The transaction is over, or the wish to begin one."""

    @abstractmethod
    def _in_transaction(self) -> bool:
        """Say it for this kind of database."""

    def sync_read(self) -> None:
        """Make durable what was read, before anybody is told of it. Raises StorageError."""

    def _settle(self) -> None:
        """Check now what the database would check at COMMIT: here a handler can still be told."""

    def _hand_over(self) -> None:
        """The handlers are done with the open transaction; the I/O thread comes next."""

    @abstractmethod
    def _translated(self, error: BaseException) -> SinkUnavailable | None:
        """Return what an error says about the database; None: it is about a statement."""

    @abstractmethod
    def _is_of_driver(self, error: BaseException) -> bool:
        """Say it for this kind of database."""

    @property
    def broken(self) -> bool:
        """Whether the connection is of no use any more, as far as this side knows."""
        return False

    @property
    @abstractmethod
    def _handed_out(self) -> Any:
        """The connection that handlers see."""

    def _may_begin(self) -> bool:
        """Whether the I/O thread would begin a transaction without waiting for this process."""
        return True

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Whether a table is there, in the I/O thread."""

    # What the statements that make tables leave open, and what goes before them.
    types: ClassVar[Mapping[str, str]]
    before_tables: ClassVar[str] = ""
    awaited: Callable[[], Statements]  # what async handlers of a call ask

    def _checked(self, work: Callable[[], _T]) -> _T:
        """Do work of ours; whatever the driver says against it is about the database."""
        try:
            return work()
        except Exception as error:
            lost = self._translated(error)
            if lost is None and self._is_of_driver(error):
                lost = SinkUnavailable(f"{self.shown}: {first_line(error)}")
            if lost is None:
                raise
            raise lost from error
