"""Every error that OnceMQ raises: one tree, each with a code, whether a retry helps, and a hint.

`code` travels on the wire and appears in structured events. `retriable` tells a caller that the same
call may succeed later without any change. `hint` says what to do next.
Assertions are for bugs of OnceMQ; these classes are for peers, disks, files and users.
"""

from __future__ import annotations

from typing import ClassVar


class OnceMQError(Exception):
    """The root. `str(error)` is the reason followed by the hint."""

    code: ClassVar[str] = "error"
    retriable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, reason: str = "", *, hint: str | None = None) -> None:
        self.reason: str = reason or type(self).__name__
        self.hint: str = self.default_hint if hint is None else hint
        super().__init__(self.reason)

    def __str__(self) -> str:
        return f"{self.reason} ({self.hint})" if self.hint else self.reason


# --- storage -----------------------------------------------------------------------------------


class StorageError(OnceMQError):
    """A file of OnceMQ cannot be read or written."""

    code = "storage"


class CorruptLog(StorageError):
    """Durable bytes are damaged. Names file, offset and reason; OnceMQ never repairs them itself."""

    code = "corrupt_log"
    default_hint = "restore the file from a backup; OnceMQ changed nothing"

    def __init__(self, path: str, offset: int, reason: str, *, hint: str | None = None) -> None:
        self.path = path
        self.offset = offset
        self.damage = reason
        super().__init__(f"{path} at byte {offset}: {reason}", hint=hint)


class UnsupportedFormat(StorageError):
    """A file was written by a newer OnceMQ."""

    code = "unsupported_format"
    default_hint = "upgrade OnceMQ to read this file"


class DiskFull(StorageError):
    """The log cannot reserve space; nothing was applied. Work resumes when there is space again."""

    code = "disk_full"
    retriable = True
    default_hint = "free space on that disk"


class LogInUse(StorageError):
    """Another live process owns the directory. Names its pid and host."""

    code = "log_in_use"
    default_hint = "stop the owner first, or use --takeover if it is frozen"


class Fenced(OnceMQError):
    """A newer owner took over. Final for this process: nothing that it still writes has an effect."""

    code = "fenced"
    default_hint = "another process took over; do not retry from this process"
    # How a process ends that could not go on because of it: a command, or a program with a producer.
    exit_status: ClassVar[int] = 3


class LogRegressed(OnceMQError):
    """The log lacks a past that was relied on: it was wiped, restored from a backup, or is a copy."""

    code = "log_regressed"
    default_hint = "restore the log that acknowledged these messages"
    # What an operator does about a group.
    group_hint: ClassVar[str] = (
        "restore the ledgers (or the sink) from the same backup as the broker's data, or the "
        "broker's data as it was; or accept what is lost and say where the group goes on: "
        "oncemq groups seek GROUP TOPIC --to OFFSET"
    )


class StoreMismatch(OnceMQError):
    """The broker has another log than the one that the ledger or the producer worked with."""

    code = "store_mismatch"
    default_hint = "check --data and --broker: the broker has a different log"


class LedgerNotHere(OnceMQError):
    """The group's ledger is in another place. No handler was called."""

    code = "ledger_not_here"
    default_hint = "start the consumer where that ledger is"


# --- protocol and broker -----------------------------------------------------------------------


class ProtocolError(OnceMQError):
    """The peer or this process violated the protocol."""

    code = "protocol"


class Malformed(ProtocolError):
    """A message on the wire cannot be decoded."""

    code = "malformed"


class TooLarge(ProtocolError):
    """A message, batch, header or name above a limit of `limits.py`."""

    code = "too_large"
    default_hint = "send less in one message; store large data elsewhere and send its address"


class VersionMismatch(ProtocolError):
    """The two sides share no protocol version. The reason names the side to upgrade."""

    code = "version_mismatch"


class HelloRequired(ProtocolError):
    """The broker does not know this connection (it restarted). Say hello and resend."""

    code = "hello_required"
    retriable = True


class InvalidSetting(OnceMQError):
    """The text of a setting of a topic says nothing that OnceMQ knows."""

    code = "invalid_setting"


class UnknownTopic(OnceMQError):
    """The topic does not exist, and this request may not create it."""

    code = "unknown_topic"
    default_hint = "create it with: oncemq topics create NAME"


class TopicExists(OnceMQError):
    """The topic exists with another partition count, which never changes, or with other settings."""

    code = "topic_exists"


class InvalidName(OnceMQError):
    """A name breaks the rules for topics, producers and groups."""

    code = "invalid_name"
    default_hint = (
        "names are 1 to 128 characters without : / @ or control characters, not ending in .dead"
    )


class GapError(OnceMQError):
    """A batch arrived before its predecessor. Resend all unacknowledged batches in order."""

    code = "gap"
    retriable = True


