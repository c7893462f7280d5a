"""A program of a user, for the tests of the relay: orders and their messages in transactions.

    python shop_writer.py URL NAME SEED COUNT

writes COUNT transactions of one to four orders each, of which some are rolled back and some commit
late, and prints the ids of the committed ones at the end. It may be killed at any time.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import sqlalchemy as sa

from oncemq import outbox

SCHEMA = "CREATE TABLE IF NOT EXISTS orders (id VARCHAR(100) PRIMARY KEY, writer VARCHAR(100))"


def open_engine(url: str) -> sa.Engine:
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA busy_timeout = 60000")

    return engine


def create(url: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(SCHEMA))
        outbox.create(connection)
    engine.dispose()


def take(connection: sa.Connection, order_id: str, writer: str = "") -> None:
    insert = sa.text("INSERT INTO orders (id, writer) VALUES (:id, :writer)")
    connection.execute(insert, {"id": order_id, "writer": writer})
    outbox.send(connection, "orders", {"id": order_id}, id=order_id, key=writer or None)


def main() -> None:
    url, name, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    engine = open_engine(url)
    late: list[tuple[sa.Connection, Any]] = []
    for number in range(count):
        connection = engine.connect()
        transaction = connection.begin()
        for part in range(rng.randint(1, 4)):
            take(connection, f"{name}-{number:05d}-{part}", name)
        chance = rng.random()
        if chance < 0.2:
            transaction.rollback()
            connection.close()
        elif chance < 0.5 and engine.dialect.name != "sqlite" and len(late) < 3:
            late.append((connection, transaction))  # others overtake it; SQLite has one writer
        else:
            transaction.commit()
            connection.close()
        if late and rng.random() < 0.3:
            connection, transaction = late.pop(0)
            transaction.commit()
            connection.close()
    for connection, transaction in late:
        transaction.commit()
        connection.close()
    engine.dispose()


if __name__ == "__main__":
    main()
