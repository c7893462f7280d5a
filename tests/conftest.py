"""Shared by all tests: one seed, printed first, and Hypothesis profiles that follow it."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]

KEPT = {"ONCEMQ_TEST_SEED", "ONCEMQ_CRASH_ALL", "ONCEMQ_POWERCUT_ALL"}
for _name in [name for name in os.environ if name.startswith("ONCEMQ_") and name not in KEPT]:
    del os.environ[_name]  # no setting of the developer's shell reaches a test

SEED = int(os.environ.get("ONCEMQ_TEST_SEED", "1"))

# Nothing here fails because a machine is busy: no time limits on examples or on drawing them.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", PATIENT, derandomize=True, max_examples=50)
settings.register_profile("long", PATIENT, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    """Name the seed on the first lines, so that any run can be repeated."""
    return f"oncemq: seed {SEED} (ONCEMQ_TEST_SEED)"


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random source that starts the same in every test."""
    return random.Random(seed)
