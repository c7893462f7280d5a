"""Shared by all tests: one seed, printed first, and Hypothesis profiles that follow it."""

from __future__ import annotations

import os
import random
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url"]

OURS = "ONCEMQ_TEST_"  # settings of the tests themselves
ASKED = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(OURS)}
for _name in [name for name in os.environ if name.startswith("ONCEMQ_") and name not in ASKED]:
    del os.environ[_name]  # no setting of the developer's shell reaches a test

# A background job of a script ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SEED = int(os.environ.get("ONCEMQ_TEST_SEED", "1"))

# Nothing here fails because a machine is busy: no time limits on examples or on drawing them.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", PATIENT, derandomize=True, max_examples=50)
settings.register_profile("long", PATIENT, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_report_header() -> str:
    """Name the settings of the run on the first lines, so that it can be repeated."""
    return "oncemq: " + " ".join(f"{k}={v}" for k, v in {f"{OURS}SEED": SEED, **ASKED}.items())


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A random source that starts the same in every test."""
    return random.Random(seed)
