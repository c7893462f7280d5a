"""What completion shows of the classes that users hold: their documented names and no others."""

from __future__ import annotations

import pytest

import oncemq

FACES = {
    "Tx": "connection effect effect_key key key_of send sql state",
}


@pytest.mark.parametrize("name", FACES)
def test_only_documented_names_show(name: str) -> None:
    """A name that is added, renamed or left without an underscore is a change of the interface."""
    shown = [one for one in dir(getattr(oncemq, name)) if not one.startswith("_")]
    assert " ".join(shown) == FACES[name]
