"""The command line as a program sees it: exit codes, error lines, `config`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from oncemq.cli import main as cli_main
from oncemq.cli.output import exit_code_of, print_error, print_table, process_events
from oncemq.errors import DiskFull, Fenced, InvalidName
from oncemq.runtime.settings import SPECS, BadSetting, Settings

ROOT = Path(__file__).resolve().parents[2]


def test_config_tells_every_value_and_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` prints one object with all settings."""
    monkeypatch.setenv("ONCEMQ_DATA", "elsewhere")
    assert cli_main.main(["config", "--json", "--broker", "tcp://h:1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == list(SPECS)
    assert told["broker"] == {"value": "tcp://h:1", "source": "flag --broker"}
    assert told["data"] == {"value": "elsewhere", "source": "environment ONCEMQ_DATA"}
    assert told["state"] == {"value": "data/consumers", "source": "default"}


def test_config_for_people_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, columns are parted by tabs, and headings are no row to a search."""
    assert cli_main.main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "SETTING\tVALUE\tSOURCE"
    assert "drain\t4.0\tdefault" in lines


def test_a_bad_setting_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the variable; exit 2; nothing on stdout."""
    monkeypatch.setenv("ONCEMQ_DRAIN", "soon")
    assert cli_main.main(["config", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: drain from environment ONCEMQ_DRAIN: 'soon' (expected a number of seconds)\n"
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Fenced("a newer broker runs"), 3),
        (click.UsageError("what?"), 2),
        (BadSetting("no"), 2),
        (InvalidName("a/b"), 2),
        (DiskFull(), 1),
        (FileNotFoundError(2, "No such file or directory", "x.csv"), 1),
        (KeyboardInterrupt(), 130),
        (click.exceptions.Exit(4), 4),
    ],
)
def test_exit_codes_follow_from_the_error(error: BaseException, code: int) -> None:
    """The supervisor and scripts rely on these numbers."""
    assert exit_code_of(error) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Fenced("a newer\nbroker", hint="stop"), "error: a newer broker (stop)\n"),
        (FileNotFoundError(2, "No such file", "x.csv"), "error: no such file: x.csv\n"),
    ],
)
def test_an_error_is_one_line(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reason and hint on stderr, no traceback."""
    print_error(error)
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("ending", [Fenced("replaced"), 1, 0, None, OSError(5, "I/O error", "log")])
def test_every_ending_becomes_an_exit_status(ending: object) -> None:
    """A command raises, returns a number, or returns nothing."""

    @click.command()
    def command() -> object:
        if isinstance(ending, Exception):
            raise ending
        return ending

    expected = exit_code_of(ending) if isinstance(ending, Exception) else ending or 0
    assert cli_main._call(command, [], "test") == expected


def test_unknown_commands_and_options_are_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, and the words that were not understood."""
    assert cli_main.main(["nope"]) == 2
    assert cli_main.main(["config", "--nope"]) == 2
    assert "'nope'" in capsys.readouterr().err


def test_commands_without_a_module_are_not_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help shows what this installation can do."""
    monkeypatch.setitem(cli_main.COMMANDS, "ghost", cli_main.Entry("ghost:ghost", "Not there."))
    assert cli_main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "config" in out
    assert "ghost" not in out
    assert cli_main.main(["ghost"]) == 2
    assert cli_main.run("ghost", []) == 1


def test_every_listed_command_loads() -> None:
    """Each entry of the table names a real command."""
    context = click.Context(cli_main.cli)
    for name in cli_main.cli.list_commands(context):
        assert isinstance(cli_main.cli.get_command(context, name), click.Command)


def test_a_table_is_drawn_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets in values are text, not markup."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("things", ("name", "value"), [("a[b]", None), ("c", 1)])
    out = capsys.readouterr().out
    assert "things" in out
    assert "a[b]" in out


def test_a_process_tells_its_beginning_and_its_end(tmp_path: Path) -> None:
    """The last line of the event file says with which exit status and why."""
    settings = Settings.load(flags={"log_dir": str(tmp_path)}, environ={})
    with process_events("broker", settings):
        pass
    with pytest.raises(Fenced), process_events("broker", settings):
        raise Fenced("replaced", hint="stop")
    text = (tmp_path / f"broker-{os.getpid()}.jsonl").read_text("utf-8")
    start, stop, again, fenced = map(json.loads, text.splitlines())
    assert (start["event"], stop["event"], again["event"]) == (
        "process.start",
        "process.stop",
        "process.start",
    )
    assert start["settings"]["data"] == "data/broker"
    assert stop["exit_code"] == 0
    assert start["incarnation"] == stop["incarnation"] != again["incarnation"]
    assert (fenced["exit_code"], fenced["code"]) == (3, "fenced")
    assert fenced["reason"] == "replaced (stop)"


@pytest.mark.parametrize(
    ("command", "meant"), [(["topic", "list"], "topics"), (["suprevise", "ls"], "supervise")]
)
def test_a_command_that_is_not_there_names_its_like(
    command: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong usage ends with 2 and says what was probably meant."""
    assert cli_main.main(command) == 2
    assert f"did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.process
def test_help_stays_light() -> None:
    """`oncemq --help` loads neither ZeroMQ nor rich nor structlog nor asyncio."""
    code = (
        "import sys\n"
        "from oncemq.cli.main import main\n"
        "main(['--help'])\n"
        "print({'zmq', 'rich', 'structlog', 'asyncio'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr == "set()\n"
