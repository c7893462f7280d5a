"""Every error that OnceMQ raises: one tree, each with a code, whether a retry helps, and a hint.

`code` is what travels on the wire and stands in structured events; `retriable` tells a caller
that the same call may succeed later without any change; `hint` says what to do next.
Bugs of our own are assertions; these classes are for peers, disks, files and users.
"""

from __future__ import annotations

from typing import ClassVar


class OnceMQError(Exception):
    """The root. `str(error)` is the reason followed by the hint."""

    code: ClassVar[str] = "error"
    retriable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, reason: str = "", *, hint: str | None = None) -> None:
        self.reason = reason or type(self).__name__
        self.hint = self.default_hint if hint is None else hint
        super().__init__(self.reason)

    def __str__(self) -> str:
        return f"{self.reason} ({self.hint})" if self.hint else self.reason


# --- storage -----------------------------------------------------------------------------------


class StorageError(OnceMQError):
    """Something is wrong with files of ours."""

    code = "storage"


class CorruptLog(StorageError):
    """Bytes that were once promised are damaged. Names file, offset and reason; never healed."""

    code = "corrupt_log"
    default_hint = "restore the file from a backup; nothing was changed"

    def __init__(self, path: str, offset: int, reason: str, *, hint: str | None = None) -> None:
        self.path = path
        self.offset = offset
        super().__init__(f"{path} at byte {offset}: {reason}", hint=hint)


class UnsupportedFormat(StorageError):
    """A file was written by a newer OnceMQ."""

    code = "unsupported_format"
    default_hint = "upgrade OnceMQ; files of a newer version are never guessed at"


class DiskFull(StorageError):
    """The log could not reserve space; nothing was applied. Work resumes when space returns."""

    code = "disk_full"
    retriable = True
    default_hint = "free space on the disk that holds the data directory"


class LogInUse(StorageError):
    """Another live process owns the directory. Names its pid and host."""

    code = "log_in_use"
    default_hint = "stop the owner first, or use --takeover if it is frozen"


class Fenced(OnceMQError):
    """A newer incarnation took over. Terminal for this one: nothing it still writes counts."""

    code = "fenced"
    default_hint = "another process took over under this name; do not retry from this process"


class LogRegressed(OnceMQError):
    """The log ends below a position that was acknowledged before: it was wiped or restored."""

    code = "log_regressed"
    default_hint = "bring back the log that acknowledged these messages"


class StoreMismatch(OnceMQError):
    """The log is another one than the ledger or the producer has worked with."""

    code = "store_mismatch"
    default_hint = "check --data and --broker: this is a different log"


class LedgerNotHere(OnceMQError):
    """The group's ledger lives elsewhere. Zero handlers were called."""

    code = "ledger_not_here"
    default_hint = "start the consumer with the --state directory named above"


# --- protocol and broker -----------------------------------------------------------------------


class ProtocolError(OnceMQError):
    """The peer broke the protocol, or this process did."""

    code = "protocol"


class Malformed(ProtocolError):
    """A message that cannot be understood."""

    code = "malformed"


class TooLarge(ProtocolError):
    """A message, batch, header or name above a limit of `limits.py`."""

    code = "too_large"
    default_hint = "limits are listed in docs/PROTOCOL.md"


class VersionMismatch(ProtocolError):
    """No protocol version is spoken by both sides. The reason says which one to upgrade."""

    code = "version_mismatch"


class HelloRequired(ProtocolError):
    """The broker does not know this connection (it restarted). Say hello and resend."""

    code = "hello_required"
    retriable = True


class UnknownTopic(OnceMQError):
    """The topic does not exist and may not be made here."""

    code = "unknown_topic"
    default_hint = "create it with: oncemq topics create NAME"


class TopicExists(OnceMQError):
    """The topic exists with another partition count; a count never changes."""

    code = "topic_exists"


class InvalidName(OnceMQError):
    """A name breaks the rules for topics, producers and groups."""

    code = "invalid_name"
    default_hint = (
        "names are 1 to 128 characters without : / @ or control characters, not ending in .dead"
    )


class GapError(OnceMQError):
    """A batch arrived before the ones in front of it. Resend all unacknowledged in order."""

    code = "gap"
    retriable = True


class UnknownSession(OnceMQError):
    """The broker does not know this session. Open a new one and resend in order."""

    code = "unknown_session"
    retriable = True


class UnknownProducer(OnceMQError):
    """The producer, or the epoch it claims, was never granted."""

    code = "unknown_producer"
    default_hint = "send InitProducer first"


class IdConflict(OnceMQError):
    """One id, two bodies: the id is stored with another key, value or encoding."""

    code = "id_conflict"
    default_hint = "use a new id for a new message; the stored one stays as it is"


class TooOld(OnceMQError):
    """The message is older than the dedup horizon set by the user; it was not stored."""

    code = "too_old"


class Busy(OnceMQError):
    """A bound of the broker is reached (connections, waiting fetches, groups). Try later."""

    code = "busy"
    retriable = True


class GroupInUse(OnceMQError):
    """A live consumer owns a partition that an operator wants to move. Nothing was changed."""

    code = "group_in_use"
    default_hint = "stop the consumers of the group first"


class OffsetOutOfRange(OnceMQError):
    """There is no such offset or partition to move to."""

    code = "offset_out_of_range"


