"""OnceMQ: an exactly-once message queue. `from oncemq import App, Message, Tx` is where to begin.

This file holds the public names and nothing else. Each one is loaded at first use, so that
`import oncemq` stays light. The code lies in the folder `actors`, which the link `oncemq` beside it
names in a checkout and which is installed as `oncemq`; nothing imports it by another name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BadCreatedAt,
        BadInput,
        BadSink,
        BufferFull,
        Busy,
        CorruptLog,
        DatabaseAway,
        DatabaseRefused,
        DiskFull,
        EffectMisused,
        EffectNotDone,
        EffectNotHeld,
        EffectNotRecorded,
        EffectsNotSupported,
        EffectUnknown,
        Fenced,
        GapError,
        GroupInUse,
        HandlerFailed,
        HelloRequired,
        IdConflict,
        IdRequired,
        InputChanged,
        InvalidName,
        InvalidSetting,
        LedgerNotHere,
        LogInUse,
        LogRegressed,
        Malformed,
        NoSink,
        NoSuchEffect,
        NotAHandler,
        NotGranted,
        NotSupported,
        OffsetOutOfRange,
        OffsetTrimmed,
        OnceMQError,
        ParkLimitReached,
        PayloadInvalid,
        ProducerClosed,
        ProducerInUse,
        ProtocolError,
        Reject,
        ResultTimeout,
        RetiredProducer,
        SinkConflict,
        SinkLocked,
        SinkUnavailable,
        StateMismatch,
        StateTooLarge,
        StorageError,
        StoreMismatch,
        TooLarge,
        TooOld,
        TopicExists,
        TransactionControl,
        TransactionRequired,
        Unacknowledged,
        UnknownProducer,
        UnknownSession,
        UnknownTopic,
        UnsupportedFormat,
        ValueNotEncodable,
        VersionMismatch,
    )
    from .library import outbox
    from .library.app import App
    from .library.embedded.queue import ExactlyOnceConsumer, ExactlyOnceQueue
    from .library.handling.tx import Tx
    from .library.messages.message import Message
    from .library.messages.payloads import Serializer
    from .library.producing.acks import Ack
    from .library.producing.pending import AckMany, Pending, PendingMany
    from .library.producing.producer import Producer
    from .library.testkit.harness import Harness

__version__ = "0.1.0"

__all__ = [
    "Ack",
    "AckMany",
    "App",
    "BadCreatedAt",
    "BadInput",
    "BadSink",
    "BufferFull",
    "Busy",
    "CorruptLog",
    "DatabaseAway",
    "DatabaseRefused",
    "DiskFull",
    "EffectMisused",
    "EffectNotDone",
    "EffectNotHeld",
    "EffectNotRecorded",
    "EffectUnknown",
    "EffectsNotSupported",
    "ExactlyOnceConsumer",
    "ExactlyOnceQueue",
    "Fenced",
    "GapError",
    "GroupInUse",
    "HandlerFailed",
    "Harness",
    "HelloRequired",
    "IdConflict",
    "IdRequired",
    "InputChanged",
    "InvalidName",
    "InvalidSetting",
    "LedgerNotHere",
    "LogInUse",
    "LogRegressed",
    "Malformed",
    "Message",
    "NoSink",
    "NoSuchEffect",
    "NotAHandler",
    "NotGranted",
    "NotSupported",
    "OffsetOutOfRange",
    "OffsetTrimmed",
    "OnceMQError",
    "ParkLimitReached",
    "PayloadInvalid",
    "Pending",
    "PendingMany",
    "Producer",
    "ProducerClosed",
    "ProducerInUse",
    "ProtocolError",
    "Reject",
    "ResultTimeout",
    "RetiredProducer",
    "Serializer",
    "SinkConflict",
    "SinkLocked",
    "SinkUnavailable",
    "StateMismatch",
    "StateTooLarge",
    "StorageError",
    "StoreMismatch",
    "TooLarge",
    "TooOld",
    "TopicExists",
    "TransactionControl",
    "TransactionRequired",
    "Tx",
    "Unacknowledged",
    "UnknownProducer",
    "UnknownSession",
    "UnknownTopic",
    "UnsupportedFormat",
    "ValueNotEncodable",
    "VersionMismatch",
    "outbox",
]

# Where each name lives that is not an error; every error lives in errors.py.
_HOMES = {
    "Ack": "library.producing.acks",
    "AckMany": "library.producing.pending",
    "App": "library.app",
    "ExactlyOnceConsumer": "library.embedded.queue",
    "ExactlyOnceQueue": "library.embedded.queue",
    "Harness": "library.testkit.harness",
    "Message": "library.messages.message",
    "Pending": "library.producing.pending",
    "PendingMany": "library.producing.pending",
    "Producer": "library.producing.producer",
    "Serializer": "library.messages.payloads",
    "Tx": "library.handling.tx",
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # type checkers take the imports above, and so find a misspelt name

    def __getattr__(name: str) -> Any:
        if name == "outbox":
            return importlib.import_module(".library.outbox", __name__)
        if name in __all__:
            home = _HOMES.get(name, "errors")
            return getattr(importlib.import_module(f".{home}", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
