"""A whole system proved from its files: for every id, what became of it.

    report = verify(OsFiles(), "data/broker", "data/consumers", tell=print)
    report.ok, report.as_dict()

Order of reading, which also makes a live system readable: the ledgers first, up to where they end
then; the broker's log after that, so that all that a ledger has processed is in it; and last the
outputs that ledgers have committed meanwhile, for those that the log may hold already. Whoever
reads the log first calls every id unknown that is stored and processed in between.

Memory is flat: ids are sorted in temporary files. Only what `keep_max` asks for is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...errors import StorageError, UnknownTopic
from ...ids import did_you_mean, output_producer
from ..findings import Findings
from ..parse.files import Files
from ..parse.log import Log, LogMoved, generation_numbers
from ..parse.tables import Look as TableLook
from ..parse.tables import TableLog, table_ledgers
from .compare import compare_ids, compare_outputs, compare_ranges, compare_unique
from .facts import Ledger
from .kept import Keeper, Kept
from .ledgers import LedgerReader
from .log import BrokerLog, LogReader
from .rows import Rows

ATTEMPTS_MAX = 5  # while others compact what is read

# What is proved, by the name under which a violation is told.
PROVED = {
    "I1-acked-not-lost": "Outputs that the broker acknowledged are in its log.",
    "I3-no-duplicate": "One id stands once in its topic, over all partitions and epochs.",
    "I4-no-invention": "What a ledger processed is in the log, at the offsets of that commit.",
    "I5-producer-order": "Numbers of a producer go up by one in a partition, over its epochs.",
    "I6-offsets": "Offsets of a partition are dense, and its times never go back.",
    "I7-effect-once": "An id is in one commit of its group, and no other.",
    "I8-commit-covers": "All below a committed offset was processed.",
    "I8-commit-monotone": "Commits are numbered without holes and never go back or ahead.",
    "I10-zombie-fenced": "Nothing was written under an epoch that was not the live one.",
    "I11-outputs-once": "Outputs are numbered, whole, and in the log as their commit made them.",
    "I12-order": "A message is processed by the commit whose offsets hold it.",
    "I13-atomicity": "A snapshot says the same as the records below it.",
    "P9-parked": "A commit makes one dead letter for each message that it parks, and passes it.",
    "P10-effects": "A call is intended first, not repeated unasked, and not passed while unknown.",
    "horizon": "A topic forgets only ids that are older than its dedup horizon, and none comes back.",
    "ledger-shape": "A ledger is one start and then commits of its inputs.",
    "log-shape": "The log holds records of a broker, of topics and partitions that exist.",
    "one-ledger": "A partition of a group has one ledger.",
    "one-log": "A ledger follows the log that it was built on.",
    "retained": "What was not deleted is there; what went as processed every group has passed.",
}

Tell = Callable[[str, int, int], None]  # (phase, done, all)
Look = Callable[[], Log | TableLog | None]  # opens a ledger as it stands now


@dataclass(slots=True)
class Report:
    """What became of every id."""

    log: BrokerLog
    found: Findings
    # {topic: {"accepted": n, "partitions": n, "groups": {group: {...}}}}
    topics: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs_pending: int = 0  # committed, and not in the log yet
    ledgers: int = 0
    elapsed_s: float = 0.0
    # All messages and commits, where they were asked for and are not too many.
    kept: Kept | None = None

    @property
    def ok(self) -> bool:
        return self.found.total == 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "accepted": sum(topic["accepted"] for topic in self.topics.values()),
            "topics": self.topics,
            "outputs_pending": self.outputs_pending,
            "ledgers": self.ledgers,
            "log": {
                "log_id": self.log.log_id.hex(),
                "generation": self.log.generation,
                "end": self.log.end,
                "batches": self.log.batches,
                "torn_bytes": self.log.torn_bytes,
            },
            "violations": self.found.total,
            "violations_by_check": dict(sorted(self.found.counts.items())),
            "violations_shown": [violation.as_dict() for violation in self.found.kept],
            "notes": self.found.notes,
            "elapsed_s": round(self.elapsed_s, 3),
        }


def broker_log(files: Files, data: str) -> Log:
    """Return a look at the broker's log. Raises StorageError if there is none, and what `look` raises."""
    log = Log.look(files, data)
    if log is None:
        raise StorageError(f"there is no log in {data}")
    return log