class NotGranted(OnceMQError):
    """The grant under which this consumer speaks is not the current one."""

    code = "not_granted"


# --- library -----------------------------------------------------------------------------------


class ValueNotEncodable(OnceMQError):
    """A value cannot be carried. The reason gives the path inside it."""

    code = "value_not_encodable"


class IdRequired(OnceMQError):
    """An anonymous producer needs `id=` with every send."""

    code = "id_required"
    default_hint = "pass id=..., or give the producer a name for sequence ids"


class TransactionRequired(OnceMQError):
    """A message was put into the outbox outside of a transaction: it would stand alone."""

    code = "transaction_required"
    default_hint = "begin a transaction, write your rows in it, and send before you commit"


class DatabaseAway(OnceMQError):
    """The user's database, or the table in it, cannot be used now. Waiting may help."""

    code = "database_away"
    retriable = True


class DatabaseRefused(OnceMQError):
    """The user's database refuses what was asked of it, and will again."""

    code = "database_refused"


class BufferFull(OnceMQError):
    """The producer's in-flight bytes reached their bound and did not fall within the timeout."""

    code = "buffer_full"
    retriable = True
    default_hint = "the broker is away or slow; nothing of this call was taken"


class Unacknowledged(OnceMQError):
    """Leaving the producer left `count` messages without an acknowledgement: outcome unknown."""

    code = "unacknowledged"

    def __init__(self, count: int, *, hint: str | None = None) -> None:
        self.count = count
        super().__init__(
            f"{count} messages were not acknowledged; their outcome is unknown",
            hint=hint or "send them again under the same ids or producer name",
        )


class ResultTimeout(OnceMQError, TimeoutError):
    """`result(timeout)` passed without an answer; the message is still being sent."""

    code = "result_timeout"
    retriable = True


class ProducerClosed(OnceMQError):
    """The producer was closed; sends after that are refused."""

    code = "producer_closed"


class InputChanged(OnceMQError):
    """Another file under this name, or a file that was truncated or rotated. Nothing was sent."""

    code = "input_changed"
    default_hint = "use another --name for another file"


class BadInput(OnceMQError):
    """A line of an input file that cannot be read. Names the line; earlier ones are stored."""

    code = "bad_input"


class HandlerFailed(OnceMQError):
    """A handler raised on every attempt. The offset did not move."""

    code = "handler_failed"
    default_hint = "mend the handler and start again: nothing of the failed message was kept"


class Reject(OnceMQError):
    """A handler raises it for a message that no retry will mend: it is parked at once."""

    code = "rejected"


class PayloadInvalid(OnceMQError):
    """A payload is not of the type that its handler wants; no retry mends that.

    `path` leads to the field, as `$.lines[0].cents`; it is empty where that is not known.
    """

    code = "payload_invalid"
    retriable = False
    default_hint = "mend the sender, or the type that the handler names; nothing was handled"

    def __init__(self, reason: str = "", *, path: str = "", hint: str | None = None) -> None:
        self.path = path
        super().__init__(reason, hint=hint)


class StateTooLarge(OnceMQError):
    """The state of one partition is above its limit."""

    code = "state_too_large"
    default_hint = "keep less in tx.state, or large state in a database of yours (sink=)"


class StateMismatch(OnceMQError):
    """The ledger's state was kept with another state_by than the handler asks for."""

    code = "state_mismatch"
    default_hint = "bring the old state_by back, or give the handler a new group"


class BadSink(OnceMQError):
    """The address of a sink, or the database behind it, cannot be used as it is."""

    code = "bad_sink"
    default_hint = "expected sqlite:///FILE, postgresql://USER@HOST/DATABASE, or env:VARIABLE"


class NoSink(OnceMQError):
    """`tx.sql` or `tx.connection` in a handler whose consumer has no sink."""

    code = "no_sink"


class SinkUnavailable(OnceMQError):
    """The database of a sink is away. Nothing is lost: the same messages are handled again."""

    code = "sink_unavailable"
    retriable = True


class SinkLocked(SinkUnavailable):
    """Somebody else holds a lock in the database of a sink for longer than we wait."""

    code = "sink_locked"
    default_hint = "it is tried on; end the transaction that holds the lock (docs/SQL.md)"


class TransactionControl(OnceMQError):
    """A handler tried to begin, end or divide the transaction that belongs to the commit."""

    code = "transaction_control"
    default_hint = "return to commit, raise to roll back: each message has a savepoint of its own"


class NotSupported(OnceMQError):
    """Something that this version does not do. The reason names it."""

    code = "not_supported"


def _leaves(root: type[OnceMQError]) -> dict[str, type[OnceMQError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_leaves(child))
    return found


BY_CODE: dict[str, type[OnceMQError]] = _leaves(OnceMQError)


def from_code(code: str, reason: str, hint: str | None = None) -> OnceMQError:
    """Build the error that a peer named by `code`; an unknown code gives the root class."""
    kind = BY_CODE.get(code, OnceMQError)
    if kind is CorruptLog or kind is Unacknowledged:  # their constructors take other arguments
        kind = OnceMQError
    return kind(reason, hint=hint)


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


class NotAHandler(NotSupported, TypeError):
    """The function cannot be a handler. The reason says why and what to write instead."""

    code = "not_a_handler"
