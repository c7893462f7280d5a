"""Orders of operators about effects whose outcome is unknown, as files beside the ledger.

An order names one call of one effect and lies there until the consumer that owns the ledger has
written what it says into it: whether that one runs now or is started next week makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...codec import wire
from ...core.consumer.effect_work import EffectOrder
from ...core.consumer.open_effects import AGAIN, ANSWERED
from ...errors import Malformed, UnsupportedFormat
from ...storage import orders
from ...storage.disk import Disk
from .file_names import file_name

_FORMAT = 1


def give_order(disk: Disk, directory: str, order: EffectOrder) -> EffectOrder:
    """Leave an order durably for the owner of the ledger; return the one that stands.

    The first one about a call counts. Raises LogInUse while another is written, OSError.
    """
    data = wire.pack_plain([_FORMAT, order.effect_id, order.how, order.encoding, order.value])
    return _parsed(orders.give(disk, directory, file_name(order.effect_id), data))


def find_orders(disk: Disk, directory: str, effect_ids: Iterable[str]) -> list[EffectOrder]:
    """Raises UnsupportedFormat, Malformed."""
    found = (orders.read(disk, directory, file_name(one)) for one in effect_ids)
    return [_parsed(data) for data in found if data is not None]


def keep_orders(disk: Disk, directory: str, effect_ids: Iterable[str]) -> None:
    orders.keep(disk, directory, {file_name(one) for one in effect_ids})


def _parsed(data: bytes) -> EffectOrder:
    fields = wire.unpack_plain(data)
    if not isinstance(fields, list | tuple) or not fields or fields[0] != _FORMAT:
        raise UnsupportedFormat(
            "an order about an effect has a form that this version does not know"
        )
    try:
        _, effect_id, how, encoding, value = fields
    except ValueError:
        raise Malformed("an order about an effect has another number of fields") from None
    if how not in {ANSWERED, AGAIN} or type(value) is not bytes or type(effect_id) is not str:
        raise Malformed(f"an order about an effect that makes no sense: {how!r}")
    return EffectOrder(effect_id, how, encoding, value)