def find_ledgers(files: Files, state: str) -> list[str]:
    """Raises FileNotFoundError."""
    level = [f"{state}/{name}" for name in files.list(state)]
    for _ in range(2):
        level = [f"{path}/{name}" for path in level for name in _names(files, path)]
    return [path for path in level if _names(files, path) and generation_numbers(files, path)]


def ledgers_of(
    files: Files, state: str | None, sink: tuple[str, TableLook] | None
) -> dict[str, Look]:
    """Return what opens each ledger, by its directory or what stands for one.

    `state` is the directory of ledgers in files, `sink` a database with ledgers: how it is called,
    and what opens a look into it. Raises FileNotFoundError, and what `look` raises.
    """
    directories = [] if state is None else find_ledgers(files, state)
    looks: dict[str, Look] = {
        directory: partial(Log.look, files, directory) for directory in directories
    }
    if sink is not None:
        shown, look = sink
        for place in table_ledgers(look):
            directory = f"{shown} ({'/'.join(map(str, place))})"
            looks[directory] = partial(TableLog, directory, look, place)
    return looks


def _names(files: Files, path: str) -> list[str]:
    try:
        return files.list(path)
    except (NotADirectoryError, FileNotFoundError):
        return []


def silent(phase: str, done: int, all_: int) -> None:
    """Report no progress."""


def verify(
    files: Files,
    data: str,
    state: str | None,
    *,
    sink: tuple[str, TableLook] | None = None,
    topic: str | None = None,
    tell: Tell = silent,
    run_records: int | None = None,
    keep_max: int = 0,
) -> Report:
    """Prove the log in `data` and all ledgers below `state` (None: none of files).

    `sink` adds the ledgers in a database: how it is called, and what opens a look into it.

    `topic` narrows the report and the ledgers to one topic. `keep_max`: the report keeps messages
    and commits of a log that holds no more. Raises CorruptLog, UnsupportedFormat, StorageError (no
    log there), UnknownTopic, LogMoved (others replace the files all the time), OSError.
    """
    look = partial(broker_log, files, data)
    ledgers = partial(ledgers_of, files, state, sink)
    return prove(look, ledgers, topic=topic, tell=tell, run_records=run_records, keep_max=keep_max)


def prove(
    look: Callable[[], Log],
    find: Callable[[], dict[str, Look]],
    *,
    topic: str | None = None,
    tell: Tell = silent,
    run_records: int | None = None,
    keep_max: int = 0,
) -> Report:
    """Prove the log that `look` opens and the ledgers that `find` finds. All else as for `verify`."""
    started = time.monotonic()
    for attempt in range(ATTEMPTS_MAX):
        proof = _Proof(look, find(), topic, tell, Rows(run_records), Keeper(keep_max))
        try:
            report = proof.run()
        except LogMoved:
            if attempt + 1 == ATTEMPTS_MAX:
                raise
            continue
        finally:
            proof.rows.close()
        report.elapsed_s = time.monotonic() - started
        return report
    raise AssertionError("the last attempt returns or raises")


