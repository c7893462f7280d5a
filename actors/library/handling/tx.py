"""`Tx`: what a handler does to the world of OnceMQ, durable with the offset or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, ParamSpec, TypeVar, overload

from ...core.consumer.open_effects import ASK
from ...ids import check_name
from ..messages.message import Message, idempotency_key
from .unit_of_work import UnitOfWork

Policy = Literal["ask", "park", "retry"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Tx:
    """The effects of handlers that become durable together with the offset.

    `state` is the group's state: text to values. `send` adds a message to another topic. Both
    count only if the handler returns; a handler that raises has done nothing. An object belongs
    to one message at a time and must not be used after its handler has returned.
    """

    __slots__ = ("_unit", "state")

    def __init__(self, unit: UnitOfWork) -> None:
        """The runner of handlers makes it; a test gets one through `Harness`."""
        self._unit = unit
        #: What the group remembers: text to values, one mapping for each partition.
        self.state: MutableMapping[str, Any] = unit.state

    @property
    def key(self) -> str:
        """A text that is the same whenever this group handles this message, and only then.

        Give it to the outside world as idempotency key: an HTTP call may be made again after a
        crash, the key makes it count once. A handler of lists asks `key_of`.
        """
        return self._unit.key()

    def key_of(self, message: Message) -> str:
        """Return what `key` is for one message: for handlers of lists, which have many."""
        return idempotency_key(message)

    def send(
        self,
        topic: str,
        value: Any,
        key: str | bytes | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        """Send a message when this commit is durable: exactly once, with an id of OnceMQ's own.

        The partition follows from `key`, without one from the input's partition. A `traceparent`
        header of the input is copied. The first send to a topic may wait for the broker, and makes
        a topic that does not exist. Raises ValueNotEncodable, TooLarge, InvalidName, UnknownTopic;
        a handler that lets them out counts as failed.
        """
        self._unit.send(topic, value, key, headers)

    @overload
    def effect(
        self, name: str, function: Callable[..., _T], *args: Any, policy: Policy, **kwargs: Any
    ) -> _T: ...
    @overload
    def effect(
        self, name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T: ...
    def effect(  # type: ignore[misc]  # a keyword beside a ParamSpec's can only be told this way
        self, name: str, function: Callable[..., Any], *args: Any, policy: str = ASK, **kwargs: Any
    ) -> Any:
        """Call `function(*args, **kwargs)` once for this message; return what it returned.

        Before the call an intent is made durable, after it the result. A handler that runs again
        gets that result, and the function is not called. If the process dies in between, or the
        function raises, it is unknown whether the call happened: `policy` decides: "ask" holds
        the partition until an operator has spoken, "park" makes the message a dead letter, "retry"
        calls again. EffectNotDone, raised by the function, says that nothing happened.

        In an async handler it is awaited, and the function may be an async one too. With a sink the
        handler begins anew after the call if it had used the database before (docs/EFFECTS.md).

        Each call of a message needs a name of its own. The result is what msgpack carries, up to
        16 KiB, and comes back as a value that was sent would. Raises EffectUnknown,
        EffectNotRecorded, EffectMisused, EffectsNotSupported, InvalidName, TooLarge, and with
        "retry" what the function raises. Let them out.
        """
        return self._unit.effect(name, policy, function, args, kwargs)

    def effect_key(self, name: str) -> str:
        """Return a text that is the same whenever this effect of this message is called.

        Give it to the other side as idempotency key: a policy of "retry", or an operator, may have
        the call made again.
        """
        return f"{self.key}:{check_name(name, 'the name of an effect')}"

    def sql(self, query: Any, *params: Any) -> Any:
        """Execute a statement in the sink's transaction; return the driver's cursor.

        In an async handler `await` it: the loop goes on, and it gives a cursor whose `fetchone`,
        `fetchmany`, `fetchall` and iteration are awaited too. Placeholders are the driver's own:
        `?` or `:name` for SQLite, `%s` or `%(name)s` for PostgreSQL; a single mapping gives named
        parameters. What it writes becomes durable with the offset, or not at all. Raises NoSink,
        TransactionControl, SinkUnavailable, and the driver's errors.
        """
        return self._unit.sql(query, params)

    @property
    def connection(self) -> Any:
        """The driver's connection, inside the transaction of the commit: for pandas, SQLAlchemy.

        It may be used until the handler returns. Its commit, rollback and close are refused. Raises
        NoSink, SinkUnavailable, and NotAHandler in an async handler: use `await tx.sql(...)` there.
        """
        return self._unit.connection()

    def __repr__(self) -> str:
        return f"<Tx of {self._unit.message!r}>"
