"""Real processes for the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.house import House


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Programs, directories and a port for one test; every process ends with it."""
    house = House(tmp_path)
    try:
        yield house
    finally:
        house.close()
