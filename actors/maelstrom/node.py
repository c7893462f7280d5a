"""A node of the Maelstrom test bench: JSON lines in, JSON lines out, the same cores inside.

Theory of operation. `feed` takes all waiting lines as one turn. It checks each line in order, and
either answers from memory or splits the request by the owners of its keys. The parts of this node
go to the store, which makes them durable by one sync; only then `feed` writes the replies, in the
order of the requests. A read sees the requests in front of it in the turn and none behind it. Parts
of other nodes are forwarded, and answered when their owners answer.

(src, msg_id) identifies a request: a copy with the same body gets the same answer, and the request
is executed once. The owner identifies a forward by session and line number of the forwarding node,
and the send in it by a message id made from its origin, also after a restart.
"""

from __future__ import annotations

from collections.abc import Callable

from ..limits import LIMITS, NODE_POLL_BYTES_MAX, NODE_POLL_MESSAGES_MAX, Limits
from ..ports import Clock
from .forwards import Forwards, Gather, Part
from .messages import (
    MALFORMED,
    PRECONDITION_FAILED,
    UNAVAILABLE,
    BadLine,
    Body,
    CommitOffsets,
    Line,
    ListCommitted,
    Refusal,
    Request,
    Send,
    fingerprint,
    message_number,
    origin_id,
    read_init,
    read_line,
    read_request,
    to_json,
    write_request,
)
from .owners import FORWARD, KINDS, NO_ANSWER, read_result, reply_fields, split
from .replies import Question, Replies
from .store import NodeStore, Write

_FLUSH_BYTES = 1024 * 1024


