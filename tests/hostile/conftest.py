"""The programs of this directory are those of the process tests."""

from __future__ import annotations

from tests.process.conftest import house

__all__ = ["house"]
