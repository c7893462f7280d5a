"""The ledgers, alone and against log and events: I8, I9, I10, I11, I12, I13."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from operator import attrgetter

from ...ids import output_producer
from ..model import Violation
from .evidence import Entry, Evidence, LedgerView
from .table import check

_OFFSET = attrgetter("offset")


def _ledgers(evidence: Evidence) -> list[LedgerView]:
    assert evidence.ledgers is not None, "the table asks for it"
    return evidence.ledgers


def _entries(evidence: Evidence) -> tuple[Entry, ...]:
    assert evidence.log is not None, "the table asks for it"
    return evidence.log.entries


@check("I7-commit-once", "ledgers")
def commit_once(evidence: Evidence) -> Iterator[Violation]:
    """An id is in one commit of its group's ledgers, and no other."""
    seen: dict[tuple[str, str, str], str] = {}
    for ledger in _ledgers(evidence):
        for commit in ledger.commits:
            for message_id in commit.ids:
                key = (ledger.group, ledger.topic, message_id)
                place = f"{ledger.topic}/{ledger.partition} commit {commit.commit_no}"
                if key in seen:
                    reason = f"processed by {seen[key]} and by {place}"
                    yield Violation("I7-commit-once", ledger.where, (message_id,), reason)
                seen[key] = place


@check("I8-commit-covers", "ledgers", "log")
def commit_covers(evidence: Evidence) -> Iterator[Violation]:
    """All below the committed offset was processed by its commit, or earlier; nothing else was."""
    by_partition: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in _entries(evidence):
        by_partition[entry.topic, entry.partition].append(entry)
    for ledger in _ledgers(evidence):
        entries = sorted(by_partition[ledger.topic, ledger.partition], key=_OFFSET)
        processed: set[str] = set()
        for commit in ledger.commits:
            if commit.moved:  # over messages that are not to be processed, or back
                continue
            low = bisect_left(entries, commit.first_offset, key=_OFFSET)
            high = bisect_left(entries, commit.next_offset, key=_OFFSET)
            span = [entry.message_id for entry in entries[low:high]]
            processed |= set(commit.ids)
            lost = [message_id for message_id in span if message_id not in processed]
            foreign = sorted(set(commit.ids) - set(span))
            for ids, reason in (
                (lost, f"commit {commit.commit_no} moved the offset over what was not processed"),
                (foreign, f"commit {commit.commit_no} processed what is not at its offsets"),
            ):
                if ids:
                    yield Violation("I8-commit-covers", ledger.where, tuple(ids), reason)


@check("I8-commit-monotone", "ledgers")
def commit_monotone(evidence: Evidence) -> Iterator[Violation]:
    """Commits are numbered without holes and offsets never go back, also between two looks."""
    for ledger in _ledgers(evidence):
        number, offset = ledger.base_commit_no, ledger.start_offset
        for commit in ledger.commits:
            if commit.commit_no != number + 1 and commit.commit_no != ledger.base_commit_no:
                reason = f"commit {commit.commit_no} follows {number}"
                yield Violation("I8-commit-monotone", ledger.where, (), reason)
            back = commit.next_offset < commit.first_offset and not commit.moved
            if commit.first_offset < offset or back:
                reason = f"commit {commit.commit_no} goes back below offset {offset}"
                yield Violation("I8-commit-monotone", ledger.where, (), reason)
            number, offset = commit.commit_no, commit.next_offset
    best: dict[tuple[str, str, int], int] = {}
    for look in [*evidence.earlier_ledgers, *_ledgers(evidence)]:
        moved = any(commit.moved for commit in look.commits)
        if look.next_offset < best.get(look.place, 0) and not moved:
            reason = f"it stands at {look.next_offset}, and stood at {best[look.place]} before"
            yield Violation("I8-commit-monotone", look.where, (), reason)
        best[look.place] = max(best.get(look.place, 0), look.next_offset)


@check("I8-told-is-kept", "history", "ledgers")
def told_is_kept(evidence: Evidence) -> Iterator[Violation]:
    """A commit that a process called synced is in the ledger, as it was told."""
    assert evidence.history is not None
    ledgers = {ledger.place: ledger for ledger in _ledgers(evidence)}
    for event in evidence.history.named("commit.synced"):
        fields = event.fields
        ledger = ledgers.get((fields["group"], fields["topic"], fields["partition"]))
        if ledger is None:
            continue
        number, offset = fields["commit_no"], fields["next_offset"]
        kept = {commit.commit_no: commit.next_offset for commit in ledger.commits}
        if number > ledger.base_commit_no:
            lost = kept.get(number) != offset
        else:
            lost = offset > ledger.next_offset
        if lost:
            reason = f"process {event.pid} had commit {number} up to offset {offset}"
            yield Violation("I8-told-is-kept", ledger.where, (), reason)


@check("I9-never-forgets", "ledgers")
def never_forgets(evidence: Evidence) -> Iterator[Violation]:
    """An id that an earlier look found processed is processed at every later look."""
    known: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for look in [*evidence.earlier_ledgers, *_ledgers(evidence)]:
        now = {message_id for commit in look.commits for message_id in commit.ids}
        forgotten = sorted(known[look.place] - now)
        if forgotten:
            yield Violation(
                "I9-never-forgets", look.where, tuple(forgotten), "known before, and not now"
            )
        known[look.place] |= now


