"""A shop on the web: an order is kept and told to the world in one transaction.

    honcho -f examples/web_fastapi/Procfile start
    curl -H 'content-type: application/json' http://127.0.0.1:8000/orders \
        -d '{"id": "o-1", "customer": "alice", "cents": 250}'
    python -m oncemq state --group billing      # billed once, however often you repeat the curl

The id comes from the client, so a request that got no answer can be repeated: the order, its
message and its bill exist once. Kill any of the processes at any time and start it again.
"""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field
from sqlalchemy.dialects import sqlite

from oncemq import outbox

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("customer", sa.String, nullable=False),
    sa.Column("cents", sa.BigInteger, nullable=False),
)


class Order(BaseModel):
    """What a customer's program sends."""

    id: str = Field(min_length=1, max_length=100)
    customer: str = Field(min_length=1, max_length=100)
    cents: int = Field(ge=0, lt=2**62)


def insert(order: Order) -> Any:
    """Write the order unless its id is there; two requests at once do not both find it absent."""
    return sqlite.insert(orders).values(order.model_dump()).on_conflict_do_nothing()


def open_database(url: str) -> sa.Engine:
    """Connect, and make the tables unless they are there."""
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            # The relay reads while requests write.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")

    with engine.begin() as connection:
        metadata.create_all(connection)
        outbox.create(connection)
    return engine


def create_app(url: str | None = None) -> FastAPI:
    """Make the program; the database is SHOP_DATABASE unless it is named here."""
    engine = open_database(url or os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"))
    app = FastAPI(title="shop")
    app.state.engine = engine

    @app.post("/orders", status_code=201)
    def take_order(order: Order, response: Response) -> dict[str, Any]:
        """Take an order; the same one again is taken once."""
        with engine.begin() as connection:
            new = connection.execute(insert(order)).rowcount == 1
            if new:
                outbox.send(
                    connection, "orders", {"cents": order.cents}, id=order.id, key=order.customer
                )
            else:
                kept = connection.execute(sa.select(orders).where(orders.c.id == order.id)).one()
                if tuple(kept) != (order.id, order.customer, order.cents):
                    raise HTTPException(409, f"{order.id} is another order")
                response.status_code = 200
        return {"id": order.id, "new": new}

    return app
