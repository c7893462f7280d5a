"""`oncemq chaos` on applications whose effects are rows of a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.test_chaos_command import ROWS, Shop
from tests.sql.client import mark, rows, run

pytestmark = pytest.mark.process

APP = """
from oncemq import App

app = App()

@app.consumer("orders", group="billing", sink="env:SHOP_DB")
def bill(order, tx):
    tx.sql("INSERT INTO billed VALUES ({mark}, {mark})", order.id, int(order.value["id"]))
    if int(order.value["id"]) % 3 == 0:
        tx.send("invoices", order.value["id"])

@app.consumer("invoices", group="post")
def post(invoice, tx):
    tx.state["posted"] = tx.state.get("posted", 0) + 1
"""


def test_rows_are_written_once_under_kills_and_the_proof_reads_them(
    tmp_path: Path, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledgers in the database are part of the verdict; a database that was used is refused."""
    shop = Shop(tmp_path)
    (tmp_path / "shop.py").write_text(APP.format(mark=mark(sink)), "utf-8")
    run(sink, "CREATE TABLE billed (id TEXT, number INTEGER)")  # no key: a double row shows
    monkeypatch.setenv("SHOP_DB", sink)
    with shop.chaos("--kills=8", "--id-field=id", "--json") as running:
        running.wait(500, 0)
    told = running.summary()
    assert told["ok"], told
    assert told["kills"]["consumer"] >= 1
    assert told["rows_fed"] > ROWS
    groups = told["topics"]["orders"]["groups"]
    assert groups["billing"]["processed"] == told["rows_fed"]
    assert told["topics"]["invoices"]["groups"]["post"]["pending"] == 0
    found = rows(sink, "SELECT count(*), count(DISTINCT id) FROM billed")
    assert found == [(told["rows_fed"], told["rows_fed"])]

    with shop.chaos("--kills=1") as again:
        again.wait(60, 2)
    assert "holds the ledger of group billing" in again.stderr()
    assert "s3cret" not in again.stderr()