class MaelstromNode:
    """One node. `write` gets whole lines as bytes, `report` gets texts for stderr.

    Call `feed` with the lines that wait on stdin, `tick` when `time_left_ms` has passed without
    input, and `finish` at the end of input. Errors of the store (Fenced, CorruptLog, OSError) pass
    through: the process must end then, without another answer.
    """

    def __init__(
        self,
        store: NodeStore,
        clock: Clock,
        *,
        entropy: Callable[[], bytes],
        write: Callable[[bytes], None],
        report: Callable[[str], None],
        limits: Limits = LIMITS,
    ) -> None:
        self._limits = limits
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._write = write
        self._report = report
        self._node_id: str | None = None  # until init
        self._members: tuple[str, ...] = ()  # all node ids, sorted; the owner is one of them
        self._session = ""  # random for each init
        self._next_number = 0  # of the next message that this node writes
        self._replies = Replies(limits)
        self._forwards = Forwards(limits)
        # Bytes of answers of other nodes whose requests wait for further parts. Bounded, because
        # the size of an answer is the other node's choice.
        self._held_bytes = 0
        self._turn: list[Callable[[], None]] = []  # what follows the sync, in order of requests
        self._out: list[bytes] = []
        self._out_bytes = 0

    # --- the turn --------------------------------------------------------------------------------

    def feed(self, lines: list[bytes]) -> None:
        """Execute `lines` in order and write their replies. Reports bad lines."""
        for line in lines:
            try:
                self._take(read_line(line))
            except BadLine as error:
                self._report(f"line passed over: {error}")
        self._store.flush()
        turn, self._turn = self._turn, []
        for finish in turn:
            finish()
        self._flush()

    def tick(self) -> None:
        """Resend and give up forwards that are due; let the store use an idle moment."""
        for line in self._forwards.due(self._clock.now_ms()):
            self._put(line)
        self._flush()
        self._store.rest()

    def time_left_ms(self) -> int:
        wake = self._forwards.wake_at_ms()
        left = self._store.time_left_ms()
        return left if wake is None else max(0, min(left, wake - self._clock.now_ms()))

    def finish(self) -> None:
        """End the input: answer requests that still wait for other nodes, as unknown if they write."""
        self._forwards.give_up_all()
        self._flush()

    def _put(self, line: bytes) -> None:
        self._out.append(line)
        self._out_bytes += len(line)
        if self._out_bytes > _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            self._write(b"".join(self._out))
            self._out.clear()
            self._out_bytes = 0

    # --- requests --------------------------------------------------------------------------------

    def _take(self, line: Line) -> None:
        kind = line.body.get("type")
        if kind == "init":
            self._init(line)
            return
        if self._node_id is not None and line.dest != self._node_id:
            raise BadLine(f"for {line.dest!r}, and this is {self._node_id!r}")
        if "in_reply_to" in line.body:
            self._take_reply(line)
            return
        question = Question(line.src, None)
        try:
            question.number = message_number(line.body)
            if self._node_id is None:
                raise Refusal(UNAVAILABLE, "init has not come yet")
            if not isinstance(kind, str):
                raise Refusal(MALFORMED, "type: text wanted")
            if self._asked_before(question, line):
                return
            if question.forwarded:
                kind = kind.removeprefix(FORWARD)
            request = read_request(kind, line.body)
            self._start(question, request, self._origin(question, line))
        except Refusal as refusal:
            self._later(question, refusal)

    def _init(self, line: Line) -> None:
        question = Question(line.src, None)
        try:
            question.number = message_number(line.body)
            self._node_id, self._members = read_init(line.body)
        except Refusal as refusal:
            self._later(question, refusal)
            return
        self._session = self._entropy().hex()
        self._replies.clear()
        self._forwards.clear()
        self._held_bytes = 0
        self._turn.append(lambda: self._reply(question, "init_ok", ""))

    def _asked_before(self, question: Question, line: Line) -> bool:
        """Return False and remember a new request; return True and answer a copy.

        Raises Refusal for another body under the same msg_id.
        """
        digest = fingerprint(line.body)
        session: object = None
        if line.src in self._members and str(line.body.get("type")).startswith(FORWARD):
            session = line.body.get("session")
            question.forwarded = True
            question.echo = f',"session":{to_json(session)}'
        key = (line.src, session if isinstance(session, str) else None, question.number)
        before = self._replies.find(key)
        if before is None:
            question.key, question.digest = key, digest
            self._replies.open(question)
            return False
        if before.digest != digest:
            raise Refusal(MALFORMED, "this msg_id came before with another body")
        if before.reply is None:
            before.copies += 1
        else:
            reply = before.reply
            self._turn.append(lambda: self._put(reply))
        return True

    def _origin(self, question: Question, line: Line) -> bytes | None:
        """Return the message id for a send without one in a forwarded request. Raises Refusal."""
        if not question.forwarded:
            return None
        session, origin = line.body.get("session"), line.body.get("origin")
        if (
            not isinstance(session, str)
            or not isinstance(origin, list)
            or len(origin) != 2
            or not isinstance(origin[0], str)
            or type(origin[1]) is not int
        ):
            raise Refusal(MALFORMED, "a forward names its session and its origin [src, msg_id]")
        return origin_id(line.src, session, origin[0], origin[1])

    def _later(self, question: Question, refusal: Refusal) -> None:
        self._turn.append(lambda: self._refuse(question, refusal))

    # --- replies ---------------------------------------------------------------------------------

    def _reply(self, question: Question, kind: str, fields: str) -> None:
        """Write the reply; `fields` is JSON text that begins with a comma, or nothing."""
        answered = "" if question.number is None else f',"in_reply_to":{question.number}'
        question.reply = (
            f'{{"src":{to_json(self._node_id or "")},"dest":{to_json(question.asker)},'
            f'"body":{{"type":{to_json(kind)}{answered},"msg_id":{self._next_number}'
            f"{question.echo}{fields}}}}}\n"
        ).encode()
        self._next_number += 1
        for _ in range(question.copies):
            self._put(question.reply)
        self._replies.keep(question)

    def _refuse(self, question: Question, refusal: Refusal) -> None:
        text = to_json(refusal.text)
        self._reply(question, "error", f',"code":{refusal.code},"text":{text}')

    # --- execution -------------------------------------------------------------------------------

    def _start(self, question: Question, request: Request, origin: bytes | None) -> None:
        """Begin a request: this node's part goes to the store, the others to their owners."""
        assert self._node_id is not None
        parts = split(request, self._members, self._node_id)
        gather = Gather(
            isinstance(request, Send | CommitOffsets),
            lambda gather: self._complete(question, request, gather),
        )
        remote = {owner: part for owner, part in parts.items() if owner != self._node_id}
        if remote and question.forwarded:
            raise Refusal(UNAVAILABLE, "a key of this forward belongs to another node")
        lines = []
        for owner, part in remote.items():
            number = self._next_number
            self._next_number += 1
            lines.append((number, self._forward_line(owner, number, question, part)))
        if not self._forwards.has_room(len(lines), sum(len(line) for _, line in lines)):
            limits = self._limits
            raise Refusal(
                UNAVAILABLE,
                f"{limits.node_forwards_max} requests, or {limits.node_forwards_bytes_max} bytes of "
                "them, wait for other nodes: ask again",
            )
        places = [gather.part() for _ in parts]
        now = self._clock.now_ms()
        for (number, line), place in zip(lines, places, strict=False):
            self._forwards.start(number, line, gather, place, now)
            self._put(line)
        if len(remote) < len(parts):
            self._execute(parts[self._node_id], gather, places[-1], origin)

    def _forward_line(self, owner: str, number: int, question: Question, request: Request) -> bytes:
        body: Body = {
            "type": FORWARD + KINDS[type(request)],
            "msg_id": number,
            "session": self._session,
            "origin": [question.asker, question.number],
            **write_request(request),
        }
        line = {"src": self._node_id, "dest": owner, "body": body}
        return to_json(line, canonical=True).encode() + b"\n"

    def _execute(self, request: Request, gather: Gather, part: Part, origin: bytes | None) -> None:
        """Hand this node's part to the store now, and settle it after the sync."""
        store = self._store
        if isinstance(request, Send):
            write = store.append(request.key, request.value, request.message_id or origin)
            own_id = request.message_id is not None
            self._turn.append(lambda: self._settle_send(write, gather, part, own_id=own_id))
        elif isinstance(request, CommitOffsets):
            commit = store.commit(request.offsets)
            self._turn.append(lambda: gather.settle(part, refusal=commit.refusal))
        elif isinstance(request, ListCommitted):
            reads = {key: store.committed(key) for key in request.keys}
            self._turn.append(
                lambda: gather.settle(part, {key: read() for key, read in reads.items()})
            )
        else:
            ends = {key: store.end(key) for key in request.offsets}
            offsets = request.offsets
            self._turn.append(lambda: gather.settle(part, lambda: self._read(offsets, ends)))

    def _settle_send(self, write: Write, gather: Gather, part: Part, *, own_id: bool) -> None:
        refusal = write.refusal
        if refusal is not None and refusal.code == PRECONDITION_FAILED and not own_id:
            refusal = Refusal(MALFORMED, "this msg_id came before with another body")
        gather.settle(part, (write.offset, write.duplicate), refusal)

    def _read(self, offsets: dict[str, int], ends: dict[str, Callable[[], int]]) -> dict[str, str]:
        """Return the messages of each key as JSON text, within the bytes of one answer.

        Keys share the bytes. A key for which nothing is left is empty this time, never the first.
        """
        left = NODE_POLL_BYTES_MAX
        share = NODE_POLL_BYTES_MAX // max(1, len(offsets))
        found = {}
        for key, first in offsets.items():
            messages = []
            if left > 0:
                messages = self._store.read(
                    key,
                    first,
                    ends[key](),
                    messages_max=NODE_POLL_MESSAGES_MAX,
                    bytes_max=min(share, left),
                )
            left -= sum(len(value) for _, value in messages)
            pairs = (f"[{offset},{value.decode()}]" for offset, value in messages)
            found[key] = f"[{','.join(pairs)}]"
        return found

    def _complete(self, question: Question, request: Request, gather: Gather) -> None:
        self._held_bytes -= gather.held_bytes
        refusal = gather.refusal()
        if refusal is not None:
            self._refuse(question, refusal)
            return
        results = [part.result() if callable(part.result) else part.result for part in gather.parts]
        kind = KINDS[type(request)]
        if question.forwarded:
            kind = FORWARD + kind
        fields = reply_fields(request, results, forwarded=question.forwarded)
        self._reply(question, f"{kind}_ok", fields)

    # --- answers of other nodes ------------------------------------------------------------------

    def _take_reply(self, line: Line) -> None:
        """Settle the part that an owner answers. Late and doubled answers change nothing."""
        number = line.body["in_reply_to"]
        if type(number) is not int or line.src not in self._members:
            raise BadLine("a reply to nothing that was asked")
        if line.body.get("session") != self._session:
            return  # meant for this node before its last init, which used the same numbers
        self._turn.append(lambda: self._settle_forward(number, line.body))

    def _settle_forward(self, number: int, body: Body) -> None:
        forward = self._forwards.take(number)
        if forward is None:
            return
        gather, part = forward.gather, forward.part
        if body.get("type") == "error":
            self._settle_error(forward.sent, gather, part, body)
            return
        try:
            result = read_result(body)
        except NO_ANSWER as error:
            self._report(f"a reply that cannot be understood: {type(error).__name__}: {error}")
            gather.give_up(part, "the owner of a key answered something else")
            return
        if isinstance(result, dict) and "msgs" in body and len(gather.parts) > 1:
            size = sum(map(len, result.values()))
            if self._held_bytes + size > self._limits.node_forwards_bytes_max:
                most = self._limits.node_forwards_bytes_max
                gather.give_up(part, f"{most} bytes of answers wait for other nodes: ask again")
                return
            gather.held_bytes += size
            self._held_bytes += size
        gather.settle(part, result)

    def _settle_error(self, sent: int, gather: Gather, part: Part, body: Body) -> None:
        code, text = body.get("code"), str(body.get("text", ""))
        if code in (MALFORMED, PRECONDITION_FAILED):
            # The same line gets the same verdict whenever it arrives.
            gather.settle(part, refusal=Refusal(code, text))
        elif code == UNAVAILABLE and (sent == 1 or not gather.writes):
            gather.settle(part, refusal=Refusal(UNAVAILABLE, text))
        else:
            # UNAVAILABLE after a resend is not definite: another copy of the line may still arrive
            # and succeed.
            gather.give_up(part, f"the owner of a key failed: {text}")
