"""What a consumer process takes once, at its start, and what it does not wait for at its end."""

from __future__ import annotations

import os

import pytest

from tests.process.house import START_S, House

pytestmark = pytest.mark.process

APP = """
import os, sys, threading
from oncemq import App
app = App()
HERE = os.path.dirname(__file__)
os.environ["ONCEMQ_STATE"] = "/nowhere"
threading.Thread(target=threading.Event().wait, name="metrics").start()

@app.consumer("t", group="files")
@app.consumer("t", group="tables", sink=f"sqlite:///{{os.path.relpath(HERE)}}/shop.db")
def take(message, tx):
    os.makedirs(os.path.join(HERE, "elsewhere"), exist_ok=True)
    os.chdir(os.path.join(HERE, "elsewhere"))
    tx.state["n"] = tx.state.get("n", 0) + 1
"""


def test_facts_are_taken_at_the_start_and_threads_left_behind_are_named(house: House) -> None:
    """Relative paths and the environment of the start hold; a thread that never ends is left behind."""
    (house.directory / "factsapp.py").write_text(APP.replace("{{", "{").replace("}}", "}"))
    (house.directory / "lines").write_text("1\n2\n3\n")
    house.broker()
    house.producer("--topic=t", "--name=p", str(house.directory / "lines")).wait(START_S, 0)
    state = os.path.relpath(house.state)
    consumer = house.start(
        "consumer",
        *("-m", "oncemq", "consumer", "factsapp:app", "--until-idle=0.5"),
        ONCEMQ_STATE=state,
    )
    consumer.wait(START_S, 0)
    assert consumer.summary()["processed"] == 6
    assert "waiting 2 s for threads of the application: 'metrics'" in consumer.stderr()
    assert house.state.is_dir()
    assert (house.directory / "shop.db").exists()
    assert list((house.directory / "elsewhere").iterdir()) == []
