"""What the tests of the installed package share."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def clean_environ(**more: str) -> dict[str, str]:
    """Return the environment without what would lead an interpreter back to this checkout."""
    kept = {
        n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "ONCEMQ", "VIRTUAL"))
    }
    return {**kept, **more}
