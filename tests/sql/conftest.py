"""Databases for the tests of sinks: a SQLite file, and a schema of this worker's PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from oncemq import App, Harness
from tests.postgres import Server
from tests.process.house import House
from tests.sql.client import mark, run

Shop = Callable[..., Harness]


@pytest.fixture
def postgres_sink(postgres_server: Server) -> Callable[[], str]:
    """Makes empty schemas; their addresses hold a password that must never be shown."""
    return lambda: postgres_server.make_schema().replace("//tests@", "//tests:s3cret@")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    make: Callable[[], str] = request.getfixturevalue("postgres_sink")
    return make()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Programs, directories and a port for one test; every process ends with it."""
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()


@pytest.fixture
def shop(sink: str) -> Iterator[Shop]:
    """Makes harnesses whose `orders` are handled by a function."""
    made = []

    def make(
        handler, *, retries: int = 0, partitions: int = 1, park: bool = False, **more
    ) -> Harness:
        app = App()
        app.consumer("orders", group="g", retries=retries, sink=sink, park=park, **more)(handler)
        made.append(Harness(app, partitions={"orders": partitions}))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


def table(sink: str) -> str:
    """Make the user's table; return the statement that inserts two values."""
    run(sink, "CREATE TABLE paid (id TEXT PRIMARY KEY, cents INTEGER CHECK (cents >= 0))")
    return f"INSERT INTO paid VALUES ({mark(sink)}, {mark(sink)})"
