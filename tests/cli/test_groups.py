"""What `oncemq groups` asks before it acts; what it does is in tests/process/test_groups_command.py."""

from __future__ import annotations

import click
import pytest

from oncemq.cli import groups, output
from oncemq.library.operating.seek import LostLedger


@pytest.mark.parametrize(
    ("terminal", "replace", "yes", "answer", "ends"),
    [
        (True, True, False, True, None),
        (True, True, False, False, 1),
        (True, False, False, False, 1),  # in its own place a terminal is asked too
        (False, True, False, None, 2),
        (False, False, False, None, None),
        (False, True, True, None, None),
        (True, True, True, None, None),
    ],
)
def test_a_lost_ledger_is_replaced_only_with_a_yes(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    terminal: bool,
    replace: bool,
    yes: bool,
    answer: bool | None,
    ends: int | None,
) -> None:
    """It says what is gone and what is handled again; without a terminal --yes is the answer."""
    asked: list[str] = []

    def confirm(text: str, err: bool) -> bool:
        assert answer is not None, "nobody is there to be asked"
        asked.append(text)
        return answer

    for module in (groups, output):
        monkeypatch.setattr(module, "is_terminal", lambda _stream: terminal)
    monkeypatch.setattr(click, "confirm", confirm)
    lost = LostLedger("t", 1, 1500, 2000, "host", "/gone", 0, 3, in_place=not replace)
    said = groups._Lost(replace, yes)
    code: int | None = None
    try:
        said.agree([lost], "g", {1: 500})
    except (click.exceptions.Exit, click.UsageError) as ending:
        code = ending.exit_code
    assert code == ends
    assert bool(asked) == (answer is not None)
    told = capfd.readouterr().err
    assert "1,000 messages and 3 replayed dead letters may be handled again" in told
    assert "tx.state of group g" in told
