"""Dead letters: what is written of a message that was parked, and the message behind a replay.

A dead letter has the key, value, encoding and headers of the message, and headers with names of
OnceMQ's own that tell where it came from and why it was parked. A replay carries the same headers,
so that the handler gets the original message, wherever the copy lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...codec import batch as batch_codec
from ...codec import wire
from ...codec.batch import split_body
from ...codec.values import RESERVED_HEADER, decode_headers, encode_letter_headers
from ...errors import Malformed
from ...ids import TEXT_TAG, dead_topic, tagged_id
from ...limits import PARKED_ERROR_BYTES_MAX
from ...records import Output
from ..messages.message import Lot, Message, Recorded, explicit_key
from .unit_of_work import UNNUMBERED

# Headers of a dead letter. All values are UTF-8, but for the id of a message that had bytes.
GROUP = "oncemq-group"
KIND = "oncemq-kind"
ERROR = "oncemq-error"
ATTEMPTS = "oncemq-attempts"
PARKED_AT = "oncemq-parked-at-ms"
TOPIC = "oncemq-topic"
PARTITION = "oncemq-partition"
OFFSET = "oncemq-offset"
APPENDED_AT = "oncemq-appended-at-ms"
ID = "oncemq-id"
ID_TYPE = "oncemq-id-type"  # text | bytes | sequence
EFFECTS = "oncemq-effects"  # msgpack: recorded results as [name, encoding, value]

SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message comes from: what of its identity does not lie in the copy itself."""

    topic: str
    partition: int
    offset: int
    appended_at_ms: int
    id: str | bytes
    id_type: str

    def headers(self) -> dict[str, bytes]:
        name = self.id if isinstance(self.id, bytes) else self.id.encode()
        return {
            TOPIC: self.topic.encode(),
            PARTITION: b"%d" % self.partition,
            OFFSET: b"%d" % self.offset,
            APPENDED_AT: b"%d" % self.appended_at_ms,
            ID: name,
            ID_TYPE: self.id_type.encode(),
        }


def origin_in(headers: dict[str, bytes]) -> Origin | None:
    """None if the headers hold none, or nonsense."""
    try:
        id_type = headers[ID_TYPE].decode()
        name = headers[ID]
        return Origin(
            headers[TOPIC].decode(),
            int(headers[PARTITION]),
            int(headers[OFFSET]),
            int(headers[APPENDED_AT]),
            name if id_type == "bytes" else name.decode(),
            id_type,
        )
    except (KeyError, ValueError):
        return None


def origin_of(message: Message) -> Origin:
    """Of a replay: that of the message that it stands for."""
    if isinstance(message, Replayed) and message.origin is not None:
        return message.origin
    ids = message._lot.batch.ids  # noqa: SLF001 - one module, two faces
    kind = SEQUENCE
    if ids is not None:
        kind = "text" if ids[message._index][:1] == TEXT_TAG else "bytes"  # noqa: SLF001
    place = (message.topic, message.partition, message.offset, message.appended_at_ms)
    return Origin(*place, message.id, kind)


class Replayed(Message):
    """A message of a private topic, seen as the one that it stands for."""

    __slots__ = ("_brought", "_headers", "origin")

    def _begin(self) -> None:
        headers = safe_headers(self._lot, self._index)
        # None if somebody other than an operator's command sent it: then it is what it is.
        self.origin = origin_in(headers)
        self._headers = own_headers(headers)
        self._brought = _recorded(headers.get(EFFECTS, b"")) if self.origin else {}
        if self.origin is not None:
            self.offset = self.origin.offset

    @property
    def attempt(self) -> int:
        """Counted anew since the replay."""
        return self._lot.attempt

    @property
    def topic(self) -> str:
        return super().topic if self.origin is None else self.origin.topic

    @property
    def partition(self) -> int:
        return super().partition if self.origin is None else self.origin.partition

    @property
    def id(self) -> str | bytes:
        return super().id if self.origin is None else self.origin.id

    @property
    def headers(self) -> dict[str, bytes]:
        return dict(self._headers)

    @property
    def appended_at_ms(self) -> int:
        return super().appended_at_ms if self.origin is None else self.origin.appended_at_ms

    def _recorded(self) -> dict[str, Recorded]:
        return self._brought

    def _idempotency_key(self) -> str:
        origin, group = self.origin, self._lot.group
        if origin is None:
            return super()._idempotency_key()
        if origin.id_type == SEQUENCE:
            return f"{group}@{origin.id!s}"
        return explicit_key(group, origin.topic, tagged_id(origin.id))


def _recorded(packed: bytes) -> dict[str, Recorded]:
    if not packed:
        return {}
    try:
        return {
            name: Recorded(encoding, value) for name, encoding, value in wire.unpack_plain(packed)
        }
    except (Malformed, TypeError, ValueError):
        return {}


def safe_headers(lot: Lot, index: int) -> dict[str, bytes]:
    """What cannot be decoded counts as none."""
    if lot.batch.headers is None:
        return {}
    try:
        return decode_headers(lot.batch.headers[index])
    except Malformed:
        return {}


def own_headers(headers: dict[str, bytes]) -> dict[str, bytes]:
    return {n: value for n, value in headers.items() if not n.startswith(RESERVED_HEADER)}


def dead_letter(
    message: Message,
    *,
    kind: str,
    attempts: int,
    error: str,
    at_ms: int,
    effects: Mapping[str, Recorded] | None = None,
) -> Output:
    """Return the dead letter of a message, without a number. Never raises for what users sent.

    `effects` are those with a recorded result: a replay brings them along.
    """
    lot, index = message._lot, message._index  # noqa: SLF001
    origin = origin_of(message)
    encoding, key, value = split_body(lot.body(index))
    system = {
        GROUP: lot.group.encode(),
        KIND: kind.encode(),
        ERROR: bounded_error(error),
        ATTEMPTS: b"%d" % attempts,
        PARKED_AT: b"%d" % at_ms,
        **origin.headers(),
    }
    if effects:
        rows = [[name, one.encoding, one.value] for name, one in sorted(effects.items())]
        system[EFFECTS] = wire.pack_plain(rows)
    created = message.created_at_ms
    built = batch_codec.build(
        [value],
        encodings=encoding,
        keys=None if key is None else [key],
        headers=[encode_letter_headers(own_headers(safe_headers(lot, index)), system)],
        created_at_ms=None if created is None else [created],
    )
    topic = dead_topic(origin.topic)
    return Output(topic, origin.partition, UNNUMBERED, 1, bytes(built.raw), built.crc)


def bounded_error(text: str) -> bytes:
    """Whole characters, within the limit of a letter."""
    data = text.encode(errors="replace")[:PARKED_ERROR_BYTES_MAX]
    return data.decode(errors="ignore").encode()
