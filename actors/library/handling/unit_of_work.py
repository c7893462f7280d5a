"""The unit of work: what handlers did to the world of OnceMQ, kept together until the one commit.

A handler sees it as a `Tx` (tx.py), which shows only what is meant for handlers. The runner of
handlers holds the unit itself: it sets the message at hand, and keeps or forgets what the handler did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...codec import batch as batch_codec
from ...codec.values import encode_headers, encode_key
from ...errors import EffectsNotSupported, NoSink, NotAHandler, OnceMQError, TooLarge
from ...ids import check_name, partition_of
from ...limits import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_EFFECTS_BYTES_MAX,
)
from ...records import Output
from ...shells.tables.session import Session
from ..effects.effects import Effects
from ..messages.message import Message, idempotency_key
from ..messages.payloads import Serializer, encode_payload
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
# may not wait returns 0 for a topic nobody has met: `UnitOfWork.place` is told the count later.
# Raises UnknownTopic and other errors that the handler sees.
FindTopic = Callable[[str], int]


class UnitOfWork:
    """What becomes durable together with the offset. One message at a time works on it."""

    __slots__ = (
        "_begin_effects",
        "_commit_bytes",
        "_effected",
        "_find_topic",
        "_mark",
        "_of_lists",
        "_outgoing",
        "_sent_bytes",
        "_serializer",
        "_sink",
        "_statements",
        "cut",
        "effects",
        "message",
        "state",
    )

    def __init__(
        self,
        state: StateView,
        find_topic: FindTopic,
        sink: Session | None = None,
        effects: Effects | None = None,
        *,
        begin_effects: Callable[[], Effects] | None = None,
        of_lists: bool = False,
        serializer: Serializer | None = None,
    ) -> None:
        """`sink` is the connection to the consumer's database, `effects` what `effect` does.

        `begin_effects` makes the effects at their first use instead. `of_lists`: the handler takes
        lists, and what belongs to one message is asked for by message.
        """
        self.state = state
        self._commit_bytes = state.commit_bytes
        self._find_topic = find_topic
        self._sink = sink
        # For async handlers: `sql` is awaited. Set by the runner of handlers.
        self._statements: Statements | None = None
        self.effects = effects
        self._begin_effects = begin_effects
        self._effected = False  # whether a handler has used them
        self._of_lists = of_lists
        self._serializer = serializer
        # The message at hand; None outside of a handler. Set by the runner of handlers.
        self.message: Message | None = None
        # Outgoing messages of the batch, in order; those before `_mark` are accepted.
        self._outgoing: list[Outgoing] = []
        self._mark = 0
        self._sent_bytes = 0
        # Whether the run shall end after the message at hand. Set by another thread too.
        self.cut = False

    # --- what a handler asks for, through its Tx ---------------------------------------------------

    def current(self) -> Message:
        """Raises OnceMQError outside of a handler."""
        if self.message is None:
            raise OnceMQError(
                "this Tx is over",
                hint="use tx only inside its handler, and in the handler's thread",
            )
        return self.message

    def key(self) -> str:
        """Raises OnceMQError for a list."""
        if self._of_lists:
            raise OnceMQError(
                "a handler of lists has one key for each message", hint="use tx.key_of(message)"
            )
        return idempotency_key(self.current())

    def send(
        self,
        topic: str,
        value: Any,
        key: str | bytes | None,
        headers: Mapping[str, bytes] | None,
    ) -> None:
        message = self.current()
        if type(topic) is not str:
            topic = check_name(topic, "topic")
        if self._effected and self.effects is not None:
            self.effects.check_writing("tx.send")
        encoding, data = encode_payload(value, serializer=self._serializer)
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
        self,
        name: str,
        policy: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        message = self.current()
        if self.effects is None:
            if self._begin_effects is None:
                raise EffectsNotSupported(
                    "tx.effect needs a ledger, and this handler runs without one"
                )
            self.effects = self._begin_effects()
        if self._statements is not None:
            self._statements.check_rest(f"effect {name!r}")
        self.state.touched = self._effected = True
        self.cut = True  # what is recorded need not be kept for long
        if type(name) is not str:
            name = check_name(name, "the name of an effect")
        return self.effects.call(message, name, policy, function, args, kwargs)

    @property
    def calls_outside(self) -> bool:
        return self.effects is not None and self.effects.inside

    def sql(self, query: Any, params: tuple[Any, ...]) -> Any:
        """Execute a statement in the sink's transaction; return the cursor, or what gives it."""
        sink = self._using_sink("tx.sql")
        if self._statements is not None:
            return self._statements.statement(query, params)
        return sink.sql(query, params)

    def connection(self) -> Any:
        """Inside the transaction of the commit."""
        sink = self._using_sink("tx.connection")
        if self._statements is not None:
            raise NotAHandler(
                "tx.connection blocks the event loop, so async handlers have none",
                hint="use `await tx.sql(...)`; a library that needs the connection, such as pandas"
                " or SQLAlchemy, goes into a plain handler: def, not async def",
            )
        return sink.use()

    def _using_sink(self, what: str) -> Session:
        self.current()
        if self._sink is None:
            raise NoSink(
                "the consumer of this handler has no sink",
                hint="name a database: @app.consumer(..., sink='sqlite:///FILE')",
            )
        if self._effected and self.effects is not None:
            self.effects.check_connection(what)
        self.state.touched = True
        return self._sink

    def _headers(self, message: Message, headers: Mapping[str, bytes] | None) -> bytes:
        lot = message._lot  # noqa: SLF001 - the fast way to "no headers at all"
        # A message made of a whole list goes on with the trace of none of them.
        traced = lot.batch.headers is not None and not self._of_lists
        if traced and TRACE_HEADER not in (headers or {}):
            trace = message.headers.get(TRACE_HEADER)
            if trace is not None:
                headers = {**(headers or {}), TRACE_HEADER: trace}
        return encode_headers(headers) if headers else b""

    # --- what the runner of handlers calls -------------------------------------------------------

    def await_sql(self, statements: Statements) -> None:
        """From here on `sql` gives what is to be awaited."""
        self._statements = statements

    def unplaced(self) -> list[str]:
        mine = self._outgoing[self._mark :]
        return list(dict.fromkeys(topic for topic, partition, *_ in mine if partition == UNPLACED))

    def place(self, topic: str, partitions: int) -> None:
        """Choose the partitions of what was sent to `topic`, now that its count is known."""
        own = self.current().partition
        for index in range(self._mark, len(self._outgoing)):
            name, partition, encoding, data, key, headers = self._outgoing[index]
            if name == topic and partition == UNPLACED:
                chosen = partition_of(key, None, own, partitions)
                self._outgoing[index] = (name, chosen, encoding, data, key, headers)

    def accept(self) -> None:
        """The handler has returned and touched something: keep it. Raises what send may raise."""
        if self._effected and self.effects is not None:
            self.effects.accept()
        if self._sink is not None:
            self._sink.accept()
        if len(self._outgoing) == self._mark:
            self.state.accept()
            if self._sent_bytes + self.state.changed_bytes > self._commit_bytes:
                self.cut = True
            return
        sent = sum(
            len(data) + len(key or b"") + len(headers) + _OVERHEAD_BYTES
            for _, _, _, data, key, headers in self._outgoing[self._mark :]
        )
        if sent > MESSAGE_EFFECTS_BYTES_MAX:
            raise TooLarge(
                f"one message sends {sent} bytes, the limit is {MESSAGE_EFFECTS_BYTES_MAX}",
                hint="send less in one call of the handler, or in the handler of what it sends",
            )
        self.state.accept()
        self._mark = len(self._outgoing)
        self._sent_bytes += sent
        if self._sent_bytes + self.state.changed_bytes > self._commit_bytes:
            self.cut = True

    def reject(self) -> None:
        """The handler raised: no trace of this message stays."""
        del self._outgoing[self._mark :]
        self.state.reject()

    def take_back(self, error: BaseException) -> BaseException:
        """The handler raised `error`: as `reject`, in the sink too; return what is to be told.

        Raises SinkUnavailable, Fenced and TransactionControl: nothing of the call counts then.
        """
        told = error if self._sink is None else self._sink.reject(error)
        self.reject()
        return told

    def accepted(self) -> tuple[dict[str, bytes | None], list[Outgoing], int]:
        """Return what the accepted messages changed and sent, and about how many bytes that sent has.

        For messages that are handled apart from others; `finish` ends a batch.
        """
        return self.state.changes(), self._outgoing[: self._mark], self._sent_bytes

    def finish(self) -> tuple[dict[str, bytes | None], list[Output], int]:
        """Return state changes, outgoing batches and about how many bytes both are."""
        self.message = None
        changes = self.state.changes()
        outputs = build_outputs(self._outgoing)
        size = sum(len(output.raw) + 64 for output in outputs)
        size += sum(len(key) * 4 + len(value or b"") + 16 for key, value in changes.items())
        return changes, outputs, size


def build_outputs(
    outgoing: list[Outgoing],
) -> list[Output]:
    """In order for each target, within all limits; numbers are not given yet."""
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
