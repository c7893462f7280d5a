"""Every structured event: level, meaning and fields. docs/EVENTS.md is generated from it.

`python -m oncemq.runtime.event_names` prints that page. Emitters may leave out a field that does
not apply; they never add one that is not listed here (tests/test_tidy.py reads the calls).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["debug", "info"]


class EventKind(NamedTuple):
    """What one event name stands for."""

    level: Level
    meaning: str
    fields: tuple[str, ...]


def _info(meaning: str, fields: str = "") -> EventKind:
    return EventKind("info", meaning, tuple(fields.split()))


def _debug(meaning: str, fields: str = "") -> EventKind:
    return EventKind("debug", meaning, tuple(fields.split()))


EVENTS: dict[str, EventKind] = {
    # --- process ---------------------------------------------------------------------------------
    "process.start": _info("A process begins", "version argv settings"),
    "process.stop": _info("A process ends, with its exit code", "exit_code reason code hint"),
    "process.descriptors": _info(
        "The process needs more open files than its limit allowed, and has raised the limit",
        "needed before limit",
    ),
    "events.lost": _info(
        "So many lines could not be written since the last line that was: their numbers are missing",
        "count",
    ),
    # --- log (broker log and ledger alike) -------------------------------------------------------
    "log.opened": _info(
        "A log was recovered and is open for writing",
        "directory generation durable_end end replayed",
    ),
    "log.filesystem": _info(
        "The file system may lose synced data, or its locks may not hold", "directory reason"
    ),
    "log.tail_cut": _info(
        "Recovery cut a torn tail that nothing attests", "directory from to bytes reason"
    ),
    "log.rolled": _info("A segment was sealed and the next one started", "segment position"),
    "log.synced": _debug("An fsync returned", "durable_end bytes records took_us"),
    "log.attested": _debug("A frame on disk attests everything below a position", "attested"),
    "log.disk_full": _info(
        "The disk has no room for the next turn: writes are refused", "need for"
    ),
    "log.discarded": _info("Segments that nothing needs any more were deleted", "start"),
    "log.disk_ok": _info("The disk has room again: writes continue", ""),
    "snapshot.written": _info("A snapshot is durable", "position parts bytes"),
    "file.made": _debug("A file of a core's state was written beside the log", "name bytes"),
    "snapshot.fallback": _info(
        "Recovery passed over a damaged snapshot and used an older one", "position reason"
    ),
    # --- histories -------------------------------------------------------------------------------
    "history.begun": _info(
        "A broker has started: what it writes from now on has this mark", "mark generation"
    ),
    "history.taken_up": _info(
        "A ledger of an older version relies on the broker's history from now on, as it is",
        "group topic partition next_offset mark",
    ),
    "history.accepted": _info(
        "An operator moved a ledger onto a log that lacks the past which the ledger relied on",
        "group topic partition epoch seen mark position",
    ),
    # --- broker ----------------------------------------------------------------------------------
    "broker.ready": _info(
        "The broker answers requests", "endpoint epoch log_id durable_end directory"
    ),
    "topic.created": _info("A topic was created", "topic topic_id partitions position"),
    "topic.configured": _info("The settings of a topic changed", "topic dedup retain position"),
    "horizon.moved": _info(
        "A topic forgot: messages created before the floor are refused unless they are known",
        "topic floor_ms forgotten_ms position",
    ),
    "messages.too_old": _info(
        "Messages were created before the horizon of their topic and are not stored",
        "topic partition count floor_ms",
    ),
    "messages.ahead": _info(
        "Messages were created in the future by the clock of the broker, and are not stored",
        "topic partition count",
    ),
    "topic.deleted": _info("A topic was deleted", "topic topic_id messages"),
    "topic.trimmed": _info(
        "Messages were deleted by the retention of their topic",
        "topic partition first_offset next_offset reason",
    ),
    "producer.granted": _info("A producer name has a new owner", "producer epoch position"),
    "producer.retired": _info(
        "Of an idle producer name only its epoch and next numbers are kept",
        "producer epoch idle_ms position",
    ),
    "producer.fenced": _info(
        "A stale owner of a producer name was refused", "producer epoch current_epoch"
    ),
    "session.opened": _debug("A session for explicit ids began", "incarnation session"),
    "batch.appended": _info(
        "New messages are durable in the log",
        "topic partition first_offset count duplicates producer epoch first_sequence position",
    ),
    "batch.duplicate": _info(
        "A batch held only duplicates; no record was written",
        "topic partition count producer first_sequence first_offset",
    ),
    "batch.refused": _info(
        "A batch was refused as a whole",
        "topic partition count producer first_sequence code reason",
    ),
    "message.appended": _debug("A new message has its offset", "topic partition id offset"),
    "message.duplicate": _debug(
        "A message is a duplicate: answered with its first offset", "topic partition id offset"
    ),
    "id.conflict": _info(
        "An id was sent again with another body and refused", "topic partition id offset count"
    ),
    "fetch.served": _debug("Stored batches were sent", "topic partition offset count bytes group"),
    "group.join": _info(
        "A consumer asks for a partition", "group topic partition consumer ledger_id next_offset"
    ),
    "group.granted": _info(
        "A partition is granted under an epoch",
        "group topic partition consumer epoch next_offset reason position",
    ),
    "group.refused": _info("A join was refused", "group topic partition consumer code reason"),
    "group.released": _info(
        "A consumer gave a partition back", "group topic partition consumer epoch"
    ),
    "group.lease_expired": _info(
        "A lease expired: the next member that joins gets the partition",
        "group topic partition consumer epoch",
    ),
    "group.member": _info(
        "A process joined a group, for the first time or again", "group topic consumer member"
    ),
    "group.revoked": _info(
        "The broker asked an owner to give a partition back to another member",
        "group topic partition consumer epoch to reason",
    ),
    "group.ledger_replaced": _info(
        "An operator gives a partition another ledger in place of a lost one: where that was, and how far",
        "group topic partition consumer ledger_id host path next_offset by",
    ),
    "group.rewound": _info(
        "An operator is about to move a partition to an earlier offset",
        "group topic partition epoch next_offset",
    ),
    "group.moved": _info(
        "An operator moved the offset of a partition, forward or back",
        "group topic partition epoch first_offset next_offset commit_no reason",
    ),
    # --- clients ---------------------------------------------------------------------------------
    "client.connected": _info("The broker answered the hello", "endpoint epoch log_id"),
    "client.waiting": _info("No broker answers; the client keeps retrying", "endpoint waited_ms"),
    "topic.differs": _info(
        "A topic exists with other settings than the program declares; it stays as it is",
        "topic declared there",
    ),
    "client.reconnected": _info("The broker answers again", "endpoint epoch log_id"),
    "client.refused_broker": _info(
        "A stale broker answered; its answer is ignored", "endpoint epoch epoch_seen"
    ),
    "producer.opened": _info("This process owns the producer name and may send", "producer epoch"),
    "producer.acked": _debug(
        "A batch is acknowledged", "topic partition count duplicates first_offset producer"
    ),
    "producer.resent": _info("Unacknowledged batches were sent again", "batches messages reason"),
    # --- relay of an outbox ----------------------------------------------------------------------
    "relay.settled": _info(
        "The broker has these rows of an outbox; the relay removed or marked them",
        "database count duplicates failed took_ms",
    ),
    "relay.refused": _info(
        "The broker refused a row for good: the row stays, marked with the reason",
        "topic id place code reason",
    ),
    "relay.database_away": _info(
        "The database of an outbox is not available; the relay keeps retrying", "database reason"
    ),
    "relay.database_back": _info("The database of an outbox is available again", "database"),
    # --- consumer --------------------------------------------------------------------------------
    "consumer.standby": _info(
        "Another member holds the partition; this one waits", "group topic partition"
    ),
    "sink.unavailable": _info(
        "The database of a consumer is not available or locked; the consumer keeps retrying",
        "group topic partition code reason",
    ),
    "consumer.granted": _info(
        "This process owns a partition", "group topic partition epoch next_offset ledger_id"
    ),
    "consumer.revoked": _info(
        "The broker asks for the partition back: the consumer finishes, commits and leaves it",
        "group topic partition epoch",
    ),
    "consumer.left": _info(
        "Everything is committed and acknowledged; the consumer gave the partition back",
        "group topic partition epoch next_offset",
    ),
    "consumer.rejoined": _info(
        "The process stands by for a partition that it owned before", "group topic partition reason"
    ),
    "consumer.handled": _info(
        "The handlers of a batch returned; the commit follows",
        "group topic partition epoch count first_offset next_offset took_us",
    ),
    "consumer.skipped": _info(
        "Messages that the group has processed before were skipped",
        "group topic partition count first_offset",
    ),
    "commit.synced": _info(
        "A commit is durable: offset, ids, state and outputs together",
        "group topic partition epoch first_offset next_offset count outputs commit_no position",
    ),
    "output.sent": _info(
        "Committed outputs were sent to the broker", "group topic partition first_sequence count"
    ),
    "output.acked": _info(
        "The broker acknowledged these outputs", "group topic partition first_sequence count"
    ),
    "handler.raised": _info(
        "A handler raised; this attempt changed nothing",
        "group topic partition offset id attempt error",
    ),
    "handler.retry": _info(
        "The message will be retried", "group topic partition offset id attempt delay_ms"
    ),
    "handler.again": _info(
        "A database wants a call run again because of another session: it did nothing, no message failed",
        "group topic partition offset delay_ms reason",
    ),
    "handler.failed": _info(
        "A handler raised on its last attempt, or killed too many processes",
        "group topic partition offset id attempts error",
    ),
    "attempt.marked": _info(
        "After a crash a message is handled alone; `deaths` processes died while handling it",
        "group topic partition epoch offset deaths",
    ),
    "effect.intended": _info(
        "A handler is about to call another service; the intent is durable",
        "group topic partition epoch offset name number policy",
    ),
    "effect.done": _info(
        "The call ended: it returned, or it reported that nothing happened",
        "group topic partition epoch offset name number how bytes",
    ),
    "effect.unknown": _info(
        "It is unknown whether the call happened; the policy decides what follows",
        "group topic partition epoch offset name number policy error",
    ),
    "effect.resolved": _info(
        "An operator resolved the effect: gave its result, or ordered a new call",
        "group topic partition epoch offset name number how",
    ),
    "message.parked": _info(
        "A message was parked: its dead letter and the offset behind it are committed",
        "group topic partition epoch offset id kind attempts error",
    ),
    "consumer.fenced": _info(
        "Another owner has the partition; this one is fenced",
        "group topic partition epoch reason",
    ),
    # --- wire ------------------------------------------------------------------------------------
    "wire.malformed": _info("A message on the wire could not be decoded", "code reason peer count"),
    "wire.dropped": _info(
        "A message was dropped at a bound, or because its peer is gone", "kind count"
    ),
    "wire.closed": _info(
        "Connections used descriptors reserved for the disk: all were closed, clients reconnect",
        "endpoint reason",
    ),
    "wire.opened": _info("The broker accepts connections again", "endpoint"),
    # --- supervisor ------------------------------------------------------------------------------
    "supervise.started": _info("The command runs", "child_pid command attempt"),
    "supervise.exited": _info("The command ended", "child_pid exit_code signal ran_s"),
    "supervise.restarting": _info("The command is restarted after a pause", "delay_s failures"),
    "supervise.staying": _info("The command is done; the supervisor waits for a stop signal"),
    "supervise.gave_up": _info("The command is not restarted", "exit_code reason failures"),
}


def page() -> str:
    lines = [
        "# Structured events",
        "",
        "Every process writes one JSON object a line: to stderr, or with `--log-dir DIR`",
        "(`ONCEMQ_LOG_DIR`) to `role-pid.jsonl` in that directory. On a terminal the same events",
        "appear as coloured text. `info` events come at most once for each batch; `debug` events (with",
        "`--log-level debug`) once for each message or turn, so normal operation does not pay for them.",
        "",
        "Every line has these fields:",
        "",
        "| field | meaning |",
        "|---|---|",
        "| `event` | one of the names below; a name never changes its meaning |",
        "| `ts` | wall time, ISO 8601, UTC |",
        "| `mono_ns` | monotonic clock of this machine, nanoseconds: orders events of all processes |",
        "| `role` | broker, producer, consumer, relay, supervise, ... |",
        "| `pid` | process id |",
        "| `incarnation` | random, new at every start; distinguishes two processes with the same pid |",
        "| `n` | counter from 0 without gaps: a missing number is a lost line |",
        "",
        "Diagnostics never delay or end a process. A line that its reader does not take at once (a",
        "full pipe, a full disk, a closed stream) is dropped. Its number is missing, and the next",
        "line that can be written is `events.lost` with the count of them.",
        "",
        "The other fields depend on the event. A field that does not apply is missing. Bytes are",
        "written as text if they are UTF-8, otherwise in hexadecimal with a leading `0x`.",
        "",
        "`python -m oncemq.runtime.event_names` prints this page; a test compares the two.",
        "",
        "| event | level | meaning | fields |",
        "|---|---|---|---|",
    ]
    for name, kind in EVENTS.items():
        fields = " ".join(f"`{field}`" for field in kind.fields)
        lines.append(f"| `{name}` | {kind.level} | {kind.meaning} | {fields} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
