"""The proof of a log whose topics have dedup horizons, and of snapshots that have forgotten ids."""

from __future__ import annotations

from oncemq.proof.verify.verify import verify
from tests.core.broker.shop import HOUR, LIMITS, Shop


def test_a_broker_that_forgets_gives_a_clean_proof() -> None:
    """Ids that come again, files that went, and a snapshot that holds fewer ids than the log."""
    shop = Shop("1h")
    for _ in range(6):
        shop.sell({"x": "1"}, shop.clock.ms)
        shop.pass_time(5 * HOUR)
        shop.settle()
        shop.driver.write_snapshot()
        shop.settle()
    stored = shop.core.state.topics.by_name["t"].partition(0).end_offset
    assert len(shop.core.state.ids) < stored - LIMITS.id_table_ids
    shop.driver.close(clean=True)
    report = verify(shop.disk, "data", None)
    assert report.ok, report.found.kept


def test_a_snapshot_that_forgot_too_much_is_found() -> None:
    """What is younger than the horizon must be there."""
    shop = Shop("1h")
    shop.pass_time(6 * HOUR)
    state = shop.core.state
    state.ids._trees.clear()
    shop.sell({"x": "1"}, shop.clock.ms)
    shop.driver.write_snapshot()
    shop.settle()
    shop.driver.close(clean=True)
    assert set(verify(shop.disk, "data", None).found.counts) == {"I13-atomicity"}
