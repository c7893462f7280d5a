"""A broker inside this process: the shell of every broker; its transport is a pair of lists.

The owner passes requests and gets the answers from the same call. Both are encoded and checked as
on the wire. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ... import protocol as say
from ...codec import batch as batch_codec
from ...codec import wire
from ...errors import from_code
from ...limits import LIMITS, SNAPSHOT_EVERY_BYTES, Limits
from ...outcome import Received
from ...ports import Background, Clock, Events, Frames
from ...protocol import Message
from ...shells.broker import BrokerShell
from ...storage.disk import Disk
from ...storage.document import Owner

Entropy = Callable[[], bytes]  # 16 random bytes
Body = bytes | memoryview | None

_PEER = b"n" * 16
_TURNS_MAX = 64  # no request needs as many: beyond them there is a bug


class _Lists:
    """The transport between the broker and its owner."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, list[bytes]]] = []
        self.answers: list[list[bytes]] = []

    def poll(self, timeout_ms: int) -> list[tuple[bytes, list[bytes]]]:
        del timeout_ms
        taken, self.requests = self.requests, []
        return taken

    def send(self, peer: bytes, frames: Frames) -> bool:
        del peer
        self.answers.append([bytes(frame) for frame in frames])
        return True


class _PushedClock:
    """A clock that the owner can advance: work due in the next millisecond need not wait for it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._least_ms = 0

    def now_ms(self) -> int:
        """Never less than before."""
        self._least_ms = max(self._least_ms, self._clock.now_ms())
        return self._least_ms

    def push(self) -> None:
        self._least_ms = self.now_ms() + 1


class InlineBroker:
    """One broker and its only client."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        *,
        owner: Owner,
        clock: Clock,
        events: Events,
        entropy: Entropy,
        snapshot_every_bytes: int | None = SNAPSHOT_EVERY_BYTES,
        limits: Limits = LIMITS,
        background: Background | None = None,
    ) -> None:
        """Open the broker on `directory` and say hello. Raises as BrokerShell does."""
        self._lists = _Lists()
        self._clock = _PushedClock(clock)
        self._request = 0
        self._shell = BrokerShell(
            disk,
            directory,
            owner=owner,
            bind=lambda: self._lists,
            clock=self._clock,
            events=events,
            entropy=entropy,
            snapshot_every_bytes=snapshot_every_bytes,
            limits=limits,
            background=background,
        )
        self.ask_one(
            say.Hello(self.number(), say.VERSION_MIN, say.VERSION_MAX, "inline", entropy(), b"", 0)
        )

    def rest(self) -> None:
        """Use an idle moment: attest the last group, look at the fence. Raises Fenced."""
        self._shell.turn(0)

    def time_left_ms(self) -> int:
        """Return when `rest` is due."""
        return self._shell.time_left_ms()

    def number(self) -> int:
        self._request += 1
        return self._request

    def ask(self, messages: Sequence[tuple[Message, Body]]) -> dict[int, Received]:
        """Pass `messages` in one turn and return the answers by request number.

        A sync covers every answer. Raises Fenced, CorruptLog, OSError: never call again.
        """
        answers: dict[int, Received] = {}
        for message, body in messages:
            frames = [bytes(frame) for frame in wire.encode(message, body)]
            self._lists.requests.append((_PEER, frames))
        for _ in range(_TURNS_MAX):
            self._shell.turn(0)
            for frames in self._lists.answers:
                received = wire.decode(b"", frames)
                answers[received.message.request] = received
            self._lists.answers.clear()
            if len(answers) == len(messages):
                return answers
            self._clock.push()
        raise AssertionError(f"{len(messages) - len(answers)} requests got no answer")

    def ask_one(self, message: Message, body: Body = None) -> Received:
        """Pass one request. Raises the broker's refusal, and all that `ask` raises."""
        (answer,) = self.ask([(message, body)]).values()
        if isinstance(answer.message, say.Failure):
            raise from_code(answer.message.code, answer.message.reason, answer.message.hint)
        return answer

    def read(
        self, topic: str, first: int, bytes_max: int
    ) -> Iterator[tuple[int, bytes | None, bytes]]:
        """Yield (offset, tagged id or None, body) of stored messages from `first` on.

        At least one message if `first` is below the durable end, and about `bytes_max`; read on
        behind the last one. `codec.batch.split_body` takes a body apart.
        """
        bytes_max = min(max(bytes_max, 1), LIMITS.fetch_bytes_default)
        fetch = say.Fetch(self.number(), "", topic, 0, 0, first, bytes_max, 0)
        for record in self.ask_one(fetch).stored or ():
            batch = record.batch
            assert batch is not None
            kept: Sequence[int] = range(batch.count)
            if record.mask:
                kept = [index for index in kept if record.mask[index >> 3] >> (index & 7) & 1]
            skip = max(0, first - record.first_offset)
            for place, index in enumerate(kept[skip:], skip):
                tagged = None if batch.ids is None else batch.ids[index]
                yield record.first_offset + place, tagged, batch.body(index)

    def values(self, topic: str, first: int, bytes_max: int) -> Iterator[tuple[int, bytes]]:
        for offset, _, body in self.read(topic, first, bytes_max):
            yield offset, batch_codec.split_body(body)[2]

    def close(self) -> None:
        self._shell.close(clean=True)
