"""`oncemq chaos` without its processes: input, feeding, pictures, verdicts, wrong usage."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from oncemq.chaos import feed as feed_module
from oncemq.chaos.cast import cast, environment
from oncemq.chaos.feed import HELD_BACK, ROUND_FIELD, Feed, Input, read_input
from oncemq.chaos.judge import Run, Verdict, vacuous
from oncemq.chaos.picture import Curve, draw, rates
from oncemq.chaos.play import Outcome, Plan
from oncemq.chaos.programs import ProgramFailed, Running
from oncemq.chaos.report import render
from oncemq.chaos.slots import FAULT_KINDS, Deeds, Fault
from oncemq.chaos.timeline import Watch
from oncemq.cli.chaos import sentence
from oncemq.cli.main import main
from oncemq.codec import batch as batch_codec
from oncemq.errors import BadInput
from oncemq.ids import compound_id
from oncemq.library.app import App
from oncemq.library.files.rows import FileJob
from oncemq.library.files.sources import open_rows
from oncemq.proof.findings import Findings, Violation
from oncemq.proof.verify.log import BrokerLog
from oncemq.proof.verify.verify import Report

SVG = "{http://www.w3.org/2000/svg}"


def job(path: Path, format_name: str = "csv", ids: tuple[str, ...] = ("id",)) -> FileJob:
    return FileJob("orders", str(path), format_name, ids)


def values_of(path: Path) -> list[object]:
    """The rows of a short csv file as a producer gets them."""
    rows = open_rows(str(path), "csv")
    try:
        return rows.next_rows().values
    finally:
        rows.source.close()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


# --- input ----------------------------------------------------------------------------------------


def test_rows_are_read_as_the_producer_reads_them(tmp_path: Path) -> None:
    """csv with quotes and line ends inside, gzip, jsonl and lines: values come out unchanged."""
    text = 'id,note\n1,"a, ""b"""\n2,"two\nlines"\n3,"a\rb"\n'
    plain = read_input(job(write(tmp_path / "a.csv", text)))
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read_input(job(packed)).rows == plain.rows
    assert plain.header == "id,note"
    assert plain.rows == ('1,"a, ""b"""', '2,"two\nlines"', '3,"a\rb"')
    objects = '{"id": "1", "n": 1.5}\n\n{"id": "2"}\n'
    assert read_input(job(write(tmp_path / "a.jsonl", objects), "jsonl")).rows == (
        '{"id": "1", "n": 1.5}',
        '{"id": "2"}',
    )
    feed = Feed(plain, tmp_path, 1, rate=100, rng=random.Random(1))
    grow_to(feed, 3)
    assert values_of(feed.portions[0].path) == values_of(tmp_path / "a.csv")
    lines = read_input(job(write(tmp_path / "a.txt", "one\ntwo"), "lines", ()))
    assert (lines.rows, lines.header) == (("one", "two"), "")


def test_an_id_stands_for_one_row(tmp_path: Path) -> None:
    """An equal row is taken once; another row with the same id is refused, both lines named."""
    twice = read_input(job(write(tmp_path / "a.csv", "id,n\n1,1\n2,1\n1,1\n")))
    assert (len(twice.rows), twice.repeated) == (2, 1)
    with pytest.raises(BadInput, match="lines 2 and 4") as refused:
        read_input(job(write(tmp_path / "b.csv", "id,n\n1,1\n2,1\n1,2\n")))
    assert "--id-field id" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id\n", "no rows"),
        ("", "no rows"),
        ("id,n\n1\n", "line 2"),
        ("name\nx\n", "'id' is missing"),
        (f"id,{ROUND_FIELD}\n1,1\n", ROUND_FIELD),
    ],
)
def test_input_that_cannot_be_fed_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    """What a producer would stumble over later is said before anything runs."""
    with pytest.raises(BadInput, match=reason):
        read_input(job(write(tmp_path / "a.csv", text)))


