"""The messages of a window, as handlers get them: stored batch by stored batch, payloads checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...codec.values import decode_value
from ...core.consumer.work import RunHandler
from ...errors import PayloadInvalid
from ...ids import private_topic
from ..messages.message import Lot, Message
from ..messages.payloads import Misfit
from .letters import Replayed
from .shapes import Shape
from .unit_of_work import UnitOfWork

Place = tuple[str, str, int]  # group, topic, partition


def place_of(run: RunHandler, place: Place) -> Place:
    """Replays lie in the private topic of their group."""
    group, topic, partition = place
    return (group, private_topic(topic, group), partition) if run.private else place


def pieces_of(run: RunHandler, place: Place, shape: Shape) -> Iterator[Iterable[Message]]:
    """Payloads are not checked. `attempt` counts for the first piece alone."""
    attempt = run.attempt
    kind = Replayed if run.private else Message
    for piece in run.window.pieces:
        lot = Lot(piece, *place, attempt, shape.decode or decode_value)
        yield lot.messages(piece, kind)
        attempt = 1


def checked_pieces(
    run: RunHandler, place: Place, shape: Shape, unit: UnitOfWork
) -> Iterator[Iterable[Message]]:
    """As `pieces_of`; iterating a piece raises PayloadInvalid, `unit` is at that message then."""
    pieces = pieces_of(run, place, shape)
    if shape.decode is None:
        return pieces
    return (_checked(messages, shape, unit) for messages in pieces)


def _checked(messages: Iterable[Message], shape: Shape, unit: UnitOfWork) -> Iterator[Message]:
    for message in messages:
        unit.message = message
        check_payload(message, shape)
        yield message


def check_payload(message: Message, shape: Shape) -> None:
    """Raises PayloadInvalid unless it is of the handler's type."""
    if shape.decode is None:
        return
    try:
        message.value  # noqa: B018 - it is kept
    except Misfit as misfit:
        raise PayloadInvalid(
            f"message {message.id!s} of {message.topic}/{message.partition} at offset "
            f"{message.offset} is no {shape.payload}: {misfit}",
            path=misfit.path,
        ) from None


def first_of(run: RunHandler, place: Place) -> Message:
    piece = run.window.pieces[0]
    kind = Replayed if run.private else Message
    return Lot(piece, *place, run.attempt).message(piece.indices[0], piece.offsets[0], kind)
