"""Messages of a node: JSON lines in, checked requests out, answers and errors back.

Only this file checks what arrives; behind it there are plain values within their limits. A line
that is no message at all raises BadLine (there is no sender to answer). A message that asks for
something impossible raises Refusal, which becomes an error reply.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OnceMQError
from ..ids import tagged_id
from ..limits import (
    MESSAGE_BYTES_MAX,
    NODE_KEY_BYTES_MAX,
    NODE_KEYS_PER_REQUEST_MAX,
    NODE_MEMBERS_MAX,
)

# Error codes of Maelstrom's protocol. A definite code promises that nothing was done.
TIMEOUT = 0  # outcome unknown
NOT_SUPPORTED = 10  # definite
UNAVAILABLE = 11  # definite
MALFORMED = 12  # definite
CRASH = 13  # outcome unknown
PRECONDITION_FAILED = 22  # definite

Body = dict[str, Any]

_OFFSET_MAX = 2**63 - 1
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,96}\Z", re.ASCII)
_READ = "utf-8", "surrogatepass"  # JSON may carry lone surrogates; two such keys must stay two


class BadLine(ValueError):
    """A line that is not a message: it is reported on stderr and passed over."""


class Refusal(Exception):
    """An error reply: `code` of the protocol and a text for people."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Line:
    """A message as it arrived."""

    src: str
    dest: str
    body: Body


@dataclass(frozen=True, slots=True)
class Send:
    """Append one message to the log of a key."""

    key: str
    value: bytes  # the message as JSON text
    message_id: bytes | None  # tagged


@dataclass(frozen=True, slots=True)
class Poll:
    """Read from these offsets on."""

    offsets: dict[str, int]


@dataclass(frozen=True, slots=True)
class CommitOffsets:
    """Store the offsets up to and including which these keys are processed."""

    offsets: dict[str, int]


@dataclass(frozen=True, slots=True)
class ListCommitted:
    """Read the committed offsets of these keys."""

    keys: tuple[str, ...]


Request = Send | Poll | CommitOffsets | ListCommitted


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# Made once: json.dumps and json.loads make a new one for every call with options.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
_encode_canonical = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def read_line(line: bytes) -> Line:
    """Raises BadLine."""
    try:
        message = _decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadLine("not a JSON object")
    src, dest, body = message.get("src"), message.get("dest"), message.get("body")
    if not isinstance(src, str) or not isinstance(dest, str) or not isinstance(body, dict):
        raise BadLine("not a message: src, dest and body wanted")
    return Line(src, dest, body)


def to_json(value: Any, *, canonical: bool = False) -> str:
    """In ASCII. Raises ValueError for NaN and infinities."""
    return _encode_canonical(value) if canonical else _encode(value)


def fingerprint(body: Body) -> bytes:
    """Equal for equal bodies, in any order of fields. Raises Refusal."""
    try:
        text = to_json(body, canonical=True)
    except (ValueError, RecursionError):  # 1e999 is read as infinity
        raise Refusal(MALFORMED, "a number that JSON has no form for, or too deep") from None
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def message_number(body: Body) -> int:
    """Raises Refusal."""
    return _whole(body, "msg_id", body.get("msg_id"))


def read_init(body: Body) -> tuple[str, tuple[str, ...]]:
    """Return (node id, all node ids sorted) of an init. Raises Refusal."""
    node_id, node_ids = body.get("node_id"), body.get("node_ids")
    if not isinstance(node_id, str) or not node_id:
        raise Refusal(MALFORMED, "node_id: text wanted")
    if not isinstance(node_ids, list) or not all(isinstance(node, str) for node in node_ids):
        raise Refusal(MALFORMED, "node_ids: a list of text wanted")
    members = tuple(sorted(set(node_ids)))
    if node_id not in members or len(members) > NODE_MEMBERS_MAX:
        raise Refusal(
            MALFORMED, f"node_ids: up to {NODE_MEMBERS_MAX} ids, {node_id!r} among them, wanted"
        )
    return node_id, members


