"""The owner of a key, and how the answers of owners become one answer."""

from __future__ import annotations

import zlib
from typing import Any

from .messages import Body, CommitOffsets, ListCommitted, Poll, Request, Send, to_json

FORWARD = "forward_"  # prefix of the type of a request from node to node
KINDS: dict[type[Request], str] = {
    Send: "send",
    Poll: "poll",
    CommitOffsets: "commit_offsets",
    ListCommitted: "list_committed_offsets",
}


def owner_of(key: str, members: tuple[str, ...]) -> str:
    """Return the node that holds the log of a key; `members` are all node ids, sorted."""
    return members[zlib.crc32(key.encode("utf-8", "surrogatepass")) % len(members)]


def split(request: Request, members: tuple[str, ...], here: str) -> dict[str, Request]:
    """Return the part of each owner. This node (`here`) answers a request without keys."""
    if len(members) == 1:
        return {here: request}
    if isinstance(request, Send):
        return {owner_of(request.key, members): request}
    parts: dict[str, Request]
    if isinstance(request, ListCommitted):
        keys: dict[str, list[str]] = {}
        for key in request.keys:
            keys.setdefault(owner_of(key, members), []).append(key)
        parts = {owner: ListCommitted(tuple(some)) for owner, some in keys.items()}
    else:
        offsets: dict[str, dict[str, int]] = {}
        for key, offset in request.offsets.items():
            offsets.setdefault(owner_of(key, members), {})[key] = offset
        parts = {owner: type(request)(some) for owner, some in offsets.items()}
    return parts or {here: request}


def reply_fields(request: Request, results: list[Any], *, forwarded: bool) -> str:
    """Return the fields of a reply, as JSON text that begins with a comma, or nothing.

    `results` has one entry for each part: (offset, duplicate), messages by key as JSON text,
    offsets by key with None for unknown ones, or None. A reply says whether a send was a duplicate
    only where the request named its message (the bench accepts no extra fields), and always to
    another node.
    """
    if isinstance(request, Send):
        offset, duplicate = results[0]
        shown = forwarded or request.message_id is not None
        return f',"offset":{offset}' + (f',"duplicate":{to_json(duplicate)}' if shown else "")
    if isinstance(request, Poll):
        texts = {key: text for result in results for key, text in result.items()}
        pairs = (f"{to_json(key)}:{texts[key]}" for key in request.offsets if key in texts)
        return f',"msgs":{{{",".join(pairs)}}}'
    if isinstance(request, ListCommitted):
        found = {key: offset for result in results for key, offset in result.items()}
        known = {key: offset for key, offset in found.items() if offset is not None}
        return f',"offsets":{to_json(known)}'
    return ""


# OverflowError: a number such as 1e999, which is read as infinity.
NO_ANSWER = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


def read_result(body: Body) -> Any:
    """Return the answer of an owner, as one of the `results` of `reply_fields`.

    Raises one of NO_ANSWER for an answer that no owner sends.
    """
    kind = body["type"]
    if kind == "forward_send_ok":
        offset, duplicate = body["offset"], body["duplicate"]
        if type(offset) is not int or type(duplicate) is not bool:
            raise TypeError("offset or duplicate")
        return offset, duplicate
    if kind == "forward_poll_ok":
        return {key: to_json(messages) for key, messages in body["msgs"].items()}
    if kind == "forward_list_committed_offsets_ok":
        return {key: int(offset) for key, offset in body["offsets"].items()}
    if kind == "forward_commit_offsets_ok":
        return None
    raise ValueError(f"unknown type {kind!r}")
