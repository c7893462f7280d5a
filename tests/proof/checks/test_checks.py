"""The checks of a run: a clean one passes, each check finds what it is there for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oncemq.proof.checks.evidence import (
    FAIL,
    INFO,
    OK,
    Effect,
    Event,
    Evidence,
    History,
    Read,
    Send,
)
from oncemq.proof.checks.history import count_events, read_history
from oncemq.proof.checks.verdict import all_checks, run_checks
from oncemq.proof.verify.kept import Kept
from oncemq.proof.verify.verify import PROVED, Report, verify
from oncemq.runtime.events import EventLog
from oncemq.storage.memory import MemoryDisk
from tests.proof.golden import DATA, STATE, Broker, compacted, shop

IDS = ("o-1", "o-2", "o-3", *[f"orders/importer:0:{n}" for n in range(4)], "o-4")


def an_event(n: int, name: str, mono_ns: int = 0, **fields: Any) -> Event:
    return Event(name, "consumer", 7, "inc", n, mono_ns or n, fields)


def commit_event(n: int, first: int, following: int, number: int, **more: Any) -> Event:
    fields: dict[str, Any] = {
        "group": "billing",
        "topic": "orders",
        "partition": 0,
        "epoch": 2,
        "first_offset": first,
        "next_offset": following,
        "commit_no": number,
    }
    return an_event(n, "commit.synced", **{**fields, **more})


def the_run() -> Evidence:
    disk = MemoryDisk()
    _, consumer = shop(disk)
    earlier = look(disk)
    consumer.commit(8, ["o-4"])
    report = look(disk)
    assert report.kept is not None
    sends = [
        Send("p", "orders", 0, entry.message_id, OK, entry.offset, entry.body_hash)
        for entry in report.kept.entries
        if entry.topic == "orders"
    ]
    messages = tuple(enumerate(IDS))
    reads = [
        Read("r", "orders", 0, messages[:5]),
        Read("r", "orders", 0, messages[5:]),
        Read("other", "orders", 0, messages),
    ]
    events = [
        an_event(0, "log.opened", durable_end=0),
        commit_event(1, 0, 2, 1),
        commit_event(2, 2, 7, 2),
    ]
    effects = [Effect("billing", "orders", name, name.upper()) for name in IDS]
    return Evidence(
        History(events, sends, reads, sends_complete=True, read_to_the_end=True),
        report,
        [earlier],
        effects,
        drained=True,
        expected_values={("billing", "orders", name): name.upper() for name in IDS},
    )


def look(disk: MemoryDisk) -> Report:
    """The proof of what is on a disk now, with all messages."""
    report = verify(disk, DATA, STATE, keep_max=1000)
    assert report.ok, report.found.kept
    return report


def history_of(run: Evidence) -> History:
    assert run.history is not None
    return run.history


def kept(run: Evidence) -> Kept:
    assert run.messages is not None
    return run.messages


def effects_of(run: Evidence) -> list[Effect]:
    assert run.effects is not None
    return run.effects


def test_a_clean_run_passes_and_every_check_has_looked() -> None:
    """With all evidence at hand no check is left out, and none finds anything."""
    verdict = run_checks(the_run())
    assert verdict.ok, verdict.found.kept
    assert verdict.ran == [entry.name for entry in all_checks()]
    assert verdict.not_run == {}


def test_what_cannot_be_checked_is_said() -> None:
    """Without evidence only the demands on the run are judged, and the rest is listed."""
    verdict = run_checks(Evidence())
    assert verdict.ran == ["not-vacuous"]
    assert verdict.not_run["I1-answer-is-kept"] == "history, messages"


def test_what_the_proof_of_the_files_found_is_in_the_verdict() -> None:
    """Of the last look and of earlier ones: there is one verdict on one run."""
    run = the_run()
    assert run.report is not None
    run.report.found.add("I6-offsets", "orders/0", "a hole")
    run.earlier[0].found.add("I12-order", "orders/0", "too early")
    assert set(run_checks(run).found.counts) == {"I6-offsets", "I12-order"}


def test_a_promise_is_proved_once() -> None:
    """No check of a run has the name of what is proved from the files, nor judges the same."""
    assert PROVED.keys().isdisjoint(entry.name for entry in all_checks())
    assert all(entry.needs != ("messages",) for entry in all_checks() if entry.name not in LOOKS)


LOOKS = {"I6-history-stays", "I8-never-back", "I9-never-forgets"}


def _entries(run: Evidence, **changes: Any) -> None:
    entries = kept(run).entries
    entries[0] = replace(entries[0], **changes)


def _commit(run: Evidence, number: int, **changes: Any) -> None:
    (ledger,) = kept(run).ledgers
    commits = list(ledger.commits)
    commits[number] = replace(commits[number], **changes)
    _ledger(run, commits=tuple(commits))


def _ledger(run: Evidence, **changes: Any) -> None:
    (ledger,) = kept(run).ledgers
    kept(run).ledgers[:] = [replace(ledger, **changes)]


def _rows(run: Evidence, **changes: int) -> None:
    assert run.report is not None
    run.report.topics["orders"]["groups"]["billing"].update(changes)


def call_event(n: int, number: int, what: str = "intended", **more: Any) -> Event:
    place = {"group": "billing", "topic": "orders", "partition": 0, "offset": 7, "name": "charge"}
    event = an_event(n, f"effect.{what}", number=number, policy="ask", **more)
    return replace(event, fields={**event.fields, **place})


def _send(run: Evidence, **changes: Any) -> None:
    history = history_of(run)
    history.sends.append(replace(history.sends[0], **changes))


def _effect(run: Evidence, *effects: Effect) -> None:
    effects_of(run).extend(effects)


def _reads(run: Evidence, *reads: Read) -> None:
    history_of(run).reads.extend(reads)


def _shorter_reads(run: Evidence) -> None:
    history = history_of(run)
    history.reads[:] = [replace(read, messages=read.messages[:3]) for read in history.reads]


def _skipping_reads(run: Evidence) -> None:
    history = history_of(run)
    history.reads[:] = [Read("r", "orders", 0, ((0, "o-1"), (2, "o-3")))]


def _events(run: Evidence, *events: Event) -> None:
    history_of(run).events.extend(events)


FORGED: list[tuple[str, Callable[[Evidence], None]]] = [
    ("I1-answer-is-kept", lambda run: _send(run, message_id="o-9")),
    ("I1-answer-is-kept", lambda run: _send(run, offset=4)),
    ("I1-answer-is-kept", lambda run: _send(run, body_hash=1)),
    ("I2-acked-is-durable", lambda run: _events(run, commit_event(3, 7, 8, 3, position=900))),
    ("I3-same-answer", lambda run: _send(run, offset=4)),
    ("I4-was-sent", lambda run: _entries(run, message_id="o-9")),
    (
        "I4-failed-stays-out",
        lambda run: history_of(run).sends.__setitem__(
            0, replace(history_of(run).sends[0], outcome=FAIL)
        ),
    ),
    ("I4-effect-of-nothing", lambda run: _effect(run, Effect("billing", "orders", "o-9"))),
    ("I6-history-stays", lambda run: _entries(run, body_hash=1)),
    ("I7-one-effect", lambda run: _effect(run, Effect("billing", "orders", "o-1", "O-1"))),
    (
        "I7-effect-right",
        lambda run: effects_of(run).__setitem__(0, Effect("billing", "orders", "o-1", "wrong")),
    ),
    ("I7-effect-committed", lambda run: _commit(run, 0, fingerprints=b"")),
    ("I7-effect-committed", lambda run: effects_of(run).pop()),  # type: ignore[arg-type, return-value]
    ("I8-told-is-kept", lambda run: _events(run, commit_event(3, 7, 8, 9))),
    ("I8-told-is-kept", lambda run: _events(run, commit_event(3, 7, 9, 2))),
    ("I8-never-back", lambda run: _ledger(run, reached=6)),
    ("I9-never-forgets", lambda run: _commit(run, 0, fingerprints=b"")),
    ("I9-never-forgets", lambda run: _commit(run, 1, ranges=(("importer", 0, 3),))),
    ("I12-delivery-order", lambda run: _events(run, commit_event(3, 6, 8, 3))),
    ("I12-delivery-order", lambda run: _events(run, commit_event(3, 8, 9, 3))),
    ("P10-told", lambda run: _events(run, call_event(3, 1), call_event(4, 2))),
    ("P10-told", lambda run: _events(run, call_event(3, 1), call_event(4, 3))),
    (
        "P10-told",
        lambda run: _events(
            run, call_event(3, 1), call_event(4, 1, "done", how="returned"), call_event(5, 2)
        ),
    ),
    (
        "P10-told",
        lambda run: _events(run, call_event(3, 1), call_event(4, 1, "unknown"), call_event(5, 2)),
    ),
    ("I14-all-done", lambda run: _rows(run, pending=1)),
    ("I14-all-done", lambda run: setattr(run.report, "outputs_pending", 1)),
    ("I15-readers-agree", lambda run: _reads(run, Read("x", "orders", 0, ((8, "o-5"),)))),
    ("I16-history-whole", lambda run: _events(run, an_event(9, "process.stop"))),
    ("I16-history-whole", lambda run: _events(run, an_event(3, "process.stop", mono_ns=1))),
    ("I16-history-whole", lambda run: history_of(run).faults.append(("file", "cut"))),
    ("I16-sends-whole", lambda run: history_of(run).sends.clear()),
    ("I16-sends-whole", lambda run: _send(run, began=5, ended=4)),
    (
        "aborted-read",
        lambda run: history_of(run).sends.__setitem__(
            0, replace(history_of(run).sends[0], outcome=FAIL)
        ),
    ),
    ("duplicate", lambda run: _reads(run, Read("x", "orders", 0, ((9, "o-1"),)))),
    ("inconsistent-offsets", lambda run: _reads(run, Read("x", "orders", 0, ((0, "o-9"),)))),
    ("lost-write", _skipping_reads),
    ("not-vacuous", lambda run: run.required.update({"kills": 1})),
    ("read-order", _skipping_reads),
    ("read-order", lambda run: _reads(run, Read("r", "orders", 0, ((3, IDS[3]),)))),
    ("send-order", lambda run: _send(run)),
    ("unseen", _shorter_reads),
]


@pytest.mark.parametrize(
    ("name", "forge"), FORGED, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FORGED)]
)
def test_a_seeded_violation_is_found(name: str, forge: Callable[[Evidence], None]) -> None:
    """Each check flags the very thing it is there for."""
    run = the_run()
    forge(run)
    assert name in run_checks(run).found.counts


def test_every_check_is_shown_to_find_something() -> None:
    """A check that no seeded violation reaches could as well be absent."""
    assert {name for name, _ in FORGED} == {entry.name for entry in all_checks()}


def test_calls_may_come_again_when_somebody_wants_it() -> None:
    """An operator, a function that says that nothing happened, a policy; and after going back."""
    run = the_run()
    retry = replace(call_event(8, 4), fields={**call_event(8, 4).fields, "policy": "retry"})
    _events(
        run,
        *(call_event(3, 1), call_event(4, 1, "unknown"), call_event(5, 1, "resolved", how="again")),
        *(call_event(6, 2), call_event(7, 2, "done", how="not_done"), call_event(8, 3)),
        *(retry, call_event(9, 4, "done", how="returned"), call_event(10, 1)),
    )
    assert "P10-told" not in run_checks(run).found.counts


def test_unknown_outcomes_may_go_either_way() -> None:
    """A send whose outcome nobody knows breaks nothing, stored or not."""
    run = the_run()
    _send(run, message_id="o-9", outcome=INFO, offset=None)
    history = history_of(run)
    history.sends[0] = replace(history.sends[0], outcome=INFO, offset=None)
    assert run_checks(run).ok


def test_a_reader_that_jumps_is_not_out_of_order() -> None:
    """After a seek a reader may start anywhere, and goes on in order from there."""
    run = the_run()
    _reads(run, Read("r", "orders", 0, ((2, "o-3"), (3, IDS[3])), sought=True))
    assert run_checks(run).ok


def test_a_snapshot_stands_for_the_commits_below_it() -> None:
    """What a ledger forgot by compaction is known by the snapshot, and by a look before it."""
    disk = MemoryDisk()
    broker = Broker(disk)
    broker.topic("orders")
    broker.topic("out")
    broker.grant("billing", "orders", 0, 2)
    consumer = compacted(broker, discard=False)
    earlier = look(disk)
    consumer.log.discard(consumer.log.durable_end)
    report = look(disk)
    assert report.kept is not None
    (ledger,) = report.kept.ledgers
    assert ledger.base_commit_no > 0
    assert ledger.next_offset == consumer.offset
    assert len(ledger.processed) == 120
    verdict = run_checks(Evidence(report=report, earlier=[earlier], drained=True))
    assert verdict.ok, verdict.found.kept


def test_too_many_messages_are_not_kept() -> None:
    """Then the files are proved all the same, and checks that want every message say so."""
    disk = MemoryDisk()
    shop(disk)
    report = verify(disk, DATA, STATE, keep_max=9)
    assert report.kept is None
    assert verify(disk, DATA, STATE, keep_max=10).kept is not None
    verdict = run_checks(Evidence(report=report))
    assert verdict.ran == ["I14-all-done", "not-vacuous"]
    assert verdict.not_run["I9-never-forgets"] == "messages"


# --- histories -----------------------------------------------------------------------------------


def test_histories_come_from_event_files(tmp_path: Path) -> None:
    """Events of all processes, in the order of their clock, with what happened counted."""
    for role in ("broker", "consumer"):
        log = EventLog(role, log_dir=str(tmp_path))
        log.emit("process.start", version="1")
        log.emit("batch.duplicate", topic="t", count=3)
        log.close()
    history = read_history(str(tmp_path))
    counts = count_events(history)
    assert [event.name for event in history.events].count("process.start") == 2
    assert (counts["starts"], counts["duplicates-suppressed"]) == (2, 6)
    assert run_checks(Evidence(history=history)).ok


def test_a_line_that_a_kill_cut_is_no_fault_of_the_history(tmp_path: Path) -> None:
    """Only the last line of an incarnation may be half; a hole before it is a fault."""
    log = EventLog("broker", log_dir=str(tmp_path))
    for _ in range(3):
        log.emit("log.disk_ok")
    log.close()
    assert log.path is not None
    path = Path(log.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    history = read_history(str(tmp_path))
    assert (history.torn_lines, len(history.events)) == (1, 2)
    assert run_checks(Evidence(history=history)).ok
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    found = run_checks(Evidence(history=read_history(str(tmp_path)))).found
    assert set(found.counts) == {"I16-history-whole"}
    path.write_bytes(lines[0] + b"half\n" + lines[2])
    assert read_history(str(tmp_path)).faults


def test_an_empty_history_proves_nothing(tmp_path: Path) -> None:
    """A directory without events is a fault, not a clean run."""
    assert not run_checks(Evidence(history=read_history(str(tmp_path)))).ok


def test_operations_of_clients_are_read_beside_events(tmp_path: Path) -> None:
    """What a test's own clients wrote down becomes sends and reads."""
    lines: list[dict[str, Any]] = [
        {"send": {"process": "p", "topic": "t", "partition": 0, "message_id": "a", "outcome": OK}},
        {"read": {"process": "r", "topic": "t", "partition": 0, "messages": [[0, "a"]]}},
        {"end": {"sends_complete": True, "read_to_the_end": True}},
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "load.operations.jsonl").write_text(text)
    history = read_history(str(tmp_path))
    assert history.sends_complete
    assert history.read_to_the_end
    assert history.sends[0].message_id == "a"
    assert history.reads[0].messages == ((0, "a"),)
    (tmp_path / "load.operations.jsonl").write_text(text + "\n{}")
    assert read_history(str(tmp_path)).faults


def test_the_page_lists_every_check() -> None:
    """docs/TESTING.md names all that is proved and checked, in the words of the code."""
    page = (Path(__file__).parents[3] / "docs" / "TESTING.md").read_text("utf-8")
    for name, promise in PROVED.items():
        assert f"| `{name}` | {promise} |" in page
    for entry in all_checks():
        needs = ", ".join(entry.needs) or "nothing"
        assert f"| `{entry.name}` | {needs} | {entry.promise} |" in page
