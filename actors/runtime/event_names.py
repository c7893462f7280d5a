"""Every structured event: its level, what it means, and its fields. docs/EVENTS.md is made from it.

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
    # --- log (broker log and ledger alike) -------------------------------------------------------
    "log.opened": _info(
        "A log was recovered and is open for writing",
        "directory generation durable_end end replayed",
    ),
    "log.filesystem": _info(
        "The file system may lose what was synced, or its locks may not hold", "directory reason"
    ),
    "log.tail_cut": _info(
        "A torn tail that nothing attests was left behind", "directory from to bytes reason"
    ),
    "log.rolled": _info("A segment was sealed and its successor begun", "segment position"),
    "log.synced": _debug("An fsync returned", "durable_end bytes records took_us"),
    "log.attested": _debug("A frame on disk vouches for all below", "attested"),
    "log.disk_full": _info("No room for the next turn: writes are refused", "need for"),
    "log.disk_ok": _info("There is room again: writes go on", ""),
    "snapshot.written": _info("A snapshot is durable", "position parts bytes"),
    "snapshot.fallback": _info("A damaged snapshot was passed over", "position reason"),
    # --- broker ----------------------------------------------------------------------------------
    "broker.ready": _info(
        "The broker answers requests", "endpoint epoch log_id durable_end directory"
    ),
    "topic.created": _info("A topic exists from here on", "topic topic_id partitions position"),
    "producer.granted": _info("A producer name has a new owner", "producer epoch position"),
    "producer.fenced": _info(
        "A superseded owner of a producer name was refused", "producer epoch current_epoch"
    ),
    "session.opened": _debug("A session for explicit ids began", "incarnation session"),
    "batch.appended": _info(
        "New messages are durable in the log",
        "topic partition first_offset count duplicates producer epoch first_sequence position",
    ),
    "batch.duplicate": _info(
        "A batch held nothing new; no record was written",
        "topic partition count producer first_sequence first_offset",
    ),
    "batch.refused": _info(
        "A batch was refused as a whole",
        "topic partition count producer first_sequence code reason",
    ),
    "message.appended": _debug("A new message has its offset", "topic partition id offset"),
    "message.duplicate": _debug(
        "A message was there before: answered with that offset", "topic partition id offset"
    ),
    "id.conflict": _info("An id came with another body", "topic partition id offset count"),
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
        "A lease ran out: the next joiner gets the partition",
        "group topic partition consumer epoch",
    ),
    "group.member": _info(
        "A process takes part in a group from here on, or again", "group topic consumer member"
    ),
    "group.revoked": _info(
        "An owner was asked to give a partition back, and for whom",
        "group topic partition consumer epoch to reason",
    ),
    "group.rewound": _info(
        "An operator goes back to an earlier offset", "group topic partition epoch next_offset"
    ),
    "group.moved": _info(
        "An operator moved the offset of a partition, forward or back",
        "group topic partition epoch first_offset next_offset commit_no reason",
    ),
    # --- clients ---------------------------------------------------------------------------------
    "client.connected": _info("The broker answered the hello", "endpoint epoch log_id"),
    "client.waiting": _info("No broker answers; it is tried on", "endpoint waited_ms"),
    "client.reconnected": _info("The broker answers again", "endpoint epoch log_id"),
    "client.refused_broker": _info(
        "A superseded broker answered; its word does not count", "endpoint epoch epoch_seen"
    ),
    "producer.opened": _info("The name is this process's: it may send", "producer epoch"),
    "producer.acked": _debug(
        "A batch is acknowledged", "topic partition count duplicates first_offset producer"
    ),
    "producer.resent": _info("Unacknowledged batches were sent again", "batches messages reason"),
    # --- relay of an outbox ----------------------------------------------------------------------
    "relay.settled": _info(
        "Rows of an outbox are at the broker and were taken out",
        "database count duplicates failed took_ms",
    ),
    "relay.refused": _info(
        "A row was refused for good: it stays, marked with the reason",
        "topic id place code reason",
    ),
    "relay.database_away": _info(
        "The database of an outbox cannot be used; it is tried on", "database reason"
    ),
    "relay.database_back": _info("The database of an outbox can be used again", "database"),
    # --- consumer --------------------------------------------------------------------------------
    "consumer.standby": _info(
        "Another member holds the partition; this one waits", "group topic partition"
    ),
    "sink.unavailable": _info(
        "The database of a consumer is away or locked; it is tried on",
        "group topic partition code reason",
    ),
    "consumer.granted": _info(
        "This process owns a partition", "group topic partition epoch next_offset ledger_id"
    ),
    "consumer.revoked": _info(
        "The broker wants the partition back: it is drained, committed and left",
        "group topic partition epoch",
    ),
    "consumer.left": _info(
        "All is committed and acknowledged, the partition was given back",
        "group topic partition epoch next_offset",
    ),
    "consumer.rejoined": _info(
        "The process stands by for a partition that it had", "group topic partition reason"
    ),
    "consumer.handled": _info(
        "Handlers of a batch have returned; the commit follows",
        "group topic partition epoch count first_offset next_offset took_us",
    ),
    "consumer.skipped": _info(
        "Messages processed before were passed over", "group topic partition count first_offset"
    ),
    "commit.synced": _info(
        "Offset, ids, state and outputs are durable together",
        "group topic partition epoch first_offset next_offset count outputs commit_no position",
    ),
    "output.sent": _info(
        "Committed outputs were handed to the broker", "group topic partition first_sequence count"
    ),
    "output.acked": _info(
        "The broker holds these outputs", "group topic partition first_sequence count"
    ),
    "handler.raised": _info(
        "A handler raised; nothing of this attempt was kept",
        "group topic partition offset id attempt error",
    ),
    "handler.retry": _info(
        "The message will be tried again", "group topic partition offset id attempt delay_ms"
    ),
    "handler.failed": _info(
        "A handler raised on its last attempt, or killed too many processes",
        "group topic partition offset id attempts error",
    ),
    "attempt.marked": _info(
        "After an unclean end a message is handled alone; `deaths` processes died in it before",
        "group topic partition epoch offset deaths",
    ),
    "effect.intended": _info(
        "A handler is about to call the outside world; the intent is durable",
        "group topic partition epoch offset name number policy",
    ),
    "effect.done": _info(
        "The call ended: it returned, or it said that nothing happened",
        "group topic partition epoch offset name number how bytes",
    ),
    "effect.unknown": _info(
        "Nobody knows whether the call happened; the policy says what is done",
        "group topic partition epoch offset name number policy error",
    ),
    "effect.resolved": _info(
        "An operator gave the result of the call, or wants it made again",
        "group topic partition epoch offset name number how",
    ),
    "message.parked": _info(
        "A message is a dead letter: it is in the topic of dead letters, its offset passed",
        "group topic partition epoch offset id kind attempts error",
    ),
    "consumer.fenced": _info(
        "Another owner took the partition; nothing more of this one counts",
        "group topic partition epoch reason",
    ),
    # --- wire ------------------------------------------------------------------------------------
    "wire.malformed": _info("A message could not be understood", "code reason peer count"),
    "wire.dropped": _info("A message was dropped at a bound or for want of a peer", "kind count"),
    "wire.closed": _info(
        "Connections took descriptors kept for the disk: all are closed, clients come again",
        "endpoint reason",
    ),
    "wire.opened": _info("Connections are taken again", "endpoint"),
    # --- supervisor ------------------------------------------------------------------------------
    "supervise.started": _info("The child runs", "child_pid command attempt"),
    "supervise.exited": _info("The child ended", "child_pid exit_code signal ran_s"),
    "supervise.restarting": _info("The child is started again after a pause", "delay_s failures"),
    "supervise.staying": _info("The child is done; the supervisor waits to be stopped"),
    "supervise.gave_up": _info("The child is not started again", "exit_code reason failures"),
}


def page() -> str:
    lines = [
        "# Structured events",
        "",
        "Every process writes one JSON object a line: to stderr, or with `--log-dir DIR`",
        "(`ONCEMQ_LOG_DIR`) to `role-pid.jsonl` in that directory. On a terminal the same events",
        "appear as coloured text. `info` events come once a batch or less; `debug` ones (with",
        "`--log-level debug`) once a message or turn, so normal speed does not pay for them.",
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
        "| `incarnation` | random, new at every start: tells apart two processes with one pid |",
        "| `n` | counter from 0 without holes: a missing number is a lost line |",
        "",
        "The other fields depend on the event. One that does not apply is left out. Bytes are",
        "written as text where they are UTF-8, else in hexadecimal with a leading `0x`.",
        "",
        "This page is made by `python -m oncemq.runtime.event_names`; a test compares them.",
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