def test_a_long_input_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: only so many rows are taken, and that is told."""
    monkeypatch.setattr(feed_module, "INPUT_ROWS_MAX", 3)
    path = write(tmp_path / "a.csv", "id\n" + "".join(f"{n}\n" for n in range(5)))
    assert (read_input(job(path)).rows, read_input(job(path)).cut) == (("0", "1", "2"), True)


# --- feeding --------------------------------------------------------------------------------------


def source_of(rows: int, format_name: str = "csv", ids: tuple[str, ...] = ("id",)) -> Input:
    lines = {"csv": "{}", "jsonl": '{{"id": "{}"}}', "lines": "{}"}
    made = tuple(lines[format_name].format(number) for number in range(rows))
    return Input(job(Path("input"), format_name, ids), "id" if format_name == "csv" else "", made)


def grow_to(feed: Feed, rows: int) -> None:
    """Feed without any backlog until so many rows were fed, moving lanes on when they are whole."""
    now_s = 0.0
    while feed.fed < rows:
        now_s += 0.1
        feed.grow(now_s, 0, 1e9, lambda _: False)
        for lane in feed.lanes:
            if lane.portion.whole:
                lane.advance()
        assert now_s < 600, "it does not grow"


@pytest.mark.parametrize("format_name", ["csv", "jsonl"])
def test_every_round_brings_new_ids(tmp_path: Path, format_name: str) -> None:
    """The first round is the input as it is; later ones have one more field, as a part of the id."""
    rng = random.Random(1)
    feed = Feed(source_of(30, format_name), tmp_path, 2, rate=100, rng=rng)
    grow_to(feed, 75)
    feed.finish()
    names = []
    for portion in feed.portions:
        for _, tagged, _ in feed.sent_rows(portion):
            assert tagged is not None
            names.append(tagged[1:].decode())
    assert len(names) == len(set(names)) == feed.fed == sum(its.fed for its in feed.portions)
    assert {str(n) for n in range(30)} <= set(names)
    assert compound_id(["0", "2"]) in names
    first = feed.portions[0].path.read_text()
    assert ROUND_FIELD not in first
    assert all(ROUND_FIELD in its.path.read_text() for its in feed.portions if its.round > 1)
    assert feed.rounds >= 3


def test_numbered_rounds_are_the_input_under_new_names(tmp_path: Path) -> None:
    """Without id fields rows are never changed; each portion has a producer name of its own."""
    feed = Feed(source_of(30, "lines", ()), tmp_path, 2, rate=100, rng=random.Random(2))
    grow_to(feed, 70)
    sent: Counter[bytes] = Counter()
    for portion in feed.portions:
        rows = list(feed.sent_rows(portion))
        assert [number for number, _, _ in rows] == list(range(portion.fed))
        sent.update(body for _, _, body in rows)
    expected = batch_codec.build([b"0"], encodings=1).body(0)
    assert sent[expected] >= 2
    assert len({portion.producer for portion in feed.portions}) == len(feed.portions)


def test_feeding_waits_for_slow_consumers_and_for_takeovers(tmp_path: Path) -> None:
    """Above the backlog nothing is fed; the last row of a lane waits for the end of a takeover."""
    feed = Feed(source_of(1_900), tmp_path, 1, rate=1000, rng=random.Random(3))
    for second in range(1, 100):
        feed.grow(float(second), feed.fed, 0.0, lambda _: False)
    assert feed.fed == feed_module.BACKLOG_MIN
    held = Feed(source_of(50), tmp_path / "..", 1, rate=1000, rng=random.Random(3))
    for second in range(1, 100):
        held.grow(float(second), 0, 1e9, lambda _: True)
    lane = held.lanes[0]
    assert (lane.left, lane.talks()) == (HELD_BACK, False)
    held.grow(200.0, 0, 1e9, lambda _: False)
    assert lane.portion.whole


def test_nothing_is_fed_after_the_end(tmp_path: Path) -> None:
    """Once feeding is over a portion is whole as it is, and no other begins."""
    feed = Feed(source_of(50), tmp_path, 1, rate=100, rng=random.Random(4))
    grow_to(feed, 5)
    fed = feed.fed
    feed.finish()
    feed.grow(1e6, 0, 1e9, lambda _: False)
    assert feed.fed == fed
    assert feed.lanes[0].portion.whole
    assert not feed.lanes[0].advance()


# --- the cast -------------------------------------------------------------------------------------


def app_of(*places: tuple[str, str]) -> App:
    app = App()
    for topic, group in places:
        app.consumer(topic, group=group)(lambda message, tx: None)
    return app


class Ended:
    """A producer that has ended."""

    def __init__(self, exit_code: int, sent: int) -> None:
        self.exit_code = exit_code
        self._sent = sent

    def summary(self) -> dict[str, int]:
        return {"sent": self._sent}

    def told(self) -> str:
        return "told"


def test_the_cast_has_a_process_for_each_group(tmp_path: Path) -> None:
    """A group is one process, unless there are many; chained ones are not taken over."""
    feed = Feed(source_of(5), tmp_path, 3, rate=1, rng=random.Random(1))
    app = app_of(("orders", "a"), ("orders", "b/c[*]".replace("/", "-")), ("invoices", "post"))
    slots = cast("shop:app", app.consumers, feed, "orders")
    assert Counter(slot.role for slot in slots) == {"broker": 1, "producer": 3, "consumer": 3}
    names = [slot.program.name for slot in slots]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)
    assert [bool(slot.owned) for slot in slots if slot.role == "consumer"] == [True, True, False]
    many = app_of(*[("orders", f"g{n}") for n in range(20)])
    assert len(cast("shop:app", many.consumers, feed, "orders")) == 1 + 3 + 1


def test_a_producer_moves_on_only_when_all_is_acknowledged(tmp_path: Path) -> None:
    """Fewer rows stored than fed: the same portion again; all of them: the next; worse: a finding."""
    feed = Feed(source_of(4_500), tmp_path, 1, rate=1000, rng=random.Random(1))
    lane = feed.lanes[0]
    slot = cast("shop:app", app_of(("orders", "a")).consumers, feed, "orders")[1]
    renew = slot.renew
    assert renew is not None

    def after(exit_code: int, sent: int) -> str | None:
        running: Running = Ended(exit_code, sent)  # type: ignore[assignment]
        program = renew(running)
        return None if program is None else Path(program.argv[-1]).name

    grow_to_whole(feed)
    first, second = "portion-00001.csv", "portion-00002.csv"
    assert after(0, 1_999) == after(1, 2_000) == first
    assert after(0, 2_000) == second
    assert feed.portions[0].confirmed
    assert not feed.portions[1].confirmed
    with pytest.raises(ProgramFailed, match="ended with 3"):
        after(3, 0)
    with pytest.raises(ProgramFailed, match="never"):
        for _ in range(100):
            after(0, 7)
    feed.finish()
    assert after(0, lane.portion.fed) is None


def grow_to_whole(feed: Feed) -> None:
    """Feed until the first lane's portion is whole."""
    now_s = 0.0
    while not feed.lanes[0].portion.whole:
        now_s += 0.5
        feed.grow(now_s, 0, 1e9, lambda _: False)
        assert now_s < 600, "it does not grow"