def read_request(kind: str, body: Body) -> Request:
    """Raises Refusal (MALFORMED, NOT_SUPPORTED)."""
    if kind == "send":
        return _read_send(body)
    if kind == "poll":
        return Poll(_read_offsets(body))
    if kind == "commit_offsets":
        return CommitOffsets(_read_offsets(body))
    if kind == "list_committed_offsets":
        keys = body.get("keys")
        if not isinstance(keys, list):
            raise Refusal(MALFORMED, "keys: a list of text wanted")
        return ListCommitted(tuple(dict.fromkeys(_keys(keys))))
    raise Refusal(NOT_SUPPORTED, f"no such request: {kind!r}")


def write_request(request: Request) -> Body:
    """The inverse of `read_request`."""
    if isinstance(request, Send):
        fields: Body = {"key": request.key, "msg": json.loads(request.value)}
        if request.message_id is not None:
            tagged = request.message_id
            fields["message_id"] = tagged[1:].decode() if tagged[:1] == b"s" else int(tagged[2:])
        return fields
    if isinstance(request, ListCommitted):
        return {"keys": list(request.keys)}
    return {"offsets": request.offsets}


def _read_send(body: Body) -> Send:
    (key,) = _keys([body.get("key")])
    if "msg" not in body:
        raise Refusal(MALFORMED, "msg is missing")
    given = body.get("message_id")
    message_id = None if given is None else _message_id(given)
    try:
        value = to_json(body["msg"], canonical=message_id is not None).encode()
    except (ValueError, RecursionError):
        raise Refusal(MALFORMED, "msg: a number that JSON has no form for") from None
    if len(value) > MESSAGE_BYTES_MAX:
        raise Refusal(
            MALFORMED, f"msg: {len(value)} bytes as JSON, the limit is {MESSAGE_BYTES_MAX}"
        )
    return Send(key, value, message_id)


def _message_id(given: object) -> bytes:
    if isinstance(given, str):
        named: str | bytes = given
    elif type(given) is int:
        named = b"i%d" % given
    else:
        raise Refusal(MALFORMED, "message_id: text or a whole number wanted")
    try:
        return tagged_id(named)
    except OnceMQError as error:
        raise Refusal(MALFORMED, f"message_id: {error.reason}") from None


def origin_id(node: str, session: str, src: str, number: int) -> bytes:
    """Return a message id for a forwarded send whose client gave none.

    It names the request, so that a forward that arrives twice, even after a restart of the owner,
    is stored once. `session` is random for each init of the forwarding node, because clients may
    use their numbers again after an init.
    """
    name = to_json([node, session, src, number]).encode()
    return tagged_id(b"o" + hashlib.sha256(name).digest())


def _whole(_body: Body, name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= _OFFSET_MAX:
        raise Refusal(MALFORMED, f"{name}: a whole number from 0 to 2^63-1 wanted")
    return value


def _keys(given: Iterable[object]) -> list[str]:
    keys = list(given)
    if len(keys) > NODE_KEYS_PER_REQUEST_MAX:
        raise Refusal(MALFORMED, f"more than {NODE_KEYS_PER_REQUEST_MAX} keys")
    for key in keys:
        if not isinstance(key, str):
            raise Refusal(MALFORMED, "key: text wanted")
        if len(key.encode(*_READ)) > NODE_KEY_BYTES_MAX:
            raise Refusal(MALFORMED, f"key: longer than {NODE_KEY_BYTES_MAX} bytes")
    return [str(key) for key in keys]


def _read_offsets(body: Body) -> dict[str, int]:
    offsets = body.get("offsets")
    if not isinstance(offsets, Mapping):
        raise Refusal(MALFORMED, "offsets: a map of key to offset wanted")
    return {key: _whole(body, "offset", offsets[key]) for key in _keys(offsets)}


def topic_of(key: str) -> str:
    """Return the topic that holds a key's log: every key has its own, so offsets are dense.

    Plain keys stay readable; any other is named by its SHA-256, so that two keys never meet and
    names stay within their limits.
    """
    if _PLAIN_KEY.match(key):
        return f"key-{key}"
    return f"sha256-{hashlib.sha256(key.encode(*_READ)).hexdigest()}"
