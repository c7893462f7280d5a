"""A shop that tests drive by commands: a broker, an application with one group, and `oncemq`."""

from __future__ import annotations

import json
from typing import Any

from tests.process.house import START_S, House

APP = """
from oncemq import App
app = App()

@app.consumer("orders", group="g")
def handler(message, tx):
    tx.state.setdefault("log", []).append(message.value)
    tx.send("out", message.value)
"""


class Shop:
    """A broker, an application, and the command."""

    def __init__(self, house: House) -> None:
        self.house = house
        (house.directory / "shopapp.py").write_text(APP)
        house.broker()

    def send(self, *values: str, topic: str = "orders") -> dict[str, Any]:
        path = self.house.directory / f"{topic}.txt"
        with path.open("a") as file:
            file.writelines(f"{value}\n" for value in values)
        running = self.house.producer(f"--topic={topic}", "--name=p", str(path))
        running.wait(START_S, 0)
        return dict(running.summary())

    def consume(self, *more: str, code: int = 0) -> Any:
        running = self.house.consumer("shopapp:app", "--until-idle=0.5", *more)
        running.wait(START_S, code)
        return running.summary() if code == 0 else running.stderr()

    def command(self, *arguments: str, code: int = 0) -> Any:
        running = self.house.start("command", "-m", "oncemq", *arguments)
        running.wait(START_S, code)
        return json.loads(running.stdout()) if code == 0 else running.stderr()

    def log(self, group: str = "g") -> list[str]:
        state = self.command("state", f"--state={self.house.state}", f"--group={group}", "--json")
        return list(state.get("log", []))
