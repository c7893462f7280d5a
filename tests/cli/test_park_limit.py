"""`oncemq consumer --park-limit`: it goes before what the consumers of the app say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from oncemq.cli import consumer as command

APP = """
from oncemq import App
app = App()
app.consumer("a", group="one")(lambda message, tx: None)
app.consumer("b", group="two", park_limit=5)(lambda message, tx: None)
app.consumer("c", group="three", park_limit=None)(lambda message, tx: None)
"""


@pytest.mark.parametrize(
    ("flags", "limits"),
    [
        ([], [100, 5, None]),
        (["--park-limit=7"], [7, 7, 7]),
        (["--park-limit=none"], [None, None, None]),
    ],
)
def test_the_limit_of_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], limits: list[int | None]
) -> None:
    """A number for all of them, or none at all."""
    (tmp_path / "limitapp.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    chosen: list[Any] = []
    monkeypatch.setattr(command, "_run", lambda consumers, *_: chosen.extend(consumers))
    monkeypatch.setattr(command, "_log_lines_of_handlers", lambda _: None)
    found = CliRunner().invoke(command.consumer, ["limitapp:app", *flags])
    assert found.exit_code == 0, found.output
    assert [one.park_limit for one in chosen] == limits


@pytest.mark.parametrize("wrong", ["0", "-3", "many", "1.5"])
def test_a_limit_that_is_none(wrong: str) -> None:
    """Wrong usage, before anything is loaded."""
    found = CliRunner().invoke(command.consumer, ["limitapp:app", f"--park-limit={wrong}"])
    assert found.exit_code == 2
    assert "--park-limit" in found.output
