"""The web examples, in this process: their test clients on one side, a relay on the other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI

from examples.web_fastapi.app import create_app
from oncemq import outbox
from oncemq.codec.values import decode_value
from oncemq.library.outbox.database import open_database
from oncemq.library.outbox.relay import Relay
from tests.library.outbox.users import ids_of, rows_of, sqlite_url
from tests.library.wired import Wire

ORDER = {"id": "o-1", "customer": "alice", "cents": 250}


class Shop(NamedTuple):
    """A shop on the web."""

    post: Callable[[Any], tuple[int, Any]]  # an order to the status and the answer
    url: str


def fastapi_shop(tmp_path: Path) -> Iterator[Shop]:
    url = sqlite_url(tmp_path)
    app = create_app(url)

    def post(order: Any) -> tuple[int, Any]:
        answer = asyncio.run(_post(app, order))
        told = answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json() if told else None

    yield Shop(post, url)
    app.state.engine.dispose()


async def _post(app: FastAPI, order: Any) -> httpx.Response:
    # Not starlette's TestClient: which HTTP library that one wants depends on its version.
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return await client.post("/orders", json=order)


def django_shop(tmp_path: Path) -> Iterator[Shop]:
    """The Django example, migrated as its user would do it."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "examples.web_django.settings"
    import django
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client

    django.setup()
    connection.close()
    connection.settings_dict["NAME"] = str(tmp_path / "shop.db")
    call_command("migrate", verbosity=0)
    call_command("makemigrations", check=True, verbosity=0)
    client = Client(raise_request_exception=False)

    def post(order: Any) -> tuple[int, Any]:
        answer = client.post("/orders", order, content_type="application/json")
        told = answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json() if told else None

    yield Shop(post, sqlite_url(tmp_path))
    connection.close()


@pytest.fixture(params=[fastapi_shop, django_shop], ids=["fastapi", "django"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    yield from request.param(tmp_path)


def test_an_order_and_its_message_are_taken_once(shop: Shop) -> None:
    """The same order again is answered as taken; another one under its id is refused."""
    assert shop.post(ORDER) == (201, {"id": "o-1", "new": True})
    assert shop.post(ORDER) == (200, {"id": "o-1", "new": False})
    status, told = shop.post({**ORDER, "cents": 1})
    assert (status, "another order" in str(told)) == (409, True)
    (row,) = rows_of(shop.url)
    assert (row.topic, row.message_id, row.key) == ("orders", b"so-1", b"alice")
    assert decode_value(row.encoding, row.value) == {"cents": 250}


def test_an_order_taken_again_after_it_was_sent_is_sent_once(shop: Shop) -> None:
    """The message leaves by the relay; a client that repeats its request changes nothing."""
    wire = Wire()
    for _ in range(2):
        shop.post(ORDER)
        database = open_database(shop.url)
        Relay(database, wire.engine(""), wire, until_idle_s=0).run()
        database.close()
    assert len(wire.values("orders")) == 1
    assert ids_of(shop.url) == []


def test_a_wrong_order_is_refused(shop: Shop) -> None:
    """What cannot be an order leaves neither a row nor a message."""
    for wrong in ({"id": "o-1"}, {**ORDER, "cents": "many"}, []):
        assert 400 <= shop.post(wrong)[0] < 500
    assert rows_of(shop.url) == []


def test_a_handler_that_fails_has_taken_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order and message are one transaction: a crash behind the send takes back both."""
    really = outbox.send

    def fail(*arguments: Any, **named: Any) -> bool:
        really(*arguments, **named)
        raise RuntimeError("a crash")

    monkeypatch.setattr(outbox, "send", fail)
    assert shop.post(ORDER)[0] == 500
    monkeypatch.undo()
    assert rows_of(shop.url) == []
    assert shop.post(ORDER) == (201, {"id": "o-1", "new": True})