class UnknownSession(OnceMQError):
    """The broker does not know this session. Open a new session and resend in order."""

    code = "unknown_session"
    retriable = True


class UnknownProducer(OnceMQError):
    """The broker never granted this producer name, or this epoch of it."""

    code = "unknown_producer"
    default_hint = "check --data and --broker: the log of this broker does not know the producer"


class RetiredProducer(OnceMQError):
    """The producer name was idle for long and is retired. Nothing was stored."""

    code = "retired_producer"
    default_hint = "start the program again: its numbers go on where they were"


class ProducerInUse(OnceMQError):
    """The producer was seen lately, so an operator may not retire it without a word. Nothing was changed."""

    code = "producer_in_use"
    default_hint = (
        "stop it first, wait, or retire it with --force: its program must be started again"
    )


class IdConflict(OnceMQError):
    """One id, two bodies: the id is stored with another key, value or encoding."""

    code = "id_conflict"
    default_hint = "use a new id for a new message; the stored message stays as it is"


class TooOld(OnceMQError):
    """The message was created before the topic's dedup horizon, and its id is not known any more.

    It is not stored now. If it was stored in time, it is stored once; OnceMQ can no longer tell.
    """

    code = "too_old"
    default_hint = (
        "if it was never stored and shall be, send it under a new id; "
        "a longer horizon: oncemq topics set TOPIC --dedup"
    )


class BadCreatedAt(OnceMQError):
    """A topic with a dedup horizon needs the time at which each message with an id was created.

    It is missing, or lies in the future. Nothing of the batch was stored.
    """

    code = "bad_created_at"
    default_hint = (
        "pass created_at=: the time when the message came into being, the same in every resend"
    )


class Busy(OnceMQError):
    """The broker is at one of its bounds (connections, waiting fetches, groups). Try later."""

    code = "busy"
    retriable = True


class GroupInUse(OnceMQError):
    """A live consumer owns a partition that an operator wants to move. Nothing was changed."""

    code = "group_in_use"
    default_hint = "stop the consumers of the group first"


class OffsetOutOfRange(OnceMQError):
    """The offset or partition does not exist."""

    code = "offset_out_of_range"


class OffsetTrimmed(OnceMQError):
    """Messages that the reader has not read are deleted: from its offset up to the topic's start.

    It is not moved: an operator says where it goes on.
    """

    code = "offset_trimmed"
    default_hint = "say where to go on: oncemq groups seek GROUP TOPIC --to earliest"


class NotGranted(OnceMQError):
    """The consumer used a grant that is not the current one."""

    code = "not_granted"


# --- library -----------------------------------------------------------------------------------


class ValueNotEncodable(OnceMQError):
    """A value cannot be encoded. The reason names the path inside the value."""

    code = "value_not_encodable"


class IdRequired(OnceMQError):
    """An anonymous producer needs `id=` with every send."""

    code = "id_required"
    default_hint = 'pass id=..., or name the producer: app.producer("NAME")'


class TransactionRequired(OnceMQError):
    """`outbox.send` was called outside a transaction: row and message would not commit together."""

    code = "transaction_required"
    default_hint = "begin a transaction, write your rows, call outbox.send, then commit"


class DatabaseAway(OnceMQError):
    """The user's database, or its outbox table, is not available now. Waiting may help."""

    code = "database_away"
    retriable = True


class DatabaseRefused(OnceMQError):
    """The user's database refuses the statement, and will refuse it again."""

    code = "database_refused"


class BufferFull(OnceMQError):
    """The producer's unacknowledged bytes stayed at their bound until the timeout."""

    code = "buffer_full"
    retriable = True
    default_hint = "the broker is down or slow; nothing of this call was sent: call again later"


class Unacknowledged(OnceMQError):
    """The producer closed with `count` unacknowledged messages: their outcome is unknown."""

    code = "unacknowledged"

    def __init__(self, count: int, *, hint: str | None = None) -> None:
        self.count = count
        super().__init__(
            f"{count} messages were not acknowledged; their outcome is unknown",
            hint=hint or "send them again under the same ids or producer name",
        )


class ResultTimeout(OnceMQError, TimeoutError):
    """No answer came in time. The outcome is unknown, and the producer keeps sending the message.

    Wait for the same handle again: it still gets its acknowledgement.
    """

    code = "result_timeout"
    retriable = True


class ProducerClosed(OnceMQError):
    """The producer is closed and refuses further sends."""

    code = "producer_closed"


class InputChanged(OnceMQError):
    """The file differs from what was sent under this name, or was truncated or rotated."""

    code = "input_changed"
    default_hint = "use another --name for another file"


class BadInput(OnceMQError):
    """A line of an input file cannot be read. Names the line; earlier lines are stored."""

    code = "bad_input"


