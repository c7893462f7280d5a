"""The FastAPI example as real processes: server, relay, broker and the consumer that bills."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request

import pytest

from oncemq.chaos.programs import Running, free_endpoint, wait_until
from tests.process.house import START_S, House

pytestmark = pytest.mark.process
ORDERS = 60


def web(house: House, port: str) -> Running:
    return house.start(
        "web",
        *("-m", "uvicorn", "--factory", "examples.web_fastapi.app:create_app"),
        *("--host", "127.0.0.1", "--port", port, "--log-level", "warning"),
        SHOP_DATABASE=f"sqlite:///{house.directory / 'shop.db'}",
    )


def post(port: str, order: dict[str, object]) -> int | None:
    """Send an order; return the status, None if nobody has answered."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/orders",
        json.dumps(order).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, urllib.error.URLError):
        return None


@pytest.mark.timeout(180)
def test_each_order_is_billed_once(house: House, rng: random.Random) -> None:
    """Server and relay are killed between and behind orders; clients repeat what got no answer."""
    house.broker()
    port = free_endpoint().rpartition(":")[2]
    sink = f"sqlite:///{house.directory / 'shop.db'}"
    relaying = house.start("relay", "-m", "oncemq", "relay", "--sink", sink)
    server = web(house, port)
    kills = set(rng.sample(range(5, ORDERS), 3))
    expected = {"alice": 0, "bob": 0}
    for number in range(ORDERS):
        customer, cents = rng.choice(["alice", "bob"]), rng.randint(1, 999)
        expected[customer] += cents
        order = {"id": f"o-{number}", "customer": customer, "cents": cents}
        if number in kills:
            post(port, order)
            server.kill()  # its client never knows whether the order was taken
            relaying.kill()
            server = web(house, port)
            relaying = house.start("relay", "-m", "oncemq", "relay", "--sink", sink)
        wait_until(lambda o=order: post(port, o) in {200, 201}, START_S, f"an answer for {order}")
    assert post(port, {**order, "cents": 0}) == 409
    house.wait_for(relaying, "client.connected")  # up: it ends in good order when asked to
    relaying.stop(START_S, 0)
    once = house.start("relay", "-m", "oncemq", "relay", "--sink", sink, "--once")
    once.wait(START_S, 0)
    billing = house.consumer("examples.shop:app", "--until-idle=1")
    billing.wait(START_S, 0)
    assert billing.summary()["processed"] == ORDERS
    told = house.start(
        "state", "-m", "oncemq", "state", "--group=billing", f"--state={house.state}", "--json"
    )
    told.wait(START_S, 0)
    assert told.summary() == expected