class _Proof:
    """One attempt."""

    def __init__(
        self,
        look: Callable[[], Log],
        looks: dict[str, Look],
        topic: str | None,
        tell: Tell,
        rows: Rows,
        keeper: Keeper,
    ) -> None:
        self._look = look
        self._looks = looks  # what opens each ledger, by its directory
        self._topic = topic
        self._tell = tell
        self.rows = rows
        self._keeper = keeper
        self._found = Findings()
        self._ledgers: dict[int, Ledger] = {}
        self._numbers = 0

    def run(self) -> Report:
        for done, directory in enumerate(self._looks):
            self._tell("ledgers", done, len(self._looks))
            self._read_ledger(directory)
        self._tell("log", 0, 0)
        log = self._look()
        ledgers = list(self._ledgers.values())
        reader = LogReader(log, ledgers, self.rows, self._found, self._keeper)
        facts = reader.read(lambda done, end: self._tell("log", done, end))
        ledgers = self._drop_deleted(facts, ledgers)
        owners = self._owners()
        self._read_later_outputs(facts, owners)
        for ledger in ledgers:
            _check_ledger(ledger, facts, self._found)
        self._tell("ids", 0, self.rows.unique.count + self.rows.ids.count)
        compare_unique(self.rows, facts, log.frame, self._found)
        self._tell("ids", self.rows.unique.count, self.rows.unique.count + self.rows.ids.count)
        compare_ids(self.rows, self._ledgers, log.frame, self._found)
        compare_ranges(self.rows, self._ledgers, self._found)
        pending = compare_outputs(self.rows, owners, facts, self._found)
        kept = self._keeper.kept
        if kept is not None:
            kept.ledgers = [ledger.as_kept() for ledger in ledgers]
        report = Report(facts, self._found, outputs_pending=pending, ledgers=len(ledgers))
        report.kept = kept
        report.topics = _topics(facts, ledgers, self._topic)
        return report

    def _drop_deleted(self, facts: BrokerLog, ledgers: list[Ledger]) -> list[Ledger]:
        """Leave out the ledgers of topics that were deleted: their messages are gone on purpose."""
        living = {topic.topic_id for n, topic in facts.topics.items() if n not in facts.deleted}
        for ledger in ledgers:
            started = ledger.started
            assert started is not None, "ledgers without a first record are left out"
            same_log = started.log_id == facts.log_id
            if facts.deleted and same_log and started.topic_id not in living:
                self._found.notes.append(f"{ledger.where}: its topic was deleted")
                del self._ledgers[ledger.number]
                continue
            number = facts.number_of(started.topic)
            partition = facts.partitions.get((number or 0, started.partition))
            if number is not None and partition is not None:
                ledger.shown_from = partition.shown_from
        return list(self._ledgers.values())

    def _read_ledger(self, directory: str) -> None:
        for _ in range(ATTEMPTS_MAX):
            self._numbers += 1  # rows of an attempt that is given up belong to no ledger
            found = Findings()
            reader = LedgerReader(
                self._looks[directory],
                directory,
                self._numbers,
                self.rows,
                found,
                keep=self._keeper.kept is not None,
            )
            try:
                ledger = reader.read()
            except LogMoved:
                continue
            if ledger is None or ledger.started is None:
                return
            if self._topic not in {None, ledger.started.topic}:
                return
            self._found.merge(found)
            self._ledgers[ledger.number] = ledger
            return
        raise LogMoved(f"{directory} does not hold still")

    def _owners(self) -> dict[str, Ledger]:
        owners: dict[str, Ledger] = {}
        for ledger in self._ledgers.values():
            name = output_producer(*ledger.place)
            if name in owners:
                text = f"two ledgers: {owners[name].directory} and {ledger.directory}"
                self._found.add("one-ledger", ledger.where, text)
            owners[name] = ledger
        return owners

    def _read_later_outputs(self, facts: BrokerLog, owners: dict[str, Ledger]) -> None:
        grown = {
            producer
            for (producer, topic, partition), end in facts.next_sequence.items()
            if producer in owners
            and end > owners[producer].next_sequence.get((facts.topics[topic].topic, partition), 0)
        }
        for producer in sorted(grown):
            ledger = owners[producer]
            reader = LedgerReader(
                self._looks[ledger.directory], ledger.directory, 0, self.rows, self._found
            )
            if not reader.read_outputs(ledger):
                raise LogMoved(f"{ledger.directory} was compacted meanwhile")


