"""Files sent exactly once, over crashes, restarts and changes of the file."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oncemq.errors import (
    BadInput,
    Fenced,
    IdConflict,
    InputChanged,
    OnceMQError,
    TooOld,
    TopicExists,
    Unacknowledged,
)
from oncemq.ids import check_name
from oncemq.library.files import sources
from oncemq.library.files.producer import FileProducer, Progress
from oncemq.library.files.rows import FileJob, default_name
from oncemq.library.files.sources import open_rows
from tests.library.wired import Wire

CSV = b"id,city,n\n" + b"".join(b"%d,%s,%d\n" % (n, [b"ams", b"ber"][n % 2], n) for n in range(500))


class CrashError(Exception):
    """The process dies here."""


class Desk:
    """Runs file producers against one broker."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.wire = Wire(**options)
        self.job = FileJob("t", str(path))
        self.last: FileProducer | None = None

    def send(
        self,
        name: str = "importer",
        *,
        follow: bool = False,
        report: Callable[[Progress], None] = lambda _: None,
        **changes: Any,
    ) -> Progress:
        job = replace(self.job, **changes)
        engine = self.wire.engine("" if job.id_fields and name == "importer" else name)
        self.last = FileProducer(
            job,
            engine,
            lambda: open_rows(job.path, job.format_name, follow=follow),
            report=report,
        )
        try:
            return self.last.run()
        finally:
            engine.close()

    def crash_after(self, acknowledged: int) -> None:
        """Run until so many rows are acknowledged, then die without a word."""

        def report(progress: Progress) -> None:
            if progress.sent >= acknowledged:
                raise CrashError

        with pytest.raises(CrashError):
            self.send(report=report)

    def lines(self, partition: int = 0) -> list[str]:
        return [value.decode() for value in self.wire.values("t", partition)]

    @property
    def stored(self) -> int:
        return sum(map(len, self.wire.broker.logs.values()))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A file of 1,000 lines, read in small pieces."""
    monkeypatch.setattr(sources, "READ_BYTES", 500)
    path = tmp_path / "f.txt"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    return Desk(path)


def summary(progress: Progress) -> tuple[int, int, int]:
    return progress.sent, progress.appended, progress.duplicates


def test_a_file_is_sent_in_order(desk: Desk) -> None:
    """Every line becomes one message, in order, and the summary counts them."""
    assert summary(desk.send()) == (1000, 1000, 0)
    assert desk.lines() == [f"line {number}" for number in range(1000)]


def test_a_second_run_sends_nothing(desk: Desk) -> None:
    """Rows that an earlier run stored are compared and passed over: sent, but not appended."""
    desk.send()
    before = len(desk.wire.broker.requests)
    assert summary(desk.send()) == (1000, 0, 0)
    kinds = {type(request).__name__ for request in desk.wire.broker.requests[before:]}
    assert "Produce" not in kinds


@pytest.mark.parametrize("acknowledged", [1, 300, 999])
def test_a_crash_is_resumed(desk: Desk, acknowledged: int) -> None:
    """After a crash anywhere the next run adds what is missing: nothing lost, nothing twice."""
    desk.crash_after(acknowledged)
    stored = desk.stored
    progress = desk.send()
    assert progress.sent == 1000
    assert progress.appended == 1000 - stored
    assert desk.lines() == [f"line {number}" for number in range(1000)]


def test_a_grown_file_is_resumed(desk: Desk) -> None:
    """Lines added since the last run are all that is sent."""
    desk.send()
    with desk.path.open("a") as file:
        file.write("one more\n")
    assert summary(desk.send()) == (1001, 1, 0)
    assert desk.lines()[-1] == "one more"


def change_first(text: str) -> str:
    return text.replace("line 0", "LINE 0", 1)


def cut_short(text: str) -> str:
    return text[: len(text) // 2]


def drop_one(text: str) -> str:
    return text.replace("line 5\n", "", 1)


def move_boundary(text: str) -> str:
    return text.replace("line 1\nline 2\n", "line 1line\n 2\n", 1)


@pytest.mark.parametrize("change", [change_first, cut_short, drop_one, move_boundary])
def test_another_file_under_the_name_is_refused(desk: Desk, change: Callable[[str], str]) -> None:
    """A file that does not begin with what was sent stops the run before anything is sent."""
    desk.send()
    desk.path.write_text(change(desk.path.read_text()) + ("x\n" if change is not cut_short else ""))
    with pytest.raises(InputChanged, match="nothing was sent"):
        desk.send()
    assert desk.stored == 1000
    assert desk.last is not None
    assert summary(desk.last.progress) == (0, 0, 0)


def test_lines_cannot_trade_places_with_the_bytes_between_them(desk: Desk) -> None:
    """The digest tells two rows from two others whose bytes run together to the same."""
    desk.path.write_bytes(b"a\x01\0\0b\nc\n")
    desk.send()
    desk.path.write_bytes(b"a\nb\x01\0\0c\n")
    with pytest.raises(InputChanged):
        desk.send()


def test_an_empty_file_under_a_used_name_is_refused(desk: Desk) -> None:
    """A file that was emptied is another file."""
    desk.send()
    desk.path.write_text("")
    with pytest.raises(InputChanged):
        desk.send()


def test_the_format_is_part_of_the_file(desk: Desk) -> None:
    """The same file read in another format makes other messages and is refused."""
    desk.path.write_bytes(CSV)
    desk.send(format_name="csv")
    with pytest.raises(InputChanged):
        desk.send(format_name="lines")
    assert desk.stored == 500


def test_a_name_used_by_other_code_is_refused(desk: Desk) -> None:
    """A name under which a program has sent messages of its own has no digest of this file."""
    with desk.wire.producer("importer") as producer:
        producer.send("t", "line 0").result(120)
    with pytest.raises(InputChanged):
        desk.send()


def test_names_are_apart(desk: Desk) -> None:
    """The same file under another name is sent again: the name is what makes ids."""
    desk.send()
    assert summary(desk.send("other")) == (1000, 1000, 0)


def test_a_second_run_at_the_same_time_fences_the_first(desk: Desk) -> None:
    """Two runs under one name: the older ends Fenced, and every line is stored once."""
    others: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.sent >= 300 and not others:
            others.append(Progress())
            first = desk.last
            others[0] = desk.send()
            desk.last = first

    with pytest.raises(Fenced):
        desk.send(report=report)
    assert others[0].sent == 1000
    assert desk.lines() == [f"line {number}" for number in range(1000)]


class TestPartitions:
    """A topic with several partitions."""

    @pytest.fixture
    def many(self, desk: Desk) -> Desk:
        desk.wire.broker.partitions = 3
        return desk

    def test_rows_are_spread_and_resumed(self, many: Desk) -> None:
        """Lines go round the partitions by their count in the file, also after a crash."""
        many.crash_after(300)
        assert many.send().sent == 1000
        for partition in range(3):
            expected = [f"line {number}" for number in range(partition, 1000, 3)]
            assert many.lines(partition) == expected

    def test_nothing_is_sent_before_all_is_compared(self, many: Desk) -> None:
        """A change that only the last partition shows stops the run before any row goes out."""
        many.send()
        log = many.wire.broker.logs
        del log["t", 0][100:]  # as if this partition had been behind at a crash
        changed = many.path.read_text().replace("line 998\n", "LINE 998\n")  # partition 2
        many.path.write_text(changed)
        many.wire.broker.digests["t", 0, "importer"] = self.digest_of_first(many, 100)
        with pytest.raises(InputChanged):
            many.send()
        assert len(log["t", 0]) == 100

    def test_a_bad_line_behind_the_checked_rows_stops_none_before_it(self, many: Desk) -> None:
        """A bad line found while checking ends the run only after all rows before it are sent."""
        many.path.write_bytes(b"a\nb\nc\n")
        many.send()
        many.path.write_bytes(b"a\nb\nc\nd\ne\n\xff\n")
        with pytest.raises(BadInput, match="line 6"):
            many.send()
        assert many.stored == 5

    def test_a_followed_file_is_checked_first_too(self, many: Desk) -> None:
        """Following over partitions: a file that lost rows is refused instead of waited for."""
        many.send()
        many.path.write_text("line 0\n")
        with pytest.raises(InputChanged, match="shorter"):
            many.send(follow=True)

    def digest_of_first(self, many: Desk, count: int) -> bytes:
        """The digest that the broker would hold had partition 0 stopped there."""
        other = Desk(many.path.with_name("part"), partitions=1)
        other.path.write_text("".join(f"line {number}\n" for number in range(0, 3 * count, 3)))
        other.send()
        return other.wire.broker.digests["t", 0, "importer"]

    def test_keys_choose_partitions(self, many: Desk) -> None:
        """Rows with equal keys share a partition, in order; a second run finds them all."""
        many.path.write_bytes(CSV)
        many.send(format_name="csv", key_field="city")
        assert sorted(len(log) for log in many.wire.broker.logs.values()) in ([250, 250], [500])
        assert summary(many.send(format_name="csv", key_field="city")) == (500, 0, 0)

    def test_standard_input_cannot_be_resumed_there(self, many: Desk) -> None:
        """Standard input cannot be read twice: resuming it over partitions is refused."""
        many.send()
        with pytest.raises(BadInput, match="standard input"):
            many.send(path=sources.STDIN)


class TestIds:
    """Explicit ids from fields."""

    @pytest.fixture
    def csv_desk(self, desk: Desk) -> Desk:
        desk.path.write_bytes(CSV)
        desk.job = replace(desk.job, format_name="csv", id_fields=("id", "city"))
        return desk

    def test_any_name_finds_duplicates(self, csv_desk: Desk) -> None:
        """With id fields the whole file is sent each time, and stored once."""
        assert summary(csv_desk.send("a")) == (500, 500, 0)
        assert summary(csv_desk.send("b")) == (500, 0, 500)
        assert summary(csv_desk.send()) == (500, 0, 500)
        assert csv_desk.stored == 500

    def test_a_changed_row_is_a_conflict(self, csv_desk: Desk) -> None:
        """A row with a known id and another body is refused by line; all others are stored."""
        csv_desk.send()
        csv_desk.path.write_bytes(CSV.replace(b"7,ber,7\n", b"7,ber,8\n") + b"500,ams,1\n")
        with pytest.raises(IdConflict, match=r"line 9: id '7,ber'"):
            csv_desk.send()
        assert csv_desk.last is not None
        assert csv_desk.last.progress.duplicates > 0

    def test_compound_ids_are_injective(self, csv_desk: Desk) -> None:
        """Different fields never make the same id."""
        csv_desk.path.write_bytes(b'id,city\n"a,b",c\na,"b,c"\n')
        assert summary(csv_desk.send()) == (2, 2, 0)

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (b'{"id": null}', "field 'id' is missing"),
            (b"{}", "field 'id' is missing"),
            (b'{"id": 1.5}', "field 'id' is float"),
            (b'{"id": true}', "field 'id' is bool"),
            (b'{"id": ""}', "must not be empty"),
            (b'{"id": "%s"}' % (b"x" * 200), "the limit is"),
            (b'{"id": "x", "big": 99999999999999999999}', "line 3"),
        ],
    )
    def test_a_bad_row_names_its_line(self, desk: Desk, row: bytes, reason: str) -> None:
        """A row without a usable id stops the run; all rows before it are acknowledged."""
        desk.path.write_bytes(b'{"id": "a"}\n{"id": 7}\n' + row + b'\n{"id": "z"}\n')
        with pytest.raises(BadInput, match="line 3") as caught:
            desk.send(format_name="jsonl", id_fields=("id",))
        assert reason in caught.value.reason
        assert desk.last is not None
        assert summary(desk.last.progress) == (2, 2, 0)
        assert [message.id for message in desk.wire.broker.logs["t", 0]] == [b"sa", b"s7"]


def test_a_bad_line_comes_after_all_good_ones(desk: Desk) -> None:
    """What cannot be read ends the run, with its line number, after all before is acknowledged."""
    desk.path.write_bytes(b"good\n" * 700 + b"\xff\n" + b"never\n")
    with pytest.raises(BadInput, match="line 701"):
        desk.send()
    assert desk.lines() == ["good"] * 700


def test_a_missing_key_is_a_bad_line(desk: Desk) -> None:
    """A row without its key field stops the run at its line."""
    desk.path.write_bytes(b'{"k": "a"}\n{}\n')
    with pytest.raises(BadInput, match="line 2: field 'k' is missing"):
        desk.send(format_name="jsonl", key_field="k")


def test_gzip_files_are_resumed_too(desk: Desk) -> None:
    """A packed file is the rows in it: the same rows packed anew are the same file."""
    path = str(desk.path) + ".gz"
    Path(path).write_bytes(gzip.compress(desk.path.read_bytes(), 1))
    desk.send(path=path)
    Path(path).write_bytes(gzip.compress(desk.path.read_bytes(), 9))
    assert summary(desk.send(path=path)) == (1000, 0, 0)


def test_a_lossy_network_changes_nothing(desk: Desk) -> None:
    """A broker that comes and goes gets every line once, in order."""
    # Drawn, not counted: a cut in every fifth turn can meet every resend of a client in step.
    rng = random.Random(7)

    def report(_: Progress) -> None:
        desk.wire.cut = rng.random() < 0.4
        if rng.random() < 0.1:
            desk.wire.broker.restart()

    assert desk.send(report=report).sent == 1000
    assert desk.lines() == [f"line {number}" for number in range(1000)]


def test_the_window_bounds_what_is_read(desk: Desk) -> None:
    """While the broker does not answer, reading stops: memory does not grow with the file."""
    desk.path.write_text("x" * 100 + "\n" * 1 + ("y" * 100 + "\n") * 20_000)
    positions: list[int] = []

    def report(progress: Progress) -> None:
        if progress.sent:
            desk.wire.cut = True
            positions.append(progress.position)
        if len(positions) > 400:
            raise CrashError

    with pytest.raises(CrashError):
        desk.send(report=report)
    assert positions[-1] == positions[-10] < 1_000_000


def test_waiting_for_a_broker_is_told(desk: Desk) -> None:
    """The progress names the endpoint while no broker answers, and no longer than that."""
    desk.wire.cut = True
    seen: list[str] = []

    def report(progress: Progress) -> None:
        seen.append(progress.waiting_for)
        if progress.waiting_for:
            desk.wire.cut = False

    desk.send(report=report)
    assert "no broker answers at tcp://127.0.0.1:7400" in seen
    assert seen[-1] == ""


def test_a_stopped_run_ends_after_its_acknowledgements(desk: Desk) -> None:
    """Stopping reads no more, waits for what is on its way, and the next run goes on."""

    def report(progress: Progress) -> None:
        if progress.sent > 100 and desk.last is not None:
            desk.last.stop()

    progress = desk.send(report=report)
    assert desk.last is not None
    assert desk.last.stopped
    assert 100 < progress.sent == desk.stored < 1000
    assert desk.send().sent == 1000


def test_a_stopped_run_does_not_wait_for_ever(desk: Desk) -> None:
    """Stopped without a broker, a run ends with Unacknowledged after a bounded time."""

    def report(progress: Progress) -> None:
        desk.wire.cut = desk.wire.cut or progress.sent > 100
        if progress.position > 5_000 and desk.last is not None:
            desk.last.stop()

    with pytest.raises(Unacknowledged):
        desk.send(report=report)


def test_stopping_before_the_broker_came(desk: Desk) -> None:
    """Stopped while it waits for its first broker, a run ends with nothing sent."""
    desk.wire.cut = True

    def report(_: Progress) -> None:
        assert desk.last is not None
        desk.last.stop()

    assert summary(desk.send(report=report)) == (0, 0, 0)


def test_a_followed_file_is_sent_as_it_grows(desk: Desk) -> None:
    """New lines are sent when their newline is there; stopping ends the run in good order."""
    desk.path.write_text("a\nb")

    def report(progress: Progress) -> None:
        if progress.sent == 1 and desk.path.read_text() == "a\nb":
            with desk.path.open("a") as file:
                file.write("c\nd")
        if progress.sent == 2 and desk.last is not None:
            desk.last.stop()

    desk.send(follow=True, report=report)
    assert desk.lines() == ["a", "bc"]


def test_a_followed_file_that_is_rotated_ends_the_run(desk: Desk) -> None:
    """Rotation is an error after all of the old file is acknowledged."""
    desk.path.write_text("a\n")

    def report(progress: Progress) -> None:
        if progress.sent == 1 and desk.path.exists():
            os.rename(desk.path, str(desk.path) + ".1")

    with pytest.raises(InputChanged, match="rotated"):
        desk.send(follow=True, report=report)
    assert desk.lines() == ["a"]


def test_a_followed_file_that_lost_lines_is_refused(desk: Desk) -> None:
    """A file that ends below what an earlier run sent is another file, not one to wait for."""
    desk.send()
    desk.path.write_text("line 0\n")
    with pytest.raises(InputChanged, match="shorter"):
        desk.send(follow=True)


def test_a_batch_that_is_too_old_ends_the_run(desk: Desk) -> None:
    """A refusal of rows with ids is raised once all else on its way has its verdict."""
    desk.path.write_bytes(CSV)

    def report(progress: Progress) -> None:
        if progress.sent and not desk.wire.broker.refusals:
            desk.wire.broker.refusals = ["too_old"]

    with pytest.raises(TooOld):
        desk.send(format_name="csv", id_fields=("id",), report=report)
    assert desk.last is not None
    assert 0 < desk.last.progress.sent < 500


def test_a_followed_file_is_resumed(desk: Desk) -> None:
    """A follower that was stopped goes on behind the last line it sent."""
    desk.path.write_text("a\nb\n")

    def stop_at(count: int) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            if progress.sent == count and desk.last is not None:
                desk.last.stop()

        return report

    desk.send(follow=True, report=stop_at(2))
    with desk.path.open("a") as file:
        file.write("c\n")
    assert summary(desk.send(follow=True, report=stop_at(3))) == (3, 1, 0)
    assert desk.lines() == ["a", "b", "c"]


def test_a_refused_topic_ends_the_run(desk: Desk) -> None:
    """A topic that cannot be had is an error before anything is read."""
    desk.wire.broker.refusals = ["topic_exists"] * 2
    with pytest.raises(OnceMQError) as caught:
        desk.send(id_fields=("x",), format_name="csv")
    assert isinstance(caught.value, TopicExists)


def test_names_come_from_topic_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default name is the same for the same topic and place, and another for another."""
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "Größe:1/../@x.csv")
    name = default_name("t", path)
    assert name == default_name("t", path) == default_name("t", "@x.csv")
    assert len({name, default_name("u", path), default_name("t", "y.csv")}) == 3
    for each in (name, default_name("t", "x.dead"), default_name("t", "x" * 300)):
        assert check_name(each) == each
    assert default_name("t", "-") != default_name("t", "-")
