"""The smallest way in: a queue and a consumer inside one process, each id handled once.

    queue = ExactlyOnceQueue()
    queue.send("order-1", {"cents": 250})
    queue.send("order-1", {"cents": 250})            # a duplicate: not stored again
    consumer = ExactlyOnceConsumer(queue, "data/processed")
    consumer.poll_and_process(print)                 # prints {'cents': 250} once, for ever

Underneath work the same cores as in the processes: the broker that judges every id, in memory,
and the ledger of a consumer, on disk when `processed_store` is a path. Use `App` where messages
must survive a process, or where a handler's effects must be part of the commit.
"""

from __future__ import annotations

import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterator, MutableMapping, MutableSet
from typing import Any

from ... import protocol as say
from ...batch import Batch
from ...codec import batch as batch_codec
from ...codec import values as value_codec
from ...errors import BufferFull, IdConflict, InvalidName, OnceMQError, UnknownSession
from ...ids import tagged_id, untagged_id
from ...limits import SEED_BYTES_MAX, SEED_READ_BYTES, SEED_WINDOW_DEFAULT
from ...runtime.clock import SystemClock
from ...runtime.events import NullEvents
from ...runtime.process import draw
from ...storage.memory import MemoryDisk
from ..producing.acks import Ack
from .broker import InlineBroker
from .ledger import LedgerStore

MessageId = str | bytes | int
Handler = Callable[..., object]
Store = MutableMapping[Any, Any] | MutableSet[Any]

_TOPIC = "queue"


class ExactlyOnceQueue:
    """A queue in the memory of this process that stores each message id once. Threads may share it.

    Messages are kept until every consumer of the queue has processed them; ids, for at least
    `dedup_window` further messages.
    """

    def __init__(self, dedup_window: int | None = SEED_WINDOW_DEFAULT) -> None:
        """Remember at least the last `dedup_window` ids; None for all. Raises ValueError."""
        if dedup_window is not None and (type(dedup_window) is not int or dedup_window < 1):
            raise ValueError("dedup_window is a whole number above 0, or None to remember all ids")
        self._window = dedup_window
        self._lock = threading.Lock()
        # Oldest first; sends go to the last. Invariant: never empty, offsets follow each other.
        self._shelves = [_Shelf(0)]
        self._consumers: weakref.WeakSet[ExactlyOnceConsumer] = weakref.WeakSet()

    def __len__(self) -> int:
        """Return how many messages were ever stored."""
        return self._shelves[-1].end

    def send(self, message_id: MessageId, message: Any) -> Ack:
        """Store `message` unless its id is known: then the Ack has `duplicate=True`.

        A message is bytes, text, or what msgpack carries. Raises IdConflict (the id is stored with
        another message), ValueNotEncodable, TooLarge, InvalidName, and BufferFull when too much
        waits for consumers: let them process, then send again.
        """
        tagged = tagged_message_id(message_id)
        encoding, value = value_codec.encode_value(message, canonical=True)
        batch = batch_codec.build([value], encodings=encoding, ids=[tagged])
        with self._lock:
            self._tidy()
            for shelf in self._shelves[:-1]:
                known = shelf.judge_again(batch)
                if known is not None:
                    return _ack(known, shelf.first, tagged)
            if sum(shelf.size for shelf in self._shelves) + len(batch.raw) > SEED_BYTES_MAX:
                raise BufferFull(
                    f"the queue holds {SEED_BYTES_MAX} bytes",
                    hint="let its consumers process the waiting messages first",
                )
            shelf = self._shelves[-1]
            return _ack(shelf.store(batch), shelf.first, tagged)

    def _tidy(self) -> None:
        """Begin a new shelf when the last is full; drop shelves that are both old and processed."""
        if self._window is None:
            return
        last = self._shelves[-1]
        if last.end - last.first >= self._window:
            self._shelves.append(_Shelf(last.end))
        ends = (consumer._next_offset for consumer in self._consumers)  # noqa: SLF001 - one module
        done = min(ends, default=0)
        while len(self._shelves) > 2 and self._shelves[0].end <= done:
            self._shelves.pop(0).close()

    def _join(self, consumer: ExactlyOnceConsumer) -> int:
        """Keep messages until `consumer` has processed them; return where it starts."""
        with self._lock:
            self._consumers.add(consumer)
            return self._shelves[0].first

    def _read(self, first: int) -> list[tuple[int, bytes, Any]]:
        """Return (offset, tagged id, message) of some messages from `first` on; none at the end."""
        with self._lock:
            for shelf in self._shelves:
                if shelf.first <= first < shelf.end:
                    return list(shelf.read(first))
            return []