class HandlerFailed(OnceMQError):
    """A handler raised on every attempt. The offset did not move."""

    code = "handler_failed"
    default_hint = "fix the handler and start again; the failed attempt changed nothing"


class ParkLimitReached(HandlerFailed):
    """So many messages in a row were parked with the same type of error that the handler is to blame.

    The message that met the limit is not parked.
    """

    code = "park_limit"
    default_hint = (
        "mend the handler and start again: the first message that it handles begins the count anew;"
        " list what was parked: oncemq dlq list; raise the limit: --park-limit"
    )


class Reject(OnceMQError):
    """A handler raises it for a message that no retry can help: the message is parked at once."""

    code = "rejected"


class PayloadInvalid(OnceMQError):
    """A payload does not have the type of its handler; a retry cannot help.

    `path` names the field, such as `$.lines[0].cents`; it is empty if the field is unknown.
    """

    code = "payload_invalid"
    retriable = False
    default_hint = "fix the sender or the type of the handler; the handler was not called"

    def __init__(self, reason: str = "", *, path: str = "", hint: str | None = None) -> None:
        self.path = path
        super().__init__(reason, hint=hint)


class StateTooLarge(OnceMQError):
    """The state of one partition is above its limit."""

    code = "state_too_large"
    default_hint = "keep less in tx.state, or keep large state in your own database (sink=...)"


class StateMismatch(OnceMQError):
    """The ledger holds state of another `state_by` than the handler uses."""

    code = "state_mismatch"
    default_hint = "restore the old state_by, or give the handler a new group"


class BadSink(OnceMQError):
    """The address of a sink is wrong, or its database cannot serve as one."""

    code = "bad_sink"
    default_hint = "use sqlite:///FILE, postgresql://USER@HOST/DATABASE or env:VARIABLE"


class NoSink(OnceMQError):
    """A handler used `tx.sql` or `tx.connection`, but its consumer has no sink."""

    code = "no_sink"


class SinkUnavailable(OnceMQError):
    """The sink's database is not available. Nothing is lost: the messages are handled again."""

    code = "sink_unavailable"
    retriable = True


class SinkLocked(SinkUnavailable):
    """Another session holds a lock in the sink's database for longer than OnceMQ waits."""

    code = "sink_locked"
    default_hint = "OnceMQ keeps retrying; end the transaction that holds the lock"


class SinkConflict(SinkUnavailable):
    """The database wants the transaction run again: another session was in its way.

    OnceMQ does so; no message has failed.
    """

    code = "sink_conflict"
    default_hint = "OnceMQ runs it again; do not catch it in a handler"


class TransactionControl(OnceMQError):
    """A handler tried to begin, end or split the transaction of the commit."""

    code = "transaction_control"
    default_hint = "return to commit, raise to roll back; each message has its own savepoint"


class NotSupported(OnceMQError):
    """This version does not support it. The reason names what."""

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
    """An effect's function raises it to say: the call certainly did not happen.

    The attempt fails like with any other error; the next attempt calls the function again.
    """

    code = "effect_not_done"


class EffectUnknown(OnceMQError):
    """It is unknown whether the effect's call happened. The function is not called again.

    Do not catch it in the handler. The policy decides: the message is parked, or waits for an operator.
    """

    code = "effect_unknown"
    default_hint = "list unknown effects: oncemq effects list"


class EffectNotRecorded(EffectUnknown):
    """The call happened, but its result cannot be recorded: not encodable, or too large."""

    code = "effect_not_recorded"
    default_hint = "return a value that msgpack can encode, of at most 16 KiB"


class HandlerLeft(BaseException):
    """The handler reached an effect after it wrote to its transaction; it starts again after the effect.

    Not an Exception, so that `except Exception` in a handler does not catch it. Never catch it.
    """


class ProcessGone(BaseException):
    """A simulated process dies at this point: no handler survives it. Never catch it."""


class EffectMisused(OnceMQError):
    """`tx.effect` was used where it can promise nothing. The function was not called."""

    code = "effect_misused"


class EffectsNotSupported(NotSupported):
    """A handler of this kind cannot use effects. The function was not called."""

    code = "effects_not_supported"
    default_hint = "use a handler of single messages in its own group"


class NoSuchEffect(OnceMQError):
    """No open effect has this id."""

    code = "no_such_effect"
    default_hint = "list unknown effects: oncemq effects list"


class EffectNotHeld(OnceMQError):
    """The effect does not wait for an operator: it runs, is resolved, or its policy does not ask."""

    code = "effect_not_held"
    default_hint = "list unknown effects: oncemq effects list"


class NotAHandler(NotSupported, TypeError):
    """The function cannot be a handler. The reason says why, the hint what to write instead."""

    code = "not_a_handler"
