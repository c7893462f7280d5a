"""Errors of effects: calls of the outside world that a handler makes through `tx.effect`."""

from __future__ import annotations

from ..errors import NotSupported, OnceMQError

IN_LISTS = "a handler of lists has no effects: they would belong to no message"


class EffectNotDone(OnceMQError):
    """A function of an effect raises it to say: surely nothing happened. It is called again.

    The message has failed as with any other error, and is tried again.
    """

    code = "effect_not_done"


class EffectUnknown(OnceMQError):
    """Nobody knows whether the call of an effect happened. The function is not called again.

    Let it out of the handler. The message is parked or waits for an operator, as the policy says.
    """

    code = "effect_unknown"
    default_hint = "see: oncemq effects list"


class EffectNotRecorded(EffectUnknown):
    """The call was made, and its result cannot be recorded: it is no value, or too large."""

    code = "effect_not_recorded"
    default_hint = "let the function return a small value: what msgpack carries, up to 16 KiB"


class HandlerLeft(BaseException):
    """The handler has come to an effect in the middle of a transaction, and begins anew after it.

    No Exception: the handler's own `except Exception` lets it through. Let it out.
    """


class EffectMisused(OnceMQError):
    """`tx.effect` was called in a way in which it could promise nothing. Nothing was called."""

    code = "effect_misused"


class EffectsNotSupported(NotSupported):
    """A handler of this kind has no effects. Nothing was called."""

    code = "effects_not_supported"
    default_hint = "use a handler of single messages, in a group of its own (docs/EFFECTS.md)"


class NoSuchEffect(OnceMQError):
    """No open effect has this id."""

    code = "no_such_effect"
    default_hint = "see: oncemq effects list"


class EffectNotHeld(OnceMQError):
    """The effect does not wait for an operator's word: it runs, was resolved, or is not to be asked about."""

    code = "effect_not_held"
    default_hint = "see: oncemq effects list"