def test_the_cast_works_in_directories_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting of the caller's shell reaches a process that is going to be killed."""
    monkeypatch.setenv("ONCEMQ_DATA", "/precious")
    monkeypatch.setenv("ONCEMQ_LOG_LEVEL", "debug")
    monkeypatch.setenv("HOUSE", "kept")
    environ = environment(tmp_path, "tcp://127.0.0.1:1")
    ours = {name: value for name, value in environ.items() if name.startswith("ONCEMQ_")}
    assert "ONCEMQ_LOG_LEVEL" not in ours
    assert all(value.startswith((str(tmp_path), "tcp://127.0.0.1:1")) for value in ours.values()), (
        ours
    )
    assert environ["HOUSE"] == "kept"


# --- what was seen --------------------------------------------------------------------------------


def test_progress_goes_by_offsets(tmp_path: Path) -> None:
    """An event that a kill has swallowed is made up for by the next one; nothing counts twice."""
    watch = Watch(tmp_path)
    watch.count_from(100.0)
    n = 0

    def emit(event: str, at_s: float, **fields: object) -> None:
        nonlocal n
        line = {"event": event, "pid": 7, "incarnation": "a", "n": n, "mono_ns": int(at_s * 1e9)}
        n += 1
        with (tmp_path / "x-7.jsonl").open("a") as stream:
            stream.write(json.dumps({**line, **fields}) + "\n")

    place = {"topic": "t", "partition": 0}
    emit("batch.appended", 100.5, **place, first_offset=0, count=10, duplicates=2)
    emit("batch.appended", 103.5, **place, first_offset=15, count=5)  # 10 to 14 were not told
    emit("batch.duplicate", 103.6, **place, count=4)
    emit("commit.synced", 101.5, **place, group="g", first_offset=0, next_offset=8, count=8)
    emit("commit.synced", 101.7, **place, group="g", first_offset=0, next_offset=8, count=8)
    emit("commit.synced", 103.7, **place, group="g", first_offset=0, next_offset=4, count=4)
    emit("consumer.skipped", 101.8, **place, group="g", count=3, first_offset=0)
    watch.refresh()
    assert watch.accepted_of("t") == 20
    assert watch.processed_of("g", "t") == 8
    assert (watch.duplicates, watch.skipped) == (6, 3)
    assert watch.accepted_series("t", 5) == [10, 10, 10, 20, 20]
    assert watch.processed_series("g", "t", 5) == [0, 8, 8, 8, 8]
    assert watch.processed_series("nobody", "t", 3) == [0, 0, 0]
    assert rates([10, 10, 10, 20]) == [10.0, 0.0, 0.0, 10.0]
    assert watch.bins == 4


