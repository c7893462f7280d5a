"""`oncemq chaos` on an application that calls the world outside by `tx.effect`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.test_chaos_command import Shop

pytestmark = pytest.mark.process

APP = """
import os
import time

from oncemq import App

app = App()

def charge(key):
    bank = os.open("bank.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(bank, f"{key}\\n".encode())
    os.close(bank)
    time.sleep(0.02)  # long enough to be killed in
    return key

@app.consumer("orders", group="billing")
def bill(order, tx):
    if int(order.value["id"]) % 10 == 0:
        receipt = tx.effect("charge", charge, tx.effect_key("charge"), policy="retry")
        tx.send("receipts", receipt)

@app.consumer("receipts", group="post")
def post(receipt, tx):
    tx.state[receipt.value] = 1 + tx.state.get(receipt.value, 0)
"""


def test_calls_survive_kills_and_are_proved(tmp_path: Path) -> None:
    """Each message is charged and has one receipt; who was killed in a call called again, by key."""
    shop = Shop(tmp_path)
    (tmp_path / "shop.py").write_text(APP, "utf-8")
    with shop.chaos("--kills=12", "--kill=consumer", "--json", "--rate=200") as running:
        running.wait(500, 0)
    told = running.summary()
    assert told["ok"], told
    billing = told["topics"]["orders"]["groups"]["billing"]
    calls = (tmp_path / "bank.txt").read_text("utf-8").split()
    assert billing["pending"] == 0
    assert told["topics"]["receipts"]["groups"]["post"]["processed"] == len(set(calls)) > 20
    # What the records tell of: also an intent whose process died before the call.
    assert len(set(calls)) <= len(calls) <= billing["effect_calls"]
    assert billing["effect_calls"] <= len(set(calls)) + told["kills"]["consumer"]
    assert billing["effects_unknown"] == 0
