"""Every bound in one place. What happens at a bound is said beside it and in docs/PROTOCOL.md.

tests/test_bounds.py meets each of them: a new one needs an entry there.

Sizes are bytes and times are milliseconds unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

# --- names and ids (InvalidName / TooLarge, before anything is numbered) --------------------------
NAME_BYTES_MAX = 128
MESSAGE_ID_BYTES_MAX = 128
KEY_BYTES_MAX = 1024
HEADERS_BYTES_MAX = 8 * 1024
SYSTEM_HEADERS_BYTES_MAX = 48 * 1024  # room above it for those that OnceMQ itself adds

# --- messages and batches (TooLarge) --------------------------------------------------------------
MESSAGE_BYTES_MAX = 1024 * 1024
BATCH_BYTES_MAX = 4 * 1024 * 1024
BATCH_MESSAGES_MAX = 16 * 1024

# --- wire (counted drop or typed error) -----------------------------------------------------------
FRAME_BYTES_MAX = 5 * 1024 * 1024
REQUEST_FRAMES_MAX = 3
REQUEST_BYTES_MAX = FRAME_BYTES_MAX + 64 * 1024
HEADER_FRAME_BYTES_MAX = 64 * 1024
ROUTING_ID_BYTES = 16
DESCRIPTORS_SPARE = 256  # kept back for the disk; half of it gone: all connections are closed
HANDLER_DESCRIPTORS = 64  # of a consumer, for handlers and for what is open for a moment

# --- broker ---------------------------------------------------------------------------------------
LABEL_CHARS_MAX = 256  # of who somebody is, for people; the rest is cut off

PRODUCERS_LISTED_MAX = 1_000  # of one answer; the client asks on behind the last name
SURVEY_ROWS_MAX = 1_000  # topics and grants of one answer; the client asks on behind the last

# --- fetch ----------------------------------------------------------------------------------------
FETCH_BYTES_MAX = 4 * 1024 * 1024
FETCH_WAIT_MS_DEFAULT = 500
FETCH_WAIT_MS_MAX = 30_000

# --- log ------------------------------------------------------------------------------------------
SEGMENT_BYTES = 32 * 1024 * 1024
RECORD_BYTES_MAX = 16 * 1024 * 1024
RECORD_META_BYTES_MAX = 64 * 1024 - 1
RESERVE_STEP_BYTES = 4 * 1024 * 1024
RESERVE_MARGIN_BYTES = 64 * 1024
DECODED_BYTES_MAX = 8 * 1024 * 1024  # of log, kept decoded: readers of many partitions share it
ATTEST_IDLE_MS = 50
FENCE_CHECK_IDLE_MS = 1_000
SNAPSHOT_EVERY_BYTES = 64 * 1024 * 1024
LEDGER_SNAPSHOT_EVERY_BYTES = 16 * 1024 * 1024
SNAPSHOTS_KEPT = 2

# --- retention ------------------------------------------------------------------------------------
RETENTION_EVERY_MS = 100  # between two sweeps over all partitions, or four times what one took
TRIMS_WITHOUT_ROOM_MAX = 128  # records that delete messages while the disk is full

# --- producer -------------------------------------------------------------------------------------
IN_FLIGHT_BYTES_DEFAULT = 16 * 1024 * 1024
FEED_BATCHES_MAX = 8  # of a topic, built between two turns: the first leaves while more are built
LINGER_MS = 2  # how long a lone send waits for company while others are in flight
SEND_TIMEOUT_MS = 30_000
ACK_TIMEOUT_S = 30.0  # without any acknowledgement, until a wait for one ends
NO_BROKER_WARNING_MS = 2_000

# --- outbox in a user's database: one round of the relay ------------------------------------------
RELAY_ROUND_MESSAGES = 4096
RELAY_ROUND_BYTES = 8 * 1024 * 1024  # of values; the row that reaches it is the last
RELAY_POLL_S_DEFAULT = 0.25

# --- liveness -------------------------------------------------------------------------------------
PING_MS = 500
SILENCE_MS = 3_000  # no word for so long while one is owed: say hello again
RESEND_MS = 1_000
LEASE_MS = 10_000
LEASE_RENEW_MS = 2_000
JOIN_RETRY_MS = 250

# --- members of a group that share partitions -----------------------------------------------------
MEMBER_MS = 6_000  # not heard for so long, a member has no share any more: three renewals
ASKED_MS = 3_500  # not asked for a partition for so long, nothing of it is kept: three asks
KEEP_MS = 3_000  # a free partition is kept for a member below its share at most so long
SETTLE_MS = 5_000  # nothing is taken from anybody so soon after a start of the broker
COUNT_MS = 250  # so old may a count of partitions be; what it delays comes at the next renewal
STEADY_MS = 1_500  # nor for a member that is there for less
MOVE_PAUSE_MS = 5_000  # nor so soon after it was taken from somebody before

# --- consumer -------------------------------------------------------------------------------------
RETRIES_DEFAULT = 5
CRASH_RETRIES_DEFAULT = 6  # six kills in a row of a healthy slow handler never park its message
PARK_LIMIT_DEFAULT = 100  # parked in a row with one type of error: one more stops the consumer
PRIVATE_LOOK_MS = 5_000  # how often topic@group is looked for while there is none
PARKED_ERROR_BYTES_MAX = 1024  # of an error's text in a dead letter; the rest is cut off
BACKOFF_FIRST_MS = 100
BACKOFF_MAX_MS = 5_000
BATCH_SIZE_DEFAULT = 1_000  # messages in the list that a handler of lists gets
CONCURRENCY_MAX = 1_024  # handler calls of one consumer at the same time
CONFLICT_FIRST_MS = 10  # the first pause before a call that its database wants again; it doubles
STATE_KEY_BYTES_MAX = 1024
MESSAGE_EFFECTS_BYTES_MAX = 8 * 1024 * 1024  # state and outputs of one message (TooLarge)
EFFECTS_MAX = 32  # effects of one message (NotSupported); the letter of a parked one carries
EFFECT_RESULT_BYTES_MAX = 16 * 1024  # results, so each and all together are bounded (TooLarge)
EFFECT_RESULTS_BYTES_MAX = 32 * 1024
EFFECT_LOOK_MS = 500  # how often an effect that is held looks for an operator's word
STANDBY_RETRY_MS = 1_000
LEDGER_FILES_LOOK_MS = 5  # how often a consumer looks whether processed ids still wait for a file
LEAVE_WAIT_MS = 500
TOPIC_LOOKUP_MS = 10_000  # how long tx.send waits for the facts of a topic it meets first
TOPICS_KNOWN_MAX = 10_000  # topics that one consumer process may send to (Busy)
DRAIN_S_DEFAULT = 4.0

# --- main.py: JSON lines on stdin and stdout ------------------------------------------------------
NODE_TURN_BYTES_MAX = 4 * 1024 * 1024  # what one turn takes from stdin
NODE_KEY_BYTES_MAX = 1024  # error 12
NODE_KEYS_PER_REQUEST_MAX = 1_000  # error 12
NODE_MEMBERS_MAX = 1_000  # nodes of one cluster; error 12
NODE_POLL_MESSAGES_MAX = 1_000  # of one key in one answer; the client polls on
NODE_POLL_BYTES_MAX = 1024 * 1024  # of one answer, shared by its keys; the last message is whole
NODE_FORWARD_RESEND_MS = 300
NODE_FORWARD_TIMEOUT_MS = 3_000  # below the 5 s after which a client of the bench gives up

# --- the queue inside one process (seed API) ------------------------------------------------------
SEED_BYTES_MAX = 256 * 1024 * 1024  # BufferFull above it, until consumers have read on
SEED_WINDOW_DEFAULT = 10_000  # ids; at least so many are remembered
SEED_READ_BYTES = 256 * 1024  # what a consumer holds at a time


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that a process may be given other values of: those that nobody else relies on.

    Cores and tables get them when they are made. What both ends of a connection, or the writer and
    the readers of a file, must agree on is a constant above.
    """

    # --- broker tables (Busy) ---------------------------------------------------------------------
    topics_max: int = 10_000
    partitions_max: int = 1_000
    producers_max: int = 100_000
    producers_retired_max: int = 1_000_000  # names of which only epoch and numbers are kept
    producer_nonces_kept: int = 16
    sessions_max: int = 10_000  # least recently used is forgotten: its client gets UnknownSession
    peers_max: int = 10_000  # least recently used is forgotten: its client gets HelloRequired
    groups_max: int = 10_000
    waiting_fetches_max: int = 10_000
    turn_events_max: int = 512  # what one turn takes from the transport
    turn_bytes_max: int = 2 * 1024 * 1024  # a longer turn would keep fetches waiting for its fsync
    turn_read_bytes_max: int = 4 * 1024 * 1024  # of the log, for fetches; the others wait a turn
    turn_freeze_bytes: int = 32 * 1024  # of rows of a snapshot: one or two milliseconds

    # --- broker: places in the log ----------------------------------------------------------------
    offset_index_step_bytes: int = 256 * 1024  # one entry of 33 bytes for so much log, at most
    producer_index_entries_max: int = 128  # of a producer and partition; the older half is thinned
    cursors_per_partition: int = 16  # where fetches that go on will read; the oldest is forgotten
    reads_per_request_max: int = 16  # one fetch or lookup in one turn; it goes on in the next
    read_bytes: int = 1024 * 1024  # of one read while a stored batch is looked for
    first_read_extra_bytes: int = 64 * 1024  # of a lookup's first read, behind what was resent
    survey_reads_max: int = 8  # of batches whose time a page tells; the others later
    lookups_max: int = 64  # resends whose original is looked for over several turns (Busy)
    created_ahead_ms_max: int = 300_000  # of a message's own time before broker time (BadCreatedAt)
    id_table_ids: int = 128 * 1024  # newest ids in memory, about 50 bytes each, then a file;
    id_table_ids_max: int = 256 * 1024  # an eighth of all ids, up to so many
    id_tables_waiting_max: int = 8  # such tables that wait for their file: above it Busy
    offset_part_bytes: int = 1024 * 1024 * 1024  # log covered by one part of a snapshot

    keep_bytes_min: int = 32 * 1024 * 1024  # of log that a copy of what is left must free
    retention_partitions_per_turn: int = 256  # a sweep goes on in the next turn

    # --- fetch ------------------------------------------------------------------------------------
    fetch_bytes_default: int = 4 * 1024 * 1024

    # --- producer ---------------------------------------------------------------------------------
    in_flight_batches_max: int = 128

    # --- members of a group that share partitions -------------------------------------------------
    members_max: int = 1_000  # heard lately, of all groups; one more takes only what nobody wants
    asked_max: int = 100_000  # (member, partition) pairs of who asks for what; more are not noted

    # --- consumer ---------------------------------------------------------------------------------
    solitary_messages_max: int = 4 * 1024  # of each input, handled alone after an unclean end
    keys_ahead_max: int = 4_096  # messages that wait behind others of their key, later ones started
    state_bytes_max: int = 64 * 1024 * 1024
    outputs_unacked_max: int = 100_000  # no handler starts above it, nor above
    outputs_unacked_bytes_max: int = 64 * 1024 * 1024
    fetches_held_max: int = 2  # fetch replies in memory, the one being handled included
    commit_every_ms: int = 500  # a batch whose handlers take longer is committed in parts
    commit_bytes: int = 4 * 1024 * 1024  # state and outputs above it end the commit at that message
    commit_messages_max: int = 64 * 1024  # messages above it end the commit
    skips_max: int = 1_000  # ranges that operators had a ledger pass over (NotSupported)
    ledger_table_ids: int = 16 * 1024  # newest explicit ids in memory, 32 bytes each, then a file;
    ledger_table_ids_max: int = 128 * 1024  # an eighth of all ids, up to so many
    ledger_tables_waiting_max: int = 8  # such tables that wait for their file: above it no call

    # --- main.py: JSON lines on stdin and stdout --------------------------------------------------
    node_line_bytes_max: int = 4 * 1024 * 1024  # a longer line is reported and passed over
    node_replies_kept_max: int = 10_000  # answered requests remembered; the oldest is forgotten
    node_replies_kept_bytes_max: int = 16 * 1024 * 1024
    node_forwards_max: int = 1_000  # requests under way to other nodes; error 11 above it
    node_forwards_bytes_max: int = 32 * 1024 * 1024
    node_committed_keys_max: int = 10_000  # keys with a committed offset; error 11 above it


LIMITS = Limits()  # of every process outside of tests and simulations
