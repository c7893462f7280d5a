"""What users import, through `oncemq`: loaded name by name at first use, so that import is light."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..errors import OnceMQError
    from . import outbox
    from .app import App
    from .effect_errors import (
        EffectMisused,
        EffectNotDone,
        EffectNotRecorded,
        EffectsNotSupported,
        EffectUnknown,
    )
    from .harness import Harness
    from .message import Message
    from .seed import ExactlyOnceConsumer, ExactlyOnceQueue
    from .tx import Tx

_HOMES = {
    "App": ".app",
    "Message": ".message",
    "Tx": ".tx",
    "Harness": ".harness",
    "ExactlyOnceConsumer": ".seed",
    "ExactlyOnceQueue": ".seed",
    "EffectMisused": ".effect_errors",
    "EffectNotDone": ".effect_errors",
    "EffectNotRecorded": ".effect_errors",
    "EffectUnknown": ".effect_errors",
    "EffectsNotSupported": ".effect_errors",
}
_ERRORS = (
    "OnceMQError",
    "BadInput",
    "BadSink",
    "BufferFull",
    "Busy",
    "CorruptLog",
    "DatabaseAway",
    "DatabaseRefused",
    "DiskFull",
    "Fenced",
    "HandlerFailed",
    "IdConflict",
    "IdRequired",
    "InputChanged",
    "InvalidName",
    "LedgerNotHere",
    "LogInUse",
    "LogRegressed",
    "NoSink",
    "NotSupported",
    "PayloadInvalid",
    "ProducerClosed",
    "Reject",
    "ResultTimeout",
    "SinkLocked",
    "SinkUnavailable",
    "StateMismatch",
    "StateTooLarge",
    "StoreMismatch",
    "TooLarge",
    "TooOld",
    "TransactionControl",
    "TransactionRequired",
    "Unacknowledged",
    "UnknownTopic",
    "ValueNotEncodable",
    "VersionMismatch",
)
__all__ = [  # noqa: PLE0604
    "App",
    "EffectMisused",
    "EffectNotDone",
    "EffectNotRecorded",
    "EffectUnknown",
    "EffectsNotSupported",
    "ExactlyOnceConsumer",
    "ExactlyOnceQueue",
    "Harness",
    "Message",
    "OnceMQError",
    "Tx",
    *_ERRORS[1:],
    "outbox",
]

# A library never decides where its log lines go: without a handler of the user's, nowhere.
logging.getLogger("oncemq").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name], __name__), name)
    if name == "outbox":
        return importlib.import_module(".outbox", __name__)
    if name in _ERRORS:
        return getattr(importlib.import_module("..errors", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