FAULTS = [
    Fault(1.0 + number, kind, "broker", "broker", 10 + number, "a <b> & c", 3.5 + number)
    for number, kind in enumerate([*FAULT_KINDS, *FAULT_KINDS[:2]])
]


def test_the_picture_is_well_formed_and_has_a_mark_for_each_fault() -> None:
    """It parses as XML; marks are counted by kind; nothing lies outside of it."""
    curve = Curve("a & b <c>", [0.0, 5.0, 12_345.0], "#000")
    text = draw(
        seconds=10.0, healed_s=9.0, throughput=[curve], lag=[curve], lanes=["broker"], faults=FAULTS
    )
    root = ET.fromstring(text)
    classes = Counter(group.get("class", "") for group in root.iter(f"{SVG}g"))
    for kind in FAULT_KINDS:
        assert classes[f"mark {kind}"] == sum(fault.kind == kind for fault in FAULTS)
        assert classes[f"key {kind}"] == 1
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for line in root.iter(f"{SVG}polyline"):
        points = [tuple(map(float, its.split(","))) for its in line.get("points", "").split()]
        assert len(points) == 3
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    texts = [its.text for its in root.iter(f"{SVG}text")]
    assert "a & b <c>" in texts
    assert "0:10" in texts
    titles = [its.text or "" for its in root.iter(f"{SVG}title")]
    assert sum("a <b> & c" in title for title in titles) == len(FAULTS)


def test_a_picture_of_nothing_is_a_picture() -> None:
    """A run that ended at once has axes and lanes all the same."""
    flat = Curve("flat", [], "#000")
    text = draw(seconds=0, healed_s=0, throughput=[flat], lag=[], lanes=["broker"], faults=[])
    assert len(list(ET.fromstring(text).iter(f"{SVG}text"))) > 5


# --- verdicts -------------------------------------------------------------------------------------


def run_of(deeds: Deeds, roles: tuple[str, ...] = ("broker", "producer", "consumer")) -> Run:
    feed: Feed = None  # type: ignore[assignment]
    return Run(Path(), "t", feed, (), roles, deeds, Counter(), drained=True)


def test_a_run_that_tried_nothing_fails() -> None:
    """Each thing that was to be tried and was not is an anomaly by itself."""
    deeds = Deeds(Counter(broker=1, producer=1, consumer=1), Counter(broker=1))
    counts = Counter(accepted=1, processed=1, suppressed=1)
    assert vacuous(run_of(deeds), counts) == []
    (nobody,) = vacuous(run_of(Deeds()), counts)
    assert "no process was killed" in nobody.explanation
    for change, reason in (
        ({"kills": deeds.kills - Counter(producer=1)}, "no producer was killed"),
        ({"at_work": Counter()}, "at work"),
    ):
        (found,) = vacuous(run_of(replace(deeds, **change)), counts)
        assert reason in found.explanation
    for name in counts:
        (found,) = vacuous(run_of(deeds), counts - Counter({name: 1}))
        assert name[:8] in found.explanation
    assert vacuous(run_of(deeds, ("consumer",)), counts - Counter(suppressed=1)) == []