class _Shelf:
    """A run of messages in a broker of their own, so that it can be forgotten as a whole."""

    def __init__(self, first: int) -> None:
        self.first = first  # offset of the first message in the queue
        self.end = first  # offset behind the last message
        self.size = 0  # bytes of all batches
        self._session = draw()
        self._counter = 0
        self._broker = InlineBroker(
            MemoryDisk(),
            "queue",
            owner={"pid": os.getpid()},
            clock=SystemClock(),
            events=NullEvents(),
            entropy=draw,
            snapshot_every_bytes=None,  # memory is not recovered from
        )
        self._broker.ask_one(say.CreateTopic(self._broker.number(), _TOPIC, 1))

    def store(self, batch: Batch) -> say.Produced:
        """Store one message if it is new; return the broker's verdict."""
        try:
            produced = self._produce(batch, self._counter)
        except OnceMQError:
            self._session, self._counter = draw(), 0
            raise
        self._counter += 1
        if produced.runs[0][1] == say.STORED:
            self.end += 1
            self.size += len(batch.raw)
        return produced

    def judge_again(self, batch: Batch) -> say.Produced | None:
        """Return the verdict on a message without storing it; None if its id is not known here.

        A batch at a counter that had its verdict stores nothing: the broker answers known ids and
        refuses new ones.
        """
        try:
            return self._produce(batch, self._counter - 1)
        except UnknownSession:
            return None

    def _produce(self, batch: Batch, counter: int) -> say.Produced:
        request = say.Produce(
            self._broker.number(), _TOPIC, 0, "", 0, -1, self._session, counter, b"", batch.crc
        )
        produced = self._broker.ask_one(request, batch.raw).message
        assert isinstance(produced, say.Produced)
        return produced

    def read(self, first: int) -> Iterator[tuple[int, bytes, Any]]:
        found = self._broker.read(_TOPIC, first - self.first, SEED_READ_BYTES)
        for offset, tagged, body in found:
            assert tagged is not None
            encoding, _, value = batch_codec.split_body(body)
            yield self.first + offset, tagged, value_codec.decode_value(encoding, value)

    def close(self) -> None:
        self._broker.close()


class ExactlyOnceConsumer:
    """Calls a handler once for every message id, over restarts too if the store is a path.

    One thread polls at a time. Close it, or use it in a `with` block, when its store is a path.
    """

    def __init__(
        self,
        queue: ExactlyOnceQueue,
        processed_store: str | os.PathLike[str] | Store | None = None,
    ) -> None:
        """`processed_store` remembers which ids were processed.

        A path: a directory with a ledger, fsynced after every message; one consumer at a time owns
        it. A mapping or a set of yours (a `shelve`, say): `store[message_id] = True`, or
        `store.add(message_id)`, once the handler has returned. None: a ledger in memory.

        Raises LogInUse, CorruptLog, OSError, TypeError.
        """
        self._queue = queue
        self._processed = _processed(processed_store)
        self._polling = threading.Lock()
        # Behind the last message that this consumer has dealt with. Invariant: never decreases.
        self._next_offset = 0
        self._next_offset = queue._join(self)  # noqa: SLF001 - one module

    def poll_and_process(self, handler: Handler) -> int:
        """Call `handler` for every message that waits and was not processed; return how many were.

        A handler with two parameters gets (message_id, message), any other gets (message). When
        it raises, that message counts as not processed, the error goes on to the caller, and the
        next poll begins with that message again. What was sent before the call began is
        processed, in the order in which it was stored. Raises DiskFull (call again later).
        """
        wants_id = _wants_id(handler)
        count = 0
        with self._polling:
            end = len(self._queue)
            while self._next_offset < end:
                for offset, tagged, message in self._queue._read(self._next_offset):  # noqa: SLF001 - one module
                    if offset >= end:
                        break
                    message_id = given_message_id(tagged)
                    if not self._processed.knows(message_id, tagged):
                        self._processed.prepare()
                        if wants_id:
                            handler(message_id, message)
                        else:
                            handler(message)
                        self._processed.add(message_id, tagged)
                        count += 1
                    self._next_offset = offset + 1
        return count

    def close(self) -> None:
        self._processed.close()

    def __enter__(self) -> ExactlyOnceConsumer:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _UsersStore:
    """A mapping or set that the user gave."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def knows(self, message_id: MessageId, _tagged: bytes) -> bool:
        return message_id in self._store

    def prepare(self) -> None:
        """Do nothing: the user's store has no bound that OnceMQ knows."""

    def add(self, message_id: MessageId, _tagged: bytes) -> None:
        if isinstance(self._store, MutableMapping):
            self._store[message_id] = True
        else:
            self._store.add(message_id)

    def close(self) -> None:
        """Do nothing: the user closes the store."""


def _processed(store: str | os.PathLike[str] | Store | None) -> _UsersStore | LedgerStore:
    if store is None:
        return LedgerStore.in_memory()
    if isinstance(store, str | os.PathLike):
        return LedgerStore.in_directory(os.path.abspath(store))
    if isinstance(store, MutableMapping | MutableSet):
        return _UsersStore(store)
    raise TypeError(
        f"processed_store is a path, a mapping, a set or None, not {type(store).__name__}"
    )


def _wants_id(handler: Handler) -> bool:
    """Return whether a handler takes two arguments that it cannot do without."""
    if not callable(handler):
        raise TypeError("the handler must be callable")
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):  # of some built-in functions nothing is known
        return False
    return (
        sum(
            parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
            and parameter.default is parameter.empty
            for parameter in parameters
        )
        == 2
    )


def tagged_message_id(message_id: MessageId) -> bytes:
    """Return an id as tagged bytes; whole numbers are ids too. Raises InvalidName, TooLarge."""
    if type(message_id) is int:
        return tagged_id(b"\0int:%d" % message_id)
    if isinstance(message_id, bytes) and message_id.startswith(b"\0int:"):
        raise InvalidName(
            "ids in bytes that begin with \\0int: stand for whole numbers", hint="use another id"
        )
    return tagged_id(message_id)  # type: ignore[arg-type]  # what is no id is refused there


def given_message_id(tagged: bytes) -> MessageId:
    if tagged[1:6] == b"\0int:":
        return int(tagged[6:])
    return untagged_id(tagged)


def _ack(produced: say.Produced, first: int, tagged: bytes) -> Ack:
    ((_, verdict, offset),) = produced.runs
    if verdict == say.CONFLICT:
        raise IdConflict(f"message id {given_message_id(tagged)!r} is stored with another message")
    return Ack(_TOPIC, 0, first + offset, verdict == say.DUPLICATE, "memory")