def _check_ledger(ledger: Ledger, log: BrokerLog, found: Findings) -> None:
    """The ledger follows this log, does not go beyond it, and every epoch was granted."""
    started = ledger.started
    assert started is not None, "ledgers without a first record are left out"
    number = log.number_of(started.topic)
    if started.log_id != log.log_id or number is None:
        found.add("one-log", ledger.where, f"it follows log {started.log_id.hex()}")
        return
    if log.topics[number].topic_id != started.topic_id:
        found.add("one-log", ledger.where, "it follows another topic of this name")
    partition = log.partitions.get((number, started.partition))
    end = 0 if partition is None else partition.end_offset
    if ledger.next_offset > end:
        explanation = f"it stands at offset {ledger.next_offset}, the log ends at {end}"
        found.add("I8-commit-monotone", ledger.where, explanation)
    if partition is not None and ledger.next_offset < partition.processed:
        text = f"messages below {partition.processed} were deleted as processed by every group, "
        found.add("retained", ledger.where, f"{text}it stands at {ledger.next_offset}")
    mark, position = ledger.seen
    if mark and position > log.history_end(mark):
        explanation = f"it relies on position {position} of history {mark.hex()}, which the log "
        known = log.history_end(mark)
        explanation += "never had" if known < 0 else f"has up to {known} only"
        found.add("one-log", ledger.where, explanation)
    _check_private(ledger, log, found)
    grants, replaced = log.grants.get(ledger.place, {}), log.replaced.get(ledger.place, ())
    for epoch, first in ledger.epochs.items():
        grant = grants.get(epoch)
        if grant is None and epoch < log.grants_from.get(ledger.place, 0):
            continue  # the log has been shortened since
        if grant is None:
            found.add("I10-zombie-fenced", ledger.where, f"epoch {epoch} was never granted")
        elif grant.ledger_id != ledger.ledger_id:
            found.add("one-ledger", ledger.where, f"epoch {epoch} was granted to another ledger")
        elif first < grant.next_offset and epoch not in replaced:
            explanation = f"epoch {epoch} begins at {first}, it was granted at {grant.next_offset}"
            found.add("I8-commit-monotone", ledger.where, explanation)


def _check_private(ledger: Ledger, log: BrokerLog, found: Findings) -> None:
    """Its other inputs are the private topic of its group, and it is not ahead of it."""
    for topic_id, offset in ledger.parked.offsets.items():
        number = log.number_of(ledger.private_topic)
        if number is None or log.topics[number].topic_id != topic_id:
            found.add("ledger-shape", ledger.where, f"it reads a topic {topic_id.hex()}")
            continue
        partition = log.partitions.get((number, ledger.place[2]))
        end = 0 if partition is None else partition.end_offset
        if offset > end:
            text = f"it stands at offset {offset} of {ledger.private_topic}, the log ends at {end}"
            found.add("I8-commit-monotone", ledger.where, text)


def _topics(log: BrokerLog, ledgers: list[Ledger], only: str | None) -> dict[str, dict[str, Any]]:
    topics: dict[str, dict[str, Any]] = {}
    for number, topic in log.topics.items():
        if number in log.deleted or only not in {None, topic.topic}:
            continue
        ends = {
            place[1]: its.end_offset for place, its in log.partitions.items() if place[0] == number
        }
        accepted = sum(ends.values())
        starts = (its.start for place, its in log.partitions.items() if place[0] == number)
        groups: dict[str, dict[str, int]] = {}
        for ledger in ledgers:
            group, name, _ = ledger.place
            if name == topic.topic:
                row = groups.setdefault(group, dict.fromkeys(_COUNTS, 0))
                assert ledger.started is not None
                parked = ledger.parked
                row["processed"] += ledger.processed + parked.processed
                row["parked"] += parked.left
                row["skipped"] += ledger.passed_over + ledger.started.start_offset + parked.dropped
                if ledger.skipped:
                    row[OPERATOR] = row.get(OPERATOR, 0) + ledger.skipped
                row["partitions"] += 1
                if ledger.effects.calls:
                    row[CALLS] = row.get(CALLS, 0) + ledger.effects.calls
                    row[UNKNOWN] = row.get(UNKNOWN, 0) + ledger.effects.unknown
        for row in groups.values():
            done = row["processed"] + row["parked"] + row["skipped"] + row.get(OPERATOR, 0)
            row["pending"] = accepted - done
        topics[topic.topic] = {
            "accepted": accepted,
            "deleted": sum(starts),
            "partitions": topic.partitions,
            "groups": dict(sorted(groups.items())),
        }
    if only is not None and only not in topics:
        near = did_you_mean(only, (topic.topic for topic in log.topics.values()))
        raise UnknownTopic(
            f"the log holds no topic {only!r}{near}",
            hint="list topics: oncemq topics list",
        )
    return topics


_COUNTS = ("processed", "parked", "skipped", "pending", "partitions")
# Counts that only groups have whose handlers use effects: calls that the records tell of, which a
# compaction may have taken away, and those with an unknown outcome.
CALLS, UNKNOWN = "effect_calls", "effects_unknown"
OPERATOR = "skipped_by_operator"  # a count that only groups have whose offset was moved
