"""`Tx`: what a handler does to the world of OnceMQ, kept together until the one commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...codec import batch as batch_codec
from ...codec.values import encode_headers, encode_key, encode_value
from ...core.consumer.open_effects import ASK
from ...errors import EffectsNotSupported, NoSink, NotAHandler, OnceMQError, TooLarge
from ...ids import check_name, partition_of
from ...limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    COMMIT_BYTES,
    MESSAGE_BYTES_MAX,
    MESSAGE_EFFECTS_BYTES_MAX,
)
from ...records import Output
from ..effects.effects import Effects
from ..messages.message import Message
from ..sinks.session import Session
from .state import StateView

if TYPE_CHECKING:
    from ..sinks.awaited import Statements

UNNUMBERED = -1
UNPLACED = -1  # the partition of an outgoing message whose topic is still looked up
TRACE_HEADER = "traceparent"
_OVERHEAD_BYTES = 32  # what a message of a batch needs besides its own bytes, at most
_BATCH_ROOM = BATCH_BYTES_MAX - 4096

# An outgoing message: topic, partition, encoding, value, key, headers.
Outgoing = tuple[str, int, int, bytes, bytes | None, bytes]

# Return the partition count of a topic; it may wait for the broker and make the topic. One that
# may not wait returns 0 for a topic nobody has met: `Tx.place` is told the count later.
# Raises UnknownTopic and other errors that the handler sees.
FindTopic = Callable[[str], int]


class Tx:
    """The effects of handlers that become durable together with the offset.

    `state` is the group's state: text to values. `send` adds a message to another topic. Both
    count only if the handler returns; a handler that raises has done nothing. An object belongs
    to one message at a time and must not be used after its handler has returned.
    """

    __slots__ = (
        "_effected",
        "_effects",
        "_find_topic",
        "_mark",
        "_outgoing",
        "_sent_bytes",
        "_sink",
        "_statements",
        "cut",
        "message",
        "state",
    )

    def __init__(
        self,
        state: StateView,
        find_topic: FindTopic,
        sink: Session | None = None,
        effects: Effects | None = None,
    ) -> None:
        """`sink` is the connection to the consumer's database, `effects` what `effect` does."""
        #: What the group remembers: text to values, one mapping for each partition.
        self.state = state
        self._find_topic = find_topic
        self._sink = sink
        # For async handlers: `sql` is awaited. Set by the runner of handlers.
        self._statements: Statements | None = None
        self._effects = effects
        self._effected = False  # whether a handler has used it
        # The message at hand; None outside of a handler. Set by the runner of handlers.
        self.message: Message | None = None
        # Outgoing messages of the batch, in order; those before `_mark` are accepted.
        self._outgoing: list[Outgoing] = []
        self._mark = 0
        self._sent_bytes = 0
        # Whether the run shall end after the message at hand. Set by another thread too.
        self.cut = False

    # --- what a handler calls --------------------------------------------------------------------

    @property
    def key(self) -> str:
        """A text that is the same whenever this group handles this message, and only then.

        Give it to the outside world as idempotency key: an HTTP call may be made again after a
        crash, the key makes it count once.
        """
        message = self._current()
        return message.idempotency_key(message._lot.group)  # noqa: SLF001 - one module, two faces

    def key_of(self, message: Message) -> str:
        """Return what `key` is for one message: for handlers of lists, which have many."""
        return message.idempotency_key(message._lot.group)  # noqa: SLF001 - as above

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
        message = self._current()
        if self._effected and self._effects is not None:
            self._effects.check_writing("tx.send")
        encoding, data = encode_value(value)
        packed_key = None if key is None else encode_key(key)
        packed_headers = self._headers(message, headers)
        size = len(data) + (0 if packed_key is None else len(packed_key))
        if size > MESSAGE_BYTES_MAX:
            raise TooLarge(
                f"a message of {size} bytes for {topic}, the limit is {MESSAGE_BYTES_MAX}"
            )
        partitions = self._find_topic(topic)
        partition = UNPLACED
        if partitions:
            partition = partition_of(packed_key, None, message.partition, partitions)
        self._outgoing.append((topic, partition, encoding, data, packed_key, packed_headers))
        self.state.touched = True

    def effect(
        self, name: str, function: Callable[..., Any], *args: Any, policy: str = ASK, **kwargs: Any
    ) -> Any:
        """Call `function(*args, **kwargs)` once for this message; return what it returned.

        Before the call an intent is made durable, after it the result. A handler that runs again
        gets that result, and the function is not called. If the process dies in between, or the
        function raises, nobody knows whether the call happened, and `policy` decides: "ask" holds
        the partition until an operator has spoken, "park" makes the message a dead letter, "retry"
        calls again. EffectNotDone, raised by the function, says that nothing happened.

        In an async handler it is awaited, and the function may be an async one too. With a sink the
        handler begins anew after the call if it had used the database before (docs/EFFECTS.md).

        Each call of a message needs a name of its own. The result is what msgpack carries, up to
        16 KiB, and comes back as a value that was sent would. Raises EffectUnknown,
        EffectNotRecorded, EffectMisused, EffectsNotSupported, InvalidName, TooLarge, and with
        "retry" what the function raises. Let them out.
        """
        message = self._current()
        if self._effects is None:
            raise EffectsNotSupported("this handler runs without a ledger")
        if self._statements is not None:
            self._statements.check_rest(f"effect {name!r}")
        self.state.touched = self._effected = True
        self.cut = True  # what is recorded need not be kept for long
        return self._effects.call(message, name, policy, function, args, kwargs)

    def effect_key(self, name: str) -> str:
        """Return a text that is the same whenever this effect of this message is called.

        Give it to the other side as idempotency key: a policy of "retry", or an operator, may have
        the call made again.
        """
        return f"{self.key}:{check_name(name, 'the name of an effect')}"

    @property
    def calls_outside(self) -> bool:
        """Whether the function of an effect runs right now."""
        return self._effects is not None and self._effects.inside

    def sql(self, query: Any, *params: Any) -> Any:
        """Execute a statement in the sink's transaction; return the driver's cursor.

        In an async handler `await` it: the loop goes on, and it gives a cursor whose `fetchone`,
        `fetchmany`, `fetchall` and iteration are awaited too. Placeholders are the driver's own:
        `?` or `:name` for SQLite, `%s` or `%(name)s` for PostgreSQL; a single mapping gives named
        parameters. What it writes becomes durable with the offset, or not at all. Raises NoSink,
        TransactionControl, SinkUnavailable, and the driver's errors.
        """
        sink = self._using_sink("tx.sql")
        if self._statements is not None:
            return self._statements.statement(query, params)
        return sink.sql(query, params)

    @property
    def connection(self) -> Any:
        """The driver's connection, inside the transaction of the commit: for pandas, SQLAlchemy.

        It may be used until the handler returns. Its commit, rollback and close are refused. Raises
        NoSink, SinkUnavailable, and NotAHandler in an async handler: use `await tx.sql(...)` there.
        """
        sink = self._using_sink("tx.connection")
        if self._statements is not None:
            raise NotAHandler(
                "tx.connection blocks the event loop, so async handlers have none",
                hint="use `await tx.sql(...)`; a library that needs the connection, such as pandas"
                " or SQLAlchemy, goes into a plain handler: def, not async def",
            )
        return sink.use()

    def _using_sink(self, what: str) -> Session:
        self._current()
        if self._sink is None:
            raise NoSink(
                "the consumer of this handler has no sink",
                hint="name the database: @app.consumer(..., sink='sqlite:///FILE')",
            )
        if self._effected and self._effects is not None:
            self._effects.check_connection(what)
        self.state.touched = True
        return self._sink

    def _headers(self, message: Message, headers: Mapping[str, bytes] | None) -> bytes:
        lot = message._lot  # noqa: SLF001 - the fast way to "no headers at all"
        if lot.batch.headers is not None and TRACE_HEADER not in (headers or {}):
            trace = message.headers.get(TRACE_HEADER)
            if trace is not None:
                headers = {**(headers or {}), TRACE_HEADER: trace}
        return encode_headers(headers) if headers else b""

    def _current(self) -> Message:
        if self.message is None:
            raise OnceMQError(
                "this Tx is over",
                hint="use it only inside the handler it was given to, and in the same thread",
            )
        return self.message

    def __repr__(self) -> str:
        return f"<Tx of {self.message!r}>"

    # --- what the runner of handlers calls -------------------------------------------------------

    def await_sql(self, statements: Statements) -> None:
        """From here on `sql` gives what is to be awaited."""
        self._statements = statements

    def unplaced(self) -> list[str]:
        """Return the topics of the message at hand that wait for their partition counts."""
        mine = self._outgoing[self._mark :]
        return list(dict.fromkeys(topic for topic, partition, *_ in mine if partition == UNPLACED))

    def place(self, topic: str, partitions: int) -> None:
        """Choose the partitions of what was sent to `topic`, now that its count is known."""
        own = self._current().partition
        for index in range(self._mark, len(self._outgoing)):
            name, partition, encoding, data, key, headers = self._outgoing[index]
            if name == topic and partition == UNPLACED:
                chosen = partition_of(key, None, own, partitions)
                self._outgoing[index] = (name, chosen, encoding, data, key, headers)

    def accept(self) -> None:
        """The handler has returned and touched something: keep it. Raises what send may raise."""
        if self._effected and self._effects is not None:
            self._effects.accept()
        if self._sink is not None:
            self._sink.accept()
        if len(self._outgoing) == self._mark:
            self.state.accept()
            if self._sent_bytes + self.state.changed_bytes > COMMIT_BYTES:
                self.cut = True
            return
        sent = sum(
            len(data) + len(key or b"") + len(headers) + _OVERHEAD_BYTES
            for _, _, _, data, key, headers in self._outgoing[self._mark :]
        )
        if sent > MESSAGE_EFFECTS_BYTES_MAX:
            raise TooLarge(
                f"one message sends {sent} bytes, the limit is {MESSAGE_EFFECTS_BYTES_MAX}"
            )
        self.state.accept()
        self._mark = len(self._outgoing)
        self._sent_bytes += sent
        if self._sent_bytes + self.state.changed_bytes > COMMIT_BYTES:
            self.cut = True

    def reject(self) -> None:
        """The handler raised: no trace of this message stays."""
        del self._outgoing[self._mark :]
        self.state.reject()

    def take_back(self, error: Exception) -> Exception:
        """The handler raised `error`: as `reject`, in the sink too; return what is to be told.

        Raises SinkUnavailable, Fenced and TransactionControl: nothing of the call counts then.
        """
        told = error if self._sink is None else self._sink.reject(error)
        self.reject()
        return told

    def effects(self) -> tuple[dict[str, bytes | None], list[Outgoing], int]:
        """Return what the accepted messages changed and sent, and about how many bytes that sent has.

        For messages that are handled apart from others; `finish` ends a batch.
        """
        return self.state.changes(), self._outgoing[: self._mark], self._sent_bytes

    def finish(self) -> tuple[dict[str, bytes | None], list[Output], int]:
        """End the batch; return state changes, outgoing batches and about how many bytes both are."""
        self.message = None
        changes = self.state.changes()
        outputs = build_outputs(self._outgoing)
        size = sum(len(output.raw) + 64 for output in outputs)
        size += sum(len(key) * 4 + len(value or b"") + 16 for key, value in changes.items())
        return changes, outputs, size