@check("I10-zombie-ledger", "ledgers")
def zombies_in_ledger(evidence: Evidence) -> Iterator[Violation]:
    """Every commit is of the generation that wrote it, and epochs never go back."""
    for ledger in _ledgers(evidence):
        epoch = 0
        for commit in ledger.commits:
            snapshot = commit.commit_no == ledger.base_commit_no
            if commit.epoch < epoch or (commit.epoch != commit.generation and not snapshot):
                reason = (
                    f"commit {commit.commit_no} of epoch {commit.epoch}, written by generation "
                    f"{commit.generation} after epoch {epoch}"
                )
                yield Violation("I10-zombie-ledger", ledger.where, commit.ids, reason)
            epoch = max(epoch, commit.epoch)


@check("I10-granted", "ledgers", "log")
def every_epoch_was_granted(evidence: Evidence) -> Iterator[Violation]:
    """Who commits was granted the partition first: this epoch, to this ledger, not from further on."""
    assert evidence.log is not None
    grants = {(g.group, g.topic, g.partition, g.epoch): g for g in evidence.log.grants}
    for ledger in _ledgers(evidence):
        told: set[int] = set()
        for commit in ledger.commits:
            if commit.epoch in told or commit.commit_no == ledger.base_commit_no:
                continue
            told.add(commit.epoch)
            grant = grants.get((*ledger.place, commit.epoch))
            if grant is None:
                reason = f"epoch {commit.epoch} was never granted"
            elif grant.ledger_id != ledger.ledger_id:
                reason = f"epoch {commit.epoch} was granted to another ledger"
            elif commit.first_offset < grant.next_offset:
                reason = f"epoch {commit.epoch} was granted from offset {grant.next_offset} on"
            else:
                continue
            yield Violation("I10-granted", ledger.where, (), reason)


@check("I11-outputs-once", "ledgers", "log")
def outputs_once(evidence: Evidence) -> Iterator[Violation]:
    """Outputs in the log are what commits made, each once; acknowledged ones are there."""
    stored: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in _entries(evidence):
        if entry.producer[:1] == "@":
            stored[entry.topic, entry.message_id].append(entry)
    owners = {output_producer(*ledger.place): ledger for ledger in _ledgers(evidence)}
    made: set[tuple[str, str]] = set()
    for ledger in owners.values():
        for sent in ledger.outputs:
            key = (sent.topic, sent.message_id)
            made.add(key)
            entries = stored.get(key, [])
            number = int(sent.message_id.rpartition(":")[2])
            reason = ""
            if len(entries) > 1:
                reason = f"stored {len(entries)} times"
            elif entries and entries[0].body_hash != sent.body_hash:
                reason = "another body was stored than the commit made"
            elif not entries and number < ledger.acked.get((sent.topic, sent.partition), 0):
                reason = "acknowledged and not in the log"
            elif not entries and evidence.drained:
                reason = "committed and never stored"
            if reason:
                yield Violation("I11-outputs-once", ledger.where, (sent.message_id,), reason)
    for (topic, message_id), entries in stored.items():
        ledger_of = owners.get(entries[0].producer)
        if ledger_of is None or (topic, message_id) in made:
            continue
        known_from = ledger_of.outputs_known_from.get((topic, entries[0].partition), 0)
        if entries[0].sequence >= known_from:
            yield Violation(
                "I11-outputs-once", ledger_of.where, (message_id,), "no commit made this output"
            )


@check("I12-delivery-order", "history")
def delivery_order(evidence: Evidence) -> Iterator[Violation]:
    """Under one epoch each commit starts where the last one ended: no skip, no repeat."""
    assert evidence.history is not None
    ends: dict[tuple[str, str, int, int], int] = {}
    for event in evidence.history.named("commit.synced"):
        fields = event.fields
        key = (fields["group"], fields["topic"], fields["partition"], fields["epoch"])
        first, following = fields["first_offset"], fields["next_offset"]
        if ends.setdefault(key, first) != first:
            reason = f"epoch {key[3]} goes on at offset {first}, it had ended at {ends[key]}"
            where = f"group {key[0]} {key[1]}/{key[2]}"
            yield Violation("I12-delivery-order", where, (), reason)
        ends[key] = following


@check("I13-not-ahead", "ledgers", "log")
def not_ahead(evidence: Evidence) -> Iterator[Violation]:
    """No ledger stands beyond the durable end of the log that it follows."""
    assert evidence.log is not None
    ends = Counter((entry.topic, entry.partition) for entry in _entries(evidence))
    for ledger in _ledgers(evidence):
        end = ends[ledger.topic, ledger.partition]
        if ledger.log_id != evidence.log.log_id:
            reason = f"it follows another log, {ledger.log_id.hex()}"
            yield Violation("I13-not-ahead", ledger.where, (), reason)
        elif ledger.next_offset > end:
            reason = f"it stands at offset {ledger.next_offset}, the log ends at {end}"
            yield Violation("I13-not-ahead", ledger.where, (), reason)