def outcome_of(tmp_path: Path, verdict: Verdict) -> Outcome:
    consumers = tuple(app_of(("orders", "billing"), ("invoices", "post")).consumers)
    plan = Plan("shop:app", consumers, source_of(5), 7, seconds=10.0)
    (tmp_path / "events").mkdir()
    watch = Watch(tmp_path / "events")
    watch.count_from(10.0)
    deeds = Deeds(Counter(broker=2), Counter(broker=1))
    return Outcome(plan, verdict, ["broker"], deeds, FAULTS, watch, 50, 2, 9, 12.0, 10.0)


def test_a_report_shows_anomalies_and_lives(tmp_path: Path) -> None:
    """What was found is in the page, escaped, with the story of its message; so is the verdict."""
    verdict = Verdict(notes=["a <note>"])
    verdict.add([Violation("I3-no-duplicate", "orders", ("<id>",), "stored twice\nand <so> on")])
    verdict.stories = [
        {
            "id": "<id>",
            "topic": "orders",
            "accepted": {"offset": 17},
            "groups": [{"group": "billing", "status": "processed"}],
            "events": [
                {
                    "mono_ns": 12_500_000_000,
                    "process": "broker 9",
                    "event": "e",
                    "meaning": "taken",
                    "fields": {"n": "<5>"},
                }
            ],
            "notes": ["<odd>"],
        }
    ]
    outcome = outcome_of(tmp_path, verdict)
    page = render(outcome)
    for shown in (
        "&lt;id&gt;",
        "stored twice",
        "offset 17",
        "2.50 s  broker 9: taken",
        "n &lt;5&gt;",
    ):
        assert shown in page
    for raw in ("<id>", "<note>", "<odd>", "<so>", "<5>", "<script", "Passed"):
        assert raw not in page
    assert sentence(outcome) == "FAILED: 1 anomaly (seed 7)"
    assert not outcome.as_dict()["ok"]


def test_a_good_report_says_so(tmp_path: Path) -> None:
    """Passed needs files that could be read and no anomaly."""
    verdict = Verdict()
    assert not outcome_of(tmp_path, verdict).as_dict()["ok"]
    verdict.report = Report(BrokerLog(), Findings())
    verdict.report.topics = {"orders": {"accepted": 1, "partitions": 1, "groups": {}}}
    (tmp_path / "more").mkdir()
    page = render(outcome_of(tmp_path / "more", verdict))
    assert "Passed" in page
    assert "2nd time" in page


# --- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--minutes", "1", "--kills", "3"), "--minutes or --kills"),
        (("--kill", "broker,cook"), "--kill"),
        (("--kill", ""), "--kill"),
        (("--topic", "nobody"), "no consumer of topic 'nobody'"),
        (("--format", "lines", "--id-field", "id"), "no fields"),
        (("--id-field", "id,id"), "each once"),
        (("--keep", "full"), "not empty"),
        (("--report", "missing/out.html"), "no such directory"),
        (("--input", "missing.csv"), "missing.csv"),
    ],
)
def test_wrong_usage_is_said_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    reason: str,
) -> None:
    """Exit status 2 and one line; no process was started, no directory made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    write(tmp_path / "in.csv", "id\n1\n")
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "precious", "data")
    name = f"shop_{abs(hash(options))}"
    write(
        tmp_path / f"{name}.py",
        "from oncemq import App\napp = App()\n"
        "app.consumer('orders', group='g')(lambda message, tx: None)\n",
    )
    arguments = ["chaos", f"{name}:app", "--topic", "orders", "--input", "in.csv", *options]
    assert main(arguments) == 2
    assert reason in capsys.readouterr().err
    assert (tmp_path / "full" / "precious").read_text() == "data"
    assert not (tmp_path / "tmp").exists()
