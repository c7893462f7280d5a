"""The shapes of handlers: which functions may be one, and how they are called.

A handler takes (message, tx), or (messages, tx) with `batch=True`; it is a plain function or an
`async def`. What looks like a handler but would lose messages - a generator, a function of a list
without `batch=True` - is refused where it is written, not when the first message arrives.

A list is asked for by `batch=True` alone, never by the annotation: whether a commit is all-or-
nothing for many messages must not hang on a type that nobody has to write. An annotation that
says otherwise is refused.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import NotAHandler
from ...limits import BATCH_SIZE_DEFAULT, CONCURRENCY_MAX, LIMITS
from ..messages.message import Decode, Message
from ..messages.payloads import Serializer, decoder_of, decoder_with, name_of

_LISTS = (list, tuple, collections.abc.Iterable, collections.abc.Sequence)
_LIST_NAMES = frozenset({"list", "tuple", "iterable", "sequence"})

SINGLE = "write: def handler(message: Message, tx: Tx) -> None"
LISTED = "write: def handler(messages: list[Message], tx: Tx) -> None"


@dataclass(frozen=True, slots=True)
class Shape:
    """How a handler is called."""

    is_async: bool = False
    batch_size: int = 0  # messages in a list, at most; 0: message by message
    by_key: bool = False  # tx.state is that of the message's key alone
    concurrency: int = 1  # messages of different keys at the same time
    decode: Decode | None = None  # of typed payloads; None: as they were sent
    payload: str = ""  # the name of their type
    serializer: Serializer | None = None  # of the App: what the handler sends and gets


PLAIN = Shape()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the decorator was given about the shape."""

    batch: bool = False
    batch_size: int | None = None
    typed: Any = None
    state_by: str | None = None
    concurrency: int = 1
    serializer: Serializer | None = None


def shape_of(function: Any, wishes: Wishes) -> Shape:
    """Raises NotAHandler unless `function` can be one."""
    name = getattr(function, "__qualname__", repr(function))
    batch_size = _batch_size(wishes)
    _check_concurrency(wishes)
    if isinstance(function, type) or not callable(function):
        raise NotAHandler(
            f"{name} is not a function", hint="decorate a function: def handler(message, tx)"
        )
    is_async = False
    for call in (function, function.__call__):
        if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
            raise NotAHandler(f"{name} is a generator", hint="use tx.send(...) instead of yield")
        is_async = is_async or inspect.iscoroutinefunction(call)
    annotated = _check_signature(function, name, batch=wishes.batch)
    typed = wishes.typed if wishes.typed is not None else annotated
    by_key = wishes.state_by is not None
    decode, payload, serializer = None, "", wishes.serializer
    if typed is not None:
        decode, payload = decoder_of(typed), name_of(typed)
    if serializer is not None:
        decode = decoder_with(serializer, decode, typed)
        payload = payload or f"value of serializer {serializer.name!r}"
    return Shape(is_async, batch_size, by_key, wishes.concurrency, decode, payload, serializer)


def _batch_size(wishes: Wishes) -> int:
    if type(wishes.batch) is not bool:
        raise NotAHandler(f"batch is True or False, not {wishes.batch!r}", hint="see batch_size")
    size = wishes.batch_size
    if not wishes.batch:
        if size is not None:
            raise NotAHandler("batch_size= is for handlers of lists", hint="add batch=True")
        return 0
    if size is None:
        return BATCH_SIZE_DEFAULT
    most = LIMITS.commit_messages_max
    if type(size) is not int or not 1 <= size <= most:
        raise ValueError(f"batch_size is a number from 1 to {most}, not {size!r}")
    return size


def _check_concurrency(wishes: Wishes) -> None:
    many, by = wishes.concurrency, wishes.state_by
    if type(many) is not int or not 1 <= many <= CONCURRENCY_MAX:
        raise ValueError(f"concurrency is a number from 1 to {CONCURRENCY_MAX}, not {many!r}")
    if by not in {None, "key"}:
        raise ValueError(f'state_by is "key" or left out, not {by!r}')
    if many > 1 and by is None:
        raise NotAHandler(
            'concurrency > 1 needs state_by="key"',
            hint="handlers that run at the same time must not share state; with state_by each key "
            "has its own state, and messages of one key keep their order",
        )
    if wishes.batch and by is not None:
        raise NotAHandler(
            'batch=True and state_by="key" exclude each other: a list has messages of many keys'
        )


def _check_signature(function: Callable[..., Any], name: str, *, batch: bool) -> Any:
    """The payload type that the first parameter names, or None."""
    wanted = LISTED if batch else SINGLE
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None  # made in C: the first call will tell
    try:
        signature.bind(None, None)
    except TypeError:
        what = "(messages, tx)" if batch else "(message, tx)"
        raise NotAHandler(f"{name}{signature} does not take {what}", hint=wanted) from None
    first = next(iter(signature.parameters.values()))
    if first.kind is inspect.Parameter.VAR_POSITIONAL or first.annotation is first.empty:
        return None
    annotation = first.annotation
    if isinstance(annotation, str):
        annotation = _evaluated(function, annotation)
    if isinstance(annotation, str):
        return _from_text(annotation, name, batch=batch)
    kind = typing.get_origin(annotation) or annotation
    if kind in _LISTS:
        _must_be(batch, name, wanted=True)
        inner = typing.get_args(annotation)
        annotation = inner[0] if inner else None
        kind = typing.get_origin(annotation) or annotation
    elif kind is Message:
        _must_be(batch, name, wanted=False)
    if kind is not Message:
        return None
    payload = next(iter(typing.get_args(annotation)), None)
    return None if payload is Any or isinstance(payload, typing.TypeVar) else payload


def _evaluated(function: Any, annotation: str) -> Any:
    """Return what an annotation that is a text means; the text itself if that is not known."""

    def probe() -> None: ...

    probe.__annotations__ = {"first": annotation}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(probe, globalns=names)["first"]
    except Exception:  # noqa: BLE001 - the text may name anything and do anything
        return annotation


def _from_text(annotation: str, name: str, *, batch: bool) -> None:
    """Judge an annotation whose names are not known where the function lives."""
    outer, _, inner = annotation.partition("[")
    if outer.rpartition(".")[2].lower() in _LIST_NAMES:
        _must_be(batch, name, wanted=True)
    else:
        inner = annotation
    if inner.partition("[")[0].rpartition(".")[2] == "Message" and "[" in inner:
        raise NotAHandler(
            f"{name} expects {annotation}, which is not defined at the top of its module",
            hint="define the type at the top of the module, or pass it: typed=...",
        )


def _must_be(batch: bool, name: str, *, wanted: bool) -> None:  # noqa: FBT001 - as it was given
    if wanted and not batch:
        raise NotAHandler(
            f"{name} takes a list of messages but does not declare batch=True",
            hint="add batch=True, or take one message; a commit holds many messages in both cases",
        )
    if batch and not wanted:
        raise NotAHandler(f"{name} takes one message, but batch=True passes lists", hint=LISTED)


def check_result(result: object) -> None:
    """Refuse what would never be run: the coroutine or generator of a disguised handler."""
    if inspect.iscoroutine(result):
        result.close()
    if inspect.isawaitable(result) or inspect.isgenerator(result):
        raise NotAHandler(f"the handler returned a {type(result).__name__} that is never run")
