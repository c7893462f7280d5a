"""A user's own `actors`, module or package, beside an application: it is the one that is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oncemq.chaos.programs import Program, free_endpoint, wait_until
from tests.packaging.installed import ROOT, clean_environ

pytestmark = [pytest.mark.slow, pytest.mark.process]

SHOP = """
from actors import charge
from oncemq import App

app = App()


@app.consumer("orders", group="billing")
def bill(order, tx):
    tx.state["charged"] = charge(order.value)


if __name__ == "__main__":
    with app.producer() as orders:
        print(orders.send("orders", 5, id="o-1").result(timeout=30).duplicate)
"""
ACTORS = "def charge(cents):\n    return f'{cents} by the user'\n"
START_S = 60.0


@pytest.fixture(params=["installed", "checkout"])
def python(request: pytest.FixtureRequest) -> tuple[list[str], dict[str, str]]:
    """How a user starts Python, and what is in the environment then."""
    if request.param == "installed":
        return [str(request.getfixturevalue("bare"))], clean_environ()
    return [sys.executable], clean_environ(PYTHONPATH=str(ROOT))


@pytest.fixture(params=["actors.py", "actors/__init__.py"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / request.param).parent.mkdir(exist_ok=True)
    (tmp_path / request.param).write_text(ACTORS)
    return tmp_path


@pytest.fixture
def environ(
    python: tuple[list[str], dict[str, str]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The environment of programs that find a running broker; all of them start in `home`."""
    monkeypatch.chdir(home)
    command, environ = python
    environ = {**environ, "ONCEMQ_BROKER": free_endpoint(), "ONCEMQ_STATE": str(home / "state")}
    (home / "printed").mkdir()
    bind = f"--bind={environ['ONCEMQ_BROKER']}"
    broker = Program("broker", (*command, "-m", "oncemq", "broker", bind, "--data=data"), {})
    running = broker.start(home / "printed", environ)
    try:
        wait_until(lambda: "broker.ready" in running.stderr(), START_S, running.stderr())
        yield environ
    finally:
        running.end()


def test_it_is_found_and_stands_in_nobodys_way(
    python: tuple[list[str], dict[str, str]], environ: dict[str, str]
) -> None:
    """`python shop.py`, `oncemq consumer` as a script and by -m, and `oncemq state` all work."""
    command, _ = python

    def run(*argv: str) -> str:
        done = subprocess.run(
            [*command, *argv],
            env=environ, capture_output=True, text=True, check=False, timeout=START_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("shop.py") == "False\n"
    assert run("shop.py") == "True\n"
    script = os.path.join(os.path.dirname(command[0]), "oncemq")
    run(script, "consumer", "shop:app", "--until-idle=0.2")
    run("-m", "oncemq", "consumer", "shop:app", "--until-idle=0.2")
    state = run("-m", "oncemq", "state", "--group=billing", "--json")
    assert json.loads(state) == {"charged": "5 by the user"}
