"""`App`: the object in a user's module that names the handlers and makes producers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..errors import NotAHandler
from ..ids import check_group, check_name
from ..limits import (
    ACK_TIMEOUT_S,
    CRASH_RETRIES_DEFAULT,
    IN_FLIGHT_BYTES_DEFAULT,
    LIMITS,
    PARK_LIMIT_DEFAULT,
    RETRIES_DEFAULT,
    SEND_TIMEOUT_MS,
)
from ..topic_settings import DEFAULTS, TopicWish
from .handling.call import Consumer
from .handling.shapes import Wishes, shape_of
from .messages.payloads import Serializer, check_serializer
from .sinks.address import check_sink

if TYPE_CHECKING:
    from .handling.tx import Tx
    from .messages.message import Message
    from .producing.producer import Producer

RETRIES_MAX = 1_000_000
_Function = TypeVar(
    "_Function",
    bound="Callable[[Message[Any], Tx], object] | Callable[[list[Message[Any]], Tx], object]",
)


class App:
    """The consumers of one program. `python consumer.py MODULE:APP` runs them.

    Making an App opens nothing and reads nothing: it can live in a module that tests import.
    """

    def __init__(self, broker: str | None = None, *, serializer: Serializer | None = None) -> None:
        """`broker` is an endpoint such as tcp://127.0.0.1:7400.

        A `--broker` flag or ONCEMQ_BROKER in the environment goes before it; without any of them
        it is the broker of this machine. It is resolved at first use, not here.

        `serializer` makes bytes of objects that OnceMQ does not carry, and objects of those bytes, in
        all producers and handlers of this App (docs/HANDLERS.md). Raises TypeError, ValueError.
        """
        self.broker = broker
        self.serializer = check_serializer(serializer)
        self._consumers: dict[tuple[str, str], Consumer] = {}
        self._topics: dict[str, TopicWish] = {}

    @property
    def consumers(self) -> list[Consumer]:
        """All consumers in the order of their decoration."""
        return list(self._consumers.values())

    def topic(
        self, name: str, *, partitions: int | None = None, dedup: str = "", retain: str = ""
    ) -> None:
        """Declare what topic `name` shall be: so its first producer or consumer of this App makes it.

        `dedup` says how long ids are remembered ("forever", "30d"), `retain` how long messages are
        kept ("forever", "7d", "1GB", "processed", several with commas). A topic that exists is never
        changed: where it differs, a warning says so, and `oncemq topics set` changes it. Raises
        InvalidName, InvalidSetting, ValueError for impossible partitions or a second declaration.
        """
        check_name(name, "topic")
        if partitions is not None and not (
            type(partitions) is int and 1 <= partitions <= LIMITS.partitions_max
        ):
            raise ValueError(f"a topic has 1 to {LIMITS.partitions_max} partitions")
        DEFAULTS.changed(dedup, retain)
        if name in self._topics:
            raise ValueError(f"topic {name!r} is declared already")
        self._topics[name] = TopicWish(partitions, dedup, retain)

    def consumer(
        self,
        topic: str,
        *,
        group: str,
        retries: int = RETRIES_DEFAULT,
        crash_retries: int = CRASH_RETRIES_DEFAULT,
        no_retry: type[Exception] | tuple[type[Exception], ...] = (),
        park: bool = True,
        park_limit: int | None = PARK_LIMIT_DEFAULT,
        batch: bool = False,
        batch_size: int | None = None,
        typed: Any = None,
        state_by: Literal["key"] | None = None,
        concurrency: int = 1,
        sink: str | None = None,
    ) -> Callable[[_Function], _Function]:
        """Make the decorated function the handler of `topic` for `group`; it stays as it is.

        The function, plain or async, takes (message, tx) and returns nothing: returning commits
        what it did through `tx` together with the offset, raising means that nothing happened. A
        message whose handler raises is tried `retries` more times and then parked: it goes to the
        topic `<topic>.dead` in the commit that moves the offset. Errors of `no_retry`, and Reject,
        park it at once. A message in whose handler more than `crash_retries` processes died, while
        it was handled alone, is parked without another call. `park=False` stops the consumer there
        instead. After `park_limit` messages of a partition in a row that were parked with the same
        type of error, one more stops the consumer too (ParkLimitReached): the handler is to blame
        then. None sets no limit.

        With `batch` it takes a list of at most `batch_size` messages, all or nothing. `typed`, or
        the annotation Message[Order], is what `message.value` shall be. `state_by="key"` gives each
        message key a state of its own; then `concurrency` messages of different keys may be
        handled at the same time. docs/HANDLERS.md has all of it.

        With `sink` ("sqlite:///FILE", "postgresql://...", "env:VARIABLE") the commit is a
        transaction of that database, which `tx.sql` and `tx.connection` write to (docs/SQL.md).

        Raises BadSink, InvalidName for topic or group, ValueError for a second handler of both or impossible
        numbers, TypeError for a `no_retry` that is not made of exceptions, and NotAHandler (a
        TypeError) for functions that cannot be handlers, such as generators, and for options that
        exclude each other.
        """
        topic, group = check_name(topic, "topic"), check_group(group)
        _check_count("retries", retries)
        _check_count("crash_retries", crash_retries)
        if park_limit is not None:
            _check_count("park_limit", park_limit, least=1)
        final = no_retry if isinstance(no_retry, tuple) else (no_retry,)
        _check_exceptions(final)
        tries = (retries, crash_retries, final)
        wishes = Wishes(batch, batch_size, typed, state_by, concurrency, self.serializer)

        if sink is not None:
            check_sink(sink)
            if state_by is not None:
                raise NotAHandler(
                    'sink and state_by="key" exclude each other: a partition has one transaction'
                )

        def register(function: _Function) -> _Function:
            shape = shape_of(function, wishes)
            if (topic, group) in self._consumers:
                raise ValueError(f"group {group!r} already has a handler of topic {topic!r}")
            self._consumers[topic, group] = Consumer(
                topic, group, function, *tries, park, shape, sink, park_limit, self._topics
            )
            return function

        return register

    def producer(
        self,
        name: str | None = None,
        *,
        in_flight_bytes: int = IN_FLIGHT_BYTES_DEFAULT,
        ack_timeout: float | None = ACK_TIMEOUT_S,
        close_timeout: float = SEND_TIMEOUT_MS / 1000,
    ) -> Producer:
        """Return a producer; use it in a `with` block.

        Without a name every send needs `id=`, and any number of such producers may run. With a
        name messages get numbers, and a second live owner of the name fences the first. Sends wait
        while more than `in_flight_bytes` are unacknowledged; waiting for an acknowledgement raises
        ResultTimeout when the broker has given none for `ack_timeout` seconds (None: never); leaving
        the `with` block waits up to `close_timeout` seconds. Raises InvalidName, ValueError. Sockets
        open at the first send.
        """
        from .producing.producer import Producer

        return Producer(
            name,
            broker=self.broker,
            in_flight_bytes=in_flight_bytes,
            ack_timeout=ack_timeout,
            close_timeout=close_timeout,
            serializer=self.serializer,
            topics=self._topics,
        )

    def __repr__(self) -> str:
        handlers = ", ".join(f"{c.topic} for {c.group}" for c in self._consumers.values())
        return f"<App of {handlers or 'no consumers'}>"


def _check_count(name: str, count: object, *, least: int = 0) -> None:
    if type(count) is not int or not least <= count <= RETRIES_MAX:
        raise ValueError(f"{name} is a number from {least} to {RETRIES_MAX}, not {count!r}")


def _check_exceptions(kinds: tuple[object, ...]) -> None:
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise TypeError(f"no_retry takes exception classes, not {kinds!r}")