class BatchTx(Tx):
    """The Tx of a handler of lists: what belongs to one message is asked for by message."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """A list has no key of its own."""
        raise OnceMQError(
            "a handler of lists has a key for each message", hint="use tx.key_of(message)"
        )

    def _headers(self, message: Message, headers: Mapping[str, bytes] | None) -> bytes:
        del message  # whose trace a message made of many would go on with, nobody can say
        return encode_headers(headers) if headers else b""


def build_outputs(
    outgoing: list[Outgoing],
) -> list[Output]:
    """Return messages as batches without numbers: in order for each target, within all limits."""
    by_target: dict[tuple[str, int], list[tuple[int, bytes, bytes | None, bytes]]] = {}
    for topic, partition, *rest in outgoing:
        by_target.setdefault((topic, partition), []).append(tuple(rest))  # type: ignore[arg-type]
    outputs = []
    for (topic, partition), messages in by_target.items():
        start = room = 0
        for index, (_, data, key, headers) in enumerate(messages):
            size = len(data) + len(key or b"") + len(headers) + _OVERHEAD_BYTES
            if index > start and (room + size > _BATCH_ROOM or index - start >= BATCH_MESSAGES_MAX):
                outputs.append(_build(topic, partition, messages[start:index]))
                start, room = index, 0
            room += size
        outputs.append(_build(topic, partition, messages[start:]))
    return outputs


def _build(
    topic: str, partition: int, messages: list[tuple[int, bytes, bytes | None, bytes]]
) -> Output:
    encodings, values, keys, headers = map(list, zip(*messages, strict=True))
    same = len(set(encodings)) == 1
    batch = batch_codec.build(
        values,
        encodings=encodings[0] if same else encodings,
        keys=keys if any(key is not None for key in keys) else None,
        headers=headers if any(headers) else None,
    )
    return Output(topic, partition, UNNUMBERED, batch.count, bytes(batch.raw), batch.crc)
