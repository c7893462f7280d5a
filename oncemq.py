"""The public import: `from oncemq import App, Message, Tx`. Everything is loaded at first use."""

from typing import TYPE_CHECKING, Any

import actors

if not getattr(actors, "__oncemq__", False):
    raise ImportError(
        f"OnceMQ keeps its inside in a package called 'actors', but {actors.__file__} is found "
        "first: rename that package, or put it inside another one"
    )
if TYPE_CHECKING:  # what type checkers and editors see; errors come through __getattr__
    from actors.library import (
        App,
        EffectMisused,
        EffectNotDone,
        EffectNotRecorded,
        EffectsNotSupported,
        EffectUnknown,
        ExactlyOnceConsumer,
        ExactlyOnceQueue,
        Harness,
        Message,
        Tx,
        outbox,
    )

__all__ = [
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
    "Tx",
    "outbox",
]
__version__ = actors.__version__


def __getattr__(name: str) -> Any:
    from actors import library

    if name in library.__all__:
        return getattr(library, name)
    raise AttributeError(f"module 'oncemq' has no attribute {name!r}")


def __dir__() -> list[str]:
    from actors import library

    return sorted(library.__all__)
